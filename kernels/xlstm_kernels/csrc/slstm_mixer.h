/* All of the paper's sLSTM block between its norm and its residual connection, one head of a few batch rows at a time:
 * convolution and SiLU, input gates, recurrence, head norm, forward and back; included once an instruction set.
 *
 * Shapes: B batch, S sequence, NH heads, DH head dim, a multiple of PANEL, D = NH DH, K kernel size. Contiguous arrays:
 *   x, dx, y, dy (B, S, D)         window (B, K - 1, D): the inputs before the sequence        resets (B, S) bytes
 *   tape (B, S, NH, 5, DH)         state (4, B, NH, DH): h, y, lam, m, as in slstm.h           dstate (3, B, NH, DH)
 *   lengths (B), or NULL, as in slstm.h: beyond a row's own steps y and dx are zero
 * At each step a row reads "operands", convolved x, h before and x beside each other (3, DH): gates i, f weigh the
 * first two, z, o the last two. Matrices lie in panels; of a head
 *   if_panels, zo_panels (2 DH, 2 DH): [operand, gate and unit]     back_panels (4 DH, 3 DH): [gate and unit, operand]
 * dweights: a block a thread, see slstm_mixer_gradients. */

INLINE const float *FN(input_at)(const slstm_mixer_sizes *size, int64_t row, int64_t t, const float *x,
                                 const float *window) {
    const int64_t D = size->NH * size->DH;
    return t >= 0 ? x + (row * size->S + t) * D : window + ((row + 1) * (size->K - 1) + t) * D;
}

/* The convolution of one head's channels before the SiLU; `past` earlier inputs are of the same segment. */
INLINE void FN(convolve)(const slstm_mixer_sizes *size, int64_t row, int64_t t, int64_t channel, int64_t past,
                         const float *x, const float *window, const float *weight, const float *bias, float *out) {
    const int64_t D = size->NH * size->DH;
    for (int64_t d = 0; d < size->DH; d += WIDTH) {
        vec sum = load(bias + channel + d);
        for (int64_t lag = 0; lag <= past; lag++)
            sum += load(weight + (size->K - 1 - lag) * D + channel + d) *
                   load(FN(input_at)(size, row, t - lag, x, window) + channel + d);
        store(out + d, sum);
    }
}

/* Steps since each row's last reset, at most K - 1: the number of earlier inputs that its convolution reads. */
static void FN(find_past)(const slstm_mixer_sizes *size, int64_t first, int count, const uint8_t *resets,
                          int32_t *past) {
    for (int r = 0; r < count; r++) {
        int32_t steps = (int32_t)size->K - 1;
        for (int64_t t = 0; t < size->S; t++) {
            if (resets && resets[(first + r) * size->S + t]) steps = 0;
            else if (t > 0 && steps < size->K - 1) steps++;
            past[r * size->S + t] = steps;
        }
    }
}

static void FN(slstm_mixer_rows)(const slstm_mixer_sizes *size, row_block block, const slstm_mixer_weights *w,
                                 const float *x, const float *window, const uint8_t *resets, const int64_t *lengths,
                                 const float *state, float *out, float *tape, float *state_out, float *work) {
    const int64_t S = size->S, NH = size->NH, DH = size->DH, D = NH * DH, leaf = size->B * D;
    const int64_t head = block.head, first = block.first, channel = head * DH;
    const int count = block.count, rows = count <= 4 ? 4 : 8;
    float *operands = work, *gates = operands + rows * 3 * DH, *y = gates + rows * 4 * DH, *lam = y + rows * DH;
    float *m = lam + rows * DH;
    int32_t *past = (int32_t *)(m + rows * DH);
    int64_t own[MAX_ROWS];
    FN(own_steps)(lengths, first, count, S, own);
    FN(find_past)(size, first, count, resets, past);
    memset(operands, 0, sizeof(float) * rows * 3 * DH);
    for (int r = 0; r < count; r++) {
        const float *from = state + (first + r) * D + channel;
        memcpy(operands + r * 3 * DH + DH, from, sizeof(float) * DH);
        for (int part = 1; part < 4; part++)
            memcpy(y + ((part - 1) * rows + r) * DH, from + part * leaf, sizeof(float) * DH);
    }
    for (int64_t t = 0; t < S; t++) {
        for (int r = 0; r < count; r++) {
            if (t >= own[r]) continue;
            float *convolved = operands + r * 3 * DH, *h = convolved + DH;
            FN(convolve)(size, first + r, t, channel, past[r * S + t], x, window, w->conv_weight, w->conv_bias,
                         convolved);
            for (int64_t d = 0; d < DH; d += WIDTH)
                store(convolved + d, load(convolved + d) * sigmoid(load(convolved + d)));
            memcpy(h + DH, x + ((first + r) * S + t) * D + channel, sizeof(float) * DH);
            if (resets && resets[(first + r) * S + t])
                for (int64_t d = 0; d < DH; d++) {
                    h[d] = y[r * DH + d] = 0.0f;
                    lam[r * DH + d] = m[r * DH + d] = -INFINITY;
                }
        }
        project(rows, operands, 3 * DH, w->if_panels + head * 4 * DH * DH, 2 * DH, 2 * DH, gates, 4 * DH);
        project(rows, operands + DH, 3 * DH, w->zo_panels + head * 4 * DH * DH, 2 * DH, 2 * DH, gates + 2 * DH, 4 * DH);
        for (int r = 0; r < count; r++) {
            const int64_t step = (first + r) * S + t;
            if (t >= own[r]) {
                memset(out + step * D + channel, 0, sizeof(float) * DH);
                continue;
            }
            const float *pre = gates + r * 4 * DH, *b = w->bias + channel;
            float *h = operands + r * 3 * DH + DH, *record = tape ? tape + (step * NH + head) * 5 * DH : NULL;
            for (int64_t d = 0; t + AHEAD < S && d < DH; d += LANES) {
                __builtin_prefetch(x + (step + AHEAD) * D + channel + d);
                __builtin_prefetch(out + (step + AHEAD) * D + channel + d, 1);
                for (int part = 0; record && part < 5; part++)
                    __builtin_prefetch(record + AHEAD * 5 * D + part * DH + d, 1);
            }
            for (int64_t d = 0; d < DH; d += WIDTH) {
                const int64_t at = r * DH + d;
                slstm_cell cell = {load(y + at), load(lam + at), load(m + at)};
                const slstm_record kept =
                    slstm_forward(load(pre + d) + load(b + d), load(pre + DH + d) + load(b + D + d),
                                  load(pre + 2 * DH + d) + load(b + 2 * D + d),
                                  load(pre + 3 * DH + d) + load(b + 3 * D + d), 0, &cell);
                store(y + at, cell.y);
                store(lam + at, cell.lam);
                store(m + at, cell.m);
                store(h + d, kept.o * cell.y);
                if (record) slstm_store(record + d, DH, kept, cell.y);
            }
            FN(standardise)(h, DH, w->norm_weight + channel, size->norm_eps, out + step * D + channel);
        }
    }
    for (int r = 0; r < count; r++) {
        float *to = state_out + (first + r) * D + channel;
        memcpy(to, operands + r * 3 * DH + DH, sizeof(float) * DH);
        for (int part = 1; part < 4; part++)
            memcpy(to + part * leaf, y + ((part - 1) * rows + r) * DH, sizeof(float) * DH);
    }
}

/* Back through the head norm of one step: dh from dy, and the weight's gradient. */
INLINE void FN(standardise_backward)(const float *h, int64_t DH, const float *weight, float eps, const float *dy,
                                     float *dh, float *dweight) {
    const float mean = FN(sum)(h, DH) / (float)DH;
    vec squares = splat(0.0f), sums = splat(0.0f), alongs = splat(0.0f);
    for (int64_t d = 0; d < DH; d += WIDTH) squares += (load(h + d) - mean) * (load(h + d) - mean);
    const float scale = 1.0f / sqrtf(total(squares) / (float)DH + eps);
    for (int64_t d = 0; d < DH; d += WIDTH) {
        const vec normed = (load(h + d) - mean) * scale, dnormed = load(dy + d) * load(weight + d);
        store(dweight + d, load(dweight + d) + load(dy + d) * normed);
        sums += dnormed;
        alongs += dnormed * normed;
    }
    const float sum = total(sums) / (float)DH, along = total(alongs) / (float)DH;
    for (int64_t d = 0; d < DH; d += WIDTH) {
        const vec normed = (load(h + d) - mean) * scale, dnormed = load(dy + d) * load(weight + d);
        store(dh + d, (dnormed - sum - normed * along) * scale);
    }
}

static void FN(slstm_mixer_rows_backward)(const slstm_mixer_sizes *size, row_block block, const slstm_mixer_weights *w,
                                          const float *x, const float *window, const uint8_t *resets,
                                          const int64_t *lengths, const float *state, const float *tape,
                                          const float *dout, const float *dstate, float *dx, float *dwindow,
                                          float *dstate_out, float *dweights, float *work) {
    const int64_t S = size->S, NH = size->NH, DH = size->DH, D = NH * DH, leaf = size->B * D, K = size->K;
    const int64_t head = block.head, first = block.first, channel = head * DH;
    const int count = block.count, rows = count <= 4 ? 4 : 8;
    const slstm_mixer_gradients to = slstm_mixer_gradients_in(size, dweights);
    /* Gates' gradients and operands of several steps, for one product; gradients of a step's operands; of the
     * convolution's sums at the K - 1 steps after this one; of y and lam (p, q). */
    float *dgates = work, *operands = dgates + rows * SLSTM_STEPS * 4 * DH,
          *doperands = operands + rows * SLSTM_STEPS * 3 * DH;
    float *ahead = doperands + rows * 3 * DH, *dh = ahead + rows * K * DH, *p = dh + rows * DH, *q = p + rows * DH;
    float *h_now = q + rows * DH, *before_silu = h_now + DH;
    int32_t *past = (int32_t *)(before_silu + rows * DH);
    FN(find_past)(size, first, count, resets, past);
    memset(work, 0, sizeof(float) * (q + rows * DH - work));
    int64_t own[MAX_ROWS], filled = 0;
    FN(own_steps)(lengths, first, count, S, own);
    for (int64_t t = S - 1; t >= 0; t--) {
        float *dgates_now = dgates + filled * rows * 4 * DH, *operands_now = operands + filled * rows * 3 * DH;
        for (int r = 0; r < count; r++) {
            const int64_t step = (first + r) * S + t;
            const float *record = tape + (step * NH + head) * 5 * DH, *b_record = record - NH * 5 * DH;
            float *convolved = operands_now + r * 3 * DH, *h_before = convolved + DH, *dgate = dgates_now + r * 4 * DH;
            float *z = before_silu + r * DH;
            if (t >= own[r]) {
                memset(dx + step * D + channel, 0, sizeof(float) * DH);
                continue;
            }
            if (t == own[r] - 1) { /* only here, because the product clears what rows that wait would hold */
                const float *from = dstate + (first + r) * D + channel;
                memcpy(doperands + r * 3 * DH + DH, from, sizeof(float) * DH);
                memcpy(p + r * DH, from + leaf, sizeof(float) * DH);
                memcpy(q + r * DH, from + 2 * leaf, sizeof(float) * DH);
            }
            FN(convolve)(size, first + r, t, channel, past[r * S + t], x, window, w->conv_weight, w->conv_bias, z);
            memcpy(h_before + DH, x + step * D + channel, sizeof(float) * DH);
            const int reset = resets && resets[step];
            for (int64_t d = 0; t >= AHEAD && d < DH; d += LANES) {
                __builtin_prefetch(x + (step - AHEAD) * D + channel + d);
                __builtin_prefetch(dout + (step - AHEAD) * D + channel + d);
                __builtin_prefetch(dx + (step - AHEAD) * D + channel + d, 1);
                for (int part = 0; part < 5; part++) __builtin_prefetch(record - AHEAD * 5 * D + part * DH + d);
            }
            for (int64_t d = 0; d < DH; d += WIDTH) {
                store(convolved + d, load(z + d) * sigmoid(load(z + d)));
                store(h_now + d, load(record + DH + d) * load(record + 3 * DH + d));
                store(h_before + d, reset   ? splat(0.0f)
                                    : t > 0 ? load(b_record + DH + d) * load(b_record + 3 * DH + d)
                                            : load(state + (first + r) * D + channel + d));
            }
            FN(standardise_backward)(h_now, DH, w->norm_weight + channel, size->norm_eps, dout + step * D + channel, dh,
                                     to.norm_weight + channel);
            for (int64_t d = 0; d < DH; d += WIDTH) {
                slstm_gradient of = {load(p + r * DH + d), load(q + r * DH + d)};
                const vec g = load(dh + d) + load(doperands + r * 3 * DH + DH + d);
                const slstm_gates back = slstm_backward(slstm_load(record + d, DH), load(record + 3 * DH + d), g, &of);
                store(p + r * DH + d, of.y);
                store(q + r * DH + d, of.lam);
                const vec parts[4] = {back.i, back.f, back.z, back.o};
                EACH (gate, 4) {
                    float *bias = to.bias + gate * D + channel + d;
                    store(dgate + gate * DH + d, parts[gate]);
                    store(bias, load(bias) + parts[gate]);
                }
            }
        }
        project(rows, dgates_now, 4 * DH, w->back_panels + head * 12 * DH * DH, 4 * DH, 3 * DH, doperands, 3 * DH);
        for (int r = 0; r < count; r++) {
            const int64_t step = (first + r) * S + t;
            float *of = doperands + r * 3 * DH, *next = ahead + r * K * DH;
            if (t >= own[r]) continue;
            for (int64_t lag = K - 1; lag > 0; lag--)
                memcpy(next + lag * DH, next + (lag - 1) * DH, sizeof(float) * DH);
            for (int64_t d = 0; d < DH; d += WIDTH) {
                const vec z = load(before_silu + r * DH + d), open = sigmoid(z);
                const vec dz = load(of + d) * open * (1.0f + z * (1.0f - open));
                vec sum = load(of + 2 * DH + d);
                store(next + d, dz);
                store(to.conv_bias + channel + d, load(to.conv_bias + channel + d) + dz);
                for (int64_t lag = 0; lag < K; lag++) {
                    const int64_t tap = (K - 1 - lag) * D + channel + d;
                    if (t + lag < S && past[r * S + t + lag] >= lag)
                        sum += load(w->conv_weight + tap) * load(next + lag * DH + d);
                    if (past[r * S + t] >= lag)
                        store(to.conv_weight + tap,
                              load(to.conv_weight + tap) +
                                  dz * load(FN(input_at)(size, first + r, t - lag, x, window) + channel + d));
                }
                store(dx + step * D + channel + d, sum);
            }
            if (resets && resets[step]) {
                memset(of + DH, 0, sizeof(float) * DH);
                memset(p + r * DH, 0, sizeof(float) * DH);
                memset(q + r * DH, 0, sizeof(float) * DH);
            }
        }
        if (++filled == SLSTM_STEPS || t == 0) {
            float *matrix = to.matrices + head * 12 * DH * DH;
            multiply(2 * DH, 2 * DH, filled * rows, dgates, 1, 4 * DH, operands, 3 * DH, matrix, 3 * DH, 1);
            multiply(2 * DH, 2 * DH, filled * rows, dgates + 2 * DH, 1, 4 * DH, operands + DH, 3 * DH,
                     matrix + 2 * DH * 3 * DH + DH, 3 * DH, 1);
            filled = 0;
        }
    }
    for (int r = 0; r < count; r++) {
        float *given = dstate_out + (first + r) * D + channel;
        const float *after = dstate + (first + r) * D + channel;
        memcpy(given, own[r] ? doperands + r * 3 * DH + DH : after, sizeof(float) * DH);
        memcpy(given + leaf, own[r] ? p + r * DH : after + leaf, sizeof(float) * DH);
        memcpy(given + 2 * leaf, own[r] ? q + r * DH : after + 2 * leaf, sizeof(float) * DH);
        /* The inputs before the sequence: `back` steps before its first, they reach step lag - back. */
        for (int64_t back = 1; back < K; back++)
            for (int64_t d = 0; d < DH; d++) {
                float sum = 0.0f;
                for (int64_t lag = back; lag < K && lag - back < S; lag++)
                    if (past[r * S + lag - back] >= lag)
                        sum += w->conv_weight[(K - 1 - lag) * D + channel + d] * ahead[(r * K + lag - back) * DH + d];
                dwindow[((first + r) * (K - 1) + K - 1 - back) * D + channel + d] = sum;
            }
    }
}
