// Reference: add_rows in xpcap/kernels/scatter.py.
// indices (M,) of INDEX; rows (M, D); out (size, D).
// Launch: (size, ceil(D / 256)) blocks of 256 threads, one thread an element of out.
//
// A block goes through the indices, one a thread at a time, and adds the rows that belong to its
// own row in their order and in double precision: no atomic additions, hence the same bits every
// time.

#define WARPS 8  // of 32 threads

extern "C" __global__ void add_rows(
    int M, int D, const INDEX *indices, const REAL *rows, REAL *out)
{
    __shared__ unsigned int found[WARPS];  // one bit a thread: whether its index is the block's
    int thread = threadIdx.x;
    int j = blockIdx.y * blockDim.x + thread;
    long long row = blockIdx.x;
    double total = 0;

    for (int first = 0; first < M; first += 32 * WARPS) {
        bool here = first + thread < M && indices[first + thread] == row;
        unsigned int bits = __ballot_sync(0xffffffff, here);
        if (thread % 32 == 0)
            found[thread / 32] = bits;
        __syncthreads();
        for (int w = 0; w < WARPS; ++w)
            for (bits = found[w]; bits != 0; bits &= bits - 1) {
                long long m = first + 32 * w + __ffs(bits) - 1;
                if (j < D)
                    total += rows[m * D + j];
            }
        __syncthreads();
    }
    if (j < D)
        out[row * D + j] = total;
}
