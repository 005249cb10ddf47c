/* Small matrix products and transposes on row-major floats; included once an instruction set.
 *
 * "Lanes" are the columns of a matrix that one vector instruction works on: steps of a chunk, or channels. Their
 * number is always a multiple of LANES, padded where need be, so that no loop has a tail. */

/* Lane n of a shuffle is lane f(n, apart) of both vectors, one after the other; compilers want the constants spelled out. */
#define LANES4(f, apart, n) f(n, apart), f(n + 1, apart), f(n + 2, apart), f(n + 3, apart)
#if WIDTH == 16
#define EACH_LANE(f, apart) LANES4(f, apart, 0), LANES4(f, apart, 4), LANES4(f, apart, 8), LANES4(f, apart, 12)
#define EACH_DISTANCE(stage) stage(8) stage(4) stage(2) stage(1)
#elif WIDTH == 8
#define EACH_LANE(f, apart) LANES4(f, apart, 0), LANES4(f, apart, 4)
#define EACH_DISTANCE(stage) stage(4) stage(2) stage(1)
#else
#define EACH_LANE(f, apart) LANES4(f, apart, 0)
#define EACH_DISTANCE(stage) stage(2) stage(1)
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, f, apart) __builtin_shufflevector(a, b, EACH_LANE(f, apart))
#else
#define SHUFFLE(a, b, f, apart) __builtin_shuffle(a, b, (ivec){EACH_LANE(f, apart)})
#endif

/* The sum of a vector's elements. */
#define PARTNER(lane, apart) ((lane) ^ (apart))
INLINE float FN(total)(vec v) {
#define FOLD(apart) v += SHUFFLE(v, v, PARTNER, apart);
    EACH_DISTANCE(FOLD)
#undef FOLD
    return v[0];
}
#define total FN(total)

/* Transpose WIDTH rows of WIDTH elements: at each stage, rows `apart` apart exchange their off-diagonal halves. */
#define UPPER(lane, apart) ((lane) & (apart) ? WIDTH + ((lane) ^ (apart)) : (lane))
#define LOWER(lane, apart) ((lane) & (apart) ? WIDTH + (lane) : (lane) ^ (apart))
INLINE void FN(transpose_square)(vec row[WIDTH]) {
#define EXCHANGE(apart)                                            \
    EACH (i, WIDTH)                                                \
        if (!(i & apart)) {                                        \
            const vec first = row[i], second = row[i | apart];     \
            row[i] = SHUFFLE(first, second, UPPER, apart);         \
            row[i | apart] = SHUFFLE(first, second, LOWER, apart); \
        }
    EACH_DISTANCE(EXCHANGE)
#undef EXCHANGE
}

/* The sums of WIDTH vectors' elements, one in each lane; the vectors are used up. */
INLINE vec FN(totals)(vec row[WIDTH]) {
#define FOLD(apart) \
    EACH (i, apart) \
        row[i] = SHUFFLE(row[i], row[i + apart], UPPER, apart) + SHUFFLE(row[i], row[i + apart], LOWER, apart);
    EACH_DISTANCE(FOLD)
#undef FOLD
    return row[0];
}
#define totals FN(totals)
#undef EACH_LANE
#undef SHUFFLE
#undef EACH_DISTANCE

/* to[c][r] = from[r][c]; `to` gets zeros in its lanes from `rows` to `lanes`. Strides count floats. */
static void FN(transpose)(const float *from, int64_t from_stride, int64_t rows, int64_t columns, float *to,
                          int64_t to_stride, int64_t lanes) {
    for (int64_t r = 0; r < lanes; r += WIDTH) {
        const int64_t count = rows - r < WIDTH ? (rows > r ? rows - r : 0) : WIDTH;
        int64_t c = 0;
        for (; c + WIDTH <= columns; c += WIDTH) {
            vec block[WIDTH];
            if (count == WIDTH) {
                EACH (i, WIDTH) block[i] = load(from + (r + i) * from_stride + c);
            } else {
                for (int i = 0; i < WIDTH; i++)
                    block[i] = i < count ? load(from + (r + i) * from_stride + c) : splat(0.0f);
            }
            FN(transpose_square)(block);
            EACH (i, WIDTH) store(to + (c + i) * to_stride + r, block[i]);
        }
        for (; c < columns; c++)
            for (int64_t i = 0; i < WIDTH; i++)
                to[c * to_stride + r + i] = i < count ? from[(r + i) * from_stride + c] : 0.0f;
    }
}
#define transpose FN(transpose)

/* A tile of `multiply`: its sums stay in registers. */
INLINE void FN(outer_tile)(const int rows, const int vecs, const float *a, int64_t a_row, int64_t a_column,
                           const float *b, int64_t b_stride, int64_t depth, float *out, int64_t out_stride,
                           int accumulate) {
    vec sum[8][2];
    EACH (r, rows)
        EACH (v, vecs) sum[r][v] = accumulate ? load(out + r * out_stride + v * WIDTH) : splat(0.0f);
    for (int64_t k = 0; k < depth; k++, a += a_column, b += b_stride) {
        vec x[2];
        EACH (v, vecs) x[v] = load(b + v * WIDTH);
        EACH (r, rows)
            EACH (v, vecs) sum[r][v] += a[r * a_row] * x[v];
    }
    EACH (r, rows)
        EACH (v, vecs) store(out + r * out_stride + v * WIDTH, sum[r][v]);
}

/* out (rows, lanes) = a (rows, depth) b (depth, lanes), or += where `accumulate`; element (r, k) of a lies at
 * a[r * a_row + k * a_column], which makes transposing it free. */
static void FN(multiply)(int64_t rows, int64_t lanes, int64_t depth, const float *a, int64_t a_row, int64_t a_column,
                         const float *b, int64_t b_stride, float *out, int64_t out_stride, int accumulate) {
    for (int64_t j = 0; j < lanes;) {
        const int vecs = lanes - j >= 2 * WIDTH ? 2 : 1;
        int64_t r = 0;
#define TILES(height)                                                                         \
    for (; r + height <= rows; r += height)                                                   \
        if (vecs == 2)                                                                        \
            FN(outer_tile)(height, 2, a + r * a_row, a_row, a_column, b + j, b_stride, depth, \
                           out + r * out_stride + j, out_stride, accumulate);                 \
        else                                                                                  \
            FN(outer_tile)(height, 1, a + r * a_row, a_row, a_column, b + j, b_stride, depth, \
                           out + r * out_stride + j, out_stride, accumulate)
#if WIDTH == 16
        TILES(8); /* 16 sums fit its 32 registers */
#endif
        TILES(4);
        TILES(1);
#undef TILES
        j += vecs * WIDTH;
    }
}
#define multiply FN(multiply)

/* out[r][c] = in[c][r] for the first `steps` lanes r, written without padding: from channels to steps. */
static void FN(to_steps)(const float *in, int64_t in_stride, int64_t steps, int64_t channels, float *out,
                         int64_t out_stride) {
    for (int64_t t = 0; t < steps; t += WIDTH) {
        const int64_t count = steps - t < WIDTH ? steps - t : WIDTH;
        int64_t c = 0;
        for (; c + WIDTH <= channels; c += WIDTH) {
            vec block[WIDTH];
            EACH (i, WIDTH) block[i] = load(in + (c + i) * in_stride + t);
            FN(transpose_square)(block);
            if (count == WIDTH) {
                EACH (i, WIDTH) store(out + (t + i) * out_stride + c, block[i]);
            } else {
                for (int i = 0; i < count; i++) store(out + (t + i) * out_stride + c, block[i]);
            }
        }
        for (; c < channels; c++)
            for (int64_t i = 0; i < count; i++) out[(t + i) * out_stride + c] = in[c * in_stride + t + i];
    }
}

/* out (rows, panels * PANEL) = a (rows, depth) times panels of a packed matrix, each (depth, PANEL). */
INLINE void FN(panel_tile)(const int rows, const int panels, const float *a, int64_t a_stride, const float *b,
                           int64_t depth, float *out, int64_t out_stride) {
    vec sum[8][8];
    EACH (r, rows)
        EACH (v, panels * PANEL / WIDTH) sum[r][v] = splat(0.0f);
    for (int64_t k = 0; k < depth; k++)
        EACH (v, panels * PANEL / WIDTH) {
            const vec x = load(b + (v * WIDTH / PANEL * depth + k) * PANEL + v * WIDTH % PANEL);
            EACH (r, rows) sum[r][v] += a[r * a_stride + k] * x;
        }
    EACH (r, rows)
        EACH (v, panels * PANEL / WIDTH) store(out + r * out_stride + v * WIDTH, sum[r][v]);
}

/* out (rows, columns) = a (rows, depth) b (depth, columns), with b cut into panels of PANEL columns that lie one after
 * the other. The tiles are those whose sums fit the registers of the instruction set. */
static void FN(project)(int64_t rows, const float *a, int64_t a_stride, const float *b, int64_t depth, int64_t columns,
                        float *out, int64_t out_stride) {
    int64_t r = 0, j;
#define TILES(height, panels)                                                                                  \
    for (; j + panels * PANEL <= columns; j += panels * PANEL)                                                 \
    FN(panel_tile)(height, panels, a + r * a_stride, a_stride, b + j * depth, depth, out + r * out_stride + j, \
                   out_stride)
#if WIDTH == 16
    for (; r + 8 <= rows; r += 8) {
        j = 0;
        TILES(8, 2);
        TILES(8, 1);
    }
    for (; r + 4 <= rows; r += 4) {
        j = 0;
        TILES(4, 4);
        TILES(4, 1);
    }
    for (; r < rows; r++) {
        j = 0;
        TILES(1, 8);
        TILES(1, 4);
        TILES(1, 1);
    }
#else
    for (; r + 4 <= rows; r += 4) {
        j = 0;
        TILES(4, 1);
    }
    for (; r < rows; r++) {
        j = 0;
        TILES(1, 2);
        TILES(1, 1);
    }
#endif
#undef TILES
}
#define project FN(project)
#undef LANES4
#undef PARTNER
#undef UPPER
#undef LOWER
