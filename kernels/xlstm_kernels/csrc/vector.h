/* Vectors of WIDTH floats and the elementary functions of the gates.
 *
 * Included once for each instruction set, which sets WIDTH and FN(name), the name with the set's suffix. Only
 * GCC's vector extensions are used, so the same text is AVX-512, AVX2 or whatever the compiler has without them. */

typedef float FN(vec) __attribute__((vector_size(WIDTH * 4)));
typedef int32_t FN(ivec) __attribute__((vector_size(WIDTH * 4)));
typedef float FN(uvec) __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
#define vec FN(vec)
#define ivec FN(ivec)
#define uvec FN(uvec)

INLINE vec FN(load)(const float *p) { return (vec) * (const uvec *)p; }
INLINE void FN(store)(float *p, vec v) { *(uvec *)p = (uvec)v; }
INLINE vec FN(splat)(float x) { return x - (vec){0}; }
INLINE vec FN(select)(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
/* NaN in `a` stays NaN: a comparison with it is false. */
INLINE vec FN(at_least)(vec a, vec floor) { return FN(select)((ivec)(a < floor), floor, a); }
INLINE vec FN(at_most)(vec a, vec ceiling) { return FN(select)((ivec)(a > ceiling), ceiling, a); }
INLINE vec FN(magnitude)(vec a) { return (vec)((ivec)a & 0x7fffffff); }
#define load FN(load)
#define store FN(store)
#define splat FN(splat)
#define select FN(select)
#define at_least FN(at_least)
#define at_most FN(at_most)
#define magnitude FN(magnitude)

INLINE vec FN(square_root)(vec a) {
    EACH (i, WIDTH) a[i] = sqrtf(a[i]);
    return a;
}
#define square_root FN(square_root)

/* e^x for x <= 88, relative error 1e-7; 0 below the smallest normal number. */
INLINE vec FN(exponential)(vec x) {
    const ivec vanishes = (ivec)(x < -87.3f);
    x = at_most(at_least(x, splat(-87.3f)), splat(88.0f));
    const vec scaled = x * 1.44269504f;
    const vec half = (vec)(((ivec)scaled & INT32_MIN) | 0x3f000000); /* 0.5 with the sign of x: rounds to nearest */
    const ivec n = __builtin_convertvector(scaled + half, ivec);
    const vec steps = __builtin_convertvector(n, vec);
    const vec r = (x - steps * 0.693359375f) + steps * 2.12194440e-4f; /* ln 2 in two parts: the first is exact */
    /* Minimax of (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2. */
    vec p = splat(1.390128098e-3f);
    p = p * r + 8.363140374e-3f;
    p = p * r + 4.166685339e-2f;
    p = p * r + 1.666657732e-1f;
    p = p * r + 4.999999955e-1f;
    const vec power = (vec)((n + 127) << 23);
    return (vec)((ivec)((p * (r * r) + r + 1.0f) * power) & ~vanishes);
}

/* log(1 + u) for u in [0, 1]: 2 artanh(u / (2 + u)), relative error 1e-7. */
INLINE vec FN(log1p_unit)(vec u) {
    const vec s = u / (u + 2.0f), t = s * s;
    vec p = splat(1.161674465e-1f);
    p = p * t + 1.085227527e-1f;
    p = p * t + 1.429624880e-1f;
    p = p * t + 1.999985163e-1f;
    p = p * t + 3.333333367e-1f;
    return 2.0f * s + 2.0f * s * t * p;
}
#define exponential FN(exponential)
#define log1p_unit FN(log1p_unit)

INLINE vec FN(sigmoid)(vec x) {
    const vec e = exponential(-magnitude(x)), q = 1.0f / (1.0f + e);
    return select((ivec)(x < 0.0f), e * q, q);
}
INLINE vec FN(hyperbolic_tangent)(vec x) {
    const vec e = exponential(-2.0f * magnitude(x)), t = (1.0f - e) / (1.0f + e);
    return (vec)((ivec)t | ((ivec)x & INT32_MIN));
}
/* softplus(x) = log(1 + e^x), and from the same exponential sigmoid(x) and sigmoid(-x). */
INLINE vec FN(softplus)(vec x, vec *rising, vec *falling) {
    const vec e = exponential(-magnitude(x)), q = 1.0f / (1.0f + e);
    const ivec negative = (ivec)(x < 0.0f);
    *rising = select(negative, e * q, q);
    *falling = select(negative, q, e * q);
    return at_least(x, splat(0.0f)) + log1p_unit(e);
}
#define sigmoid FN(sigmoid)
#define hyperbolic_tangent FN(hyperbolic_tangent)
#define softplus FN(softplus)

/* x Phi(x) with the error function of Abramowitz & Stegun 7.1.26, absolute error 1.5e-7. */
INLINE vec FN(gelu)(vec x) {
    const vec a = magnitude(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * a);
    vec p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const vec tail = 0.5f * p * t * exponential(-a * a); /* 1 - Phi(|x|) */
    return x * select((ivec)(x < 0.0f), tail, 1.0f - tail);
}
#define gelu FN(gelu)
