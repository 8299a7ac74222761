"""Attention: a mean of values whose weights depend on a query.

A query q looks at L regions, each with a key k_l and a value v_l:

    weight_l = softmax over l of score(q, k_l)
    context = sum over l of weight_l v_l

    dot-product    score = q . k_l / sqrt(A)       Vaswani et al., "Attention is all you need", 2017
    additive       score = w . tanh(q + k_l)       Bahdanau et al., "Neural machine translation by
                                                   jointly learning to align and translate", 2015

Projections, U a_l of Bahdanau et al. for one, are affine layers before: keys are the same for all
queries, so they are projected once. Regions that a mask leaves out have the weight 0; if it leaves
out all, so has the context.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from xpcap.backend import Array, Namespace, namespace
from xpcap.layers._checks import check_arguments, check_gradients
from xpcap.layers.loss import softmax
from xpcap.operations import operation
from xpcap.subnormals import power


@operation
def dot_product_attention(
    xp: Namespace,
    query: Array,
    keys: Array,
    values: Array,
    present: Array | None,
    image: Array | None,
    weights: Array,
    context: Array,
) -> None:
    """Write the weights `(R, L)` and the context `(R, D)` of each query `(R, A)`.

    Of I images there are `keys (I, L, A)`, `values (I, L, D)` and booleans `present (I, L)`, None
    if all regions are. `image (R,)` is the one that each query looks at; None: query r at image r.
    """
    keys, values, present = _looked_at(len(query), image, keys, values, present)
    scores = (keys @ query[:, :, None])[:, :, 0] / math.sqrt(query.shape[1])
    _mix(xp, scores, values, present, weights, context)


@operation
def additive_attention(
    xp: Namespace,
    query: Array,
    keys: Array,
    values: Array,
    w: Array,
    present: Array | None,
    image: Array | None,
    weights: Array,
    context: Array,
) -> None:
    """Do what `dot_product_attention` does with the additive score, of weights `w (A,)`."""
    keys, values, present = _looked_at(len(query), image, keys, values, present)
    scores = xp.tanh(query[:, None, :] + keys) @ w
    _mix(xp, scores, values, present, weights, context)


def _looked_at(
    count: int, image: Array | None, keys: Array, values: Array, present: Array | None
) -> tuple[Array, Array, Array | None]:
    """Return the keys, values and mask of each query."""
    rows = slice(count) if image is None else image
    return keys[rows], values[rows], None if present is None else present[rows]


def _mix(
    xp: Namespace,
    scores: Array,
    values: Array,
    present: Array | None,
    weights: Array,
    context: Array,
) -> None:
    weights[...] = softmax(xp, scores) if present is None else _masked(xp, scores, present)
    context[...] = (weights[:, None, :] @ values)[:, 0]


def _masked(xp: Namespace, scores: Array, present: Array) -> Array:
    """Softmax over what is present; 0 elsewhere, and everywhere if nothing is."""
    zero, one = scores.dtype.type(0), scores.dtype.type(1)
    top = xp.where(present, scores, -xp.inf).max(axis=1, keepdims=True)
    below = xp.where(present, scores - top, zero)
    powers = xp.where(present, power(xp, below), zero)
    total = powers.sum(axis=1, keepdims=True)
    return powers / xp.where(total > 0, total, one)


@operation
def dot_product_attention_gradient(
    xp: Namespace,
    dcontext: Array,
    dweights: Array | None,
    query: Array,
    keys: Array,
    values: Array,
    weights: Array,
    dquery: Array,
    dkeys: Array,
    dvalues: Array,
) -> None:
    """Write the gradient of each query, and add those of the keys and values of its image.

    Query r looks at image r. `dweights (R, L)` is the gradient that reaches the weights otherwise
    than through the context; None if none does.
    """
    R, A = query.shape
    dscores = _score_gradient(dcontext, dweights, values[:R], weights, dvalues[:R])
    dscores /= math.sqrt(A)
    dquery[...] = (dscores[:, None, :] @ keys[:R])[:, 0]
    dkeys[:R] += dscores[:, :, None] * query[:, None, :]


@operation
def additive_attention_gradient(
    xp: Namespace,
    dcontext: Array,
    dweights: Array | None,
    query: Array,
    keys: Array,
    values: Array,
    w: Array,
    weights: Array,
    dquery: Array,
    dkeys: Array,
    dvalues: Array,
    dw: Array,
) -> None:
    """Do what `dot_product_attention_gradient` does, and write each query's part of dw `(R, A)`."""
    R = len(query)
    dscores = _score_gradient(dcontext, dweights, values[:R], weights, dvalues[:R])
    t = xp.tanh(query[:, None, :] + keys[:R])
    dw[...] = (dscores[:, None, :] @ t)[:, 0]  # from score = w . t
    da = dscores[:, :, None] * w * (1 - t * t)  # from t = tanh(q + k)
    dquery[...] = da.sum(axis=1)
    dkeys[:R] += da


def _score_gradient(
    dcontext: Array, dweights: Array | None, values: Array, weights: Array, dvalues: Array
) -> Array:
    """Return the gradient of the scores `(R, L)`; add that of the values."""
    dvalues += weights[:, :, None] * dcontext[:, None, :]  # from context = sum weight_l v_l
    given = (values @ dcontext[:, :, None])[:, :, 0]
    if dweights is not None:
        given += dweights
    return weights * (given - (weights * given).sum(axis=1, keepdims=True))  # of softmax


class AttentionCache(NamedTuple):
    """What the backward pass needs."""

    query: Array
    keys: Array
    values: Array
    w: Array | None
    weights: Array


class DotProductGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dquery: Array
    dkeys: Array
    dvalues: Array


class AdditiveGradients(NamedTuple):
    """Gradients in the order of the forward arguments."""

    dquery: Array
    dkeys: Array
    dvalues: Array
    dw: Array


def dot_product_attention_forward(
    query: Array, keys: Array, values: Array, mask: Array | None = None
) -> tuple[Array, Array, AttentionCache]:
    """Scaled dot-product attention of one query an image.

    Parameters
    ----------
    query, keys, values
        `(N, A)`, `(N, L, A)` and `(N, L, D)`.
    mask
        Booleans `(N, L)`: which regions are present; None if all are.

    Returns
    -------
    context, weights, cache
        `(N, D)` and `(N, L)`.

    Raises
    ------
    ShapeError
        If shapes do not fit together, or the mask is not one of booleans.
    """
    return _forward("dot_product_attention_forward", query, keys, values, None, mask)


def dot_product_attention_backward(
    dcontext: Array, dweights: Array | None, cache: AttentionCache
) -> DotProductGradients:
    """Gradients of `dot_product_attention_forward`, from those of the context and the weights.

    `dcontext (N, D)`; `dweights (N, L)`, or None if nothing but the context depends on the weights.
    """
    return DotProductGradients(
        *_backward("dot_product_attention_backward", dcontext, dweights, cache)
    )


def additive_attention_forward(
    query: Array, keys: Array, values: Array, w: Array, mask: Array | None = None
) -> tuple[Array, Array, AttentionCache]:
    """Additive attention of one query an image.

    The weights of the score are `w (A,)`; all else is as for `dot_product_attention_forward`.
    """
    return _forward("additive_attention_forward", query, keys, values, w, mask)


def additive_attention_backward(
    dcontext: Array, dweights: Array | None, cache: AttentionCache
) -> AdditiveGradients:
    """Gradients of `additive_attention_forward`; see `dot_product_attention_backward`."""
    dquery, dkeys, dvalues, dw = _backward("additive_attention_backward", dcontext, dweights, cache)
    return AdditiveGradients(dquery, dkeys, dvalues, dw.sum(axis=0))


def _forward(
    function: str, query: Array, keys: Array, values: Array, w: Array | None, mask: Array | None
) -> tuple[Array, Array, AttentionCache]:
    xp, size = check_arguments(
        function, query=(query, "N A"), keys=(keys, "N L A"), values=(values, "N L D"),
        w=(w, "A"), mask=(mask, "N L ?"),
    )  # fmt: skip
    weights, context = (xp.empty((size["N"], size[k]), dtype=values.dtype) for k in "LD")
    if w is None:
        dot_product_attention(xp, query, keys, values, mask, None, weights, context)
    else:
        additive_attention(xp, query, keys, values, w, mask, None, weights, context)
    return context, weights, AttentionCache(query, keys, values, w, weights)


def _backward(
    function: str, dcontext: Array, dweights: Array | None, cache: AttentionCache
) -> tuple[Array, ...]:
    query, keys, values, w, weights = cache
    xp = namespace(dcontext, weights)
    above = {"dcontext": (dcontext, (len(values), values.shape[2]))}
    if dweights is not None:
        above["dweights"] = (dweights, weights.shape)
    check_gradients(function, **above)
    found = xp.empty_like(query), xp.zeros_like(keys), xp.zeros_like(values)
    if w is None:
        dot_product_attention_gradient(xp, dcontext, dweights, query, keys, values, weights, *found)
        return found
    dw = xp.empty_like(query)
    additive_attention_gradient(xp, dcontext, dweights, query, keys, values, w, weights, *found, dw)
    return *found, dw
