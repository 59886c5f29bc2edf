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

/* Whether the processor has a feature and the operating system saves its registers, by CPUID and XGETBV. That is what
   __builtin_cpu_supports does, too, but with a library of the compiler that clang-cl does not link. */
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
enum cpu_register { IN_EAX, IN_EBX, IN_ECX, IN_EDX };
static inline void cpuid(unsigned leaf, unsigned r[4]) {
    __asm__ volatile("cpuid" : "=a"(r[IN_EAX]), "=b"(r[IN_EBX]), "=c"(r[IN_ECX]), "=d"(r[IN_EDX]) : "a"(leaf), "c"(0));
}

static inline int cpu_supports(const char *feature) {
    enum { OSXSAVE = 1 << 27, AVX_STATE = 0x6, AVX512_STATE = 0xe6 };
    static const struct { const char *name; unsigned leaf; enum cpu_register at; int bit; unsigned state; } features[] = {
        {"fma", 1, IN_ECX, 12, AVX_STATE},         {"avx2", 7, IN_EBX, 5, AVX_STATE},
        {"avx512f", 7, IN_EBX, 16, AVX512_STATE},  {"avx512dq", 7, IN_EBX, 17, AVX512_STATE},
        {"avx512bw", 7, IN_EBX, 30, AVX512_STATE}, {"avx512vl", 7, IN_EBX, 31, AVX512_STATE},
    };
    unsigned r[4], saved, most;
    cpuid(0, r);
    most = r[IN_EAX];
    cpuid(1, r);
    if (!(r[IN_ECX] & OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved) : "c"(0) : "edx");
    for (size_t j = 0; j < sizeof features / sizeof *features; j++)
        if (strcmp(feature, features[j].name) == 0 && features[j].leaf <= most) {
            cpuid(features[j].leaf, r);
            return (saved & features[j].state) == features[j].state && r[features[j].at] >> features[j].bit & 1;
        }
    return 0;
}
#else
static inline int cpu_supports(const char *feature) {
    (void)feature;
    return 0;
}
#endif

#endif
