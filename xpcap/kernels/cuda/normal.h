// What every source begins with: the rules of xpcap/kernels/subnormals.py.

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

