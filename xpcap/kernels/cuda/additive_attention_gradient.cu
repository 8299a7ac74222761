// Reference: additive_attention_gradient in xpcap/layers/attention.py.
// dcontext (R, D); dweights (R, L), or null; query (R, A); keys (R, L, A); values (R, L, D); w (A,);
// weights (R, L); dquery, dw (R, A); dkeys (R, L, A) and dvalues (R, L, D), which may be the same
// memory; dscores (R, L), for the kernel's own use.
// Launch: R blocks of 512 threads, one block a query, to which its image's regions belong.

#include "attention.h"

extern "C" __launch_bounds__(THREADS) __global__ void additive_attention_gradient(
    int L, int A, int D, const REAL *dcontext, const REAL *dweights, const REAL *query,
    const REAL *keys, const REAL *values, const REAL *w, const REAL *weights, REAL *dquery,
    REAL *dkeys, REAL *dvalues, REAL *dw, REAL *dscores)
{
    long long r = blockIdx.x;
    dcontext += r * D;
    values += r * L * D;
    dvalues += r * L * D;
    keys += r * L * A;
    dkeys += r * L * A;
    weights += r * L;
    dscores += r * L;
    score_gradient(
        L, D, 1, dcontext, dweights ? dweights + r * L : dweights, values, weights, dscores);
    for (int j = threadIdx.x; j < max(A, D); j += THREADS) {
        REAL q = 0, of_w = 0, total = 0, total_of_w = 0;
        if (j < A) {
            q = query[r * A + j];
            of_w = w[j];
        }
        for (int first = 0; first < L; first += LOADS) {
            if (j < D)
                add_to_values(first, L, D, weights, dcontext[j], dvalues + j);
            if (j >= A)
                continue;
            REAL key[LOADS], sum[LOADS];
            for (int k = 0; k < LOADS; ++k) {
                int l = first + k;
                int at = l * A + j;
                key[k] = l < L ? keys[at] : 0;
                sum[k] = l < L ? dkeys[at] : 0;
            }
            for (int k = 0; k < LOADS; ++k) {
                int l = first + k;
                if (l >= L)
                    break;
                REAL t = tanh(q + key[k]), dscore = dscores[l];
                REAL da = dscore * of_w * (1 - t * t);
                total += da;
                total_of_w += dscore * t;
                dkeys[l * A + j] = sum[k] + da;
            }
        }
        if (j < A) {
            dquery[r * A + j] = total;
            dw[r * A + j] = total_of_w;
        }
    }
}
