"""A Transformer captioner in PyTorch, by its own decoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import nn
from torch_recurrent import Captioner, Images, cross_entropy

from xpcap.backend import to_host
from xpcap.benchmark.workload import MAX_LENGTH, NULL, Workload

attend = nn.functional.scaled_dot_product_attention
PARTS = "self", "cross", "feed"  # of a layer of our Transformer

_OF_MODEL: dict[str, tuple[str, ...]] = {
    "W_proj": ("project.weight",),
    "b_proj": ("project.bias",),
    "regions.w_norm": ("norm.weight",),
    "regions.b_norm": ("norm.bias",),
    "W_embed": ("embed.weight",),
    "W_position": ("positions",),
    "w_norm": ("decoder.norm.weight",),
    "b_norm": ("decoder.norm.bias",),
    "W_vocab": ("vocabulary.weight",),
    "b_vocab": ("vocabulary.bias",),
}
_OF_LAYER: dict[str, tuple[Any, ...]] = {  # with a number: that of three blocks
    **{f"{part}.w_norm": (f"norm{k}.weight",) for k, part in enumerate(PARTS, 1)},
    **{f"{part}.b_norm": (f"norm{k}.bias",) for k, part in enumerate(PARTS, 1)},
    "self.W_qkv": ("self_attn.in_proj_weight",),
    "self.b_qkv": ("self_attn.in_proj_bias",),
    "self.W_out": ("self_attn.out_proj.weight",),
    "self.b_out": ("self_attn.out_proj.bias",),
    "cross.W_query": ("multihead_attn.in_proj_weight", 0),
    "cross.b_query": ("multihead_attn.in_proj_bias", 0),
    "cross.W_key": ("multihead_attn.in_proj_weight", 1),
    "cross.W_value": ("multihead_attn.in_proj_weight", 2),
    "cross.b_value": ("multihead_attn.in_proj_bias", 2),
    "cross.W_out": ("multihead_attn.out_proj.weight",),
    "cross.b_out": ("multihead_attn.out_proj.bias",),
    "feed.W_in": ("linear1.weight",),
    "feed.b_in": ("linear1.bias",),
    "feed.W_out": ("linear2.weight",),
    "feed.b_out": ("linear2.bias",),
}


class TransformerCaptioner(Captioner):
    """PyTorch's own decoder, with norms first and SDPA.

    With `masked`, captions are cut to the longest, and there are scores of targets only. Decoding
    keeps keys and values of words, and projects those of regions once. So does the loss of several
    captions of each image with `masked`, without PyTorch's decoder, which projects them for each.
    """

    def __init__(self, workload: Workload, masked: bool = False) -> None:
        nn.Module.__init__(self)
        size, self.masked, self.cell = workload.configuration, masked, workload.cell
        H, self.heads = size.hidden, size.heads
        self.project, self.norm = nn.Linear(size.features, H), nn.LayerNorm(H)
        self.embed = nn.Embedding(size.vocabulary, H)
        self.positions = nn.Parameter(torch.zeros(MAX_LENGTH, H))
        gelu = functools.partial(nn.functional.gelu, approximate="tanh")
        layer = nn.TransformerDecoderLayer(
            H, size.heads, 4 * H, 0.0, gelu, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, size.layers, nn.LayerNorm(H))
        self.vocabulary = nn.Linear(H, size.vocabulary)
        causal = nn.Transformer.generate_square_subsequent_mask(size.steps)
        self.register_buffer("causal", causal, persistent=False)
        self.scale = math.sqrt(H)

    def memory(self, features: torch.Tensor) -> torch.Tensor:
        """Return the regions that are attended to, `(N, L, H)`."""
        return self.norm(self.project(features if features.ndim == 3 else features[:, None]))

    def loss(
        self,
        features: torch.Tensor,
        captions: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As for the other captioners."""
        if self.masked:
            longest = int((captions[:, 1:] != NULL).sum(dim=1).max())
            captions = captions[:, : longest + 1]
        words, targets, rows = captions[:, :-1], captions[:, 1:].flatten(), None
        if weights is not None:
            weights = weights.repeat_interleave(words.shape[1])
        if self.masked:
            rows = targets.nonzero()[:, 0]
            targets = targets[rows]
            weights = None if weights is None else weights[rows]
        return self._loss(features, words, targets, rows, weights)

    def _loss(
        self,
        features: torch.Tensor,
        words: torch.Tensor,
        targets: torch.Tensor,
        rows: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        T = words.shape[1]
        x = (self.embed(words) + self.positions[:T]) * self.scale
        memory = self.memory(features)
        copies = len(words) // len(features)
        if copies == 1 or not self.masked:
            mask = self.causal[:T, :T].to(x.dtype)
            memory = memory if copies == 1 else memory.repeat_interleave(copies, dim=0)
            h = self.decoder(x, memory, tgt_mask=mask, tgt_is_causal=True)
        else:
            for layer, regions in zip(self.decoder.layers, self._regions(memory), strict=True):
                heads = map(self._split, self._qkv(layer, x))
                x = self._after(layer, x, attend(*heads, is_causal=True), regions)
            h = self.decoder.norm(x)
        h = h.flatten(0, 1)
        scores = self.vocabulary(h if rows is None else h[rows])
        return cross_entropy(scores, targets, weights) / len(words)

    def start(self, features: torch.Tensor, copies: int = 1) -> tuple[Any, Images]:
        """Return memory for keys and values of words, and those of regions, layer by layer."""
        memory, layers = self.memory(features), self.decoder.layers
        N, _, H = memory.shape
        stored = memory.new_empty(MAX_LENGTH, len(layers), 2, N * copies, H)
        return (stored, stored[:0], 0), [part for layer in self._regions(memory) for part in layer]

    def _regions(self, memory: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Yield each layer's keys and values of regions."""
        H = memory.shape[2]
        for layer in self.decoder.layers:
            cross = layer.multihead_attn
            both = nn.functional.linear(memory, cross.in_proj_weight[H:], cross.in_proj_bias[H:])
            yield [self._split(part) for part in both.chunk(2, dim=2)]

    def step(self, words: torch.Tensor, state: Any, images: Images) -> tuple[torch.Tensor, Any]:
        """As for the other captioners."""
        stored, spare, t = state
        x = (self.embed(words) + self.positions[t]) * self.scale
        for k, layer in enumerate(self.decoder.layers):
            query, key, value = self._qkv(layer, x)
            stored[t, k, 0], stored[t, k, 1] = key[:, 0], value[:, 0]
            kept = [self._split(part.transpose(0, 1)) for part in stored[: t + 1, k].unbind(1)]
            found = attend(self._split(query), *kept)
            x = self._after(layer, x, found, images[2 * k : 2 * k + 2])
        return self.decoder.norm(x)[:, 0], (stored, spare, t + 1)

    def take(self, state: Any, rows: torch.Tensor) -> Any:
        """Return the states of these captions: their keys and values so far, in other memory."""
        stored, spare, t = state
        shape = *stored.shape[:3], len(rows), stored.shape[4]
        if spare.numel() < math.prod(shape):
            spare = stored.new_empty(shape)
        spare = spare.flatten()[: math.prod(shape)].view(shape)
        torch.index_select(stored[:t], 3, rows, out=spare[:t])
        return spare, stored, t

    def _qkv(self, layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a layer's queries, keys and values of words, `(N, T, H)`."""
        own = layer.self_attn
        qkv = nn.functional.linear(layer.norm1(x), own.in_proj_weight, own.in_proj_bias)
        return qkv.chunk(3, dim=2)

    def _after(
        self, layer: Any, x: torch.Tensor, found: torch.Tensor, regions: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return a layer's result from what attention to words found."""
        cross, H, N = layer.multihead_attn, x.shape[2], len(regions[0])
        x = x + layer.self_attn.out_proj(found.transpose(1, 2).flatten(2))
        weight, bias = cross.in_proj_weight[:H], cross.in_proj_bias[:H]
        query = nn.functional.linear(layer.norm2(x), weight, bias)
        query = query.reshape(N, -1, H)  # all captions of an image look at the same regions
        found = attend(self._split(query), *regions).transpose(1, 2)
        x = x + cross.out_proj(found.reshape(x.shape))
        return x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the heads `(N, A, T, d)` of rows `(N, T, H)`."""
        return rows.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _each(self) -> Iterator[tuple[str, nn.Parameter, slice]]:
        """Yield our names, PyTorch's parameters, and which of their rows are ours."""
        H = self.embed.embedding_dim
        layers = range(len(self.decoder.layers))
        for name, (theirs, *block) in {
            **_OF_MODEL,
            **{
                f"layer.{k}.{name}": (f"decoder.layers.{k}.{theirs}", *block)
                for k in layers
                for name, (theirs, *block) in _OF_LAYER.items()
            },
        }.items():
            rows = slice(block[0] * H, (block[0] + 1) * H) if block else slice(None)
            yield name, self.get_parameter(theirs), rows

    @torch.no_grad()
    def load(self, params: dict[str, Any]) -> None:
        """Take our parameters over; the biases of keys of regions stay zero."""
        for name, parameter, rows in self._each():
            parameter[rows] = torch.from_numpy(_turned(name, numpy.asarray(to_host(params[name]))))

    def unload(self, gradients: bool = False) -> dict[str, numpy.ndarray]:
        """Return the parameters, or their gradients, under our names and in our order."""
        return {
            name: _turned(name, (of.grad if gradients else of)[rows].detach().cpu().numpy())
            for name, of, rows in self._each()
        }


def _turned(name: str, value: numpy.ndarray) -> numpy.ndarray:
    """Transpose a parameter if PyTorch has it transposed."""
    return value if name in ("W_embed", "W_position") else numpy.ascontiguousarray(value.T)
