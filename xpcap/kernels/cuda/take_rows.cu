// Reference: take_rows in xpcap/layers/embedding.py.
// table (size, D) and out (M, D) of ELEMENT, as wide as their dtype; a row of the table begins
// `stride` elements after the one before; indices (M,) of INDEX.
// Launch: (M, ceil(D / 128)) blocks of 128 threads, one thread an element of out.
//
// An index outside 0..size-1 takes the nearest row, as NumPy's mode "clip" does.

extern "C" __global__ void take_rows(
    long long size, int D, long long stride, const ELEMENT *table, const INDEX *indices,
    ELEMENT *out)
{
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= D)
        return;
    long long m = blockIdx.x;
    long long row = indices[m];
    row = row < 0 ? 0 : row < size ? row : size - 1;
    out[m * D + j] = table[row * stride + j];
}
