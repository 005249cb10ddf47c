/* A chunk of the paper's mLSTM block between its up- and its down-projection, forward and back: convolution and SiLU,
 * headwise maps, gates before the memory; head norm, skip, output gate after it; included once an instruction set.
 *
 * The chunk lies channels by steps (E, L), so that every loop runs along the steps. Shapes: S sequence, E inner dim, NH
 * heads, DH head dim, K kernel size, L lanes; t is the chunk's first step, `steps` how many are real. */

static void FN(find_ages)(const mlstm_block_sizes *size, const uint8_t *resets, int32_t *age) {
    int32_t last = (int32_t)size->K;
    for (int64_t t = 0; t < size->S; t++) age[t] = last = resets[t] ? 0 : last < size->K ? last + 1 : last;
}

/* out (channels, L) = a block-diagonal map of in (channels, L); weight [block, out, in]. */
INLINE void FN(headwise)(const mlstm_block_sizes *size, int64_t L, const float *weight, const float *in,
                         int64_t in_stride, float *out) {
    const int64_t width = size->block;
    for (int64_t c = 0; c < size->E; c++, weight += width)
        for (int64_t t = 0; t < L; t += WIDTH) {
            const float *from = in + c / width * width * in_stride + t;
            vec sum = splat(0.0f);
            for (int64_t j = 0; j < width; j++) sum += weight[j] * load(from + j * in_stride);
            store(out + c * L + t, sum);
        }
}

/* Back through it: din += and dweight +=. */
INLINE void FN(headwise_backward)(const mlstm_block_sizes *size, int64_t L, const float *weight, const float *in,
                                  int64_t in_stride, const float *dout, float *din, float *dweight) {
    const int64_t width = size->block;
    vec dots[WIDTH];
    int filled = 0;
    for (int64_t c = 0; c < size->E; c++) {
        const int64_t first = c / width * width, place = c - first;
        for (int64_t t = 0; t < L; t += WIDTH) {
            vec sum = load(din + c * L + t);
            for (int64_t o = 0; o < width; o++)
                sum += weight[(first + o) * width + place] * load(dout + (first + o) * L + t);
            store(din + c * L + t, sum);
        }
        for (int64_t j = 0; j < width; j++) {
            vec dot = splat(0.0f);
            for (int64_t t = 0; t < L; t += WIDTH)
                dot += load(dout + c * L + t) * load(in + (first + j) * in_stride + t);
            dots[filled++] = dot;
            if (filled < WIDTH) continue;
            store(dweight, load(dweight) + totals(dots));
            dweight += WIDTH;
            filled = 0;
        }
    }
    for (int i = 0; i < filled; i++) dweight[i] += total(dots[i]);
}

/* From the inputs (E, L), and those before them in a->input, to the convolution's output after SiLU. */
static void FN(mixer_convolve)(const mlstm_block_sizes *size, const mlstm_block_weights *w, int64_t t, int64_t L,
                               mlstm_block_arrays *a) {
    const int64_t E = size->E, K = size->K, stride = HISTORY + size->chunk, ahead = L + LANES;
    if (a->age)
        for (int64_t lag = 0; lag < K; lag++)
            for (int64_t s = 0; s < ahead; s++) a->mask[lag * ahead + s] = t + s < size->S && a->age[t + s] >= lag;
    for (int64_t c = 0; c < E; c++)
        for (int64_t s = 0; s < L; s += WIDTH) {
            const float *x = a->input + c * stride + HISTORY + s;
            vec sum = splat(w->conv_bias[c]);
            for (int64_t lag = 0; lag < K; lag++) {
                const vec past = w->conv_weight[(K - 1 - lag) * E + c] * load(x - lag);
                sum += a->age ? past * load(a->mask + lag * ahead + s) : past;
            }
            const vec open = sigmoid(sum);
            store(a->silu_slope + c * L + s, open * (1.0f + sum * (1.0f - open)));
            store(a->convolved + c * L + s, sum * open);
        }
}

/* From the gradient of its output, a->dconvolved, to those of the inputs, added to a->dup, and of the `window` before
 * the sequence. `later` (E, LANES): the gradient before the SiLU in the first steps of the chunk after this one. */
static void FN(mixer_convolve_backward)(const mlstm_block_sizes *size, const mlstm_block_weights *w, int64_t t,
                                        int64_t L, const mlstm_block_arrays *a, float *later, float *dwindow,
                                        const mlstm_block_gradients *d) {
    const int64_t E = size->E, K = size->K, stride = HISTORY + size->chunk, ahead = L + LANES;
    for (int64_t channel = 0; channel < E; channel++) {
        const float *x = a->input + channel * stride + HISTORY;
        float *dx = a->dup + channel * L, *next = later + channel * LANES, dsum[MAX_LANES + LANES];
        vec bias = splat(0.0f);
        for (int64_t s = 0; s < L; s += WIDTH) {
            const vec dz = load(a->dconvolved + channel * L + s) * load(a->silu_slope + channel * L + s);
            store(dsum + s, dz);
            bias += dz;
        }
        memcpy(dsum + L, next, sizeof(float) * LANES);
        memcpy(next, dsum, sizeof(float) * LANES);
        d->conv_bias[channel] += total(bias);
        for (int64_t lag = 0; lag < K; lag++) {
            const float tap = w->conv_weight[(K - 1 - lag) * E + channel], *mask = a->mask + lag * ahead;
            float own_segment[MAX_LANES + LANES], *masked = a->age ? own_segment : dsum;
            vec sum = splat(0.0f);
            for (int64_t s = 0; a->age && s < ahead; s += WIDTH) store(masked + s, load(dsum + s) * load(mask + s));
            for (int64_t s = 0; s < L; s += WIDTH) {
                sum += load(masked + s) * load(x + s - lag);
                store(dx + s, load(dx + s) + tap * load(masked + s + lag));
            }
            d->conv_weight[(K - 1 - lag) * E + channel] += total(sum);
            if (t == 0)
                for (int64_t back = 1; back <= lag; back++)
                    dwindow[(K - 1 - back) * E + channel] += tap * masked[lag - back];
        }
    }
}

/* From the inputs to what the memory reads: a->qkv and a->gates, log f of the forget gates. */
static void FN(mixer_inputs)(const mlstm_block_sizes *size, const mlstm_block_weights *w, int64_t t, int64_t steps,
                             int64_t L, mlstm_block_arrays *a) {
    const int64_t E = size->E, NH = size->NH;
    FN(mixer_convolve)(size, w, t, L, a);
    FN(headwise)(size, L, w->q_weight, a->convolved, L, a->qkv);
    FN(headwise)(size, L, w->k_weight, a->convolved, L, a->qkv + E * L);
    FN(headwise)(size, L, w->v_weight, a->up, L, a->qkv + 2 * E * L);
    multiply(2 * NH, L, 3 * E, w->gate_weight, 3 * E, 1, a->qkv, L, a->gates, L, 0);
    for (int64_t g = 0; g < NH; g++) {
        float *i = a->gates + g * L, *f = i + NH * L;
        for (int64_t s = 0; s < L; s += WIDTH) {
            vec slope, unused;
            store(i + s, load(i + s) + w->gate_bias[g]);
            store(f + s, -softplus(-(load(f + s) + w->gate_bias[NH + g]), &slope, &unused));
            store(a->f_slope + g * L + s, slope);
        }
        for (int64_t s = 0; s < L; s++) {
            if (s >= steps) i[s] = -INFINITY, f[s] = 0.0f;
            else if (a->age && a->age[t + s] == 0) f[s] = -INFINITY;
        }
    }
}

/* Back from a->dqkv and a->dgates to a->dup, whose first half is written; a->dconvolved is used up. */
static void FN(mixer_inputs_backward)(const mlstm_block_sizes *size, const mlstm_block_weights *w, int64_t t,
                                      int64_t steps, int64_t L, const mlstm_block_arrays *a, float *later,
                                      float *dwindow, const mlstm_block_gradients *d) {
    const int64_t E = size->E, NH = size->NH, rows = whole(3 * E);
    for (int64_t g = 0; g < NH; g++) {
        float *df = a->dgates + (NH + g) * L;
        for (int64_t s = 0; s < L; s += WIDTH) store(df + s, load(df + s) * load(a->f_slope + g * L + s));
        for (int64_t s = steps; s < L; s++) df[s] = 0.0f;
    }
    transpose(a->qkv, L, 3 * E, L, a->steps, rows, rows);
    multiply(2 * NH, rows, steps, a->dgates, L, 1, a->steps, rows, d->gate_weight, rows, 1);
    for (int64_t g = 0; g < 2 * NH; g++)
        for (int64_t s = 0; s < L; s += WIDTH) d->gate_bias[g] += total(load(a->dgates + g * L + s));
    multiply(3 * E, L, 2 * NH, w->gate_weight, 1, 3 * E, a->dgates, L, a->dqkv, L, 1);

    memset(a->dup, 0, sizeof(float) * E * L);
    FN(headwise_backward)(size, L, w->q_weight, a->convolved, L, a->dqkv, a->dconvolved, d->q_weight);
    FN(headwise_backward)(size, L, w->k_weight, a->convolved, L, a->dqkv + E * L, a->dconvolved, d->k_weight);
    FN(headwise_backward)(size, L, w->v_weight, a->up, L, a->dqkv + 2 * E * L, a->dup, d->v_weight);
    FN(mixer_convolve_backward)(size, w, t, L, a, later, dwindow, d);
}

/* 1 / deviation of x (channels, L) for one vector of steps, around its mean or, without one, around 0. */
INLINE vec FN(moments)(const float *x, int64_t channels, int64_t L, float eps, vec *mean) {
    vec sum = splat(0.0f), squares = splat(0.0f);
    if (mean) {
        for (int64_t d = 0; d < channels; d++) sum += load(x + d * L);
        *mean = sum = sum / (float)channels;
    }
    for (int64_t d = 0; d < channels; d++) {
        const vec away = load(x + d * L) - sum;
        squares += away * away;
    }
    return 1.0f / square_root(squares / (float)channels + eps);
}

/* From h (DH, L) of head g to what the down-projection reads of it: head norm, skip, output gate. */
INLINE void FN(mixer_outputs)(const mlstm_block_sizes *size, const mlstm_block_weights *w, int64_t g, int64_t L,
                              const float *h, mlstm_block_arrays *a) {
    const int64_t DH = size->head.DV, gates = size->E * L;
    for (int64_t s = 0; s < L; s += WIDTH) {
        vec mean;
        const vec scale = FN(moments)(h + s, DH, L, size->head_norm_eps, &mean);
        for (int64_t d = 0; d < DH; d++) {
            const int64_t channel = g * DH + d, at = channel * L + s;
            const vec gate = load(a->up + gates + at),
                      normed = (load(h + d * L + s) - mean) * scale * w->head_norm[channel];
            store(a->mixed + at, (normed + w->skip[channel] * load(a->convolved + at)) * gate * sigmoid(gate));
        }
    }
}

/* From a->dmixed to the gradients of h, in its place, of the convolution's output and of the output gate; a->mixed is
 * computed again on the way. */
static void FN(mixer_outputs_backward)(const mlstm_block_sizes *size, const mlstm_block_weights *w, int64_t g,
                                       int64_t L, const float *h, const mlstm_block_arrays *a,
                                       const mlstm_block_gradients *d) {
    const int64_t DH = size->head.DV, gates = size->E * L;
    float means[MAX_LANES], scales[MAX_LANES], sums[MAX_LANES] = {0}, alongs[MAX_LANES] = {0};
    for (int64_t s = 0; s < L; s += WIDTH) {
        vec mean;
        store(scales + s, FN(moments)(h + s, DH, L, size->head_norm_eps, &mean));
        store(means + s, mean);
    }
    for (int64_t e = 0; e < DH; e++) {
        const int64_t channel = g * DH + e;
        const float weight = w->head_norm[channel], skip = w->skip[channel];
        vec dweight = splat(0.0f), dskip = splat(0.0f);
        for (int64_t s = 0; s < L; s += WIDTH) {
            const int64_t at = channel * L + s;
            const vec normed = (load(h + e * L + s) - load(means + s)) * load(scales + s), x = load(a->convolved + at);
            const vec gate = load(a->up + gates + at), open = sigmoid(gate), given = load(a->dmixed + at);
            const vec sum = normed * weight + x * skip, dsum = given * gate * open, dnormed = dsum * weight;
            store(a->mixed + at, sum * gate * open);
            store(a->dup + gates + at, given * sum * open * (1.0f + gate * (1.0f - open)));
            store(a->dconvolved + at, dsum * skip);
            store(a->dmixed + at, dnormed);
            store(sums + s, load(sums + s) + dnormed);
            store(alongs + s, load(alongs + s) + dnormed * normed);
            dweight += dsum * normed;
            dskip += dsum * x;
        }
        d->head_norm[channel] += total(dweight);
        d->skip[channel] += total(dskip);
    }
    for (int64_t e = 0; e < DH; e++)
        for (int64_t s = 0; s < L; s += WIDTH) {
            const int64_t at = (g * DH + e) * L + s;
            const vec scale = load(scales + s), normed = (load(h + e * L + s) - load(means + s)) * scale;
            const vec mean = (load(sums + s) + normed * load(alongs + s)) * (1.0f / (float)DH);
            store(a->dmixed + at, (load(a->dmixed + at) - mean) * scale);
        }
}
