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
#define UNROLL _Pragma("GCC unroll 8")
#define MAX_ROWS 8 /* batch rows that a thread carries through time together */
#define PANEL 16   /* columns of a packed matrix that lie together */
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef struct {
    int64_t B, S, NH, DH;
} slstm_sizes;

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

/* Importable so that build and import systems treat the library as an ordinary extension; it has nothing in it. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_core", "The compiled kernels; called through ctypes.", 0,
                                    NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void) { return PyModule_Create(&module); }
