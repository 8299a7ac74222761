// Reference: adam_update in xpcap/kernels/updates.py.
// w, dw, m, v (size,); settings (4,): scale, rate, c1, c2.
// Launch: ceil(size / 256) blocks of 256 threads, one thread a parameter.

extern "C" __global__ void adam_update(
    long long size, REAL *w, const REAL *dw, REAL *m, REAL *v, const REAL *settings, REAL beta1,
    REAL rest1, REAL beta2, REAL rest2, REAL epsilon, REAL decay)
{
    long long e = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= size)
        return;
    REAL scale = settings[0], rate = settings[1], c1 = settings[2], c2 = settings[3];

    REAL gradient = scale * dw[e];
    REAL first = normal(beta1 * m[e] + rest1 * gradient);  // rest: 1 - beta
    REAL second = normal(beta2 * v[e] + rest2 * gradient * gradient);
    REAL direction = (first / c1) / (sqrt(second / c2) + epsilon);
    if (decay != 0)
        direction += decay * w[e];

    m[e] = first;
    v[e] = second;
    w[e] = normal(w[e] - rate * direction);
}
