// Reference: add_rows in xpcap/layers/embedding.py.
// indices (M,) of INDEX; rows (M, D); out (size, D), a row beginning `stride` elements after the one
// before.
// Launch: (size, ceil(D / 256)) blocks of 256 threads, one thread an element of out.
//
// A block lists the rows that belong to its own row of out, 2048 indices at a time, and adds them in
// their order and in double precision: no atomic additions, hence the same bits every time. A thread
// has 8 loads in flight.

#define WARPS 8  // of 32 threads
#define LOADS 8
#define SPAN (32 * LOADS * WARPS)

extern "C" __global__ void add_rows(
    int M, int D, long long stride, const INDEX *indices, const REAL *rows, REAL *out)
{
    __shared__ int hits[SPAN], counts[WARPS];
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int j = blockIdx.y * blockDim.x + thread;
    long long row = blockIdx.x;
    double total = 0;

    for (int first = 0; first < M; first += SPAN) {
        int start = first + 32 * LOADS * warp + lane;
        unsigned int found[LOADS];  // one bit a lane: whether its index is the block's
        int count = 0;
        for (int k = 0; k < LOADS; ++k) {
            int m = start + 32 * k;
            found[k] = __ballot_sync(0xffffffff, m < M && indices[m] == row);
            count += __popc(found[k]);
        }
        if (lane == 0)
            counts[warp] = count;
        __syncthreads();

        int place = 0, all = 0;
        for (int w = 0; w < WARPS; ++w) {
            place += w < warp ? counts[w] : 0;
            all += counts[w];
        }
        for (int k = 0; k < LOADS; ++k) {
            if (found[k] >> lane & 1)
                hits[place + __popc(found[k] & ((1u << lane) - 1))] = start + 32 * k;
            place += __popc(found[k]);
        }
        __syncthreads();

        for (int h = 0; h < all; h += LOADS) {
            REAL loaded[LOADS];
            for (int k = 0; k < LOADS; ++k)
                loaded[k] = h + k < all && j < D ? rows[(long long)hits[h + k] * D + j] : 0;
            for (int k = 0; k < LOADS; ++k)
                total += loaded[k];
        }
        __syncthreads();
    }
    if (j < D)
        out[row * stride + j] = total;
}
