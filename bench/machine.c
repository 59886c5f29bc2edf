/* What the machine can do at best: multiply-adds in registers, and passes over memory. Compiled by machine.py for the
   processor it runs on; vectors are GNU vector types, so one text serves every width and processor. */

/* acc = acc * a + b on CHAINS independent registers, which covers the latency of two units; `steps` times. The sum is
   returned so that no chain can be dropped. */
enum { CHAINS = 12 };
#define FMA(name, real, bytes)                                                                                         \
    double name(long steps, double a, double b)                                                                        \
    {                                                                                                                  \
        typedef real vector __attribute__((vector_size(bytes)));                                                       \
        vector acc[CHAINS], va = (vector){0} + (real) a, vb = (vector){0} + (real) b, sum = {0};                       \
        _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) acc[c] = vb * (real) c;                              \
        for (long n = 0; n < steps; n++)                                                                               \
            _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) acc[c] = acc[c] * va + vb;                       \
        _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) sum += acc[c];                                       \
        return sum[0];                                                                                                 \
    }
FMA(fma_float32_128, float, 16)
FMA(fma_float64_128, double, 16)
#if defined(__AVX2__)
FMA(fma_float32_256, float, 32)
FMA(fma_float64_256, double, 32)
#endif
#if defined(__AVX512F__)
FMA(fma_float32_512, float, 64)
FMA(fma_float64_512, double, 64)
#endif

/* Passes over `lines` cache lines (a multiple of LINES), which are read as 1, 2 or 4 streams side by side: a
   prefetcher follows several at once. Vectors are as wide as the registers: wider ones would be split through memory. */
#if defined(__AVX512F__)
enum { WIDTH = 64 };
#elif defined(__AVX__)
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif
enum { LINES = 8, PARTS = 64 / WIDTH, SUMS = 8 };
typedef float vector __attribute__((vector_size(WIDTH)));

#define PASS(streams, action)                                                                                          \
    for (; passes > 0; passes--)                                                                                       \
        for (long part = lines / streams, n = 0; n < part; n += LINES / streams)                                       \
            _Pragma("GCC unroll 8") for (int s = 0; s < streams; s++)                                                  \
                _Pragma("GCC unroll 32") for (int l = 0; l < LINES / streams * PARTS; l++) {                           \
                    vector *at = a + (s * part + n) * PARTS + l;                                                       \
                    action;                                                                                            \
                }

#define READ(streams)                                                                                                  \
    float read_##streams(vector *a, long lines, long passes)                                                           \
    {                                                                                                                  \
        vector acc[SUMS] = {{0}};                                                                                      \
        PASS(streams, acc[(s * (LINES / streams * PARTS) + l) % SUMS] += *at)                                          \
        _Pragma("GCC unroll 8") for (int l = 1; l < SUMS; l++) acc[0] += acc[l];                                       \
        return acc[0][0];                                                                                              \
    }

/* a = a * m + c: with m = 1 and c = 0 the memory stays as it is. */
#define REWRITE(streams)                                                                                               \
    void rewrite_##streams(vector *a, long lines, long passes, float m, float c)                                       \
    {                                                                                                                  \
        PASS(streams, *at = *at * m + c)                                                                               \
    }

READ(1)
READ(2)
READ(4)
REWRITE(1)
REWRITE(2)
REWRITE(4)
