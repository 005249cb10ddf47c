/* The sLSTM recurrence of one head over a few batch rows, forward and backward; included once an instruction set.
 *
 * The step itself is in slstm_cell.h. Shapes: B batch, S sequence, NH heads, DH head dim, a multiple of PANEL.
 * All arrays are contiguous floats:
 *   gates, dgates (B, S, 4, NH, DH) in the order i, f, z, o    bias (4, NH, DH)     h, dh (B, S, NH, DH)
 *   tape (B, S, NH, 5, DH): z, o, alpha, y, slope of log f     resets (B, S) bytes, or NULL
 *   state (4, B, NH, DH): h, y, lam, m                         dstate (3, B, NH, DH): of h, y, lam
 *   lengths (B), or NULL: the steps of a row that are its own, the first ones. The others hold
 *   no reset; they leave its state, and on the way back its gradient, as they are: h and dgates are zero there, the
 *   tape is neither written nor read.
 *   dweights: gradients of the bias and the recurrent weight are added to it, see slstm_weight_floats
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

static void FN(slstm_rows)(const slstm_sizes *size, row_block block, const float *gates, const float *bias,
                           const float *panels, const uint8_t *resets, const int64_t *lengths, const float *state,
                           float *h_out, float *tape, float *state_out, int exponential_forget, float *work) {
    const int64_t S = size->S, NH = size->NH, DH = size->DH, leaf = size->B * NH * DH, head = block.head,
                  first = block.first;
    const int count = block.count, rows = count <= 4 ? 4 : 8;
    int64_t own[MAX_ROWS];
    FN(own_steps)(lengths, first, count, S, own);
    float *mixed = work, *h = mixed + rows * 4 * DH, *y = h + rows * DH, *lam = y + rows * DH, *m = lam + rows * DH;
    memset(h, 0, sizeof(float) * rows * DH);
    for (int r = 0; r < count; r++)
        FN(read_state)(4, state + ((first + r) * NH + head) * DH, leaf, h + r * DH, rows, DH);
    for (int64_t t = 0; t < S; t++) {
        for (int r = 0; resets && r < count; r++)
            if (resets[(first + r) * S + t])
                for (int64_t d = 0; d < DH; d++) {
                    h[r * DH + d] = y[r * DH + d] = 0.0f;
                    lam[r * DH + d] = m[r * DH + d] = -INFINITY;
                }
        project(rows, h, DH, panels + head * 4 * DH * DH, DH, 4 * DH, mixed, 4 * DH);
        for (int r = 0; r < count; r++) {
            const int64_t step = (first + r) * S + t;
            const float *given = gates + step * 4 * NH * DH + head * DH, *b = bias + head * DH,
                        *mix = mixed + r * 4 * DH;
            float *h_step = h_out + (step * NH + head) * DH;
            if (t >= own[r]) {
                memset(h_step, 0, sizeof(float) * DH);
                continue;
            }
            float *record = tape ? tape + (step * NH + head) * 5 * DH : NULL;
            /* More streams than the hardware follows by itself: rows times gates. */
            for (int64_t d = 0; t + AHEAD < S && d < DH; d += LANES) {
                for (int gate = 0; gate < 4; gate++) __builtin_prefetch(GATE(given + AHEAD * 4 * NH * DH, gate));
                for (int part = 0; record && part < 5; part++)
                    __builtin_prefetch(record + AHEAD * 5 * NH * DH + part * DH + d, 1);
            }
            for (int64_t d = 0; d < DH; d += WIDTH) {
                const int64_t at = r * DH + d;
                const vec i = load(GATE(given, 0)) + load(GATE(b, 0)) + load(mix + d);
                const vec f = load(GATE(given, 1)) + load(GATE(b, 1)) + load(mix + DH + d);
                const vec z = load(GATE(given, 2)) + load(GATE(b, 2)) + load(mix + 2 * DH + d);
                const vec o = load(GATE(given, 3)) + load(GATE(b, 3)) + load(mix + 3 * DH + d);
                slstm_cell cell = {load(y + at), load(lam + at), load(m + at)};
                const slstm_record kept = slstm_forward(i, f, z, o, exponential_forget, &cell);
                store(y + at, cell.y);
                store(lam + at, cell.lam);
                store(m + at, cell.m);
                store(h + at, kept.o * cell.y);
                store(h_step + d, kept.o * cell.y);
                if (record) slstm_store(record + d, DH, kept, cell.y);
            }
        }
    }
    for (int r = 0; r < count; r++)
        FN(write_state)(4, h + r * DH, rows, DH, state_out + ((first + r) * NH + head) * DH, leaf);
}

static void FN(slstm_rows_backward)(const slstm_sizes *size, row_block block, const float *panels,
                                    const uint8_t *resets, const int64_t *lengths, const float *state,
                                    const float *tape, const float *dh, const float *dstate, float *dgates,
                                    float *dstate_out, float *dweights, float clip, float *work) {
    const int64_t S = size->S, NH = size->NH, DH = size->DH, leaf = size->B * NH * DH, head = block.head,
                  first = block.first;
    const int count = block.count, rows = count <= 4 ? 4 : 8;
    /* Gates' gradients and the h that they read, of several steps, for one product; p and q carry the gradients of y
     * and lam, mixed that of the h which the step before hands on. */
    float *dmixed_steps = work, *h_steps = dmixed_steps + rows * SLSTM_STEPS * 4 * DH;
    float *mixed = h_steps + rows * SLSTM_STEPS * DH, *p = mixed + rows * DH, *q = p + rows * DH;
    float *dbias = dweights + head * DH, *dweight = dweights + 4 * NH * DH + head * 4 * DH * DH;
    int64_t filled = 0;
    int64_t own[MAX_ROWS];
    FN(own_steps)(lengths, first, count, S, own);
    memset(work, 0, sizeof(float) * rows * SLSTM_STEPS * 5 * DH); /* rows that wait give nothing */
    for (int64_t t = S - 1; t >= 0; t--) {
        float *dmixed = dmixed_steps + filled * rows * 4 * DH, *h_before = h_steps + filled * rows * DH;
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
            for (int64_t d = 0; t >= AHEAD && d < DH; d += LANES) {
                for (int gate = 0; gate < 4; gate++) __builtin_prefetch(GATE(to - AHEAD * 4 * NH * DH, gate), 1);
                for (int part = 0; part < 5; part++) __builtin_prefetch(record - AHEAD * 5 * NH * DH + part * DH + d);
                __builtin_prefetch(dh_step - AHEAD * NH * DH + d);
            }
            for (int64_t d = 0; d < DH; d += WIDTH) {
                const int64_t at = r * DH + d;
                slstm_gradient of = {load(p + at), load(q + at)};
                const vec g = load(dh_step + d) + load(mixed + at);
                const slstm_gates back = slstm_backward(slstm_load(record + d, DH), load(record + 3 * DH + d), g, &of);
                const vec parts[4] = {back.i, back.f, back.z, back.o};
                EACH (gate, 4) {
                    store(GATE(to, gate), parts[gate]);
                    store(dmix + gate * DH + d, parts[gate]);
                    store(GATE(dbias, gate), load(GATE(dbias, gate)) + parts[gate]);
                }
                const float *earlier = record - NH * 5 * DH + d;
                store(h_before + at, resets && resets[step] ? splat(0.0f)
                                     : t > 0                ? load(earlier + DH) * load(earlier + 3 * DH)
                                                            : load(state + ((first + r) * NH + head) * DH + d));
                store(p + at, of.y);
                store(q + at, of.lam);
            }
        }
        project(rows, dmixed, 4 * DH, panels + head * 4 * DH * DH, 4 * DH, DH, mixed, DH);
        for (int64_t at = 0; clip < INFINITY && at < rows * DH; at += WIDTH)
            store(mixed + at, at_most(at_least(load(mixed + at), splat(-clip)), splat(clip)));
        for (int r = 0; resets && r < count; r++)
            if (resets[(first + r) * S + t])
                for (int part = 0; part < 3; part++) memset(mixed + (part * rows + r) * DH, 0, sizeof(float) * DH);
        if (++filled == SLSTM_STEPS || t == 0) {
            multiply(4 * DH, DH, filled * rows, dmixed_steps, 1, 4 * DH, h_steps, DH, dweight, DH, 1);
            filled = 0;
        }
    }
    for (int r = 0; r < count; r++) {
        const int64_t row = ((first + r) * NH + head) * DH;
        if (own[r] == 0) FN(read_state)(3, dstate + row, leaf, mixed + r * DH, rows, DH);
        FN(write_state)(3, mixed + r * DH, rows, DH, dstate_out + row, leaf);
    }
}
