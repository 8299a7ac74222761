// Reference: Cell.unroll and Cell.unroll_backward in xpcap/layers/recurrence.py.
//
// A whole sequence in one launch: T steps of N captions, h Wh and the cell of each step. Weights stay
// in shared memory. A block has ROWS captions and UNITS hidden units with all their gates; the blocks
// of the same captions, a group, exchange what they have computed through the L2 cache at each step
// and wait for each other at a counter. The groups are independent of each other.
//
// forward: all blocks of a group read h of the step before; each multiplies it by its columns of Wh
//     (H, GATES H), and its warps share out the H products of each sum.
// backward: each block multiplies its columns of da by its part of Wh^T, and every block of a group
//     adds up the parts of dh that belong to its units, in one order.
//
// Launch: (ceil(H / 16), ceil(N / ROWS)) blocks of 256 threads, all of them resident at once (a
// cooperative launch); counters (2 a group) are zero before and after.
//
// Macros: HIDDEN, H, a multiple of 4; GATES: 1 vanilla, 4 LSTM, 3 GRU; ROWS, a multiple of 16; PASSES: 1:
// factors are rounded to TF32; 3: each is split in two such numbers, which is as good as float32.

#define H HIDDEN
#define UNITS 16
#define BLOCKS ((H + UNITS - 1) / UNITS)  // of a group
#define QUARTER ((BLOCKS + 3) / 4)
#define WIDTH (GATES * UNITS)             // columns of a block
#define CHUNKS ((H + 127) / 128)          // of sixteen hidden units for each warp
#define STRIDE (WIDTH + 8)                // of a row of partial sums; with SLOT, no bank conflicts
#define SLOT(row) ((row) & ~3 | ((row) & 1) << 1 | (row) >> 1 & 1)
#define WARPS 8
#define TILES (ROWS / 16)                 // of sixteen captions
#define TOGETHER (TILES > 1 ? 2 : 1)      // tiles whose products share the weights that are read

#ifndef __CUDACC__  // a C++ compiler, in the tests
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <typename T> static T __ldcg(const T *address) { return *address; }
#endif

typedef unsigned int Bits;

extern __shared__ float4 shared[];

__device__ Bits rounded(float value)
{
    Bits bits;
#ifdef __CUDACC__
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
    bits = (__float_as_uint(value) + 0x1000u) & ~0x1fffu;
#endif
    return bits;
}

// d (16, 8) += a (16, 8) b (8, 8), laid out over a warp as PTX's mma.m16n8k8 has it.
__device__ void multiply(float d[4], const Bits a[4], const Bits b[2])
{
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
        " {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __shared__ float left[WARPS][16][8], right[WARPS][8][8];
    int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4, place = threadIdx.x % 4;
    for (int e = 0; e < 4; ++e)
        left[warp][row + 8 * (e % 2)][place + 4 * (e / 2)] = __uint_as_float(a[e]);
    for (int e = 0; e < 2; ++e)
        right[warp][place + 4 * e][row] = __uint_as_float(b[e]);
    __syncwarp();
    for (int e = 0; e < 4; ++e)
        for (int k = 0; k < 8; ++k)
            d[e] += left[warp][row + 8 * (e / 2)][k] * right[warp][k][2 * place + e % 2];
    __syncwarp();
#endif
}

// The leading part of a number that is split, and the rest, of which the product takes what TF32 has.
// The rest of a number that is not finite is NaN.
__device__ Bits leading(float value)
{
    return PASSES == 1 ? rounded(value) : (__float_as_uint(value) + 0x1000) & ~0x1fff;
}

__device__ Bits rest_of(float value, Bits high)
{
    return __float_as_uint(value - __uint_as_float(high));
}

// Sixteen factors of two rows, of which a lane has four each: rounded, and what that leaves.
struct Chunk {
    Bits high[2][4], rest[2][4];

    __device__ void split(const float4 &upper, const float4 &lower)
    {
        float value[2][4] = {
            {upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            high[e / 4][e % 4] = leading(value[e / 4][e % 4]);
            if (PASSES == 3)
                rest[e / 4][e % 4] = rest_of(value[e / 4][e % 4], high[e / 4][e % 4]);
        }
    }
};

// d[m] (16, 8) += sixteen products a sum, of TOGETHER tiles of captions with the same weights.
__device__ void multiply_chunk(float d[][4], const Chunk a[TOGETHER], const float4 &w)
{
    float value[2][2] = {{w.x, w.y}, {w.z, w.w}};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#if PASSES == 3
        Bits b[2] = {leading(value[k][0]), leading(value[k][1])};
        Bits rest[2] = {rest_of(value[k][0], b[0]), rest_of(value[k][1], b[1])};
#else
        Bits b[2] = {__float_as_uint(value[k][0]), __float_as_uint(value[k][1])};  // rounded before
#endif
#pragma unroll
        for (int m = 0; m < TOGETHER; ++m) {
#if PASSES == 3
            multiply(d[m], a[m].rest[k], b);
            multiply(d[m], a[m].high[k], rest);
#endif
            multiply(d[m], a[m].high[k], b);
        }
    }
}

// A weight as it lies in shared memory.
__device__ float stored(float weight)
{
    return PASSES == 1 ? __uint_as_float(rounded(weight)) : weight;
}

// Tell the group that this block has written what the others wait for.
__device__ void arrive(unsigned int *counter)
{
    __syncthreads();
    if (threadIdx.x == 0)
#ifdef __CUDACC__
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" : : "l"(counter) : "memory");
#else
        ++*counter;
#endif
}

// Wait until `count` blocks have arrived.
__device__ void wait(unsigned int *counter, unsigned int count)
{
    if (threadIdx.x == 0) {
        unsigned int arrived;
        do {
#ifdef __CUDACC__
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
#else
            arrived = *counter;
#endif
        } while (arrived < count);
    }
    __syncthreads();
}

// The last block of a group that ends resets the group's counters.
__device__ void leave(unsigned int *counters)
{
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(counters + 1, 1u) == BLOCKS - 1) {
        counters[0] = 0;
        counters[1] = 0;
    }
}

// The four numbers from a column of a row (H,) on; zeros beyond its end.
__device__ float4 four(const float *row, int column)
{
    return column < H ? __ldcg((const float4 *)(row + column)) : make_float4(0, 0, 0, 0);
}

// gates (T, N, GATES H): x Wx, becomes the activated gates; b (GATES H,) is added to it, and of the GRU
// bn (H,) to h Wh_n. Rows of Wh begin `stride` numbers apart. h (T + 1, N, H), the first state given.
// c (T + 1, N, H) likewise and kept (T, N, H), written: LSTM: the cell state and its tanh; GRU:
// h Wh_n + bn in kept.
extern "C" __launch_bounds__(256, 1) __global__ void forward(
    int T, int N, long long stride, const float *Wh, const float *b, const float *bn, float *gates,
    float *h, float *c, float *kept, unsigned int *counters)
{
    float4 *weights = shared;  // [CHUNKS][WIDTH / 8][256]
    float (*partial)[WARPS][16][STRIDE] =
        (float (*)[WARPS][16][STRIDE])(shared + CHUNKS * (WIDTH / 8) * 256);
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int row8 = lane / 4, place = lane % 4;
    int unit0 = blockIdx.x * UNITS, row0 = blockIdx.y * ROWS;
    unsigned int *counter = counters + 2 * blockIdx.y;

    for (int chunk = 0; chunk < CHUNKS; ++chunk)
        for (int tile = 0; tile < WIDTH / 8; ++tile)
            for (int e = 0; e < 4; ++e) {
                int k = 16 * (CHUNKS * warp + chunk) + 4 * place + e;
                int column = 8 * tile + row8, unit = unit0 + column % UNITS;
                ((float *)&weights[(chunk * (WIDTH / 8) + tile) * 256 + thread])[e] =
                    k < H && unit < H ? stored(Wh[k * stride + column / UNITS * H + unit]) : 0;
            }

    int row = thread / UNITS, local = thread % UNITS, unit = unit0 + local;
    float b_hidden = GATES == 3 && unit < H ? bn[unit] : 0, bias[GATES];
    for (int gate = 0; gate < GATES; ++gate)
        bias[gate] = unit < H ? b[gate * H + unit] : 0;

    for (int t = 0; t < T; ++t) {
        long long step = (long long)t * N;
        float input[TILES][GATES], before[TILES];
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            int n = row0 + 16 * m + row;
            bool here = unit < H && n < N;
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate)
                input[m][gate] =
                    here ? gates[((step + n) * GATES + gate) * H + unit] + bias[gate] : 0;
            before[m] = GATES == 4 && here ? c[(step + n) * H + unit] : 0;
        }
        if (t > 0)
            wait(counter, BLOCKS * t);

#pragma unroll
        for (int m0 = 0; m0 < TILES; m0 += TOGETHER) {
            float4 upper[CHUNKS][TOGETHER], lower[CHUNKS][TOGETHER];
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m) {
                    int k = 16 * (CHUNKS * warp + chunk) + 4 * place;
                    int n = row0 + 16 * (m0 + m) + row8;
                    upper[chunk][m] = four(h + (step + (n < N ? n : N - 1)) * H, k);
                    lower[chunk][m] = four(h + (step + (n + 8 < N ? n + 8 : N - 1)) * H, k);
                }
            if (GATES == 3)
#pragma unroll
                for (int m = m0; m < m0 + TOGETHER; ++m) {
                    int n = row0 + 16 * m + row;
                    before[m] = unit < H && n < N ? __ldcg(h + (step + n) * H + unit) : 0;
                }
            float sum[WIDTH / 8][TOGETHER][4] = {};
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                Chunk a[TOGETHER];
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m)
                    a[m].split(upper[chunk][m], lower[chunk][m]);
#pragma unroll
                for (int tile = 0; tile < WIDTH / 8; ++tile)
                    multiply_chunk(
                        sum[tile], a, weights[(chunk * (WIDTH / 8) + tile) * 256 + thread]);
            }
            if (m0 > 0)
                __syncthreads();  // the partial sums before have been read
#pragma unroll
            for (int tile = 0; tile < WIDTH / 8; ++tile)
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        *(float2 *)&partial[m][warp][SLOT(row8) + 8 * half][8 * tile + 2 * place] =
                            make_float2(sum[tile][m][2 * half], sum[tile][m][2 * half + 1]);
            __syncthreads();
#pragma unroll
            for (int m = 0; m < TOGETHER; ++m)
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate) {
                    float a = GATES == 3 && gate == 2 ? b_hidden : input[m0 + m][gate];
#pragma unroll
                    for (int k = 0; k < WARPS; ++k)
                        a += partial[m][k][SLOT(row)][gate * UNITS + local];
                    if (GATES == 3 && gate == 2) {
                        // kept apart: r multiplies it
                        int n = row0 + 16 * (m0 + m) + row;
                        float r = input[m0 + m][0] = logistic(input[m0 + m][0]);
                        if (unit < H && n < N)
                            kept[(step + n) * H + unit] = a;
                        a = input[m0 + m][2] + r * a;
                    }
                    input[m0 + m][gate] = a;
                }
        }

        float state[TILES], cell[TILES];
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            int n = row0 + 16 * m + row;
#if GATES == 1
            state[m] = tanhf(input[m][0]);
#elif GATES == 4
#pragma unroll
            for (int gate = 0; gate < 3; ++gate)
                input[m][gate] = logistic(input[m][gate]);
            input[m][3] = tanhf(input[m][3]);
            cell[m] = normal(input[m][1] * before[m] + input[m][0] * input[m][3]);
            before[m] = tanhf(cell[m]);
            state[m] = input[m][2] * before[m];
#else
            input[m][1] = logistic(input[m][1]);
            input[m][2] = tanhf(input[m][2]);
            state[m] = (1 - input[m][1]) * input[m][2] + input[m][1] * before[m];
#endif
            if (unit < H && n < N)
                h[(step + N + n) * H + unit] = normal(state[m]);
        }
        if (t + 1 < T)
            arrive(counter);
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            int n = row0 + 16 * m + row;
            if (unit >= H || n >= N)
                continue;
            if (GATES == 4) {
                c[(step + N + n) * H + unit] = cell[m];
                kept[(step + n) * H + unit] = before[m];
            }
            if (GATES != 1)
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate)
                    gates[((step + n) * GATES + gate) * H + unit] = input[m][gate];
        }
    }
    leave(counter);
}

// above (T, N, H): gradients of h from the layer above; gates, c, kept as `forward` left them; h
// (T, N, H): the states after each step (vanilla) or before it (GRU). dax (T, N, GATES H), written,
// and of the GRU dah likewise: the gradients of x Wx + b and of h Wh, which are the same elsewhere.
// back (N, H), written: the gradient of the first h. parts: room for the parts of dh of two steps,
// [group][block that adds up][block that has multiplied][ROWS][UNITS].
extern "C" __launch_bounds__(256, 1) __global__ void backward(
    int T, int N, long long stride, const float *Wh, const float *above, const float *gates,
    const float *h, const float *c, const float *kept, float *dax, float *dah, float *back,
    float *parts, unsigned int *counters)
{
    float4 *weights = shared;  // [GATES][2 CHUNKS][256]
    float (*da)[WIDTH + 16] = (float (*)[WIDTH + 16])(shared + GATES * 2 * CHUNKS * 256);
    float4 (*quarters)[16 * UNITS / 4] = (float4 (*)[16 * UNITS / 4])(da + ROWS);  // [4 TILES]
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int row8 = lane / 4, place = lane % 4;
    int unit0 = blockIdx.x * UNITS, row0 = blockIdx.y * ROWS;
    unsigned int *counter = counters + 2 * blockIdx.y;

    for (int gate = 0; gate < GATES; ++gate)
        for (int tile = 0; tile < 2 * CHUNKS; ++tile)
            for (int e = 0; e < 4; ++e) {
                int unit = unit0 + 4 * place + e;
                // of two tiles a lane has the units from 4 place on: their sums lie side by side
                int to = 16 * (CHUNKS * warp + tile / 2) + row8 / 2 * 4 + tile % 2 * 2 + row8 % 2;
                ((float *)&weights[(gate * 2 * CHUNKS + tile) * 256 + thread])[e] =
                    unit < H && to < H ? stored(Wh[to * stride + gate * H + unit]) : 0;
            }

    int row = thread / UNITS, local = thread % UNITS, unit = unit0 + local;
    float carry[TILES] = {};  // of h, beside h Wh
#if GATES == 4
    float dc[TILES] = {};
#endif

    for (int t = T - 1; t >= -1; --t) {
        int done = T - 1 - t;  // steps whose parts are written
        const long long all = (long long)gridDim.y * BLOCKS * BLOCKS * ROWS * UNITS;
        const float *read =
            parts + (done + 1) % 2 * all
            + ((long long)blockIdx.y * BLOCKS + blockIdx.x) * BLOCKS * ROWS * UNITS;
        float *write = parts + done % 2 * all
            + ((long long)blockIdx.y * BLOCKS * BLOCKS + blockIdx.x) * ROWS * UNITS;
        long long step = (long long)t * N;
        float values[TILES][GATES + 3];
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            int n = row0 + 16 * m + row;
            bool here = t >= 0 && unit < H && n < N;
            long long state = here ? (step + n) * H + unit : 0;
            values[m][0] = here ? above[state] : 0;
#if GATES == 1
            values[m][1] = here ? h[state] : 0;
#else
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate)
                values[m][1 + gate] = here ? gates[((step + n) * GATES + gate) * H + unit] : 0;
            values[m][GATES + 1] = here ? (GATES == 4 ? c : h)[state] : 0;
            values[m][GATES + 2] = here ? kept[state] : 0;
#endif
        }
        if (done > 0)
            wait(counter, BLOCKS * done);

        if (done > 0) {  // a quarter of the threads adds up a quarter of the parts
            int quarter = thread / 64, item = thread % 64;
#pragma unroll 1
            for (int m0 = 0; m0 < TILES; m0 += TOGETHER) {
                float4 part[TOGETHER][QUARTER];
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m)
#pragma unroll
                    for (int j = 0; j < QUARTER; ++j) {
                        int k = QUARTER * quarter + j;
                        part[m][j] = k < BLOCKS
                            ? __ldcg((const float4 *)(read + (k * ROWS + 16 * (m0 + m)) * UNITS) + item)
                            : make_float4(0, 0, 0, 0);
                    }
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m) {
#pragma unroll
                    for (int j = 1; j < QUARTER; ++j) {
                        part[m][0].x += part[m][j].x;
                        part[m][0].y += part[m][j].y;
                        part[m][0].z += part[m][j].z;
                        part[m][0].w += part[m][j].w;
                    }
                    quarters[4 * (m0 + m) + quarter][item] = part[m][0];
                }
            }
            __syncthreads();
        }

        float d[TILES][GATES];
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            int n = row0 + 16 * m + row;
            float dh = carry[m];
            if (done > 0)
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    dh += ((const float *)quarters[4 * m + k])[thread];
            if (t < 0) {
                if (unit < H && n < N)
                    back[n * H + unit] = dh;
                continue;
            }
            dh += values[m][0];
#if GATES == 1
            d[m][0] = dh * (1 - values[m][1] * values[m][1]);
#elif GATES == 4
            float i = values[m][1], f = values[m][2], o = values[m][3], g = values[m][4];
            float cell = values[m][5], t_cell = values[m][6];
            float dnext = dc[m] + dh * o * (1 - t_cell * t_cell);
            d[m][0] = dnext * g * i * (1 - i);
            d[m][1] = dnext * cell * f * (1 - f);
            d[m][2] = dh * t_cell * o * (1 - o);
            d[m][3] = dnext * i * (1 - g * g);
            dc[m] = normal(dnext * f);
#else
            float r = values[m][1], z = values[m][2], g = values[m][3];
            float dg = dh * (1 - z) * (1 - g * g);
            d[m][0] = dg * values[m][5] * r * (1 - r);
            d[m][1] = dh * (values[m][4] - g) * z * (1 - z);
            d[m][2] = dg * r;
            carry[m] = normal(dh * z);
            values[m][0] = normal(dg);
#endif
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate)
                da[16 * m + row][gate * UNITS + local] = d[m][gate] = normal(d[m][gate]);
        }
        if (t < 0)
            break;
        __syncthreads();
#pragma unroll 1
        for (int m0 = 0; m0 < TILES; m0 += TOGETHER) {
            float sum[2 * CHUNKS][TOGETHER][4] = {};
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate) {
                Chunk a[TOGETHER];
                int k = gate * UNITS + 4 * place;
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m)
                    a[m].split(
                        *(const float4 *)&da[16 * (m0 + m) + row8][k],
                        *(const float4 *)&da[16 * (m0 + m) + row8 + 8][k]);
#pragma unroll
                for (int tile = 0; tile < 2 * CHUNKS; ++tile)
                    multiply_chunk(
                        sum[tile], a, weights[(gate * 2 * CHUNKS + tile) * 256 + thread]);
            }
#pragma unroll
            for (int pair = 0; pair < CHUNKS; ++pair)
#pragma unroll
                for (int m = 0; m < TOGETHER; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        int block = CHUNKS * warp + pair;
                        const float *low = sum[2 * pair][m] + 2 * half;
                        const float *high = sum[2 * pair + 1][m] + 2 * half;
                        if (block < BLOCKS)
                            ((float4 *)(write + (long long)block * BLOCKS * ROWS * UNITS))
                                [(16 * (m0 + m) + row8 + 8 * half) * 4 + place] =
                                make_float4(low[0], low[1], high[0], high[1]);
                    }
        }
        arrive(counter);
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            int n = row0 + 16 * m + row;
            if (unit >= H || n >= N)
                continue;
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate) {
                long long at = ((step + n) * GATES + gate) * H + unit;
                dax[at] = GATES == 3 && gate == 2 ? values[m][0] : d[m][gate];
                if (GATES == 3)
                    dah[at] = d[m][gate];
            }
        }
    }
    leave(counter);
}
