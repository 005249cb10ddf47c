/* The sLSTM recurrence of one head over a few batch rows, forward and backward; included once an instruction set.
 *
 * States are y = c / n, lam = m + log n and the stabiliser m (xlstm_kernels/ops/slstm/average.py). Shapes: B batch,
 * S sequence, NH heads, DH head dim, a multiple of PANEL. All arrays are contiguous floats:
 *   gates, dgates (B, S, 4, NH, DH) in the order i, f, z, o    bias (4, NH, DH)     h, dh (B, S, NH, DH)
 *   tape (B, S, NH, 5, DH): z, o, alpha, y, slope of log f     resets (B, S) bytes, or NULL
 *   state (4, B, NH, DH): h, y, lam, m                         dstate (3, B, NH, DH): of h, y, lam
 *   lengths (B), or NULL: the steps of a row that are its own, the first ones. The others hold
 *   no reset; they leave its state, and on the way back its gradient, as they are: h and dgates are zero there, the
 *   tape is neither written nor read.
 *   clip bounds what flows back through the recurrent weights into h, entry by entry; INFINITY does not.      */

/* How many steps of each row are its own. */
INLINE void FN(own_steps)(const int64_t *lengths, int64_t first, int count, int64_t S, int64_t *own) {
    for (int r = 0; r < count; r++) own[r] = lengths ? lengths[first + r] : S;
}

/* A row's states from arrays (parts, B, NH, DH) to the working arrays (parts, rows, DH), and back. */
INLINE void FN(read_state)(int parts, const float *from, int64_t leaf, float *to, int rows, int64_t DH) {
    for (int part = 0; part < parts; part++) memcpy(to + part * rows * DH, from + part * leaf, sizeof(float) * DH);
}
INLINE void FN(write_state)(int parts, const float *from, int rows, int64_t DH, float *to, int64_t leaf) {
    for (int part = 0; part < parts; part++) memcpy(to + part * leaf, from + part * rows * DH, sizeof(float) * DH);
}

/* Where a pointwise loop finds its four gates: one base, and the distance between them. */
#define GATE(base, g) ((base) + (g) * NH * DH + d)

static void FN(forward_rows)(const slstm_sizes *size, int64_t head, int64_t first, int count, const float *gates,
                             const float *bias, const float *panels, const uint8_t *resets, const int64_t *lengths,
                             const float *state, float *h_out, float *tape, float *state_out, int exponential_forget,
                             float *work) {
    const int64_t S = size->S, NH = size->NH, DH = size->DH, leaf = size->B * NH * DH;
    const int rows = count <= 4 ? 4 : 8;
    int64_t own[MAX_ROWS];
    FN(own_steps)(lengths, first, count, S, own);
    float *mixed = work, *h = mixed + rows * 4 * DH, *y = h + rows * DH, *lam = y + rows * DH, *m = lam + rows * DH;
    memset(h, 0, sizeof(float) * rows * DH);
    for (int r = 0; r < count; r++) FN(read_state)(4, state + ((first + r) * NH + head) * DH, leaf, h + r * DH, rows, DH);
    for (int64_t t = 0; t < S; t++) {
        for (int r = 0; resets && r < count; r++)
            if (resets[(first + r) * S + t])
                for (int64_t d = 0; d < DH; d++) {
                    h[r * DH + d] = y[r * DH + d] = 0.0f;
                    lam[r * DH + d] = m[r * DH + d] = -INFINITY;
                }
        product(rows, h, panels + head * 4 * DH * DH, DH, 4 * DH, mixed);
        for (int r = 0; r < count; r++) {
            const int64_t step = (first + r) * S + t;
            const float *given = gates + step * 4 * NH * DH + head * DH, *b = bias + head * DH, *mix = mixed + r * 4 * DH;
            float *h_step = h_out + (step * NH + head) * DH;
            if (t >= own[r]) {
                memset(h_step, 0, sizeof(float) * DH);
                continue;
            }
            float *record = tape ? tape + (step * NH + head) * 5 * DH : NULL;
            for (int64_t d = 0; d < DH; d += WIDTH) {
                const int64_t at = r * DH + d;
                const vec i = load(GATE(given, 0)) + load(GATE(b, 0)) + load(mix + d);
                const vec f = load(GATE(given, 1)) + load(GATE(b, 1)) + load(mix + DH + d);
                const vec z = hyperbolic_tangent(load(GATE(given, 2)) + load(GATE(b, 2)) + load(mix + 2 * DH + d));
                const vec o = sigmoid(load(GATE(given, 3)) + load(GATE(b, 3)) + load(mix + 3 * DH + d));
                vec f_slope = splat(1.0f), alpha, unused, kept, lam_after;
                const vec lam_before = load(lam + at), m_before = load(m + at);
                if (exponential_forget) { /* lam is relative to m: average.py, advance_relative */
                    const vec x = i - m_before - f - lam_before;
                    kept = f + m_before;
                    const vec m_after = select((ivec)(kept > i), kept, i);
                    const vec grown = lam_before + (f - (m_after - m_before)) + softplus(x, &alpha, &unused);
                    const vec written = softplus(-x, &unused, &unused);
                    lam_after = select((ivec)(x == INFINITY), i - m_after, grown);
                    lam_after = select((ivec)(i > kept), written, lam_after);
                } else {
                    const vec logf = -softplus(-f, &f_slope, &unused);
                    /* In this order: lam + logf would round the small logf away, the same way at every step. */
                    const vec x = i - logf - lam_before;
                    kept = logf + m_before;
                    lam_after = i + softplus(-x, &unused, &alpha);
                }
                const vec y_after = load(y + at) + alpha * (z - load(y + at)), h_after = o * y_after;
                store(m + at, select((ivec)(kept > i), kept, i));
                store(lam + at, lam_after);
                store(y + at, y_after);
                store(h + at, h_after);
                store(h_step + d, h_after);
                if (record) {
                    store(record + d, z);
                    store(record + DH + d, o);
                    store(record + 2 * DH + d, alpha);
                    store(record + 3 * DH + d, y_after);
                    store(record + 4 * DH + d, f_slope);
                }
            }
        }
    }
    for (int r = 0; r < count; r++)
        FN(write_state)(4, h + r * DH, rows, DH, state_out + ((first + r) * NH + head) * DH, leaf);
}

static void FN(backward_rows)(const slstm_sizes *size, int64_t head, int64_t first, int count, const float *panels,
                              const uint8_t *resets, const int64_t *lengths, const float *tape, const float *dh,
                              const float *dstate, float *dgates, float *dstate_out, float clip, float *work) {
    const int64_t S = size->S, NH = size->NH, DH = size->DH, leaf = size->B * NH * DH;
    const int rows = count <= 4 ? 4 : 8;
    /* p and q carry the gradients of y and lam; mixed that of the h which the step before hands on. */
    float *dmixed = work, *mixed = dmixed + rows * 4 * DH, *p = mixed + rows * DH, *q = p + rows * DH;
    int64_t own[MAX_ROWS];
    FN(own_steps)(lengths, first, count, S, own);
    memset(dmixed, 0, sizeof(float) * rows * 4 * DH);
    for (int64_t t = S - 1; t >= 0; t--) {
        for (int r = 0; r < count; r++) {
            const int64_t step = (first + r) * S + t;
            const float *record = tape + (step * NH + head) * 5 * DH, *dh_step = dh + (step * NH + head) * DH;
            float *to = dgates + step * 4 * NH * DH + head * DH, *dmix = dmixed + r * 4 * DH;
            if (t >= own[r]) {
                for (int gate = 0; gate < 4; gate++) memset(to + gate * NH * DH, 0, sizeof(float) * DH);
                continue;
            }
            if (t == own[r] - 1) /* only here, because the product clears what rows that wait would hold */
                FN(read_state)(3, dstate + ((first + r) * NH + head) * DH, leaf, mixed + r * DH, rows, DH);
            for (int64_t d = 0; d < DH; d += WIDTH) {
                const int64_t at = r * DH + d;
                const vec z = load(record + d), o = load(record + DH + d), alpha = load(record + 2 * DH + d);
                const vec y = load(record + 3 * DH + d), f_slope = load(record + 4 * DH + d);
                const vec g = load(dh_step + d) + load(mixed + at);
                const vec p_here = load(p + at) + g * o;
                const vec di = alpha * (load(q + at) + p_here * (z - y));
                const vec q_before = load(q + at) - di;
                const vec df = q_before * f_slope;
                const vec dz = alpha * p_here * (1.0f - z * z);
                const vec doo = g * o * y * (1.0f - o);
                store(GATE(to, 0), di);
                store(GATE(to, 1), df);
                store(GATE(to, 2), dz);
                store(GATE(to, 3), doo);
                store(dmix + d, di);
                store(dmix + DH + d, df);
                store(dmix + 2 * DH + d, dz);
                store(dmix + 3 * DH + d, doo);
                store(p + at, p_here * (1.0f - alpha));
                store(q + at, q_before);
            }
        }
        product(rows, dmixed, panels + head * 4 * DH * DH, 4 * DH, DH, mixed);
        for (int64_t at = 0; clip < INFINITY && at < rows * DH; at += WIDTH)
            store(mixed + at, at_most(at_least(load(mixed + at), splat(-clip)), splat(clip)));
        for (int r = 0; resets && r < count; r++)
            if (resets[(first + r) * S + t])
                for (int part = 0; part < 3; part++) memset(mixed + (part * rows + r) * DH, 0, sizeof(float) * DH);
    }
    for (int r = 0; r < count; r++) {
        const int64_t row = ((first + r) * NH + head) * DH;
        if (own[r] == 0) FN(read_state)(3, dstate + row, leaf, mixed + r * DH, rows, DH);
        FN(write_state)(3, mixed + r * DH, rows, DH, dstate_out + row, leaf);
    }
}
