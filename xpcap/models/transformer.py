"""The Transformer captioner: words look at the words before them, and at the regions of the image.

Vaswani et al., "Attention is all you need" (2017), its decoder, with the norm in front of each
layer (Xiong et al., "On layer normalization in the Transformer architecture", ICML 2020):

    p_l = a_l W_proj + b_proj                                   regions a_l of the image
    p = p + self(norm(p)); p = p + feed(norm(p))                in each encoder layer, if any
    p = norm(p)
    x_t = sqrt(H) W_embed[word_t] + position_t
    x = x + self(norm(x)); x = x + cross(norm(x), p); x = x + feed(norm(x))         in each layer
    scores_t = norm(x_t) W_vocab + b_vocab                      W_vocab may be W_embed^T

`self` and `cross` are multi-head attention, `feed` the feed-forward layer of 4 H units. Dropout is
of x_t and of what each of the layers of words adds, but not of attention's weights, nor of regions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy

from xpcap.backend import Array, Backend, Namespace, is_host, namespace
from xpcap.errors import ConfigurationError, ShapeError
from xpcap.kernels import fastest
from xpcap.layers._checks import check_numbers, check_shapes
from xpcap.layers.affine import column_sum, product
from xpcap.layers.cross_attention import CrossAttention
from xpcap.layers.embedding import add_rows, take_rows
from xpcap.layers.feed_forward import FeedForward
from xpcap.layers.multi_head import check_heads
from xpcap.layers.positions import sinusoids
from xpcap.layers.regions import present_regions
from xpcap.layers.residual import Drop, Norm, Residual, keep, part_of, stack
from xpcap.layers.self_attention import SelfAttention
from xpcap.layers.sequences import Sequences
from xpcap.models.inspection import Layered
from xpcap.models.model import State
from xpcap.models.packed_batch import PackedBatch
from xpcap.options import check_counts, check_options
from xpcap.workspace import Workspace

POSITIONS = ("sinusoidal", "learned")


class Transformer(Layered):
    """A captioner that is a Transformer decoder.

    Features are `(N, L, D)`, L regions of which those that are all zero are absent, or `(N, D)`,
    the same as one region.

    Parameters
    ----------
    word_to_idx, dtype, dropout, seed, backend
        As for `CaptionModel`, with its errors.
    input_dim, hidden_dim
        D and H: sizes of the image features, and of all vectors of words and regions.
    layers, encoder_layers
        The number of layers of words, and of layers in which regions look at each other.
    heads
        Of each attention; a divisor of H.
    positions
        `"sinusoidal"`, or `"learned"` vectors.
    tie_embeddings
        Whether the vocabulary layer has the word vectors as its weights (O. Press and L. Wolf,
        "Using the output embedding to improve language models", 2017).
    max_length
        The most words of a caption, `<END>` included.
    """

    family = "transformer"
    embeddings = ("W_embed", "W_position")
    options = ("layers", "heads", "encoder_layers", "positions", "tie_embeddings", "max_length")

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        hidden_dim: int = 512,
        dtype: Any = numpy.float32,
        *,
        layers: int = 3,
        heads: int = 8,
        encoder_layers: int = 0,
        positions: str = "sinusoidal",
        tie_embeddings: bool = False,
        max_length: int = 64,
        dropout: float = 0.0,
        seed: int | None = None,
        backend: Backend | str | None = None,
    ) -> None:
        super().__init__(
            word_to_idx, dtype=dtype, dropout=dropout, seed=seed, backend=backend,
            input_dim=input_dim, hidden_dim=hidden_dim, layers=layers, heads=heads,
            encoder_layers=encoder_layers, positions=positions, tie_embeddings=tie_embeddings,
            max_length=max_length,
        )  # fmt: skip
        self.max_length = max_length

    @classmethod
    def shapes(cls, words: int, **sizes: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all parameters; those of a layer begin with its name and a dot."""
        D, H, heads = sizes["input_dim"], sizes["hidden_dim"], sizes["heads"]
        check_counts(
            input_dim=D, hidden_dim=H, layers=sizes["layers"], max_length=sizes["max_length"]
        )
        check_counts(0, encoder_layers=sizes["encoder_layers"])
        check_options({"tie_embeddings": sizes["tie_embeddings"]}, {"tie_embeddings": False})
        check_heads("Transformer", heads, H)
        if sizes["positions"] not in POSITIONS:
            raise ConfigurationError(
                f"positions '{sizes['positions']}' are unknown; expected {' or '.join(POSITIONS)}"
            )
        norm = {"w_norm": (H,), "b_norm": (H,)}
        out = {"W_out": (H, H), "b_out": (H,)}
        own = {**norm, "W_qkv": (H, 3 * H), "b_qkv": (3 * H,), **out}
        cross = {
            **norm, "W_query": (H, H), "b_query": (H,), "W_key": (H, H), "W_value": (H, H),
            "b_value": (H,), **out,
        }  # fmt: skip
        feed = {**norm, "W_in": (H, 4 * H), "b_in": (4 * H,), "W_out": (4 * H, H), "b_out": (H,)}
        parts = {
            f"encoder.{k}": {"self": own, "feed": feed} for k in range(sizes["encoder_layers"])
        }
        parts |= {
            f"layer.{k}": {"self": own, "cross": cross, "feed": feed}
            for k in range(sizes["layers"])
        }
        learned = sizes["positions"] == "learned"
        return {
            "W_embed": (words, H),
            **({"W_position": (sizes["max_length"], H)} if learned else {}),
            "W_proj": (D, H),
            "b_proj": (H,),
            "regions.w_norm": (H,),
            "regions.b_norm": (H,),
            **{
                f"{number}.{layer}.{name}": shape
                for number, layers in parts.items()
                for layer, shapes in layers.items()
                for name, shape in shapes.items()
            },
            **norm,
            **({} if sizes["tie_embeddings"] else {"W_vocab": (H, words)}),
            "b_vocab": (words,),
        }

    def initial(
        self, shapes: Mapping[str, tuple[int, ...]], rng: numpy.random.Generator
    ) -> dict[str, numpy.ndarray]:
        """Draw initial parameters.

        Word vectors and learned positions are N(0, 1) / sqrt(H), gains 1, and the weights of layers
        uniform with variance 2 / (fan_in + fan_out) (X. Glorot and Y. Bengio, 2010), each of query,
        key and value by itself. What layers add is scaled by 1 / sqrt(their number), as in GPT-2
        (Radford et al. 2019). All else is as for `CaptionModel`.
        """
        found = super().initial(shapes, rng)
        H, added = shapes["W_proj"][1], sum(name.endswith(".W_out") for name in shapes)
        for name, shape in shapes.items():
            if name.endswith("w_norm"):
                found[name] = numpy.ones(shape)
            elif name in ("W_embed", "W_position"):
                found[name] = rng.standard_normal(shape) / math.sqrt(H)
            elif len(shape) == 2 and "." in name:
                inputs, outputs = shape[0], H if name.endswith("W_qkv") else shape[1]
                found[name] = rng.uniform(-1, 1, shape) * math.sqrt(6 / (inputs + outputs))
                if name.endswith(".W_out"):
                    found[name] /= math.sqrt(added)
        return found

    def vocabulary_layer(self, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the arrays of the vocabulary layer; see `CaptionModel.vocabulary_layer`."""
        tied = self.sizes["tie_embeddings"]
        return arrays["W_embed"].T if tied else arrays["W_vocab"], arrays["b_vocab"]

    def scale_features(self, scale: float) -> None:
        """Divide `W_proj` by the root mean square of the features."""
        with self.backend.activate():
            self.params["W_proj"] /= scale

    def forward(self, features: Array, batch: PackedBatch, space: Workspace) -> tuple[Array, Any]:
        """Read packed captions; see `CaptionModel.forward`."""
        rows, xp, H = Sequences.of(batch.packing), space.xp, self.sizes["hidden_dim"]
        if len(batch.packing.rows) > self.sizes["max_length"]:
            raise ShapeError(
                f"captions of {len(batch.packing.rows)} words; expected at most max_length ="
                f" {self.sizes['max_length']}"
            )
        order = rows.packed_rows(xp, batch.packing)
        encoded = _Regions(self, features, space)
        x, normalized, hidden = (
            rows.empty(space, name, H) for name in ("x", "normalized", "hidden")
        )
        words, positions = batch.words[order], self._positions()
        self._read(words, x, xp)
        for part, _, T in rows.groups:
            x[part].reshape(-1, T, H)[...] += positions[:T]
        drop = functools.partial(batch.drop, order=order)
        drop(x, 0)
        regions = batch.to_captions(encoded.regions, "regions", space)
        present = batch.to_captions(encoded.present, "present", space)
        layers = self._layers(regions, present, rows, space)
        for number, layer in enumerate(layers, 1):
            layer.forward(x, drop, number)
        last = Norm(self.params, rows, space, "last")
        last.forward(x, normalized)
        hidden[order] = normalized
        return hidden, _Cache(encoded, layers, last, rows, order, words, drop, batch, space)

    def backward(
        self,
        dhidden: Array,
        cache: Any,
        gradients: Mapping[str, Array],
        dfeatures: Array | None = None,
        look: Callable[[str, Array], None] | None = None,
    ) -> None:
        """Backpropagate through all layers; see `CaptionModel.backward`.

        `look` is called for each layer of words, the last one first, with the beginning of its
        parameters' names and the gradient of its output x `(M, H)`, of the words read.
        """
        encoded, layers, last, rows, order, words, drop, batch, space = cache
        xp, H = space.xp, dhidden.shape[1]
        dnormalized, dx = (rows.empty(space, name, H) for name in ("normalized", "dx"))
        take_rows(xp, dhidden, order, dnormalized)
        dx[...] = 0
        last.backward(dnormalized, dx, gradients)
        dregions = space.zeros("dregions", len(batch.images), *encoded.regions.shape[1:])
        for number, layer in reversed([*enumerate(layers, 1)]):
            if look is not None:
                look(layer.name, dx[xp.argsort(order)])
            more = [dregions] if isinstance(layer.layer, CrossAttention) else []
            layer.backward(dx, drop, number, gradients, *more)
        encoded.backward(batch.to_images(dregions, "regions", space), gradients, dfeatures)
        drop(dx, 0)
        dx *= math.sqrt(H)
        dW = gradients["W_embed"]
        if self.sizes["tie_embeddings"]:  # beside the gradient of the vocabulary layer
            of_words = space.empty("dW_embed", *dW.shape)
            add_rows(xp, words, dx, of_words)
            dW += of_words
        else:
            add_rows(xp, words, dx, dW)
        if "W_position" in gradients:
            gradients["W_position"][...] = 0
            for part, _, T in rows.groups:
                gradients["W_position"][:T] += dx[part].reshape(-1, T, H).sum(axis=0)

    def start(self, features: Array) -> tuple[Any, State]:
        """Return regions, positions and the state before the first word; see `CaptionModel.start`.

        The state has the keys and the values of each layer, `(N, P, H)` with room for P words, and
        `(N,)` the image that a caption belongs to, and the number of words read.
        """
        check_numbers("start", features=features)
        W_proj = self.params["W_proj"]
        xp = namespace(features, W_proj)
        features = features.astype(W_proj.dtype, copy=False)
        space = Workspace(fastest(xp), W_proj.dtype)
        encoded = _Regions(self, features, space)
        shape = len(features), self.sizes["max_length"], W_proj.shape[1]
        stored = (xp.zeros(shape, dtype=W_proj.dtype) for _ in range(2 * self.sizes["layers"]))
        image = xp.arange(len(features))
        context = _Context(encoded.regions, encoded.present, self._positions(), space)
        return context, (*stored, image, xp.zeros_like(image))

    def advance(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Read one more word of each caption; see `CaptionModel.advance`.

        Without `parents` its keys and values are stored in `state` itself, behind those before, if
        there is room.
        """
        xp = namespace(words, *state)
        *stored, image, position = state
        if is_host(xp):
            stored = _with_room(stored, parents, position, self.sizes["max_length"])
        elif parents is not None:
            stored = [part[parents] for part in stored]
        if parents is not None:
            image, position = image[parents], position[parents]
        (regions, present, positions, space), R, H = context, len(words), stored[0].shape[2]
        rows, by_image = Sequences.even(R, 1), None
        x, out = space.empty("x", R, H), xp.empty((R, H), dtype=stored[0].dtype)
        self._read(words, x, space.xp)
        x += positions[position]
        images = image
        if is_host(xp):  # there rows of one image look at it together
            by_image, images = _by_image(image, len(regions))
        if images is not None:
            regions, present = regions[images], present[images]
        caches = zip(stored[::2], stored[1::2], strict=True)
        for layer in self._layers(regions, present, rows, space, by_image):
            if isinstance(layer.layer, SelfAttention):
                layer.advance(x, *next(caches), position)
            else:
                layer.forward(x, keep)
        Norm(self.params, rows, space, "last").forward(x, out)
        return out, (*stored, image, position + 1)

    def attention(self, cache: Any) -> Array:
        """Return the weights of regions for each word read; see `inspection.Attends`."""
        xp, shape = cache.space.xp, (self.sizes["layers"], self.sizes["heads"])
        regions = cache.encoded.regions
        found = xp.zeros((*shape, cache.rows.total, regions.shape[1]), dtype=regions.dtype)
        for of_layer, layer in zip(found, cache.layers[1::3], strict=True):
            groups = zip(cache.rows.groups, layer.layer.weights(), strict=True)
            for (rows, _, _), weights in groups:
                of_layer[:, cache.order[rows]] = weights.swapaxes(0, 1).reshape(
                    shape[1], -1, weights.shape[3]
                )
        return found

    def self_attention(self, cache: Any) -> Array:
        """Return the weights of words read for words read; see `inspection.Layered`."""
        groups, shape = cache.rows.groups, (self.sizes["layers"], self.sizes["heads"])
        count, longest = (groups[-1].sequences.stop, groups[0].length) if groups else (0, 0)
        x = cache.encoded.regions
        found = cache.space.xp.zeros((*shape, count, longest, longest), dtype=x.dtype)
        for of_layer, layer in zip(found, cache.layers[::3], strict=True):
            for (_, captions, T), weights in zip(groups, layer.layer.weights(), strict=True):
                of_layer[:, captions, :T, :T] = weights.swapaxes(0, 1)
        return found

    def _read(self, words: Array, x: Array, xp: Namespace) -> None:
        """Write the scaled vectors of words `(M, H)`."""
        take_rows(xp, self.params["W_embed"], words, x)
        x *= math.sqrt(x.shape[1])

    def _positions(self) -> Array:
        """Return the vectors of all positions, `(max_length, H)`."""
        (_, H), W_embed = self.params["W_embed"].shape, self.params["W_embed"]
        if "W_position" in self.params:
            return self.params["W_position"] * math.sqrt(H)
        return sinusoids(namespace(W_embed), self.sizes["max_length"], H).astype(W_embed.dtype)

    def _layers(
        self,
        regions: Array,
        present: Array,
        rows: Sequences,
        space: Workspace,
        by_image: _ByImage | None = None,
    ) -> list[Residual]:
        """Return the layers that words pass through."""
        heads, cross = self.sizes["heads"], CrossAttention if by_image is None else by_image.layer
        kinds = {
            "self": (SelfAttention, heads),
            "cross": (cross, heads, regions, present),
            "feed": (FeedForward,),
        }
        return stack("layer", self.sizes["layers"], kinds, self.params, rows, space)


def _with_room(
    stored: list[Array], parents: Array | None, position: Array, limit: int
) -> list[Array]:
    """Return keys and values `(R, P, H)` of these rows, with room for one more word or twice."""
    read = int(position.max(initial=0))
    length = read + 1
    if parents is None:
        if read < stored[0].shape[1]:
            return stored
        parents, length = numpy.arange(len(position)), 2 * length
    places = numpy.arange(min(length, limit))
    places[read:] = 0  # anything finite
    return [part[parents[:, None], places] for part in stored]


class _Context(NamedTuple):
    """What decoding needs: regions of the images `(N, L, H)`, which there are, and memory."""

    regions: Array
    present: Array
    positions: Array
    space: Workspace


class _ByImage(NamedTuple):
    """Rows in the order of their images, so that those of one image look at it together."""

    order: numpy.ndarray
    rows: Sequences

    def layer(
        self, params: Mapping[str, Array], _: Sequences, space: Workspace, name: str, *more: Any
    ) -> _Reordered:
        """Make the cross attention of rows that are in another order."""
        return _Reordered(CrossAttention(params, self.rows, space, name, *more), self.order, space)


class _Reordered(NamedTuple):
    """A layer of rows in this order."""

    layer: CrossAttention
    order: numpy.ndarray
    space: Workspace

    def forward(self, x: Array, out: Array) -> None:
        ordered = self.space.empty("reordered", *x.shape)
        self.layer.forward(x[self.order], ordered)
        out[self.order] = ordered


def _by_image(image: numpy.ndarray, count: int) -> tuple[_ByImage | None, numpy.ndarray | None]:
    """Group rows by the images `(R,)` that they look at, of `count`; and return these images.

    None stands for rows that stay as they are, and for all images.
    """
    images, which, numbers = numpy.unique(image, return_inverse=True, return_counts=True)
    most = numpy.argsort(-numbers, kind="stable")
    rank = numpy.empty_like(most)
    rank[most] = numpy.arange(len(most))
    lengths, counts = numpy.unique(numbers, return_counts=True)
    rows = Sequences([*zip(counts[::-1].tolist(), lengths[::-1].tolist(), strict=True)])
    images = images[most]
    by_image = _ByImage(numpy.argsort(rank[which], kind="stable"), rows)
    return (
        None if numpy.array_equal(images, image) else by_image,
        None if numpy.array_equal(images, numpy.arange(count)) else images,
    )


class _Cache(NamedTuple):
    encoded: _Regions
    layers: list[Residual]
    last: Norm
    rows: Sequences
    order: Array
    words: Array
    drop: Drop
    batch: PackedBatch
    space: Workspace


class _Regions:
    """The regions of images, projected, encoded and normalized: `regions (N, L, H)`."""

    def __init__(self, model: Transformer, features: Array, space: Workspace) -> None:
        if features.ndim == 2:
            features = features[:, None]
        size = check_shapes(
            "loss", features=(features, "N L D"), W_proj=(model.params["W_proj"], "D H")
        )
        N, L, D, H = size.values()
        xp, params = space.xp, model.params
        self._features, self._params, self._space = features, params, space
        self._rows = Sequences.even(N, L)
        self.present = space.empty("present", N, L, dtype=bool)
        present_regions(xp, features, self.present)
        p, regions = space.empty("p", N, L, H), space.empty("regions", N, L, H)
        x = p.reshape(-1, H)
        product(xp, features.reshape(-1, D), params["W_proj"], x)
        x += params["b_proj"]
        kinds = {
            "self": (SelfAttention, model.sizes["heads"], self.present),
            "feed": (FeedForward,),
        }
        count = model.sizes["encoder_layers"]
        self._layers = stack("encoder", count, kinds, params, self._rows, space)
        for layer in self._layers:
            layer.forward(x, keep)
        self._norm = Norm(part_of(params, "regions"), self._rows, space, "norm of regions")
        self._norm.forward(x, regions.reshape(-1, H))
        self.regions = regions

    def backward(
        self, dregions: Array, gradients: Mapping[str, Array], dfeatures: Array | None
    ) -> None:
        """Write the gradients of the parameters, and of the features if asked for."""
        xp, (N, L, H) = self._space.xp, dregions.shape
        D, W_proj = self._features.shape[2], self._params["W_proj"]
        dp = self._space.zeros("dp", N, L, H)
        dx = dp.reshape(-1, H)
        self._norm.backward(dregions.reshape(-1, H), dx, part_of(gradients, "regions"))
        for layer in reversed(self._layers):
            layer.backward(dx, keep, 0, gradients)
        product(xp, self._features.reshape(-1, D).T, dx, gradients["W_proj"])
        column_sum(xp, dx, gradients["b_proj"])
        if dfeatures is not None:
            product(xp, dx, W_proj.T, dfeatures.reshape(-1, D))
