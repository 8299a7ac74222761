// Reference: keep_mask, and philox beneath it, in xpcap/layers/random.py.
// out (size,) booleans; stream: a number, or an array (1,), by the macro STREAM.
// Launch: ceil(size / 4096) blocks of 256 threads, one thread a counter, which is 16 elements.

typedef unsigned long long Word;

struct alignas(16) Sixteen {
    Word low, high;  // eight booleans each
};

__device__ Word value(Word stream)
{
    return stream;
}

__device__ Word value(const Word *stream)
{
    return *stream;
}

extern "C" __global__ void keep_mask(
    long long size, unsigned int threshold, Word seed, STREAM stream, bool *out)
{
    Word counter = (Word)blockIdx.x * blockDim.x + threadIdx.x;
    long long first = 16 * (long long)counter;
    if (first >= size)
        return;

    Word words[4] = {counter, value(stream), 0, 0};
    Word key[2] = {seed, 0};
    for (int round = 0; round < 10; ++round) {
        Word left_high = __umul64hi(words[0], 0xD2E7470EE14C6C93ull);
        Word left = words[0] * 0xD2E7470EE14C6C93ull;
        Word right_high = __umul64hi(words[2], 0xCA5A826395121157ull);
        Word right = words[2] * 0xCA5A826395121157ull;
        words[0] = right_high ^ words[1] ^ key[0];
        words[1] = right;
        words[2] = left_high ^ words[3] ^ key[1];
        words[3] = left;
        key[0] += 0x9E3779B97F4A7C15ull;
        key[1] += 0xBB67AE8584CAA73Bull;
    }

    Word kept[2] = {0, 0};
    for (int e = 0; e < 16; ++e) {
        Word quarter = words[e / 4] >> 16 * (e % 4) & 0xFFFF;
        kept[e / 8] |= (Word)(quarter >= threshold) << 8 * (e % 8);
    }
    if (first + 16 <= size && (Word)out % 16 == 0) {
        *(Sixteen *)(out + first) = {kept[0], kept[1]};
        return;
    }
    for (int e = 0; e < 16; ++e)
        if (first + e < size)
            out[first + e] = kept[e / 8] >> 8 * (e % 8) & 1;
}
