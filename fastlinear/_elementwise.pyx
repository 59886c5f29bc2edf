# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""What is done to every element of an array: activations and their derivatives, optimisers.

    activate      out[j]  = f(x[j])                               softmax: over each row
    derivative    out[j]  = grad_output[j] f'(x[j])               grad before the activation

    sgd, adam     parameter -= ...                                 and what they keep from step to step
    squares, scale                                                for the norm of a gradient

`kind` is a place in reference.ACTIVATIONS. The arithmetic is in _activation.h and _optimiser.h; here are the choice of a
function and the threads. setup.py compiles this file once for each instruction set, as it does _kernels.pyx.
"""
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange

from fastlinear._table cimport (
    ELU, GELU, IDENTITY, LEAKY_RELU, RELU, SIGMOID, SILU, SOFTMAX, TANH, Elementwise, ElementwiseTable,
    activate_kernel, adam_kernel, derivative_kernel, scale_kernel, sgd_kernel, squares_kernel)

ctypedef fused real:
    float
    double

cdef extern from "_activation.h" nogil:
    # Macros that choose the function for the dtype of their first pointer, which is float* or double*, not void*.
    void relu(const void* x, void* out, Py_ssize_t n)
    void relu_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t n)

cdef extern from "_optimiser.h" nogil:
    # The same.
    ctypedef struct Sgd "struct sgd":
        double lr, momentum, weight_decay
        bint nesterov
    ctypedef struct Adam "struct adam":
        double rate, beta1, beta2, correction, eps, weight_decay, decay
    void sgd_pass(const void* gradient, void* parameter, void* buffer, Py_ssize_t n, const Sgd* numbers)
    void adam_pass(const void* gradient, void* parameter, void* mean, void* square, Py_ssize_t n, const Adam* numbers)
    double squares_pass(const void* array, Py_ssize_t n)
    void scale_pass(double factor, void* array, Py_ssize_t n)

cdef extern from "string.h" nogil:
    void* memmove(void*, const void*, size_t)


# ---- activations

cdef void activate_some(int kind, const real* x, real* out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t n = rows * columns
    if kind == RELU:
        relu(x, out, n)
    elif x != out:
        memmove(out, x, n * sizeof(real))


cdef void derivative_some(int kind, const real* grad_output, const real* output, const real* before, real* out,
                          Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t n = rows * columns
    if kind == RELU:
        relu_derivative(grad_output, output, out, n)
    elif grad_output != out:
        memmove(out, grad_output, n * sizeof(real))


cdef void activate_loops(int kind, const real* x, real* out, Py_ssize_t rows, Py_ssize_t columns,
                         int threads) noexcept nogil:
    activate_some(kind, x, out, rows, columns)


cdef void derivative_loops(int kind, const real* grad_output, const real* output, const real* before, real* out,
                           Py_ssize_t rows, Py_ssize_t columns, int threads) noexcept nogil:
    derivative_some(kind, grad_output, output, before, out, rows, columns)


# ---- optimisers

cdef enum:
    GRAIN = 1024    # threads: elements come in so many, which are whole pages, so that no two threads share one


cdef inline Py_ssize_t share_begins(Py_ssize_t n, int thread, int threads) noexcept nogil:
    """Where the share of a thread begins: n in equal parts, in whole grains."""
    return min(n, (n + GRAIN - 1) // GRAIN * thread // threads * GRAIN)


cdef void sgd_share(const real* gradient, real* parameter, real* buffer, Py_ssize_t size, const Sgd* numbers, int thread,
                    int threads) noexcept nogil:
    cdef Py_ssize_t begin = share_begins(size, thread, threads), end = share_begins(size, thread + 1, threads)
    sgd_pass(gradient + begin, parameter + begin, buffer + begin if buffer != NULL else NULL, end - begin, numbers)


cdef void sgd_loops(const real* gradient, double lr, double momentum, bint nesterov, double weight_decay,
                    real* parameter, real* buffer, Py_ssize_t size, int threads) noexcept nogil:
    cdef Sgd numbers = Sgd(lr, momentum, weight_decay, nesterov)
    cdef int thread
    if threads == 1:
        sgd_share(gradient, parameter, buffer, size, &numbers, 0, 1)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            sgd_share(gradient, parameter, buffer, size, &numbers, thread, threads)


cdef void adam_share(const real* gradient, real* parameter, real* mean, real* square, Py_ssize_t size,
                     const Adam* numbers, int thread, int threads) noexcept nogil:
    cdef Py_ssize_t begin = share_begins(size, thread, threads), end = share_begins(size, thread + 1, threads)
    adam_pass(gradient + begin, parameter + begin, mean + begin, square + begin, end - begin, numbers)


cdef void adam_loops(const real* gradient, double rate, double beta1, double beta2, double correction, double eps,
                     double weight_decay, double decay, real* parameter, real* mean, real* square, Py_ssize_t size,
                     int threads) noexcept nogil:
    cdef Adam numbers = Adam(rate, beta1, beta2, correction, eps, weight_decay, decay)
    cdef int thread
    if threads == 1:
        adam_share(gradient, parameter, mean, square, size, &numbers, 0, 1)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            adam_share(gradient, parameter, mean, square, size, &numbers, thread, threads)


cdef double squares_loop(const real* array, Py_ssize_t size) noexcept nogil:
    return squares_pass(array, size)


cdef void scale_loop(double factor, real* array, Py_ssize_t size) noexcept nogil:
    scale_pass(factor, array, size)


# ---- for Python: typed memoryviews, the same names and signatures as in reference.py

cdef int check_length(str name, Py_ssize_t got, Py_ssize_t expected) except -1:
    if got != expected:
        raise ValueError(f"{name} has length {got} where {expected} was expected")
    return 0


cdef int check_kind(int kind) except -1:
    if not IDENTITY <= kind <= SOFTMAX:
        raise ValueError(f"kind must be from {<int> IDENTITY} to {<int> SOFTMAX}, got {kind}")
    return 0


cdef int check_same(str name, const real[:, ::1] array, const real[:, ::1] x) except -1:
    check_length(f"{name}'s axis 0", array.shape[0], x.shape[0])
    check_length(f"{name}'s axis 1", array.shape[1], x.shape[1])
    return 0


def activate(int kind, const real[:, ::1] x, real[:, ::1] out, int threads=1, int thread=-1):
    """out[b, o] = f(x[b, o]), softmax over each row. out is overwritten, and may be x."""
    check_kind(kind)
    check_same("out", out, x)
    with nogil:
        activate_loops(kind, &x[0, 0], &out[0, 0], x.shape[0], x.shape[1], threads)


def derivative(int kind, const real[:, ::1] grad_output, const real[:, ::1] output, const real[:, ::1] before,
               real[:, ::1] out, int threads=1, int thread=-1):
    """out = the gradient before the activation from grad_output, the one after it. It comes from `output`, the values
    after the activation, or for silu and gelu from `before`, those before it; the other may be None.
    out is overwritten, and may be grad_output."""
    check_kind(kind)
    check_same("out", out, grad_output)
    cdef const real* y = &output[0, 0] if output is not None else NULL
    cdef const real* x = &before[0, 0] if before is not None else NULL
    with nogil:
        derivative_loops(kind, &grad_output[0, 0], y, x, &out[0, 0], grad_output.shape[0], grad_output.shape[1], threads)


cdef int check_threads(int threads, int thread) except -1:
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads must be from 1 to 1024, got {threads}")
    if not -1 <= thread < threads:
        raise ValueError(f"thread must be from 0 to {threads - 1}, or -1 for all, got {thread}")
    return 0


def sgd(const real[::1] gradient, double lr, double momentum, bint nesterov, double weight_decay, real[::1] parameter,
        real[::1] buffer, int threads=1, int thread=-1):
    """g = gradient + weight_decay parameter; buffer = momentum buffer + g, and then g = buffer, or with nesterov
    g += momentum buffer; parameter -= lr g. parameter and buffer are changed in place; buffer may be None."""
    check_threads(threads, thread)
    check_length("parameter", parameter.shape[0], gradient.shape[0])
    if buffer is not None:
        check_length("buffer", buffer.shape[0], gradient.shape[0])
    cdef real* b = &buffer[0] if buffer is not None else NULL
    cdef Sgd numbers = Sgd(lr, momentum, weight_decay, nesterov)
    with nogil:
        if thread < 0:
            sgd_loops(&gradient[0], lr, momentum, nesterov, weight_decay, &parameter[0], b, gradient.shape[0], threads)
        else:
            sgd_share(&gradient[0], &parameter[0], b, gradient.shape[0], &numbers, thread, threads)


def adam(const real[::1] gradient, double rate, double beta1, double beta2, double correction, double eps,
         double weight_decay, double decay, real[::1] parameter, real[::1] mean, real[::1] square, int threads=1,
         int thread=-1):
    """g = gradient + weight_decay parameter; mean += (1 - beta1) (g - mean); square = beta2 square + (1 - beta2) g^2;
    parameter = decay parameter - rate mean / (correction sqrt(square) + eps). The last three are changed in place.

    At step t, rate is lr / (1 - beta1^t) and correction 1 / sqrt(1 - beta2^t); decay is 1, but for AdamW."""
    check_threads(threads, thread)
    check_length("parameter", parameter.shape[0], gradient.shape[0])
    check_length("mean", mean.shape[0], gradient.shape[0])
    check_length("square", square.shape[0], gradient.shape[0])
    cdef Adam numbers = Adam(rate, beta1, beta2, correction, eps, weight_decay, decay)
    with nogil:
        if thread < 0:
            adam_loops(&gradient[0], rate, beta1, beta2, correction, eps, weight_decay, decay, &parameter[0], &mean[0],
                       &square[0], gradient.shape[0], threads)
        else:
            adam_share(&gradient[0], &parameter[0], &mean[0], &square[0], gradient.shape[0], &numbers, thread, threads)


def squares(const real[::1] array):
    """The sum of the squares, in float64, in the order of _sum.h."""
    cdef double total
    with nogil:
        total = squares_loop(&array[0], array.shape[0])
    return total


def scale(double factor, real[::1] array):
    """array *= factor, in place."""
    with nogil:
        scale_loop(factor, &array[0], array.shape[0])


# ---- for other compiled modules: the same without Python, in a table for each dtype

cdef ElementwiseTable elementwise_table = ElementwiseTable(
    Elementwise(<activate_kernel> activate_loops[float], <derivative_kernel> derivative_loops[float],
                <sgd_kernel> sgd_loops[float], <adam_kernel> adam_loops[float], <squares_kernel> squares_loop[float],
                <scale_kernel> scale_loop[float]),
    Elementwise(<activate_kernel> activate_loops[double], <derivative_kernel> derivative_loops[double],
                <sgd_kernel> sgd_loops[double], <adam_kernel> adam_loops[double], <squares_kernel> squares_loop[double],
                <scale_kernel> scale_loop[double]))
table = PyCapsule_New(&elementwise_table, "fastlinear.ElementwiseTable", NULL)
