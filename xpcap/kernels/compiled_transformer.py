"""The Transformer's operations compiled for the CPU by numba; see `xpcap.kernels.compiled`.

Milliseconds for 716 rows of 512 numbers, 2,048 in the feed-forward layer, and for the weights of
880 queries of 49 regions, on one thread beside other programs, NumPy's first:

                forward         gradient
    GELU        7.9 to 0.8      17 to 1.2
    norm        1.5 to 0.3      2.3 to 0.2
    softmax     0.35 to 0.10    0.11 to 0.02
"""

from __future__ import annotations

import math

import numpy

from xpcap.backend import Array
from xpcap.kernels.compiled import F, _compiled, _logistic, _normal, _power
from xpcap.layers.feed_forward import CUBIC, SLOPE, gelu, gelu_gradient
from xpcap.layers.multi_head import attention_step, masked_softmax, softmax_gradient
from xpcap.layers.normalization import EPSILON, layer_norm, layer_norm_gradient


@_compiled(gelu)
def _gelu(a: Array, out: Array) -> None:
    """(1 + tanh u) / 2 is the logistic function of 2u."""
    flat, to = a.reshape(-1), out.reshape(-1)
    for j in range(flat.size):
        x = flat[j]
        to[j] = x * _logistic(F(2 * SLOPE) * x * (F(1) + F(CUBIC) * x * x))


@_compiled(gelu_gradient)
def _gelu_gradient(dout: Array, a: Array, out: Array, da: Array) -> None:
    flat, above, to, back = a.reshape(-1), dout.reshape(-1), out.reshape(-1), da.reshape(-1)
    for j in range(flat.size):
        x = flat[j]
        y = _logistic(F(2 * SLOPE) * x * (F(1) + F(CUBIC) * x * x))
        du = F(2 * SLOPE) * (F(1) + F(3 * CUBIC) * x * x)
        to[j] = x * y
        back[j] = _normal(above[j] * (y + x * y * (F(1) - y) * du))


@_compiled(layer_norm)
def _layer_norm(x: Array, w: Array, b: Array, n: Array, scale: Array, out: Array) -> None:
    H = x.shape[1]
    for r in range(len(x)):
        row, to, normal = x[r], out[r], n[r]
        mean, square = F(0), F(0)
        for j in range(H):
            mean += row[j]
        mean /= F(H)
        for j in range(H):
            square += (row[j] - mean) * (row[j] - mean)
        s = F(1) / F(math.sqrt(square / F(H) + F(EPSILON)))
        scale[r, 0] = s
        for j in range(H):
            normal[j] = (row[j] - mean) * s
            to[j] = w[j] * normal[j] + b[j]


@_compiled(layer_norm_gradient)
def _layer_norm_gradient(
    dout: Array, w: Array, n: Array, scale: Array, dx: Array, dw: Array, db: Array
) -> None:
    H = n.shape[1]
    dw[:], db[:] = F(0), F(0)
    for r in range(len(n)):
        above, normal, back = dout[r], n[r], dx[r]
        mean, along = F(0), F(0)
        for j in range(H):
            dn = above[j] * w[j]
            mean += dn
            along += dn * normal[j]
            dw[j] += above[j] * normal[j]
            db[j] += above[j]
        mean /= F(H)
        along /= F(H)
        for j in range(H):
            back[j] += scale[r, 0] * (above[j] * w[j] - mean - normal[j] * along)


@_compiled(masked_softmax)
def _masked_softmax(scores: Array, scale: float, mask: Array | None) -> None:
    G, A, T, L = scores.shape
    for g in range(G):
        for a in range(A):
            for t in range(T):
                row = scores[g, a, t]
                top = -F(numpy.inf)
                for j in range(L):
                    row[j] *= F(scale)
                    if mask is not None:
                        m = mask[g if len(mask) > 1 else 0, 0, t if mask.shape[2] > 1 else 0, j]
                        row[j] = row[j] if m else -F(numpy.inf)
                    top = max(top, row[j])
                total = F(0)
                for j in range(L):
                    row[j] = F(0) if row[j] == -F(numpy.inf) else _power(row[j] - top)
                    total += row[j]
                if total > 0:
                    for j in range(L):
                        row[j] /= total


@_compiled(softmax_gradient)
def _softmax_gradient(weights: Array, scale: float, dweights: Array) -> None:
    L = weights.shape[3]
    rows, back = weights.reshape(-1, L), dweights.reshape(-1, L)
    for r in range(len(rows)):
        w, d, inner = rows[r], back[r], F(0)
        for j in range(L):
            inner += w[j] * d[j]
        for j in range(L):
            d[j] = _normal(F(scale) * w[j] * (d[j] - inner))


@_compiled(attention_step)
def _attention_step(
    qkv: Array, position: Array, keys: Array, values: Array, weights: Array, context: Array
) -> None:
    R, A, _ = weights.shape
    H = context.shape[1]
    d = H // A
    scale = F(1 / math.sqrt(d))
    for r in range(R):
        last, row, to = position[r], qkv[r], context[r]
        keys[r, last], values[r, last] = row[H : 2 * H], row[2 * H :]
        for a in range(A):
            part = slice(a * d, (a + 1) * d)
            q, out, w = row[part], to[part], weights[r, a]
            top = -F(numpy.inf)
            for j in range(last + 1):
                k, e = keys[r, j, part], F(0)
                for i in range(d):
                    e += q[i] * k[i]
                w[j] = scale * e
                top = max(top, w[j])
            total = F(0)
            for j in range(last + 1):
                w[j] = _power(w[j] - top)
                total += w[j]
            out[:], w[last + 1 :] = F(0), F(0)
            for j in range(last + 1):
                w[j] /= total
                v = values[r, j, part]
                for i in range(d):
                    out[i] += w[j] * v[i]
