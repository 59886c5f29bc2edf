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

from fastlinear._table cimport (
    ELU, GELU, IDENTITY, LEAKY_RELU, RELU, SIGMOID, SILU, SOFTMAX, TANH, Elementwise, ElementwiseTable,
    activate_kernel, derivative_kernel)

ctypedef fused real:
    float
    double

cdef extern from "_activation.h" nogil:
    # Macros that choose the function for the dtype of their first pointer, which is float* or double*, not void*.
    void relu(const void* x, void* out, Py_ssize_t n)
    void relu_derivative(const void* grad_output, const void* output, void* out, Py_ssize_t n)

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


# ---- for other compiled modules: the same without Python, in a table for each dtype

cdef ElementwiseTable elementwise_table = ElementwiseTable(
    Elementwise(<activate_kernel> activate_loops[float], <derivative_kernel> derivative_loops[float]),
    Elementwise(<activate_kernel> activate_loops[double], <derivative_kernel> derivative_loops[double]))
table = PyCapsule_New(&elementwise_table, "fastlinear.ElementwiseTable", NULL)
