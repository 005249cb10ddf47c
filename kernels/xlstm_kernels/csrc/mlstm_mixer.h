/* All of the paper's mLSTM block between its up- and its down-projection, one batch row at a time, forward and back:
 * convolution and SiLU, headwise maps, gates, memory, head norm, skip, output gate; included once an instruction set.
 *
 * A chunk of steps goes through all of it while it lies in the cache, channels by steps (E, L), so that every loop runs
 * along the steps. On the way back all but h, the normaliser, m and the memories is computed again from the input.
 * Shapes: B batch, S sequence, E inner dim, NH heads, DH head dim, K kernel size. Contiguous arrays of floats:
 *   lengths (B), or NULL: the steps of a row that are its own, the first ones; beyond them y and dup are zero
 *   up, dup (B, S, 2 E): the memory's input, then the output gate        y, dy (B, S, E)
 *   window (B, K - 1, E): the inputs before the sequence                 resets (B, S) bytes
 *   tape: see mlstm_mixer_tape                   memories (B, NH, chunks + 1, memory_floats) */

static void FN(find_ages)(const mlstm_mixer_sizes *size, const uint8_t *resets, int32_t *age) {
    int32_t last = (int32_t)size->K;
    for (int64_t t = 0; t < size->S; t++) age[t] = last = resets[t] ? 0 : last < size->K ? last + 1 : last;
}

/* out (channels, L) = a block-diagonal map of in (channels, L); weight [block, out, in]. */
INLINE void FN(headwise)(const mlstm_mixer_sizes *size, int64_t L, const float *weight, const float *in,
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
INLINE void FN(headwise_backward)(const mlstm_mixer_sizes *size, int64_t L, const float *weight, const float *in,
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

/* What the memory reads in the chunk at step t: all of `a` up to the gate. `up` and `window` are the row's. */
static void FN(mlstm_mixer_inputs)(const mlstm_mixer_sizes *size, const mlstm_mixer_weights *w, int64_t t,
                                   int64_t steps, int64_t L, const float *up, const float *window,
                                   mlstm_mixer_arrays *a) {
    const int64_t E = size->E, NH = size->NH, K = size->K, stride = HISTORY + L;
    transpose(up + t * 2 * E, 2 * E, steps, E, a->input + HISTORY, stride, L);
    transpose(up + t * 2 * E + E, 2 * E, steps, E, a->gate, L, L);
    for (int64_t lag = 1; lag < K; lag++) {
        const float *from = t - lag >= 0 ? up + (t - lag) * 2 * E : window + (K - 1 + t - lag) * E;
        for (int64_t c = 0; c < E; c++) a->input[c * stride + HISTORY - lag] = from[c];
    }
    if (a->age)
        for (int64_t lag = 0; lag < K; lag++)
            for (int64_t s = 0; s < L + LANES; s++)
                a->mask[lag * (L + LANES) + s] = t + s < size->S && a->age[t + s] >= lag;

    for (int64_t c = 0; c < E; c++)
        for (int64_t s = 0; s < L; s += WIDTH) {
            const float *x = a->input + c * stride + HISTORY + s;
            vec sum = splat(w->conv_bias[c]);
            for (int64_t lag = 0; lag < K; lag++) {
                const vec past = w->conv_weight[(K - 1 - lag) * E + c] * load(x - lag);
                sum += a->age ? past * load(a->mask + lag * (L + LANES) + s) : past;
            }
            const vec open = sigmoid(sum);
            store(a->silu_slope + c * L + s, open * (1.0f + sum * (1.0f - open)));
            store(a->convolved + c * L + s, sum * open);
        }
    FN(headwise)(size, L, w->q_weight, a->convolved, L, a->qkv);
    FN(headwise)(size, L, w->k_weight, a->convolved, L, a->qkv + E * L);
    FN(headwise)(size, L, w->v_weight, a->input + HISTORY, stride, a->qkv + 2 * E * L);

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

/* Mean and 1 / standard deviation of h (DH, L) over its channels, for one vector of steps. */
INLINE void FN(moments)(const float *h, int64_t DH, int64_t L, float eps, vec *mean, vec *scale) {
    vec sum = splat(0.0f), squares = splat(0.0f);
    for (int64_t d = 0; d < DH; d++) sum += load(h + d * L);
    *mean = sum / (float)DH;
    for (int64_t d = 0; d < DH; d++) {
        const vec away = load(h + d * L) - *mean;
        squares += away * away;
    }
    *scale = 1.0f / square_root(squares / (float)DH + eps);
}

static void FN(mlstm_mixer_forward)(const mlstm_mixer_sizes *size, int64_t b, const mlstm_mixer_weights *w,
                                    const float *up, const float *window, const uint8_t *resets, const int64_t *lengths,
                                    const float *c, const float *n, const float *m, float *y, float *tape,
                                    float *memories, float *c_out, float *n_out, float *m_out, float *work) {
    const mlstm_head head = size->head;
    const int64_t S = lengths ? lengths[b] : size->S, E = size->E, NH = size->NH, K = size->K, C = size->chunk,
                  DH = head.DV;
    const int64_t floats = memory_floats(&head), chunks = chunks_of(size->S, C);
    float *memory = work;
    mlstm_mixer_arrays a;
    mlstm_mixer_share(size, memory + NH * floats, &a);
    if (!resets) a.age = NULL;
    up += b * size->S * 2 * E, window += b * (K - 1) * E, y += b * size->S * E;
    if (tape) tape += b * mlstm_mixer_tape(size);
    if (a.age) FN(find_ages)(size, resets + b * size->S, a.age);
    for (int64_t g = 0; g < NH; g++) FN(gather_memory)(&head, b * NH + g, c, n, m, memory + g * floats);

    for (int64_t t = 0; t < S; t += C) {
        const int64_t steps = S - t < C ? S - t : C, L = whole(steps);
        float scratch[2 * MAX_LANES];
        prefetch(up + (t + C) * 2 * E, (S - t < 2 * C ? S - t - C : C) * 2 * E);
        FN(mlstm_mixer_inputs)(size, w, t, steps, L, up, window, &a);
        float *h_chunk = tape ? tape + t * E : a.h;
        for (int64_t g = 0; g < NH; g++) {
            float *kept = tape ? tape + chunks * C * (E + 2 * g) + 2 * t : scratch, *h = h_chunk + g * DH * L;
            if (memories)
                memcpy(memories + ((b * NH + g) * (chunks + 1) + t / C) * floats, memory + g * floats,
                       sizeof(float) * floats);
            FN(chunk_forward)(&head, L, a.qkv + g * DH * L, a.qkv + (E + g * DH) * L, a.qkv + (2 * E + g * DH) * L,
                              a.gates + g * L, a.gates + (NH + g) * L, memory + g * floats, h, kept, kept + L, a.rest);
            for (int64_t s = 0; s < L; s += WIDTH) {
                vec mean, scale;
                FN(moments)(h + s, DH, L, size->norm_eps, &mean, &scale);
                for (int64_t d = 0; d < DH; d++) {
                    const int64_t channel = g * DH + d, at = channel * L + s;
                    const vec gate = load(a.gate + at),
                              normed = (load(h + d * L + s) - mean) * scale * w->norm_weight[channel];
                    store(a.gate + at, (normed + w->skip[channel] * load(a.convolved + at)) * gate * sigmoid(gate));
                }
            }
        }
        FN(to_steps)(a.gate, L, steps, E, y + t * E, E);
    }
    for (int64_t g = 0; g < NH; g++) {
        const int64_t row = b * NH + g;
        if (memories)
            memcpy(memories + (row * (chunks + 1) + chunks_of(S, C)) * floats, memory + g * floats,
                   sizeof(float) * floats);
        FN(scatter_memory)(&head, row, memory + g * floats, c_out, n_out, m_out);
    }
    memset(y + S * E, 0, sizeof(float) * (size->S - S) * E);
}

static void FN(mlstm_mixer_backward)(const mlstm_mixer_sizes *size, int64_t b, const mlstm_mixer_weights *w,
                                     const float *up, const float *window, const uint8_t *resets,
                                     const int64_t *lengths, const float *tape, const float *memories, const float *dy,
                                     const float *dc, const float *dn, float *dup, float *dwindow, float *dc_out,
                                     float *dn_out, float *dweights, float *work) {
    const mlstm_head head = size->head;
    const int64_t S = lengths ? lengths[b] : size->S, E = size->E, NH = size->NH, K = size->K, C = size->chunk,
                  DH = head.DV;
    const int64_t floats = memory_floats(&head), chunks = chunks_of(size->S, C), rows = whole(3 * E);
    const mlstm_mixer_gradients d = mlstm_mixer_gradients_in(size, dweights);
    float *dmemory = work, *later = dmemory + NH * floats;
    mlstm_mixer_arrays a;
    mlstm_mixer_share(size, later + E * LANES, &a);
    if (!resets) a.age = NULL;
    up += b * size->S * 2 * E, window += b * (K - 1) * E, dy += b * size->S * E, tape += b * mlstm_mixer_tape(size);
    dup += b * size->S * 2 * E, dwindow += b * (K - 1) * E;
    if (a.age) FN(find_ages)(size, resets + b * size->S, a.age);
    for (int64_t g = 0; g < NH; g++) FN(gather_memory)(&head, b * NH + g, dc, dn, NULL, dmemory + g * floats);
    memset(dwindow, 0, sizeof(float) * (K - 1) * E);
    memset(dup + S * 2 * E, 0, sizeof(float) * (size->S - S) * 2 * E);
    memset(later, 0,
           sizeof(float) * E * LANES); /* the gradient before the SiLU in the first steps of the chunk after */

    for (int64_t t = (chunks_of(S, C) - 1) * C; t >= 0; t -= C) {
        const int64_t steps = S - t < C ? S - t : C, L = whole(steps), stride = HISTORY + L, ahead = L + LANES;
        if (t > 0) {
            prefetch(up + (t - C) * 2 * E, C * 2 * E);
            prefetch(dy + (t - C) * E, C * E);
            prefetch(tape + (t - C) * E, C * E);
        }
        FN(mlstm_mixer_inputs)(size, w, t, steps, L, up, window, &a);
        transpose(dy + t * E, E, steps, E, a.dh, L, L);
        for (int64_t g = 0; g < NH; g++) {
            const float *kept = tape + chunks * C * (E + 2 * g) + 2 * t, *h = tape + t * E + g * DH * L;
            const float *memory = memories + ((b * NH + g) * (chunks + 1) + t / C) * floats;
            float means[MAX_LANES], scales[MAX_LANES], sums[MAX_LANES] = {0}, alongs[MAX_LANES] = {0};
            for (int64_t s = 0; s < L; s += WIDTH) {
                vec mean, scale;
                FN(moments)(h + s, DH, L, size->norm_eps, &mean, &scale);
                store(means + s, mean);
                store(scales + s, scale);
            }
            for (int64_t e = 0; e < DH; e++) {
                const int64_t channel = g * DH + e;
                const float weight = w->norm_weight[channel], skip = w->skip[channel];
                vec dweight = splat(0.0f), dskip = splat(0.0f);
                for (int64_t s = 0; s < L; s += WIDTH) {
                    const int64_t at = channel * L + s;
                    const vec normed = (load(h + e * L + s) - load(means + s)) * load(scales + s),
                              x = load(a.convolved + at);
                    const vec gate = load(a.gate + at), open = sigmoid(gate), given = load(a.dh + at);
                    const vec dsum = given * gate * open, dnormed = dsum * weight;
                    store(a.dgate + at, given * (normed * weight + x * skip) * open * (1.0f + gate * (1.0f - open)));
                    store(a.dconvolved + at, dsum * skip);
                    store(a.dh + at, dnormed);
                    store(sums + s, load(sums + s) + dnormed);
                    store(alongs + s, load(alongs + s) + dnormed * normed);
                    dweight += dsum * normed;
                    dskip += dsum * x;
                }
                d.norm_weight[channel] += total(dweight);
                d.skip[channel] += total(dskip);
            }
            for (int64_t e = 0; e < DH; e++)
                for (int64_t s = 0; s < L; s += WIDTH) {
                    const int64_t at = (g * DH + e) * L + s;
                    const vec scale = load(scales + s), normed = (load(h + e * L + s) - load(means + s)) * scale;
                    const vec mean = (load(sums + s) + normed * load(alongs + s)) * (1.0f / (float)DH);
                    store(a.dh + at, (load(a.dh + at) - mean) * scale);
                }
            const int64_t q = g * DH * L, k = (E + g * DH) * L, v = (2 * E + g * DH) * L;
            float *di = a.dgates + g * L, *df = a.dgates + (NH + g) * L;
            FN(chunk_backward)(&head, L, a.qkv + q, a.qkv + k, a.qkv + v, a.gates + g * L, a.gates + (NH + g) * L,
                               memory, memory + floats, h, kept, kept + L, a.dh + q, dmemory + g * floats, a.dqkv + q,
                               a.dqkv + k, a.dqkv + v, di, df, a.rest);
            for (int64_t s = 0; s < L; s += WIDTH) store(df + s, load(df + s) * load(a.f_slope + g * L + s));
            for (int64_t s = steps; s < L; s++) df[s] = 0.0f;
        }

        transpose(a.qkv, L, 3 * E, L, a.steps, rows, rows);
        multiply(2 * NH, rows, steps, a.dgates, L, 1, a.steps, rows, d.gate_weight, rows, 1);
        for (int64_t g = 0; g < 2 * NH; g++)
            for (int64_t s = 0; s < L; s += WIDTH) d.gate_bias[g] += total(load(a.dgates + g * L + s));
        multiply(3 * E, L, 2 * NH, w->gate_weight, 1, 3 * E, a.dgates, L, a.dqkv, L, 1);

        memset(a.dinput, 0, sizeof(float) * E * L);
        FN(headwise_backward)(size, L, w->q_weight, a.convolved, L, a.dqkv, a.dconvolved, d.q_weight);
        FN(headwise_backward)(size, L, w->k_weight, a.convolved, L, a.dqkv + E * L, a.dconvolved, d.k_weight);
        FN(headwise_backward)(size, L, w->v_weight, a.input + HISTORY, stride, a.dqkv + 2 * E * L, a.dinput,
                              d.v_weight);

        for (int64_t channel = 0; channel < E; channel++) {
            const float *x = a.input + channel * stride + HISTORY;
            float *dx = a.dinput + channel * L, *next = later + channel * LANES, dsum[MAX_LANES + LANES];
            vec bias = splat(0.0f);
            for (int64_t s = 0; s < L; s += WIDTH) {
                const vec dz = load(a.dconvolved + channel * L + s) * load(a.silu_slope + channel * L + s);
                store(dsum + s, dz);
                bias += dz;
            }
            memcpy(dsum + L, next, sizeof(float) * LANES);
            memcpy(next, dsum, sizeof(float) * LANES);
            d.conv_bias[channel] += total(bias);
            for (int64_t lag = 0; lag < K; lag++) {
                const float tap = w->conv_weight[(K - 1 - lag) * E + channel], *mask = a.mask + lag * ahead;
                float own_segment[MAX_LANES + LANES], *masked = a.age ? own_segment : dsum;
                vec sum = splat(0.0f);
                for (int64_t s = 0; a.age && s < ahead; s += WIDTH) store(masked + s, load(dsum + s) * load(mask + s));
                for (int64_t s = 0; s < L; s += WIDTH) {
                    sum += load(masked + s) * load(x + s - lag);
                    store(dx + s, load(dx + s) + tap * load(masked + s + lag));
                }
                d.conv_weight[(K - 1 - lag) * E + channel] += total(sum);
                if (t == 0)
                    for (int64_t back = 1; back <= lag; back++)
                        dwindow[(K - 1 - back) * E + channel] += tap * masked[lag - back];
            }
        }
        FN(to_steps)(a.dinput, L, steps, E, dup + t * 2 * E, 2 * E);
        FN(to_steps)(a.dgate, L, steps, E, dup + t * 2 * E + E, 2 * E);
    }
    for (int64_t g = 0; g < NH; g++) FN(scatter_memory)(&head, b * NH + g, dmemory + g * floats, dc_out, dn_out, NULL);
}
