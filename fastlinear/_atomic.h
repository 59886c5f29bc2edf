/* Settings that one thread changes while others read them. MSVC's volatile has this meaning. */
#ifndef FASTLINEAR_ATOMIC_H
#define FASTLINEAR_ATOMIC_H

#if defined(__GNUC__) || defined(__clang__)
static inline int load_int(const int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_int(int *p, int value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
static inline void *load_pointer(void **p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_pointer(void **p, void *value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
#else
static inline int load_int(const int *p) { return *(const volatile int *)p; }
static inline void store_int(int *p, int value) { *(volatile int *)p = value; }
static inline void *load_pointer(void **p) { return *(void *volatile *)p; }
static inline void store_pointer(void **p, void *value) { *(void *volatile *)p = value; }
#endif

#endif
