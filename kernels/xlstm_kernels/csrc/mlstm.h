/* The mLSTM of one head: a chunk of steps forward and back, and whole sequences; included once an instruction set.
 *
 * The equations are derived in kernels/README.md. Shapes: DK / DV key / value head dim, L lanes of a chunk (its steps,
 * and padding that adds nothing and forgets nothing: i = -inf, logf = 0). Inside a chunk the steps lie along the lanes:
 * q, k, dq, dk (DK, L), v, h, dv, dh (DV, L), i, logf (L). A reset at step t is logf[t] = -inf: the sums below only
 * ever add, so that it cuts them and nothing else. A head's memory is c (DK, DVL), n (DK) and m, one after the other;
 * DVL is DV rounded up to whole vectors, with zeros there. */

/* exp(-inf - (-inf)) is not a number: where nothing has been read yet, measure from 0. */
INLINE float FN(base)(float m) { return m == -INFINITY ? 0.0f : m; }

static void FN(reach)(const mlstm_head *head, int64_t L, const float *i, const float *logf, float m_before,
                      decays *to) {
    const float scale = 1.0f / sqrtf((float)head->DK);
    float sum[MAX_LANES] = {0}, forgotten = 0.0f, m_after = -INFINITY;
    ivec lane;
    EACH (n, WIDTH) lane[n] = n;
    for (int64_t t = 0; t < L; t++) {
        forgotten += logf[t];
        to->m[t] = to->carried[t] = forgotten + m_before;
    }
    /* Terms of one sign are added, never subtracted: a large sum has a small exp, a small one is exact. */
    for (int64_t s = L - 1; s >= 0; s--) {
        const vec passed = splat(s + 1 < L ? logf[s + 1] : 0.0f);
        for (int64_t t = s / WIDTH * WIDTH; t < L; t += WIDTH) {
            const ivec step = lane + (int32_t)t;
            const vec between = load(sum + t) + select((ivec)(step > (int32_t)s), passed, splat(0.0f));
            const vec weight = select((ivec)(step >= (int32_t)s), between + i[s], splat(-INFINITY));
            store(sum + t, between);
            store(to->within + s * L + t, weight);
            store(to->m + t, at_least(load(to->m + t), weight));
        }
        to->written[s] = sum[L - 1] + i[s];
        m_after = fmaxf(m_after, to->written[s]);
    }
    to->m_after = fmaxf(m_after, to->carried[L - 1]);
    to->kept = expf(to->carried[L - 1] - FN(base)(to->m_after));
    for (int64_t t = 0; t < L; t += WIDTH) {
        vec m = load(to->m + t);
        m = select((ivec)(m == -INFINITY), splat(0.0f), m);
        for (int64_t s = 0; s < t + WIDTH && s < L; s++)
            store(to->within + s * L + t, exponential(load(to->within + s * L + t) - m) * scale);
        for (int64_t s = t + WIDTH; s < L; s++) store(to->within + s * L + t, splat(0.0f));
        store(to->carried + t, exponential(load(to->carried + t) - m) * scale);
        store(to->written + t, exponential(load(to->written + t) - FN(base)(to->m_after)));
    }
}

/* out (rows, L) = a (rows, L) b (L, L) over the pairs s <= t that b[s][t] holds. */
INLINE void FN(multiply_past)(int64_t rows, int64_t L, const float *a, const float *b, float *out) {
    for (int64_t t = 0; t < L; t += 2 * WIDTH) {
        const int64_t lanes = L - t < 2 * WIDTH ? L - t : 2 * WIDTH;
        multiply(rows, lanes, t + lanes, a, L, 1, b + t, L, out + t, L, 0);
    }
}

/* out (rows, L) = a (rows, L) b (L, L) over the pairs t >= s that b[t][s] holds. */
INLINE void FN(multiply_future)(int64_t rows, int64_t L, const float *a, const float *b, float *out) {
    for (int64_t s = 0; s < L; s += 2 * WIDTH) {
        const int64_t lanes = L - s < 2 * WIDTH ? L - s : 2 * WIDTH;
        multiply(rows, lanes, L - s, a + s, L, 1, b + s * L + s, L, out + s, L, 0);
    }
}

/* out (rows, L) = in (rows, L) with each step's weight. */
INLINE void FN(weigh)(int64_t rows, int64_t L, const float *in, const float *weight, float *out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < L; t += WIDTH) store(out + r * L + t, load(in + r * L + t) * load(weight + t));
}

/* The denominator of h, less the epsilon's part where it does not count. */
INLINE vec FN(denominator)(const mlstm_head *head, vec normaliser, vec floor) {
    return head->normalize ? at_least(magnitude(normaliser), floor) + MLSTM_EPSILON : floor;
}

/* Run a chunk: h is written, `memory` moves from before the chunk to after it. What the way back needs of each step:
 * its normaliser n . q and its m. */
static void FN(chunk_forward)(const mlstm_head *head, int64_t L, const float *q, const float *k, const float *v,
                              const float *i, const float *logf, float *memory, float *h, float *normaliser, float *m,
                              float *work) {
    const int64_t DK = head->DK, DV = head->DV, DVL = head->DVL;
    float *c = memory, *n = c + DK * DVL, *m_memory = n + DK;
    float *weighed = work, *v_steps = weighed + DK * L;
    float scores[MAX_LANES * MAX_LANES];
    decays reach;
    FN(reach)(head, L, i, logf, *m_memory, &reach);

    multiply(L, L, DK, k, 1, L, q, L, scores, L, 0);
    FN(weigh)(DK, L, q, reach.carried, weighed);
    for (int64_t t = 0; t < L; t += WIDTH) {
        vec sum = splat(0.0f);
        for (int64_t s = 0; s < L; s++) {
            const vec score = load(scores + s * L + t) * load(reach.within + s * L + t);
            store(scores + s * L + t, score);
            sum += score;
        }
        for (int64_t d = 0; d < DK; d++) sum += n[d] * load(weighed + d * L + t);
        store(normaliser + t, sum);
        store(m + t, load(reach.m + t));
    }
    FN(multiply_past)(DV, L, v, scores, h);
    multiply(DV, L, DK, c, 1, DVL, weighed, L, h, L, 1);
    for (int64_t t = 0; t < L; t += WIDTH) {
        const vec share = 1.0f / FN(denominator)(head, load(normaliser + t), exponential(-load(m + t)));
        for (int64_t d = 0; d < DV; d++) store(h + d * L + t, load(h + d * L + t) * share);
    }

    FN(weigh)(DK, L, k, reach.written, weighed);
    transpose(v, L, DV, L, v_steps, DVL, DVL);
    for (int64_t e = 0; e < DK * DVL; e += WIDTH) store(c + e, load(c + e) * reach.kept);
    multiply(DK, DVL, L, weighed, L, 1, v_steps, DVL, c, DVL, 1);
    for (int64_t d = 0; d < DK; d++) {
        vec sum = splat(0.0f);
        for (int64_t t = 0; t < L; t += WIDTH) sum += load(weighed + d * L + t);
        n[d] = n[d] * reach.kept + total(sum);
    }
    *m_memory = reach.m_after;
}

/* Back through a chunk. `memory` and `after` are the memories before and after it, `normaliser` and `m` what
 * chunk_forward gave, dmemory the gradient of the memory: of the one after it on entry, of the one before on return.
 * dh is used up. */
static void FN(chunk_backward)(const mlstm_head *head, int64_t L, const float *q, const float *k, const float *v,
                               const float *i, const float *logf, const float *memory, const float *after,
                               const float *h, const float *normaliser, const float *m, float *dh, float *dmemory,
                               float *dq, float *dk, float *dv, float *di, float *dlogf, float *work) {
    const int64_t DK = head->DK, DV = head->DV, DVL = head->DVL;
    const float *c = memory, *n = c + DK * DVL;
    float *dc = dmemory, *dn = dc + DK * DVL, *dnumerator = dh;
    float *weighed = work, *steps = weighed + DK * L, *through = steps + L * DVL;
    float scores[MAX_LANES * MAX_LANES], dscores[MAX_LANES * MAX_LANES], turned[MAX_LANES * MAX_LANES];
    float dnormaliser[MAX_LANES];
    decays reach;
    FN(reach)(head, L, i, logf, n[DK], &reach);

    for (int64_t t = 0; t < L; t += WIDTH) {
        const vec floor = exponential(-load(m + t)), l = load(normaliser + t);
        const vec share = 1.0f / FN(denominator)(head, l, floor);
        vec along = splat(0.0f); /* dh . h */
        for (int64_t d = 0; d < DV; d++) {
            const vec given = load(dh + d * L + t);
            along += given * load(h + d * L + t);
            store(dnumerator + d * L + t, given * share);
        }
        const vec slope = select((ivec)(l < 0.0f), along, -along) * share; /* -sign(l) (dh . h) / denominator */
        const ivec counts = (ivec)(magnitude(l) > floor) & (head->normalize ? -1 : 0);
        store(dnormaliser + t, select(counts, slope, splat(0.0f)));
    }

    multiply(L, L, DK, k, 1, L, q, L, scores, L, 0);
    multiply(L, L, DV, v, 1, L, dnumerator, L, dscores, L, 0);
    for (int64_t s = 0; s < L; s++)
        for (int64_t t = 0; t < L; t += WIDTH) {
            const vec weight = load(reach.within + s * L + t);
            store(scores + s * L + t, load(scores + s * L + t) * weight);
            store(dscores + s * L + t, (load(dscores + s * L + t) + load(dnormaliser + t)) * weight);
        }

    /* What q reads: this chunk's steps, and the memory before it. */
    FN(multiply_past)(DK, L, k, dscores, dq);
    multiply(DK, L, DV, c, DVL, 1, dnumerator, L, through, L, 0);
    for (int64_t d = 0; d < DK; d++)
        for (int64_t t = 0; t < L; t += WIDTH) {
            const vec read = load(through + d * L + t) + n[d] * load(dnormaliser + t);
            store(dq + d * L + t, load(dq + d * L + t) + read * load(reach.carried + t));
        }

    /* What k and v write: for this chunk's steps, and into the memory after it. */
    transpose(dscores, L, L, L, turned, L, L);
    FN(multiply_future)(DK, L, q, turned, dk);
    multiply(DK, L, DV, dc, DVL, 1, v, L, through, L, 0);
    for (int64_t d = 0; d < DK; d++)
        for (int64_t t = 0; t < L; t += WIDTH)
            store(dk + d * L + t, load(dk + d * L + t) + (load(through + d * L + t) + dn[d]) * load(reach.written + t));
    transpose(scores, L, L, L, turned, L, L);
    FN(multiply_future)(DV, L, dnumerator, turned, dv);
    FN(weigh)(DK, L, k, reach.written, weighed);
    multiply(DV, L, DK, dc, 1, DVL, weighed, L, dv, L, 1);

    /* log f of step r weighs all that crosses r: what is read at t >= r less what was written at s >= r, and what
     * leaves with the memory; up to the next reset. */
    vec leaving = splat(0.0f);
    for (int64_t e = 0; e < DK * DVL; e += WIDTH) leaving += load(after + e) * load(dc + e);
    float crossing = total(leaving);
    for (int64_t d = 0; d < DK; d++) crossing += after[DK * DVL + d] * dn[d];
    for (int64_t t = 0; t < L; t += WIDTH) {
        vec written = splat(0.0f), read = splat(0.0f);
        for (int64_t d = 0; d < DK; d++) {
            written += load(k + d * L + t) * load(dk + d * L + t);
            read += load(q + d * L + t) * load(dq + d * L + t);
        }
        store(di + t, written);
        store(dlogf + t, read - written);
    }
    for (int64_t t = L - 1; t >= 0; t--) {
        crossing = logf[t] == -INFINITY ? 0.0f : crossing + dlogf[t];
        dlogf[t] = crossing;
    }

    FN(weigh)(DK, L, q, reach.carried, weighed);
    transpose(dnumerator, L, DV, L, steps, DVL, DVL);
    for (int64_t e = 0; e < DK * DVL; e += WIDTH) store(dc + e, load(dc + e) * reach.kept);
    multiply(DK, DVL, L, weighed, L, 1, steps, DVL, dc, DVL, 1);
    for (int64_t d = 0; d < DK; d++) {
        vec sum = splat(0.0f);
        for (int64_t t = 0; t < L; t += WIDTH) sum += load(weighed + d * L + t) * load(dnormaliser + t);
        dn[d] = dn[d] * reach.kept + total(sum);
    }
}

/* A head's memory from and to a state's c (B, NH, DK, DV), n (B, NH, DK) and m (B, NH), at `row` of B * NH. */
static void FN(gather_memory)(const mlstm_head *head, int64_t row, const float *c, const float *n, const float *m,
                              float *memory) {
    const int64_t DK = head->DK, DV = head->DV, DVL = head->DVL;
    memset(memory, 0, sizeof(float) * DK * DVL);
    for (int64_t d = 0; d < DK; d++) memcpy(memory + d * DVL, c + (row * DK + d) * DV, sizeof(float) * DV);
    memcpy(memory + DK * DVL, n + row * DK, sizeof(float) * DK);
    memory[DK * DVL + DK] = m ? m[row] : 0.0f;
}

static void FN(scatter_memory)(const mlstm_head *head, int64_t row, const float *memory, float *c, float *n, float *m) {
    const int64_t DK = head->DK, DV = head->DV, DVL = head->DVL;
    for (int64_t d = 0; d < DK; d++) memcpy(c + (row * DK + d) * DV, memory + d * DVL, sizeof(float) * DV);
    memcpy(n + row * DK, memory + DK * DVL, sizeof(float) * DK);
    if (m) m[row] = memory[DK * DVL + DK];
}

/* A reset at a chunk's first step leaves nothing of the memory before it, where a weight of 0 would not hide NaN. */
INLINE void FN(forget)(const mlstm_head *head, float *memory) {
    const int64_t floats = head->DK * (head->DVL + 1);
    memset(memory, 0, sizeof(float) * floats);
    memory[floats] = -INFINITY;
}

/* The gates of one head's chunk, from arrays (B, S, NH); `row` is b * S + the chunk's first step. */
INLINE void FN(gather_gates)(const mlstm_sizes *size, int64_t row, int64_t at, int64_t steps, int64_t L, const float *i,
                             const float *logf, const uint8_t *resets, float *i_to, float *logf_to) {
    for (int64_t t = 0; t < L; t++) {
        const int64_t from = (row + t) * size->NH + at;
        i_to[t] = t < steps ? i[from] : -INFINITY;
        logf_to[t] = t >= steps ? 0.0f : resets && resets[row + t] ? -INFINITY : logf[from];
    }
}

/* One head of one row through the whole sequence. tape (B * NH, 2, chunks * chunk): normaliser and m of each step;
 * memories (B * NH, chunks + 1, memory size): the first is where to start, the others are written. */
static void FN(mlstm_forward)(const mlstm_sizes *size, int64_t item, const float *q, const float *k, const float *v,
                              const float *i, const float *logf, const uint8_t *resets, const float *c, const float *n,
                              const float *m, float *h, float *tape, float *memories, float *c_out, float *n_out,
                              float *m_out, float *work) {
    const mlstm_head head = size->head;
    const int64_t S = size->S, NH = size->NH, DK = head.DK, DV = head.DV, C = size->chunk, b = item / NH,
                  at = item % NH;
    const int64_t floats = memory_floats(&head), padded = (S + C - 1) / C * C;
    float *memory = work, *qs = memory + floats, *ks = qs + DK * C, *vs = ks + DK * C, *hs = vs + DV * C;
    float *rest = hs + DV * C, i_chunk[MAX_LANES], logf_chunk[MAX_LANES], normaliser[MAX_LANES], m_chunk[MAX_LANES];
    FN(gather_memory)(&head, item, c, n, m, memory);
    for (int64_t t = 0; t < S; t += C) {
        const int64_t steps = S - t < C ? S - t : C, L = whole(steps), row = b * S + t, first = row * NH + at;
        if (resets && resets[row]) FN(forget)(&head, memory);
        if (memories) memcpy(memories + (item * (padded / C + 1) + t / C) * floats, memory, sizeof(float) * floats);
        transpose(q + first * DK, NH * DK, steps, DK, qs, L, L);
        transpose(k + first * DK, NH * DK, steps, DK, ks, L, L);
        transpose(v + first * DV, NH * DV, steps, DV, vs, L, L);
        FN(gather_gates)(size, row, at, steps, L, i, logf, resets, i_chunk, logf_chunk);
        FN(chunk_forward)(&head, L, qs, ks, vs, i_chunk, logf_chunk, memory, hs, normaliser, m_chunk, rest);
        FN(to_steps)(hs, L, steps, DV, h + first * DV, NH * DV);
        if (tape) {
            memcpy(tape + 2 * item * padded + t, normaliser, sizeof(float) * L);
            memcpy(tape + (2 * item + 1) * padded + t, m_chunk, sizeof(float) * L);
        }
    }
    if (memories) memcpy(memories + (item * (padded / C + 1) + padded / C) * floats, memory, sizeof(float) * floats);
    FN(scatter_memory)(&head, item, memory, c_out, n_out, m_out);
}

static void FN(mlstm_backward)(const mlstm_sizes *size, int64_t item, const float *q, const float *k, const float *v,
                               const float *i, const float *logf, const uint8_t *resets, const float *h,
                               const float *tape, const float *memories, const float *dh, const float *dc,
                               const float *dn, float *dq, float *dk, float *dv, float *di, float *dlogf, float *dc_out,
                               float *dn_out, float *work) {
    const mlstm_head head = size->head;
    const int64_t S = size->S, NH = size->NH, DK = head.DK, DV = head.DV, C = size->chunk, b = item / NH,
                  at = item % NH;
    const int64_t floats = memory_floats(&head), padded = (S + C - 1) / C * C;
    float *dmemory = work, *qs = dmemory + floats, *ks = qs + DK * C, *vs = ks + DK * C, *hs = vs + DV * C;
    float *dqs = hs + DV * C, *dks = dqs + DK * C, *dvs = dks + DK * C, *dhs = dvs + DV * C, *rest = dhs + DV * C;
    float i_chunk[MAX_LANES], logf_chunk[MAX_LANES], di_chunk[MAX_LANES], dlogf_chunk[MAX_LANES];
    FN(gather_memory)(&head, item, dc, dn, NULL, dmemory);
    for (int64_t t = padded - C; t >= 0; t -= C) {
        const int64_t steps = S - t < C ? S - t : C, L = whole(steps), row = b * S + t, first = row * NH + at;
        const float *memory = memories + (item * (padded / C + 1) + t / C) * floats,
                    *kept = tape + 2 * item * padded + t;
        transpose(q + first * DK, NH * DK, steps, DK, qs, L, L);
        transpose(k + first * DK, NH * DK, steps, DK, ks, L, L);
        transpose(v + first * DV, NH * DV, steps, DV, vs, L, L);
        transpose(h + first * DV, NH * DV, steps, DV, hs, L, L);
        transpose(dh + first * DV, NH * DV, steps, DV, dhs, L, L);
        FN(gather_gates)(size, row, at, steps, L, i, logf, resets, i_chunk, logf_chunk);
        FN(chunk_backward)(&head, L, qs, ks, vs, i_chunk, logf_chunk, memory, memory + floats, hs, kept, kept + padded,
                           dhs, dmemory, dqs, dks, dvs, di_chunk, dlogf_chunk, rest);
        FN(to_steps)(dqs, L, steps, DK, dq + first * DK, NH * DK);
        FN(to_steps)(dks, L, steps, DK, dk + first * DK, NH * DK);
        FN(to_steps)(dvs, L, steps, DV, dv + first * DV, NH * DV);
        for (int64_t s = 0; s < steps; s++) {
            di[(row + s) * NH + at] = di_chunk[s];
            dlogf[(row + s) * NH + at] = dlogf_chunk[s];
        }
    }
    FN(scatter_memory)(&head, item, dmemory, dc_out, dn_out, NULL);
}
