// Reference: square_sum in xpcap/kernels/updates.py.
// values (size,); partial (blocks,) double; out (1,).
// Launch: square_sums: at most 512 blocks of 256 threads, each block writing its partial sum;
//         sum_of_sums: one block of 256 threads, which adds them.
//
// Every addition has its place, which depends on the size alone: the same bits every time.

#define THREADS 256

extern "C" __global__ void square_sums(long long size, const REAL *values, double *partial)
{
    long long step = (long long)gridDim.x * THREADS;
    double total = 0;
    for (long long e = (long long)blockIdx.x * THREADS + threadIdx.x; e < size; e += step) {
        double value = values[e];
        total += value * value;
    }
    total = sum_of_block<THREADS>(total);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = total;
}

extern "C" __global__ void sum_of_sums(int count, const double *partial, REAL *out)
{
    double total = 0;
    for (int e = threadIdx.x; e < count; e += THREADS)
        total += partial[e];
    total = sum_of_block<THREADS>(total);
    if (threadIdx.x == 0)
        out[0] = total;
}
