// Reference: present_regions in xpcap/layers/regions.py.
// regions (count, D), those of all images; out (count,) booleans.
// Launch: ceil(count / 8) blocks of 256 threads, one warp a region.

#define WARPS 8  // of 32 threads

extern "C" __global__ void present_regions(
    long long count, int D, const REAL *regions, bool *out)
{
    long long region = (long long)blockIdx.x * WARPS + threadIdx.x / 32;
    if (region >= count)
        return;
    unsigned int found = 0;  // one bit a lane: whether its number is not zero
    for (int first = 0; first < D && !found; first += 32) {
        int j = first + threadIdx.x % 32;
        found = __ballot_sync(0xffffffff, j < D && regions[region * D + j] != 0);
    }
    if (threadIdx.x % 32 == 0)
        out[region] = found != 0;
}
