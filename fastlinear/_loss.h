/* The losses: value and gradient in one pass, on the vectors of _vector.h.

   A loss returns the sum over the rows, in double. The gradient of each element's loss by the output, times scale, goes to
   out, which can be the output itself. Every rounding and its place in the order are written out, so an element's loss
   and gradient are the same in any lane and row, and on every instruction set with FMA. Elements are added up as in
   _sum.h. With softmax that is done over each row, and the rows are added one after another. A NaN goes through to the
   result.

   The file includes itself once for each dtype, as _tile.h does. */
#ifndef FASTLINEAR_LOSS_H
#define FASTLINEAR_LOSS_H

#ifndef FASTLINEAR_ACTIVATION_H
#include "_activation.h"
#endif
#include "_sum.h"

/* log(x) = 2 artanh(s), s = (x - 1) / (x + 1), is s (2 + ATANH[0] s² + ATANH[1] s⁴ + ...). With s up to 1/3 as here, 7
   terms err by 2^-29 of it, 16 by 2^-58. */
static const double ATANH[] = {2 / 3.,  2 / 5.,  2 / 7.,  2 / 9.,  2 / 11., 2 / 13., 2 / 15., 2 / 17.,
                               2 / 19., 2 / 21., 2 / 23., 2 / 25., 2 / 27., 2 / 29., 2 / 31., 2 / 33.};
enum { ATANH_TERMS_f32 = 7, ATANH_TERMS_f64 = 16, ATANH_TERMS_LOG = 11 };
/* For z below NEVER, e^z is about the smallest normal number or less, and counts as 0. */
static const float NEVER_f32 = -87;
static const double NEVER_f64 = -708;

/* log(x) for x >= 1, or NaN for NaN. It uses no fma, because not every instruction set has one. */
INLINE double log_of_sum(double x) {
    uint64_t bits;
    if (!(x < INFINITY)) return x;
    memcpy(&bits, &x, sizeof x);
    int64_t n = (int64_t)(bits >> 52) - 1023;
    bits -= (uint64_t)n << 52; /* 1 <= x < 2, then from sqrt(1/2) to sqrt(2) */
    memcpy(&x, &bits, sizeof x);
    if (x > 1.4142135623730951) {
        x /= 2;
        n++;
    }
    const double s = (x - 1) / (x + 1), w = s * s;
    double series = ATANH[ATANH_TERMS_LOG - 1];
    for (int k = ATANH_TERMS_LOG - 2; k >= 0; k--) series = series * w + ATANH[k];
    return (double)n * 0x1.62e42fefa39efp-1 + (s * w * series + 2 * s);
}

/* Labels, and the row in which the next elements begin. */
struct places {
    const int64_t *labels;
    ptrdiff_t rows, columns, row;
};

#undef REAL /* of another file that includes itself */
#undef SUFFIX
#define REAL float
#define SUFFIX f32
#include "_loss.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "_loss.h"

/* What the loops call: the function for the dtype of the first operand. */
#define squared_error_sum(output, ...) BY_DTYPE(output, squared_error_sum)(output, __VA_ARGS__)
#define huber_sum(output, ...) BY_DTYPE(output, huber_sum)(output, __VA_ARGS__)
#define hinge_sum(scores, ...) BY_DTYPE(scores, hinge_sum)(scores, __VA_ARGS__)
#define logistic_sum(scores, ...) BY_DTYPE(scores, logistic_sum)(scores, __VA_ARGS__)
#define cross_entropy_sum(scores, ...) BY_DTYPE(scores, cross_entropy_sum)(scores, __VA_ARGS__)

#else

#define TO_EACH(c) NAME(splat)((REAL)(c))

/* e^z for z <= 0, as by exp_parts, but the polynomial is added up in pairs, then in pairs of pairs, ... Learning row by row
   waits for it, and in one chain it would take ten cycles longer. */
INLINE VEC NAME(power)(VEC z) {
    enum { TERMS = sizeof NAME(EXP) / sizeof(REAL) };
    VEC sums[TERMS], t, n, r, square, power;
    t = NAME(fma)(NAME(max)(TO_EACH(NAME(NEVER)), z), TO_EACH(NAME(LOG2E)), TO_EACH(NAME(ROUNDER)));
    n = NAME(sub)(t, TO_EACH(NAME(ROUNDER)));
    r = NAME(fma)(n, TO_EACH(-NAME(LN2_HIGH)), NAME(max)(TO_EACH(NAME(NEVER)), z));
    r = NAME(fma)(n, TO_EACH(-NAME(LN2_LOW)), r);
    square = power = NAME(mul)(r, r);
    UNROLL_ALL for (int k = 0; k < TERMS; k += 2)
        sums[k / 2] = k + 1 < TERMS ? NAME(fma)(TO_EACH(NAME(EXP)[k + 1]), r, TO_EACH(NAME(EXP)[k])) : TO_EACH(NAME(EXP)[k]);
    UNROLL_ALL for (int terms = (TERMS + 1) / 2; terms > 1; terms = (terms + 1) / 2) {
        UNROLL_ALL for (int k = 0; k < terms; k += 2)
            sums[k / 2] = k + 1 < terms ? NAME(fma)(sums[k + 1], power, sums[k]) : sums[k];
        power = NAME(mul)(power, power);
    }
    power = NAME(add_exponent)(TO_EACH(1), t);
    power = NAME(fma)(power, NAME(fma)(square, sums[0], r), power);
    return NAME(select_less)(z, TO_EACH(NAME(NEVER)), NAME(zero)(), power);
}

/* log(1 + x) for 0 <= x <= 1. */
INLINE VEC NAME(log_1_plus)(VEC x) {
    const VEC s = NAME(div)(x, NAME(add)(TO_EACH(2), x)), w = NAME(mul)(s, s);
    VEC series = TO_EACH(ATANH[NAME(ATANH_TERMS) - 1]);
    UNROLL_ALL for (int k = NAME(ATANH_TERMS) - 2; k >= 0; k--) series = NAME(fma)(series, w, TO_EACH(ATANH[k]));
    return NAME(fma)(NAME(mul)(s, w), series, NAME(add)(s, s));
}

/* ---- the losses of single elements: the target is a number, or 1 for the label's element and -1 for the others */

INLINE VEC NAME(squared_error)(VEC output, VEC target, VEC *gradient) {
    const VEC d = NAME(sub)(output, target);
    *gradient = d;
    return NAME(mul)(NAME(mul)(TO_EACH(0.5), d), d);
}

INLINE VEC NAME(huber)(VEC output, VEC target, VEC *gradient) {
    const VEC d = NAME(sub)(output, target), distance = NAME(magnitude)(d), capped = NAME(min)(TO_EACH(1), distance);
    *gradient = NAME(signed_as)(capped, d);
    return NAME(mul)(capped, NAME(fma)(TO_EACH(-0.5), capped, distance));
}

INLINE VEC NAME(hinge)(VEC score, VEC sign, VEC *gradient) {
    const VEC z = NAME(mul)(sign, score);
    *gradient = NAME(select_less)(z, TO_EACH(INFINITY), NAME(sub)(NAME(zero)(), sign), z);
    *gradient = NAME(select_less)(TO_EACH(1), z, NAME(zero)(), *gradient);
    return NAME(max)(NAME(zero)(), NAME(sub)(TO_EACH(1), z));
}

INLINE VEC NAME(logistic)(VEC score, VEC sign, VEC *gradient) {
    /* The gradient is ready as soon as possible after the score: |z| is |score|, and the sign goes into the numerator. */
    const VEC minus_sign = NAME(neg)(sign), minus_z = NAME(mul)(minus_sign, score);
    const VEC e = NAME(power)(NAME(signed_as)(score, TO_EACH(-1)));
    const VEC odds = NAME(select_less)(NAME(zero)(), minus_z, minus_sign, NAME(mul)(minus_sign, e));
    *gradient = NAME(div)(odds, NAME(add)(TO_EACH(1), e));
    return NAME(add)(NAME(log_1_plus)(e), NAME(max)(NAME(zero)(), minus_z));
}

/* ---- the loops */

/* For the CHAINS elements from `at` on: 1 for the element of a row's label, -1 for the others. With one column: 1 where
   the label is 1. Other threads can change labels that have been checked, so each place is checked before it is written. */
INLINE void NAME(signs)(struct places *p, ptrdiff_t at, REAL *sign) {
    if (p->columns == 1) {
        const int64_t *labels = p->labels + at;
        if (p->rows - at >= CHAINS)
            for (int j = 0; j < CHAINS; j++) sign[j] = (REAL)(2 * (int32_t)labels[j] - 1);
        else
            for (int j = 0; j < p->rows - at; j++) sign[j] = (REAL)(2 * (int32_t)labels[j] - 1);
        return;
    }
    for (int j = 0; j < CHAINS; j++) sign[j] = -1;
    for (; p->row < p->rows; p->row++) {
        const ptrdiff_t begin = p->row * p->columns - at;
        const ptrdiff_t place = begin + (ptrdiff_t)p->labels[p->row];
        if (0 <= place && place < CHAINS) sign[place] = 1;
        if (begin + p->columns > CHAINS) return; /* its other elements come next */
    }
}

INLINE double NAME(sum_of)(VEC (*loss)(VEC, VEC, VEC *), const REAL *output, const REAL *target, struct places places,
                           REAL *out, ptrdiff_t n, double scale) {
    const VEC factor = TO_EACH(scale);
    struct sum sum = sum_of_nothing();
    REAL sign[CHAINS], value[CHAINS];
    VEC gradient;
    for (ptrdiff_t at = 0; at < n; at += CHAINS) {
        const REAL *t = target ? target + at : sign;
        if (!target) NAME(signs)(&places, at, sign);
        if (n - at >= CHAINS) {
            for (int j = 0; j < CHAINS; j += WIDTH) {
                NAME(store)(value + j, loss(NAME(load)(output + at + j), NAME(load)(t + j), &gradient));
                NAME(store)(out + at + j, NAME(mul)(factor, gradient));
            }
        } else {
            for (int j = 0; j < CHAINS; j++) value[j] = 0;
            for (int j = 0; j < n - at; j += WIDTH) {
                const int some = n - at - j < WIDTH ? (int)(n - at - j) : WIDTH;
                VEC values = loss(NAME(load_first)(output + at + j, some), NAME(load_first)(t + j, some), &gradient);
                NAME(store_first)(value + j, values, some);
                NAME(store_first)(out + at + j, NAME(mul)(factor, gradient), some);
            }
        }
        NAME(sum_add)(&sum, value);
    }
    return sum_total(&sum);
}

#define OF_NUMBERS(name) \
    static double NAME(name##_sum)(const REAL *output, const REAL *target, REAL *out, ptrdiff_t n, double scale) { \
        return NAME(sum_of)(NAME(name), output, target, (struct places){0}, out, n, scale); \
    }
#define OF_LABELS(name) \
    static double NAME(name##_sum)(const REAL *scores, const int64_t *labels, REAL *out, ptrdiff_t rows, \
                                   ptrdiff_t columns, double scale) { \
        const struct places places = {labels, rows, columns, 0}; \
        return NAME(sum_of)(NAME(name), scores, NULL, places, out, rows * columns, scale); \
    }
OF_NUMBERS(squared_error)
OF_NUMBERS(huber)
OF_LABELS(hinge)
OF_LABELS(logistic)
#undef OF_NUMBERS
#undef OF_LABELS

/* The largest element, which is the same in any order; a NaN is passed over. */
INLINE REAL NAME(highest)(const REAL *row, ptrdiff_t columns) {
    VEC most = TO_EACH(-INFINITY);
    REAL lane[WIDTH];
    ptrdiff_t j = 0;
    for (; j + WIDTH <= columns; j += WIDTH) most = NAME(max)(NAME(load)(row + j), most);
    NAME(store)(lane, most);
    REAL highest = lane[0];
    for (int l = 1; l < WIDTH; l++) highest = lane[l] > highest ? lane[l] : highest;
    for (; j < columns; j++) highest = row[j] > highest ? row[j] : highest;
    return highest;
}

/* The cross entropy of one row's softmax: p is e^(score - highest) / total. */
INLINE double NAME(cross_entropy)(const REAL *scores, int64_t label, REAL *out, ptrdiff_t columns, double scale) {
    const REAL highest = NAME(highest)(scores, columns);
    const VEC from = TO_EACH(highest);
    struct sum sum = sum_of_nothing();
    const double score = (size_t)label < (size_t)columns ? scores[label] : NAN;
    ptrdiff_t at = 0;
    for (; at + CHAINS <= columns; at += CHAINS) {
        for (int j = 0; j < CHAINS; j += WIDTH)
            NAME(store)(out + at + j, NAME(power)(NAME(sub)(NAME(load)(scores + at + j), from)));
        NAME(sum_add)(&sum, out + at);
    }
    if (at < columns) {
        REAL last[CHAINS] = {0};
        for (int j = 0; j < columns - at; j += WIDTH) {
            const int some = columns - at - j < WIDTH ? (int)(columns - at - j) : WIDTH;
            const VEC e = NAME(power)(NAME(sub)(NAME(load_first)(scores + at + j, some), from));
            NAME(store_first)(last + j, e, some);
            NAME(store_first)(out + at + j, e, some);
        }
        NAME(sum_add)(&sum, last);
    }
    const double total = sum_total(&sum);
    const VEC factor = TO_EACH(scale / total);
    /* Of the label, p - 1 without the cancellation. */
    const double of_label = (size_t)label < (size_t)columns ? (out[label] - total) / total * scale : NAN;
    ptrdiff_t j = 0;
    for (; j + WIDTH <= columns; j += WIDTH) NAME(store)(out + j, NAME(mul)(factor, NAME(load)(out + j)));
    if (j < columns) {
        const int some = (int)(columns - j);
        NAME(store_first)(out + j, NAME(mul)(factor, NAME(load_first)(out + j, some)), some);
    }
    if ((size_t)label < (size_t)columns) out[label] = (REAL)of_label;
    return log_of_sum(total) + ((double)highest - score);
}

static double NAME(cross_entropy_sum)(const REAL *scores, const int64_t *labels, REAL *out, ptrdiff_t rows,
                                      ptrdiff_t columns, double scale) {
    double sum = 0;
    for (ptrdiff_t r = 0; r < rows; r++) {
        const int64_t label = *(const volatile int64_t *)(labels + r);
        sum += NAME(cross_entropy)(scores + r * columns, label, out + r * columns, columns, scale);
    }
    return sum;
}

#undef TO_EACH
#endif
