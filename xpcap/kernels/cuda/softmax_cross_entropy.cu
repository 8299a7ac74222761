// Reference: softmax_cross_entropy in xpcap/layers/loss.py.
// scores (M, V), a row beginning `stride` elements after the one before; bias (V,);
// targets (M,) of INDEX; scale, losses (M,).
// Launch: M blocks of 256 threads, one block a row.
//
// Two passes over a row, of which the second finds it in a cache: the largest score together with the
// sum of the exponentials, and the gradient together with the sum of the scores. A target outside
// 0..V-1 makes the loss NaN.

#define WARPS 8  // of 32 threads
#define LOADS 4  // in flight

// Add e^(other_top) other_total to e^top total, keeping the larger exponent.
__device__ void combine(REAL &top, REAL &total, REAL other_top, REAL other_total)
{
    REAL high = fmax(top, other_top);
    if (high > log((REAL)0))
        total = total * exp(top - high) + other_total * exp(other_top - high);
    else  // nothing yet, or NaN
        total += other_total;
    top = high;
}

extern "C" __global__ void softmax_cross_entropy(
    int V, long long stride, REAL *scores, const REAL *bias, const INDEX *targets,
    const REAL *scale, REAL *losses, REAL smoothing)
{
    __shared__ REAL tops[WARPS], totals[WARPS];
    long long m = blockIdx.x;
    int thread = threadIdx.x, warp = thread / 32;
    INDEX target = targets[m];
    REAL weight = scale[m], expected = nan("");
    REAL *row = scores + m * stride;

    if (weight == 0) {
        for (int j = thread; j < V; j += blockDim.x)
            row[j] = 0;
        if (thread == 0)
            losses[m] = 0;
        return;
    }

    REAL lowest = log((REAL)0), top = lowest, total = 0;  // minus infinity
    for (int first = thread; first < V; first += LOADS * blockDim.x) {
        REAL score[LOADS], high = top;
        for (int k = 0; k < LOADS; ++k) {
            int j = first + k * blockDim.x;
            score[k] = j < V ? row[j] + bias[j] : lowest;
            high = fmax(high, score[k]);
        }
        REAL sum = 0;
        for (int k = 0; k < LOADS; ++k)
            if (score[k] > lowest || isnan(score[k]))  // which fmax has ignored
                sum += power(score[k] - (high > lowest ? high : (REAL)0));
        combine(top, total, high, sum);
    }
    for (int far = 16; far > 0; far /= 2) {
        REAL other_top = __shfl_xor_sync(0xffffffff, top, far);
        REAL other_total = __shfl_xor_sync(0xffffffff, total, far);
        combine(top, total, other_top, other_total);
    }
    if (thread % 32 == 0) {
        tops[warp] = top;
        totals[warp] = total;
    }
    __syncthreads();
    top = tops[0];
    total = totals[0];
    for (int w = 1; w < WARPS; ++w)
        combine(top, total, tops[w], totals[w]);
    if (thread == 0 && target >= 0 && target < V)
        expected = (1 - smoothing) * (row[target] + bias[target] - top);
    __syncthreads();  // read before it is changed

    REAL factor = weight / total, shift = weight * smoothing / V, of_target = weight * (1 - smoothing);
    REAL sum = 0;
    for (int j = thread; j < V; j += blockDim.x) {
        REAL score = row[j] + bias[j] - top;
        REAL share = factor * power(score) - shift;
        row[j] = j == target ? share - of_target : share;
        sum += score;
    }
    if (smoothing != 0)
        expected += smoothing / V * (REAL)sum_of_block<32 * WARPS>(sum);
    if (thread == 0)
        losses[m] = weight * (log(total) - expected);
}
