# The builds of _kernels.pyx and _elementwise.pyx hand out their functions as C functions, in a table for each dtype.
# All arrays are of that dtype, C-contiguous and aligned. The arguments are those of the Python function of the same
# name, then the sizes that a memoryview has, and then scratch: `threads` times SCRATCH_BYTES that begin on a cache line
# and that nobody else uses meanwhile.

from libc.stdint cimport int64_t

cdef enum:
    SCRATCH_BYTES = 1 << 20

ctypedef void (*forward_kernel)(const void* x, const void* weight, const void* bias, void* out, Py_ssize_t batch,
                                Py_ssize_t in_features, Py_ssize_t out_features, int threads,
                                char* scratch) noexcept nogil
ctypedef void (*grad_input_kernel)(const void* grad_output, const void* weight, void* out, Py_ssize_t batch,
                                   Py_ssize_t in_features, Py_ssize_t out_features, int threads,
                                   char* scratch) noexcept nogil
ctypedef void (*grad_weight_kernel)(const void* x, const void* grad_output, double scale, void* out, Py_ssize_t batch,
                                    Py_ssize_t in_features, Py_ssize_t out_features, int threads,
                                    char* scratch) noexcept nogil
ctypedef void (*grad_bias_kernel)(const void* grad_output, double scale, void* out, Py_ssize_t batch,
                                  Py_ssize_t out_features) noexcept nogil
ctypedef void (*update_kernel)(const void* x, const void* grad_output, double lr, void* weight, void* bias, void* out,
                               Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads,
                               char* scratch) noexcept nogil
ctypedef void (*step_kernel)(const void* gradient, double lr, void* parameter, Py_ssize_t size) noexcept nogil

cdef struct Kernels:
    forward_kernel forward
    grad_input_kernel grad_input
    grad_weight_kernel grad_weight
    grad_bias_kernel grad_bias
    update_kernel update
    step_kernel step

cdef struct KernelTable:
    Kernels of_float
    Kernels of_double


cdef enum Activation:
    # Places in reference.ACTIVATIONS.
    IDENTITY, RELU, LEAKY_RELU, ELU, SIGMOID, TANH, SILU, GELU, SOFTMAX

cdef enum Loss:
    # As in _rows.h.
    SQUARED_ERROR, HUBER, HINGE, LOG_LOSS

ctypedef void (*activate_kernel)(int kind, const void* x, void* out, Py_ssize_t rows, Py_ssize_t columns,
                                 int threads) noexcept nogil
# output or before can be NULL if that kind does not use it.
ctypedef void (*derivative_kernel)(int kind, const void* grad_output, const void* output, const void* before, void* out,
                                   Py_ssize_t rows, Py_ssize_t columns, int threads) noexcept nogil
# They return the sum of the losses of the rows. out can be output, scores or target.
ctypedef double (*number_loss)(const void* output, const void* target, double scale, void* out, Py_ssize_t rows,
                               Py_ssize_t columns) noexcept nogil
ctypedef double (*label_loss)(const void* scores, const int64_t* labels, double scale, void* out, Py_ssize_t rows,
                              Py_ssize_t columns) noexcept nogil
# buffer can be NULL.
ctypedef void (*sgd_kernel)(const void* gradient, double lr, double momentum, bint nesterov, double weight_decay,
                            void* parameter, void* buffer, Py_ssize_t size, int threads) noexcept nogil
ctypedef void (*adam_kernel)(const void* gradient, double rate, double beta1, double beta2, double correction,
                             double eps, double weight_decay, double decay, void* parameter, void* mean, void* square,
                             Py_ssize_t size, int threads) noexcept nogil
ctypedef double (*squares_kernel)(const void* array, Py_ssize_t size) noexcept nogil
ctypedef void (*scale_kernel)(double factor, void* array, Py_ssize_t size) noexcept nogil

ctypedef void (*adagrad_kernel)(const void* gradient, double lr, void* squares, void* parameter,
                                Py_ssize_t size) noexcept nogil
# y has labels, int64_t, or reals; room is for whole vectors of the weight. Returns sum and the losses. See _rows.h.
ctypedef double (*learn_rows_kernel)(int loss, const void* x, Py_ssize_t x_row, const Py_ssize_t* order, const void* y,
                                     const void* sample_weight, const double* lr, Py_ssize_t lr_step, double l2,
                                     void* weight, void* bias, Py_ssize_t rows, Py_ssize_t features, void* room,
                                     double sum) noexcept nogil

cdef struct Elementwise:
    activate_kernel activate
    derivative_kernel derivative
    number_loss squared_error
    number_loss huber
    label_loss hinge
    label_loss log_loss
    sgd_kernel sgd
    adam_kernel adam
    squares_kernel squares
    scale_kernel scale
    adagrad_kernel adagrad
    learn_rows_kernel learn_rows

cdef struct ElementwiseTable:
    Elementwise of_float
    Elementwise of_double
