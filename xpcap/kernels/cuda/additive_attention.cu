// Reference: additive_attention in xpcap/layers/attention.py.
// query (R, A); keys (I, L, A); values (I, L, D); w (A,); present (I, L), or null; image (R,) of
// INDEX, or null; weights (R, L); context (R, D).
// Launch: R blocks of 512 threads, one block a query.

#include "attention.h"

extern "C" __launch_bounds__(THREADS) __global__ void additive_attention(
    int L, int A, int D, const REAL *query, const REAL *keys, const REAL *values, const REAL *w,
    const bool *present, const INDEX *image, REAL *weights, REAL *context)
{
    long long r = blockIdx.x, i = image ? (long long)image[r] : r;
    query += r * A;
    keys += i * L * A;
    weights += r * L;
    for (int l = threadIdx.x / 32; l < L; l += WARPS) {
        const REAL *key = keys + l * A;
        REAL score = 0;
        for (int j = threadIdx.x % 32; j < A; j += 32)
            score += w[j] * tanh(query[j] + key[j]);
        score = sum_of_warp(score);
        if (threadIdx.x % 32 == 0)
            weights[l] = score;
    }
    mix(L, D, present ? present + i * L : present, values + i * L * D, weights, context + r * D);
}
