/* What the processor and the build can do, in the few words that Python needs. */
#ifndef FASTLINEAR_MACHINE_H
#define FASTLINEAR_MACHINE_H

#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#define HAS_OPENMP 1
#else
#define HAS_OPENMP 0
static inline int omp_get_max_threads(void) { return 1; }
#endif

#if defined(__clang__)
#define COMPILER "Clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "GCC " __VERSION__
#elif defined(_MSC_VER)
#define COMPILER "MSVC"
#else
#define COMPILER "unknown"
#endif

/* What setup.py told the compiler. */
#if !defined(FASTLINEAR_FLAGS)
#define FASTLINEAR_FLAGS "unknown"
#endif

/* Where a kernel keeps its copies and sums, 192 KiB at most: on the stack. But musl gives OpenMP's threads 128 KiB in all,
   so there each thread has them apart. That would do anywhere, but costs a forward of 5x4 3 to 5 of its 105 ns (AVX-512;
   why was not found). -DFASTLINEAR_SMALL_STACKS asks for it elsewhere. */
#if defined(__linux__) && !defined(__GLIBC__) || defined(FASTLINEAR_SMALL_STACKS)
#define SCRATCH static _Thread_local _Alignas(16)
#elif defined(_MSC_VER)
#define SCRATCH __declspec(align(16))
#else
#define SCRATCH _Alignas(16)
#endif

/* Whether the processor has a feature and the operating system saves its registers: __builtin_cpu_supports reads
   CPUID and, for the wide registers, XGETBV. It takes string literals only. */
static inline int cpu_supports(const char *feature) {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define FEATURE(name) if (strcmp(feature, name) == 0) return __builtin_cpu_supports(name) != 0;
    __builtin_cpu_init();
    FEATURE("avx2")
    FEATURE("fma")
    FEATURE("avx512f")
    FEATURE("avx512bw")
    FEATURE("avx512dq")
    FEATURE("avx512vl")
#undef FEATURE
#endif
    (void)feature;
    return 0;
}

#endif
