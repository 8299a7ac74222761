// Reference: dot_product_attention in xpcap/layers/attention.py.
// query (R, A); keys (I, L, A); values (I, L, D); present (I, L), or null; image (R,) of INDEX, or
// null; weights (R, L); context (R, D).
// Launch: R blocks of 512 threads, one block a query.

#include "attention.h"

extern "C" __launch_bounds__(THREADS) __global__ void dot_product_attention(
    int L, int A, int D, const REAL *query, const REAL *keys, const REAL *values,
    const bool *present, const INDEX *image, REAL *weights, REAL *context)
{
    long long r = blockIdx.x, i = image ? (long long)image[r] : r;
    query += r * A;
    keys += i * L * A;
    weights += r * L;
    REAL scale = 1 / sqrt((REAL)A);
    for (int l = threadIdx.x / 32; l < L; l += WARPS) {
        REAL score = dot_by_warp(A, query, keys + l * A);
        if (threadIdx.x % 32 == 0)
            weights[l] = scale * score;
    }
    mix(L, D, present ? present + i * L : present, values + i * L * D, weights, context + r * D);
}
