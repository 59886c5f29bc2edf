/* The activations and their derivatives, on the vectors of _vector.h, and the loops over elements.

   All of them are computed from one function, e^z = 2^n (1 + h) for z <= 0 or so, which keeps the two parts apart: 2^n is
   exact, and h is small, so that what is computed from it is in effect rounded once. The results are at most 2 ulp from
   the exact values, subnormal ones too. n can be below the smallest exponent, so 2^n carries a factor UP (2^64, 2^512),
   which the last step takes away. docs/notebook.md has the mathematics, bench/fit_activations.py fits the polynomials.

   Every rounding and its place in the order are written out, so an element's result is the same in any lane, at any
   length and on every instruction set with FMA. Comparisons are written so that a NaN goes through to the result.

   The file includes itself once for each dtype, as _tile.h does. */
#ifndef FASTLINEAR_ACTIVATION_H
#define FASTLINEAR_ACTIVATION_H

#include "_vector.h"

/* Printed by bench/fit_activations.py, lowest power first. */
/* e^r = 1 + r + r² p(r); the error of r p(r): 2^-26.1 */
static const float EXP_f32[] = {
    0.5f,
    0.166665405f,
    0.0416664779f,
    0.0083668381f,
    0.00139337103f,
};
/* e^r = 1 + r + r² p(r); the error of r p(r): 2^-55.6 */
static const double EXP_f64[] = {
    0.50000000000000056,
    0.16666666666666677,
    0.041666666666573364,
    0.0083333333333214278,
    0.001388888893250904,
    0.00019841269886631242,
    2.4801504252362964e-05,
    2.7557243702649166e-06,
    2.76264147580722e-07,
    2.5109214282164531e-08,
};
/* 2 (a + 2) Phi(-a) e^(a²/2) = 1 + p(t), t = (a - 2) / (a + 2); the relative error: 2^-26.9 */
static const float MILLS_f32[] = {
    0.344815999f,
    -0.662808895f,
    0.057595104f,
    0.0734370872f,
    -0.000943167601f,
    -0.0134543786f,
    -0.00388531713f,
    0.00159565429f,
    0.00162526697f,
    0.000346300716f,
    -0.000230371152f,
    -0.000177324444f,
    -3.90709138e-05f,
};
/* 2 (a + 2) Phi(-a) e^(a²/2) = 1 + p(t), t = (a - 2) / (a + 2); the relative error: 2^-56.5 */
static const double MILLS_f64[] = {
    0.34481600978536486,
    -0.66280888477756195,
    0.057594720690721517,
    0.07343672193782648,
    -0.00093919366852429989,
    -0.013449814155506548,
    -0.0039022483285582358,
    0.0015702362959522263,
    0.0016543979834869379,
    0.00041398366739983514,
    -0.00023138607016235261,
    -0.00025710532877841821,
    -9.2110642566474202e-05,
    1.9370547519565858e-05,
    4.3420019514822078e-05,
    2.5116926341317904e-05,
    4.0132980048828262e-06,
    -5.6459756779202907e-06,
    -5.8270990379212909e-06,
    -2.8231388430322598e-06,
    -4.8515230509411576e-07,
    7.4600970793340775e-07,
    1.1971116300930135e-06,
    7.2755622662977911e-07,
    -1.2175368217821417e-07,
    -4.0160489415822042e-07,
    -1.4675333052644648e-07,
    4.5075252013697071e-08,
    4.0982018074532244e-08,
    7.367610126658883e-09,
};
/* log2(e), and log(2) in two parts, of which the first has so few bits that its product with n is exact. */
static const float LOG2E_f32 = 1.44269504f, LN2_HIGH_f32 = 0x1.62ep-1f, LN2_LOW_f32 = 0x1.0bfbe8p-15f;
static const double LOG2E_f64 = 1.4426950408889634, LN2_HIGH_f64 = 0x1.62e42fefap-1, LN2_LOW_f64 = 0x1.cf79abc9e3b3ap-40;
/* A number to which it is added is rounded to an integer, which is then in the low bits. */
static const float ROUNDER_f32 = 0x1.8p23f;
static const double ROUNDER_f64 = 0x1.8p52;
static const float UP_f32 = 0x1p64f, DOWN_f32 = 0x1p-64f;
static const double UP_f64 = 0x1p512, DOWN_f64 = 0x1p-512;
static const float LARGEST_f32 = 0x1.fffffep127f;
static const double LARGEST_f64 = 0x1.fffffffffffffp1023;
/* For x < -ENDS, |x| e^x and everything smaller is rounded to 0. 1 + e^-NOTHING is rounded to 1. */
static const float ENDS_f32 = 110, NOTHING = 50;
static const double ENDS_f64 = 760;
/* For x < -GELU_ENDS, gelu and its derivative are 0. MILLS is a polynomial in (a - MILLS_SHIFT) / (a + MILLS_SHIFT). */
static const float GELU_ENDS_f32 = 14.75f, MILLS_SHIFT = 2;
static const double GELU_ENDS_f64 = 38.75;
static const float SLOPE_f32 = 0.01f; /* of leaky_relu */
static const double SLOPE_f64 = 0.01, DENSITY_AT_0 = 0.3989422804014327; /* 1 / sqrt(2 pi) */
/* softmax adds up its terms in two parts: multiples of 2^-9 (float64: 2^-26), whose sums stay exact for long rows, and
   what is left. A term times UP to which GRID is added is rounded to such a multiple. */
static const float GRID_f32 = 0x1.8p78f;
static const double GRID_f64 = 0x1.8p538;

#define REAL float
#define SUFFIX f32
#include "_activation.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "_activation.h"

/* What the loops call: the function for the dtype of the first operand. */
#define relu(x, ...) BY_DTYPE(x, relu_each)(x, __VA_ARGS__)
#define leaky_relu(x, ...) BY_DTYPE(x, leaky_relu_each)(x, __VA_ARGS__)
#define elu(x, ...) BY_DTYPE(x, elu_each)(x, __VA_ARGS__)
#define sigmoid(x, ...) BY_DTYPE(x, sigmoid_each)(x, __VA_ARGS__)
#define hyperbolic_tangent(x, ...) BY_DTYPE(x, tanh_each)(x, __VA_ARGS__)
#define silu(x, ...) BY_DTYPE(x, silu_each)(x, __VA_ARGS__)
#define gelu(x, ...) BY_DTYPE(x, gelu_each)(x, __VA_ARGS__)
#define softmax(x, ...) BY_DTYPE(x, softmax)(x, __VA_ARGS__)
#define relu_derivative(grad, ...) BY_DTYPE(grad, relu_derivative_each)(grad, __VA_ARGS__)
#define leaky_relu_derivative(grad, ...) BY_DTYPE(grad, leaky_relu_derivative_each)(grad, __VA_ARGS__)
#define elu_derivative(grad, ...) BY_DTYPE(grad, elu_derivative_each)(grad, __VA_ARGS__)
#define sigmoid_derivative(grad, ...) BY_DTYPE(grad, sigmoid_derivative_each)(grad, __VA_ARGS__)
#define tanh_derivative(grad, ...) BY_DTYPE(grad, tanh_derivative_each)(grad, __VA_ARGS__)
#define silu_derivative(grad, ...) BY_DTYPE(grad, silu_derivative_each)(grad, __VA_ARGS__)
#define gelu_derivative(grad, ...) BY_DTYPE(grad, gelu_derivative_each)(grad, __VA_ARGS__)
#define softmax_derivative(grad, ...) BY_DTYPE(grad, softmax_derivative)(grad, __VA_ARGS__)

#else

#define TO_EACH(c) NAME(splat)((REAL)(c))

/* c[0] + c[1] x + c[2] x^2 + ... A long one as two sums side by side, of the even and of the odd powers: one chain of
   multiply-adds would be longer than what a processor looks ahead, which costs gelu two thirds. Four sums are no faster by
   much, and round once too often. */
INLINE VEC NAME(polynomial)(VEC x, const REAL *c, const int terms) {
    const int sums = HAS_FMA && terms > 8 ? 2 : 1; /* without it, two round too often */
    VEC sum[2], power = sums == 2 ? NAME(mul)(x, x) : x;
    UNROLL_ALL for (int k = terms - 1; k >= 0; k--)
        sum[k % sums] = k + sums < terms ? NAME(fma)(sum[k % sums], power, TO_EACH(c[k])) : TO_EACH(c[k]);
    return sums == 2 ? NAME(fma)(sum[1], x, sum[0]) : sum[0];
}
#define POLYNOMIAL(x, c) NAME(polynomial)(x, NAME(c), (int)(sizeof NAME(c) / sizeof(REAL)))

/* e^(z + tail) = 2^n (1 + h): returns h, -0.3 < h < 0.42, and n in the low bits of t. |z| is below 2^20, and tail so small
   that it does not matter to n. */
INLINE VEC NAME(exp_parts)(VEC z, VEC tail, VEC *t) {
    VEC n, r;
    *t = NAME(fma)(z, TO_EACH(NAME(LOG2E)), TO_EACH(NAME(ROUNDER)));
    n = NAME(sub)(*t, TO_EACH(NAME(ROUNDER)));
    r = NAME(fma)(n, TO_EACH(-NAME(LN2_HIGH)), z);
    r = NAME(add)(r, NAME(fma)(n, TO_EACH(-NAME(LN2_LOW)), tail));
    return NAME(fma)(NAME(mul)(r, r), POLYNOMIAL(r, EXP), r);
}

/* a b - p for p = a b rounded. */
INLINE VEC NAME(product_error)(VEC a, VEC b, VEC p) {
#if HAS_FMA
    return NAME(fma)(a, b, NAME(neg)(p));
#else /* Dekker's: the halves of a and b have exact products */
    const VEC splitter = TO_EACH(sizeof(REAL) == 4 ? 4097. : 134217729.);
    VEC a_big = NAME(mul)(splitter, a), b_big = NAME(mul)(splitter, b);
    VEC a0 = NAME(sub)(a_big, NAME(sub)(a_big, a)), b0 = NAME(sub)(b_big, NAME(sub)(b_big, b));
    VEC a1 = NAME(sub)(a, a0), b1 = NAME(sub)(b, b0);
    VEC error = NAME(sub)(NAME(mul)(a0, b0), p);
    error = NAME(add)(NAME(add)(error, NAME(mul)(a0, b1)), NAME(mul)(a1, b0));
    return NAME(add)(error, NAME(mul)(a1, b1));
#endif
}

/* 1 / (b + b_rest) to twice the precision, where b_rest is as small as a rounding error. It is the sum of the result and
   *rest. */
INLINE VEC NAME(reciprocal)(VEC b, VEC b_rest, VEC *rest) {
    VEC inverse = NAME(div)(TO_EACH(1), b), error;
#if HAS_FMA
    error = NAME(fma)(NAME(neg)(inverse), b, TO_EACH(1));
#else
    VEC product = NAME(mul)(inverse, b);
    error = NAME(sub)(NAME(sub)(TO_EACH(1), product), NAME(product_error)(inverse, b, product));
#endif
    *rest = NAME(mul)(inverse, NAME(fma)(NAME(neg)(inverse), b_rest, error));
    return inverse;
}

/* ---- forward */

INLINE VEC NAME(relu)(VEC x) { return NAME(max)(NAME(zero)(), x); }

INLINE VEC NAME(leaky_relu)(VEC x) {
    return NAME(select_less)(NAME(zero)(), x, x, NAME(mul)(x, TO_EACH(NAME(SLOPE))));
}

INLINE VEC NAME(elu)(VEC x) {
    VEC t, h, power;
    h = NAME(exp_parts)(NAME(max)(TO_EACH(-NOTHING), NAME(min)(NAME(zero)(), x)), NAME(zero)(), &t);
    power = NAME(add_exponent)(TO_EACH(1), t);
    h = NAME(fma)(power, h, NAME(sub)(power, TO_EACH(1)));
    return NAME(select_less)(x, NAME(zero)(), h, x);
}

/* (e - 1) / (e + 1), where e = e^(-2|x|), with the sign of x. Rounded as it stands, that would be off by too much, so the
   numerator, the denominator and the quotient are each kept with their rounding errors. */
INLINE VEC NAME(tanh)(VEC x) {
    VEC t, h, power, less, more, above, above_rest, below, below_rest, inverse, quotient, rest;
    h = NAME(exp_parts)(NAME(max)(TO_EACH(-NOTHING), NAME(mul)(TO_EACH(-2), NAME(magnitude)(x))), NAME(zero)(), &t);
    power = NAME(add_exponent)(TO_EACH(1), t);
    less = NAME(sub)(power, TO_EACH(1));
    more = NAME(add)(power, TO_EACH(1));
    above = NAME(fma)(power, h, less);
    below = NAME(fma)(power, h, more);
    above_rest = NAME(fma)(power, h, NAME(sub)(less, above));
    below_rest = NAME(fma)(power, h, NAME(sub)(more, below));
    inverse = NAME(reciprocal)(below, below_rest, &rest);
    quotient = NAME(mul)(above, inverse);
    rest = NAME(fma)(above, rest, NAME(product_error)(above, inverse, quotient));
    rest = NAME(fma)(above_rest, inverse, rest);
    return NAME(signed_as)(NAME(add)(quotient, rest), x);
}

/* scale (1 + e^-x), where the scale is so small for negative x that e^-x does not overflow; *e is scale e^-x. */
INLINE VEC NAME(sigmoid_below)(VEC x, VEC *scale, VEC *e) {
    VEC t, h, power, z, sum, lost;
    z = NAME(max)(TO_EACH(-NOTHING), NAME(neg)(x));
    h = NAME(exp_parts)(NAME(min)(TO_EACH(NAME(ENDS)), z), NAME(zero)(), &t);
    *scale = NAME(select_less)(x, NAME(zero)(), TO_EACH(NAME(DOWN)), TO_EACH(1));
    power = NAME(add_exponent)(*scale, t);
    *e = NAME(fma)(power, h, power);
    /* scale + power is rounded only where one of them hardly matters; what is lost goes with the part that is added. */
    sum = NAME(add)(*scale, power);
    lost = NAME(sub)(NAME(min)(*scale, power), NAME(sub)(sum, NAME(max)(*scale, power)));
    return NAME(add)(sum, NAME(fma)(power, h, lost));
}

INLINE VEC NAME(sigmoid)(VEC x) {
    VEC scale, e, below = NAME(sigmoid_below)(x, &scale, &e);
    return NAME(mul)(NAME(div)(TO_EACH(1), below), scale);
}

INLINE VEC NAME(silu)(VEC x) {
    VEC scale, e, below = NAME(sigmoid_below)(x, &scale, &e);
    return NAME(mul)(NAME(div)(NAME(max)(TO_EACH(-NAME(ENDS)), x), below), scale);
}

/* What gelu is made of, for a = |x|: e^(-a^2/2) / 2 = power DOWN (1 + h), and 2 a Phi(-a) e^(a^2/2) =
   (quotient + rest) (1 + p), where quotient + rest = a inverse, and inverse = 1 / (a + MILLS_SHIFT). */
struct NAME(tail) { VEC a, power, h, p, quotient, rest, inverse; };
INLINE struct NAME(tail) NAME(normal_tail)(VEC x) {
    struct NAME(tail) to;
    VEC square, t, below, below_rest, rest;
    to.a = NAME(min)(TO_EACH(NAME(GELU_ENDS)), NAME(magnitude)(x));
    square = NAME(mul)(to.a, to.a);
    to.h = NAME(exp_parts)(NAME(mul)(TO_EACH(-0.5), square),
                           NAME(mul)(TO_EACH(-0.5), NAME(product_error)(to.a, to.a, square)), &t);
    to.power = NAME(add_exponent)(TO_EACH(NAME(UP) / 2), t);
    below = NAME(add)(to.a, TO_EACH(MILLS_SHIFT));
    below_rest = NAME(sub)(to.a, NAME(sub)(below, TO_EACH(MILLS_SHIFT)));
    to.inverse = NAME(reciprocal)(below, below_rest, &rest);
    t = NAME(fma)(TO_EACH(-2 * MILLS_SHIFT), to.inverse, TO_EACH(1));
    to.p = POLYNOMIAL(NAME(fma)(TO_EACH(-2 * MILLS_SHIFT), rest, t), MILLS);
    to.quotient = NAME(mul)(to.a, to.inverse);
    to.rest = NAME(fma)(to.a, rest, NAME(product_error)(to.a, to.inverse, to.quotient));
    return to;
}

/* a Phi(-a) is gelu for x < 0 but for its sign, and what x is more than gelu for x > 0. It is (quotient + rest)
   (1 + p) (1 + h): each product is again a sum of two numbers, the second of which is the first one's rounding error. */
INLINE VEC NAME(gelu)(VEC x) {
    struct NAME(tail) of = NAME(normal_tail)(x);
    VEC product, more, error, tail;
    more = NAME(fma)(of.quotient, of.p, NAME(fma)(of.rest, of.p, of.rest));
    product = NAME(add)(of.quotient, more);
    error = NAME(sub)(more, NAME(sub)(product, of.quotient));
    tail = NAME(add)(product, NAME(fma)(product, of.h, NAME(fma)(error, of.h, error)));
    tail = NAME(mul)(NAME(mul)(tail, of.power), TO_EACH(NAME(DOWN)));
    return NAME(select_less)(x, NAME(zero)(), NAME(neg)(tail), NAME(sub)(x, tail));
}

/* ---- derivatives, times the gradient after the activation */

INLINE VEC NAME(relu_derivative)(VEC grad, VEC y) {
    return NAME(select_less)(NAME(zero)(), y, grad, NAME(mul)(y, NAME(zero)()));
}
INLINE VEC NAME(leaky_relu_derivative)(VEC grad, VEC y) {
    return NAME(select_less)(NAME(zero)(), y, grad, NAME(mul)(grad, TO_EACH(NAME(SLOPE))));
}
INLINE VEC NAME(elu_derivative)(VEC grad, VEC y) {
    return NAME(mul)(grad, NAME(add)(NAME(min)(NAME(zero)(), y), TO_EACH(1)));
}
INLINE VEC NAME(sigmoid_derivative)(VEC grad, VEC y) {
    return NAME(mul)(grad, NAME(mul)(y, NAME(sub)(TO_EACH(1), y)));
}
INLINE VEC NAME(tanh_derivative)(VEC grad, VEC y) {
    return NAME(mul)(grad, NAME(mul)(NAME(sub)(TO_EACH(1), y), NAME(add)(TO_EACH(1), y)));
}
/* s (1 + x e^-x s) of s = sigmoid(x). */
INLINE VEC NAME(silu_derivative)(VEC grad, VEC x) {
    VEC scale, e, inverse, below = NAME(sigmoid_below)(x, &scale, &e);
    inverse = NAME(div)(TO_EACH(1), below);
    x = NAME(min)(TO_EACH(NOTHING), NAME(max)(TO_EACH(-NAME(ENDS)), x));
    x = NAME(fma)(x, NAME(mul)(e, inverse), TO_EACH(1));
    return NAME(mul)(grad, NAME(mul)(NAME(mul)(x, inverse), scale));
}
/* Phi(x) + x phi(x): of -a, e^(-a^2/2) times what is left when both are divided by it; of a, what is left of 1. */
INLINE VEC NAME(gelu_derivative)(VEC grad, VEC x) {
    struct NAME(tail) of = NAME(normal_tail)(x);
    VEC d = NAME(fma)(of.p, of.inverse, of.inverse);
    d = NAME(fma)(of.a, TO_EACH(-2 * DENSITY_AT_0), d);
    d = NAME(mul)(NAME(mul)(NAME(fma)(d, of.h, d), of.power), TO_EACH(NAME(DOWN)));
    return NAME(mul)(grad, NAME(select_less)(x, NAME(zero)(), d, NAME(sub)(TO_EACH(1), d)));
}

/* ---- element after element: out[j] = f(x[j]), and out[j] = f(grad[j], values[j]). out can be an operand. */

#define EACH(name) \
    static void NAME(name##_each)(const REAL *x, REAL *out, ptrdiff_t n) { \
        ptrdiff_t j = 0; \
        for (; j + WIDTH <= n; j += WIDTH) NAME(store)(out + j, NAME(name)(NAME(load)(x + j))); \
        if (j < n) NAME(store_first)(out + j, NAME(name)(NAME(load_first)(x + j, (int)(n - j))), (int)(n - j)); \
    }
EACH(relu)
EACH(leaky_relu)
EACH(elu)
EACH(sigmoid)
EACH(tanh)
EACH(silu)
EACH(gelu)
#undef EACH

#define EACH(name) \
    static void NAME(name##_each)(const REAL *grad, const REAL *values, REAL *out, ptrdiff_t n) { \
        ptrdiff_t j = 0; \
        for (; j + WIDTH <= n; j += WIDTH) \
            NAME(store)(out + j, NAME(name)(NAME(load)(grad + j), NAME(load)(values + j))); \
        if (j < n) { \
            const int some = (int)(n - j); \
            VEC g = NAME(load_first)(grad + j, some); \
            NAME(store_first)(out + j, NAME(name)(g, NAME(load_first)(values + j, some)), some); \
        } \
    }
EACH(relu_derivative)
EACH(leaky_relu_derivative)
EACH(elu_derivative)
EACH(sigmoid_derivative)
EACH(tanh_derivative)
EACH(silu_derivative)
EACH(gelu_derivative)
#undef EACH

/* ---- softmax, row after row */

/* All lanes of the vectors, added up: those of 64 bytes first, then lane l to l + LINE/2, to l + LINE/4, ...; of a in the
   first lane and of b in the second. */
INLINE VEC NAME(sum_lanes)(const VEC a[PARTS], const VEC b[PARTS]) {
    VEC one[PARTS], two[PARTS];
    UNROLL_ALL for (int part = 0; part < PARTS; part++) one[part] = a[part], two[part] = b[part];
    UNROLL_ALL for (int h = PARTS / 2; h; h /= 2)
        UNROLL_ALL for (int part = 0; part < h; part++) {
            one[part] = NAME(add)(one[part], one[part + h]);
            two[part] = NAME(add)(two[part], two[part + h]);
        }
    one[0] = NAME(fold)(one[0], two[0], WIDTH / 2);
    UNROLL_ALL for (int w = WIDTH / 4; w; w /= 2) one[0] = NAME(fold)(one[0], one[0], w);
    return one[0];
}

/* e^(x - most) times UP, to the rounding of the result: the difference has a rounding error, which is found and put back. */
INLINE VEC NAME(softmax_term)(VEC x, VEC most) {
    VEC z, back, tail, t, h, power;
    z = NAME(sub)(x, most);
    back = NAME(sub)(z, x);
    tail = NAME(sub)(NAME(sub)(x, NAME(sub)(z, back)), NAME(add)(most, back));
    tail = NAME(select_less)(TO_EACH(-NAME(ENDS)), z, tail, NAME(zero)()); /* where z is -inf there is none */
    h = NAME(exp_parts)(NAME(max)(TO_EACH(-NAME(ENDS)), z), tail, &t);
    power = NAME(add_exponent)(TO_EACH(NAME(UP)), t);
    return NAME(fma)(power, h, power);
}

/* An infinity counts as the largest number, so those that are equal share. */
INLINE VEC NAME(finite)(VEC x) {
    return NAME(max)(TO_EACH(-NAME(LARGEST)), NAME(min)(TO_EACH(NAME(LARGEST)), x));
}

static void NAME(softmax)(const REAL *x, REAL *out, ptrdiff_t rows, ptrdiff_t columns) {
    const ptrdiff_t whole = columns / LINE * LINE;
    REAL last[LINE]; /* what is left of a row after its whole lines, with lanes that add nothing */
    for (; rows > 0; rows--, x += columns, out += columns) {
        VEC most[PARTS], high[PARTS], low[PARTS], inverse, rest;
        REAL lane[LINE];
        if (whole < columns) {
            UNROLL_ALL for (int part = 0; part < PARTS; part++)
                NAME(store)(last + part * WIDTH, TO_EACH(-NAME(LARGEST)));
            memcpy(last, x + whole, (size_t)(columns - whole) * sizeof(REAL));
        }
#define EACH_LINE(from, to, ...) \
        for (ptrdiff_t j = 0; j < columns; j += LINE) { \
            const REAL *p = j < whole ? from + j : last; \
            REAL *q = j < whole ? to + j : last; \
            UNROLL_ALL for (int part = 0; part < PARTS; part++, p += WIDTH, q += WIDTH) { __VA_ARGS__ } \
        }
        UNROLL_ALL for (int part = 0; part < PARTS; part++) {
            most[part] = TO_EACH(-NAME(LARGEST));
            high[part] = low[part] = NAME(zero)();
        }
        EACH_LINE(x, out, (void)q; most[part] = NAME(max)(NAME(load)(p), most[part]);)
        UNROLL_ALL for (int part = 0; part < PARTS; part++) NAME(store)(lane + part * WIDTH, most[part]);
        for (int h = LINE / 2; h; h /= 2)
            for (int l = 0; l < h; l++) lane[l] = lane[l] < lane[l + h] ? lane[l + h] : lane[l];
        most[0] = NAME(finite)(TO_EACH(lane[0]));
        EACH_LINE(x, out, NAME(store)(q, NAME(softmax_term)(NAME(finite)(NAME(load)(p)), most[0]));)
        if (whole < columns) memset(last + (columns - whole), 0, (size_t)(LINE - (columns - whole)) * sizeof(REAL));
        EACH_LINE(out, out, (void)q;
            VEC term = NAME(load)(p);
            VEC rough = NAME(sub)(NAME(add)(term, TO_EACH(NAME(GRID))), TO_EACH(NAME(GRID)));
            high[part] = NAME(add)(high[part], rough);
            low[part] = NAME(add)(low[part], NAME(sub)(term, rough));
        )
        NAME(store)(lane, NAME(sum_lanes)(high, low));
        high[0] = TO_EACH(lane[0] + lane[1]);
        low[0] = NAME(sub)(TO_EACH(lane[1]), NAME(sub)(high[0], TO_EACH(lane[0])));
        inverse = NAME(reciprocal)(high[0], low[0], &rest);
        EACH_LINE(out, out,
            VEC term = NAME(load)(p);
            NAME(store)(q, NAME(fma)(term, inverse, NAME(mul)(term, rest)));
        )
        if (whole < columns) memcpy(out + whole, last, (size_t)(columns - whole) * sizeof(REAL));
    }
#undef EACH_LINE
}

/* out = y (grad - sum of grad y over the row). */
static void NAME(softmax_derivative)(const REAL *grad, const REAL *y, REAL *out, ptrdiff_t rows, ptrdiff_t columns) {
    for (; rows > 0; rows--, grad += columns, y += columns, out += columns) {
        VEC sum[PARTS];
        REAL lane[LINE];
        UNROLL_ALL for (int part = 0; part < PARTS; part++) sum[part] = NAME(zero)();
        ptrdiff_t j = 0;
        for (; j + LINE <= columns; j += LINE)
            UNROLL_ALL for (int part = 0; part < PARTS; part++) {
                const ptrdiff_t at = j + part * WIDTH;
                sum[part] = NAME(fma)(NAME(load)(grad + at), NAME(load)(y + at), sum[part]);
            }
        UNROLL_ALL for (int part = 0; part < PARTS; part++) {
            const ptrdiff_t at = j + part * WIDTH, left = columns - at;
            const int n = left <= 0 ? 0 : left < WIDTH ? (int)left : WIDTH;
            if (n) sum[part] = NAME(fma)(NAME(load_first)(grad + at, n), NAME(load_first)(y + at, n), sum[part]);
        }
        NAME(store)(lane, NAME(sum_lanes)(sum, sum));
        sum[0] = TO_EACH(lane[0]);
        for (j = 0; j < columns; j += WIDTH) {
            const int n = columns - j < WIDTH ? (int)(columns - j) : WIDTH;
            VEC g = NAME(sub)(n == WIDTH ? NAME(load)(grad + j) : NAME(load_first)(grad + j, n), sum[0]);
            if (n == WIDTH) NAME(store)(out + j, NAME(mul)(NAME(load)(y + j), g));
            else NAME(store_first)(out + j, NAME(mul)(NAME(load_first)(y + j, n), g), n);
        }
    }
}

#undef TO_EACH
#undef POLYNOMIAL
#endif
