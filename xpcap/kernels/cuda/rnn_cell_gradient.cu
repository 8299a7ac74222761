// Reference: rnn_cell_gradient in xpcap/layers/rnn.py.
// above, back, next_h, da (N, H); size = N H.
// Launch: ceil(size / 256) blocks of 256 threads, one thread an element.

extern "C" __global__ void rnn_cell_gradient(
    long long size, const REAL *above, const REAL *back, const REAL *next_h, REAL *da)
{
    long long e = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (e < size) {
        REAL h = next_h[e];
        da[e] = normal((above[e] + back[e]) * (1 - h * h));
    }
}
