# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=True, embedsignature=False
# cython: freethreading_compatible=False
"""The compiled base of Linear: a layer's memory, and the short way from a call to a kernel.

A contiguous, aligned ndarray of the layer's dtype is checked through NumPy's C API and handed to the kernel as a
pointer: no Python code, no buffer acquisition, no allocation but the result. Anything else goes to the method of the
subclass that has the same name with a leading underscore (linear.py): it raises, or converts the arguments and calls
back with arrays that pass here.
"""
cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.float cimport FLT_MAX
from libc.math cimport fabs, isinf

from fastlinear._table cimport KernelTable

cnp.import_array()

cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass
    PyThreadState* PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState*)

cdef extern from "numpy/arrayobject.h":
    bint PyArray_CheckExact(object)
    bint PyArray_ISCARRAY(cnp.ndarray)
    bint PyArray_ISCARRAY_RO(cnp.ndarray)
    object PyArray_EMPTY(int, cnp.npy_intp*, int, int)
    enum:
        NPY_MAXDIMS

cdef extern from "_machine.h" nogil:
    int HAS_OPENMP
    const char* COMPILER
    const char* FASTLINEAR_FLAGS
    int omp_get_max_threads()
    int cpu_supports(const char*)

has_openmp = bool(HAS_OPENMP)
compiler = COMPILER.decode()
flags = FASTLINEAR_FLAGS.decode()


def supports(str feature):
    """Whether the processor has a feature (GCC's name) and the operating system saves its registers."""
    return bool(cpu_supports(feature.encode()))


# ---- which kernels, and how many threads: one setting for the process

cdef object kernels = None              # the module: a build of _kernels.pyx, or reference.py
cdef KernelTable* table = NULL          # its C functions; NULL for the reference
cdef int threads_wanted = 1
cdef int openmp_threads_then = 1        # OpenMP's own limit when threads_wanted was set
cdef bint forked = False


def use_kernels(module):
    """Make every layer run on this module: a build of _kernels.pyx, or reference.py."""
    global kernels, table
    capsule = getattr(module, "table", None)
    table = NULL if capsule is None else <KernelTable*> PyCapsule_GetPointer(capsule, "fastlinear.KernelTable")
    kernels = module


def set_threads(int n):
    global threads_wanted, openmp_threads_then
    openmp_threads_then = omp_get_max_threads()
    threads_wanted = n


def openmp_threads():
    """OpenMP's own limit at this moment; 1 without OpenMP."""
    return omp_get_max_threads()


def get_threads():
    return threads_now()


def after_fork_in_child():
    """libgomp hangs in a child that was forked after a parallel region, so the child runs on one thread."""
    global forked
    forked = True


cdef inline int threads_now() noexcept nogil:
    # Who changes OpenMP's limit later (threadpoolctl, omp_set_num_threads) is obeyed.
    cdef int limit = omp_get_max_threads()
    if forked or not HAS_OPENMP:
        return 1
    return limit if limit != openmp_threads_then and limit < threads_wanted else threads_wanted


cdef enum:
    # In multiply-adds. Below, the price of releasing the GIL (50 ns) or of waking a thread (some µs) is not earned.
    WORTH_RELEASING = 1 << 17
    WORTH_A_THREAD = 1 << 19


cdef struct Work:
    int threads
    PyThreadState* state


cdef inline Work begin(Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features) noexcept:
    """Decide on threads for that many multiply-adds, and release the GIL if they outlast its price."""
    cdef double size = <double> batch * in_features * out_features
    cdef Work work = Work(1, NULL)
    if size >= WORTH_RELEASING:
        if size >= 2 * WORTH_A_THREAD:
            work.threads = <int> min(<double> threads_now(), size / WORTH_A_THREAD)
        work.state = PyEval_SaveThread()
    return work


cdef inline void end(Work work) noexcept:
    if work.state != NULL:
        PyEval_RestoreThread(work.state)


# ---- looking at arrays

cdef inline Py_ssize_t rows_of(cnp.ndarray a) noexcept:
    """How many rows there are before the last axis."""
    cdef Py_ssize_t rows = 1
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a) - 1):
        rows *= cnp.PyArray_DIMS(a)[axis]
    return rows


cdef inline bint like(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether all axes but the last agree."""
    cdef int axis
    if cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a) - 1):
        if cnp.PyArray_DIMS(a)[axis] != cnp.PyArray_DIMS(b)[axis]:
            return False
    return True


cdef struct Span:
    char* begin
    char* end


cdef inline Span whole(cnp.ndarray a) noexcept:
    """The bytes of a contiguous array; none of None."""
    if a is None:
        return Span(NULL, NULL)
    return Span(<char*> cnp.PyArray_DATA(a), <char*> cnp.PyArray_DATA(a) + cnp.PyArray_NBYTES(a))


cdef inline bint apart(Span a, Span b) noexcept:
    """Whether two spans share no byte."""
    return a.end <= b.begin or b.end <= a.begin


cdef class Layer:
    """The compiled base of Linear; see there."""

    cdef readonly Py_ssize_t in_features
    cdef readonly Py_ssize_t out_features
    cdef readonly object dtype
    cdef cnp.ndarray _weight, _bias, _grad_weight, _grad_bias
    cdef Span w, b, grad_w, grad_b      # their bytes, so that a call need not ask for them
    cdef Py_ssize_t itemsize
    cdef int typenum
    cdef bint wide
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self.typenum = cnp.NPY_NOTYPE       # no array passes until there is memory

    def _bind(self, weight, bias, grad_weight=None, grad_bias=None):
        """Take these C-contiguous, aligned, writable arrays, of one dtype and fitting shapes, as the layer's memory.

        For life: a call that has released the GIL reads it wherever it is.
        """
        if self._weight is not None:
            raise RuntimeError(f"{self!r} has its parameters and keeps them; make another layer")
        # The views keep anyone from resizing memory that kernels write to.
        self._weight = weight.view()
        self._bias = None if bias is None else bias.view()
        self._grad_weight = None if grad_weight is None else grad_weight.view()
        self._grad_bias = None if grad_bias is None else grad_bias.view()
        self.dtype = weight.dtype
        self.out_features, self.in_features = weight.shape
        self.w, self.b = whole(self._weight), whole(self._bias)
        self.grad_w, self.grad_b = whole(self._grad_weight), whole(self._grad_bias)
        self.itemsize = weight.itemsize
        self.wide = self.itemsize == 8
        self.typenum = cnp.PyArray_TYPE(self._weight)

    cdef inline bint reads(self, x, Py_ssize_t features) noexcept:
        """Whether a kernel can read x as it is: an ndarray of the layer's dtype, contiguous, of that many features."""
        return (PyArray_CheckExact(x) and cnp.PyArray_TYPE(<cnp.ndarray> x) == self.typenum
                and PyArray_ISCARRAY_RO(<cnp.ndarray> x) and cnp.PyArray_NDIM(<cnp.ndarray> x) > 0
                and cnp.PyArray_DIMS(<cnp.ndarray> x)[cnp.PyArray_NDIM(<cnp.ndarray> x) - 1] == features)

    cdef inline bint writes(self, out, Py_ssize_t features) noexcept:
        return self.reads(out, features) and PyArray_ISCARRAY(<cnp.ndarray> out)

    cdef inline Span bytes(self, cnp.ndarray a, Py_ssize_t rows, Py_ssize_t features) noexcept:
        """The bytes of an array that reads() let pass."""
        cdef char* begin = <char*> cnp.PyArray_DATA(a)
        return Span(begin, begin + rows * features * self.itemsize)

    cdef inline bint apart_from_parameters(self, Span a) noexcept:
        return apart(a, self.w) and apart(a, self.b)

    cdef inline bint apart_from_gradients(self, Span a) noexcept:
        return apart(a, self.grad_w) and apart(a, self.grad_b)

    cdef inline cnp.ndarray empty(self, cnp.ndarray x, Py_ssize_t features):
        """A new array of x's shape, but for the last axis."""
        cdef cnp.npy_intp shape[NPY_MAXDIMS]
        cdef int axis, last = cnp.PyArray_NDIM(x) - 1
        for axis in range(last):
            shape[axis] = cnp.PyArray_DIMS(x)[axis]
        shape[last] = features
        return PyArray_EMPTY(last + 1, shape, self.typenum, 0)

    cdef inline double number(self, str name, value) except? -1:
        """value as a double that the layer's dtype can hold."""
        cdef double d = value if isinstance(value, float) else self._number(name, value)
        if not self.wide and fabs(d) > FLT_MAX and not isinf(d):
            raise ValueError(f"{self!r}: {name} must fit float32, got {value!r}")
        return d

    cdef int own_gradients(self) except -1:
        """Make the gradients, zero, unless they are there."""
        if self._grad_weight is None:
            if self._weight is None:
                raise RuntimeError(f"{type(self).__name__} has no parameters yet: its __init__ was not called")
            weight = self._zeros((self.out_features, self.in_features))
            bias = None if self._bias is None else self._zeros((self.out_features,))
            self._grad_weight, self._grad_bias = weight, bias
            self.grad_w, self.grad_b = whole(weight), whole(bias)
        return 0

    # ---- the memory

    @property
    def weight(self):
        """The weights W, an ndarray (out_features, in_features), C-contiguous, which is the layer's own memory.

        Writing into it changes the layer; assigning checks shape and dtype and copies the values in.

        >>> layer = Linear(3, 2, rng=0)
        >>> layer.weight[:, 0] = 0
        >>> layer.weight = np.ones((2, 3), np.float32)
        """
        return self._weight

    @weight.setter
    def weight(self, value):
        self._assign("weight", self._weight, value)

    @property
    def bias(self):
        """The bias b, an ndarray (out_features,), or None. Else as weight."""
        return self._bias

    @bias.setter
    def bias(self, value):
        self._assign("bias", self._bias, value)

    @property
    def grad_weight(self):
        """The gradient of weight, an ndarray (out_features, in_features), C-contiguous; backward accumulates into it.

        Made, and zero, when first used: a layer that only runs forward has none.
        """
        self.own_gradients()
        return self._grad_weight

    @grad_weight.setter
    def grad_weight(self, value):
        self.own_gradients()
        self._assign("grad_weight", self._grad_weight, value)

    @property
    def grad_bias(self):
        """The gradient of bias, an ndarray (out_features,), or None for a layer without bias. Else as grad_weight."""
        self.own_gradients()
        return self._grad_bias

    @grad_bias.setter
    def grad_bias(self, value):
        self.own_gradients()
        self._assign("grad_bias", self._grad_bias, value)

    def _memory(self):
        """weight, bias, grad_weight, grad_bias, as they are: None for what the layer does not have (yet)."""
        return self._weight, self._bias, self._grad_weight, self._grad_bias

    def _write(self, arrays, values):
        """Copy values into arrays of their shape, one after another. Ctrl-C and other signals come before or after
        all of it, for only bytecode is interrupted."""
        for array, value in zip(arrays, values):
            array[...] = value

    # ---- forward

    def __call__(self, x, out=None):
        return self.run_forward(x, out)

    def forward(self, x, out=None):
        """y = x Wᵀ + b for every row of x (Torch7: forward, updateOutput; BLAS: gemm, gemv). ``layer(x)`` is the same.

        x: (..., in_features). out: (..., out_features), overwritten, may overlap anything; made new if None.
        Returns out. Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]], [10, 20])
        >>> x, y = np.ones((5, 3), np.float32), np.empty((5, 2), np.float32)
        >>> layer.forward(x, out=y) is y
        True
        >>> y[0]
        array([16., 35.], dtype=float32)
        """
        return self.run_forward(x, out)

    cdef inline run_forward(self, x, out):
        cdef cnp.ndarray y
        cdef Work work
        cdef Span target
        cdef Py_ssize_t rows
        if not self.reads(x, self.in_features):
            return self._forward(x, out)
        rows = rows_of(x)
        if out is None:
            y = self.empty(x, self.out_features)
        else:
            if not (self.writes(out, self.out_features) and like(x, out)):
                return self._forward(x, out)
            target = self.bytes(out, rows, self.out_features)
            if not (apart(target, self.bytes(x, rows, self.in_features)) and self.apart_from_parameters(target)):
                return self._forward(x, out)
            y = out
        if table == NULL:
            kernels.forward(x.reshape(rows, self.in_features), self._weight, self._bias,
                            y.reshape(rows, self.out_features))
            return y
        work = begin(rows, self.in_features, self.out_features)
        table.forward(self.wide, cnp.PyArray_DATA(x), self.w.begin, self.b.begin, cnp.PyArray_DATA(y),
                      rows, self.in_features, self.out_features, work.threads)
        end(work)
        return y

    # ---- backward

    def backward(self, x, grad_output, out=None, scale=1.0, input_grad=True):
        """backward_params and backward_input in one call (Torch7: backward).

        x: (..., in_features), grad_output: (..., out_features), with the same leading axes. grad_weight and grad_bias
        are accumulated, with grad_output times scale; grad_input is not scaled. It overwrites out (..., in_features),
        or a new array if None. Returns grad_input, or None with input_grad=False.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]])
        >>> layer.backward([1, 0, 2], [1, -1])
        array([-3., -3., -3.], dtype=float32)
        >>> layer.grad_weight
        array([[ 1.,  0.,  2.],
               [-1.,  0., -2.]], dtype=float32)
        """
        return self.run_backward(x, grad_output, out, self.number("scale", scale), input_grad)

    def backward_params(self, x, grad_output, scale=1.0):
        """grad_weight += scale · grad_outputᵀ x and grad_bias += scale · Σ grad_output (Torch7: accGradParameters;
        BLAS: gemm, ger).

        x: (..., in_features), grad_output: (..., out_features), with the same leading axes. The rows are added one
        after another, grad_output times scale first. Both gradients are accumulated. Returns None.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear(3, 2)
        >>> layer.backward_params([1, 0, 2], [1, -1])
        >>> layer.backward_params([1, 0, 2], [1, -1], scale=10)
        >>> layer.grad_bias
        array([ 11., -11.], dtype=float32)
        """
        self.run_backward(x, grad_output, None, self.number("scale", scale), False)

    cdef inline run_backward(self, x, grad_output, out, double scale, bint input_grad):
        cdef cnp.ndarray gx = None
        cdef Work work
        cdef Py_ssize_t rows
        if not (self.reads(x, self.in_features) and self.reads(grad_output, self.out_features)):
            return self._backward(x, grad_output, out, scale, input_grad)
        rows = rows_of(x)
        if not (self.pair(x, grad_output, rows, False) and self.takes(out, x, grad_output, rows, input_grad)):
            return self._backward(x, grad_output, out, scale, input_grad)
        self.own_gradients()
        self.check_writable(self._grad_weight, self._grad_bias)
        if input_grad:
            gx = self.empty(x, self.in_features) if out is None else out
        if table == NULL:
            x, grad_output = x.reshape(rows, self.in_features), grad_output.reshape(rows, self.out_features)
            if input_grad:
                kernels.grad_input(grad_output, self._weight, gx.reshape(rows, self.in_features))
            kernels.grad_weight(x, grad_output, scale, self._grad_weight)
            if self._bias is not None:
                kernels.grad_bias(grad_output, scale, self._grad_bias)
            return gx
        work = begin(rows, self.in_features, self.out_features)
        if input_grad:
            table.grad_input(self.wide, cnp.PyArray_DATA(grad_output), self.w.begin, cnp.PyArray_DATA(gx),
                             rows, self.in_features, self.out_features, work.threads)
        table.grad_weight(self.wide, cnp.PyArray_DATA(x), cnp.PyArray_DATA(grad_output), scale, self.grad_w.begin,
                          rows, self.in_features, self.out_features, work.threads)
        if self._bias is not None:
            table.grad_bias(self.wide, cnp.PyArray_DATA(grad_output), scale, self.grad_b.begin, rows, self.out_features)
        end(work)
        return gx

    def backward_input(self, grad_output, out=None):
        """grad_input = grad_output W (Torch7: updateGradInput; BLAS: gemm, gemv transposed).

        grad_output: (..., out_features). out: (..., in_features), overwritten; made new if None. Returns out.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]])
        >>> layer.backward_input([1, 1])
        array([5., 7., 9.], dtype=float32)
        """
        cdef cnp.ndarray gx
        cdef Work work
        cdef Py_ssize_t rows
        if not self.reads(grad_output, self.out_features):
            return self._backward_input(grad_output, out)
        rows = rows_of(grad_output)
        if not self.takes(out, None, grad_output, rows, True):
            return self._backward_input(grad_output, out)
        gx = self.empty(grad_output, self.in_features) if out is None else out
        if table == NULL:
            kernels.grad_input(grad_output.reshape(rows, self.out_features), self._weight,
                               gx.reshape(rows, self.in_features))
            return gx
        work = begin(rows, self.in_features, self.out_features)
        table.grad_input(self.wide, cnp.PyArray_DATA(grad_output), self.w.begin, cnp.PyArray_DATA(gx),
                         rows, self.in_features, self.out_features, work.threads)
        end(work)
        return gx

    def backward_update(self, x, grad_output, lr, out=None, input_grad=True):
        """grad_input, and the plain SGD step W −= lr · grad_outputᵀ x, b −= lr · Σ grad_output, in one pass over W
        (Torch7: updateGradInput, then accUpdateGradParameters).

        x: (..., in_features), grad_output: (..., out_features), with the same leading axes. No gradient buffer is
        touched or needed. grad_input comes from the weights as they were before the step; it overwrites out
        (..., in_features), or a new array if None. Returns grad_input, or None with input_grad=False.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]])
        >>> layer.backward_update([1, 0, 2], [1, -1], lr=0.5)
        array([-3., -3., -3.], dtype=float32)
        >>> layer.weight
        array([[0.5, 2. , 2. ],
               [4.5, 5. , 7. ]], dtype=float32)
        """
        cdef double rate = self.number("lr", lr)
        cdef cnp.ndarray gx = None
        cdef Work work
        cdef Py_ssize_t rows
        if not (self.reads(x, self.in_features) and self.reads(grad_output, self.out_features)):
            return self._backward_update(x, grad_output, lr, out, input_grad)
        rows = rows_of(x)
        if not (self.pair(x, grad_output, rows, True) and self.takes(out, x, grad_output, rows, input_grad)):
            return self._backward_update(x, grad_output, lr, out, input_grad)
        self.check_writable(self._weight, self._bias)
        if input_grad:
            gx = self.empty(x, self.in_features) if out is None else out
        if table == NULL:
            kernels.update(x.reshape(rows, self.in_features), grad_output.reshape(rows, self.out_features), rate,
                           self._weight, self._bias, None if gx is None else gx.reshape(rows, self.in_features))
            return gx
        work = begin(rows, self.in_features, self.out_features)
        table.update(self.wide, cnp.PyArray_DATA(x), cnp.PyArray_DATA(grad_output), rate, self.w.begin, self.b.begin,
                     NULL if gx is None else cnp.PyArray_DATA(gx), rows, self.in_features, self.out_features,
                     work.threads)
        end(work)
        return gx

    cdef inline bint pair(self, cnp.ndarray x, cnp.ndarray grad_output, Py_ssize_t rows, bint update) noexcept:
        """Whether x and grad_output have the same leading axes and lie apart from what the pass writes to."""
        cdef Span a = self.bytes(x, rows, self.in_features), b = self.bytes(grad_output, rows, self.out_features)
        if not like(x, grad_output):
            return False
        if update:
            return self.apart_from_parameters(a) and self.apart_from_parameters(b)
        return self.apart_from_gradients(a) and self.apart_from_gradients(b)

    cdef inline bint takes(self, out, cnp.ndarray x, cnp.ndarray grad_output, Py_ssize_t rows,
                           bint input_grad) noexcept:
        """Whether a kernel can write grad_input into out as it is. x may be None."""
        cdef Span target
        if out is None:
            return True
        if not (input_grad and self.writes(out, self.in_features) and like(out, grad_output)):
            return False
        target = self.bytes(out, rows, self.in_features)
        return (apart(target, self.bytes(grad_output, rows, self.out_features))
                and (x is None or apart(target, self.bytes(x, rows, self.in_features)))
                and self.apart_from_parameters(target) and self.apart_from_gradients(target))

    # ---- the parameters

    def step(self, lr):
        """weight −= lr · grad_weight, bias −= lr · grad_bias (Torch7: updateParameters; BLAS: axpy). Returns None.

        The gradients stay as they are; zero_grad begins the next ones.

        >>> layer = Linear.from_weights([[1, 2, 3]], [0])
        >>> layer.backward_params([1, 0, 2], [1])
        >>> layer.step(0.5)
        >>> layer.weight, layer.bias
        (array([[0.5, 2. , 2. ]], dtype=float32), array([-0.5], dtype=float32))
        """
        cdef double rate = self.number("lr", lr)
        cdef Work work
        self.own_gradients()
        self.check_writable(self._weight, self._bias)
        if table == NULL:
            kernels.step(self._grad_weight.reshape(-1), rate, self._weight.reshape(-1))
            if self._bias is not None:
                kernels.step(self._grad_bias, rate, self._bias)
            return
        work = begin(1, self.in_features, self.out_features)
        table.step(self.wide, self.grad_w.begin, rate, self.w.begin, self.in_features * self.out_features)
        if self._bias is not None:
            table.step(self.wide, self.grad_b.begin, rate, self.b.begin, self.out_features)
        end(work)

    cdef inline int check_writable(self, cnp.ndarray weight, cnp.ndarray bias) except -1:
        """An owner may have frozen a parameter: layer.weight.flags.writeable = False."""
        if not cnp.PyArray_ISWRITEABLE(weight) or (bias is not None and not cnp.PyArray_ISWRITEABLE(bias)):
            raise ValueError(f"{self!r}: its memory was made read-only (flags.writeable = False), so it cannot change")
        return 0
