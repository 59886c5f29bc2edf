# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""What is done to every element of an array: activations and their derivatives, losses, optimisers.

    activate      out[j]  = f(x[j])                               softmax: over each row
    derivative    out[j]  = grad_output[j] f'(x[j])               the gradient before the activation

    squared_error, huber, hinge, log_loss                         loss and gradient
    sgd, adam     parameter -= ...                                with the arrays that they keep from step to step
    squares, scale                                                for the norm of a gradient
    adagrad       parameter -= ...                                for Linear.learn, as are the rows of _rows.h

`kind` is a place in reference.ACTIVATIONS. The arithmetic is in _activation.h, _loss.h and _optimiser.h; here are the
choice of a function and the threads. setup.py compiles this file once for each instruction set, like _kernels.pyx.
"""
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memmove

from fastlinear._table cimport (
    ELU, GELU, IDENTITY, LEAKY_RELU, RELU, SIGMOID, SILU, SOFTMAX, TANH, Elementwise, ElementwiseTable,
    activate_kernel, adagrad_kernel, adam_kernel, derivative_kernel, label_loss, learn_rows_kernel, number_loss,
    scale_kernel, sgd_kernel, squares_kernel)

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

cdef extern from "_loss.h" nogil:
    # The same.
    double squared_error_sum(const void* output, const void* target, void* out, Py_ssize_t n, double scale)
    double huber_sum(const void* output, const void* target, void* out, Py_ssize_t n, double scale)
    double hinge_sum(const void* scores, const int64_t* labels, void* out, Py_ssize_t rows, Py_ssize_t columns,
                     double scale)
    double logistic_sum(const void* scores, const int64_t* labels, void* out, Py_ssize_t rows, Py_ssize_t columns,
                        double scale)
    double cross_entropy_sum(const void* scores, const int64_t* labels, void* out, Py_ssize_t rows, Py_ssize_t columns,
                             double scale)

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

cdef extern from "_rows.h" nogil:
    # The same.
    double learn_rows_of(int loss, const void* x, Py_ssize_t x_row, const Py_ssize_t* order, const void* y,
                         const void* sample_weight, const double* lr, Py_ssize_t lr_step, double l2, void* weight,
                         void* bias, Py_ssize_t rows, Py_ssize_t features, void* room, double sum)
    void adagrad_pass(const void* gradient, double lr, void* squares, void* parameter, Py_ssize_t n)

cdef enum:
    GRAIN = 1024    # threads: elements come in so many, so that no two threads share a cache line


# ---- activations

cdef inline Py_ssize_t share(int kind, Py_ssize_t rows, Py_ssize_t columns, int thread, int threads) noexcept nogil:
    """The element at which the share of a thread begins: whole rows for softmax, and otherwise whole grains."""
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


# ---- losses

cdef double squared_error_loop(const real* output, const real* target, double scale, real* out, Py_ssize_t rows,
                               Py_ssize_t columns) noexcept nogil:
    return squared_error_sum(output, target, out, rows * columns, scale)


cdef double huber_loop(const real* output, const real* target, double scale, real* out, Py_ssize_t rows,
                       Py_ssize_t columns) noexcept nogil:
    return huber_sum(output, target, out, rows * columns, scale)


cdef double hinge_loop(const real* scores, const int64_t* labels, double scale, real* out, Py_ssize_t rows,
                       Py_ssize_t columns) noexcept nogil:
    return hinge_sum(scores, labels, out, rows, columns, scale)


cdef double log_loss_loop(const real* scores, const int64_t* labels, double scale, real* out, Py_ssize_t rows,
                          Py_ssize_t columns) noexcept nogil:
    if columns == 1:
        return logistic_sum(scores, labels, out, rows, 1, scale)
    return cross_entropy_sum(scores, labels, out, rows, columns, scale)


# ---- optimisers

cdef void sgd_share(const real* gradient, real* parameter, real* buffer, Py_ssize_t size, const Sgd* numbers,
                    int thread, int threads) noexcept nogil:
    cdef Py_ssize_t begin = share(IDENTITY, 1, size, thread, threads)
    cdef Py_ssize_t end = share(IDENTITY, 1, size, thread + 1, threads)
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
    cdef Py_ssize_t begin = share(IDENTITY, 1, size, thread, threads)
    cdef Py_ssize_t end = share(IDENTITY, 1, size, thread + 1, threads)
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


# ---- learning: rows one by one for one output, and AdaGrad's steps

cdef double learn_rows_loop(int loss, const real* x, Py_ssize_t x_row, const Py_ssize_t* order, const void* y,
                            const real* sample_weight, const double* lr, Py_ssize_t lr_step, double l2, real* weight,
                            real* bias, Py_ssize_t rows, Py_ssize_t features, real* room, double sum) noexcept nogil:
    return learn_rows_of(loss, x, x_row, order, y, sample_weight, lr, lr_step, l2, weight, bias, rows, features, room,
                         sum)


cdef void adagrad_loop(const real* gradient, double lr, real* squares, real* parameter, Py_ssize_t size) noexcept nogil:
    adagrad_pass(gradient, lr, squares, parameter, size)


# ---- for Python: typed memoryviews, the same names and signatures as in reference.py; thread as in _kernels.pyx

cdef int check_length(str name, Py_ssize_t got, Py_ssize_t expected) except -1:
    if got != expected:
        raise ValueError(f"{name} has length {got} where {expected} was expected")
    return 0


cdef int check_kind(int kind) except -1:
    if not 0 <= kind <= <int> SOFTMAX:
        raise ValueError(f"kind must be from 0 to {<int> SOFTMAX}, got {kind}")
    return 0


cdef int check_threads(int threads, int thread) except -1:
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads must be from 1 to 1024, got {threads}")
    if not -1 <= thread < threads:
        raise ValueError(f"thread must be from 0 to {threads - 1}, or -1 for all, got {thread}")
    return 0


cdef int check_same(str name, const real[:, ::1] array, const real[:, ::1] x) except -1:
    check_length(f"{name}'s axis 0", array.shape[0], x.shape[0])
    check_length(f"{name}'s axis 1", array.shape[1], x.shape[1])
    return 0


def activate(int kind, const real[:, ::1] x, real[:, ::1] out, int threads=1, int thread=-1):
    """out[b, o] = f(x[b, o]), softmax over each row. out is overwritten, and can be x."""
    check_kind(kind)
    check_threads(threads, thread)
    check_same("out", out, x)
    with nogil:
        if thread < 0:
            activate_loops(kind, &x[0, 0], &out[0, 0], x.shape[0], x.shape[1], threads)
        else:
            activate_share(kind, &x[0, 0], &out[0, 0], x.shape[0], x.shape[1], thread, threads)


def derivative(int kind, const real[:, ::1] grad_output, const real[:, ::1] output, const real[:, ::1] before,
               real[:, ::1] out, int threads=1, int thread=-1):
    """out = the gradient before the activation, from grad_output, the gradient after it. For silu and gelu it needs
    `before`, the values before the activation, and for the others `output`, the values after it. The array that is not
    needed can be None. out is overwritten, and can be grad_output."""
    check_kind(kind)
    check_threads(threads, thread)
    cdef const real[:, ::1] values = output     # not by a conditional expression, which Cython 3.1 counts wrongly
    if kind == SILU or kind == GELU:
        values = before
    if values is None:
        raise ValueError("the derivative of silu and gelu needs the values before them, of the others those after them")
    check_same("before" if kind == SILU or kind == GELU else "output", values, grad_output)
    check_same("out", out, grad_output)
    cdef const real* v = &values[0, 0]
    with nogil:
        if thread < 0:
            derivative_loops(kind, &grad_output[0, 0], v, v, &out[0, 0], grad_output.shape[0], grad_output.shape[1],
                             threads)
        else:
            derivative_share(kind, &grad_output[0, 0], v, v, &out[0, 0], grad_output.shape[0], grad_output.shape[1],
                             thread, threads)


cdef int check_labels(const int64_t[::1] labels, Py_ssize_t rows, Py_ssize_t columns) except -1:
    cdef Py_ssize_t r
    check_length("labels", labels.shape[0], rows)
    for r in range(rows):
        if not 0 <= labels[r] < max(columns, 2 if columns == 1 else 0):
            raise ValueError(f"labels has {labels[r]} at {r}, where there are {columns} columns")
    return 0


def squared_error(const real[:, ::1] output, const real[:, ::1] target, double scale, real[:, ::1] out):
    """The sum of (output - target)^2 / 2. out = scale (output - target), and can be output or target."""
    check_same("target", target, output)
    check_same("out", out, output)
    cdef double total
    with nogil:
        total = squared_error_loop(&output[0, 0], &target[0, 0], scale, &out[0, 0], output.shape[0], output.shape[1])
    return total


def huber(const real[:, ::1] output, const real[:, ::1] target, double scale, real[:, ::1] out):
    """The sum of d^2 / 2 where abs(d) <= 1 and of abs(d) - 1/2 elsewhere, d = output - target.
    out = scale clip(d, -1, 1), and can be output or target."""
    check_same("target", target, output)
    check_same("out", out, output)
    cdef double total
    with nogil:
        total = huber_loop(&output[0, 0], &target[0, 0], scale, &out[0, 0], output.shape[0], output.shape[1])
    return total


def hinge(const real[:, ::1] scores, const int64_t[::1] labels, double scale, real[:, ::1] out):
    """The sum of max(0, 1 - z), z = sign score, where sign is 1 for the label's column and -1 for the others; one
    column is that of label 1. out = -scale sign where z <= 1, else 0, and can be scores."""
    check_same("out", out, scores)
    check_labels(labels, scores.shape[0], scores.shape[1])
    cdef double total
    with nogil:
        total = hinge_loop(&scores[0, 0], &labels[0], scale, &out[0, 0], scores.shape[0], scores.shape[1])
    return total


def log_loss(const real[:, ::1] scores, const int64_t[::1] labels, double scale, real[:, ::1] out):
    """The sum of -log p(label) over the rows. One column is the score of label 1 against label 0, p(1) = 1 / (1 +
    exp(-score)); of several, p = softmax(scores). out = scale (p - [the label's column]), and can be scores."""
    check_same("out", out, scores)
    check_labels(labels, scores.shape[0], scores.shape[1])
    cdef double total
    with nogil:
        total = log_loss_loop(&scores[0, 0], &labels[0], scale, &out[0, 0], scores.shape[0], scores.shape[1])
    return total


def sgd(const real[::1] gradient, double lr, double momentum, bint nesterov, double weight_decay, real[::1] parameter,
        real[::1] buffer, int threads=1, int thread=-1):
    """g = gradient + weight_decay parameter; buffer = momentum buffer + g, and then g = buffer, or with nesterov
    g += momentum buffer; parameter -= lr g. parameter and buffer are changed in place; buffer can be None."""
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


def adagrad(const real[::1] gradient, double lr, real[::1] squares, real[::1] parameter):
    """squares += gradient^2, then parameter -= lr gradient / (sqrt(squares) + 1e-10), both in place."""
    check_length("squares", squares.shape[0], gradient.shape[0])
    check_length("parameter", parameter.shape[0], gradient.shape[0])
    with nogil:
        adagrad_loop(&gradient[0], lr, &squares[0], &parameter[0], gradient.shape[0])


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
                <number_loss> squared_error_loop[float], <number_loss> huber_loop[float],
                <label_loss> hinge_loop[float], <label_loss> log_loss_loop[float],
                <sgd_kernel> sgd_loops[float], <adam_kernel> adam_loops[float], <squares_kernel> squares_loop[float],
                <scale_kernel> scale_loop[float], <adagrad_kernel> adagrad_loop[float],
                <learn_rows_kernel> learn_rows_loop[float]),
    Elementwise(<activate_kernel> activate_loops[double], <derivative_kernel> derivative_loops[double],
                <number_loss> squared_error_loop[double], <number_loss> huber_loop[double],
                <label_loss> hinge_loop[double], <label_loss> log_loss_loop[double],
                <sgd_kernel> sgd_loops[double], <adam_kernel> adam_loops[double], <squares_kernel> squares_loop[double],
                <scale_kernel> scale_loop[double], <adagrad_kernel> adagrad_loop[double],
                <learn_rows_kernel> learn_rows_loop[double]))
table = PyCapsule_New(&elementwise_table, "fastlinear.ElementwiseTable", NULL)
