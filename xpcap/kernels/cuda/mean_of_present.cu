// Reference: mean_of_present in xpcap/layers/regions.py.
// regions (N, L, D); present (N, L); out (N, D).
// Launch: (N, ceil(D / 128)) blocks of 128 threads, one thread a number of a mean.
//
// A thread has 8 loads in flight; sums are in double precision and in the order of the regions.

#define LOADS 8

extern "C" __global__ void mean_of_present(
    int L, int D, const REAL *regions, const bool *present, REAL *out)
{
    long long n = blockIdx.x;
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= D)
        return;
    regions += n * L * D + j;
    int count = 0;
    for (int l = 0; l < L; ++l)
        count += present[n * L + l];
    double total = 0;
    for (int first = 0; first < L; first += LOADS) {
        REAL loaded[LOADS];
        for (int k = 0; k < LOADS; ++k)
            loaded[k] = first + k < L ? regions[(first + k) * D] : 0;
        for (int k = 0; k < LOADS; ++k)
            total += loaded[k];
    }
    out[n * D + j] = total / max(count, 1);
}
