# The compiled modules share this: the kernels in use, what a call needs around them, the last look at arrays, memory
# that Python cannot free, and the insides of a layer. What has no comment here has one in _layer.pyx.
cimport cython
cimport numpy as cnp
from cpython.object cimport PyObject

from fastlinear._table cimport Elementwise, Kernels

cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass
    ctypedef object (*vectorcallfunc)(object, PyObject* const* args, size_t count, PyObject* names)

cdef extern from "numpy/arrayobject.h":
    bint PyArray_CheckExact(object)
    bint PyArray_ISCARRAY(cnp.ndarray)
    bint PyArray_ISCARRAY_RO(cnp.ndarray)

cdef extern from "_atomic.h" nogil:
    int load_int(const int*)
    void store_int(int*, int)
    void* load_pointer(void**)
    void store_pointer(void**, void*)


# ---- the kernels in use, and what a call needs around them

cdef enum:
    # In multiply-adds. A smaller call takes too little time to be worth releasing the GIL (50 ns) or waking a thread
    # (some µs).
    WORTH_RELEASING = 1 << 17
    WORTH_A_THREAD = 1 << 19

cdef struct Work:
    int threads
    char* scratch           # threads times SCRATCH_BYTES, and after that as many times the `more` that was asked for
    PyThreadState* state

cdef Kernels* kernels_of(bint is_double) noexcept   # NULL for the reference, which is kernel_module()
cdef Elementwise* elementwise_of(bint is_double) noexcept
cdef object kernel_module()
cdef object elementwise_module()

cdef void release_gil(Work* work, double size) noexcept
cdef int begin(Work* work, double size, size_t more) except -1
cdef void end(Work* work) noexcept


# ---- looking at arrays; nothing here runs Python code

cdef struct Span:
    char* begin
    char* end


cdef inline bint apart(Span a, Span b) noexcept:
    """Whether two spans share no byte."""
    return a.end <= b.begin or b.end <= a.begin


cdef inline Py_ssize_t rows_of(cnp.ndarray a) noexcept:
    """How many rows there are before the last axis."""
    cdef Py_ssize_t rows = 1
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a) - 1):
        rows *= cnp.PyArray_DIMS(a)[axis]
    return rows


cdef inline bint same_batch_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether all axes but the last agree."""
    cdef int axis
    if cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a) - 1):
        if cnp.PyArray_DIMS(a)[axis] != cnp.PyArray_DIMS(b)[axis]:
            return False
    return True


cdef tuple tuple_of(const cnp.npy_intp* numbers, int count)
cdef tuple shape_of(cnp.ndarray a)
cdef tuple result_shape(cnp.ndarray x, Py_ssize_t features)
cdef cnp.dtype dtype_of(cnp.ndarray a)


# ---- memory that Python can neither move, resize nor free

@cython.final
cdef class Memory:
    cdef object owner
    cdef Py_buffer export
    cdef void* begin
    cdef Py_ssize_t nbytes
    cdef bint readonly      # to Python; kernels write to it all the same

cdef Memory new_memory(Py_ssize_t nbytes)


@cython.final
cdef class Parameter:
    cdef Memory memory
    cdef Span span
    cdef int typenum
    cdef int ndim
    cdef cnp.npy_intp shape[2]
    cdef cnp.ndarray handed_out

    cdef cnp.ndarray view(self)
    cdef cnp.ndarray array(self)
    cdef bint is_frozen(self) noexcept

    cdef inline bint matches(self, a) noexcept
    cdef inline bint is_at(self, a) noexcept

cdef Parameter parameter_on(cnp.ndarray array)
cdef cnp.ndarray array_of(Parameter p)
cdef cnp.ndarray view_of(Parameter p)
cdef Span span_of(Parameter p) noexcept


# ---- what takes rows of in_features and gives rows of out_features, in one dtype

cdef struct Pass:
    # The arguments of a kernel, as they were at the last look.
    Py_ssize_t rows
    Span x, grad_output, result


cdef class Model:
    cdef readonly Py_ssize_t in_features
    cdef readonly Py_ssize_t out_features
    cdef readonly cnp.dtype dtype
    cdef Py_ssize_t itemsize
    cdef int typenum
    cdef bint is_double
    cdef vectorcallfunc vectorcall      # what Python calls for model(x)
    cdef object __weakref__

    cdef object map(self, x, out)

    cdef int set_form(self, int typenum, Py_ssize_t in_features, Py_ssize_t out_features) except -1
    cdef inline int check_bound(self) except -1

    # The last look: nothing here runs Python code.

    cdef inline bint can_read(self, a, Py_ssize_t features) noexcept:
        """Whether a kernel can read `a` as it is: an ndarray of the model's dtype, contiguous, of so many features."""
        return (PyArray_CheckExact(a) and cnp.PyArray_TYPE(<cnp.ndarray> a) == self.typenum
                and PyArray_ISCARRAY_RO(<cnp.ndarray> a) and cnp.PyArray_NDIM(<cnp.ndarray> a) > 0
                and cnp.PyArray_DIMS(<cnp.ndarray> a)[cnp.PyArray_NDIM(<cnp.ndarray> a) - 1] == features)

    cdef inline bint can_write(self, a, Py_ssize_t features) noexcept:
        return self.can_read(a, features) and PyArray_ISCARRAY(<cnp.ndarray> a)

    cdef inline Span bytes(self, cnp.ndarray a, Py_ssize_t rows, Py_ssize_t features) noexcept:
        """The bytes of an array that can_read() let pass."""
        cdef char* begin = <char*> cnp.PyArray_DATA(a)
        return Span(begin, begin + rows * features * self.itemsize)

    # Before the last look: numbers, conversions, allocation. A method with an argument `name` can run Python code.

    cdef inline double number(self, str name, value) except? -1
    cdef inline cnp.ndarray empty(self, cnp.ndarray x, Py_ssize_t features)
    cdef cnp.ndarray taken(self, str name, value)
    cdef int taken_out(self, out) except -1
    cdef int check_cast(self, str name, cnp.ndarray array) except -1
    cdef int check_rows(self, str name, cnp.ndarray array, Py_ssize_t features) except -1
    cdef int check_no_scale(self, out) except -1
    cdef int check_out(self, out, cnp.ndarray x, Py_ssize_t features) except -1
    cdef cnp.ndarray plain(self, cnp.ndarray array)
    cdef bint apart_from_memory(self, Span a) noexcept
    cdef cnp.ndarray plain_apart(self, cnp.ndarray array)
    cdef object changed(self)


cdef class Layer(Model):
    cdef Parameter W, b, grad_W, grad_b
    cdef Span w_span, b_span, grad_w_span, grad_b_span      # so that a call need not ask for them
    cdef int has_gradients

    cdef object map(self, x, out)

    cdef inline double size(self, Py_ssize_t rows) noexcept
    cdef object frozen(self)
    cdef inline int check_writable(self, bint gradients) except -1
    cdef int ensure_gradients(self) except -1
    cdef int check_both(self, cnp.ndarray x, cnp.ndarray grad_output, out, bint input_grad) except -1
    cdef cnp.ndarray values(self, str name, Parameter p, value)
    cdef int assign(self, str name, Parameter p, value) except -1
    cdef int check_values(self, weight, bias) except -1
    cdef void copy_values(self, weight, bias) noexcept

    cdef inline bint apart_from_parameters(self, Span a) noexcept
    cdef inline bint apart_from_gradients(self, Span a) noexcept
    cdef inline bint can_map(self, Pass* p, Span* source_span, source, Py_ssize_t source_features,
                             result, Py_ssize_t result_features) noexcept
    cdef inline bint can_read_both(self, Pass* p, x, grad_output) noexcept
    cdef inline bint can_write_grad_input(self, Pass* p, result, x, bint input_grad) noexcept
    cdef inline bint can_accumulate(self, Pass* p, x, grad_output, gx, bint input_grad) noexcept
    cdef inline bint can_update(self, Pass* p, x, grad_output, gx, bint input_grad) noexcept

cdef delivered(result, out)
