/* Flags with which no module may be compiled, whoever asked for them. setup.py undoes the flags of the environment that it
   can. This file makes the others an error: the compiler reads it before the first line of each module (-include, /FI).

   FASTLINEAR_AVX2 and the like are defined where _isa.py lists that feature for the module. */
#ifndef FASTLINEAR_PROMISES_H
#define FASTLINEAR_PROMISES_H

/* ---- sums in the order that is written, NaN, infinities and signed zeros: README, Promises ---- */

#if defined(__FAST_MATH__) || __FINITE_MATH_ONLY__ + 0 || defined(__ASSOCIATIVE_MATH__) ||                              \
    defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__) || defined(_M_FP_FAST) || defined(_M_FP_CONTRACT)
#error "fastlinear: -ffast-math or a part of it is on, which changes results: take it out of the compiler's flags"
#endif
#if defined(__NO_TRAPPING_MATH__) && !defined(__clang__)
#error "fastlinear: -fno-trapping-math is on, which lets padded lanes raise warnings: take it out of the compiler's flags"
#endif
#if __FLT_EVAL_METHOD__ + 0 != 0
#error "fastlinear: float is not computed as float here (-mfpmath=387?), so results are not the promised ones"
#endif
_Static_assert(sizeof(0.1) == sizeof(double), "fastlinear: -fsingle-precision-constant is on, which changes results");

/* ---- memory laid out as NumPy and Python have it ---- */

_Static_assert(sizeof(struct { char c; double d; }) > 1 + sizeof(double), "fastlinear: -fpack-struct is on");
_Static_assert(sizeof(enum { FASTLINEAR_SMALL_ENUM }) == sizeof(int), "fastlinear: -fshort-enums is on");

/* ---- the instructions of this module's set and no others ---- */

#if defined(__AVX2__) != defined(FASTLINEAR_AVX2) || defined(__FMA__) != defined(FASTLINEAR_FMA) ||                     \
    defined(__AVX512F__) != defined(FASTLINEAR_AVX512F) || defined(__AVX512BW__) != defined(FASTLINEAR_AVX512BW) ||     \
    defined(__AVX512DQ__) != defined(FASTLINEAR_AVX512DQ) || defined(__AVX512VL__) != defined(FASTLINEAR_AVX512VL)
#error "fastlinear: this module has not the instructions of its row in _isa.py: take -m and /arch out of the flags"
#endif
#if !defined(FASTLINEAR_AVX2) && (defined(__SSE3__) || defined(__AVX__)) || defined(__BMI__) || defined(__BMI2__) ||    \
    defined(__LZCNT__) || defined(__MOVBE__) || defined(__ADX__) || defined(__FMA4__) || defined(__XOP__) ||            \
    defined(__TBM__) || !defined(FASTLINEAR_AVX2) && defined(__POPCNT__)
#error "fastlinear: not every processor that is offered this module runs it: take -m and /arch out of the flags"
#endif

#endif
