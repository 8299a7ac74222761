// Reference: rnn_cell in xpcap/layers/rnn.py.
// ax, ah, next_h (N, H); ax and next_h may be one array.
// Launch: (N, ceil(H / 128)) blocks of 128 threads, one thread a hidden unit of a caption.

extern "C" __global__ void rnn_cell(
    int H, const REAL *ax, const REAL *ah, REAL *next_h)
{
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= H)
        return;
    long long n = blockIdx.x;
    next_h[n * H + j] = tanh(ax[n * H + j] + ah[n * H + j]);
}
