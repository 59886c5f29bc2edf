/* The vectors that the kernels are written in: one width and some small functions for each instruction set.

   vec_f32, vec_f64      VECTOR_BYTES of float or double
   vec_f32_lanes, ...    where that is more than LANE_BYTES: vectors of LANE_BYTES, with the functions from zero() to fma()
                         and fold() and swap(), for the loops that go along the lanes of forward's sums; lower(v) is the
                         first half of a vector and twice(v) the other way. Else they are vec_f32 itself
   zero(), splat(s)      every lane 0, every lane s
   load(p), store(p, v)  a whole vector at any address
   load_first(p, n)      lanes 0..n-1 from p[0..n-1], the others 0; touches no other element (0 <= n <= lanes)
   store_first(p, v, n)  the other direction; writes no other element
   get(p, n), put(p, v, n)   load and store, or load_first and store_first, by whether n is all lanes
   part_of(n, from)      of n elements in vectors, how many are in the one that begins with element `from`
   add, sub, mul, div    a + b, a - b, a * b, a / b
   fma(a, b, c)          a * b + c, rounded once where the instruction set can (HAS_FMA), else twice
   max(a, b), min(a, b)  a > b ? a : b, a < b ? a : b, so b where one is NaN, or both are 0
   sqrt(a)               rounded to the nearest
   select_less(a, b, x, y)   a < b ? x : y
   neg(a), magnitude(a)  -a, |a|
   signed_as(a, s)       |a| with the sign of s
   add_exponent(a, t)    a times 2^n, where n is the integer in the low bits of t (t = n + 1.5 * 2^23, or 2^52), and both
                         a and the result are normal numbers
   fold(a, b, w)         one step of a sum over lanes, see below
   swap(v, w)            runs of w lanes change places in pairs: lane j is that of j ^ w
   pieces(rows)          16 bytes from each of the addresses rows[0], rows[16/size], rows[2 * 16/size], ...
   zip(a, b, half)       in each 16 bytes, the lower (half = 0) or upper halves (half = 1) of a and b interleaved
   HOLD(v)               v stays in its register: left alone, GCC loads it again for each use in a tile of 2 or 3 rows,
                         which costs a third where loads cross cache lines

   To add an instruction set: one block of the #if chain below, and its row in _isa.py.
   The build switches contraction off (-ffp-contract=off), so what is fused is what says fma. */
#ifndef FASTLINEAR_VECTOR_H
#define FASTLINEAR_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* GCC has __builtin_shufflevector from version 12, Clang always. Other compilers get arrays, and so does
   -DFASTLINEAR_PLAIN, by which the test suite reaches that form on any machine. */
#if !defined(FASTLINEAR_PLAIN) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define GNU_VECTORS 1
#endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline
#endif

#if defined(GNU_VECTORS) && (defined(__x86_64__) || defined(__i386__)) && !defined(FASTLINEAR_WIDE)
#define HOLD(v) __asm__("" : "+v"(v))
#elif defined(GNU_VECTORS) && defined(__aarch64__)
#define HOLD(v) __asm__("" : "+w"(v))
#else
#define HOLD(v)
#endif

/* The lanes of a sum of forward: part of the contract on bits (_tile.h). */
#define LANE_BYTES 32

/* ---- one block for each instruction set: width, registers, fma, partial loads and stores ---- */

#if defined(GNU_VECTORS) && defined(FASTLINEAR_WIDE) /* AVX-512's shapes on AVX2, to test them anywhere */

#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#define HAS_FMA 1
#define FUSED(real, suffix, bytes, multiply_add) \
    typedef real vec_##suffix __attribute__((vector_size(bytes))); \
    INLINE vec_##suffix fma_##suffix(vec_##suffix a, vec_##suffix b, vec_##suffix c) { \
        for (int j = 0; j < (int)(bytes / sizeof(real)); j++) c[j] = multiply_add(a[j], b[j], c[j]); \
        return c; \
    }
FUSED(float, f32, VECTOR_BYTES, __builtin_fmaf)
FUSED(double, f64, VECTOR_BYTES, __builtin_fma)
FUSED(float, f32_lanes, LANE_BYTES, __builtin_fmaf)
FUSED(double, f64_lanes, LANE_BYTES, __builtin_fma)

#elif defined(GNU_VECTORS) && defined(__AVX512F__)

#include <immintrin.h>
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#define HAS_FMA 1
typedef __m512 vec_f32;
typedef __m512d vec_f64;
INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm512_fmadd_pd(a, b, c); }
#define FIRST(n) ((1u << (n)) - 1)
INLINE vec_f32 load_first_f32(const float *p, int n) { return _mm512_maskz_loadu_ps((__mmask16)FIRST(n), p); }
INLINE vec_f64 load_first_f64(const double *p, int n) { return _mm512_maskz_loadu_pd((__mmask8)FIRST(n), p); }
INLINE vec_f32 max_f32(vec_f32 a, vec_f32 b) { return _mm512_max_ps(a, b); }
INLINE vec_f64 max_f64(vec_f64 a, vec_f64 b) { return _mm512_max_pd(a, b); }
INLINE vec_f32 min_f32(vec_f32 a, vec_f32 b) { return _mm512_min_ps(a, b); }
INLINE vec_f64 min_f64(vec_f64 a, vec_f64 b) { return _mm512_min_pd(a, b); }
INLINE vec_f32 sqrt_f32(vec_f32 a) { return _mm512_sqrt_ps(a); }
INLINE vec_f64 sqrt_f64(vec_f64 a) { return _mm512_sqrt_pd(a); }
INLINE vec_f32 select_less_f32(vec_f32 a, vec_f32 b, vec_f32 x, vec_f32 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
INLINE vec_f64 select_less_f64(vec_f64 a, vec_f64 b, vec_f64 x, vec_f64 y) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), y, x);
}
INLINE void store_first_f32(float *p, vec_f32 v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)FIRST(n), v); }
INLINE void store_first_f64(double *p, vec_f64 v, int n) { _mm512_mask_storeu_pd(p, (__mmask8)FIRST(n), v); }
typedef __m256 vec_f32_lanes;
typedef __m256d vec_f64_lanes;
INLINE vec_f32_lanes fma_f32_lanes(vec_f32_lanes a, vec_f32_lanes b, vec_f32_lanes c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec_f64_lanes fma_f64_lanes(vec_f64_lanes a, vec_f64_lanes b, vec_f64_lanes c) { return _mm256_fmadd_pd(a, b, c); }
INLINE vec_f32_lanes load_first_f32_lanes(const float *p, int n) { return _mm256_maskz_loadu_ps((__mmask8)FIRST(n), p); }
INLINE vec_f64_lanes load_first_f64_lanes(const double *p, int n) { return _mm256_maskz_loadu_pd((__mmask8)FIRST(n), p); }
INLINE void store_first_f32_lanes(float *p, vec_f32_lanes v, int n) { _mm256_mask_storeu_ps(p, (__mmask8)FIRST(n), v); }
INLINE void store_first_f64_lanes(double *p, vec_f64_lanes v, int n) { _mm256_mask_storeu_pd(p, (__mmask8)FIRST(n), v); }

#elif defined(GNU_VECTORS) && defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#define HAS_FMA 1
typedef __m256 vec_f32;
typedef __m256d vec_f64;
INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm256_fmadd_pd(a, b, c); }
INLINE vec_f32 max_f32(vec_f32 a, vec_f32 b) { return _mm256_max_ps(a, b); }
INLINE vec_f64 max_f64(vec_f64 a, vec_f64 b) { return _mm256_max_pd(a, b); }
INLINE vec_f32 min_f32(vec_f32 a, vec_f32 b) { return _mm256_min_ps(a, b); }
INLINE vec_f64 min_f64(vec_f64 a, vec_f64 b) { return _mm256_min_pd(a, b); }
INLINE vec_f32 sqrt_f32(vec_f32 a) { return _mm256_sqrt_ps(a); }
INLINE vec_f64 sqrt_f64(vec_f64 a) { return _mm256_sqrt_pd(a); }
INLINE vec_f32 select_less_f32(vec_f32 a, vec_f32 b, vec_f32 x, vec_f32 y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE vec_f64 select_less_f64(vec_f64 a, vec_f64 b, vec_f64 x, vec_f64 y) {
    return _mm256_blendv_pd(y, x, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}
/* n elements of all ones, then zeros: a window on eight and eight. */
static const int32_t FIRST_MASK[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#define FIRST(n) _mm256_loadu_si256((const __m256i *)(FIRST_MASK + 8 - (n)))
INLINE vec_f32 load_first_f32(const float *p, int n) { return _mm256_maskload_ps(p, FIRST(n)); }
INLINE vec_f64 load_first_f64(const double *p, int n) { return _mm256_maskload_pd(p, FIRST(2 * n)); }
/* In pieces, not by a masked store, which AMD's processors are said to be slow at; not measured by itself. */
INLINE void store_first_f32(float *p, vec_f32 v, int n) {
    __m128 rest = _mm256_castps256_ps128(v);
    if (n & 8) _mm256_storeu_ps(p, v);
    if (n & 4) {
        _mm_storeu_ps(p, rest);
        rest = _mm256_extractf128_ps(v, 1);
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)(p + (n & 4)), rest);
        rest = _mm_movehl_ps(rest, rest);
    }
    if (n & 1) _mm_store_ss(p + (n & 6), rest);
}
INLINE void store_first_f64(double *p, vec_f64 v, int n) {
    __m128d rest = _mm256_castpd256_pd128(v);
    if (n & 4) _mm256_storeu_pd(p, v);
    if (n & 2) {
        _mm_storeu_pd(p, rest);
        rest = _mm256_extractf128_pd(v, 1);
    }
    if (n & 1) _mm_store_sd(p + (n & 2), rest);
}

#else /* SSE2, NEON, and whatever else has 16-byte vectors or none */

#define VECTOR_BYTES 16
#if defined(GNU_VECTORS)
typedef float vec_f32 __attribute__((vector_size(VECTOR_BYTES)));
typedef double vec_f64 __attribute__((vector_size(VECTOR_BYTES)));
#else
typedef struct { float lane[VECTOR_BYTES / sizeof(float)]; } vec_f32;
typedef struct { double lane[VECTOR_BYTES / sizeof(double)]; } vec_f64;
#endif

#if defined(GNU_VECTORS) && defined(__aarch64__)
#include <arm_neon.h>
#define VECTOR_REGISTERS 32
#define HAS_FMA 1
INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return vfmaq_f32(c, a, b); }
INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return vfmaq_f64(c, a, b); }
INLINE vec_f32 sqrt_f32(vec_f32 a) { return vsqrtq_f32(a); }
INLINE vec_f64 sqrt_f64(vec_f64 a) { return vsqrtq_f64(a); }
#define HAS_SQRT
#else
#define VECTOR_REGISTERS 16
#define HAS_FMA 0
#endif

#endif

/* Where there are no masks. */
#if defined(FASTLINEAR_WIDE) || VECTOR_BYTES == 16
#define PARTIAL(real, suffix) \
    INLINE vec_##suffix load_first_##suffix(const real *p, int n) { \
        real lane[sizeof(vec_##suffix) / sizeof(real)] = {0}; \
        vec_##suffix v; \
        for (int j = 0; j < n; j++) lane[j] = p[j]; \
        memcpy(&v, lane, sizeof v); \
        return v; \
    } \
    INLINE void store_first_##suffix(real *p, vec_##suffix v, int n) { \
        real lane[sizeof(vec_##suffix) / sizeof(real)]; \
        memcpy(lane, &v, sizeof v); \
        for (int j = 0; j < n; j++) p[j] = lane[j]; \
    }
PARTIAL(float, f32)
PARTIAL(double, f64)
#ifdef FASTLINEAR_WIDE
PARTIAL(float, f32_lanes)
PARTIAL(double, f64_lanes)
#endif
#endif

/* ---- the rest, the same for all: once on vectors, once on arrays ---- */

/* The integers of a lane's size, unsigned because they can overflow, and the bits of its fraction. */
typedef uint32_t int_of_f32;
typedef uint64_t int_of_f64;
enum { FRACTION_f32 = 23, FRACTION_f64 = 52 };

/* fold(a, b, w) is one step of a sum over lanes. It sees a and b as runs of 2w lanes, adds the upper half of each
   run to its lower half, and returns a's runs of w lanes before b's. Folding with w = lanes/2, ..., 2, 1 thus sums
   each of up to `lanes` vectors into a lane of its own, in the order of the vectors; whatever the width, lane l is
   first added to lane l + lanes/2, then to l + lanes/4, ... */
#define FOLD_LANE(j, w, upper) ((j) / (w) * 2 * (w) + (j) % (w) + (upper) * (w))
/* Of zip: lane j of the result is this lane of a and b, one behind the other; a piece is 16 bytes, `side` lanes. */
#define ZIP_LANE(j, lanes, side, half) ((j) / (side) * (side) + (j) % (side) / 2 + (half) * (side) / 2 + (j) % 2 * (lanes))

#if defined(GNU_VECTORS)

#define EACH2(LANE, n, u) LANE(0, n, u), LANE(1, n, u)
#define EACH4(LANE, n, u) EACH2(LANE, n, u), LANE(2, n, u), LANE(3, n, u)
#define EACH8(LANE, n, u) EACH4(LANE, n, u), LANE(4, n, u), LANE(5, n, u), LANE(6, n, u), LANE(7, n, u)
#define EACH16(LANE, n, u) EACH8(LANE, n, u), LANE(8, n, u), LANE(9, n, u), LANE(10, n, u), LANE(11, n, u), \
    LANE(12, n, u), LANE(13, n, u), LANE(14, n, u), LANE(15, n, u)
#define FOLD_STEP(EACH, w) case w: \
    return __builtin_shufflevector(a, b, EACH(FOLD_LANE, w, 0)) + __builtin_shufflevector(a, b, EACH(FOLD_LANE, w, 1));
#define ZIP_0(j, lanes, side) ZIP_LANE(j, lanes, side, 0)
#define ZIP_1(j, lanes, side) ZIP_LANE(j, lanes, side, 1)
#define ZIP(EACH, lanes, side) \
    return half ? __builtin_shufflevector(a, b, EACH(ZIP_1, lanes, side)) \
                : __builtin_shufflevector(a, b, EACH(ZIP_0, lanes, side));
#define IN_ORDER(j, n, u) j
#define SWAP_LANE(j, w, u) ((j) ^ (w))
#define SWAP_STEP(EACH, w) case w: return __builtin_shufflevector(v, v, EACH(SWAP_LANE, w, 0));

#define FOLD_32_BYTES_f32 FOLD_STEP(EACH8, 4) FOLD_STEP(EACH8, 2) FOLD_STEP(EACH8, 1)
#define FOLD_32_BYTES_f64 FOLD_STEP(EACH4, 2) FOLD_STEP(EACH4, 1)
#define SWAP_32_BYTES_f32 SWAP_STEP(EACH8, 4) SWAP_STEP(EACH8, 2) SWAP_STEP(EACH8, 1)
#define SWAP_32_BYTES_f64 SWAP_STEP(EACH4, 2) SWAP_STEP(EACH4, 1)
#if VECTOR_BYTES == 64
#define FOLD_f32_lanes FOLD_32_BYTES_f32
#define FOLD_f64_lanes FOLD_32_BYTES_f64
#define SWAP_f32_lanes SWAP_32_BYTES_f32
#define SWAP_f64_lanes SWAP_32_BYTES_f64
#define FOLD_f32 FOLD_STEP(EACH16, 8) FOLD_STEP(EACH16, 4) FOLD_STEP(EACH16, 2) FOLD_STEP(EACH16, 1)
#define FOLD_f64 FOLD_STEP(EACH8, 4) FOLD_STEP(EACH8, 2) FOLD_STEP(EACH8, 1)
#define SWAP_f32 SWAP_STEP(EACH16, 8) SWAP_STEP(EACH16, 4) SWAP_STEP(EACH16, 2) SWAP_STEP(EACH16, 1)
#define SWAP_f64 SWAP_STEP(EACH8, 4) SWAP_STEP(EACH8, 2) SWAP_STEP(EACH8, 1)
#define ZIP_f32 ZIP(EACH16, 16, 4)
#define ZIP_f64 ZIP(EACH8, 8, 2)
#define PIECES(piece, EACH, HALF, side) \
    return __builtin_shufflevector( \
        __builtin_shufflevector(piece(rows[0]), piece(rows[side]), HALF(IN_ORDER, , )), \
        __builtin_shufflevector(piece(rows[2 * side]), piece(rows[3 * side]), HALF(IN_ORDER, , )), EACH(IN_ORDER, , ));
#define PIECES_f32 PIECES(piece_f32, EACH16, EACH8, 4)
#define PIECES_f64 PIECES(piece_f64, EACH8, EACH4, 2)
#elif VECTOR_BYTES == 32
#define FOLD_f32 FOLD_32_BYTES_f32
#define FOLD_f64 FOLD_32_BYTES_f64
#define SWAP_f32 SWAP_32_BYTES_f32
#define SWAP_f64 SWAP_32_BYTES_f64
#define ZIP_f32 ZIP(EACH8, 8, 4)
#define ZIP_f64 ZIP(EACH4, 4, 2)
#define PIECES_f32 return __builtin_shufflevector(piece_f32(rows[0]), piece_f32(rows[4]), EACH8(IN_ORDER, , ));
#define PIECES_f64 return __builtin_shufflevector(piece_f64(rows[0]), piece_f64(rows[2]), EACH4(IN_ORDER, , ));
#else
#define FOLD_f32 FOLD_STEP(EACH4, 2) FOLD_STEP(EACH4, 1)
#define FOLD_f64 FOLD_STEP(EACH2, 1)
#define SWAP_f32 SWAP_STEP(EACH4, 2) SWAP_STEP(EACH4, 1)
#define SWAP_f64 SWAP_STEP(EACH2, 1)
#define ZIP_f32 ZIP(EACH4, 4, 4)
#define ZIP_f64 ZIP(EACH2, 2, 2)
#define PIECES_f32 return piece_f32(rows[0]);
#define PIECES_f64 return piece_f64(rows[0]);
#endif

/* s - 0 is s for every s, signed zeros and NaNs too (s + 0 is not), so this compiles to a plain broadcast. */
#define ARITHMETIC(real, suffix) \
    typedef vec_##suffix unaligned_##suffix __attribute__((aligned(sizeof(real)), may_alias)); \
    INLINE vec_##suffix zero_##suffix(void) { return (vec_##suffix){0}; } \
    INLINE vec_##suffix splat_##suffix(real s) { return s - (vec_##suffix){0}; } \
    INLINE vec_##suffix load_##suffix(const real *p) { return *(const unaligned_##suffix *)p; } \
    INLINE void store_##suffix(real *p, vec_##suffix v) { *(unaligned_##suffix *)p = v; } \
    INLINE vec_##suffix add_##suffix(vec_##suffix a, vec_##suffix b) { return a + b; } \
    INLINE vec_##suffix sub_##suffix(vec_##suffix a, vec_##suffix b) { return a - b; } \
    INLINE vec_##suffix mul_##suffix(vec_##suffix a, vec_##suffix b) { return a * b; } \
    INLINE vec_##suffix div_##suffix(vec_##suffix a, vec_##suffix b) { return a / b; } \
    INLINE vec_##suffix fold_##suffix(vec_##suffix a, vec_##suffix b, int w) { \
        switch (w) { FOLD_##suffix } \
        return a; \
    } \
    INLINE vec_##suffix swap_##suffix(vec_##suffix v, int w) { \
        switch (w) { SWAP_##suffix } \
        return v; \
    }
#define COMMON(real, suffix) \
    ARITHMETIC(real, suffix) \
    INLINE vec_##suffix neg_##suffix(vec_##suffix a) { return -a; } \
    typedef int_of_##suffix bits_##suffix __attribute__((vector_size(VECTOR_BYTES))); \
    INLINE vec_##suffix magnitude_##suffix(vec_##suffix a) { \
        return (vec_##suffix)((bits_##suffix)a & ~(bits_##suffix)splat_##suffix((real)-0.0)); \
    } \
    INLINE vec_##suffix signed_as_##suffix(vec_##suffix a, vec_##suffix s) { \
        const bits_##suffix sign = (bits_##suffix)splat_##suffix((real)-0.0); \
        return (vec_##suffix)((~sign & (bits_##suffix)a) | (sign & (bits_##suffix)s)); \
    } \
    INLINE vec_##suffix add_exponent_##suffix(vec_##suffix a, vec_##suffix t) { \
        return (vec_##suffix)((bits_##suffix)a + ((bits_##suffix)t << FRACTION_##suffix)); \
    } \
    INLINE vec_##suffix zip_##suffix(vec_##suffix a, vec_##suffix b, int half) { ZIP_##suffix } \
    typedef real piece_of_##suffix __attribute__((vector_size(16))); \
    typedef piece_of_##suffix unaligned_piece_##suffix __attribute__((aligned(sizeof(real)), may_alias)); \
    INLINE piece_of_##suffix piece_##suffix(const real *p) { return *(const unaligned_piece_##suffix *)p; } \
    INLINE vec_##suffix pieces_##suffix(const real *const *rows) { PIECES_##suffix }
#if !HAS_FMA
INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return a * b + c; }
INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return a * b + c; }
#endif

#else

#define EACH_LANE(suffix, expression) \
    vec_##suffix v; \
    for (int j = 0; j < (int)(sizeof v / sizeof v.lane[0]); j++) v.lane[j] = (expression); \
    return v;
#define COMMON(real, suffix) \
    INLINE vec_##suffix zero_##suffix(void) { EACH_LANE(suffix, 0) } \
    INLINE vec_##suffix splat_##suffix(real s) { EACH_LANE(suffix, s) } \
    INLINE vec_##suffix load_##suffix(const real *p) { EACH_LANE(suffix, p[j]) } \
    INLINE void store_##suffix(real *p, vec_##suffix v) { memcpy(p, v.lane, sizeof v); } \
    INLINE vec_##suffix add_##suffix(vec_##suffix a, vec_##suffix b) { EACH_LANE(suffix, a.lane[j] + b.lane[j]) } \
    INLINE vec_##suffix sub_##suffix(vec_##suffix a, vec_##suffix b) { EACH_LANE(suffix, a.lane[j] - b.lane[j]) } \
    INLINE vec_##suffix mul_##suffix(vec_##suffix a, vec_##suffix b) { EACH_LANE(suffix, a.lane[j] * b.lane[j]) } \
    INLINE vec_##suffix div_##suffix(vec_##suffix a, vec_##suffix b) { EACH_LANE(suffix, a.lane[j] / b.lane[j]) } \
    INLINE vec_##suffix neg_##suffix(vec_##suffix a) { EACH_LANE(suffix, -a.lane[j]) } \
    INLINE vec_##suffix select_less_##suffix(vec_##suffix a, vec_##suffix b, vec_##suffix x, vec_##suffix y) { \
        EACH_LANE(suffix, a.lane[j] < b.lane[j] ? x.lane[j] : y.lane[j]) \
    } \
    INLINE int_of_##suffix bits_of_##suffix(real a) { \
        int_of_##suffix bits; \
        memcpy(&bits, &a, sizeof a); \
        return bits; \
    } \
    INLINE real from_bits_##suffix(int_of_##suffix bits) { \
        real a; \
        memcpy(&a, &bits, sizeof a); \
        return a; \
    } \
    INLINE vec_##suffix magnitude_##suffix(vec_##suffix a) { \
        EACH_LANE(suffix, from_bits_##suffix(bits_of_##suffix(a.lane[j]) & ~bits_of_##suffix((real)-0.0))) \
    } \
    INLINE vec_##suffix signed_as_##suffix(vec_##suffix a, vec_##suffix s) { \
        const int_of_##suffix sign = bits_of_##suffix((real)-0.0); \
        EACH_LANE(suffix, from_bits_##suffix((~sign & bits_of_##suffix(a.lane[j])) | (sign & bits_of_##suffix(s.lane[j])))) \
    } \
    INLINE vec_##suffix add_exponent_##suffix(vec_##suffix a, vec_##suffix t) { \
        EACH_LANE(suffix, from_bits_##suffix(bits_of_##suffix(a.lane[j]) + (bits_of_##suffix(t.lane[j]) << FRACTION_##suffix))) \
    } \
    INLINE vec_##suffix fma_##suffix(vec_##suffix a, vec_##suffix b, vec_##suffix c) { \
        EACH_LANE(suffix, a.lane[j] * b.lane[j] + c.lane[j]) \
    } \
    INLINE vec_##suffix fold_##suffix(vec_##suffix a, vec_##suffix b, int w) { \
        real lane[2 * VECTOR_BYTES / sizeof(real)]; \
        memcpy(lane, &a, sizeof a); \
        memcpy(lane + VECTOR_BYTES / sizeof(real), &b, sizeof b); \
        EACH_LANE(suffix, lane[FOLD_LANE(j, w, 0)] + lane[FOLD_LANE(j, w, 1)]) \
    } \
    INLINE vec_##suffix swap_##suffix(vec_##suffix u, int w) { EACH_LANE(suffix, u.lane[j ^ w]) } \
    INLINE vec_##suffix zip_##suffix(vec_##suffix a, vec_##suffix b, int half) { \
        EACH_LANE(suffix, (j % 2 ? b : a).lane[ZIP_LANE(j, 0, (int)(16 / sizeof(real)), half)]) \
    } \
    INLINE vec_##suffix pieces_##suffix(const real *const *rows) { \
        const int side = 16 / sizeof(real); \
        EACH_LANE(suffix, rows[j / side * side][j % side]) \
    }

#endif

#define IN_PARTS(real, suffix) \
    INLINE vec_##suffix get_##suffix(const real *p, int n) { \
        return n == (int)(sizeof(vec_##suffix) / sizeof(real)) ? load_##suffix(p) : load_first_##suffix(p, n); \
    } \
    INLINE void put_##suffix(real *p, vec_##suffix v, int n) { \
        if (n == (int)(sizeof(vec_##suffix) / sizeof(real))) store_##suffix(p, v); \
        else store_first_##suffix(p, v, n); \
    } \
    INLINE int part_of_##suffix(ptrdiff_t n, ptrdiff_t from) { \
        const int width = sizeof(vec_##suffix) / sizeof(real); \
        return n <= from ? 0 : n - from < width ? (int)(n - from) : width; \
    }
COMMON(float, f32)
COMMON(double, f64)
IN_PARTS(float, f32)
IN_PARTS(double, f64)
#if VECTOR_BYTES > LANE_BYTES
ARITHMETIC(float, f32_lanes)
ARITHMETIC(double, f64_lanes)
IN_PARTS(float, f32_lanes)
IN_PARTS(double, f64_lanes)
INLINE vec_f32 twice_f32(vec_f32_lanes v) { return __builtin_shufflevector(v, v, EACH8(IN_ORDER, , ), EACH8(IN_ORDER, , )); }
INLINE vec_f64 twice_f64(vec_f64_lanes v) { return __builtin_shufflevector(v, v, EACH4(IN_ORDER, , ), EACH4(IN_ORDER, , )); }
INLINE vec_f32_lanes lower_f32(vec_f32 v) { return __builtin_shufflevector(v, v, EACH8(IN_ORDER, , )); }
INLINE vec_f64_lanes lower_f64(vec_f64 v) { return __builtin_shufflevector(v, v, EACH4(IN_ORDER, , )); }
#else
INLINE vec_f32 twice_f32(vec_f32 v) { return v; }
INLINE vec_f64 twice_f64(vec_f64 v) { return v; }
INLINE vec_f32 lower_f32(vec_f32 v) { return v; }
INLINE vec_f64 lower_f64(vec_f64 v) { return v; }
#endif

/* Where there is nothing better. */
#if defined(GNU_VECTORS) && (defined(FASTLINEAR_WIDE) || VECTOR_BYTES == 16)
#define SELECT(suffix) \
    INLINE vec_##suffix select_less_##suffix(vec_##suffix a, vec_##suffix b, vec_##suffix x, vec_##suffix y) { \
        const bits_##suffix less = (bits_##suffix)(a < b); \
        return (vec_##suffix)((less & (bits_##suffix)x) | (~less & (bits_##suffix)y)); \
    }
SELECT(f32)
SELECT(f64)
#endif
#if defined(FASTLINEAR_WIDE) || VECTOR_BYTES == 16
#define LIMITS(real, suffix) \
    INLINE vec_##suffix max_##suffix(vec_##suffix a, vec_##suffix b) { return select_less_##suffix(b, a, a, b); } \
    INLINE vec_##suffix min_##suffix(vec_##suffix a, vec_##suffix b) { return select_less_##suffix(a, b, a, b); }
LIMITS(float, f32)
LIMITS(double, f64)
#ifndef HAS_SQRT
#define ROOTS(real, suffix, root) \
    INLINE vec_##suffix sqrt_##suffix(vec_##suffix a) { \
        real lane[VECTOR_BYTES / sizeof(real)]; \
        memcpy(lane, &a, sizeof a); \
        for (int j = 0; j < (int)(VECTOR_BYTES / sizeof(real)); j++) lane[j] = root(lane[j]); \
        memcpy(&a, lane, sizeof a); \
        return a; \
    }
ROOTS(float, f32, sqrtf)
ROOTS(double, f64, sqrt)
#endif
#endif

/* ---- for the files that include themselves once for each dtype, with REAL and SUFFIX (f32 or f64) defined ---- */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, SUFFIX)
#define VEC NAME(vec)
#define WIDTH ((int)(sizeof(VEC) / sizeof(REAL)))
/* Elements in 64 bytes, and vectors. */
#define LINE ((int)(64 / sizeof(REAL)))
#define PARTS (64 / VECTOR_BYTES)
/* The lanes of forward's sums, the vectors that go along them, and how many of those make all lanes. */
#define LANES ((int)(LANE_BYTES / sizeof(REAL)))
#if VECTOR_BYTES > LANE_BYTES
#define IN_LANES(name) JOIN(NAME(name), lanes)
#else
#define IN_LANES(name) NAME(name)
#endif
#define LANE_VEC IN_LANES(vec)
#define LANE_WIDTH ((int)(sizeof(LANE_VEC) / sizeof(REAL)))
#define LANE_PARTS (LANES / LANE_WIDTH)
/* The function for the dtype of what the pointer points to. */
#define BY_DTYPE(pointer, name) _Generic(*(pointer), float: name##_f32, double: name##_f64)

#if defined(__GNUC__) || defined(__clang__)
#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL16 _Pragma("GCC unroll 16")
#define UNROLL_ALL _Pragma("GCC unroll 32")
#else
#define UNROLL
#define UNROLL16
#define UNROLL_ALL
#endif

#endif
