// Reference: gru_cell_gradient in xpcap/layers/gru.py.
// above, back, ah_n, prev_h (N, H); gates, dax, dah (N, 3H).
// Launch: (N, ceil(H / 128)) blocks of 128 threads, one thread a hidden unit of a caption.

extern "C" __global__ void gru_cell_gradient(
    int H, const REAL *above, REAL *back, const REAL *gates, const REAL *ah_n, const REAL *prev_h,
    REAL *dax, REAL *dah)
{
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= H)
        return;
    long long state = (long long)blockIdx.x * H + j;
    long long first = 3LL * blockIdx.x * H + j;  // of the unit's three gates, H apart
    long long second = first + H, third = second + H;

    REAL r = gates[first], z = gates[second], n = gates[third];
    REAL dh = above[state] + back[state];
    REAL dn = dh * (1 - z) * (1 - n * n);
    REAL dr = dn * ah_n[state] * r * (1 - r);
    REAL dz = dh * (prev_h[state] - n) * z * (1 - z);

    dax[first] = dah[first] = normal(dr);
    dax[second] = dah[second] = normal(dz);
    dax[third] = normal(dn);
    dah[third] = normal(dn * r);
    back[state] = normal(dh * z);
}
