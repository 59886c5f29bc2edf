/* The register tiles: the loops that all time is spent in.

   dot_tile     y[b][o]  = sum over k of x[b][k] w[o][k]     lanes run along k, for both operands
   axpy_tile    y[r][i] += sum over s of a[r][s] v[s][i]     lanes run along i; a is a scalar for the whole vector
   update_tile  both axpys of a backward_update for one example, or the first alone
   packed_tile  what dot_tile computes, bit for bit, from a transposed copy of W: lanes run along o. Without sums over
                lanes it is faster where k is short, if the batch is large enough to pay for the copy; or from a copy of
                x, with lanes along b, if there are outputs enough
   narrow_tile  the same for a k so short that all of a copy stays in registers (32 of them; else in L1)

   A tile keeps rows x cols vectors of sums in registers: as many as there are, less those for the operands, because
   each load then serves the most multiply-adds. The file includes itself once for each dtype.

   The order of additions is part of the interface, and the same for every vector width (README, Promises). dot_tile:
   element k goes to lane k mod LANES, where LANES is that of a 64-byte vector; each lane is a chain of multiply-adds in
   rising k, from 0; lane l is added to lane l + LANES/2, then to l + LANES/4, ... A shorter vector walks k once for
   each PART of the 64 bytes. axpy_tile: a chain of multiply-adds in rising s. */
#ifndef REAL

#include "_vector.h"

#define PARTS (64 / VECTOR_BYTES)
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#if defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL16 _Pragma("GCC unroll 16")
#define PREFETCH(p) __builtin_prefetch((const void *)(p), 1)
#define PREFETCH_L2(p) __builtin_prefetch((const void *)(p), 0, 2)
#else
#define UNROLL
#define UNROLL16
#define PREFETCH(p)
#define PREFETCH_L2(p)
#endif

/* The tiles that there are: T(rows, cols) for each. Fewer rows leave registers for more columns, down to the vector
   (one row), where eight rows of W at once beat four by half from memory: more streams for the prefetcher. An update
   of eight rows is slower than one of six where in is a power of two: with x and y they are ten lines in an 8-way set
   of L1. 4x4 axpy tiles are 25 % slower than 6x4 (more loads a multiply-add), and so are 12x2 ones where rows are 4 KiB
   apart, with a copy of either operand or both. Prefetching W 8 to 32 vectors ahead for the vector's eight streams
   gained nothing from L2 or L3 and cost a tenth from memory; the next rows, into L2, are another matter (`ahead`).

   Packed tiles of 2x3, 3x4 and 6x4 vectors with 4, 2 and 1 lanes at a time were slower than six rows of one vector
   with four lanes (80, 87, 98 against 110 GFLOP/s at 256x256, batch 256). */
#define TO2(T, r) T(r, 1) T(r, 2)
#define TO3(T, r) TO2(T, r) T(r, 3)
#define TO4(T, r) TO3(T, r) T(r, 4)
#define TO5(T, r) TO4(T, r) T(r, 5)
#define TO6(T, r) TO5(T, r) T(r, 6)
#define TO8(T, r) TO6(T, r) T(r, 7) T(r, 8)
#if VECTOR_REGISTERS == 32
enum { DOT_ROWS = 6, AXPY_ROWS = 6, UPDATE_ROWS = 6 };
static const int DOT_COLS[DOT_ROWS + 1] = {0, 8, 8, 8, 6, 5, 4};
static const int AXPY_COLS[AXPY_ROWS + 1] = {0, 8, 8, 6, 5, 4, 4};
#define DOT_TILES(T) TO8(T, 1) TO8(T, 2) TO8(T, 3) TO6(T, 4) TO5(T, 5) TO4(T, 6)
#define AXPY_TILES(T) TO8(T, 1) TO8(T, 2) TO6(T, 3) TO5(T, 4) TO4(T, 5) TO4(T, 6)
#define AXPY_ROWS_OF_TILES(T) T(1, 8) T(2, 8) T(3, 6) T(4, 5) T(5, 4) T(6, 4)
#define UPDATE_TILES(T) T(1) T(2) T(3) T(4) T(5) T(6)
enum { PACKED_ROWS = 6, PACKED_LANES = 4 / PARTS };
#define PACKED_TILES(T) T(1) T(2) T(3) T(4) T(5) T(6)
#else
enum { DOT_ROWS = 4, AXPY_ROWS = 6, UPDATE_ROWS = 4 };
static const int DOT_COLS[DOT_ROWS + 1] = {0, 8, 6, 4, 3};
static const int AXPY_COLS[AXPY_ROWS + 1] = {0, 8, 4, 3, 3, 2, 2};
#define DOT_TILES(T) TO8(T, 1) TO6(T, 2) TO4(T, 3) TO3(T, 4)
#define AXPY_TILES(T) TO8(T, 1) TO4(T, 2) TO3(T, 3) TO3(T, 4) TO2(T, 5) TO2(T, 6)
#define AXPY_ROWS_OF_TILES(T) T(1, 8) T(2, 4) T(3, 3) T(4, 3) T(5, 2) T(6, 2)
#define UPDATE_TILES(T) T(1) T(2) T(3) T(4)
#if VECTOR_BYTES == 32
enum { PACKED_ROWS = 6, PACKED_LANES = 1 }; /* three rows with two lanes at a time read twice as much from L2: -20 % */
#define PACKED_TILES(T) T(1) T(2) T(3) T(4) T(5) T(6)
#else
enum { PACKED_ROWS = 3, PACKED_LANES = 1 };
#define PACKED_TILES(T) T(1) T(2) T(3)
#endif
#endif
#define NARROW_TILES(T) T(1) T(2) T(3) T(4) T(5) T(6) T(7) T(8) T(9) T(10) T(11) T(12) T(13) T(14) T(15) T(16)
enum { NARROW = 16, TILE_COLS = 8, FAR_STEPS = 64 };

/* What an axpy_tile does with its output: continue the chain that is there, start a chain and overwrite, or start a
   chain and add it to what is there. */
enum axpy_mode { AXPY_CONTINUE, AXPY_START, AXPY_ADD };

/* i with its bits in reverse order, for i < n, a power of two: the order in which a tree of sums meets the lanes. */
INLINE int reversed(int i, int n) {
    int r = 0;
    for (; n > 1; n /= 2, i /= 2) r = 2 * r + i % 2;
    return r;
}

#define REAL float
#define SUFFIX f32
#include "_tile.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "_tile.h"

#else

#define NAME(name) JOIN(name, SUFFIX)
#define VEC NAME(vec)
#define WIDTH ((int)(sizeof(VEC) / sizeof(REAL)))
#define LANES (PARTS * WIDTH)

/* n elements at p, a whole vector at most: with n known, whole vectors take the shorter way. */
INLINE VEC NAME(get)(const REAL *p, int n) { return n == WIDTH ? NAME(load)(p) : NAME(load_first)(p, n); }
INLINE void NAME(put)(REAL *p, VEC v, int n) {
    if (n == WIDTH) NAME(store)(p, v);
    else NAME(store_first)(p, v, n);
}

/* The sums over one block of k of n outputs at p: p = sums if first, else p + sums; plus the bias where one is given. */
INLINE void NAME(finish)(REAL *p, VEC sums, int n, const REAL *bias, int first) {
    if (!first) sums = NAME(add)(NAME(get)(p, n), sums);
    if (bias) sums = NAME(add)(sums, NAME(get)(bias, n));
    NAME(put)(p, sums, n);
}

/* One block of k: y = sums if first, else y + sums; plus the bias where one is given (it comes last). W goes on
   `ahead` elements from here, and is fetched from there meanwhile unless that is 0. */
INLINE void NAME(dot_tile)(const REAL *x, ptrdiff_t x_row, const REAL *w, ptrdiff_t w_row, ptrdiff_t k,
                           REAL *y, ptrdiff_t y_row, const REAL *bias, int first, ptrdiff_t ahead,
                           const int rows, const int cols) {
    VEC sum[PARTS][DOT_ROWS][TILE_COLS];
    const int rest = (int)(k % LANES);

#define STEP(LOAD, ...) { \
        VEC xs[DOT_ROWS]; \
        UNROLL for (int r = 0; r < rows; r++) xs[r] = NAME(LOAD)(x + r * x_row + s + part * WIDTH, ##__VA_ARGS__); \
        UNROLL for (int c = 0; c < cols; c++) { \
            VEC wc = NAME(LOAD)(w + c * w_row + s + part * WIDTH, ##__VA_ARGS__); \
            HOLD(wc); \
            UNROLL for (int r = 0; r < rows; r++) acc[r][c] = NAME(fma)(xs[r], wc, acc[r][c]); \
        } \
    }
    for (int part = 0; part < PARTS; part++) {
        VEC acc[DOT_ROWS][TILE_COLS];
        ptrdiff_t s;
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < cols; c++) acc[r][c] = NAME(zero)();
        for (s = 0; s < k - rest; s += LANES) {
            if (ahead && part == 0) UNROLL for (int c = 0; c < cols; c++) PREFETCH_L2(w + c * w_row + s + ahead);
            STEP(load)
        }
        if (rest) {
            const int left = rest - part * WIDTH;
            const int n = left < 0 ? 0 : left < WIDTH ? left : WIDTH;
            STEP(load_first, n)
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < cols; c++) sum[part][r][c] = acc[r][c];
    }
#undef STEP

    UNROLL for (int r = 0; r < rows; r++) {
        for (int h = PARTS / 2; h; h /= 2)
            for (int part = 0; part < h; part++)
                UNROLL for (int c = 0; c < cols; c++)
                    sum[part][r][c] = NAME(add)(sum[part][r][c], sum[part + h][r][c]);
        VEC *lanes = sum[0][r];
        int n = cols;
        UNROLL for (int w = WIDTH / 2; w; w /= 2) {
            UNROLL for (int c = 0; c < (n + 1) / 2; c++)
                lanes[c] = NAME(fold)(lanes[2 * c], lanes[2 * c + 1 < n ? 2 * c + 1 : 2 * c], w);
            n = (n + 1) / 2;
        }
        UNROLL for (int c = 0; c < cols; c += WIDTH) {
            const int count = cols - c < WIDTH ? cols - c : WIDTH;
            NAME(finish)(y + r * y_row + c, lanes[c / WIDTH], count, bias ? bias + c : 0, first);
        }
    }
}

/* a[r][s] is a[r * a_row + s * a_step]; v and y are `cols` vectors wide, the last with `tail` elements (0: full). */
INLINE void NAME(axpy_tile)(ptrdiff_t steps, const REAL *a, ptrdiff_t a_row, ptrdiff_t a_step,
                            const REAL *v, ptrdiff_t v_row, REAL *y, ptrdiff_t y_row,
                            enum axpy_mode mode, int tail, const int rows, const int cols) {
    VEC acc[AXPY_ROWS][TILE_COLS];
#define COUNT(c) (tail && (c) == cols - 1 ? tail : WIDTH)

    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < cols; c++)
            acc[r][c] = mode == AXPY_CONTINUE ? NAME(get)(y + r * y_row + c * WIDTH, COUNT(c)) : NAME(zero)();
    /* The next tile's y comes from afar while this one is busy: 5 %. With few steps there is no time for that. */
    if (steps >= FAR_STEPS)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < cols; c++) PREFETCH(y + r * y_row + (cols + c) * WIDTH);
    for (ptrdiff_t s = 0; s < steps; s++) {
        VEC vs[TILE_COLS];
        UNROLL for (int c = 0; c < cols; c++) {
            vs[c] = NAME(get)(v + s * v_row + c * WIDTH, COUNT(c));
            HOLD(vs[c]);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const VEC ar = NAME(splat)(a[r * a_row + s * a_step]);
            UNROLL for (int c = 0; c < cols; c++) acc[r][c] = NAME(fma)(ar, vs[c], acc[r][c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < cols; c++) {
            REAL *p = y + r * y_row + c * WIDTH;
            NAME(put)(p, mode == AXPY_ADD ? NAME(add)(NAME(get)(p, COUNT(c)), acc[r][c]) : acc[r][c], COUNT(c));
        }
#undef COUNT
}

/* copy[s][r] = scale a[s][r], r < rows, as the `a` of an axpy_tile of that many rows with a_step = rows. Writes up to
   a vector more than that. */
static void NAME(scaled)(ptrdiff_t steps, int rows, REAL scale, const REAL *a, ptrdiff_t a_step, REAL *copy) {
    const VEC scales = NAME(splat)(scale);
    for (ptrdiff_t s = 0; s < steps; s++)
        for (int r = 0; r < rows; r += WIDTH)
            NAME(store)(copy + s * rows + r,
                        NAME(mul)(scales, NAME(load_first)(a + s * a_step + r, rows - r < WIDTH ? rows - r : WIDTH)));
}

/* For one example, both of its axpys in one pass over `rows` rows of W: y[i] += sum over r of g[r] W[r][i], which
   begins at 0 if first, and, to write, W[r][i] += scale g[r] x[i]; `ahead` as for dot_tile. */
INLINE void NAME(update_tile)(ptrdiff_t width, const REAL *x, const REAL *g, REAL scale, REAL *w, ptrdiff_t w_row,
                              REAL *y, int first, ptrdiff_t ahead, const int write, const int rows) {
    VEC gs[UPDATE_ROWS], steps[UPDATE_ROWS], before[UPDATE_ROWS];
    UNROLL for (int r = 0; r < rows; r++) {
        gs[r] = NAME(splat)(g[r]);
        steps[r] = NAME(splat)(scale * g[r]);
    }
    /* All loads before the first store: in is often a multiple of 4 KiB, and a load waits for a store before it whose
       address ends in the same 12 bits. */
#define COLUMNS(LOAD, STORE, ...) { \
        VEC sum = first ? NAME(zero)() : NAME(LOAD)(y + i, ##__VA_ARGS__); \
        UNROLL for (int r = 0; r < rows; r++) before[r] = NAME(LOAD)(w + r * w_row + i, ##__VA_ARGS__); \
        if (ahead) UNROLL for (int r = 0; r < rows; r++) PREFETCH_L2(w + r * w_row + i + ahead); \
        UNROLL for (int r = 0; r < rows; r++) sum = NAME(fma)(gs[r], before[r], sum); \
        if (write) { \
            const VEC xs = NAME(LOAD)(x + i, ##__VA_ARGS__); \
            UNROLL for (int r = 0; r < rows; r++) \
                NAME(STORE)(w + r * w_row + i, NAME(fma)(steps[r], xs, before[r]), ##__VA_ARGS__); \
        } \
        NAME(STORE)(y + i, sum, ##__VA_ARGS__); \
    }
    ptrdiff_t i = 0;
    for (; i + WIDTH <= width; i += WIDTH) COLUMNS(load, store)
    if (i < width) COLUMNS(load_first, store_first, (int)(width - i))
#undef COLUMNS
}

/* A square of WIDTH vectors, transposed. It is in square[0] before, and in square[the result] after. */
INLINE int NAME(transpose)(VEC square[2][WIDTH]) {
    int turn = 0;
    UNROLL16 for (int size = WIDTH; size > 1; size /= 2, turn = !turn)
        UNROLL16 for (int r = 0; r < WIDTH; r++)
            square[!turn][r] = NAME(zip)(square[turn][r / 2], square[turn][r / 2 + WIDTH / 2], r % 2);
    return turn;
}

/* y[b][o] = sums[o][b] if first, else y + sums; plus the bias where one is given. sums has LANES elements a row, of
   which the first `rows` count. */
static void NAME(turned)(const REAL *sums, int rows, int outs, REAL *y, ptrdiff_t y_row, const REAL *bias, int first) {
    for (int o = 0; o < outs; o += WIDTH)
        for (int b = 0; b < rows; b += WIDTH) {
            VEC square[2][WIDTH];
            const int count = outs - o < WIDTH ? outs - o : WIDTH;
            UNROLL16 for (int c = 0; c < WIDTH; c++)
                square[0][c] = NAME(load)(sums + (o + (c < count ? c : 0)) * LANES + b);
            const int turn = NAME(transpose)(square);
            UNROLL16 for (int r = 0; r < WIDTH; r++)
                if (b + r < rows)
                    NAME(finish)(y + (b + r) * y_row + o, square[turn][r], count, bias ? bias + o : 0, first);
        }
}

/* What dot_tile computes, for k up to NARROW (and rows of x and W that long) and up to LANES outputs: W, transposed,
   stays in registers, or L1, while the rows of x pass. A lane that ends before the others adds +0 to its sum, and so
   does one without elements: no more than a sum of -0 notices that, so that one such addition at the end stands for
   all. */
INLINE void NAME(narrow_tile)(ptrdiff_t rows, const REAL *x, const REAL *w, REAL *y, ptrdiff_t y_row, const REAL *bias,
                              const int outs, const int k) {
    const int padded = k % LANES != 0;
    for (int part = 0; part < PARTS; part++) {
        const int count = outs - part * WIDTH < WIDTH ? outs - part * WIDTH : WIDTH;
        VEC columns[NARROW + WIDTH], add = NAME(zero)();
        if (count <= 0) break;
        UNROLL16 for (int k0 = 0; k0 < k; k0 += WIDTH) {
            VEC square[2][WIDTH];
            UNROLL16 for (int o = 0; o < WIDTH; o++)
                square[0][o] = NAME(get)(w + (part * WIDTH + (o < count ? o : count - 1)) * k + k0,
                                         k - k0 < WIDTH ? k - k0 : WIDTH);
            const int turn = NAME(transpose)(square);
            UNROLL16 for (int j = 0; j < WIDTH; j++) columns[k0 + j] = square[turn][j];
        }
        if (bias) add = NAME(get)(bias + part * WIDTH, count);
        for (ptrdiff_t b = 0; b < rows; b++) {
            VEC lane[LANES];
            UNROLL16 for (int l = 0; l < LANES && l < k; l++) {
                const VEC xl = NAME(splat)(x[b * k + l]);
                lane[l] = padded ? NAME(mul)(xl, columns[l]) : NAME(fma)(xl, columns[l], NAME(zero)());
                if (l + LANES < k) lane[l] = NAME(fma)(NAME(splat)(x[b * k + l + LANES]), columns[l + LANES], lane[l]);
            }
            UNROLL16 for (int n = LANES / 2; n; n /= 2)
                UNROLL16 for (int l = 0; l < n && l + n < k; l++) lane[l] = NAME(add)(lane[l], lane[l + n]);
            if (padded) lane[0] = NAME(add)(lane[0], NAME(zero)());
            if (bias) lane[0] = NAME(add)(lane[0], add);
            NAME(put)(y + b * y_row + part * WIDTH, lane[0], count);
        }
    }
}

/* W's first `outs` rows (LANES at most), elements k < n, transposed for packed_tile: for each group of PACKED_LANES
   lanes, in the order of the tree of sums, for each step, for each lane of the group, the 64 bytes of W[.][k]. There
   are 0s past the last element, and the last row stands for those past it. */
static void NAME(pack)(const REAL *w, ptrdiff_t w_row, int outs, ptrdiff_t n, REAL *packed) {
    const ptrdiff_t steps = (n + LANES - 1) / LANES;
    for (int part = 0; part < PARTS; part++)
        for (ptrdiff_t k = 0; k < steps * LANES; k += WIDTH) {
            VEC square[2][WIDTH];
            const int wide = k + WIDTH <= n ? WIDTH : k < n ? (int)(n - k) : 0;
            UNROLL16 for (int r = 0; r < WIDTH; r++) {
                const int o = part * WIDTH + r < outs ? part * WIDTH + r : outs - 1;
                square[0][r] = wide ? NAME(get)(w + o * w_row + k, wide) : NAME(zero)();
            }
            const int turn = NAME(transpose)(square);
            UNROLL16 for (int r = 0; r < WIDTH; r++) {
                const int at = reversed((int)(k % LANES) + r, LANES);
                const ptrdiff_t step = at / PACKED_LANES * steps + k / LANES;
                NAME(store)(packed + (step * PACKED_LANES + at % PACKED_LANES) * LANES + part * WIDTH, square[turn][r]);
            }
        }
}

/* One block of k, as dot_tile: y = sums if first, else y + sums; plus the bias where one is given; of LANES outputs. x
   goes on `ahead` elements from here, and is fetched from there meanwhile unless that is 0: spread over the steps, for
   in one go before the tile it is slower than not at all. */
INLINE void NAME(packed_tile)(const REAL *x, ptrdiff_t x_row, const REAL *packed, ptrdiff_t k, REAL *y, ptrdiff_t y_row,
                              const REAL *bias, int first, ptrdiff_t ahead, const int rows) {
    enum { GROUPS = LANES / PACKED_LANES };
    REAL last[PACKED_ROWS][LANES]; /* what is left of x after whole steps, and zeros */
    VEC waiting[5][PACKED_ROWS][PARTS]; /* sums of 1, 2, 4, ... groups of lanes */
    const ptrdiff_t whole = k / LANES;
    const int rest = (int)(k % LANES);
    int level = 0;

#define EACH_SUM UNROLL for (int r = 0; r < rows; r++) UNROLL for (int part = 0; part < PARTS; part++)
    if (rest) EACH_SUM {
        const int left = rest - part * WIDTH;
        const int n = left < 0 ? 0 : left < WIDTH ? left : WIDTH;
        NAME(store)(last[r] + part * WIDTH, NAME(load_first)(x + r * x_row + whole * LANES + part * WIDTH, n));
    }
    UNROLL for (int group = 0; group < GROUPS; group++) {
        VEC acc[PACKED_LANES][PACKED_ROWS][PARTS];
        const int base = reversed(group, GROUPS);
        UNROLL for (int l = 0; l < PACKED_LANES; l++) EACH_SUM acc[l][r][part] = NAME(zero)();
#define STEP(FROM, ROW) \
        UNROLL for (int l = 0; l < PACKED_LANES; l++) { \
            const REAL *from = (FROM) + base + reversed(l, PACKED_LANES) * GROUPS; \
            VEC ws[PARTS]; \
            UNROLL for (int part = 0; part < PARTS; part++) ws[part] = NAME(load)(packed + l * LANES + part * WIDTH); \
            UNROLL for (int r = 0; r < rows; r++) { \
                const VEC xs = NAME(splat)(from[r * (ROW)]); \
                UNROLL for (int part = 0; part < PARTS; part++) \
                    acc[l][r][part] = NAME(fma)(xs, ws[part], acc[l][r][part]); \
            } \
        } \
        packed += PACKED_LANES * LANES;
        for (ptrdiff_t s = 0; s < whole; s++) {
            if (ahead) UNROLL for (int r = group; r < rows; r += GROUPS) PREFETCH_L2(x + r * x_row + s * LANES + ahead);
            STEP(x + s * LANES, x_row)
        }
        if (rest) { STEP(last[0], LANES) }
#undef STEP
        UNROLL for (int n = PACKED_LANES / 2; n; n /= 2)
            UNROLL for (int l = 0; l < n; l++)
                EACH_SUM acc[l][r][part] = NAME(add)(acc[2 * l][r][part], acc[2 * l + 1][r][part]);
        UNROLL for (level = 0; group >> level & 1; level++)
            EACH_SUM acc[0][r][part] = NAME(add)(waiting[level][r][part], acc[0][r][part]);
        EACH_SUM waiting[level][r][part] = acc[0][r][part];
    }

    EACH_SUM NAME(finish)(y + r * y_row + part * WIDTH, waiting[level][r][part], WIDTH,
                          bias ? bias + part * WIDTH : 0, first);
#undef EACH_SUM
}

/* One function for each shape of tile, the two tables of them, and what a loop calls: dot() takes the tile that is
   `rows` by `cols` sums, axpy() the one that is `rows` high and `width` elements wide. */
#define DOT_ARGUMENTS const REAL *x, ptrdiff_t x_row, const REAL *w, ptrdiff_t w_row, ptrdiff_t k, \
    REAL *y, ptrdiff_t y_row, const REAL *bias, int first, ptrdiff_t ahead
#define DEFINE(r, c) static void NAME(dot_##r##x##c)(DOT_ARGUMENTS) { \
    NAME(dot_tile)(x, x_row, w, w_row, k, y, y_row, bias, first, ahead, r, c); \
}
DOT_TILES(DEFINE)
#undef DEFINE
#define ENTRY(r, c) [r][c] = NAME(dot_##r##x##c),
static void (*const NAME(dot_table)[DOT_ROWS + 1][TILE_COLS + 1])(DOT_ARGUMENTS) = {DOT_TILES(ENTRY)};
#undef ENTRY
INLINE void NAME(dot)(int rows, int cols, DOT_ARGUMENTS) {
    NAME(dot_table)[rows][cols](x, x_row, w, w_row, k, y, y_row, bias, first, ahead);
}

#define AXPY_ARGUMENTS ptrdiff_t steps, const REAL *a, ptrdiff_t a_row, ptrdiff_t a_step, \
    const REAL *v, ptrdiff_t v_row, REAL *y, ptrdiff_t y_row, enum axpy_mode mode
#define DEFINE(r, c) \
    static void NAME(axpy_##r##x##c)(AXPY_ARGUMENTS, int tail) { \
        if (tail) NAME(axpy_tile)(steps, a, a_row, a_step, v, v_row, y, y_row, mode, tail, r, c); \
        else NAME(axpy_tile)(steps, a, a_row, a_step, v, v_row, y, y_row, mode, 0, r, c); \
    }
AXPY_TILES(DEFINE)
#undef DEFINE
#define ENTRY(r, c) [r][c] = NAME(axpy_##r##x##c),
static void (*const NAME(axpy_last)[AXPY_ROWS + 1][TILE_COLS + 1])(AXPY_ARGUMENTS, int) = {AXPY_TILES(ENTRY)};
#undef ENTRY
/* A row of tiles: the whole ones in a loop, for with few steps the price of a call shows; then what is left. */
#define DEFINE(r, c) \
    static void NAME(axpy_##r)(ptrdiff_t width, AXPY_ARGUMENTS) { \
        for (; width >= c * WIDTH; width -= c * WIDTH, v += c * WIDTH, y += c * WIDTH) \
            NAME(axpy_tile)(steps, a, a_row, a_step, v, v_row, y, y_row, mode, 0, r, c); \
        if (width) \
            NAME(axpy_last)[r][(width + WIDTH - 1) / WIDTH](steps, a, a_row, a_step, v, v_row, y, y_row, mode, \
                                                            (int)(width % WIDTH)); \
    }
AXPY_ROWS_OF_TILES(DEFINE)
#undef DEFINE
#define ENTRY(r, c) [r] = NAME(axpy_##r),
static void (*const NAME(axpy_table)[AXPY_ROWS + 1])(ptrdiff_t, AXPY_ARGUMENTS) = {AXPY_ROWS_OF_TILES(ENTRY)};
#undef ENTRY
INLINE void NAME(axpy)(int rows, ptrdiff_t width, AXPY_ARGUMENTS) {
    NAME(axpy_table)[rows](width, steps, a, a_row, a_step, v, v_row, y, y_row, mode);
}

#define UPDATE_ARGUMENTS ptrdiff_t width, const REAL *x, const REAL *g, REAL scale, REAL *w, ptrdiff_t w_row, \
    REAL *y, int first, ptrdiff_t ahead
#define DEFINE(r) \
    static void NAME(update_##r)(UPDATE_ARGUMENTS) { \
        if (x) NAME(update_tile)(width, x, g, scale, w, w_row, y, first, ahead, 1, r); \
        else NAME(update_tile)(width, x, g, scale, w, w_row, y, first, ahead, 0, r); \
    }
UPDATE_TILES(DEFINE)
#undef DEFINE
#define ENTRY(r) [r] = NAME(update_##r),
static void (*const NAME(update_table)[UPDATE_ROWS + 1])(UPDATE_ARGUMENTS) = {UPDATE_TILES(ENTRY)};
#undef ENTRY
INLINE void NAME(update)(int rows, UPDATE_ARGUMENTS) {
    NAME(update_table)[rows](width, x, g, scale, w, w_row, y, first, ahead);
}

/* Of rows of LANES sums the first `outs`: y = sums if first, else y + sums; plus the bias where one is given. */
static void NAME(place)(int rows, int outs, const REAL *sums, REAL *y, ptrdiff_t y_row, const REAL *bias, int first) {
    for (; rows > 0; rows--, sums += LANES, y += y_row)
        for (int o = 0; o < outs; o += WIDTH) {
            const int count = outs - o < WIDTH ? outs - o : WIDTH;
            NAME(finish)(y + o, NAME(load)(sums + o), count, bias ? bias + o : 0, first);
        }
}

#define PACKED_ARGUMENTS int outs, const REAL *x, ptrdiff_t x_row, const REAL *packed, ptrdiff_t k, \
    REAL *y, ptrdiff_t y_row, const REAL *bias, int first, ptrdiff_t ahead
#define DEFINE(r) static void NAME(packed_##r)(PACKED_ARGUMENTS) { \
    REAL sums[PACKED_ROWS * LANES]; \
    if (outs < LANES) { \
        NAME(packed_tile)(x, x_row, packed, k, sums, LANES, 0, 1, 0, r); \
        NAME(place)(r, outs, sums, y, y_row, bias, first); \
    } else if (ahead) NAME(packed_tile)(x, x_row, packed, k, y, y_row, bias, first, ahead, r); \
    else NAME(packed_tile)(x, x_row, packed, k, y, y_row, bias, first, 0, r); \
}
PACKED_TILES(DEFINE)
#undef DEFINE
#define ENTRY(r) [r] = NAME(packed_##r),
static void (*const NAME(packed_table)[PACKED_ROWS + 1])(PACKED_ARGUMENTS) = {PACKED_TILES(ENTRY)};
#undef ENTRY
INLINE void NAME(packed)(int rows, PACKED_ARGUMENTS) {
    NAME(packed_table)[rows](outs, x, x_row, packed, k, y, y_row, bias, first, ahead);
}

#define NARROW_ARGUMENTS ptrdiff_t rows, const REAL *x, const REAL *w, REAL *y, ptrdiff_t y_row, const REAL *bias
#define DEFINE(k) \
    static void NAME(narrow_##k)(int outs, NARROW_ARGUMENTS) { \
        if (outs == LANES) NAME(narrow_tile)(rows, x, w, y, y_row, bias, LANES, k); \
        else NAME(narrow_tile)(rows, x, w, y, y_row, bias, outs, k); \
    }
NARROW_TILES(DEFINE)
#undef DEFINE
#define ENTRY(k) [k] = NAME(narrow_##k),
static void (*const NAME(narrow_table)[NARROW + 1])(int, NARROW_ARGUMENTS) = {NARROW_TILES(ENTRY)};
#undef ENTRY
INLINE void NAME(narrow)(int outs, ptrdiff_t k, NARROW_ARGUMENTS) {
    NAME(narrow_table)[k](outs, rows, x, w, y, y_row, bias);
}

#undef NARROW_ARGUMENTS
#undef DOT_ARGUMENTS
#undef AXPY_ARGUMENTS
#undef UPDATE_ARGUMENTS
#undef PACKED_ARGUMENTS
#undef NAME
#undef VEC
#undef WIDTH
#undef LANES

#endif
