// Reference: dot_product_attention_gradient in xpcap/layers/attention.py.
// dcontext (R, D); dweights (R, L), or null; query (R, A); keys (R, L, A); values (R, L, D);
// weights (R, L); dquery (R, A); dkeys (R, L, A) and dvalues (R, L, D), which may be the same memory;
// dscores (R, L), for the kernel's own use.
// Launch: R blocks of 512 threads, one block a query, to which its image's regions belong.

#include "attention.h"

extern "C" __launch_bounds__(THREADS) __global__ void dot_product_attention_gradient(
    int L, int A, int D, const REAL *dcontext, const REAL *dweights, const REAL *query,
    const REAL *keys, const REAL *values, const REAL *weights, REAL *dquery, REAL *dkeys,
    REAL *dvalues, REAL *dscores)
{
    long long r = blockIdx.x;
    dcontext += r * D;
    values += r * L * D;
    dvalues += r * L * D;
    keys += r * L * A;
    dkeys += r * L * A;
    weights += r * L;
    dscores += r * L;
    REAL scale = 1 / sqrt((REAL)A);
    score_gradient(
        L, D, scale, dcontext, dweights ? dweights + r * L : dweights, values, weights, dscores);
    for (int j = threadIdx.x; j < max(A, D); j += THREADS) {
        REAL q = j < A ? query[r * A + j] : 0, total = 0;
        for (int first = 0; first < L; first += LOADS) {
            if (j < D)
                add_to_values(first, L, D, weights, dcontext[j], dvalues + j);
            if (j >= A)
                continue;
            REAL sum[LOADS];
            for (int k = 0; k < LOADS; ++k) {
                int l = first + k;
                int at = l * A + j;
                sum[k] = l < L ? dkeys[at] + dscores[l] * q : 0;
                total += l < L ? dscores[l] * keys[at] : 0;
            }
            for (int k = 0; k < LOADS; ++k)
                if (first + k < L)
                    dkeys[(first + k) * A + j] = sum[k];
        }
        if (j < A)
            dquery[r * A + j] = total;
    }
}
