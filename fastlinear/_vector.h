/* The vectors that the kernels are written in: one width and some small functions for each instruction set.

   vec_f32, vec_f64      VECTOR_BYTES of float or double
   vec_f32_lanes, ...    where that is more than LANE_BYTES: vectors of LANE_BYTES with the same functions, for the loops
                         that go along the lanes of forward's sums (else vec_f32 itself); lower(v) is the first half of
                         a vector, twice(v) a vector of two such halves
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
#define PRAGMA(text) _Pragma(#text)
#elif defined(_MSC_VER)
#define INLINE static __forceinline
#define PRAGMA(text)
#else
#define INLINE static inline
#define PRAGMA(text)
#endif
#define UNROLL PRAGMA(GCC unroll 8)
#define UNROLL16 PRAGMA(GCC unroll 16)
#define UNROLL_ALL PRAGMA(GCC unroll 32)

#if defined(GNU_VECTORS) && (defined(__x86_64__) || defined(__i386__)) && !defined(FASTLINEAR_WIDE)
#define HOLD(v) __asm__("" : "+v"(v))
#elif defined(GNU_VECTORS) && defined(__aarch64__)
#define HOLD(v) __asm__("" : "+w"(v))
#else
#define HOLD(v) ((void)0)
#endif

/* The lanes of a sum of forward: part of the contract on bits (_tile.h). */
#define LANE_BYTES 32

/* ---- one block for each instruction set: its width, registers and vectors, and INSTRUCTIONS, the functions for which it
   has some. Each vector is a row of EACH_VECTOR: its element, what its names end with, its lanes; the same of its half;
   and what its intrinsics begin and end with. ---- */

#define EACH_16_BYTES(ROW, f32, f64) ROW(float, f32, 4, , , , ) ROW(double, f64, 2, , , , )
#define EACH_32_BYTES(ROW, f32, f64) \
    ROW(float, f32, 8, f32_piece, 4, _mm256, ps) ROW(double, f64, 4, f64_piece, 2, _mm256, pd)

#if defined(GNU_VECTORS) && (defined(__AVX512F__) || defined(FASTLINEAR_WIDE))

#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#define HAS_FMA 1
#define EACH_VECTOR(ROW) EACH_32_BYTES(ROW, f32_lanes, f64_lanes) \
    ROW(float, f32, 16, f32_lanes, 8, _mm512, ps) ROW(double, f64, 8, f64_lanes, 4, _mm512, pd)
#if defined(FASTLINEAR_WIDE) /* its shapes on AVX2, to test them anywhere */
#define INSTRUCTIONS(real, suffix, lanes, ...) \
    INLINE vec_##suffix fma_##suffix(vec_##suffix a, vec_##suffix b, vec_##suffix c) { \
        for (int j = 0; j < lanes; j++) c[j] = BY_TYPE(a[j], fmaf, fma)(a[j], b[j], c[j]); \
        return c; \
    } \
    ROOT(real, suffix, lanes) CHOICES(suffix, lanes) PARTIAL(real, suffix, lanes)
#else
#include <immintrin.h>
#define FIRST(n) ((1u << (n)) - 1)
#define INSTRUCTIONS(real, suffix, lanes, half, half_lanes, mm, of) \
    FROM_INTRINSICS(suffix, lanes, mm, of) \
    QUATERNARY(select_less, suffix, lanes, mm##_mask_blend_##of(mm##_cmp_##of##_mask(a, b, _CMP_LT_OQ), y, x)) \
    INLINE vec_##suffix load_first_##suffix(const real *p, int n) { return mm##_maskz_loadu_##of(FIRST(n), p); } \
    INLINE void store_first_##suffix(real *p, vec_##suffix v, int n) { mm##_mask_storeu_##of(p, FIRST(n), v); }
#endif

#elif defined(GNU_VECTORS) && defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#define HAS_FMA 1
#define EACH_VECTOR(ROW) EACH_32_BYTES(ROW, f32, f64)
/* n elements of all ones, then zeros: a window on eight and eight. */
static const int32_t FIRST_MASK[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#define FIRST(n) _mm256_loadu_si256((const __m256i *)(FIRST_MASK + 8 - (n)))
#define INSTRUCTIONS(real, suffix, lanes, half, half_lanes, mm, of) \
    FROM_INTRINSICS(suffix, lanes, mm, of) \
    QUATERNARY(select_less, suffix, lanes, mm##_blendv_##of(y, x, mm##_cmp_##of(a, b, _CMP_LT_OQ))) \
    INLINE vec_##suffix load_first_##suffix(const real *p, int n) { return mm##_maskload_##of(p, FIRST(8 / lanes * n)); }
/* In pieces, not by a masked store, which AMD's processors are said to be slow at; not measured by itself. */
INLINE void store_first_f32(float *p, __m256 v, int n) {
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
INLINE void store_first_f64(double *p, __m256d v, int n) {
    __m128d rest = _mm256_castpd256_pd128(v);
    if (n & 4) _mm256_storeu_pd(p, v);
    if (n & 2) {
        _mm_storeu_pd(p, rest);
        rest = _mm256_extractf128_pd(v, 1);
    }
    if (n & 1) _mm_store_sd(p + (n & 2), rest);
}

#elif defined(GNU_VECTORS) && defined(__aarch64__) /* NEON */

#include <arm_neon.h>
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 32
#define HAS_FMA 1
#define EACH_VECTOR(ROW) EACH_16_BYTES(ROW, f32, f64)
#define INSTRUCTIONS(real, suffix, lanes, ...) \
    TERNARY(fma, suffix, lanes, vfmaq_##suffix(c, a, b)) \
    UNARY(sqrt, suffix, lanes, vsqrtq_##suffix(a)) \
    CHOICES(suffix, lanes) PARTIAL(real, suffix, lanes)

#else /* SSE2, and whatever else has 16-byte vectors or none */

#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#define HAS_FMA 0
#define EACH_VECTOR(ROW) EACH_16_BYTES(ROW, f32, f64)
#define INSTRUCTIONS(real, suffix, lanes, ...) \
    TERNARY(fma, suffix, lanes, LANE(a) * LANE(b) + LANE(c)) \
    ROOT(real, suffix, lanes) CHOICES(suffix, lanes) PARTIAL(real, suffix, lanes)

#endif

/* ---- vectors and arrays: all that differs. A function returns EACH_LANE of an expression in which LANE(v) is v, or in a
   loop over its lanes one of them. ---- */

/* The integers of a lane's size, unsigned because they can overflow, and the bits of its fraction. */
typedef uint32_t bits_of_float;
typedef uint64_t bits_of_double;
enum { FRACTION_float = 23, FRACTION_double = 52 };

#if defined(GNU_VECTORS)

#define VECTOR(real, suffix, lanes, ...) \
    typedef real vec_##suffix __attribute__((vector_size(lanes * sizeof(real)))); \
    typedef vec_##suffix unaligned_##suffix __attribute__((aligned(sizeof(real)), may_alias)); \
    typedef bits_of_##real bits_##suffix __attribute__((vector_size(lanes * sizeof(real))));
#define FOR_LANES(lanes)
#define EACH_LANE(suffix, lanes, expression) return expression;
#define LANE(v) (v)
#define LANE_AT(suffix, p) (*(unaligned_##suffix *)(p))
/* s - 0 is s for every s, signed zeros and NaNs too (s + 0 is not), so this compiles to a plain broadcast. */
#define ALL(suffix, s) ((s) - (vec_##suffix){0})
#define TO_BITS(suffix, v) ((bits_##suffix)(v))
#define OF_BITS(suffix, bits) ((vec_##suffix)(bits))
#define CHOOSE(suffix, condition, x, y) \
    OF_BITS(suffix, (TO_BITS(suffix, condition) & TO_BITS(suffix, x)) | (~TO_BITS(suffix, condition) & TO_BITS(suffix, y)))
/* Lane j is lane PLACE(j, lanes, u, v) of a and b, one behind the other. */
#define SHUFFLED(lanes, a, b, PLACE, u, v) __builtin_shufflevector(a, b, EACH##lanes(PLACE, lanes, u, v))
#define EACH2(P, n, u, v) P(0, n, u, v), P(1, n, u, v)
#define EACH4(P, n, u, v) EACH2(P, n, u, v), P(2, n, u, v), P(3, n, u, v)
#define EACH8(P, n, u, v) EACH4(P, n, u, v), P(4, n, u, v), P(5, n, u, v), P(6, n, u, v), P(7, n, u, v)
#define EACH16(P, n, u, v) EACH8(P, n, u, v), P(8, n, u, v), P(9, n, u, v), P(10, n, u, v), P(11, n, u, v), \
    P(12, n, u, v), P(13, n, u, v), P(14, n, u, v), P(15, n, u, v)

#else

#define VECTOR(real, suffix, lanes, ...) \
    typedef struct { real lane[lanes]; } vec_##suffix; \
    typedef union { real element; bits_of_##real bits; } element_##suffix;
#define FOR_LANES(lanes) for (int j = 0; j < lanes; j++)
#define EACH_LANE(suffix, lanes, expression) \
    vec_##suffix result; \
    FOR_LANES(lanes) result.lane[j] = (expression); \
    return result;
#define LANE(v) (v).lane[j]
#define LANE_AT(suffix, p) (p)[j]
#define ALL(suffix, s) (s)
#define TO_BITS(suffix, x) ((element_##suffix){.element = (x)}).bits
#define OF_BITS(suffix, x) ((element_##suffix){.bits = (x)}).element
#define CHOOSE(suffix, condition, x, y) ((condition) ? (x) : (y))
#define SHUFFLED(lanes, a, b, PLACE, u, v) \
    (PLACE(j, lanes, u, v) < lanes ? (a) : (b)).lane[PLACE(j, lanes, u, v) % lanes]

#endif

/* ---- the functions of a vector, the same for all ---- */

/* The function for the type of x, and for the dtype of what the pointer points to. */
#define BY_TYPE(x, of_float, of_double) _Generic(x, float: of_float, double: of_double)
#define BY_DTYPE(pointer, name) BY_TYPE(*(pointer), name##_f32, name##_f64)

#define UNARY(name, suffix, lanes, expression) \
    INLINE vec_##suffix name##_##suffix(vec_##suffix a) { EACH_LANE(suffix, lanes, expression) }
#define BINARY(name, suffix, lanes, expression) \
    INLINE vec_##suffix name##_##suffix(vec_##suffix a, vec_##suffix b) { EACH_LANE(suffix, lanes, expression) }
#define TERNARY(name, suffix, lanes, expression) \
    INLINE vec_##suffix name##_##suffix(vec_##suffix a, vec_##suffix b, vec_##suffix c) { EACH_LANE(suffix, lanes, expression) }
#define QUATERNARY(name, suffix, lanes, expression) \
    INLINE vec_##suffix name##_##suffix(vec_##suffix a, vec_##suffix b, vec_##suffix x, vec_##suffix y) { \
        EACH_LANE(suffix, lanes, expression) \
    }

/* fold(a, b, w) is one step of a sum over lanes. It sees a and b as runs of 2w lanes, adds the upper half of each
   run to its lower half, and returns a's runs of w lanes before b's. Folding with w = lanes/2, ..., 2, 1 thus sums
   each of up to `lanes` vectors into a lane of its own, in the order of the vectors; whatever the width, lane l is
   first added to lane l + lanes/2, then to l + lanes/4, ... */
#define FOLD_PLACE(j, lanes, w, upper) ((j) / (w) * 2 * (w) + (j) % (w) + (upper) * (w))
#define FOLD(suffix, lanes, w) \
    case w: { EACH_LANE(suffix, lanes, SHUFFLED(lanes, a, b, FOLD_PLACE, w, 0) + SHUFFLED(lanes, a, b, FOLD_PLACE, w, 1)) }
#define SWAP_PLACE(j, lanes, w, _) ((j) ^ (w))
#define SWAP(suffix, lanes, w) \
    case w: { EACH_LANE(suffix, lanes, SHUFFLED(lanes, a, a, SWAP_PLACE, w, 0)) }
#define EACH_RUN2(STEP, suffix, lanes) STEP(suffix, lanes, 1)
#define EACH_RUN4(STEP, suffix, lanes) STEP(suffix, lanes, 2) EACH_RUN2(STEP, suffix, lanes)
#define EACH_RUN8(STEP, suffix, lanes) STEP(suffix, lanes, 4) EACH_RUN4(STEP, suffix, lanes)
#define EACH_RUN16(STEP, suffix, lanes) STEP(suffix, lanes, 8) EACH_RUN8(STEP, suffix, lanes)
/* zip: `side` lanes are 16 bytes. */
#define ZIP_PLACE(j, lanes, side, half) ((j) / (side) * (side) + (j) % (side) / 2 + (half) * (side) / 2 + (j) % 2 * (lanes))
#define SIDE(real) ((int)(16 / sizeof(real)))
#define SIGN(real) ((bits_of_##real)1 << (8 * sizeof(real) - 1))
#define IN_ORDER(j, lanes, u, v) (j)

#define FUNCTIONS(real, suffix, lanes, ...) \
    INLINE vec_##suffix splat_##suffix(real s) { EACH_LANE(suffix, lanes, ALL(suffix, s)) } \
    INLINE vec_##suffix zero_##suffix(void) { return splat_##suffix(0); } \
    INLINE vec_##suffix load_##suffix(const real *p) { EACH_LANE(suffix, lanes, LANE_AT(suffix, p)) } \
    INLINE void store_##suffix(real *p, vec_##suffix v) { FOR_LANES(lanes) LANE_AT(suffix, p) = LANE(v); } \
    BINARY(add, suffix, lanes, LANE(a) + LANE(b)) \
    BINARY(sub, suffix, lanes, LANE(a) - LANE(b)) \
    BINARY(mul, suffix, lanes, LANE(a) * LANE(b)) \
    BINARY(div, suffix, lanes, LANE(a) / LANE(b)) \
    UNARY(neg, suffix, lanes, -LANE(a)) \
    UNARY(magnitude, suffix, lanes, OF_BITS(suffix, TO_BITS(suffix, LANE(a)) & ~SIGN(real))) \
    BINARY(signed_as, suffix, lanes, \
           OF_BITS(suffix, (~SIGN(real) & TO_BITS(suffix, LANE(a))) | (SIGN(real) & TO_BITS(suffix, LANE(b))))) \
    BINARY(add_exponent, suffix, lanes, \
           OF_BITS(suffix, TO_BITS(suffix, LANE(a)) + (TO_BITS(suffix, LANE(b)) << FRACTION_##real))) \
    INLINE vec_##suffix fold_##suffix(vec_##suffix a, vec_##suffix b, int w) { \
        switch (w) { EACH_RUN##lanes(FOLD, suffix, lanes) } \
        return a; \
    } \
    INLINE vec_##suffix swap_##suffix(vec_##suffix a, int w) { \
        switch (w) { EACH_RUN##lanes(SWAP, suffix, lanes) } \
        return a; \
    } \
    INLINE vec_##suffix zip_##suffix(vec_##suffix a, vec_##suffix b, int half) { \
        EACH_LANE(suffix, lanes, half ? SHUFFLED(lanes, a, b, ZIP_PLACE, SIDE(real), 1) \
                                      : SHUFFLED(lanes, a, b, ZIP_PLACE, SIDE(real), 0)) \
    } \
    INLINE vec_##suffix get_##suffix(const real *p, int n) { \
        return n == lanes ? load_##suffix(p) : load_first_##suffix(p, n); \
    } \
    INLINE void put_##suffix(real *p, vec_##suffix v, int n) { \
        n == lanes ? store_##suffix(p, v) : store_first_##suffix(p, v, n); \
    } \
    INLINE int part_of_##suffix(ptrdiff_t n, ptrdiff_t from) { \
        return n <= from ? 0 : n - from < lanes ? (int)(n - from) : lanes; \
    }

/* For INSTRUCTIONS: x86's, and what takes the place of those that there are not. */
#define FROM_INTRINSICS(suffix, lanes, mm, of) \
    TERNARY(fma, suffix, lanes, mm##_fmadd_##of(a, b, c)) \
    UNARY(sqrt, suffix, lanes, mm##_sqrt_##of(a)) \
    BINARY(max, suffix, lanes, mm##_max_##of(a, b)) \
    BINARY(min, suffix, lanes, mm##_min_##of(a, b))
#define CHOICES(suffix, lanes) \
    QUATERNARY(select_less, suffix, lanes, CHOOSE(suffix, LANE(a) < LANE(b), LANE(x), LANE(y))) \
    INLINE vec_##suffix max_##suffix(vec_##suffix a, vec_##suffix b) { return select_less_##suffix(b, a, a, b); } \
    INLINE vec_##suffix min_##suffix(vec_##suffix a, vec_##suffix b) { return select_less_##suffix(a, b, a, b); }
#define ROOT(real, suffix, lanes) \
    INLINE vec_##suffix sqrt_##suffix(vec_##suffix a) { \
        real lane[lanes]; \
        memcpy(lane, &a, sizeof a); \
        for (int j = 0; j < lanes; j++) lane[j] = BY_TYPE(lane[j], sqrtf, sqrt)(lane[j]); \
        memcpy(&a, lane, sizeof a); \
        return a; \
    }
#define PARTIAL(real, suffix, lanes) \
    INLINE vec_##suffix load_first_##suffix(const real *p, int n) { \
        real lane[lanes] = {0}; \
        vec_##suffix v; \
        for (int j = 0; j < n; j++) lane[j] = p[j]; \
        memcpy(&v, lane, sizeof v); \
        return v; \
    } \
    INLINE void store_first_##suffix(real *p, vec_##suffix v, int n) { \
        real lane[lanes]; \
        memcpy(lane, &v, sizeof v); \
        for (int j = 0; j < n; j++) p[j] = lane[j]; \
    }

EACH_VECTOR(VECTOR)
EACH_VECTOR(INSTRUCTIONS)
EACH_VECTOR(FUNCTIONS)

/* ---- a vector and its half: what is shorter than all lanes, or the 16 bytes of pieces() ---- */

#define PIECE(real, suffix, lanes, ...) \
    INLINE vec_##suffix pieces_##suffix(const real *const *rows) { EACH_LANE(suffix, lanes, LANE_AT(suffix, rows[0])) }
#define PIECES(real, suffix, lanes, half, half_lanes, ...) \
    INLINE vec_##suffix pieces_##suffix(const real *const *rows) { \
        return SHUFFLED(lanes, pieces_##half(rows), pieces_##half(rows + half_lanes), IN_ORDER, 0, 0); \
    }
#if VECTOR_BYTES == 16
EACH_VECTOR(PIECE)
#else
EACH_16_BYTES(VECTOR, f32_piece, f64_piece)
EACH_16_BYTES(PIECE, f32_piece, f64_piece)
EACH_VECTOR(PIECES)
#endif

#if VECTOR_BYTES > LANE_BYTES
#define TO_LANES(real, suffix, lanes, half, half_lanes, ...) \
    INLINE vec_##suffix twice_##suffix(vec_##half v) { return SHUFFLED(lanes, v, v, IN_ORDER, 0, 0); } \
    INLINE vec_##half lower_##suffix(vec_##suffix v) { return SHUFFLED(half_lanes, v, v, IN_ORDER, 0, 0); }
#else
#define TO_LANES(real, suffix, lanes, ...) UNARY(twice, suffix, lanes, LANE(a)) UNARY(lower, suffix, lanes, LANE(a))
#endif
EACH_VECTOR(TO_LANES)

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

#endif
