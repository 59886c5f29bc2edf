/* Whether more threads can be made. */
#ifndef FASTLINEAR_THREADS_H
#define FASTLINEAR_THREADS_H

#include <stdlib.h>

#if defined(_OPENMP)
#include <omp.h>
#else
static inline int omp_get_thread_limit(void) { return 1; }
#endif

/* The common OpenMP runtimes end the process when they cannot make a thread. So we try to make one before they do. */
#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>

static inline void *pass(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* Whether there is room for n threads at once, with stacks of that size (0: the default), and some memory for OpenMP. */
static inline int can_start(int n, size_t stack_size) {
    enum { SPARE = 1 << 16, SPARE_EACH = 1 << 12 };
    pthread_t *thread = malloc(n * (sizeof *thread + SPARE_EACH) + SPARE);
    if (!thread) return 0;
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (stack_size) pthread_attr_setstacksize(&attributes, stack_size); /* one that it refuses OpenMP ignores as well */
    int made = 0;
    pthread_mutex_lock(&gate);
    while (made < n && pthread_create(thread + made, &attributes, pass, &gate) == 0) made++;
    pthread_mutex_unlock(&gate);
    for (int t = 0; t < made; t++) pthread_join(thread[t], NULL);
    pthread_attr_destroy(&attributes);
    free(thread);
    return made == n;
}

/* How many threads the next parallel region of this thread can have if it wants so many: where no more can be made, as
   many as its last region had. libgomp lets go of the threads that a smaller region does not need, and makes them anew
   for a larger one; with OMP_DYNAMIC it might have let go of all. After a refusal, every 64th call tries again. */
static inline int startable_threads(int wanted, size_t stack_size) {
    static _Thread_local int last = 1, patience = 0;
    enum { CALLS_BETWEEN_TRIALS = 64 };
    if (omp_get_dynamic()) last = 1;
    if (wanted > last) {
        if (patience > 0 || !can_start(wanted - last, stack_size)) {
            patience = patience > 0 ? patience - 1 : CALLS_BETWEEN_TRIALS - 1;
            wanted = last;
        }
    }
    if (wanted > 1) last = wanted; /* one thread makes no region, and leaves the other threads as they are */
    return wanted;
}
#else
static inline int startable_threads(int wanted, size_t stack_size) {
    (void)stack_size;
    return wanted;
}
#endif

#endif
