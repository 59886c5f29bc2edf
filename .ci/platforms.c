/* The loops of _kernels.pyx or _elementwise.pyx in a program without Python, for .ci/platforms, which writes a call and its
   arrays to standard input and reads what the call wrote from standard output.

   GENERATED is Cython's C, LOOPS(name) what it calls a function. Everything in there that calls Python hangs on PyInit: made
   static and never called, it is left out of the program, which then needs nothing of Python but its headers. */
#include "Python.h"
static PyObject *PyInit_MODULE(void);
#define CYTHON_NO_PYINIT_EXPORT
#include GENERATED
#include "_machine.h"
#include <stdio.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif

enum { MOST_ARRAYS = 6 };
struct call {
    int64_t function, is_double, sizes[3], arrays, written, bytes[MOST_ARRAYS]; /* the last `written` of the arrays go back */
    double number;
};

#if defined(_MSC_VER)
int _fltused; /* MSVC's library has it, MinGW's not */
#endif

#if defined(KERNELS)
#include "_scratch.h"
#define CALL(fuse) switch (c->function) { \
    case 0: LOOPS(fuse, forward_loops)(a[0], a[1], a[2], a[3], m, in, out, 1, scratch); return 1; \
    case 1: LOOPS(fuse, grad_input_loops)(a[0], a[1], a[2], m, in, out, 1, scratch); return 1; \
    case 2: LOOPS(fuse, grad_weight_loops)(a[0], a[1], c->number, a[2], m, in, out, 1, scratch); return 1; \
    case 3: LOOPS(fuse, grad_bias_loops)(a[0], c->number, a[1], m, out); return 1; \
    case 4: LOOPS(fuse, update_loops)(a[0], a[1], c->number, a[2], a[3], a[4], m, in, out, 1, scratch); return 1; \
    case 5: LOOPS(fuse, step_loops)(a[0], c->number, a[1], out); return 1; \
    default: return 0; \
    }
#else
#define CALL(fuse) switch (c->function) { \
    case 0: LOOPS(fuse, activate_loops)((int)c->number, a[0], a[1], m, out, 1); return 1; \
    case 1: LOOPS(fuse, derivative_loops)((int)c->number, a[0], a[1], a[1], a[2], m, out, 1); return 1; \
    default: return 0; \
    }
#endif

static int run(const struct call *c, void *const *a) {
    const Py_ssize_t m = c->sizes[0], in = c->sizes[1], out = c->sizes[2];
#if defined(KERNELS)
    char *scratch = thread_scratch(SCRATCH_BYTES);
    if (!scratch) return 0;
#endif
    (void)in;
    if (c->is_double) CALL(1) else CALL(0)
}

int main(int count, char **arguments) {
    struct call call;
    if (count > 1) return !cpu_supports(arguments[1]);
#if defined(_WIN32)
    _setmode(0, _O_BINARY), _setmode(1, _O_BINARY);
#endif
    while (fread(&call, sizeof call, 1, stdin) == 1) {
        void *array[MOST_ARRAYS] = {0};
        if (call.arrays > MOST_ARRAYS) return 2;
        for (int j = 0; j < call.arrays; j++) {
            const size_t bytes = (size_t)call.bytes[j];
            if (!(array[j] = malloc(bytes)) || fread(array[j], 1, bytes, stdin) != bytes) return 3;
        }
        if (!run(&call, array)) return 4;
        for (int j = 0; j < call.arrays; j++) {
            if (j >= call.arrays - call.written) fwrite(array[j], 1, (size_t)call.bytes[j], stdout);
            free(array[j]);
        }
        fflush(stdout);
    }
    return 0;
}
