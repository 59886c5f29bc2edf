/* Memory for a call's copies and sums. It is not on the stack, which can be small (OMP_STACKSIZE, musl,
   threading.stack_size). It is the calling thread's own, so that any number of threads can call at once. It is kept for
   the thread's next call, and freed when the thread ends. A call can come even after that, from what else is done at the
   end of a thread. It gets memory anew, which is freed in turn. */
#ifndef FASTLINEAR_SCRATCH_H
#define FASTLINEAR_SCRATCH_H

#include <stddef.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <windows.h>
#define THREAD_LOCAL __declspec(thread)
#else
#include <pthread.h>
#define THREAD_LOCAL _Thread_local
#endif
/* glibc keeps room for a little thread-local memory that is found without a function call, which saves 4 ns. Other C
   libraries do not. */
#if defined(__GLIBC__) && defined(__GNUC__)
#define QUICKLY __attribute__((tls_model("initial-exec")))
#else
#define QUICKLY
#endif

enum { SCRATCH_LINE = 64 };

struct scratch { char *memory; size_t bytes; };
static THREAD_LOCAL QUICKLY struct scratch scratch_here;

#if defined(_WIN32)
#define CALLED_BACK NTAPI
#else
#define CALLED_BACK
#endif
static void CALLED_BACK scratch_free(void *memory) {
    if (scratch_here.memory == memory) scratch_here = (struct scratch){NULL, 0};
    free(memory);
}

#if defined(_WIN32)
static DWORD scratch_key;
static INIT_ONCE scratch_once = INIT_ONCE_STATIC_INIT;
static BOOL CALLBACK scratch_make_key(PINIT_ONCE once, void *parameter, void **context) {
    (void)once, (void)parameter, (void)context;
    scratch_key = FlsAlloc(scratch_free);
    return TRUE;
}
static int scratch_is_freed_later(char *memory) {
    InitOnceExecuteOnce(&scratch_once, scratch_make_key, NULL, NULL);
    return scratch_key != FLS_OUT_OF_INDEXES && FlsSetValue(scratch_key, memory);
}
#else
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static int scratch_has_key;
static void scratch_make_key(void) { scratch_has_key = pthread_key_create(&scratch_key, scratch_free) == 0; }
static int scratch_is_freed_later(char *memory) {
    pthread_once(&scratch_once, scratch_make_key);
    return scratch_has_key && pthread_setspecific(scratch_key, memory) == 0;
}
#endif

/* At least that many bytes, from the beginning of a cache line, or NULL. They are the same as in the thread's last call,
   unless that asked for fewer. */
static inline char *thread_scratch(size_t bytes) {
    if (scratch_here.bytes < bytes) {
        char *memory = (char *)malloc(bytes + SCRATCH_LINE);
        if (!memory) return NULL;
        if (!scratch_is_freed_later(memory)) {
            free(memory);
            return NULL;
        }
        free(scratch_here.memory);
        scratch_here.memory = memory;
        scratch_here.bytes = bytes;
    }
    return scratch_here.memory + (SCRATCH_LINE - (size_t)scratch_here.memory % SCRATCH_LINE);
}

#endif
