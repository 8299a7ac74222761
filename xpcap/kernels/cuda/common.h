// What every source begins with: the rules of xpcap/subnormals.py, the logistic function, and sums over
// a block.

inline __device__ float normal(float x)
{
    return fabsf(x) < 0x1p-126f ? 0 : x;
}

inline __device__ double normal(double x)
{
    return fabs(x) < 0x1p-1022 ? 0 : x;
}

inline __device__ float power(float x)
{
    return x < -55.451774f ? 0 : expf(x);  // 2^-80
}

inline __device__ double power(double x)
{
    return x < -636.3091117540298 ? 0 : exp(x);  // 2^-918
}

template <typename Real> __device__ Real logistic(Real a)
{
    return (Real)0.5 * tanh((Real)0.5 * a) + (Real)0.5;
}

// The sum of a value over the threads of a block, known to all of them; always in the same order.
template <int THREADS_OF_BLOCK> __device__ double sum_of_block(double value)
{
    __shared__ double sums[THREADS_OF_BLOCK / 32];
    for (int far = 16; far > 0; far /= 2)
        value += __shfl_xor_sync(0xffffffff, value, far);
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (int w = 0; w < THREADS_OF_BLOCK / 32; ++w)
        value += sums[w];
    __syncthreads();  // the next sum may be written
    return value;
}

