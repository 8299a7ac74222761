// Reference: loss_and_norm in xpcap/kernels/updates.py.
// losses (size,); partial (count,) double, written by square_sums in square_sum.cu; max_norm: 0 for
// no clipping; totals (2,); settings (K,).
// Launch: one block of 256 threads.
//
// Every addition has its place, which depends on the sizes alone: the same bits every time.

#define THREADS 256

__device__ double sum_of_block(double value)
{
    __shared__ double sums[THREADS / 32];
    for (int far = 16; far > 0; far /= 2)
        value += __shfl_xor_sync(0xffffffff, value, far);
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (int w = 0; w < THREADS / 32; ++w)
        value += sums[w];
    __syncthreads();
    return value;
}

extern "C" __global__ void loss_and_norm(
    int size, const REAL *losses, int count, const double *partial, REAL max_norm, REAL *totals,
    REAL *settings)
{
    double loss = 0, squares = 0;
    for (int e = threadIdx.x; e < size; e += THREADS)
        loss += losses[e];
    for (int e = threadIdx.x; e < count; e += THREADS)
        squares += partial[e];
    loss = sum_of_block(loss);
    squares = sum_of_block(squares);

    if (threadIdx.x == 0) {
        REAL norm = sqrt((REAL)squares);
        totals[0] = loss;
        totals[1] = norm;
        if (max_norm > 0)
            settings[0] = norm <= max_norm ? 1 : max_norm / norm;  // NaN if the norm is
    }
}
