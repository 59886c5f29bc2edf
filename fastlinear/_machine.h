/* What the processor and the build can do, as far as Python needs to know it. */
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

/* The flags that setup.py gave to the compiler. */
#if !defined(FASTLINEAR_FLAGS)
#define FASTLINEAR_FLAGS "unknown"
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
