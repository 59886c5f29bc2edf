# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""The losses: from a call to a kernel, which gives the value and the gradient in one pass.

Every call goes the same way as in _layer.pyx: conversions and allocation come first, then one look at the arrays, then
the labels, then the kernel. The arithmetic is in _loss.h.
"""
cimport numpy as cnp
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from libc.math cimport NAN
from libc.stdint cimport int64_t

from fastlinear._layer cimport (
    PyArray_CheckExact, PyArray_ISCARRAY, PyArray_ISCARRAY_RO, Span, Work, apart, dtype_of, elementwise_module,
    elementwise_of, end, release_gil, rows_of, shape_of, tuple_of)
from fastlinear._table cimport HINGE, HUBER, LOG_LOSS, SQUARED_ERROR, Elementwise, Loss

import numpy as np

from fastlinear.linear import _array, _check_cast, _check_mask, _rounded

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_EMPTY(int, cnp.npy_intp*, int, int)
    bint PyArray_SAMESHAPE(cnp.ndarray, cnp.ndarray)
    int PyArray_FailUnlessWriteable(cnp.ndarray, const char*) except -1

cdef enum:
    COST = 16       # of an element, in multiply-adds: what WORTH_RELEASING is measured in

cdef struct Pass:
    # What a kernel gets, as it was at the last look.
    Py_ssize_t rows, columns
    Span output, target, result
    int64_t label           # of one row, if it is a Python number
    bint is_double


# ---- the last look: nothing here runs Python code

cdef inline bint is_real(a) noexcept:
    """Whether a kernel can read `a` as outputs."""
    return (PyArray_CheckExact(a) and PyArray_ISCARRAY_RO(<cnp.ndarray> a) and cnp.PyArray_NDIM(<cnp.ndarray> a) > 0
            and (cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_FLOAT
                 or cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_DOUBLE))


cdef inline Span bytes_of(cnp.ndarray a) noexcept:
    cdef char* begin = <char*> cnp.PyArray_DATA(a)
    return Span(begin, begin + cnp.PyArray_NBYTES(a))


cdef inline bint same_kind(cnp.ndarray a, cnp.ndarray b) noexcept:
    return cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b) and PyArray_SAMESHAPE(a, b)


cdef inline bint is_alias(Span a, Span b) noexcept:
    """Whether a kernel can write one while it reads the other: they begin at the same address, or are apart."""
    return a.begin == b.begin or apart(a, b)


cdef inline bint can_write(Pass* p, output, result) noexcept:
    if not (is_real(output) and is_real(result) and PyArray_ISCARRAY(<cnp.ndarray> result)
            and same_kind(<cnp.ndarray> output, <cnp.ndarray> result)):
        return False
    p.is_double = cnp.PyArray_TYPE(<cnp.ndarray> output) == cnp.NPY_DOUBLE
    p.rows = rows_of(<cnp.ndarray> output)
    p.columns = cnp.PyArray_DIMS(<cnp.ndarray> output)[cnp.PyArray_NDIM(<cnp.ndarray> output) - 1]
    p.output, p.result = bytes_of(<cnp.ndarray> output), bytes_of(<cnp.ndarray> result)
    return is_alias(p.output, p.result)


cdef inline bint can_compare(Pass* p, output, target, result) noexcept:
    """Whether a kernel can compute a loss of numbers, and result, from output and target as they are."""
    if not (can_write(p, output, result) and is_real(target) and same_kind(<cnp.ndarray> output, <cnp.ndarray> target)):
        return False
    p.target = bytes_of(<cnp.ndarray> target)
    return is_alias(p.target, p.result)


cdef inline bint can_classify(Pass* p, scores, labels, result) noexcept:
    """The same for a loss of labels."""
    cdef cnp.ndarray a
    cdef int axis, overflow = 0
    if not can_write(p, scores, result):
        return False
    if PyLong_CheckExact(labels) and cnp.PyArray_NDIM(<cnp.ndarray> scores) == 1:
        p.label = PyLong_AsLongLongAndOverflow(labels, &overflow)
        p.target.begin = <char*> &p.label
        p.target.end = p.target.begin + sizeof(int64_t)
        return not overflow
    if not (PyArray_CheckExact(labels) and PyArray_ISCARRAY_RO(<cnp.ndarray> labels)
            and cnp.PyArray_TYPE(<cnp.ndarray> labels) == cnp.NPY_INT64
            and cnp.PyArray_NDIM(<cnp.ndarray> labels) == cnp.PyArray_NDIM(<cnp.ndarray> scores) - 1):
        return False
    a = <cnp.ndarray> labels
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[axis] != cnp.PyArray_DIMS(<cnp.ndarray> scores)[axis]:
            return False
    p.target = bytes_of(a)
    return apart(p.target, p.result)


# ---- before the last look: conversions, in which Python code can run, and allocation

cdef cnp.ndarray empty_like(cnp.ndarray a):
    return PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a), 0)


cdef tuple rows_shape(cnp.ndarray a):
    """The shape without the last axis."""
    return tuple_of(cnp.PyArray_DIMS(a), cnp.PyArray_NDIM(a) - 1)


cdef cnp.ndarray taken_output(str name, value):
    """Outputs or scores as a plain array of float32 or float64; the dtype is the smaller that holds them."""
    array = np.asarray(_array(name, value))
    try:
        dtype = np.result_type(array.dtype, np.float32)
    except TypeError:
        dtype = None
    if dtype != np.float32 and dtype != np.float64:
        from fastlinear._advice import for_cast
        raise TypeError(f"{name} must have a dtype that casts safely to float32 or float64, got {array.dtype}"
                        f"{for_cast(name, value, array.dtype, np.dtype(np.float64), '')}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, got shape ()")
    return np.require(array, dtype, ["C", "A", "E"])


cdef cnp.ndarray taken_target(str name, value, cnp.ndarray output):
    array = np.asarray(_array(name, value))
    if isinstance(value, (list, tuple, int, float)) and array.dtype.kind in "biuf":
        array = _rounded(name, array, dtype_of(output))
    _check_cast(name, array.dtype, dtype_of(output), "the output's", value)
    if array.shape != shape_of(output):
        from fastlinear._advice import for_shape
        raise ValueError(f"{name} must have shape {shape_of(output)} as the output, got {array.shape}"
                         f"{for_shape(name, array.shape, shape_of(output))}")
    return np.require(array, dtype_of(output), ["C", "A", "E"])


cdef cnp.ndarray taken_labels(str name, value, cnp.ndarray scores):
    array = np.asarray(_array(name, value))
    if array.size == 0 and isinstance(value, (list, tuple)):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu":
        from fastlinear._advice import for_labels
        raise TypeError(f"{name} must be integers or bools, got dtype {array.dtype}"
                        f"{for_labels(name, array.dtype, array.shape, shape_of(scores))}")
    if array.shape != rows_shape(scores):
        from fastlinear._advice import for_labels
        raise ValueError(f"{name} must have shape {rows_shape(scores)}, one for each row of scores of shape "
                         f"{shape_of(scores)}, got {array.shape}"
                         f"{for_labels(name, array.dtype, array.shape, shape_of(scores))}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        large = array > np.iinfo(np.int64).max
        if large.any():
            place = int(large.argmax())
            raise out_of_range(name, array.reshape(-1)[place], place, scores)
    return np.require(array, np.int64, ["C", "A", "E"])


cdef int check_out(str name, out, cnp.ndarray output) except -1:
    """Whether the gradient can be copied into out, if there is one."""
    if out is None:
        return 0
    if not cnp.PyArray_Check(out):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(out).__name__}")
    _check_mask(name, out)
    if not (cnp.PyArray_TYPE(out) == cnp.PyArray_TYPE(output) and cnp.PyArray_ISNOTSWAPPED(out)):
        raise TypeError(f"{name} must have dtype {dtype_of(output)}, got {dtype_of(out)}")
    if shape_of(out) != shape_of(output):
        raise ValueError(f"{name} must have shape {shape_of(output)}, got {shape_of(out)}")
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError(f"{name} must be writable, got a read-only array")
    PyArray_FailUnlessWriteable(out, "out")
    return 0


cdef object out_of_range(str name, label, Py_ssize_t place, cnp.ndarray scores):
    """The error for a label which no column has."""
    cdef Py_ssize_t columns = cnp.PyArray_DIMS(scores)[cnp.PyArray_NDIM(scores) - 1]
    cdef tuple axes = rows_shape(scores)
    wanted = "absent for 0 outputs" if columns == 0 else f"from 0 to {columns - 1}"
    if columns == 1:
        wanted = "0 or 1 for one output"
    row = ", ".join(map(str, np.unravel_index(place, axes))) if axes else ""
    from fastlinear._advice import for_signs
    return ValueError(f"{name} must be {wanted}, got {label}" + (f" in row {row}" if axes else "")
                      + for_signs(name, label, 2 if columns == 1 else columns))


# ---- the calls

cdef inline tuple finished(double total, Py_ssize_t rows, result, out):
    """The mean over the rows, which is NaN if there are none, and the gradient, in out if there is one."""
    if out is not None and result is not out:
        cnp.PyArray_CopyInto(out, result)
    return total / rows if rows else NAN, result if out is None else out


cdef tuple of_numbers(Loss loss, str name, output, target, out):
    cdef Pass p
    cdef Work work
    cdef Elementwise* table
    cdef object result = out
    cdef double total = 0, scale
    if out is None and is_real(output):
        result = empty_like(<cnp.ndarray> output)
    if not can_compare(&p, output, target, result):
        output = taken_output(f"{name}: output", output)
        target = taken_target(f"{name}: target", target, output)
        check_out(f"{name}: out", out, output)
        result = empty_like(output)
        if not can_compare(&p, output, target, result):
            raise RuntimeError(f"{name}: an argument changed while the call made itself ready; nothing was written")
    table = elementwise_of(p.is_double)
    scale = 1.0 / p.rows if p.rows else 1
    if table == NULL:
        shape = p.rows, p.columns
        kernel = elementwise_module().squared_error if loss == SQUARED_ERROR else elementwise_module().huber
        total = kernel(output.reshape(shape), target.reshape(shape), scale, result.reshape(shape))
    elif p.rows:
        release_gil(&work, <double> p.rows * p.columns * COST)
        total = (table.squared_error if loss == SQUARED_ERROR else table.huber)(
            p.output.begin, p.target.begin, scale, p.result.begin, p.rows, p.columns)
        end(&work)
    return finished(total, p.rows, result, out)


cdef tuple of_labels(Loss loss, str name, scores, labels, out):
    cdef Pass p
    cdef Work work
    cdef Elementwise* table
    cdef object result = out
    cdef double total = 0, scale
    cdef const int64_t* label
    cdef Py_ssize_t r, classes
    if out is None and is_real(scores):
        result = empty_like(<cnp.ndarray> scores)
    if not can_classify(&p, scores, labels, result):
        scores = taken_output(f"{name}: scores", scores)
        labels = taken_labels(f"{name}: labels", labels, scores)
        check_out(f"{name}: out", out, scores)
        result = empty_like(scores)
        if not can_classify(&p, scores, labels, result):
            raise RuntimeError(f"{name}: an argument changed while the call made itself ready; nothing was written")
    label, classes = <const int64_t*> p.target.begin, 2 if p.columns == 1 else p.columns
    for r in range(p.rows):
        if not 0 <= label[r] < classes:
            raise out_of_range(f"{name}: labels", label[r], r, scores)
    table = elementwise_of(p.is_double)
    scale = 1.0 / p.rows if p.rows else 1
    if table == NULL:
        shape = p.rows, p.columns
        kernel = elementwise_module().hinge if loss == HINGE else elementwise_module().log_loss
        total = kernel(scores.reshape(shape), np.reshape(labels, p.rows), scale, result.reshape(shape))
    elif p.rows:
        release_gil(&work, <double> p.rows * p.columns * COST)
        total = (table.hinge if loss == HINGE else table.log_loss)(
            p.output.begin, label, scale, p.result.begin, p.rows, p.columns)
        end(&work)
    return finished(total, p.rows, result, out)


def squared_error(output, target, out=None):
    """Half the squared error, Σ (output − target)² / 2 over the outputs, as its mean over the rows and its gradient.

    output: (..., outputs), float32 or float64, or what casts safely to them. target: the same shape, and a dtype that
    casts safely to output's. The gradient by output is (output − target) / rows. It overwrites out, or a new array if
    None; out can overlap anything. Returns (loss, gradient), where the loss is a float.
    Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

    >>> loss, grad_output = squared_error(np.array([[1.0, 2.0], [3.0, 4.0]]), [[1, 0], [0, 4]])
    >>> loss
    3.25
    >>> grad_output
    array([[0. , 1. ],
           [1.5, 0. ]])
    """
    return of_numbers(SQUARED_ERROR, "squared_error", output, target, out)


def huber(output, target, out=None):
    """Huber's loss with delta 1, summed over the outputs: d² / 2 where abs(d) ≤ 1, and abs(d) − 1/2 elsewhere.

    Here d = output − target. Arguments, result and errors are those of squared_error. The gradient, which overwrites
    out, is d limited to −1 and 1, divided by the rows.

    >>> huber(np.array([[0.5], [-3.0]]), [[0], [0]])
    (1.3125, array([[ 0.25],
           [-0.5 ]]))
    """
    return of_numbers(HUBER, "huber", output, target, out)


def hinge(scores, labels, out=None):
    """The hinge loss, max(0, 1 − z), summed over the outputs: z is the score for the label's output, −score for others.

    scores: (..., outputs), float32 or float64, or what casts safely to them. labels: (...), integers of any dtype, or
    bools. With several outputs, each is one class against the rest. One output is the score of label 1 against label 0.
    1-D scores are one row with one label. The loss is the mean over the rows. Its gradient by scores is ∓1 / rows where
    z ≤ 1 and 0 elsewhere; it overwrites out, or a new array if None; out can overlap anything. Returns (loss,
    gradient), where the loss is a float. Raises ValueError for a label that has no output or for a wrong shape, and
    TypeError for a wrong dtype.

    >>> hinge(np.array([[0.5], [-2.0]]), [1, 0])
    (0.25, array([[-0.5],
           [ 0. ]]))
    """
    return of_labels(HINGE, "hinge", scores, labels, out)


def log_loss(scores, labels, out=None):
    """−log p(label): the logistic loss for one output, the cross entropy of a softmax for several.

    scores: (..., outputs), float32 or float64, or what casts safely to them. labels: (...), integers of any dtype, or
    bools. One output is the score of label 1 against label 0, p(1) = 1 / (1 + exp(−score)). For several outputs,
    p = softmax(scores). 1-D scores are one row with one label. The loss is the mean over the rows. Its gradient by
    scores is (p − 1) / rows for the label's output and p / rows for the others; it overwrites out, or a new array if
    None; out can overlap anything. Returns (loss, gradient), where the loss is a float. No score is too large. Raises
    ValueError for a label that has no output or for a wrong shape, and TypeError for a wrong dtype.

    >>> loss, grad_scores = log_loss(np.array([[0.0], [1e4]]), [1, 1])
    >>> round(loss, 6), grad_scores.ravel()
    (0.346574, array([-0.25, -0.  ]))
    >>> loss, grad_scores = log_loss(np.array([1.0, 1.0, 1.0, 1.0]), 2)
    >>> round(loss, 6), grad_scores
    (1.386294, array([ 0.25,  0.25, -0.75,  0.25]))
    """
    return of_labels(LOG_LOSS, "log_loss", scores, labels, out)
