/* A sum in double of any number of elements of either dtype, in an order that does not depend on the width of vectors.

   It has 16 chains. Element j is added to chain j mod 16, in rising j. Then chains l and l + 8 are added, then l and
   l + 4, ... An element that is not there counts as 0. */
#ifndef FASTLINEAR_SUM_H
#define FASTLINEAR_SUM_H

#include "_vector.h"

enum { CHAINS = 16, SUM_WIDTH = VECTOR_BYTES / sizeof(double), SUM_VECTORS = CHAINS / SUM_WIDTH };

struct sum { vec_f64 chains[SUM_VECTORS]; };

/* SUM_WIDTH elements at p as doubles. */
INLINE vec_f64 widen_f64(const double *p) { return load_f64(p); }
#if defined(GNU_VECTORS)
typedef float half_f32 __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef half_f32 unaligned_half_f32 __attribute__((aligned(4), may_alias));
INLINE vec_f64 widen_f32(const float *p) { return __builtin_convertvector(*(const unaligned_half_f32 *)p, vec_f64); }
#else
INLINE vec_f64 widen_f32(const float *p) {
    double lane[SUM_WIDTH];
    for (int l = 0; l < SUM_WIDTH; l++) lane[l] = p[l];
    return load_f64(lane);
}
#endif

INLINE struct sum sum_of_nothing(void) {
    struct sum s;
    for (int v = 0; v < SUM_VECTORS; v++) s.chains[v] = zero_f64();
    return s;
}

INLINE double sum_total(const struct sum *s) {
    double chain[CHAINS];
    for (int v = 0; v < SUM_VECTORS; v++) store_f64(chain + v * SUM_WIDTH, s->chains[v]);
    for (int w = CHAINS / 2; w; w /= 2)
        for (int l = 0; l < w; l++) chain[l] += chain[l + w];
    return chain[0];
}

/* The next CHAINS elements, or their squares. */
#define SUMS(real, suffix) \
    INLINE void sum_add_##suffix(struct sum *s, const real *p) { \
        for (int v = 0; v < SUM_VECTORS; v++) s->chains[v] = add_f64(s->chains[v], widen_##suffix(p + v * SUM_WIDTH)); \
    } \
    INLINE void sum_add_squares_##suffix(struct sum *s, const real *p) { \
        for (int v = 0; v < SUM_VECTORS; v++) { \
            const vec_f64 x = widen_##suffix(p + v * SUM_WIDTH); \
            s->chains[v] = fma_f64(x, x, s->chains[v]); \
        } \
    }
SUMS(float, f32)
SUMS(double, f64)
#undef SUMS

#endif
