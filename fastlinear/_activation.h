/* The activations and their derivatives, on the vectors of _vector.h, and the loops over elements.

   The file includes itself once for each dtype, as _tile.h does. What is rounded, and in which order, is written out:
   an element's result is the same in any lane, at any length and on every instruction set with FMA. */
#ifndef REAL

#include "_vector.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define BY_DTYPE(pointer, name) _Generic(*(pointer), float: name##_f32, double: name##_f64)

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
#define relu_derivative(grad, ...) BY_DTYPE(grad, relu_derivative_each)(grad, __VA_ARGS__)

#else

#define NAME(name) JOIN(name, SUFFIX)
#define VEC NAME(vec)
#define WIDTH ((ptrdiff_t)(sizeof(VEC) / sizeof(REAL)))

INLINE VEC NAME(relu)(VEC x) {
    REAL lane[WIDTH];
    NAME(store)(lane, x);
    for (int j = 0; j < WIDTH; j++) lane[j] = lane[j] <= 0 ? 0 : lane[j];
    return NAME(load)(lane);
}
INLINE VEC NAME(relu_derivative)(VEC grad, VEC output) {
    REAL g[WIDTH], y[WIDTH];
    NAME(store)(g, grad);
    NAME(store)(y, output);
    for (int j = 0; j < WIDTH; j++) g[j] = y[j] == 0 ? 0 : g[j];
    return NAME(load)(g);
}

/* Element after element: out[j] = f(x[j]), and out[j] = f(grad[j], values[j]). out may be an operand. */
#define EACH(name) \
    static void NAME(name##_each)(const REAL *x, REAL *out, ptrdiff_t n) { \
        ptrdiff_t j = 0; \
        for (; j + WIDTH <= n; j += WIDTH) NAME(store)(out + j, NAME(name)(NAME(load)(x + j))); \
        if (j < n) NAME(store_first)(out + j, NAME(name)(NAME(load_first)(x + j, (int)(n - j))), (int)(n - j)); \
    }
#define EACH_OF_TWO(name) \
    static void NAME(name##_each)(const REAL *grad, const REAL *values, REAL *out, ptrdiff_t n) { \
        ptrdiff_t j = 0; \
        for (; j + WIDTH <= n; j += WIDTH) \
            NAME(store)(out + j, NAME(name)(NAME(load)(grad + j), NAME(load)(values + j))); \
        if (j < n) { \
            const int some = (int)(n - j); \
            NAME(store_first)(out + j, NAME(name)(NAME(load_first)(grad + j, some), NAME(load_first)(values + j, some)), some); \
        } \
    }
EACH(relu)
EACH_OF_TWO(relu_derivative)
#undef EACH
#undef EACH_OF_TWO

#undef NAME
#undef VEC
#undef WIDTH
#endif
