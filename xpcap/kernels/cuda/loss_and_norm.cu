// Reference: loss_and_norm in xpcap/kernels/updates.py.
// losses (size,); partial (count,) double, written by square_sums in square_sum.cu; max_norm: 0 for
// no clipping; totals (2,); settings (K,).
// Launch: one block of 256 threads.
//
// Every addition has its place, which depends on the sizes alone: the same bits every time.

#define THREADS 256

extern "C" __global__ void loss_and_norm(
    int size, const REAL *losses, int count, const double *partial, REAL max_norm, REAL *totals,
    REAL *settings)
{
    double loss = 0, squares = 0;
    for (int e = threadIdx.x; e < size; e += THREADS)
        loss += losses[e];
    for (int e = threadIdx.x; e < count; e += THREADS)
        squares += partial[e];
    loss = sum_of_block<THREADS>(loss);
    squares = sum_of_block<THREADS>(squares);

    if (threadIdx.x == 0) {
        REAL norm = sqrt((REAL)squares);
        totals[0] = loss;
        totals[1] = norm;
        if (max_norm > 0)
            settings[0] = norm <= max_norm ? 1 : max_norm / norm;  // NaN if the norm is
    }
}
