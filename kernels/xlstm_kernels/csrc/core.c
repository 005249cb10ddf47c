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
#define UNROLL _Pragma("GCC unroll 16")
#define MAX_ROWS 8 /* batch rows that a thread carries through time together */
#define STEP_ROWS 8 /* batch rows that a thread takes through a step of the stack together */
#define SLSTM_STEPS 8 /* steps whose shares of the weights' gradients are summed at once */
#define PANEL 16   /* columns of a packed matrix that lie together */
#define LANES 16   /* what the number of steps in a chunk is a multiple of: the widest vector */
#define MAX_LANES 64
#define HISTORY 16 /* inputs before a chunk that its convolution reads: at least K - 1 */
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

/* Rows that go through time together: fewer where that keeps all threads busy. */
static int rows_together(const slstm_sizes *size, int threads) {
    const int64_t blocks = (size->B + MAX_ROWS - 1) / MAX_ROWS * size->NH;
    return size->B <= 4 || blocks < 2 * threads ? 4 : MAX_ROWS;
}

static float *slstm_work(const slstm_sizes *size) {
    return malloc(sizeof(float) * MAX_ROWS * 8 * size->DH);
}

#define PARALLEL _Pragma("omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)")
#define SHARED_LOOP _Pragma("omp for schedule(static)")

/* Run the kernel `name` for every head and block of rows, over the threads; return 0, or 1 when memory ran out. */
#define EACH_BLOCK(name, ...)                                                                                    \
    const int together = rows_together(size, threads);                                                           \
    const int64_t blocks = (size->B + together - 1) / together;                                                  \
    int failed = 0;                                                                                              \
    PARALLEL {                                                                                                   \
        float *work = slstm_work(size);                                                                          \
        failed = work == NULL;                                                                                   \
        SHARED_LOOP for (int64_t item = 0; item < blocks * size->NH; item++) {                                   \
            const int64_t head = item / blocks, first = item % blocks * together;                                \
            const int count = size->B - first < together ? (int)(size->B - first) : together;                    \
            if (work) PICK(name)(size, head, first, count, __VA_ARGS__, work);                                   \
        }                                                                                                        \
        free(work);                                                                                              \
    }                                                                                                            \
    return failed

/* The arrays are described in slstm.h. */
EXPORT int xlstm_slstm_forward(const slstm_sizes *size, const float *gates, const float *bias, const float *panels,
                               const uint8_t *resets, const int64_t *lengths, const float *state, float *h, float *tape,
                               float *state_out, int exponential_forget, int threads) {
    EACH_BLOCK(forward_rows, gates, bias, panels, resets, lengths, state, h, tape, state_out, exponential_forget);
}

EXPORT int xlstm_slstm_backward(const slstm_sizes *size, const float *panels, const uint8_t *resets,
                                const int64_t *lengths, const float *tape, const float *dh, const float *dstate,
                                float *dgates, float *dstate_out, float clip, int threads) {
    EACH_BLOCK(backward_rows, panels, resets, lengths, tape, dh, dstate, dgates, dstate_out, clip);
}

/* Working memory of a head: its memory and the arrays of a chunk. */
static float *mlstm_work(const mlstm_sizes *size) {
    const mlstm_head *head = &size->head;
    return malloc(sizeof(float) * (memory_floats(head) + size->chunk * (4 * head->DK + 4 * head->DV) +
                                   chunk_floats(head, size->chunk)));
}

#define EACH_HEAD(name, ...)                                                                                     \
    int failed = 0;                                                                                              \
    PARALLEL {                                                                                                   \
        float *work = mlstm_work(size);                                                                          \
        failed = work == NULL;                                                                                   \
        SHARED_LOOP for (int64_t item = 0; item < size->B * size->NH; item++)                                    \
            if (work) PICK(name)(size, item, __VA_ARGS__, work);                                                 \
        free(work);                                                                                              \
    }                                                                                                            \
    return failed

/* The arrays are described in mlstm.h. */
EXPORT int xlstm_mlstm_forward(const mlstm_sizes *size, const float *q, const float *k, const float *v, const float *i,
                               const float *logf, const uint8_t *resets, const float *c, const float *n, const float *m,
                               float *h, float *tape, float *memories, float *c_out, float *n_out, float *m_out,
                               int threads) {
    EACH_HEAD(mlstm_forward, q, k, v, i, logf, resets, c, n, m, h, tape, memories, c_out, n_out, m_out);
}

EXPORT int xlstm_mlstm_backward(const mlstm_sizes *size, const float *q, const float *k, const float *v, const float *i,
                                const float *logf, const uint8_t *resets, const float *h, const float *tape,
                                const float *memories, const float *dh, const float *dc, const float *dn, float *dq,
                                float *dk, float *dv, float *di, float *dlogf, float *dc_out, float *dn_out,
                                int threads) {
    EACH_HEAD(mlstm_backward, q, k, v, i, logf, resets, h, tape, memories, dh, dc, dn, dq, dk, dv, di, dlogf, dc_out,
              dn_out);
}

/* Run the kernel `name` for every batch row; thread `part` of `threads` takes a run of rows and the block `part`. */
#define EACH_ROW(name, ...)                                                                                      \
    int failed = 0;                                                                                              \
    if (threads > size->B) threads = (int)size->B;                                                               \
    _Pragma("omp parallel for num_threads(threads) if (threads > 1) reduction(| : failed)")                      \
    for (int part = 0; part < threads; part++) {                                                                 \
        float *work = mlstm_mixer_work(size);                                                                          \
        failed |= work == NULL;                                                                                  \
        for (int64_t b = size->B * part / threads; work && b < size->B * (part + 1) / threads; b++)              \
            PICK(name)(size, b, __VA_ARGS__, work);                                                              \
        free(work);                                                                                              \
    }

/* Always in the order of the threads, so that a result repeats. */
static void add_blocks(float *blocks, int64_t floats, int threads) {
    for (int part = 1; part < threads; part++)
        for (int64_t e = 0; e < floats; e++) blocks[e] += blocks[part * floats + e];
}

static float *mlstm_mixer_work(const mlstm_mixer_sizes *size) {
    mlstm_mixer_arrays unused;
    return malloc(sizeof(float) * (size->NH * memory_floats(&size->head) + size->E * LANES + mlstm_mixer_share(size, NULL, &unused)));
}

/* The arrays are described in mlstm_mixer.h. */
EXPORT int xlstm_mlstm_mixer_forward(const mlstm_mixer_sizes *size, const mlstm_mixer_weights *weights, const float *up,
                               const float *window, const uint8_t *resets, const float *c, const float *n, const float *m,
                               float *y, float *tape, float *memories, float *c_out, float *n_out, float *m_out, int threads) {
    EACH_ROW(mlstm_mixer_forward, weights, up, window, resets, c, n, m, y, tape, memories, c_out, n_out, m_out);
    return failed;
}

/* dweights: one block for each thread, zero on entry; their sum comes back in the first. */
EXPORT int xlstm_mlstm_mixer_backward(const mlstm_mixer_sizes *size, const mlstm_mixer_weights *weights, const float *up,
                                const float *window, const uint8_t *resets, const float *tape, const float *memories,
                                const float *dy, const float *dc, const float *dn, float *dup, float *dwindow,
                                float *dc_out, float *dn_out, float *dweights, int threads) {
    const int64_t floats = mlstm_mixer_weight_floats(size);
    EACH_ROW(mlstm_mixer_backward, weights, up, window, resets, tape, memories, dy, dc, dn, dup, dwindow, dc_out, dn_out,
             dweights + part * floats);
    add_blocks(dweights, floats, threads);
    return failed;
}

/* Run the kernel `name` for every head and block of rows; thread `part` takes a run of them and the block `part`. */
#define EACH_PART(name, ...)                                                                                     \
    const slstm_sizes whole_size = {size->B, size->S, size->NH, size->DH};                                       \
    const int together = rows_together(&whole_size, threads);                                                    \
    const int64_t blocks = (size->B + together - 1) / together, items = blocks * size->NH;                       \
    int failed = 0;                                                                                              \
    if (threads > items) threads = (int)items;                                                                   \
    _Pragma("omp parallel for num_threads(threads) if (threads > 1) reduction(| : failed)")                      \
    for (int part = 0; part < threads; part++) {                                                                 \
        float *work = malloc(sizeof(float) * slstm_mixer_work_floats(size));                                     \
        failed |= work == NULL;                                                                                  \
        for (int64_t item = items * part / threads; work && item < items * (part + 1) / threads; item++) {       \
            const int64_t first = item / size->NH * together;                                                    \
            const int count = size->B - first < together ? (int)(size->B - first) : together;                    \
            PICK(name)(size, item % size->NH, first, count, __VA_ARGS__, work);                                  \
        }                                                                                                        \
        free(work);                                                                                              \
    }

/* The arrays are described in slstm_mixer.h. */
EXPORT int xlstm_slstm_mixer_forward(const slstm_mixer_sizes *size, const slstm_mixer_weights *weights, const float *x,
                                     const float *window, const uint8_t *resets, const float *state, float *y, float *tape,
                                     float *state_out, int threads) {
    EACH_PART(slstm_mixer_forward, weights, x, window, resets, state, y, tape, state_out);
    return failed;
}

/* dweights: one block for each thread, zero on entry; their sum comes back in the first. */
EXPORT int xlstm_slstm_mixer_backward(const slstm_mixer_sizes *size, const slstm_mixer_weights *weights, const float *x,
                                      const float *window, const uint8_t *resets, const float *state, const float *tape,
                                      const float *dy, const float *dstate, float *dx, float *dwindow, float *dstate_out,
                                      float *dweights, int threads) {
    const int64_t floats = slstm_mixer_weight_floats(size);
    EACH_PART(slstm_mixer_backward, weights, x, window, resets, state, tape, dy, dstate, dx, dwindow, dstate_out,
              dweights + part * floats);
    add_blocks(dweights, floats, threads);
    return failed;
}

/* The arrays are described in step.h; resets (B). */
EXPORT int xlstm_step(const step_stack *stack, int64_t B, const float *x, const float *state, const uint8_t *resets, float *y,
                      float *state_out, int threads) {
    const int64_t together = B <= STEP_ROWS ? B : STEP_ROWS, tiles = (B + together - 1) / together;
    int failed = 0;
    if (threads > tiles) threads = (int)tiles;
    PARALLEL {
        float *work = malloc(sizeof(float) * together * (2 * stack->D + 5 * stack->widest));
        failed = work == NULL;
        SHARED_LOOP for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t first = tile * together, rows = B - first < together ? B - first : together;
            if (work) PICK(step_rows)(stack, first, rows, x, state, resets, y, state_out, work);
        }
        free(work);
    }
    return failed;
}

/* Importable so that build and import systems treat the library as an ordinary extension; it has nothing in it. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_core", "The compiled kernels; called through ctypes.", 0,
                                    NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void) { return PyModule_Create(&module); }
