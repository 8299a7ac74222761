"""A Transformer captioner's parameters as the state dict of PyTorch's own layers, and back.

    projection    nn.Linear(D, H)             W_projᵀ, b_proj
    embedding     nn.Embedding(V, H)          W_embed
    positions     nn.Embedding(P, H)          W_position, of learned positions
    encoder       nn.TransformerEncoder       encoder.*, if there are encoder layers
    regions       nn.LayerNorm(H)             regions.*
    decoder       nn.TransformerDecoder       layer.*, and its norm w_norm, b_norm
    vocabulary    nn.Linear(H, V)             W_vocabᵀ, b_vocab

The layers of encoder and decoder have `norm_first=True`, a GELU with `approximate="tanh"` and 4 H
units. The regions are projected, encoded and normalized, then what the decoder calls memory. What
it reads is sqrt(H) times word vectors and learned positions, or sqrt(H) times word vectors plus
sinusoids.

PyTorch's cross attention has a bias of keys, which changes no output, see
`layers.cross_attention`: it is exported as zeros, and left out on import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy

from xpcap.errors import DataError
from xpcap.exchange.parameters import check_arrays, shown, stacked
from xpcap.models import Transformer

Tensors = Mapping[str, numpy.ndarray]
Names = dict[str, tuple[str, ...]]
"""PyTorch's names, and the parameters whose columns each of them has side by side."""

_CAPTIONER: Names = {
    "projection.weight": ("W_proj",),
    "projection.bias": ("b_proj",),
    "embedding.weight": ("W_embed",),
    "regions.weight": ("regions.w_norm",),
    "regions.bias": ("regions.b_norm",),
    "decoder.norm.weight": ("w_norm",),
    "decoder.norm.bias": ("b_norm",),
    "vocabulary.weight": ("W_vocab",),
    "vocabulary.bias": ("b_vocab",),
}
_POSITIONS: Names = {"positions.weight": ("W_position",)}
_SELF: Names = {
    "norm1.weight": ("self.w_norm",),
    "norm1.bias": ("self.b_norm",),
    "self_attn.in_proj_weight": ("self.W_qkv",),
    "self_attn.in_proj_bias": ("self.b_qkv",),
    "self_attn.out_proj.weight": ("self.W_out",),
    "self_attn.out_proj.bias": ("self.b_out",),
}
_CROSS: Names = {
    "norm2.weight": ("cross.w_norm",),
    "norm2.bias": ("cross.b_norm",),
    "multihead_attn.in_proj_weight": ("cross.W_query", "cross.W_key", "cross.W_value"),
    "multihead_attn.in_proj_bias": ("cross.b_query", "cross.b_key", "cross.b_value"),
    "multihead_attn.out_proj.weight": ("cross.W_out",),
    "multihead_attn.out_proj.bias": ("cross.b_out",),
}
_FEED: Names = {
    "linear1.weight": ("feed.W_in",),
    "linear1.bias": ("feed.b_in",),
    "linear2.weight": ("feed.W_out",),
    "linear2.bias": ("feed.b_out",),
}
_ENCODER: Names = {
    **_SELF, "norm2.weight": ("feed.w_norm",), "norm2.bias": ("feed.b_norm",), **_FEED,
}  # fmt: skip
_DECODER: Names = {
    **_SELF, **_CROSS, "norm3.weight": ("feed.w_norm",), "norm3.bias": ("feed.b_norm",), **_FEED,
}  # fmt: skip
_ABSENT = "cross.b_key"


def transformer_to_torch(params: Tensors, sizes: Mapping[str, Any]) -> dict[str, numpy.ndarray]:
    """Convert parameters with the sizes of `parameters.sizes_of`."""
    none = numpy.zeros_like(params["b_proj"])
    state = {}
    for name, ours in _names(sizes).items():
        parts = [none if part.endswith(_ABSENT) else params[part] for part in ours]
        value = parts[0] if len(parts) == 1 else numpy.concatenate(parts, axis=-1)
        state[name] = value if ours[0] in Transformer.embeddings else value.T
    return state


def transformer_from_torch(state: Tensors, words: int) -> dict[str, numpy.ndarray]:
    """Convert a state dict for V = `words`; missing biases become zeros."""
    projection = state.get("projection.weight")
    if projection is None or projection.ndim != 2 or not projection.size:
        raise DataError(
            f"it has {shown(state)}; expected a captioner's projection, embedding, regions,"
            " decoder and vocabulary, with the names that xpcap export gives them"
        )
    positions = state.get("positions.weight")
    sizes = {
        "input_dim": projection.shape[1], "hidden_dim": len(projection),
        "layers": stacked(state, "decoder.layers."),
        "encoder_layers": stacked(state, "encoder.layers."),
        "positions": "sinusoidal" if positions is None else "learned",
        "tie_embeddings": False,
        "max_length": 1 if positions is None else max((1, *positions.shape[:1])),
    }  # fmt: skip
    names, shapes = _names(sizes), Transformer.shapes(words, heads=1, **sizes)
    expected = {name: _shape(ours, shapes) for name, ours in names.items()}
    absent = {name for name in expected.keys() - state.keys() if name.endswith("bias")}
    state = {**state, **{name: numpy.zeros(expected[name], projection.dtype) for name in absent}}
    check_arrays("", state, expected)
    params: dict[str, numpy.ndarray] = {}
    for name, ours in names.items():
        value = state[name] if ours[0] in Transformer.embeddings else state[name].T
        params |= zip(ours, numpy.split(value, len(ours), axis=-1), strict=True)
    return {name: params[name] for name in shapes}


def _names(sizes: Mapping[str, Any]) -> Names:
    """Return the names of a whole captioner."""
    names = _CAPTIONER | (_POSITIONS if sizes["positions"] == "learned" else {})
    for theirs, ours, count, layer in (
        ("encoder", "encoder", sizes["encoder_layers"], _ENCODER),
        ("decoder", "layer", sizes["layers"], _DECODER),
    ):
        for k in range(count):
            for name, parts in layer.items():
                names[f"{theirs}.layers.{k}.{name}"] = tuple(f"{ours}.{k}.{p}" for p in parts)
    return names


def _shape(ours: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of PyTorch's array."""
    *rows, columns = shapes[ours[0]]
    return (*rows, columns) if ours[0] in Transformer.embeddings else (len(ours) * columns, *rows)
