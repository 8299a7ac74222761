// Reference: lstm_cell in xpcap/layers/lstm.py.
// gates (N, 4H); ah (N, 4H); prev_c, next_c, tanh_c, next_h (N, H).
// Launch: (N, ceil(H / 128)) blocks of 128 threads, one thread a hidden unit of a caption.

extern "C" __global__ void lstm_cell(
    int H, REAL *gates, const REAL *ah, const REAL *prev_c, REAL *next_c,
    REAL *tanh_c, REAL *next_h)
{
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= H)
        return;
    ah += 4LL * blockIdx.x * H + j;
    long long state = (long long)blockIdx.x * H + j;
    long long first = 4LL * blockIdx.x * H + j;  // of the unit's four gates, H apart
    long long second = first + H, third = second + H, fourth = third + H;

    REAL i = logistic(gates[first] + ah[0]);
    REAL f = logistic(gates[second] + ah[H]);
    REAL o = logistic(gates[third] + ah[2 * H]);
    REAL g = tanh(gates[fourth] + ah[3 * H]);
    REAL c = normal(f * prev_c[state] + i * g);
    REAL t = tanh(c);

    gates[first] = i;
    gates[second] = f;
    gates[third] = o;
    gates[fourth] = g;
    next_c[state] = c;
    tanh_c[state] = t;
    next_h[state] = normal(o * t);
}
