/* One step of a whole stack for a few batch rows; included once an instruction set.
 *
 * D, E and the heads' widths are multiples of LANES (the sLSTM's of a divisor of it). A row's state is that of
 * xlstm_kernels.pack_state: block after block conv (K - 1, E), then c (NH, DH, DH), n (NH, DH), m (NH) of an mLSTM, or
 * h, c, n, m (D) of an sLSTM. A block-diagonal map has one panel for PANEL outputs; it reads the `width` inputs that
 * these depend on, the block or several of them. Nothing is written in place: `state` and `state_out` do not
 * overlap. */

INLINE float FN(sum)(const float *x, int64_t n) {
    vec sums = splat(0.0f);
    int64_t e = 0;
    for (; e + WIDTH <= n; e += WIDTH) sums += load(x + e);
    float sum = total(sums);
    for (; e < n; e++) sum += x[e];
    return sum;
}

/* out (n) = x less its mean, over its standard deviation, times weight; out may be x. */
INLINE void FN(standardise)(const float *x, int64_t n, const float *weight, float eps, float *out) {
    const float mean = FN(sum)(x, n) / (float)n;
    vec squares = splat(0.0f);
    int64_t e = 0;
    for (; e + WIDTH <= n; e += WIDTH) {
        const vec away = load(x + e) - mean;
        squares += away * away;
    }
    float variance = total(squares);
    for (int64_t rest = e; rest < n; rest++) variance += (x[rest] - mean) * (x[rest] - mean);
    const float scale = 1.0f / sqrtf(variance / (float)n + eps);
    for (e = 0; e + WIDTH <= n; e += WIDTH) store(out + e, (load(x + e) - mean) * scale * load(weight + e));
    for (; e < n; e++) out[e] = (x[e] - mean) * scale * weight[e];
}

/* The convolution's output after SiLU for one row, and its window one step on. */
INLINE void FN(step_conv)(const step_block *w, const float *window, const float *x, int reset, float *out,
                          float *window_out) {
    const int64_t E = w->E, K = w->K;
    for (int64_t c = 0; c < E; c += WIDTH) {
        vec sum = load(w->conv_bias + c) + load(w->conv_weight + (K - 1) * E + c) * load(x + c);
        for (int64_t k = 0; k + 1 < K; k++) {
            const vec past = reset ? splat(0.0f) : load(window + k * E + c);
            sum += load(w->conv_weight + k * E + c) * past;
            if (k > 0) store(window_out + (k - 1) * E + c, past);
        }
        if (K > 1) store(window_out + (K - 2) * E + c, load(x + c));
        store(out + c, sum * sigmoid(sum));
    }
}

/* out (rows, E) = a block-diagonal map of in (rows, E). */
INLINE void FN(step_map)(int64_t rows, const step_block *w, const float *panels, const float *in, int64_t in_stride,
                         float *out, int64_t out_stride) {
    const int64_t width = w->block > PANEL ? w->block : PANEL;
    for (int64_t c = 0; c < w->E; c += PANEL, panels += width * PANEL)
        project(rows, in + c / width * width, in_stride, panels, width, PANEL, out + c, out_stride);
}

/* One head's memory: h (DH) and the state after the step. */
INLINE void FN(step_memory)(int64_t DH, const float *q, const float *k, const float *v, float i, float f,
                            const float *c, const float *n, float m, int reset, float *c_out, float *n_out,
                            float *m_out, float *h) {
    const float logf = fminf(f, 0.0f) - log1pf(expf(-fabsf(f))), scale = 1.0f / sqrtf((float)DH);
    const float from_before = reset ? -INFINITY : logf + m, m_after = fmaxf(from_before, i);
    const float kept = expf(from_before - m_after), written = expf(i - m_after);
    float along = 0.0f;
    for (int64_t e = 0; e < DH; e++) {
        n_out[e] = (reset ? 0.0f : kept * n[e]) + written * k[e];
        along += n_out[e] * q[e];
    }
    const float share = scale / (fmaxf(fabsf(along * scale), expf(-m_after)) + MLSTM_EPSILON);
    for (int64_t e = 0; e < DH; e += WIDTH) {
        const vec value = written * load(v + e);
        vec sum = splat(0.0f);
        for (int64_t d = 0; d < DH; d++) {
            const vec after = (reset ? splat(0.0f) : kept * load(c + d * DH + e)) + k[d] * value;
            store(c_out + d * DH + e, after);
            sum += q[d] * after;
        }
        store(h + e, sum * share);
    }
    *m_out = m_after;
}

static void FN(step_mlstm)(int64_t rows, const step_block *w, int64_t D, int64_t stride, const float *normed, float *x,
                           const float *state, const uint8_t *resets, float *state_out, int64_t state_stride,
                           float *work, int64_t wide) {
    const int64_t E = w->E, NH = w->NH, DH = w->DH, window = (w->K - 1) * E, gate_columns = whole(2 * NH);
    float *up = work, *convolved = up + rows * wide, *qkv = convolved + rows * wide, *gates = qkv + rows * wide;
    float *y = gates + rows * wide;
    project(rows, normed, stride, w->up, D, 2 * E, up, wide);
    for (int64_t r = 0; r < rows; r++)
        FN(step_conv)(w, state + r * state_stride, up + r * wide, resets && resets[r], convolved + r * wide,
                      state_out + r * state_stride);
    const int64_t map = E * (w->block > PANEL ? w->block : PANEL);
    FN(step_map)(rows, w, w->maps, convolved, wide, qkv, wide);
    FN(step_map)(rows, w, w->maps + map, convolved, wide, qkv + E, wide);
    FN(step_map)(rows, w, w->maps + 2 * map, up, wide, qkv + 2 * E, wide);
    project(rows, qkv, wide, w->gate_weight, 3 * E, gate_columns, gates, wide);
    for (int64_t r = 0; r < rows; r++) {
        const float *c = state + r * state_stride + window, *n = c + E * DH, *m = n + E, *q = qkv + r * wide;
        float *c_out = state_out + r * state_stride + window, *n_out = c_out + E * DH, *m_out = n_out + E,
              *out = y + r * wide;
        for (int64_t g = 0; g < NH; g++) {
            const float *gate = gates + r * wide;
            FN(step_memory)(DH, q + g * DH, q + E + g * DH, q + 2 * E + g * DH, gate[g] + w->gate_bias[g],
                            gate[NH + g] + w->gate_bias[NH + g], c + g * DH * DH, n + g * DH, m[g], resets && resets[r],
                            c_out + g * DH * DH, n_out + g * DH, m_out + g, out + g * DH);
            FN(standardise)(out + g * DH, DH, w->head_norm + g * DH, w->head_norm_eps, out + g * DH);
        }
        for (int64_t e = 0; e < E; e += WIDTH) {
            const vec gate = load(up + r * wide + E + e);
            store(out + e, (load(out + e) + load(w->skip + e) * load(convolved + r * wide + e)) * gate * sigmoid(gate));
        }
    }
    project(rows, y, wide, w->down, E, D, up, wide);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = 0; e < D; e += WIDTH)
            store(x + r * stride + e, load(x + r * stride + e) + load(up + r * wide + e));
}

static void FN(step_slstm)(int64_t rows, const step_block *w, int64_t D, int64_t stride, float *normed, float *x,
                           const float *state, const uint8_t *resets, float *state_out, int64_t state_stride,
                           float *work, int64_t wide) {
    const int64_t window = (w->K - 1) * D, map = D * (w->block > PANEL ? w->block : PANEL);
    float *convolved = work, *gates = convolved + rows * wide, *mixed = gates + rows * wide,
          *before = mixed + rows * wide;
    for (int64_t r = 0; r < rows; r++) {
        const int reset = resets && resets[r];
        FN(step_conv)(w, state + r * state_stride, normed + r * stride, reset, convolved + r * wide,
                      state_out + r * state_stride);
        if (reset) memset(before + r * wide, 0, sizeof(float) * D);
        else memcpy(before + r * wide, state + r * state_stride + window, sizeof(float) * D);
    }
    for (int64_t g = 0; g < 4; g++) {
        FN(step_map)(rows, w, w->maps + g * map, g < 2 ? convolved : normed, g < 2 ? wide : stride, gates + g * D,
                     wide);
        FN(step_map)(rows, w, w->recurrent + g * map, before, wide, mixed + g * D, wide);
    }
    for (int64_t r = 0; r < rows; r++) {
        const int reset = resets && resets[r];
        const float *c = state + r * state_stride + window + D, *n = c + D, *m = n + D;
        float *h_out = state_out + r * state_stride + window, *c_out = h_out + D, *n_out = c_out + D,
              *m_out = n_out + D;
        for (int64_t e = 0; e < D; e += WIDTH) {
            const float *given = gates + r * wide + e, *mix = mixed + r * wide + e, *bias = w->gate_bias + e;
            const vec i = load(given) + load(mix) + load(bias);
            const vec f = load(given + D) + load(mix + D) + load(bias + D);
            const vec z = hyperbolic_tangent(load(given + 2 * D) + load(mix + 2 * D) + load(bias + 2 * D));
            const vec o = sigmoid(load(given + 3 * D) + load(mix + 3 * D) + load(bias + 3 * D));
            vec unused, also;
            const vec from_before = reset ? splat(-INFINITY) : load(m + e) - softplus(-f, &unused, &also);
            const vec m_after = at_least(from_before, i);
            const vec kept = exponential(from_before - m_after), written = exponential(i - m_after);
            const vec c_before = reset ? splat(0.0f) : load(c + e), n_before = reset ? splat(0.0f) : load(n + e);
            const vec c_after = kept * c_before + written * z, n_after = kept * n_before + written;
            store(m_out + e, m_after);
            store(c_out + e, c_after);
            store(n_out + e, n_after);
            store(h_out + e, o * c_after / n_after);
        }
        for (int64_t g = 0; g < w->NH; g++)
            FN(standardise)(h_out + g * w->DH, w->DH, w->head_norm + g * w->DH, w->head_norm_eps,
                            normed + r * stride + g * w->DH);
        float *row = x + r * stride;
        for (int64_t e = 0; e < D; e += WIDTH) store(row + e, load(row + e) + load(normed + r * stride + e));
        FN(standardise)(row, D, w->ffn_norm, w->norm_eps, normed + r * stride);
    }
    float *hidden = gates, *out = mixed;
    project(rows, normed, stride, w->ffn_up, D, 2 * w->hidden, hidden, wide);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = 0; e < w->hidden; e += WIDTH) {
            float *at = hidden + r * wide + e;
            store(at, gelu(load(at)) * load(at + w->hidden));
        }
    project(rows, hidden, wide, w->ffn_down, w->hidden, D, out, wide);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = 0; e < D; e += WIDTH)
            store(x + r * stride + e, load(x + r * stride + e) + load(out + r * wide + e));
}

/* Rows `first` to `first + rows` through all blocks. */
static void FN(step_rows)(const step_stack *stack, int64_t first, int64_t rows, const float *x, const float *state,
                          const uint8_t *resets, float *y, float *state_out, float *work) {
    const int64_t D = stack->D, floats = stack->state_floats, wide = stack->widest;
    float *stream = work, *normed = stream + rows * D;
    work = normed + rows * D;
    memcpy(stream, x + first * D, sizeof(float) * rows * D);
    state += first * floats, state_out += first * floats;
    if (resets) resets += first;
    for (int64_t b = 0; b < stack->num_blocks; b++) {
        const step_block *w = stack->blocks + b;
        for (int64_t r = 0; r < rows; r++) FN(standardise)(stream + r * D, D, w->norm, w->norm_eps, normed + r * D);
        if (w->is_slstm) FN(step_slstm)(rows, w, D, D, normed, stream, state, resets, state_out, floats, work, wide);
        else FN(step_mlstm)(rows, w, D, D, normed, stream, state, resets, state_out, floats, work, wide);
        const int64_t passed = step_state_floats(w);
        state += passed, state_out += passed;
    }
    for (int64_t r = 0; r < rows; r++)
        FN(standardise)(stream + r * D, D, stack->norm, stack->norm_eps, y + (first + r) * D);
}
