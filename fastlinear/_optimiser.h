/* The optimisers' pass over a parameter, its gradient and its state, on the vectors of _vector.h.

   The file includes itself once for each dtype, as _tile.h does. Every rounding and its place in the order are written
   out, so an element's result is the same in any lane, at any length, and on every instruction set with FMA. */
#ifndef FASTLINEAR_OPTIMISER_H
#define FASTLINEAR_OPTIMISER_H

#include "_sum.h"
#include "_vector.h"

/* The numbers of a step. Each is rounded to the dtype when it is used, and not before. */
struct sgd {
    double lr, momentum, weight_decay;
    int nesterov;
};
struct adam {
    double rate;         /* lr / (1 - beta1^t) */
    double beta1, beta2;
    double correction;   /* 1 / sqrt(1 - beta2^t) */
    double eps;
    double weight_decay; /* weight_decay times the parameter is added to the gradient */
    double decay;        /* the parameter is multiplied by it first: 1 - lr weight_decay for AdamW, else 1 */
};

#undef REAL /* of another file that includes itself */
#undef SUFFIX
#define REAL float
#define SUFFIX f32
#include "_optimiser.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "_optimiser.h"

/* What the loops call: the function for the dtype of the first operand. */
#define sgd_pass(gradient, ...) BY_DTYPE(gradient, sgd_pass)(gradient, __VA_ARGS__)
#define adam_pass(gradient, ...) BY_DTYPE(gradient, adam_pass)(gradient, __VA_ARGS__)
#define squares_pass(array, ...) BY_DTYPE(array, squares_pass)(array, __VA_ARGS__)
#define scale_pass(factor, array, ...) BY_DTYPE(array, scale_pass)(factor, array, __VA_ARGS__)

#else

/* One vector after another, of which the last can be a part. LOAD and STORE are those of whole or of partial vectors. */
#define LOAD(p) NAME(load)((p) + j)
#define STORE(p, v) NAME(store)((p) + j, v)
#define LOAD_SOME(p) NAME(load_first)((p) + j, (int)(n - j))
#define STORE_SOME(p, v) NAME(store_first)((p) + j, v, (int)(n - j))
#define OVER_VECTORS(STEP) \
    ptrdiff_t j = 0; \
    for (; j + WIDTH <= n; j += WIDTH) { STEP(LOAD, STORE) } \
    if (j < n) { STEP(LOAD_SOME, STORE_SOME) }

/* Each product and each sum is rounded by itself. So without momentum and weight_decay this does what Layer.step does. */
static void NAME(sgd_pass)(const REAL *gradient, REAL *parameter, REAL *buffer, ptrdiff_t n, const struct sgd *s) {
    const VEC lr = NAME(splat)((REAL)-s->lr), momentum = NAME(splat)((REAL)s->momentum);
    const VEC weight_decay = NAME(splat)((REAL)s->weight_decay);
    const int decayed = s->weight_decay != 0, nesterov = s->nesterov;
#define STEP(LOAD, STORE) \
    VEC g = LOAD(gradient), p = LOAD(parameter); \
    if (decayed) g = NAME(add)(g, NAME(mul)(weight_decay, p)); \
    if (buffer) { \
        VEC b = NAME(add)(NAME(mul)(momentum, LOAD(buffer)), g); \
        STORE(buffer, b); \
        g = nesterov ? NAME(add)(g, NAME(mul)(momentum, b)) : b; \
    } \
    STORE(parameter, NAME(add)(p, NAME(mul)(lr, g)));
    OVER_VECTORS(STEP)
#undef STEP
}

static void NAME(adam_pass)(const REAL *gradient, REAL *parameter, REAL *mean, REAL *square, ptrdiff_t n,
                            const struct adam *s) {
    const VEC minus_rate = NAME(splat)((REAL)-s->rate), minus_one = NAME(splat)(-1);
    const VEC beta2 = NAME(splat)((REAL)s->beta2), rest1 = NAME(splat)((REAL)(1 - s->beta1));
    const VEC rest2 = NAME(splat)((REAL)(1 - s->beta2)), correction = NAME(splat)((REAL)s->correction);
    const VEC eps = NAME(splat)((REAL)s->eps), decay = NAME(splat)((REAL)s->decay);
    const VEC weight_decay = NAME(splat)((REAL)s->weight_decay);
    const int decayed = s->weight_decay != 0;
#define STEP(LOAD, STORE) \
    VEC g = LOAD(gradient), p = LOAD(parameter), m = LOAD(mean), v = LOAD(square); \
    if (decayed) g = NAME(fma)(weight_decay, p, g); \
    m = NAME(fma)(rest1, NAME(fma)(minus_one, m, g), m); \
    v = NAME(fma)(NAME(mul)(rest2, g), g, NAME(mul)(beta2, v)); \
    STORE(mean, m); \
    STORE(square, v); \
    VEC root = NAME(fma)(NAME(sqrt)(v), correction, eps); \
    STORE(parameter, NAME(fma)(minus_rate, NAME(div)(m, root), NAME(mul)(decay, p)));
    OVER_VECTORS(STEP)
#undef STEP
}

static double NAME(squares_pass)(const REAL *array, ptrdiff_t n) {
    struct sum sum = sum_of_nothing();
    ptrdiff_t j = 0;
    for (; j + CHAINS <= n; j += CHAINS) NAME(sum_add_squares)(&sum, array + j);
    if (j < n) {
        REAL last[CHAINS] = {0};
        for (int l = 0; l < n - j; l++) last[l] = array[j + l];
        NAME(sum_add_squares)(&sum, last);
    }
    return sum_total(&sum);
}

static void NAME(scale_pass)(double factor, REAL *array, ptrdiff_t n) {
    const VEC by = NAME(splat)((REAL)factor);
#define STEP(LOAD, STORE) STORE(array, NAME(mul)(by, LOAD(array)));
    OVER_VECTORS(STEP)
#undef STEP
}

#undef LOAD
#undef STORE
#undef LOAD_SOME
#undef STORE_SOME
#undef OVER_VECTORS
#endif
