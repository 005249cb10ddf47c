/* Sizes, weights and working arrays of the kernels: what does not depend on the instruction set; included once. */

/* A head and a few batch rows, at most MAX_ROWS, that a thread carries through time together. */
typedef struct {
    int64_t head, first;
    int count;
} row_block;

typedef struct {
    int64_t B, S, NH, DH;
} slstm_sizes;

/* Gradients of bias (4, NH, DH) and, after it, of the recurrent weight (NH, 4 DH, DH): [head, gate and unit, unit]. */
INLINE int64_t slstm_weight_floats(const slstm_sizes *size) { return size->NH * size->DH * 4 * (1 + size->DH); }

INLINE int64_t slstm_work_floats(const slstm_sizes *size) { return MAX_ROWS * size->DH * (5 * SLSTM_STEPS + 8); }

/* One head of an mLSTM; DVL is DV rounded up to whole vectors. */
typedef struct {
    int64_t DK, DV, DVL, normalize;
} mlstm_head;

typedef struct {
    int64_t B, S, NH, chunk; /* chunk is a multiple of LANES, at most MAX_LANES */
    mlstm_head head;
} mlstm_sizes;

/* How far each step reaches, relative to exp(m) of where it arrives; a scalar a step unless noted. */
typedef struct {
    float within[MAX_LANES * MAX_LANES]; /* [s][t]: from step s to step t, with the scale of q */
    float m[MAX_LANES];                  /* the recurrent form's stabiliser */
    float carried[MAX_LANES];            /* from the memory before the chunk, with the scale of q */
    float written[MAX_LANES];            /* to the memory after the chunk */
    float kept, m_after;                 /* from the memory before to the memory after; its stabiliser */
} decays;

/* The paper's mLSTM block of width D at its inner width E; `block` channels are mixed by each of the query, key and value
 * maps. `centred`: its norm takes the mean away (LayerNorm), or does not (RMSNorm). `residual`: y is what the block adds
 * to x, and x. `wide`: the projections' gradients are left to the caller, who multiplies all steps at once: to add them
 * up chunk by chunk takes longer once they outgrow the cache. */
typedef struct {
    int64_t B, S, NH, chunk;
    mlstm_head head;
    int64_t D, E, K, block, centred, residual, wide;
    float norm_eps, head_norm_eps;
} mlstm_block_sizes;

/* norm (D), up (2 E, D), conv_weight (K, E), conv_bias (E), maps [block, out, in], gate_weight (2 NH, 3 E), gate_bias
 * (2 NH), head_norm and skip (E), down (D, E) */
typedef struct {
    const float *norm, *up, *conv_weight, *conv_bias, *q_weight, *k_weight, *v_weight, *gate_weight, *gate_bias,
        *head_norm, *skip, *down;
} mlstm_block_weights;

/* Their gradients as a thread sums them up: up and gate_weight in rows of whole vectors, and so is down, transposed. */
typedef struct {
    float *norm, *up, *conv_weight, *conv_bias, *q_weight, *k_weight, *v_weight, *gate_weight, *gate_bias, *head_norm,
        *skip, *down;
} mlstm_block_gradients;

/* One thread's arrays for one chunk of L steps. */
typedef struct {
    int32_t *age;                   /* (S): steps since the row's last reset, at most K */
    float *mask;                    /* (K, L + LANES): whether the input `lag` steps before is of the same segment */
    float *x, *normed, *scale, *up; /* (D, L), (D, L), (L): the norm's, (2 E, L): inputs, then output gates */
    float *input;                   /* (E, HISTORY + chunk): the inputs, and the last ones before them */
    float *silu_slope, *convolved, *qkv; /* (E, L), (E, L), (3 E, L) */
    float *gates, *f_slope, *h, *mixed;  /* (2 NH, L), (NH, L), (E, L), (E, L): what the down-projection reads */
    float *dx, *dnormed, *dup, *dmixed;  /* (D, L), (D, L), (2 E, L), (E, L) */
    float *dqkv, *dgates, *dconvolved;   /* (3 E, L), (2 NH, L), (E, L) */
    float *steps, *rest;                 /* (L, channels): a transposed operand; what a chunk of one head needs */
} mlstm_block_arrays;

/* Ask for an array's cache lines ahead of their use: a chunk's arithmetic hides the way from memory of the next. */
INLINE void prefetch(const float *array, int64_t floats) {
    for (int64_t e = 0; e < floats; e += LANES) __builtin_prefetch(array + e, 0, 2);
}

INLINE int64_t whole(int64_t lanes) { return (lanes + LANES - 1) / LANES * LANES; }

/* Rows of whole vectors, filled up with zeros. */
static void copy_padded(int64_t rows, int64_t columns, const float *from, float *to) {
    for (int64_t r = 0; r < rows; r++, from += columns, to += whole(columns)) {
        memcpy(to, from, sizeof(float) * columns);
        memset(to + columns, 0, sizeof(float) * (whole(columns) - columns));
    }
}

/* Rows without their padding. */
static void copy_rows(int64_t rows, int64_t columns, const float *from, float *to) {
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * columns, from + r * whole(columns), sizeof(float) * columns);
}

/* A head's memory: c, n and m. */
INLINE int64_t memory_floats(const mlstm_head *head) { return head->DK * (head->DVL + 1) + 1; }

/* What chunk_forward and chunk_backward need besides their arguments. */
INLINE int64_t chunk_floats(const mlstm_head *head, int64_t chunk) { return chunk * (2 * head->DK + head->DVL); }

INLINE int64_t chunks_of(int64_t S, int64_t chunk) { return (S + chunk - 1) / chunk; }

/* A head's memory, the arrays of a chunk, and what its kernels need. */
INLINE int64_t mlstm_work_floats(const mlstm_sizes *size) {
    const mlstm_head *head = &size->head;
    return memory_floats(head) + size->chunk * (4 * head->DK + 4 * head->DV) + chunk_floats(head, size->chunk);
}

/* What the way back keeps of a chunk of a row: up (2 E, L), h (E, L), then normaliser and m (2, L) of each head. */
INLINE int64_t mlstm_block_tape(const mlstm_block_sizes *size) { return size->chunk * (3 * size->E + 2 * size->NH); }

/* Lay out a thread's sums of gradients from `sums` on; return how many floats that takes, which is all that happens at
 * NULL. */
static int64_t mlstm_block_sums(const mlstm_block_sizes *size, float *sums, mlstm_block_gradients *d) {
    const int64_t D = size->D, E = size->E, maps = E * size->block;
    int64_t used = 0;
#define TAKE(array, floats) d->array = sums ? sums + used : NULL, used += (floats)
    TAKE(norm, D), TAKE(up, size->wide ? 0 : 2 * E * whole(D)), TAKE(conv_weight, size->K * E), TAKE(conv_bias, E);
    TAKE(q_weight, maps), TAKE(k_weight, maps), TAKE(v_weight, maps);
    TAKE(gate_weight, 2 * size->NH * whole(3 * E)), TAKE(gate_bias, 2 * size->NH);
    TAKE(head_norm, E), TAKE(skip, E), TAKE(down, size->wide ? 0 : E * whole(D));
#undef TAKE
    return used;
}

/* A thread's sums of gradients to arrays of the weights' shapes. */
static void mlstm_block_gather(const mlstm_block_sizes *size, float *sums, const mlstm_block_gradients *to) {
    const int64_t D = size->D, E = size->E, NH = size->NH, maps = E * size->block;
    mlstm_block_gradients from;
    mlstm_block_sums(size, sums, &from);
    copy_rows(2 * NH, 3 * E, from.gate_weight, to->gate_weight);
    if (!size->wide) {
        copy_rows(2 * E, D, from.up, to->up);
        for (int64_t r = 0; r < D; r++)
            for (int64_t e = 0; e < E; e++) to->down[r * E + e] = from.down[e * whole(D) + r];
    }
#define COPY(array, floats) memcpy(to->array, from.array, sizeof(float) * (floats))
    COPY(norm, D), COPY(conv_weight, size->K * E), COPY(conv_bias, E), COPY(q_weight, maps), COPY(k_weight, maps);
    COPY(v_weight, maps), COPY(gate_bias, 2 * NH), COPY(head_norm, E), COPY(skip, E);
#undef COPY
}

/* Lay out its arrays in `work`, as mlstm_block_sums does. */
static int64_t mlstm_block_share(const mlstm_block_sizes *size, float *work, mlstm_block_arrays *a) {
    const int64_t D = size->D, E = size->E, NH = size->NH, L = size->chunk;
    int64_t used = 0;
#define TAKE(array, floats) a->array = work ? (void *)(work + used) : NULL, used += (floats)
    TAKE(age, size->S), TAKE(mask, size->K * (L + LANES));
    TAKE(x, D * L), TAKE(normed, D * L), TAKE(scale, L), TAKE(up, 2 * E * L), TAKE(input, E * (HISTORY + L));
    TAKE(silu_slope, E * L), TAKE(convolved, E * L), TAKE(qkv, 3 * E * L);
    TAKE(gates, 2 * NH * L), TAKE(f_slope, NH * L), TAKE(h, E * L), TAKE(mixed, E * L);
    TAKE(dx, D * L), TAKE(dnormed, D * L), TAKE(dup, 2 * E * L), TAKE(dmixed, E * L);
    TAKE(dqkv, 3 * E * L), TAKE(dgates, 2 * NH * L), TAKE(dconvolved, E * L);
    TAKE(steps, L * whole(3 * E > D ? 3 * E : D)), TAKE(rest, chunk_floats(&size->head, L));
#undef TAKE
    return used;
}

INLINE int64_t mlstm_block_work_floats(const mlstm_block_sizes *size) {
    mlstm_block_arrays none;
    return size->NH * memory_floats(&size->head) + size->E * LANES + mlstm_block_share(size, NULL, &none);
}

/* One block of a stack as its step reads it: the paper's mLSTM (inner width E) or sLSTM block (E = D, `hidden` wide
 * FFN). Matrices lie in panels, those of block-diagonal maps as described in step.h; a skip that is off is zero. */
typedef struct {
    int64_t is_slstm, E, NH, DH, K, block, hidden;
    float norm_eps, head_norm_eps;
    const float *norm, *up, *conv_weight, *conv_bias, *maps, *recurrent, *gate_weight, *gate_bias, *head_norm, *skip,
        *down;
    const float *ffn_norm, *ffn_up, *ffn_down;
} step_block;

typedef struct {
    int64_t D, num_blocks, state_floats, widest; /* widest: of all matrices' columns */
    float norm_eps;
    const float *norm;
    const step_block *blocks;
} step_stack;

INLINE int64_t step_state_floats(const step_block *w) {
    return (w->K - 1) * w->E + (w->is_slstm ? 4 * w->E : w->NH * (w->DH * (w->DH + 1) + 1));
}

/* The paper's sLSTM block at the width D = NH DH, DH a multiple of PANEL. */
typedef struct {
    int64_t B, S, NH, DH, K;
    float norm_eps;
} slstm_mixer_sizes;

/* conv_weight (K, D), conv_bias (D), bias (4, NH, DH), norm_weight (D); the panels are described in slstm_mixer.h. */
typedef struct {
    const float *conv_weight, *conv_bias, *if_panels, *zo_panels, *back_panels, *bias, *norm_weight;
} slstm_mixer_weights;

/* Gradients; matrices (NH, 4 DH, 3 DH): [head, gate and unit, operand], of i, f for the first two operands, of z, o for
 * the last two. */
typedef struct {
    float *conv_weight, *conv_bias, *bias, *norm_weight, *matrices;
} slstm_mixer_gradients;

INLINE slstm_mixer_gradients slstm_mixer_gradients_in(const slstm_mixer_sizes *size, float *block) {
    const int64_t D = size->NH * size->DH;
    slstm_mixer_gradients d;
    d.conv_weight = block, d.conv_bias = d.conv_weight + size->K * D, d.bias = d.conv_bias + D;
    d.norm_weight = d.bias + 4 * D, d.matrices = d.norm_weight + D;
    return d;
}

INLINE int64_t slstm_mixer_weight_floats(const slstm_mixer_sizes *size) {
    return size->NH * size->DH * (size->K + 6 + 12 * size->DH);
}

/* Working memory for MAX_ROWS rows of a head, enough for either direction. */
INLINE int64_t slstm_mixer_work_floats(const slstm_mixer_sizes *size) {
    return MAX_ROWS * (size->S + size->DH * (7 * SLSTM_STEPS + 8 + size->K));
}

INLINE int64_t step_work_floats(const step_stack *stack, int64_t rows) {
    return rows * (2 * stack->D + 5 * stack->widest);
}

/* A perceptron of M rows; widths: of x, then of each layer. */
typedef struct {
    int64_t M, num_layers;
    const int64_t *widths;
} tanh_mlp_sizes;

/* Several perceptrons of the same M rows: each one's layers, and its widths after those of the one before. */
typedef struct {
    int64_t M, num_networks;
    const int64_t *num_layers, *widths;
} tanh_mlps_sizes;

static int64_t tanh_mlp_widest(const tanh_mlp_sizes *size) {
    int64_t widest = 0;
    for (int64_t l = 0; l <= size->num_layers; l++)
        if (whole(size->widths[l]) > widest) widest = whole(size->widths[l]);
    return widest;
}

static int64_t tanh_mlp_sum_floats(const tanh_mlp_sizes *size) {
    int64_t floats = 0;
    for (int64_t l = 0; l < size->num_layers; l++) floats += size->widths[l + 1] * (whole(size->widths[l]) + 1);
    return floats;
}

/* A thread's sums of gradients to arrays of the weights' shapes. */
static void tanh_mlp_gather(const tanh_mlp_sizes *size, const float *sums, float *const *to) {
    for (int64_t l = 0; l < size->num_layers; l++) {
        const int64_t in = size->widths[l], out = size->widths[l + 1];
        copy_rows(out, in, sums, to[2 * l]);
        memcpy(to[2 * l + 1], sums + out * whole(in), sizeof(float) * out);
        sums += out * (whole(in) + 1);
    }
}

/* A block of rows and its gradients, twice; or a weight, padded or turned over. */
static int64_t tanh_mlp_work_floats(const tanh_mlp_sizes *size) {
    const int64_t widest = tanh_mlp_widest(size), rows = widest > MLP_ROWS ? widest : MLP_ROWS;
    return widest * (2 * MLP_ROWS + rows);
}
