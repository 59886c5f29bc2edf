/* The register tiles: the loops that all time is spent in.

   forward, whose sums have lanes that run along k (in_features):
     dot_tile     rows of x by rows of W, both as they are
     lanes_tile   the same from a packed panel of W: the vectors run along the outputs
     narrow_tile  the same for a k so short that all of a panel stays in registers, or in L1
   grad_input, grad_weight, whose sums are plain chains:
     axpy_tile    y[r][i] += sum over s of a[r][s] v[s][i]: a scalar for a whole vector; operands packed or as they are
     chains_tile  the same for few y: the blocks of s that are added up apart go side by side
     thin_tile    grad_weight of few rows where a row of W is less than a vector, and column, where it is one element
     update_tile  both axpys of a backward_update for one example, or the first alone

   A tile keeps rows x cols vectors of sums in registers: as many as there are, less those for the operands, because
   each load then serves the most multiply-adds. The file includes itself once for each dtype; what a loop calls is
   named without one, and C chooses by the type of an argument.

   The order of additions is part of the interface, and the same for every vector width (README, Promises). Forward:
   element k goes to lane k mod LANES, of which there are 32 bytes; each lane is a chain of multiply-adds in
   rising k, from 0; lane l is added to lane l + LANES/2, then to l + LANES/4, ... A lane that ends before the others, and
   one without elements, counts as if 0 were added to it. The others: a chain of multiply-adds in rising s. */
#ifndef REAL

#include "_vector.h"

#if defined(__GNUC__) || defined(__clang__)
#define NOINLINE __attribute__((noinline)) /* where it is called often, and large: compiling it takes long */
#define PREFETCH(p) __builtin_prefetch((const void *)(p), 1)
#define PREFETCH_L2(p) __builtin_prefetch((const void *)(p), 0, 2)
#else
#define NOINLINE
#define PREFETCH(p)
#define PREFETCH_L2(p)
#endif

/* The shapes of tiles: a tile with r rows has at most DOT_COLS[r] or AXPY_COLS[r] columns of sums. Fewer rows leave
   registers for more columns, down to the vector (one row), where eight rows of W at once beat four by half from memory:
   more streams for the prefetcher. That was on AVX-512; on AVX2 with a busy neighbour four beat eight by 5 to 60 % from
   memory, most where rows are a power of two apart, and lose up to a tenth in cache (FAR_COLS). An update of eight rows is slower than one of six where in is a power of two: with x
   and y they are ten lines in an 8-way set of L1. 4x4 axpy tiles are 25 % slower than 6x4 (more loads a multiply-add), and
   so are 12x2 ones where rows are 4 KiB apart, with a copy of either operand or both. Prefetching W 8 to 32 vectors ahead
   for the vector's eight streams gained nothing from L2 or L3 and cost a tenth from memory; the next rows, into L2, are
   another matter (`ahead`).

   A lanes_tile is LANES_ROWS by PANEL_VECTORS, and goes along k once for each lane. On AVX2 4x3 reaches 0.60, 0.86, 0.91 of
   the multiply-add peak at k = 30, 100, 1024, and 4x2 0.72, 0.91, 0.86. But where the core's other thread is busy, what
   counts is instructions for each multiply-add, and 4x3 gains 7 to 18 % from k = 100 on and loses up to 12 % below, where
   the others are far behind. Slower were 3x2, 2x2, 5x2 and 6x2 tiles, two lanes at once, a prefetch of the panel or of
   the next rows of x, which pushes out what L1 holds, and shorter blocks of k. A loop over the lanes that is not unrolled
   costs a tenth at short k, two steps at a time up to a quarter of float32. On AVX-512, when a sum had 16 lanes, 2x3, 3x4
   and 6x4 vectors were slower than six rows (80, 87, 98 against 110 GFLOP/s).
   Stores are what a short k waits for: 32 bytes cost Zen 3 a cycle of both its multiply-add units. So no more sums go to
   memory than one for each level of the tree in which lanes meet. Packing x as well, in panels that lanes of the batch
   share, was no faster at any shape once this was so.

   LOWER_ROWS, with more columns, are for 3 or 5 vectors on AVX2, where the tallest tiles would leave one by itself: up to
   half faster. (5 and 9 on AVX-512, where nobody has timed it.) */
enum { MOST_ROWS = 6, LOWER_ROWS = 4, MOST_COLS = 8, NARROW = 16, FAR_STEPS = 64, PANELS = 8 };
enum { THIN_OUTS = 128 }; /* of a thin_tile at a time */
#if VECTOR_REGISTERS == 32
enum { DOT_ROWS = 6, FAR_COLS = 8, UPDATE_ROWS = 6, LANES_ROWS = 6, PANEL_VECTORS = 2 };
static const int DOT_COLS[MOST_ROWS + 1] = {0, 8, 8, 8, 6, 5, 4};
static const int AXPY_COLS[MOST_ROWS + 1] = {0, 8, 8, 6, 5, 4, 4};
#else
enum { DOT_ROWS = 3, FAR_COLS = 4, UPDATE_ROWS = 4, LANES_ROWS = 4, PANEL_VECTORS = HAS_FMA ? 3 : 2 };
static const int DOT_COLS[MOST_ROWS + 1] = {0, 8, 6, 4, 0, 0, 0};
static const int AXPY_COLS[MOST_ROWS + 1] = {0, 8, 4, 3, 3, 2, 2};
#endif
#define EACH_COLS(T, r) T(r, 1) T(r, 2) T(r, 3) T(r, 4) T(r, 5) T(r, 6) T(r, 7) T(r, 8)
#define EACH_SHAPE(T) EACH_COLS(T, 1) EACH_COLS(T, 2) EACH_COLS(T, 3) EACH_COLS(T, 4) EACH_COLS(T, 5) EACH_COLS(T, 6)
#define EACH_ROWS(T) T(1) T(2) T(3) T(4) T(5) T(6)
#if VECTOR_REGISTERS == 16 && HAS_FMA
#define EACH_PART(T, r) T(r, 1) T(r, 2) T(r, 3)
#else
#define EACH_PART(T, r) T(r, 1) T(r, 2)
#endif
#define EACH_PANEL(T) EACH_PART(T, 1) EACH_PART(T, 2) EACH_PART(T, 3) EACH_PART(T, 4) EACH_PART(T, 5) EACH_PART(T, 6)

#define EACH_NARROW(T) EACH_COLS(T, k) T(k, 9) T(k, 10) T(k, 11) T(k, 12) T(k, 13) T(k, 14) T(k, 15) T(k, 16)

/* What a tile of grad_input or grad_weight does with its output: continue the chain that is there, start a chain and
   overwrite, or start a chain and add it to what is there. */
enum axpy_mode { AXPY_CONTINUE, AXPY_START, AXPY_ADD };

/* Where forward's sums over a block of k go: y[r][c] = sums if first, else y + sums; then the bias, in the last block. */
struct ending {
    void *y;
    ptrdiff_t row; /* of y */
    const void *bias; /* or NULL */
    int first;
};

/* n sums for y[r][c], ... */
#define ENDING(real, suffix, ...) \
    INLINE void finish_##suffix(const struct ending *end, ptrdiff_t r, ptrdiff_t c, vec_##suffix sums, int n) { \
        real *p = (real *)end->y + r * end->row + c; \
        if (!end->first) sums = add_##suffix(get_##suffix(p, n), sums); \
        if (end->bias) sums = add_##suffix(sums, get_##suffix((const real *)end->bias + c, n)); \
        put_##suffix(p, sums, n); \
    }
EACH_VECTOR(ENDING)

#define REAL float
#define SUFFIX f32
#include "_tile.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "_tile.h"

/* What the loops call: the function for the dtype of the first operand. */
#define dot(rows, cols, x, ...) BY_DTYPE(x, dot_table)[rows][cols](x, __VA_ARGS__)
#define lanes(rows, cols, x, ...) BY_DTYPE(x, lanes)(rows, cols, x, __VA_ARGS__)
#define axpy(rows, width, steps, a, ...) BY_DTYPE(a, axpy_table)[rows](width, steps, a, __VA_ARGS__)
#define chains(n, width, steps, a, ...) BY_DTYPE(a, chains)(n, width, steps, a, __VA_ARGS__)
#define column(outs, steps, x, ...) BY_DTYPE(x, column)(outs, steps, x, __VA_ARGS__)
#define thin(cols, outs, steps, x, ...) BY_DTYPE(x, thin)(cols, outs, steps, x, __VA_ARGS__)
#define update_rows(rows, width, x, ...) BY_DTYPE(x, update_table)[rows](width, x, __VA_ARGS__)
#define narrow(k, outs, rows, x, ...) BY_DTYPE(x, narrow_table)[k](outs, rows, x, __VA_ARGS__)
#define transpose_rows(rows, k, from, ...) BY_DTYPE(from, transpose_rows)(rows, k, from, __VA_ARGS__)
#define lane_stride(x, k) BY_DTYPE(x, lane_stride)(k)
#define pack_lanes(rows, k, from, ...) BY_DTYPE(from, pack_lanes)(rows, k, from, __VA_ARGS__)
#define copy_scaled(steps, width, high, a, ...) BY_DTYPE(a, copy_scaled)(steps, width, high, a, __VA_ARGS__)

#else

/* The elements side by side in a panel for lanes_tile, and how often the lanes of a sum meet. */
#define PANEL (PANEL_VECTORS * WIDTH)
#define LEVELS (LANES / 4 + 1) /* of 8 or 4 lanes */

/* ---- forward */

/* The next rows of W are `ahead` elements further on, and are fetched meanwhile unless `ahead` is 0. */
INLINE void NAME(dot_tile)(const REAL *x, ptrdiff_t x_row, const REAL *w, ptrdiff_t w_row, ptrdiff_t k,
                           const struct ending *end, ptrdiff_t ahead, const int rows, const int cols) {
    LANE_VEC sum[LANE_PARTS][MOST_ROWS][MOST_COLS];
    const int rest = (int)(k % LANES);

#define STEP(LOAD, ...) { \
        LANE_VEC xs[MOST_ROWS]; \
        UNROLL for (int r = 0; r < rows; r++) xs[r] = IN_LANES(LOAD)(x + r * x_row + s + part * LANE_WIDTH, ##__VA_ARGS__); \
        UNROLL for (int c = 0; c < cols; c++) { \
            LANE_VEC wc = IN_LANES(LOAD)(w + c * w_row + s + part * LANE_WIDTH, ##__VA_ARGS__); \
            HOLD(wc); \
            UNROLL for (int r = 0; r < rows; r++) acc[r][c] = IN_LANES(fma)(xs[r], wc, acc[r][c]); \
        } \
    }
    for (int part = 0; part < LANE_PARTS; part++) {
        LANE_VEC acc[MOST_ROWS][MOST_COLS];
        ptrdiff_t s;
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < cols; c++) acc[r][c] = IN_LANES(zero)();
        for (s = 0; s < k - rest; s += LANES) {
            if (ahead && part == 0) UNROLL for (int c = 0; c < cols; c++) PREFETCH_L2(w + c * w_row + s + ahead);
            STEP(load)
        }
        if (rest) {
            const int n = IN_LANES(part_of)(rest, part * LANE_WIDTH);
            STEP(load_first, n)
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < cols; c++) sum[part][r][c] = acc[r][c];
    }
#undef STEP

    UNROLL for (int r = 0; r < rows; r++) {
        for (int h = LANE_PARTS / 2; h; h /= 2)
            for (int part = 0; part < h; part++)
                UNROLL for (int c = 0; c < cols; c++)
                    sum[part][r][c] = IN_LANES(add)(sum[part][r][c], sum[part + h][r][c]);
        LANE_VEC *lanes = sum[0][r];
        int n = cols;
        UNROLL for (int w = LANE_WIDTH / 2; w; w /= 2) {
            UNROLL for (int c = 0; c < (n + 1) / 2; c++)
                lanes[c] = IN_LANES(fold)(lanes[2 * c], lanes[2 * c + 1 < n ? 2 * c + 1 : 2 * c], w);
            n = (n + 1) / 2;
        }
        UNROLL for (int c = 0; c < cols; c += LANE_WIDTH)
            IN_LANES(finish)(end, r, c, lanes[c / LANE_WIDTH], cols - c < LANE_WIDTH ? cols - c : LANE_WIDTH);
    }
}

/* Elements k, k + 1, ... of WIDTH rows, transposed: vector c of the result is element k + c of every row. */
INLINE void NAME(transpose)(const REAL *const rows[WIDTH], ptrdiff_t k, VEC columns[WIDTH]) {
    UNROLL for (int begin = 0; begin < WIDTH; begin += SIDE(REAL)) {
        VEC v[2][SIDE(REAL)];
        const REAL *at[WIDTH];
        int now = 0;
        UNROLL16 for (int r = 0; r < WIDTH; r++) at[r] = rows[r] + k + begin;
        UNROLL for (int r = 0; r < SIDE(REAL); r++) v[0][r] = NAME(pieces)(at + r);
        UNROLL for (int side = SIDE(REAL); side > 1; side /= 2, now = !now)
            UNROLL for (int r = 0; r < SIDE(REAL); r++)
                v[!now][r] = NAME(zip)(v[now][r / 2], v[now][r / 2 + SIDE(REAL) / 2], r % 2);
        UNROLL for (int c = 0; c < SIDE(REAL); c++) columns[begin + c] = v[now][c];
    }
}

/* The same of `count` rows that lie `row` apart and of which `wide` elements are there: the last row stands for those past
   it, 0 for elements. */
static NOINLINE void NAME(transpose_some)(const REAL *from, ptrdiff_t row, int count, int wide, VEC columns[WIDTH]) {
    REAL edge[WIDTH * WIDTH];
    const REAL *rows[WIDTH];
    UNROLL16 for (int r = 0; r < WIDTH; r++) {
        const REAL *p = from + (r < count ? r : count - 1) * row;
        rows[r] = p;
        if (wide < WIDTH) {
            NAME(store)(edge + r * WIDTH, NAME(load_first)(p, wide));
            rows[r] = edge + r * WIDTH;
        }
    }
    NAME(transpose)(rows, 0, columns);
}

/* Packs the first `rows` rows, elements k < n, of `from` in a panel of `height`: element k of row r goes to
   to[k % LANES * lane + k / LANES * step + r]. The last row stands for those past it. */
INLINE void NAME(pack_panel)(int rows, ptrdiff_t n, const REAL *from, ptrdiff_t row, REAL *to, ptrdiff_t lane,
                             ptrdiff_t step, const int height) {
    const int over = (WIDTH - 1) / height; /* columns that a whole vector reaches into */
#define PLACE(k) (to + (size_t)(k) % LANES * lane + (size_t)(k) / LANES * step + r)
    for (int r = 0; r < height; r += WIDTH) {
        const int count = NAME(part_of)(height, r), first = r < rows ? r : rows - 1;
        const REAL *at[WIDTH];
        VEC columns[WIDTH];
        ptrdiff_t k = 0;
        UNROLL16 for (int j = 0; j < WIDTH; j++) at[j] = from + (first + j < rows ? first + j : rows - 1) * row;
        /* A column shorter than a vector is stored as one, and the next one overwrites what is too much. */
        if (count == WIDTH || r == 0)
            for (; k + WIDTH + over <= n; k += WIDTH) {
                NAME(transpose)(at, k, columns);
                UNROLL16 for (int j = 0; j < WIDTH; j++) NAME(store)(PLACE(k + j), columns[j]);
            }
        for (; k < n; k += WIDTH) {
            const int wide = n < WIDTH ? (int)n : WIDTH;
            if (n >= WIDTH && k + WIDTH > n) k = n - WIDTH; /* some of them once more */
            if (n < WIDTH) NAME(transpose_some)(at[0], row, rows - first, wide, columns);
            else NAME(transpose)(at, k, columns);
            for (int j = 0; j < wide; j++) NAME(put)(PLACE(k + j), columns[j], count);
        }
    }
#undef PLACE
}
/* For lanes_tile: PANEL rows side by side, the steps of a lane one after another, and lanes lane_stride apart: with a line
   between them, because lanes that begin a multiple of 4 KiB apart would share a set of L1. */
INLINE ptrdiff_t NAME(lane_stride)(ptrdiff_t n) { return ((size_t)n + LANES - 1) / LANES * PANEL + LINE; }
static void NAME(pack_lanes)(int rows, ptrdiff_t n, const REAL *from, ptrdiff_t row, REAL *to) {
    NAME(pack_panel)(rows, n, from, row, to, NAME(lane_stride)(n), PANEL, PANEL);
}
/* to[k][r] = from[r][k]: lanes and steps that make up rows of `to`. */
static void NAME(transpose_rows)(int rows, ptrdiff_t n, const REAL *from, ptrdiff_t row, REAL *to) {
    NAME(pack_panel)(rows, n, from, row, to, rows, LANES * rows, rows);
}
/* For axpy_tile, rows that lie the other way: to[s][r] = scale a[s][r] in panels of `high` elements of each row, one behind
   another, the last of which has what is left. Some panels go together, because a line of `a` has elements of several, and
   can come from afar. */
INLINE void NAME(copy_panels)(ptrdiff_t steps, ptrdiff_t width, const REAL *a, ptrdiff_t a_step, REAL scale, REAL *to,
                              const int high) {
    const VEC scales = NAME(splat)(scale);
    const ptrdiff_t whole = width / high;
    const int left = (int)(width % high);
    for (ptrdiff_t first = 0; first < whole; first += PANELS) {
        const int some = whole - first < PANELS ? (int)(whole - first) : PANELS;
        const int room = (first + some - 1) * high + WIDTH <= width; /* to read a whole vector */
        for (ptrdiff_t s = 0; s < steps; s++) {
            const REAL *from = a + s * a_step + first * high;
            REAL *p = to + (first * steps + s) * high;
            for (int panel = 0; panel < some; panel++, from += high, p += steps * high)
                UNROLL for (int r = 0; r < high; r += WIDTH) {
                    const int n = high - r < WIDTH ? high - r : WIDTH;
                    const VEC v = NAME(mul)(scales, r == 0 && room ? NAME(load)(from) : NAME(get)(from + r, n));
                    if (r == 0 && s * high + WIDTH <= steps * high) NAME(store)(p, v);
                    else NAME(put)(p + r, v, n);
                }
        }
    }
    a += whole * high;
    to += whole * high * steps;
    for (ptrdiff_t s = 0; s < steps && left; s++, a += a_step)
        for (int r = 0; r < left; r++) *to++ = scale * a[r];
}
static void NAME(copy_scaled)(ptrdiff_t steps, ptrdiff_t width, int high, const REAL *a, ptrdiff_t a_step, REAL scale,
                              REAL *to) {
#define COPY(size) if (high == (size)) NAME(copy_panels)(steps, width, a, a_step, scale, to, size); else
    COPY(2 * WIDTH) COPY(4 * WIDTH) COPY(8 * WIDTH) COPY(AXPY_COLS[LOWER_ROWS] * WIDTH)
    COPY(MOST_ROWS) COPY(MOST_ROWS - 1) COPY(LOWER_ROWS) NAME(copy_panels)(steps, width, a, a_step, scale, to, high);
}

/* w is a panel by pack_lanes, `parts` vectors of which count, the last with n elements. One lane after another, in the
   order in which their sums meet: so few of them wait, and they meet in registers or close by. */
INLINE void NAME(lanes_tile)(const REAL *x, ptrdiff_t x_row, const REAL *w, ptrdiff_t k, const struct ending *end, int n,
                             const int rows, const int parts) {
    VEC waiting[LEVELS + 1][MOST_ROWS][PANEL_VECTORS]; /* sums of 1, 2, 4, ... lanes */
    const ptrdiff_t whole = (size_t)k / LANES;
    const int rest = (int)((size_t)k % LANES);

#define EACH_SUM UNROLL for (int r = 0; r < rows; r++) UNROLL for (int p = 0; p < parts; p++)
    if (!end->first) UNROLL for (int r = 0; r < rows; r++) PREFETCH((REAL *)end->y + r * end->row);
    UNROLL for (int turn = 0; turn < LANES; turn++) {
        const int lane = turn % 2 * (LANES / 2) + turn / 2 % 2 * (LANES / 4) + turn / 4;
        int level = 0;
        const REAL *xs = x + lane, *ws = w + lane * NAME(lane_stride)(k), *const stop = ws + (whole + (lane < rest)) * PANEL;
        VEC acc[MOST_ROWS][PANEL_VECTORS];
        EACH_SUM acc[r][p] = NAME(zero)();
        for (; ws < stop; xs += LANES, ws += PANEL) {
            VEC wp[PANEL_VECTORS];
            UNROLL for (int p = 0; p < parts; p++) {
                wp[p] = NAME(load)(ws + p * WIDTH);
                HOLD(wp[p]);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                VEC xr = NAME(splat)(xs[r * x_row]);
                HOLD(xr);
                UNROLL for (int p = 0; p < parts; p++) acc[r][p] = NAME(fma)(xr, wp[p], acc[r][p]);
            }
        }
        for (; turn >> level & 1; level++) EACH_SUM acc[r][p] = NAME(add)(waiting[level][r][p], acc[r][p]);
        EACH_SUM waiting[level][r][p] = acc[r][p];
    }
#define SUM waiting[LEVELS][r][p]
#define COUNT (p == parts - 1 ? n : WIDTH)
    /* The 0s of lanes that ended before the others: no more than a sum of -0 notices, so that one stands for all. */
    if (rest) EACH_SUM SUM = NAME(add)(SUM, NAME(zero)());
    /* As `finish` does, which asks and loads the bias anew for each vector: that cost 4 to 14 % at k up to 64. */
    if (!end->first) EACH_SUM SUM = NAME(add)(NAME(get)((REAL *)end->y + r * end->row + p * WIDTH, COUNT), SUM);
    if (end->bias) UNROLL for (int p = 0; p < parts; p++) {
        const VEC bias = NAME(get)((const REAL *)end->bias + p * WIDTH, COUNT);
        UNROLL for (int r = 0; r < rows; r++) SUM = NAME(add)(SUM, bias);
    }
    EACH_SUM NAME(put)((REAL *)end->y + r * end->row + p * WIDTH, SUM, COUNT);
#undef COUNT
#undef SUM
#undef EACH_SUM
}

/* For k up to NARROW (and rows of x and W that long): the columns of `count` rows of W stay in registers, or L1, while the
   rows of x pass. If `inside`, count is WIDTH, and whole vectors can be read from the rows. */
INLINE void NAME(narrow_vector)(ptrdiff_t rows, const REAL *x, const REAL *w, const struct ending *end, ptrdiff_t o,
                                const int count, const int inside, const int k) {
    const int padded = k % LANES != 0;
    const REAL *at[WIDTH];
    VEC columns[NARROW + WIDTH];
    UNROLL16 for (int r = 0; r < WIDTH; r++) at[r] = w + r * k;
    UNROLL16 for (int k0 = 0; k0 < k; k0 += WIDTH)
        if (k == 1) columns[0] = NAME(get)(w, count);
        else if (inside) NAME(transpose)(at, k0, columns + k0);
        else NAME(transpose_some)(w + k0, k, count, k - k0 < WIDTH ? k - k0 : WIDTH, columns + k0);
    for (ptrdiff_t b = 0; b < rows; b++) {
        VEC lane[LANES];
        UNROLL16 for (int l = 0; l < LANES && l < k; l++) {
            const VEC xl = NAME(splat)(x[b * k + l]);
            lane[l] = padded ? NAME(mul)(xl, columns[l]) : NAME(fma)(xl, columns[l], NAME(zero)());
            UNROLL for (int s = l + LANES; s < k; s += LANES)
                lane[l] = NAME(fma)(NAME(splat)(x[b * k + s]), columns[s], lane[l]);
        }
        UNROLL16 for (int n = LANES / 2; n; n /= 2)
            UNROLL16 for (int l = 0; l < (k - n < n ? k - n : n); l++) lane[l] = NAME(add)(lane[l], lane[l + n]);
        if (padded) lane[0] = NAME(add)(lane[0], NAME(zero)());
        NAME(finish)(end, b, o, lane[0], count);
    }
}
INLINE void NAME(narrow_tile)(ptrdiff_t outs, ptrdiff_t rows, const REAL *x, const REAL *w, const struct ending *end,
                              const int k) {
    const ptrdiff_t room = outs * k - ((WIDTH - 1) * k + (k - 1) / WIDTH * WIDTH + WIDTH); /* W ends there, or later */
    ptrdiff_t o = 0;
    for (; o * k <= room; o += WIDTH) NAME(narrow_vector)(rows, x, w + o * k, end, o, WIDTH, 1, k);
    for (; o < outs; o += WIDTH) NAME(narrow_vector)(rows, x, w + o * k, end, o, NAME(part_of)(outs, o), 0, k);
}

/* ---- grad_input and grad_weight */

/* a[r][s] is a[r * a_row + s * a_step]; v and y are `cols` vectors wide, the last of which begins early enough to be
   whole: its first elements are computed twice. If it is the only one, `tail` of its elements are there. 0: all of the
   last are new. */
INLINE void NAME(axpy_tile)(ptrdiff_t steps, const REAL *a, ptrdiff_t a_row, ptrdiff_t a_step,
                            const REAL *v, ptrdiff_t v_row, REAL *y, ptrdiff_t y_row, ptrdiff_t next,
                            enum axpy_mode mode, int tail, const int rows, const int cols) {
    VEC acc[MOST_ROWS][MOST_COLS];
    const int count = cols == 1 && tail ? tail : WIDTH;
#define AT(c) ((c) * WIDTH - (cols > 1 && tail && (c) == cols - 1 ? WIDTH - tail : 0))
#define EACH_SUM UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < cols; c++)

    EACH_SUM acc[r][c] = mode == AXPY_CONTINUE ? NAME(get)(y + r * y_row + AT(c), count) : NAME(zero)();
    /* The next tile's y comes from afar while this one is busy: `next` elements from here, which is right for all but the
       last of a row of tiles. With few steps there is no time for that. */
    if (steps >= FAR_STEPS)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int c = 0; c < cols; c += PARTS) PREFETCH(y + r * y_row + c * WIDTH + next);
    for (ptrdiff_t s = 0; s < steps; s++) {
        VEC vs[MOST_COLS];
        UNROLL for (int c = 0; c < cols; c++) {
            vs[c] = NAME(get)(v + s * v_row + AT(c), count);
            if (rows > 1) HOLD(vs[c]); /* one row uses it once, and has no register for it where there are 16 */
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const VEC ar = NAME(splat)(a[r * a_row + s * a_step]);
            UNROLL for (int c = 0; c < cols; c++) acc[r][c] = NAME(fma)(ar, vs[c], acc[r][c]);
        }
    }
    if (mode == AXPY_ADD) EACH_SUM acc[r][c] = NAME(add)(NAME(get)(y + r * y_row + AT(c), count), acc[r][c]);
    EACH_SUM NAME(put)(y + r * y_row + AT(c), acc[r][c], count);
#undef EACH_SUM
#undef AT
}

/* One row of y, a few vectors wide: the chains of n blocks of `steps` rows of v, side by side because one alone waits
   for itself. Then y, which begins at 0 if first, is their sum in turn. */
INLINE void NAME(chains_tile)(int width, ptrdiff_t steps, const REAL *a, const REAL *v, ptrdiff_t v_row, REAL *y, int first,
                              const int n, const int cols) {
    VEC acc[MOST_COLS][MOST_COLS], sum;
    const int tail = width - (cols - 1) * WIDTH;
#define COUNT (c == cols - 1 ? tail : WIDTH)
    UNROLL for (int j = 0; j < n; j++)
        UNROLL for (int c = 0; c < cols; c++) acc[j][c] = NAME(zero)();
    for (ptrdiff_t s = 0; s < steps; s++)
        UNROLL for (int j = 0; j < n; j++)
            UNROLL for (int c = 0; c < cols; c++)
                acc[j][c] = NAME(fma)(NAME(splat)(a[j * steps + s]), NAME(get)(v + (j * steps + s) * v_row + c * WIDTH, COUNT),
                                      acc[j][c]);
    UNROLL for (int c = 0; c < cols; c++) {
        sum = first ? acc[0][c] : NAME(add)(NAME(get)(y + c * WIDTH, COUNT), acc[0][c]);
        UNROLL for (int j = 1; j < n; j++) sum = NAME(add)(sum, acc[j][c]);
        NAME(put)(y + c * WIDTH, sum, COUNT);
    }
#undef COUNT
}

/* y[o] += sum over s of x[s] (scale g[s][o]): the only column of W. */
static void NAME(column)(ptrdiff_t outs, ptrdiff_t steps, const REAL *x, const REAL *g, ptrdiff_t g_row, REAL scale,
                         REAL *y) {
    const VEC scales = NAME(splat)(scale);
#define COLUMNS(cols, count) { \
        VEC acc[cols]; \
        UNROLL for (int c = 0; c < cols; c++) acc[c] = NAME(get)(y + o + c * WIDTH, count); \
        for (ptrdiff_t s = 0; s < steps; s++) \
            UNROLL for (int c = 0; c < cols; c++) \
                acc[c] = NAME(fma)(NAME(splat)(x[s]), NAME(mul)(scales, NAME(get)(g + s * g_row + o + c * WIDTH, count)), \
                                   acc[c]); \
        UNROLL for (int c = 0; c < cols; c++) NAME(put)(y + o + c * WIDTH, acc[c], count); \
    }
    ptrdiff_t o = 0;
    for (; o + MOST_COLS * WIDTH <= outs; o += MOST_COLS * WIDTH) COLUMNS(MOST_COLS, WIDTH)
    for (; o < outs; o += WIDTH) COLUMNS(1, NAME(part_of)(outs, o))
#undef COLUMNS
}

/* y[o * cols + i] += sum over s of scale g[s][o] x[s][i] for fewer columns than a vector has lanes: y is one line, along
   which x repeats itself each `cols` vectors, and each of g comes `cols` times. `room` is for both: steps * cols * WIDTH
   and steps * (THIN_OUTS * cols + WIDTH) elements. */
INLINE void NAME(thin_tile)(ptrdiff_t outs, ptrdiff_t steps, const REAL *x, ptrdiff_t x_row, const REAL *g, ptrdiff_t g_row,
                            REAL scale, REAL *y, REAL *room, const int cols) {
    const VEC scales = NAME(splat)(scale);
    REAL *const repeated = room, *const spread = room + steps * cols * WIDTH;
    const ptrdiff_t stride = THIN_OUTS * cols + WIDTH;
    for (ptrdiff_t s = 0; s < steps; s++)
        for (int o = 0; o < WIDTH; o++)
            for (int i = 0; i < cols; i++) repeated[(s * WIDTH + o) * cols + i] = x[s * x_row + i];
    for (; outs > 0; outs -= THIN_OUTS, g += THIN_OUTS, y += THIN_OUTS * cols) {
        const ptrdiff_t some = outs < THIN_OUTS ? outs : THIN_OUTS, length = some * cols;
        for (ptrdiff_t s = 0; s < steps; s++) /* each vector covers what the one before it has too much */
            for (ptrdiff_t o = 0; o < some || o % WIDTH; o++) /* up to whole vectors: the last again, in no other's place */
                NAME(store)(spread + s * stride + o * cols,
                            NAME(mul)(scales, NAME(splat)(g[s * g_row + (o < some ? o : some - 1)])));
        for (ptrdiff_t at = 0; at < length; at += cols * WIDTH) {
            VEC acc[MOST_COLS];
#define COUNT NAME(part_of)(length - at, j * WIDTH)
            UNROLL for (int j = 0; j < cols; j++) acc[j] = NAME(get)(y + at + j * WIDTH, COUNT);
            for (ptrdiff_t s = 0; s < steps; s++)
                UNROLL for (int j = 0; j < cols; j++)
                    acc[j] = NAME(fma)(NAME(load)(spread + s * stride + at + j * WIDTH),
                                       NAME(load)(repeated + (s * cols + j) * WIDTH), acc[j]);
            UNROLL for (int j = 0; j < cols; j++) NAME(put)(y + at + j * WIDTH, acc[j], COUNT);
#undef COUNT
        }
    }
}

/* For one example, both of its axpys in one pass over `rows` rows of W: y[i] += sum over r of g[r] W[r][i], which
   begins at 0 if first, and, to write, W[r][i] += scale g[r] x[i]; `ahead` as for dot_tile. */
INLINE void NAME(update_tile)(ptrdiff_t width, const REAL *x, const REAL *g, REAL scale, REAL *w, ptrdiff_t w_row,
                              REAL *y, int first, ptrdiff_t ahead, const int write, const int rows) {
    VEC gs[MOST_ROWS], steps[MOST_ROWS], before[MOST_ROWS];
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

/* ---- One function for each shape of tile, and the table of them, in which the loops find it (`dot` above, ...). The
   functions of other shapes than those above have none of the tile's code in them. */

/* A tile of r x c sums. */
#define DOT_ARGUMENTS const REAL *x, ptrdiff_t x_row, const REAL *w, ptrdiff_t w_row, ptrdiff_t k, \
    const struct ending *end, ptrdiff_t ahead
#define DOT(r, c) static void NAME(dot_##r##x##c)(DOT_ARGUMENTS) { \
    if (r <= DOT_ROWS && c <= DOT_COLS[r]) NAME(dot_tile)(x, x_row, w, w_row, k, end, ahead, r, c); \
}
#define DOT_ENTRY(r, c) [r][c] = NAME(dot_##r##x##c),
EACH_SHAPE(DOT)
static void (*const NAME(dot_table)[MOST_ROWS + 1][MOST_COLS + 1])(DOT_ARGUMENTS) = {EACH_SHAPE(DOT_ENTRY)};

#define LANES_ARGUMENTS const REAL *x, ptrdiff_t x_row, const REAL *w, ptrdiff_t k, const struct ending *end
#define LANES_TILE(r, c) static void NAME(lanes_##r##x##c)(int n, LANES_ARGUMENTS) { \
    if (r <= LANES_ROWS) NAME(lanes_tile)(x, x_row, w, k, end, n, r, c); \
}
#define LANES_ENTRY(r, c) [r][c] = NAME(lanes_##r##x##c),
EACH_PANEL(LANES_TILE)
static void (*const NAME(lanes_table)[MOST_ROWS + 1][PANEL_VECTORS + 1])(int, LANES_ARGUMENTS) = {
    EACH_PANEL(LANES_ENTRY)
};
/* A tile of `rows` by `cols` sums, a panel at most. */
INLINE void NAME(lanes)(int rows, int cols, LANES_ARGUMENTS) {
    const int parts = (cols + WIDTH - 1) / WIDTH;
    NAME(lanes_table)[rows][parts](cols - (parts - 1) * WIDTH, x, x_row, w, k, end);
}

#define NARROW_ARGUMENTS ptrdiff_t outs, ptrdiff_t rows, const REAL *x, const REAL *w, const struct ending *end
#define NARROW_TILE(_, k) static void NAME(narrow_##k)(NARROW_ARGUMENTS) { NAME(narrow_tile)(outs, rows, x, w, end, k); }
#define NARROW_ENTRY(_, k) [k] = NAME(narrow_##k),
EACH_NARROW(NARROW_TILE)
static void (*const NAME(narrow_table)[NARROW + 1])(NARROW_ARGUMENTS) = {EACH_NARROW(NARROW_ENTRY)};

#define AXPY_ARGUMENTS ptrdiff_t steps, const REAL *a, ptrdiff_t a_row, ptrdiff_t a_step, \
    const REAL *v, ptrdiff_t v_row, REAL *y, ptrdiff_t y_row, ptrdiff_t next, enum axpy_mode mode
#define AXPY_LAST(r, c) static void NAME(axpy_##r##x##c)(int tail, AXPY_ARGUMENTS) { \
    if (c > AXPY_COLS[r]) return; \
    if (tail) NAME(axpy_tile)(steps, a, a_row, a_step, v, v_row, y, y_row, next, mode, tail, r, c); \
    else NAME(axpy_tile)(steps, a, a_row, a_step, v, v_row, y, y_row, next, mode, 0, r, c); \
}
#define AXPY_LAST_ENTRY(r, c) [r][c] = NAME(axpy_##r##x##c),
EACH_SHAPE(AXPY_LAST)
static void (*const NAME(axpy_last)[MOST_ROWS + 1][MOST_COLS + 1])(int, AXPY_ARGUMENTS) = {EACH_SHAPE(AXPY_LAST_ENTRY)};
/* A row of tiles: the whole ones in a loop, because with few steps the price of a call shows; then what is left, in two if
   the second would be less than a vector. */
#define AXPY(r) static void NAME(axpy_##r)(ptrdiff_t width, AXPY_ARGUMENTS) { \
    const ptrdiff_t whole = AXPY_COLS[r] * WIDTH; \
    for (; width >= whole + WIDTH || width == whole; width -= whole, v += whole, y += whole) \
        NAME(axpy_tile)(steps, a, a_row, a_step, v, v_row, y, y_row, next, mode, 0, r, AXPY_COLS[r]); \
    while (width) { \
        const ptrdiff_t cols = (width + WIDTH - 1) / WIDTH, now = width > whole ? cols / 2 * WIDTH : width; \
        NAME(axpy_last)[r][(now + WIDTH - 1) / WIDTH]((int)(now % WIDTH), steps, a, a_row, a_step, v, v_row, y, y_row, \
                                                      next, mode); \
        width -= now, v += now, y += now; \
    } \
}
#define AXPY_ENTRY(r) [r] = NAME(axpy_##r),
EACH_ROWS(AXPY)
static void (*const NAME(axpy_table)[MOST_ROWS + 1])(ptrdiff_t, AXPY_ARGUMENTS) = {EACH_ROWS(AXPY_ENTRY)};

/* n blocks of one row of y, as many times as wide in vectors MOST_COLS at most. */
static void NAME(chains)(int n, int width, ptrdiff_t steps, const REAL *a, const REAL *v, ptrdiff_t v_row, REAL *y,
                         int first) {
#define CHAINS(c, j) case (c) * (MOST_COLS + 1) + j: \
        if ((c) * (j) <= MOST_COLS) NAME(chains_tile)(width, steps, a, v, v_row, y, first, j, c); \
        break;
    switch ((width + WIDTH - 1) / WIDTH * (MOST_COLS + 1) + n) {
        EACH_SHAPE(CHAINS) EACH_COLS(CHAINS, 7) EACH_COLS(CHAINS, 8)
    }
}

static void NAME(thin)(int cols, ptrdiff_t outs, ptrdiff_t steps, const REAL *x, ptrdiff_t x_row, const REAL *g,
                       ptrdiff_t g_row, REAL scale, REAL *y, REAL *room) {
#define THIN(_, j) case j: if (j < WIDTH) NAME(thin_tile)(outs, steps, x, x_row, g, g_row, scale, y, room, j); break;
    switch (cols) { EACH_COLS(THIN, 0) }
}

#define UPDATE_ARGUMENTS ptrdiff_t width, const REAL *x, const REAL *g, REAL scale, REAL *w, ptrdiff_t w_row, \
    REAL *y, int first, ptrdiff_t ahead
#define UPDATE(r) static void NAME(update_##r)(UPDATE_ARGUMENTS) { \
    if (r > UPDATE_ROWS) return; \
    if (x) NAME(update_tile)(width, x, g, scale, w, w_row, y, first, ahead, 1, r); \
    else NAME(update_tile)(width, x, g, scale, w, w_row, y, first, ahead, 0, r); \
}
#define UPDATE_ENTRY(r) [r] = NAME(update_##r),
EACH_ROWS(UPDATE)
static void (*const NAME(update_table)[MOST_ROWS + 1])(UPDATE_ARGUMENTS) = {EACH_ROWS(UPDATE_ENTRY)};

#endif
