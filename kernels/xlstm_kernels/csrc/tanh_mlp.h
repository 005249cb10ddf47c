/* A multi-layer perceptron whose every layer ends in tanh, a block of rows at a time; included once an instruction set.
 *
 * Layer l maps widths[l] to widths[l + 1] channels: weights[2 l] (out, in), weights[2 l + 1], its bias, (out). All widths
 * but that of x are multiples of LANES. M rows: x, dx (M, widths[0]), y, dy (M, the last width), tape: each hidden
 * layer's outputs (M, width) one after the other. dx may be NULL: not wanted; it is added to if `adds`. */

/* The first of `rows` rows of what layer l returns, and on the tape for all but the last. */
INLINE float *FN(mlp_outputs)(const tanh_mlp_sizes *size, int64_t l, int64_t first, float *tape, float *y) {
    if (l == size->num_layers - 1) return y + first * size->widths[l + 1];
    for (int64_t before = 0; before < l; before++) tape += size->M * size->widths[before + 1];
    return tape + first * size->widths[l + 1];
}

static void FN(tanh_mlp_forward)(const tanh_mlp_sizes *size, int64_t first, int64_t rows, const float *const *weights,
                                 const float *x, float *tape, float *y, float *work) {
    const float *in = x + first * size->widths[0];
    for (int64_t l = 0; l < size->num_layers; l++) {
        const int64_t K = size->widths[l], N = size->widths[l + 1];
        float *out = FN(mlp_outputs)(size, l, first, tape, y);
        transpose(weights[2 * l], K, N, K, work, N, N);
        multiply(rows, N, K, in, K, 1, work, N, out, N, 0);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < N; c += WIDTH) {
                float *at = out + r * N + c;
                store(at, hyperbolic_tangent(load(at) + load(weights[2 * l + 1] + c)));
            }
        in = out;
    }
}

/* sums: the gradients of the weights, in rows of whole vectors, one after the other; they are added to. */
static void FN(tanh_mlp_backward)(const tanh_mlp_sizes *size, int64_t first, int64_t rows, const float *const *weights,
                                  const float *x, const float *tape, const float *y, const float *dy, float *dx,
                                  int adds, float *sums, float *work) {
    const int64_t widest = tanh_mlp_widest(size);
    float *given = work, *dz = given + MLP_ROWS * widest, *padded = dz + MLP_ROWS * widest;
    const int64_t last = size->num_layers - 1, width = size->widths[last + 1];
    memcpy(given, dy + first * width, sizeof(float) * rows * width);
    sums += tanh_mlp_sum_floats(size);
    for (int64_t l = last; l >= 0; l--) {
        const int64_t K = size->widths[l], N = size->widths[l + 1], columns = whole(K);
        const float *out = FN(mlp_outputs)(size, l, first, (float *)tape, (float *)y); /* only read */
        const float *in = l > 0 ? FN(mlp_outputs)(size, l - 1, first, (float *)tape, NULL) : padded;
        if (l == 0) copy_padded(rows, K, x + first * K, padded);
        for (int64_t e = 0; e < rows * N; e += WIDTH)
            store(dz + e, load(given + e) * (1.0f - load(out + e) * load(out + e)));
        float *dbias = sums -= N, *dweight = sums -= N * columns;
        multiply(N, columns, rows, dz, 1, N, in, columns, dweight, columns, 1);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < N; c += WIDTH) store(dbias + c, load(dbias + c) + load(dz + r * N + c));
        if (l == 0 && !dx) return;
        const float *weight = weights[2 * l];
        if (K != columns) copy_padded(N, K, weight, padded), weight = padded;
        multiply(rows, columns, N, dz, N, 1, weight, columns, given, columns, 0);
    }
    const int64_t K = size->widths[0];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < K; c++) {
            float *at = dx + (first + r) * K + c;
            *at = given[r * whole(K) + c] + (adds ? *at : 0.0f);
        }
}
