/* The sLSTM's pointwise step for a vector of units, forward and back; included once an instruction set.
 *
 * y = c / n, lam = m + log n and the stabiliser m (xlstm_kernels/ops/slstm/average.py). */

typedef struct {
    vec y, lam, m;
} FN(slstm_cell);
/* What the way back needs of a step, besides its y. */
typedef struct {
    vec z, o, alpha, f_slope;
} FN(slstm_record);
typedef struct {
    vec i, f, z, o;
} FN(slstm_gates);
typedef struct {
    vec y, lam;
} FN(slstm_gradient);
#define slstm_cell FN(slstm_cell)
#define slstm_record FN(slstm_record)
#define slstm_gates FN(slstm_gates)
#define slstm_gradient FN(slstm_gradient)

/* From pre-activations; the output is o y. The forget gate is a sigmoid, or exponential: then lam is relative to m. */
INLINE slstm_record FN(slstm_forward)(vec i, vec f, vec z, vec o, int exponential_forget, slstm_cell *cell) {
    slstm_record record = {.z = hyperbolic_tangent(z), .o = sigmoid(o), .f_slope = splat(1.0f)};
    const slstm_cell before = *cell;
    vec unused;
    if (exponential_forget) { /* advance_relative of average.py */
        const vec x = i - before.m - f - before.lam, kept = f + before.m;
        cell->m = select((ivec)(kept > i), kept, i);
        const vec grown = before.lam + (f - (cell->m - before.m)) + softplus(x, &record.alpha, &unused);
        const vec written = softplus(-x, &unused, &unused);
        const vec from_empty = select((ivec)(x == INFINITY), i - cell->m, grown);
        cell->lam = select((ivec)(i > kept), written, from_empty);
    } else {
        const vec logf = -softplus(-f, &record.f_slope, &unused);
        /* In this order: lam + logf would round the small logf away, the same way at every step. */
        const vec x = i - logf - before.lam, kept = logf + before.m;
        cell->m = select((ivec)(kept > i), kept, i);
        const vec grown = i + softplus(-x, &unused, &record.alpha);
        cell->lam = select((ivec)(x < SLSTM_CLOSED), before.lam + logf, grown);
    }
    cell->y += record.alpha * (record.z - cell->y);
    return record;
}

/* From the gradient g of the output to those of the pre-activations; `of` goes from after the step to before it. */
INLINE slstm_gates FN(slstm_backward)(slstm_record record, vec y, vec g, slstm_gradient *of) {
    slstm_gates d;
    const vec p = of->y + g * record.o;
    d.i = record.alpha * (of->lam + p * (record.z - y));
    of->lam -= d.i;
    d.f = of->lam * record.f_slope;
    d.z = record.alpha * p * (1.0f - record.z * record.z);
    d.o = g * record.o * y * (1.0f - record.o);
    of->y = p * (1.0f - record.alpha);
    return d;
}

/* A tape holds z, o, alpha, y and the slope of log f, `apart` floats apart. */
INLINE void FN(slstm_store)(float *to, int64_t apart, slstm_record record, vec y) {
    store(to, record.z);
    store(to + apart, record.o);
    store(to + 2 * apart, record.alpha);
    store(to + 3 * apart, y);
    store(to + 4 * apart, record.f_slope);
}
INLINE slstm_record FN(slstm_load)(const float *from, int64_t apart) {
    const slstm_record record = {load(from), load(from + apart), load(from + 2 * apart), load(from + 4 * apart)};
    return record;
}
#define slstm_forward FN(slstm_forward)
#define slstm_backward FN(slstm_backward)
#define slstm_store FN(slstm_store)
#define slstm_load FN(slstm_load)
