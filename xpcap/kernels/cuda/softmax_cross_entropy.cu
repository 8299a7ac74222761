// Reference: softmax_cross_entropy in xpcap/kernels/softmax.py.
// scores (M, V), a row beginning `stride` elements after the one before; bias (V,);
// targets (M,) of INDEX; scale, losses (M,).
// Launch: M blocks of 256 threads, one block a row.
//
// Three passes over a row, of which the later two find it in a cache: the largest score, the sum
// of the exponentials, the gradient. A target outside 0..V-1 makes the loss NaN.

#define WARPS 8  // of 32 threads

extern "C" __global__ void softmax_cross_entropy(
    int V, long long stride, REAL *scores, const REAL *bias, const INDEX *targets,
    const REAL *scale, REAL *losses)
{
    __shared__ REAL tops[WARPS], totals[WARPS];
    long long m = blockIdx.x;
    int thread = threadIdx.x, warp = thread / 32;
    INDEX target = targets[m];
    REAL weight = scale[m], of_target = nan("");
    REAL *row = scores + m * stride;

    if (weight == 0) {
        for (int j = thread; j < V; j += blockDim.x)
            row[j] = 0;
        if (thread == 0)
            losses[m] = 0;
        return;
    }

    REAL top = row[0] + bias[0];
    for (int j = thread; j < V; j += blockDim.x)
        top = fmax(top, row[j] + bias[j]);
    for (int far = 16; far > 0; far /= 2)
        top = fmax(top, __shfl_xor_sync(0xffffffff, top, far));
    if (thread % 32 == 0)
        tops[warp] = top;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w)
        top = fmax(top, tops[w]);

    REAL total = 0;
    for (int j = thread; j < V; j += blockDim.x)
        total += power(row[j] + bias[j] - top);
    for (int far = 16; far > 0; far /= 2)
        total += __shfl_xor_sync(0xffffffff, total, far);
    if (thread % 32 == 0)
        totals[warp] = total;
    if (thread == 0 && target >= 0 && target < V)
        of_target = row[target] + bias[target] - top;  // read before it is changed
    __syncthreads();
    total = 0;
    for (int w = 0; w < WARPS; ++w)
        total += totals[w];

    if (thread == 0)
        losses[m] = weight * (log(total) - of_target);
    REAL factor = weight / total;
    for (int j = thread; j < V; j += blockDim.x) {
        REAL share = factor * power(row[j] + bias[j] - top);
        row[j] = j == target ? share - weight : share;
    }
}
