# What a build of _kernels.pyx hands to Layer: its kernels as C functions. `wide` says that the arrays are of
# double, not float; all are C-contiguous and aligned; the arguments are those of the Python function of that name.

cdef struct KernelTable:
    void (*forward)(bint wide, const void* x, const void* weight, const void* bias, void* out,
                    Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil
    void (*grad_input)(bint wide, const void* grad_output, const void* weight, void* out,
                       Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil
    void (*grad_weight)(bint wide, const void* x, const void* grad_output, double scale, void* out,
                        Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil
    void (*grad_bias)(bint wide, const void* grad_output, double scale, void* out,
                      Py_ssize_t batch, Py_ssize_t out_features) noexcept nogil
    void (*update)(bint wide, const void* x, const void* grad_output, double lr, void* weight, void* bias, void* out,
                   Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil
    void (*step)(bint wide, const void* gradient, double lr, void* parameter, Py_ssize_t size) noexcept nogil
