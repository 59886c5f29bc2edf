/* Learning row by row for one output, in one pass over the weights for each row:

     score = sum_i x[b][i] w[i] + bias           forward's sum, in forward's order (_tile.h)
     g     = the loss's gradient by the score    _loss.h
     w[i]  = decay w[i] + (-lr g) x[b][i]        backward_update's multiply-add, after the decay
     bias += -lr g

   The pass that updates w by one row adds up the next row's score from the weights as they become, which is all that can
   overlap: each score needs all weights of the step before it. So the least time of a row is the latency of a sum over
   lanes, the loss's gradient, and two multiply-adds, some 80 cycles for log_loss; loads, stores, the values of losses and
   everything that does not wait for a score disappear in it up to some 100 features. From there on it is the chain of
   additions of a lane, four cycles for each 32 bytes of w, and beyond the cache the reading of x. Keeping w in registers
   for few features gained nothing: its loads and stores are not what anything waits for. A sum over lanes by swap()
   instead of fold() gained an eighth.

   The file includes itself once for each dtype, as _tile.h does. */
#ifndef FASTLINEAR_ROWS_H
#define FASTLINEAR_ROWS_H

#ifndef FASTLINEAR_LOSS_H
#include "_loss.h"
#endif

#if defined(__GNUC__) || defined(__clang__)
#define FETCH(p) __builtin_prefetch((const void *)(p))
#else
#define FETCH(p)
#endif

enum loss { SQUARED_ERROR, HUBER, HINGE, LOG_LOSS }; /* as in _table.pxd */
enum {
    K_BLOCK_BYTES = 4096, /* forward's: part of the contract on bits */
    SCORES = 512,        /* that wait for the values of their losses, which then are computed a vector at a time */
    ROWS_AHEAD = 4       /* in a given order: the row so many steps ahead is fetched meanwhile */
};

#undef REAL /* of another file that includes itself */
#undef SUFFIX
#define REAL float
#define SUFFIX f32
#include "_rows.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "_rows.h"
#undef REAL
#undef SUFFIX

/* What the loops call: the function for the dtype of x, or of the gradient. */
#define learn_rows_of(loss, x, ...) BY_DTYPE(x, learn_rows)(loss, x, __VA_ARGS__)
#define adagrad_pass(gradient, ...) BY_DTYPE(gradient, adagrad)(gradient, __VA_ARGS__)

#else

/* Values and gradients of scores, each with a number, or with 1 or -1 for the labels 1 and 0. */
INLINE VEC NAME(loss)(int loss, VEC score, VEC target, VEC *gradient) {
    switch (loss) {
    case SQUARED_ERROR: return NAME(squared_error)(score, target, gradient);
    case HUBER: return NAME(huber)(score, target, gradient);
    case HINGE: return NAME(hinge)(score, target, gradient);
    default: return NAME(logistic)(score, target, gradient);
    }
}

/* The sum over the lanes of forward's sums, in every lane; padded: and 0. */
INLINE LANE_VEC NAME(total)(LANE_VEC *parts, int padded) {
    for (int h = LANE_PARTS / 2; h; h /= 2)
        UNROLL_ALL for (int p = 0; p < h; p++) parts[p] = IN_LANES(add)(parts[p], parts[p + h]);
    LANE_VEC sum = parts[0];
    UNROLL_ALL for (int w = LANE_WIDTH / 2; w; w /= 2) sum = IN_LANES(add)(sum, IN_LANES(swap)(sum, w));
    return padded ? IN_LANES(add)(sum, IN_LANES(zero)()) : sum;
}

/* w = decay w + step x, if `update`, and the sum of next x w without the bias, if `score`; x goes on at `ahead`. w has
   room for whole vectors. */
INLINE VEC NAME(pass)(REAL *w, const REAL *x, const REAL *next, const REAL *ahead, ptrdiff_t features, VEC steps, VEC decays,
                      const int update, const int score, const int decaying) {
    const ptrdiff_t k_block = K_BLOCK_BYTES / sizeof(REAL);
    const LANE_VEC step = NAME(lower)(steps), decay = NAME(lower)(decays);
    LANE_VEC sum = IN_LANES(zero)();
    for (ptrdiff_t k0 = 0; k0 < features; k0 += k_block, w += k_block) {
        const ptrdiff_t k = features - k0 < k_block ? features - k0 : k_block;
        const int rest = (int)(k % LANES);
        LANE_VEC parts[LANE_PARTS];
        ptrdiff_t s = 0;
#define STEP(p, n) { \
            LANE_VEC v = IN_LANES(get)(w + s + p * LANE_WIDTH, n); \
            if (decaying) v = IN_LANES(mul)(decay, v); \
            if (update) { \
                v = IN_LANES(fma)(step, IN_LANES(get)(x + k0 + s + p * LANE_WIDTH, n), v); \
                IN_LANES(store)(w + s + p * LANE_WIDTH, v); \
            } \
            if (score) parts[p] = IN_LANES(fma)(IN_LANES(get)(next + k0 + s + p * LANE_WIDTH, n), v, parts[p]); \
        }
        UNROLL_ALL for (int p = 0; p < LANE_PARTS; p++) parts[p] = IN_LANES(zero)();
        for (; s < k - rest; s += LANES) {
            if (ahead) FETCH(ahead + k0 + s);
            UNROLL_ALL for (int p = 0; p < LANE_PARTS; p++) STEP(p, LANE_WIDTH)
        }
        if (rest) {
            if (ahead) FETCH(ahead + k0 + s);
            UNROLL_ALL for (int p = 0; p < LANE_PARTS; p++) {
                const int n = IN_LANES(part_of)(rest, p * LANE_WIDTH);
                if (n > 0) STEP(p, n)
            }
        }
#undef STEP
        /* Lanes without an element in the last step count as if 0 were added to them, which only a sum of -0 notices. Where
           a part ends within a vector, or has no element at all, it is added. */
        const LANE_VEC block = NAME(total)(parts, rest && rest % LANE_WIDTH == 0 && k > LANES);
        if (k0 == 0) sum = block;
        else sum = IN_LANES(add)(sum, block);
    }
    return NAME(twice)(sum);
}

/* sum, and added to it the losses of n scores one by one, each times its row's weight if there are weights. The arrays are
   whole vectors. */
static double NAME(sum_of_losses)(double sum, int loss, const REAL *scores, const REAL *targets, const REAL *weights, int n) {
    REAL values[SCORES];
    VEC gradient;
    for (int j = 0; j < n; j += WIDTH)
        NAME(store)(values + j, NAME(loss)(loss, NAME(load)(scores + j), NAME(load)(targets + j), &gradient));
    for (int j = 0; j < n; j++) sum += weights ? (double)values[j] * weights[j] : values[j];
    return sum;
}

INLINE double NAME(learn_rows_by)(int loss, const REAL *x, ptrdiff_t x_row, const ptrdiff_t *order, const void *y,
                                  const REAL *weights, const double *lr, ptrdiff_t lr_step, double l2, REAL *w, REAL *bias,
                                  ptrdiff_t rows, ptrdiff_t features, double sum, const int decays) {
    /* Whose losses are computed later: nothing waits for them. */
    REAL scores[SCORES], targets[SCORES];
    const int labels = loss == LOG_LOSS || loss == HINGE;
    const VEC zero = NAME(zero)();
    VEC b = NAME(splat)(bias ? *bias : 0), score;
    int waiting = 0;
#define ROW(r) (x + (order ? order[r] : (r)) * x_row)
    score = NAME(pass)(w, NULL, ROW(0), NULL, features, zero, zero, 0, 1, 0);
    for (ptrdiff_t r = 0; r < rows; r++, lr += lr_step) {
        const REAL target = labels ? (REAL)(2 * (int)((const int64_t *)y)[r] - 1) : ((const REAL *)y)[r];
        const VEC decay = NAME(splat)((REAL)(1 - *lr * l2));
        VEC g, step;
        if (bias) score = NAME(add)(score, b);
        NAME(store_first)(scores + waiting, score, 1);
        targets[waiting++] = target;
        NAME(loss)(loss, score, NAME(splat)(target), &g);
        if (weights) g = NAME(mul)(NAME(splat)(weights[r]), g);
        step = NAME(mul)(NAME(splat)((REAL)-*lr), g);
        if (bias) b = NAME(add)(b, step);
        if (r + 1 < rows)
            score = NAME(pass)(w, ROW(r), ROW(r + 1), order && r + ROWS_AHEAD < rows ? ROW(r + ROWS_AHEAD) : NULL,
                               features, step, decay, 1, 1, decays);
        else NAME(pass)(w, ROW(r), NULL, NULL, features, step, decay, 1, 0, decays);
        if (waiting == SCORES || r + 1 == rows) {
            for (int j = waiting; j % WIDTH; j++) scores[j] = targets[j] = 0;
            sum = NAME(sum_of_losses)(sum, loss, scores, targets, weights ? weights + r + 1 - waiting : NULL, waiting);
            waiting = 0;
        }
    }
#undef ROW
    if (bias) NAME(store_first)(bias, b, 1);
    return sum;
}

/* Learns `rows` >= 1 rows, which are x_row apart, or those that order names. What y (labels, int64_t, or reals), weights
   and lr have for each step lies in turn, but with lr_step 0 there is one rate. weights and bias may be NULL; room is for
   whole vectors of the weight. Returns sum, and added to it the losses, each before its step. */
static double NAME(learn_rows)(int loss, const REAL *x, ptrdiff_t x_row, const ptrdiff_t *order, const void *y,
                               const REAL *weights, const double *lr, ptrdiff_t lr_step, double l2, REAL *weight,
                               REAL *bias, ptrdiff_t rows, ptrdiff_t features, REAL *room, double sum) {
    memcpy(room, weight, features * sizeof(REAL));
    if (l2 != 0)
        sum = NAME(learn_rows_by)(loss, x, x_row, order, y, weights, lr, lr_step, l2, room, bias, rows, features, sum, 1);
    else
        sum = NAME(learn_rows_by)(loss, x, x_row, order, y, weights, lr, lr_step, 0, room, bias, rows, features, sum, 0);
    memcpy(weight, room, features * sizeof(REAL));
    return sum;
}

/* squares += g^2, parameter -= lr g / (sqrt(squares) + 1e-10): each operation rounded by itself, as in NumPy. */
static void NAME(adagrad)(const REAL *gradient, double lr, REAL *squares, REAL *parameter, ptrdiff_t n) {
    const VEC minus_rate = NAME(splat)((REAL)-lr), eps = NAME(splat)((REAL)1e-10);
    for (ptrdiff_t j = 0; j < n; j += WIDTH) {
        const int some = NAME(part_of)(n, j);
        const VEC g = NAME(get)(gradient + j, some);
        const VEC s = NAME(add)(NAME(get)(squares + j, some), NAME(mul)(g, g));
        const VEC step = NAME(div)(NAME(mul)(minus_rate, g), NAME(add)(NAME(sqrt)(s), eps));
        const VEC p = NAME(add)(NAME(get)(parameter + j, some), step);
        NAME(put)(squares + j, s, some);
        NAME(put)(parameter + j, p, some);
    }
}

#endif
