/* The paper's mLSTM block, one batch row at a time, forward and back: norm, up-projection, all of mlstm_mixer.h, memory,
 * down-projection, residual connection; included once an instruction set.
 *
 * A chunk of steps goes through all of it while it lies in the cache. On the way back what is not on the tape is computed
 * again. Shapes: B batch, S sequence, D width, E inner dim, K kernel size. Contiguous arrays of floats:
 *   lengths (B), or NULL: the steps of a row that are its own, the first ones; beyond them the block adds nothing
 *   x, dx, y, dy (B, S, D)                       resets (B, S) bytes
 *   window, window_out (B, K - 1, E): the memory's inputs before the sequence, and its last ones
 *   tape (B, chunks, mlstm_block_tape)           memories (B, NH, chunks + 1, memory_floats)
 *   dwindow_out may be NULL: zero
 *   operands (B, S, 3 E + D), of a `wide` block: the gradient of the up-projection's output, what the down-projection
 *   reads, and what the up-projection reads
 *   turned, of a `wide` block: the up- and the down-projection's weights transposed, in rows of whole vectors */

/* a->normed (D, L) = the norm of a->x before its weight; a->scale, what it was multiplied by. */
static void FN(block_norm)(const mlstm_block_sizes *size, int64_t L, mlstm_block_arrays *a) {
    for (int64_t s = 0; s < L; s += WIDTH) {
        vec mean = splat(0.0f);
        const vec scale = FN(moments)(a->x + s, size->D, L, size->norm_eps, size->centred ? &mean : NULL);
        store(a->scale + s, scale);
        for (int64_t d = 0; d < size->D; d++) store(a->normed + d * L + s, (load(a->x + d * L + s) - mean) * scale);
    }
}

/* From the gradient of the norm's output, a->dnormed, to that of its input, added to a->dx. */
static void FN(block_norm_backward)(const mlstm_block_sizes *size, const float *weight, int64_t L,
                                    const mlstm_block_arrays *a, float *dweight) {
    float sums[MAX_LANES] = {0}, alongs[MAX_LANES] = {0};
    for (int64_t d = 0; d < size->D; d++) {
        vec sum = splat(0.0f);
        for (int64_t s = 0; s < L; s += WIDTH) {
            const vec given = load(a->dnormed + d * L + s), normed = load(a->normed + d * L + s);
            const vec along = given * normed;
            store(sums + s, load(sums + s) + given * weight[d]);
            store(alongs + s, load(alongs + s) + along * weight[d]);
            sum += along;
        }
        dweight[d] += total(sum);
    }
    for (int64_t d = 0; d < size->D; d++)
        for (int64_t s = 0; s < L; s += WIDTH) {
            const vec along = load(a->normed + d * L + s) * load(alongs + s);
            const vec mean = (size->centred ? load(sums + s) + along : along) * (1.0f / (float)size->D);
            const vec inner = (load(a->dnormed + d * L + s) * weight[d] - mean) * load(a->scale + s);
            store(a->dx + d * L + s, load(a->dx + d * L + s) + inner);
        }
}

INLINE void FN(weigh_channels)(int64_t channels, int64_t L, const float *in, const float *weight, float *out) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t s = 0; s < L; s += WIDTH) store(out + c * L + s, load(in + c * L + s) * weight[c]);
}

/* a->input from the chunk's inputs (E, L) and the K - 1 before them: the last of the chunk `before`, whose rows have
 * `stride` floats, or where there is none, of the window, which a reset at the first step forgets. */
static void FN(extend_inputs)(const mlstm_block_sizes *size, int64_t L, const float *before, int64_t stride,
                              const float *window, mlstm_block_arrays *a) {
    const int64_t E = size->E, K = size->K, C = size->chunk;
    const int forgets = a->age && a->age[0] == 0;
    for (int64_t c = 0; c < E; c++) {
        float *input = a->input + c * (HISTORY + C) + HISTORY;
        for (int64_t lag = 1; lag < K; lag++)
            input[-lag] = before ? before[c * stride + C - lag] : forgets ? 0.0f : window[(K - 1 - lag) * E + c];
        memcpy(input, a->up + c * L, sizeof(float) * L);
    }
}

/* Whether the input `lag` steps before the end of a row of S steps has been forgotten. */
INLINE int FN(is_hidden)(const mlstm_block_arrays *a, int64_t S, int64_t lag) {
    return S > 0 && a->age && a->age[S - 1] < lag - 1;
}

static void FN(mlstm_block_forward)(const mlstm_block_sizes *size, int64_t b, const mlstm_block_weights *w,
                                    const float *x, const float *window, const uint8_t *resets, const int64_t *lengths,
                                    const float *c, const float *n, const float *m, float *y, float *tape,
                                    float *memories, float *window_out, float *c_out, float *n_out, float *m_out,
                                    float *work) {
    const mlstm_head head = size->head;
    const int64_t S = lengths ? lengths[b] : size->S, D = size->D, E = size->E, NH = size->NH, K = size->K,
                  C = size->chunk, DH = head.DV, floats = memory_floats(&head), chunks = chunks_of(size->S, C);
    float *memory = work;
    mlstm_block_arrays a;
    mlstm_block_share(size, memory + NH * floats, &a);
    if (!resets) a.age = NULL;
    x += b * size->S * D, y += b * size->S * D, window += b * (K - 1) * E, window_out += b * (K - 1) * E;
    if (tape) tape += b * chunks * mlstm_block_tape(size);
    if (a.age) FN(find_ages)(size, resets + b * size->S, a.age);
    for (int64_t g = 0; g < NH; g++) FN(gather_memory)(&head, b * NH + g, c, n, m, memory + g * floats);

    for (int64_t t = 0; t < S; t += C) {
        const int64_t steps = S - t < C ? S - t : C, L = whole(steps);
        float *kept = tape ? tape + t / C * mlstm_block_tape(size) : NULL, scratch[2 * MAX_LANES];
        prefetch(x + (t + C) * D, (S - t < 2 * C ? S - t - C : C) * D);
        if (tape) a.up = kept, a.h = kept + 2 * E * L, kept = a.h + E * L;
        transpose(x + t * D, D, steps, D, a.x, L, L);
        FN(block_norm)(size, L, &a);
        FN(weigh_channels)(D, L, a.normed, w->norm, a.normed);
        multiply(2 * E, L, D, w->up, D, 1, a.normed, L, a.up, L, 0);
        FN(extend_inputs)(size, L, t > 0 ? a.input + HISTORY : NULL, HISTORY + C, window, &a);
        FN(mixer_inputs)(size, w, t, steps, L, &a);
        for (int64_t g = 0; g < NH; g++) {
            float *normaliser = tape ? kept + 2 * g * L : scratch, *h = a.h + g * DH * L;
            if (a.age && a.age[t] == 0) FN(forget)(&head, memory + g * floats);
            if (memories)
                memcpy(memories + ((b * NH + g) * (chunks + 1) + t / C) * floats, memory + g * floats,
                       sizeof(float) * floats);
            FN(chunk_forward)(&head, L, a.qkv + g * DH * L, a.qkv + (E + g * DH) * L, a.qkv + (2 * E + g * DH) * L,
                              a.gates + g * L, a.gates + (NH + g) * L, memory + g * floats, h, normaliser,
                              normaliser + L, a.rest);
            FN(mixer_outputs)(size, w, g, L, h, &a);
        }
        multiply(D, L, E, w->down, E, 1, a.mixed, L, a.x, L, size->residual);
        FN(to_steps)(a.x, L, steps, D, y + t * D, D);
    }

    for (int64_t g = 0; g < NH; g++) {
        const int64_t row = b * NH + g;
        if (memories)
            memcpy(memories + (row * (chunks + 1) + chunks_of(S, C)) * floats, memory + g * floats,
                   sizeof(float) * floats);
        FN(scatter_memory)(&head, row, memory + g * floats, c_out, n_out, m_out);
    }
    const int64_t last = S - (chunks_of(S, C) - 1) * C; /* steps of the last chunk */
    for (int64_t lag = 1; lag < K; lag++)
        for (int64_t channel = 0; channel < E; channel++) {
            const float *input = a.input + channel * (HISTORY + C) + HISTORY;
            const int64_t at = (K - 1 - lag) * E + channel;
            window_out[at] = S == 0 ? window[at] : FN(is_hidden)(&a, S, lag) ? 0.0f : input[last - lag];
        }
    if (size->residual) memcpy(y + S * D, x + S * D, sizeof(float) * (size->S - S) * D);
    else memset(y + S * D, 0, sizeof(float) * (size->S - S) * D);
}

/* The gradient of the window after a row, added to a.dup of the chunk at t, or to that of the window before the row. */
static void FN(window_backward)(const mlstm_block_sizes *size, int64_t S, int64_t t, int64_t steps, int64_t L,
                                const float *dwindow_out, const mlstm_block_arrays *a, float *dwindow) {
    const int64_t E = size->E, K = size->K;
    for (int64_t lag = 1; lag < K; lag++) {
        const int64_t step = S - lag;
        const float *given = dwindow_out + (K - 1 - lag) * E;
        if (FN(is_hidden)(a, S, lag)) continue;
        for (int64_t c = 0; step >= t && step < t + steps && c < E; c++) a->dup[c * L + step - t] += given[c];
        for (int64_t c = 0; step < 0 && t == 0 && c < E; c++) dwindow[(K - 1 + step) * E + c] += given[c];
    }
}

static void FN(mlstm_block_backward)(const mlstm_block_sizes *size, int64_t b, const mlstm_block_weights *w,
                                     const float *x, const float *window, const uint8_t *resets, const int64_t *lengths,
                                     const float *tape, const float *memories, const float *dy,
                                     const float *dwindow_out, const float *dc, const float *dn, float *dx,
                                     float *dwindow, float *dc_out, float *dn_out, float *operands, const float *turned,
                                     float *dweights, float *work) {
    const mlstm_head head = size->head;
    const int64_t S = lengths ? lengths[b] : size->S, D = size->D, E = size->E, NH = size->NH, K = size->K,
                  C = size->chunk, DH = head.DV, floats = memory_floats(&head), chunks = chunks_of(size->S, C),
                  columns = whole(D), taped = mlstm_block_tape(size);
    float *dmemory = work, *later = dmemory + NH * floats;
    mlstm_block_arrays a;
    mlstm_block_gradients d;
    mlstm_block_share(size, later + E * LANES, &a);
    mlstm_block_sums(size, dweights, &d);
    if (!resets) a.age = NULL;
    x += b * size->S * D, dx += b * size->S * D, dy += b * size->S * D, tape += b * chunks * taped;
    window += b * (K - 1) * E, dwindow += b * (K - 1) * E;
    if (dwindow_out) dwindow_out += b * (K - 1) * E;
    if (size->wide) operands += b * size->S * (3 * E + D);
    if (a.age) FN(find_ages)(size, resets + b * size->S, a.age);
    for (int64_t g = 0; g < NH; g++) FN(gather_memory)(&head, b * NH + g, dc, dn, NULL, dmemory + g * floats);
    if (S == 0 && dwindow_out) memcpy(dwindow, dwindow_out, sizeof(float) * (K - 1) * E);
    else memset(dwindow, 0, sizeof(float) * (K - 1) * E);
    if (size->residual) memcpy(dx + S * D, dy + S * D, sizeof(float) * (size->S - S) * D);
    else memset(dx + S * D, 0, sizeof(float) * (size->S - S) * D);
    memset(later, 0, sizeof(float) * E * LANES);

    for (int64_t t = (chunks_of(S, C) - 1) * C; t >= 0; t -= C) {
        const int64_t steps = S - t < C ? S - t : C, L = whole(steps);
        float *kept = (float *)tape + t / C * taped; /* only read */
        if (t > 0) {
            prefetch(x + (t - C) * D, C * D);
            prefetch(dy + (t - C) * D, C * D);
            prefetch(kept - taped, taped);
        }
        a.up = kept, a.h = a.up + 2 * E * L, kept = a.h + E * L;
        FN(extend_inputs)(size, L, t > 0 ? a.up - taped : NULL, C, window, &a);
        FN(mixer_inputs)(size, w, t, steps, L, &a);

        transpose(dy + t * D, D, steps, D, a.dx, L, L);
        if (size->wide) multiply(E, L, D, turned + D * whole(2 * E), columns, 1, a.dx, L, a.dmixed, L, 0);
        else multiply(E, L, D, w->down, 1, E, a.dx, L, a.dmixed, L, 0);
        for (int64_t g = 0; g < NH; g++) {
            const float *normaliser = kept + 2 * g * L, *h = a.h + g * DH * L;
            const float *memory = memories + ((b * NH + g) * (chunks + 1) + t / C) * floats;
            const int64_t q = g * DH * L, k = q + E * L, v = k + E * L;
            float *di = a.dgates + g * L, *df = di + NH * L;
            FN(mixer_outputs_backward)(size, w, g, L, h, &a, &d);
            FN(chunk_backward)(&head, L, a.qkv + q, a.qkv + k, a.qkv + v, a.gates + g * L, a.gates + (NH + g) * L,
                               memory, memory + floats, h, normaliser, normaliser + L, a.dmixed + q,
                               dmemory + g * floats, a.dqkv + q, a.dqkv + k, a.dqkv + v, di, df, a.rest);
        }
        if (!size->wide) {
            transpose(a.dx, L, D, L, a.steps, columns, columns);
            multiply(E, columns, steps, a.mixed, L, 1, a.steps, columns, d.down, columns, 1);
        }
        FN(mixer_inputs_backward)(size, w, t, steps, L, &a, later, dwindow, &d);
        if (dwindow_out) FN(window_backward)(size, S, t, steps, L, dwindow_out, &a, dwindow);

        transpose(x + t * D, D, steps, D, a.x, L, L);
        FN(block_norm)(size, L, &a);
        FN(weigh_channels)(D, L, a.normed, w->norm, a.x);
        if (size->wide) {
            const int64_t row = 3 * E + D;
            FN(to_steps)(a.dup, L, steps, 2 * E, operands + t * row, row);
            FN(to_steps)(a.mixed, L, steps, E, operands + t * row + 2 * E, row);
            FN(to_steps)(a.x, L, steps, D, operands + t * row + 3 * E, row);
        } else {
            transpose(a.x, L, D, L, a.steps, columns, columns);
            multiply(2 * E, columns, steps, a.dup, L, 1, a.steps, columns, d.up, columns, 1);
        }
        if (size->wide) multiply(D, L, 2 * E, turned, whole(2 * E), 1, a.dup, L, a.dnormed, L, 0);
        else multiply(D, L, 2 * E, w->up, 1, D, a.dup, L, a.dnormed, L, 0);
        if (!size->residual) memset(a.dx, 0, sizeof(float) * D * L);
        FN(block_norm_backward)(size, w->norm, L, &a, d.norm);
        FN(to_steps)(a.dx, L, steps, D, dx + t * D, D);
    }
    for (int64_t g = 0; g < NH; g++) FN(scatter_memory)(&head, b * NH + g, dmemory + g * floats, dc_out, dn_out, NULL);
}
