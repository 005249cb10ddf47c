/* The compiled backend: plain C called through ctypes with data pointers; no Python and no torch inside.
 *
 * The kernels are compiled once for each instruction set and picked at run time. OpenMP's symbols are not linked:
 * they are those of the library that torch has loaded, so that both share one pool of threads. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
/* A loop with a constant number of rounds, unrolled: its index selects registers. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define EACH(index, count) UNROLL for (int index = 0; index < (count); index++)
#define MAX_ROWS 8    /* batch rows that a thread carries through time together */
#define STEP_ROWS 8   /* batch rows that a thread takes through a step of the stack together */
#define SLSTM_STEPS 8 /* steps whose shares of the weights' gradients are summed at once */
#define MLP_ROWS 128  /* rows that a thread takes through a perceptron together */
#define AHEAD 4       /* steps before its use that an array's cache lines are asked for */
#define PANEL 16      /* columns of a packed matrix that lie together */
#define LANES 16      /* what the number of steps in a chunk is a multiple of: the widest vector */
#define MAX_LANES 64
#define HISTORY 16          /* inputs before a chunk that its convolution reads: at least K - 1 */
#define SLSTM_CLOSED -40.0f /* as in ops/slstm/average.py */
#define MLSTM_EPSILON 1e-6f /* as in ops/mlstm/constants.py */
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#include "types.h"

#define SUFFIX _portable
#define WIDTH 4
#include "kernels.h"

#if defined(__x86_64__) && !defined(__clang__) /* clang has no such pragma: there the portable text serves */
#define SEVERAL_SETS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SUFFIX _avx2
#define WIDTH 8
#include "kernels.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")
#define SUFFIX _avx512
#define WIDTH 16
#include "kernels.h"
#pragma GCC pop_options
#endif

/* Raised whenever the name or the arguments of a function change; core.py asks for it. */
EXPORT int xlstm_interface(void) { return 2; }

/* The widest set that this processor has, or the one that a test asked for: 0 portable, 1 AVX2, 2 AVX-512. */
static int instruction_set = -1;

EXPORT int xlstm_instruction_set(int wanted) {
    int best = 0;
#ifdef SEVERAL_SETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        best = 2;
#endif
    instruction_set = wanted >= 0 && wanted < best ? wanted : best;
    return instruction_set;
}

#ifdef SEVERAL_SETS
#define PICK(name) (instruction_set == 2 ? name##_avx512 : instruction_set == 1 ? name##_avx2 : name##_portable)
#else
#define PICK(name) name##_portable
#endif

/* Share `items` among the threads, each of which allocates `floats` of working memory; the rest is what to do with one
 * `item`, given `work` and the number of the thread's `part`. Sets `failed` where memory ran out. A part is a run of
 * items, always the same one, so that sums over them repeat. */
#define SHARE(items, floats, ...)                                                                                \
    int failed = 0;                                                                                              \
    threads = at_most_items(threads, items);                                                                     \
    _Pragma("omp parallel for num_threads(threads) if (threads > 1) reduction(| : failed)") for (int part = 0;   \
                                                                                                 part < threads; \
                                                                                                 part++) {       \
        float *work = malloc(sizeof(float) * (floats));                                                          \
        failed |= work == NULL;                                                                                  \
        for (int64_t item = (items) * part / threads; work && item < (items) * (part + 1) / threads; item++)     \
            __VA_ARGS__;                                                                                         \
        free(work);                                                                                              \
    }

static int at_most_items(int threads, int64_t items) {
    const int most = threads > items ? (int)items : threads;
    return most > 1 ? most : 1;
}

static int64_t rows_of_block(int64_t M, int64_t block) {
    const int64_t rest = M - block * MLP_ROWS;
    return rest < MLP_ROWS ? rest : MLP_ROWS;
}

/* What the parts have summed up, a block each, into the first; in their order, so that the result repeats. */
static void add_blocks(float *blocks, int64_t floats, int threads) {
    for (int part = 1; part < threads; part++)
        for (int64_t e = 0; e < floats; e++) blocks[e] += blocks[part * floats + e];
}

/* Batch rows that go through time together: fewer where that keeps all threads busy. */
static int rows_together(int64_t B, int64_t NH, int threads) {
    return B <= 4 || (B + MAX_ROWS - 1) / MAX_ROWS * NH < 2 * threads ? 4 : MAX_ROWS;
}

/* The rows and the head of an item, of which there are as many as blocks of rows times heads. */
static row_block block_at(int64_t B, int64_t NH, int together, int64_t item) {
    const int64_t first = item / NH * together;
    return (row_block){item % NH, first, B - first < together ? (int)(B - first) : together};
}

/* The arrays are described in slstm.h. */
EXPORT int xlstm_slstm_forward(const slstm_sizes *size, const float *gates, const float *bias, const float *panels,
                               const uint8_t *resets, const int64_t *lengths, const float *state, float *h, float *tape,
                               float *state_out, int exponential_forget, int threads) {
    const int together = rows_together(size->B, size->NH, threads);
    SHARE(chunks_of(size->B, together) * size->NH, slstm_work_floats(size),
          PICK(slstm_rows)(size, block_at(size->B, size->NH, together, item), gates, bias, panels, resets, lengths,
                           state, h, tape, state_out, exponential_forget, work));
    return failed;
}

/* dweights: one block for each thread, zero on entry; their sum comes back in the first. */
EXPORT int xlstm_slstm_backward(const slstm_sizes *size, const float *panels, const uint8_t *resets,
                                const int64_t *lengths, const float *state, const float *tape, const float *dh,
                                const float *dstate, float *dgates, float *dstate_out, float *dweights, float clip,
                                int threads) {
    const int together = rows_together(size->B, size->NH, threads);
    const int64_t floats = slstm_weight_floats(size);
    SHARE(chunks_of(size->B, together) * size->NH, slstm_work_floats(size),
          PICK(slstm_rows_backward)(size, block_at(size->B, size->NH, together, item), panels, resets, lengths, state,
                                    tape, dh, dstate, dgates, dstate_out, dweights + part * floats, clip, work));
    add_blocks(dweights, floats, threads);
    return failed;
}

/* The arrays are described in mlstm.h. */
EXPORT int xlstm_mlstm_forward(const mlstm_sizes *size, const float *q, const float *k, const float *v, const float *i,
                               const float *logf, const uint8_t *resets, const float *c, const float *n, const float *m,
                               float *h, float *tape, float *memories, float *c_out, float *n_out, float *m_out,
                               int threads) {
    SHARE(size->B * size->NH, mlstm_work_floats(size),
          PICK(mlstm_forward)(size, item, q, k, v, i, logf, resets, c, n, m, h, tape, memories, c_out, n_out, m_out,
                              work));
    return failed;
}

EXPORT int xlstm_mlstm_backward(const mlstm_sizes *size, const float *q, const float *k, const float *v, const float *i,
                                const float *logf, const uint8_t *resets, const float *h, const float *tape,
                                const float *memories, const float *dh, const float *dc, const float *dn, float *dq,
                                float *dk, float *dv, float *di, float *dlogf, float *dc_out, float *dn_out,
                                int threads) {
    SHARE(size->B * size->NH, mlstm_work_floats(size),
          PICK(mlstm_backward)(size, item, q, k, v, i, logf, resets, h, tape, memories, dh, dc, dn, dq, dk, dv, di,
                               dlogf, dc_out, dn_out, work));
    return failed;
}

/* The arrays are described in mlstm_block.h. */
EXPORT int xlstm_mlstm_block_forward(const mlstm_block_sizes *size, const mlstm_block_weights *weights, const float *x,
                                     const float *window, const uint8_t *resets, const int64_t *lengths, const float *c,
                                     const float *n, const float *m, float *y, float *tape, float *memories,
                                     float *window_out, float *c_out, float *n_out, float *m_out, int threads) {
    SHARE(size->B, mlstm_block_work_floats(size),
          PICK(mlstm_block_forward)(size, item, weights, x, window, resets, lengths, c, n, m, y, tape, memories,
                                    window_out, c_out, n_out, m_out, work));
    return failed;
}

/* dweights: arrays of the weights' shapes; up and down are not written for a `wide` block. */
EXPORT int xlstm_mlstm_block_backward(const mlstm_block_sizes *size, const mlstm_block_weights *weights, const float *x,
                                      const float *window, const uint8_t *resets, const int64_t *lengths,
                                      const float *tape, const float *memories, const float *dy,
                                      const float *dwindow_out, const float *dc, const float *dn, float *dx,
                                      float *dwindow, float *dc_out, float *dn_out, float *operands,
                                      const mlstm_block_gradients *dweights, int threads) {
    mlstm_block_gradients unused;
    const int64_t floats = mlstm_block_sums(size, NULL, &unused), D = size->D, E = size->E;
    const int64_t turned_floats = size->wide ? D * whole(2 * E) + E * whole(D) : 0;
    float *sums = calloc(at_most_items(threads, size->B) * floats + turned_floats, sizeof(float));
    if (!sums) return 1;
    float *turned = sums + at_most_items(threads, size->B) * floats;
    if (size->wide) {
        PICK(transpose)(weights->up, D, 2 * E, D, turned, whole(2 * E), whole(2 * E));
        PICK(transpose)(weights->down, E, D, E, turned + D * whole(2 * E), whole(D), whole(D));
    }
    SHARE(size->B, mlstm_block_work_floats(size),
          PICK(mlstm_block_backward)(size, item, weights, x, window, resets, lengths, tape, memories, dy, dwindow_out,
                                     dc, dn, dx, dwindow, dc_out, dn_out, operands, turned, sums + part * floats,
                                     work));
    add_blocks(sums, floats, threads);
    mlstm_block_gather(size, sums, dweights);
    free(sums);
    return failed;
}

/* The arrays are described in slstm_mixer.h. */
EXPORT int xlstm_slstm_mixer_forward(const slstm_mixer_sizes *size, const slstm_mixer_weights *weights, const float *x,
                                     const float *window, const uint8_t *resets, const int64_t *lengths,
                                     const float *state, float *y, float *tape, float *state_out, int threads) {
    const int together = rows_together(size->B, size->NH, threads);
    SHARE(chunks_of(size->B, together) * size->NH, slstm_mixer_work_floats(size),
          PICK(slstm_mixer_rows)(size, block_at(size->B, size->NH, together, item), weights, x, window, resets, lengths,
                                 state, y, tape, state_out, work));
    return failed;
}

/* dweights: one block for each thread, zero on entry; their sum comes back in the first. */
EXPORT int xlstm_slstm_mixer_backward(const slstm_mixer_sizes *size, const slstm_mixer_weights *weights, const float *x,
                                      const float *window, const uint8_t *resets, const int64_t *lengths,
                                      const float *state, const float *tape, const float *dy, const float *dstate,
                                      float *dx, float *dwindow, float *dstate_out, float *dweights, int threads) {
    const int together = rows_together(size->B, size->NH, threads);
    const int64_t floats = slstm_mixer_weight_floats(size);
    SHARE(chunks_of(size->B, together) * size->NH, slstm_mixer_work_floats(size),
          PICK(slstm_mixer_rows_backward)(size, block_at(size->B, size->NH, together, item), weights, x, window, resets,
                                          lengths, state, tape, dy, dstate, dx, dwindow, dstate_out,
                                          dweights + part * floats, work));
    add_blocks(dweights, floats, threads);
    return failed;
}

/* The arrays are described in step.h; resets (B). */
EXPORT int xlstm_step(const step_stack *stack, int64_t B, const float *x, const float *state, const uint8_t *resets,
                      float *y, float *state_out, int threads) {
    SHARE(chunks_of(B, STEP_ROWS), step_work_floats(stack, B < STEP_ROWS ? B : STEP_ROWS),
          PICK(step_rows)(stack, item * STEP_ROWS, B - item * STEP_ROWS < STEP_ROWS ? B - item * STEP_ROWS : STEP_ROWS,
                          x, state, resets, y, state_out, work));
    return failed;
}

/* For each of several networks, with its `size`, do `...`; returns whether memory ran out for one. */
#define EACH_NETWORK(...)                                                                             \
    int failed_once = 0;                                                                              \
    const int64_t *widths = networks->widths;                                                         \
    for (int64_t at = 0; at < networks->num_networks; widths += networks->num_layers[at] + 1, at++) { \
        const tanh_mlp_sizes size = {networks->M, networks->num_layers[at], widths};                  \
        failed_once |= __VA_ARGS__;                                                                   \
        weights += 2 * size.num_layers;                                                               \
    }                                                                                                 \
    return failed_once

static int tanh_mlp_forward(const tanh_mlp_sizes *size, const float *const *weights, const float *x, float *tape,
                            float *y, int threads) {
    SHARE(chunks_of(size->M, MLP_ROWS), tanh_mlp_work_floats(size),
          PICK(tanh_mlp_forward)(size, item * MLP_ROWS, rows_of_block(size->M, item), weights, x, tape, y, work));
    return failed;
}

static int tanh_mlp_backward(const tanh_mlp_sizes *size, const float *const *weights, const float *x, const float *tape,
                             const float *y, const float *dy, float *dx, int adds, float *const *dweights,
                             int threads) {
    const int64_t floats = tanh_mlp_sum_floats(size), blocks = chunks_of(size->M, MLP_ROWS);
    float *sums = calloc(at_most_items(threads, blocks) * floats, sizeof(float));
    if (!sums) return 1;
    SHARE(blocks, tanh_mlp_work_floats(size),
          PICK(tanh_mlp_backward)(size, item * MLP_ROWS, rows_of_block(size->M, item), weights, x, tape, y, dy, dx,
                                  adds, sums + part * floats, work));
    add_blocks(sums, floats, threads);
    tanh_mlp_gather(size, sums, dweights);
    free(sums);
    return failed;
}

/* The arrays are described in tanh_mlp.h, each network's after the other's; dweights: arrays of the weights' shapes. */
EXPORT int xlstm_tanh_mlps_forward(const tanh_mlps_sizes *networks, const float *const *weights, const float *x,
                                   float *const *tapes, float *const *y, int threads) {
    EACH_NETWORK(tanh_mlp_forward(&size, weights, x, tapes[at], y[at], threads));
}

EXPORT int xlstm_tanh_mlps_backward(const tanh_mlps_sizes *networks, const float *const *weights, const float *x,
                                    const float *const *tapes, const float *const *y, const float *const *dy, float *dx,
                                    float *const *dweights, int threads) {
    const float *const *first = weights;
    EACH_NETWORK(tanh_mlp_backward(&size, weights, x, tapes[at], y[at], dy[at], dx, at > 0,
                                   dweights + (weights - first), threads));
}

/* Whether `count` arrays hold the same bytes as their counterparts. */
EXPORT int xlstm_are_same(int64_t count, const void *const *arrays, const void *const *others, const int64_t *bytes) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(arrays[i], others[i], bytes[i])) return 0;
    return 1;
}

/* Importable so that build and import systems treat the library as an ordinary extension; it has nothing in it. */
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_core", "The compiled kernels; called through ctypes.", 0, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void) { return PyModule_Create(&module); }
