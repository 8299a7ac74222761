// Reference: lstm_cell_gradient in xpcap/layers/lstm.py.
// above, back, dc, prev_c, tanh_c (N, H); gates, da (N, 4H).
// Launch: (N, ceil(H / 128)) blocks of 128 threads, one thread a hidden unit of a caption.

extern "C" __global__ void lstm_cell_gradient(
    int H, const REAL *above, const REAL *back, REAL *dc, const REAL *gates, const REAL *prev_c,
    const REAL *tanh_c, REAL *da)
{
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= H)
        return;
    long long state = (long long)blockIdx.x * H + j;
    long long first = 4LL * blockIdx.x * H + j;  // of the unit's four gates, H apart
    long long second = first + H, third = second + H, fourth = third + H;

    REAL i = gates[first], f = gates[second], o = gates[third], g = gates[fourth];
    REAL c = prev_c[state], t = tanh_c[state];
    REAL dh = above[state] + back[state];
    REAL dnext_c = dc[state] + dh * o * (1 - t * t);

    da[first] = normal(dnext_c * g * i * (1 - i));
    da[second] = normal(dnext_c * c * f * (1 - f));
    da[third] = normal(dh * t * o * (1 - o));
    da[fourth] = normal(dnext_c * i * (1 - g * g));
    dc[state] = normal(dnext_c * f);
}
