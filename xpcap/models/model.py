"""What every captioner is: words, parameters, a loss, and captions.

A model family is a subclass of `CaptionModel` that defines `shapes`, `forward`, `backward`, `start`
and `advance`. Training, decoding, checkpoints and reports ask a model for nothing else.
"""

from __future__ import annotations

import abc
import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy
import safetensors
import safetensors.numpy

from xpcap.backend import Array, Backend, as_backend, namespace, to_host
from xpcap.data.vocabulary import END, NULL, START, as_index
from xpcap.errors import CheckpointError, ConfigurationError, first_line
from xpcap.files import check_plain, new_file
from xpcap.models.generation import greedy
from xpcap.models.objective import Objective
from xpcap.models.packed_batch import PackedBatch
from xpcap.options import check_counts, check_number, given
from xpcap.workspace import Workspace

State = tuple[Array, ...]
"""Arrays with a row for each hypothesis."""

_TEXT = "xpcap"  # metadata of the files of `save`


def _floating(dtype: Any) -> numpy.dtype:
    """Return a floating dtype, or raise `ConfigurationError`."""
    try:
        found: numpy.dtype[Any] = numpy.dtype(dtype)
    except TypeError:
        found = numpy.dtype(bool)
    if found.kind != "f":
        raise ConfigurationError(f"dtype {dtype!r:.40} is not a floating one, as 'float32'")
    return found


class CaptionModel(abc.ABC):
    """A captioner: image features in, sentences out.

    A copy (`copy.deepcopy`) or a pickle has its own parameters, on the same device.

    Parameters
    ----------
    word_to_idx
        The index of each word, 0..V-1, an integer or its digits as text; `<NULL>` must be there,
        `<START>` and `<END>` to sample.
    dtype
        Of the initial parameters.
    dropout
        The share of word vectors' and of hidden states' elements that `loss` drops, in [0, 1);
        other families say what else.
    seed
        Of the initial parameters and of dropout; None takes it from NumPy's global generator.
    backend
        Where the parameters live: a device name, a `Backend`, or None for the default one.
    **sizes
        The arguments of `shapes`.

    Attributes
    ----------
    null, start_word, end
        The indices of `<NULL>`, `<START>` and `<END>`; the last two may be None.
    params
        Arrays by name. A plain dict: assign to it what you like, in any floating dtype.
    sizes
        As given.

    Raises
    ------
    ConfigurationError
        If a size is no positive integer, the rate not in [0, 1), the dtype not floating, `<NULL>`
        missing or an index no integer.
    """

    family: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    """Those of its arguments that not all families have."""
    needs_regions: ClassVar[bool] = False
    """Whether features must be regions `(N, L, D)`."""
    embeddings: ClassVar[tuple[str, ...]] = ("W_embed",)
    """Parameters whose rows are vectors of words, positions and the like; they do not decay."""
    max_length: float = math.inf
    """The most words of a caption that the model can read or generate, `<END>` included."""

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        *,
        dtype: Any = numpy.float32,
        dropout: float = 0.0,
        seed: int | None = None,
        backend: Backend | str | None = None,
        **sizes: Any,
    ) -> None:
        check_number("dropout", dropout, "[0, 1)")
        check_counts(
            **{
                name: size
                for name, size in sizes.items()
                if isinstance(size, numbers.Number) and name not in self.options
            }
        )
        check_counts(0, math.inf, **given(seed=seed))
        if not isinstance(word_to_idx, Mapping):
            raise ConfigurationError(
                f"word_to_idx is of type {type(word_to_idx).__name__}; expected a dict of indices"
            )
        word_to_idx = {
            word: as_index(index, f"the index of '{word}'") for word, index in word_to_idx.items()
        }
        if NULL not in word_to_idx:
            raise ConfigurationError(f"the vocabulary lacks {NULL}, the padding of captions")
        self.sizes = sizes
        self.dtype = _floating(dtype)
        self.dropout = dropout
        self.seed = int(numpy.random.randint(2**31 - 1) if seed is None else seed)
        self.word_to_idx = word_to_idx
        self.idx_to_word = {index: word for word, index in word_to_idx.items()}
        self.null = word_to_idx[NULL]
        self.start_word = word_to_idx.get(START)
        self.end = word_to_idx.get(END)
        self.backend = as_backend(backend)
        shapes = self.shapes(len(word_to_idx), **sizes)
        self.params: dict[str, Array] = {
            name: self.backend.to_device(value, dtype=self.dtype)
            for name, value in self.initial(shapes, numpy.random.default_rng(self.seed)).items()
        }

    @classmethod
    @abc.abstractmethod
    def shapes(cls, words: int, **sizes: Any) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter by name, for a vocabulary of `words` words."""

    @abc.abstractmethod
    def forward(self, features: Array, batch: PackedBatch, space: Workspace) -> tuple[Array, Any]:
        """Read packed captions, M words.

        Features `(I, ...)` of images are of the parameters' dtype; `batch.to_captions` gives their
        vectors to the packed captions, in whose order they are if each caption has its own image.
        The memory of `space` stays until `backward`; its namespace chooses the kernels. Returns
        `hidden (M, H)`, from which the vocabulary layer predicts words, and what `backward` needs.
        """

    @abc.abstractmethod
    def backward(
        self,
        dhidden: Array,
        cache: Any,
        gradients: Mapping[str, Array],
        dfeatures: Array | None = None,
    ) -> None:
        """Write the gradients of all parameters but those of `vocabulary_layer`, by name.

        `dhidden (M, H)` is the gradient of `hidden` and may be changed; `cache` is from `forward`,
        and of no use afterwards. `dfeatures (I, ...)` is written too, if given.
        """

    def vocabulary_layer(self, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return those of the layer that predicts words: weights `(H, V)` and biases `(V,)`.

        `arrays` are `params`, or gradients by the same names. The gradients of this layer are
        written before `backward` is called.
        """
        return arrays["W_vocab"], arrays["b_vocab"]

    def penalty(self, cache: Any) -> Array | None:
        """Return what each caption `(N,)` adds to the training loss, weighted; None: nothing.

        It is called between `forward` and `backward`, which adds its gradient.
        """
        return None

    @abc.abstractmethod
    def start(self, features: Array) -> tuple[Any, State]:
        """Begin captions of N images.

        Returns what belongs to the images and to decoding as a whole, the context; and the state
        before the first word, N rows. If the context is a tuple, arrays in it belong to the images;
        what depends on the parameters alone is another object.
        """

    @abc.abstractmethod
    def advance(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Feed one word to each hypothesis, `words (R,)`.

        `parents (R,)` are the rows of `state` that the words follow. None: each its own, and arrays
        of `state` may be written into and returned. Returns `hidden (R, H)`, from which the
        vocabulary layer predicts the next words, and the new state.
        """

    def initial(
        self, shapes: Mapping[str, tuple[int, ...]], rng: numpy.random.Generator
    ) -> dict[str, numpy.ndarray]:
        """Draw initial parameters: weights are N(0, 1) / sqrt(fan_in), biases zero."""
        return {
            name: rng.standard_normal(shape) / math.sqrt(shape[0])
            if len(shape) == 2
            else numpy.zeros(shape)
            for name, shape in shapes.items()
        }

    def decays(self, name: str) -> bool:
        """Return whether weight decay applies to a parameter: to matrices but for embeddings."""
        return self.params[name].ndim == 2 and name not in self.embeddings

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size!r}" for name, size in self.sizes.items())
        numbers = sum(value.size for value in self.params.values())
        return (
            f"{type(self).__name__}({len(self.word_to_idx)} words, {sizes}):"
            f" {numbers:,} parameters, {self.dtype} on {self.backend.name}"
        )

    def save(self, path: str | Path) -> None:
        """Write parameters, sizes and vocabulary to a file, in safetensors format."""
        described = {
            "family": self.family,
            "sizes": self.sizes,
            "dropout": self.dropout,
            "seed": self.seed,
            "words": self.word_to_idx,
        }
        arrays = {name: numpy.ascontiguousarray(to_host(v)) for name, v in self.params.items()}
        text = json.dumps(described, default=lambda number: number.item())  # NumPy's
        content = safetensors.numpy.save(arrays, {_TEXT: text})
        with new_file(Path(path)) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path, backend: Backend | str | None = None) -> Self:
        """Read a model from a file of `save` to a device; None is the default one.

        A damaged file, or one of another model, raises `CheckpointError`. The model of a run is
        `xpcap.open_run(path).model`.
        """
        wanted = as_backend(backend)
        check_plain(Path(path))
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                found = json.loads((file.metadata() or {})[_TEXT])
                params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if found["family"] != cls.family:
                raise ValueError(f"it is of the family {found['family']!r}")
            shapes = cls.shapes(len(found["words"]), **found["sizes"])
            if {name: value.shape for name, value in params.items()} != shapes:
                raise ValueError("its parameters have other shapes")
            model = cls(
                found["words"],
                dropout=found["dropout"],
                seed=found["seed"],
                dtype=next(iter(params.values())).dtype,
                backend="cpu",
                **found["sizes"],
            )
        except Exception as error:  # a damaged or hostile file raises many kinds of errors
            raise CheckpointError(
                f"{path} is no file of {cls.__name__}.save: {first_line(error)}"
            ) from error
        model.params = {name: params[name] for name in shapes}
        return model.to(wanted)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "params": {name: to_host(p) for name, p in self.params.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.to(self.backend)

    def to(self, backend: Backend | str) -> Self:
        """Move the parameters to another device, and return the model itself."""
        self.backend = as_backend(backend)
        self.params = {name: self.backend.to_device(value) for name, value in self.params.items()}
        return self

    def loss(
        self, features: Array, captions: Array, step: int = 0
    ) -> tuple[Array, dict[str, Array]]:
        """Cross entropy of captions given their images' features, and its gradients.

        A model with a `penalty` adds it.

        Parameters
        ----------
        features
            `(N, ...)` floating, converted to the parameters' dtype.
        captions
            Word indices `(N, T+1)`: each word but the last is fed in, each but the first is to be
            predicted, and `<NULL>` is not counted.
        step
            The number of the training step: which dropout masks are drawn.

        Returns
        -------
        loss, gradients
            In nats, summed over a caption's words and averaged over captions, a 0-d array; and
            a dict with the keys of `params`.

        Raises
        ------
        ShapeError
            If shapes do not fit, or a word is not in the vocabulary.
        BackendError
            If the arrays do not live where the parameters do.
        """
        check_counts(0, math.inf, step=step)
        with self.backend.activate():
            xp = namespace(features, captions, *self.params.values())
            gradients = {name: xp.empty_like(value) for name, value in self.params.items()}
            objective = Objective(self)
            loss = objective.loss(features, captions, int(step), gradients)
            if objective.penalty is not None:
                loss = loss + objective.penalty.sum()
            return loss, gradients

    def evaluate(self, features: Array, captions: Array) -> Array:
        """Return the cross entropy without gradients and dropout, as for held-out captions."""
        with self.backend.activate():
            namespace(features, captions, *self.params.values())
            return Objective(self).evaluate(features, captions)

    def step(
        self, words: Array, parents: Array | None, state: State, context: Any
    ) -> tuple[Array, State]:
        """Feed one word to each hypothesis, as `advance`; return scores of next words `(R, V)`."""
        hidden, state = self.advance(words, parents, state, context)
        W, b = self.vocabulary_layer(self.params)
        scores = hidden @ W
        scores += b
        return scores, state

    def sample(self, features: Array, max_length: int | None = None) -> Array:
        """Caption images greedily: always the most likely next word.

        Parameters
        ----------
        features
            `(N, ...)` floating.
        max_length
            The most words of a caption, `<END>` included; None: 30, or as many as the model can.

        Returns
        -------
        array
            Word indices `(N, max_length)` int32; after `<END>` all is `<NULL>`.

        Raises
        ------
        ConfigurationError
            If the vocabulary has no `<START>`, or `max_length` is no integer from 0 on, or larger
            than the model's.
        """
        if self.start_word is None:
            raise ConfigurationError(f"the vocabulary lacks {START}, with which captions begin")
        if max_length is None:
            max_length = int(min(30, self.max_length))
        check_counts(0, self.max_length, max_length=max_length)
        with self.backend.activate():
            if not len(features):
                return namespace(features).empty((0, max_length), numpy.int32)
            return greedy(self, features, max_length)
