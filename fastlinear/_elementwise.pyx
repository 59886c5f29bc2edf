# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""What is done to every element of an array: activations and their derivatives.

    activate      out[j]  = f(x[j])                               softmax: over each row
    derivative    out[j]  = grad_output[j] f'(x[j])               grad before the activation

`kind` is a place in reference.ACTIVATIONS. The arithmetic is in _activation.h; here are the choice of a function and
the threads. setup.py compiles this file once for each instruction set, as it does _kernels.pyx.
"""
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange

from libc.string cimport memmove

from fastlinear._table cimport (
    ELU, GELU, LEAKY_RELU, RELU, SIGMOID, SILU, SOFTMAX, TANH, Elementwise, ElementwiseTable,
    activate_kernel, derivative_kernel)

ctypedef fused real:
    float
    double

cdef extern from "_activation.h" nogil:
    # Macros that choose the function for the dtype of their first pointer, which is float* or double*, not void*.
    void relu(const void* x, void* out, Py_ssize_t n)
    void leaky_relu(const void* x, void* out, Py_ssize_t n)
    void elu(const void* x, void* out, Py_ssize_t n)
    void sigmoid(const void* x, void* out, Py_ssize_t n)
    void hyperbolic_tangent(const void* x, void* out, Py_ssize_t n)     # tanh is C's
    void silu(const void* x, void* out, Py_ssize_t n)
    void gelu(const void* x, void* out, Py_ssize_t n)
    void softmax(const void* x, void* out, Py_ssize_t rows, Py_ssize_t columns)
    void relu_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t n)
    void leaky_relu_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t n)
    void elu_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t n)
    void sigmoid_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t n)
    void tanh_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t n)
    void silu_derivative(const void* grad_output, const void* before, void* out, Py_ssize_t n)
    void gelu_derivative(const void* grad_output, const void* before, void* out, Py_ssize_t n)
    void softmax_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t rows, Py_ssize_t columns)

cdef enum:
    GRAIN = 1024    # threads: elements come in so many, which no two of them share a line of

# ---- activations

cdef inline Py_ssize_t share(int kind, Py_ssize_t rows, Py_ssize_t columns, int thread, int threads) noexcept nogil:
    """At which element the share of a thread begins: whole rows for softmax, else whole grains."""
    cdef Py_ssize_t n = rows * columns, grains = (n + GRAIN - 1) // GRAIN
    return rows * thread // threads * columns if kind == SOFTMAX else min(n, grains * thread // threads * GRAIN)


cdef void activate_share(int kind, const real* x, real* out, Py_ssize_t rows, Py_ssize_t columns, int thread,
                         int threads) noexcept nogil:
    cdef Py_ssize_t begin = share(kind, rows, columns, thread, threads)
    cdef Py_ssize_t n = share(kind, rows, columns, thread + 1, threads) - begin
    x += begin
    out += begin
    if kind == RELU:
        relu(x, out, n)
    elif kind == LEAKY_RELU:
        leaky_relu(x, out, n)
    elif kind == ELU:
        elu(x, out, n)
    elif kind == SIGMOID:
        sigmoid(x, out, n)
    elif kind == TANH:
        hyperbolic_tangent(x, out, n)
    elif kind == SILU:
        silu(x, out, n)
    elif kind == GELU:
        gelu(x, out, n)
    elif kind == SOFTMAX:
        if n:
            softmax(x, out, n // columns, columns)
    elif x != out:
        memmove(out, x, n * sizeof(real))


cdef void derivative_share(int kind, const real* grad_output, const real* output, const real* before, real* out,
                           Py_ssize_t rows, Py_ssize_t columns, int thread, int threads) noexcept nogil:
    cdef Py_ssize_t begin = share(kind, rows, columns, thread, threads)
    cdef Py_ssize_t n = share(kind, rows, columns, thread + 1, threads) - begin
    grad_output += begin
    out += begin
    if kind == RELU:
        relu_derivative(grad_output, output + begin, out, n)
    elif kind == LEAKY_RELU:
        leaky_relu_derivative(grad_output, output + begin, out, n)
    elif kind == ELU:
        elu_derivative(grad_output, output + begin, out, n)
    elif kind == SIGMOID:
        sigmoid_derivative(grad_output, output + begin, out, n)
    elif kind == TANH:
        tanh_derivative(grad_output, output + begin, out, n)
    elif kind == SILU:
        silu_derivative(grad_output, before + begin, out, n)
    elif kind == GELU:
        gelu_derivative(grad_output, before + begin, out, n)
    elif kind == SOFTMAX:
        if n:
            softmax_derivative(grad_output, output + begin, out, n // columns, columns)
    elif grad_output != out:
        memmove(out, grad_output, n * sizeof(real))


cdef void activate_loops(int kind, const real* x, real* out, Py_ssize_t rows, Py_ssize_t columns,
                         int threads) noexcept nogil:
    cdef int thread
    if threads == 1:
        activate_share(kind, x, out, rows, columns, 0, 1)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            activate_share(kind, x, out, rows, columns, thread, threads)


cdef void derivative_loops(int kind, const real* grad_output, const real* output, const real* before, real* out,
                           Py_ssize_t rows, Py_ssize_t columns, int threads) noexcept nogil:
    cdef int thread
    if threads == 1:
        derivative_share(kind, grad_output, output, before, out, rows, columns, 0, 1)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            derivative_share(kind, grad_output, output, before, out, rows, columns, thread, threads)


# ---- for Python: typed memoryviews, the same names and signatures as in reference.py; thread as in _kernels.pyx

cdef int check_length(str name, Py_ssize_t got, Py_ssize_t expected) except -1:
    if got != expected:
        raise ValueError(f"{name} has length {got} where {expected} was expected")
    return 0


cdef int check(int kind, int threads, int thread) except -1:
    if not 0 <= kind <= <int> SOFTMAX:
        raise ValueError(f"kind must be from 0 to {<int> SOFTMAX}, got {kind}")
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads must be from 1 to 1024, got {threads}")
    if not -1 <= thread < threads:
        raise ValueError(f"thread must be from 0 to {threads - 1}, or -1 for all, got {thread}")
    return 0


def activate(int kind, const real[:, ::1] x, real[:, ::1] out, int threads=1, int thread=-1):
    """out[b, o] = f(x[b, o]), softmax over each row. out is overwritten, and may be x."""
    check(kind, threads, thread)
    check_length("out's axis 0", out.shape[0], x.shape[0])
    check_length("out's axis 1", out.shape[1], x.shape[1])
    with nogil:
        if thread < 0:
            activate_loops(kind, &x[0, 0], &out[0, 0], x.shape[0], x.shape[1], threads)
        else:
            activate_share(kind, &x[0, 0], &out[0, 0], x.shape[0], x.shape[1], thread, threads)


def derivative(int kind, const real[:, ::1] grad_output, const real[:, ::1] output, const real[:, ::1] before,
               real[:, ::1] out, int threads=1, int thread=-1):
    """out = the gradient before the activation, from grad_output, the one after it. It comes from `output`, the values
    after the activation, or for silu and gelu from `before`, those before it; the other may be None.
    out is overwritten, and may be grad_output."""
    check(kind, threads, thread)
    cdef const real[:, ::1] values = output     # not by a conditional expression, which Cython 3.1 counts wrongly
    if kind == SILU or kind == GELU:
        values = before
    if values is None:
        raise ValueError("the derivative of silu and gelu needs the values before them, of the others those after them")
    check_length("the values' axis 0", values.shape[0], grad_output.shape[0])
    check_length("the values' axis 1", values.shape[1], grad_output.shape[1])
    check_length("out's axis 0", out.shape[0], grad_output.shape[0])
    check_length("out's axis 1", out.shape[1], grad_output.shape[1])
    cdef const real* v = &values[0, 0]
    with nogil:
        if thread < 0:
            derivative_loops(kind, &grad_output[0, 0], v, v, &out[0, 0], grad_output.shape[0], grad_output.shape[1],
                             threads)
        else:
            derivative_share(kind, &grad_output[0, 0], v, v, &out[0, 0], grad_output.shape[0], grad_output.shape[1],
                             thread, threads)


# ---- for other compiled modules: the same without Python, in a table for each dtype

cdef ElementwiseTable elementwise_table = ElementwiseTable(
    Elementwise(<activate_kernel> activate_loops[float], <derivative_kernel> derivative_loops[float]),
    Elementwise(<activate_kernel> activate_loops[double], <derivative_kernel> derivative_loops[double]))
table = PyCapsule_New(&elementwise_table, "fastlinear.ElementwiseTable", NULL)
