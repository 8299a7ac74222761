// Reference: next_batch in xpcap/kernels/batches.py.
// captions (M, T+1), image_idxs (M,), order (M,) int; table (batches, K); position (2,) long long;
// words, targets (T N,) int; weight (T N,); images (N,) int; settings (K,); streams (2,).
// Launch: one block of 1024 threads: all read the position before one of them advances it.
//
// Past the end of the epoch, the last caption and the last settings are taken.

extern "C" __global__ void next_batch(
    long long M, int T, int N, int batches, int K, const int *captions, const int *image_idxs,
    const int *order, const REAL *table, long long *position, int null, int *words, int *targets,
    REAL *weight, int *images, REAL *settings, unsigned long long *streams)
{
    int thread = threadIdx.x;
    long long batch = position[0], step = position[1];
    __syncthreads();
    if (thread == 0) {
        position[0] = batch + 1;
        position[1] = step + 1;
    }

    long long first = batch * N;
    long long there = M - first < N ? M - first : N;
    REAL share = (REAL)1 / (REAL)there;
    for (int e = thread; e < T * N; e += blockDim.x) {
        int t = e / N, n = e % N;
        long long caption = order[n < there ? first + n : M - 1];
        const int *word = captions + caption * (T + 1) + t;
        bool read = false;  // whether this or a later target counts
        for (int k = 1; k <= T - t; ++k)
            read |= word[k] != null;
        words[e] = read && n < there ? word[0] : -1;
        targets[e] = word[1];
        weight[e] = word[1] != null && n < there ? share : 0;
    }
    for (int n = thread; n < N; n += blockDim.x)
        images[n] = image_idxs[order[n < there ? first + n : M - 1]];
    for (int k = thread; k < K; k += blockDim.x)
        settings[k] = table[(batch < batches ? batch : batches - 1) * K + k];
    if (thread < 2)
        streams[thread] = 2 * step + thread;
}
