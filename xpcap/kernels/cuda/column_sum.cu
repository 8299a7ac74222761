// Reference: column_sum in xpcap/layers/affine.py.
// rows (M, D), a row beginning `stride` elements after the one before; out (D,).
// Launch: column_sum: ceil(D / 8) blocks of 512 threads, a block for 8 columns (32 bytes of float: a
//         sector); column_sum_of_wide_rows: ceil(D / 32) blocks of 512 threads, for 32 columns.
//
// A thread adds every n-th row of its column, with 8 loads in flight; then the sums of a column are
// added. All in double precision and in an order that depends on M and D alone.

#define LOADS 8
#define THREADS 512
#define WARPS (THREADS / 32)

template <int COLUMNS> __device__ void sum_columns(
    int M, int D, long long stride, const REAL *rows, REAL *out)
{
    const int together = THREADS / COLUMNS;  // rows
    __shared__ double sums[WARPS][COLUMNS];
    int thread = threadIdx.x, column = thread % COLUMNS;
    int j = blockIdx.x * COLUMNS + column;
    double total = 0;

    if (j < D)
        for (int first = thread / COLUMNS; first < M; first += LOADS * together) {
            REAL loaded[LOADS];
            for (int k = 0; k < LOADS; ++k) {
                long long m = first + k * together;
                loaded[k] = m < M ? rows[m * stride + j] : 0;
            }
            for (int k = 0; k < LOADS; ++k)
                total += loaded[k];
        }

    for (int far = 16; far >= COLUMNS; far /= 2)
        total += __shfl_xor_sync(0xffffffff, total, far);
    if (thread % 32 < COLUMNS)
        sums[thread / 32][column] = total;
    __syncthreads();
    if (thread < COLUMNS && j < D) {
        total = 0;
        for (int w = 0; w < WARPS; ++w)
            total += sums[w][column];
        out[j] = total;
    }
}

extern "C" __global__ void column_sum(
    int M, int D, long long stride, const REAL *rows, REAL *out)
{
    sum_columns<8>(M, D, stride, rows, out);
}

extern "C" __global__ void column_sum_of_wide_rows(
    int M, int D, long long stride, const REAL *rows, REAL *out)
{
    sum_columns<32>(M, D, stride, rows, out);
}
