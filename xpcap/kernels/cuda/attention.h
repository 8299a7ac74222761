// What the kernels of attention share. A block computes one query with THREADS threads; a warp takes a
// region where sums run over its numbers, a thread a column where they run over regions. Scores pass
// through global memory, so that there may be any number of regions. Every sum has one order.

#define THREADS 512
#define WARPS (THREADS / 32)
#define LOADS 8  // in flight

__device__ REAL sum_of_warp(REAL value)
{
    for (int far = 16; far > 0; far /= 2)
        value += __shfl_xor_sync(0xffffffff, value, far);
    return value;
}

// The sum over j of a[j] b[j], known to all threads of a warp.
__device__ REAL dot_by_warp(int size, const REAL *a, const REAL *b)
{
    REAL total = 0;
    for (int first = threadIdx.x % 32; first < size; first += 32 * LOADS) {
        REAL of_a[LOADS], of_b[LOADS];
        for (int k = 0; k < LOADS; ++k) {
            int j = first + 32 * k;
            of_a[k] = j < size ? a[j] : 0;
            of_b[k] = j < size ? b[j] : 0;
        }
        for (int k = 0; k < LOADS; ++k)
            total += of_a[k] * of_b[k];
    }
    return sum_of_warp(total);
}

__device__ bool is_there(const bool *present, int l)
{
    return !present || present[l];
}

// Turn scores (L,) into weights, 0 where no region is present, and write the sum over l of weight_l
// value_l, values (L, D).
__device__ void mix(
    int L, int D, const bool *present, const REAL *values, REAL *weights, REAL *context)
{
    int thread = threadIdx.x;
    __syncthreads();  // scores are written
    if (thread < 32) {
        REAL top = log((REAL)0), total = 0;  // minus infinity
        for (int l = thread; l < L; l += 32)
            if (is_there(present, l))
                top = fmax(top, weights[l]);
        for (int far = 16; far > 0; far /= 2)
            top = fmax(top, __shfl_xor_sync(0xffffffff, top, far));
        for (int l = thread; l < L; l += 32) {
            REAL share = is_there(present, l) ? power(weights[l] - top) : 0;
            weights[l] = share;
            total += share;
        }
        total = sum_of_warp(total);
        for (int l = thread; l < L; l += 32)
            if (is_there(present, l))
                weights[l] /= total;
    }
    __syncthreads();
    for (int j = thread; j < D; j += THREADS) {
        REAL total = 0;
        for (int first = 0; first < L; first += LOADS) {
            REAL weight[LOADS], value[LOADS];
            for (int k = 0; k < LOADS; ++k) {
                int l = first + k;
                weight[k] = l < L ? weights[l] : 0;
                value[k] = l < L ? values[l * D + j] : 0;
            }
            for (int k = 0; k < LOADS; ++k)
                total += weight[k] * value[k];
        }
        context[j] = total;
    }
}

// Write the gradient of scores (L,) times a scale, from those of the context (D,) and of the weights
// (L,), if any reaches these otherwise.
__device__ void score_gradient(
    int L, int D, REAL scale, const REAL *dcontext, const REAL *dweights, const REAL *values,
    const REAL *weights, REAL *dscores)
{
    int thread = threadIdx.x;
    for (int l = thread / 32; l < L; l += WARPS) {
        REAL given = dot_by_warp(D, values + l * D, dcontext);
        if (thread % 32 == 0)
            dscores[l] = dweights ? given + dweights[l] : given;
    }
    __syncthreads();
    double mean = 0;
    for (int l = thread; l < L; l += THREADS)
        mean += weights[l] * dscores[l];
    mean = sum_of_block<THREADS>(mean);
    for (int l = thread; l < L; l += THREADS)
        dscores[l] = normal(scale * weights[l] * (dscores[l] - (REAL)mean));
    __syncthreads();
}

// Add weight_l dcontext_j to a column of dvalues, for the LOADS regions from `first` on.
__device__ void add_to_values(
    int first, int L, int D, const REAL *weights, REAL dcontext, REAL *dvalues)
{
    REAL sum[LOADS];
    for (int k = 0; k < LOADS; ++k) {
        int l = first + k;
        sum[k] = l < L ? dvalues[l * D] + weights[l] * dcontext : 0;
    }
    for (int k = 0; k < LOADS; ++k)
        if (first + k < L)
            dvalues[(first + k) * D] = sum[k];
}
