// Reference: gru_cell in xpcap/layers/gru.py.
// gates (N, 3H); ah (N, 3H); bn (H,); prev_h, ah_n, next_h (N, H).
// Launch: (N, ceil(H / 128)) blocks of 128 threads, one thread a hidden unit of a caption.

extern "C" __global__ void gru_cell(
    int H, REAL *gates, const REAL *ah, const REAL *bn, const REAL *prev_h,
    REAL *ah_n, REAL *next_h)
{
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= H)
        return;
    ah += 3LL * blockIdx.x * H + j;
    long long state = (long long)blockIdx.x * H + j;
    long long first = 3LL * blockIdx.x * H + j;  // of the unit's three gates, H apart
    long long second = first + H, third = second + H;

    REAL r = logistic(gates[first] + ah[0]);
    REAL z = logistic(gates[second] + ah[H]);
    REAL a = ah[2 * H] + bn[j];
    REAL n = tanh(normal(gates[third] + r * a));
    REAL h = normal((1 - z) * n + z * prev_h[state]);

    gates[first] = r;
    gates[second] = z;
    gates[third] = n;
    ah_n[state] = a;
    next_h[state] = h;
}
