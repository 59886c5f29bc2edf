# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""The compiled base of Linear: a layer's memory, and the way from a call to a kernel.

Every call goes the same way. Everything that can run Python code comes first: numbers, truth values, conversions,
allocation. Then one look at the arrays, through NumPy's C API, tells whether a kernel can work on them as they are.
From there to the kernel no Python code runs, so the kernel finds what was seen. Arguments that do not pass the look are
converted and looked at again, or refused.

Methods are plain descriptors (binding=False), because these check that self is a Layer.
"""
cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF, Py_XINCREF
from libc.float cimport FLT_MAX
from libc.math cimport fabs, isinf
from libc.string cimport memmove, memset

from fastlinear._table cimport SCRATCH_BYTES, SOFTMAX, Elementwise, ElementwiseTable, Kernels, KernelTable

cnp.import_array()

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    PyThreadState* PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState*)
    ctypedef struct PyTypeObject:
        object (*tp_call)(object, tuple, dict)
        Py_ssize_t tp_vectorcall_offset
        unsigned long tp_flags
    const unsigned long Py_TPFLAGS_HAVE_VECTORCALL
    const int PY_VERSION_HEX
    PyTypeObject* Py_TYPE(object)
    Py_ssize_t PyVectorcall_NARGS(size_t)
    int Py_EnterRecursiveCall(const char*) except *
    void Py_LeaveRecursiveCall()

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject_fields:
        PyObject* mem_handler
    bint PyDataType_REFCHK(cnp.dtype)
    int PyArray_FailUnlessWriteable(cnp.ndarray, const char*) except -1
    object PyArray_EMPTY(int, cnp.npy_intp*, int, int)
    object PyArray_FromArray(cnp.ndarray, cnp.dtype, int)
    object PyArray_NewFromDescr(type, cnp.dtype, int, cnp.npy_intp*, cnp.npy_intp*, void*, int, PyObject*)
    bint PyArray_CanCastTypeTo(cnp.dtype, cnp.dtype, cnp.NPY_CASTING)
    enum:
        NPY_MAXDIMS

cdef extern from "_machine.h" nogil:
    int HAS_OPENMP
    const char* COMPILER
    const char* FASTLINEAR_FLAGS
    int omp_get_max_threads()
    int cpu_supports(const char*)

cdef extern from "_scratch.h" nogil:
    char* thread_scratch(size_t)

cdef extern from "_threads.h" nogil:
    int omp_get_thread_limit()
    int startable_threads(int wanted, size_t stack_size)

has_openmp = bool(HAS_OPENMP)
compiler = COMPILER.decode()
flags = FASTLINEAR_FLAGS.decode()


def supports(str feature):
    """Whether the processor has a feature (GCC's name) and the operating system saves its registers."""
    return bool(cpu_supports(feature.encode()))


# ---- which kernels, and how many threads: one setting for the process, read without a lock

cdef object kernels = None              # the module: a build of _kernels.pyx, or reference.py
cdef object elementwise = None          # the module: a build of _elementwise.pyx, or reference.py
cdef list modules_ever_used = []        # so that none is freed while another thread reads `kernels`
cdef void* kernel_table = NULL          # their C functions; NULL for the reference
cdef void* elementwise_table = NULL
cdef int threads_wanted = 1
cdef int openmp_threads_then = 1        # OpenMP's own limit when threads_wanted was set
cdef int forked = False
cdef size_t thread_stack_size = 0       # of OpenMP's threads; 0 is the system's default


def use_kernels(module, elementwise_module):
    """Make everything run on these modules: builds of _kernels.pyx and _elementwise.pyx, or reference.py twice."""
    global kernels, elementwise
    modules_ever_used.append((module, elementwise_module))
    kernels, elementwise = module, elementwise_module
    store_pointer(&kernel_table, table_of(module, "fastlinear.KernelTable"))
    store_pointer(&elementwise_table, table_of(elementwise_module, "fastlinear.ElementwiseTable"))


cdef void* table_of(module, const char* name) except? NULL:
    """The C functions of a module; NULL for the reference, which has none."""
    capsule = getattr(module, "table", None)
    return NULL if capsule is None else PyCapsule_GetPointer(capsule, name)


def set_threads(int n):
    store_int(&openmp_threads_then, omp_get_max_threads())
    store_int(&threads_wanted, n)


def set_thread_stack_size(size_t n):
    """Say how many bytes of stack OpenMP gives a thread; 0 for the system's default."""
    global thread_stack_size
    thread_stack_size = n


def openmp_threads():
    """OpenMP's own limit at this moment; 1 without OpenMP."""
    return omp_get_max_threads()


def get_threads():
    return threads_now()


def after_fork_in_child():
    """libgomp hangs in a child that was forked after a parallel region, so the child runs on one thread."""
    store_int(&forked, True)


cdef inline int threads_now() noexcept nogil:
    # A limit that is set later (threadpoolctl, omp_set_num_threads) is obeyed, and so is OMP_THREAD_LIMIT.
    cdef int limit = omp_get_max_threads(), wanted = load_int(&threads_wanted)
    if load_int(&forked) or not HAS_OPENMP:
        return 1
    if limit != load_int(&openmp_threads_then) and limit < wanted:
        wanted = limit
    return min(wanted, omp_get_thread_limit())


cdef Kernels* kernels_of(bint is_double) noexcept:
    """The kernels in use now, for float64 or float32; NULL for the reference."""
    cdef KernelTable* both = <KernelTable*> load_pointer(&kernel_table)
    if both == NULL:
        return NULL
    return &both.of_double if is_double else &both.of_float


cdef Elementwise* elementwise_of(bint is_double) noexcept:
    """The same for what is done to every element."""
    cdef ElementwiseTable* both = <ElementwiseTable*> load_pointer(&elementwise_table)
    if both == NULL:
        return NULL
    return &both.of_double if is_double else &both.of_float


cdef object kernel_module():
    """The module of the kernels in use now, which is reference.py where kernels_of() is NULL."""
    return kernels


cdef object elementwise_module():
    """The same for what is done to every element."""
    return elementwise


cdef void release_gil(Work* work, double size) noexcept:
    """Let other Python threads run during `size` multiply-adds, if these take longer than releasing the GIL does."""
    work.threads = 1
    work.state = PyEval_SaveThread() if size >= WORTH_RELEASING else NULL


cdef int begin(Work* work, double size, size_t more) except -1:
    """Get what kernels need for `size` multiply-adds, and release the GIL if these take longer than that does.

    The caller itself gets `more` bytes of scratch for each thread; they lie after the kernels' own, which are threads
    times SCRATCH_BYTES. No Python code runs, because the arrays have been looked at. If there is no memory, this raises
    before anything is written.
    """
    release_gil(work, size)
    if size >= 2 * WORTH_A_THREAD:
        work.threads = <int> min(<double> threads_now(), size / WORTH_A_THREAD)
    # This comes before the threads are tried: the memory that they find free must still be free when OpenMP makes them.
    work.scratch = thread_scratch(work.threads * (SCRATCH_BYTES + more))
    if work.scratch == NULL:
        work.threads = 1
        work.scratch = thread_scratch(SCRATCH_BYTES + more)
    if work.scratch == NULL:
        end(work)
        raise MemoryError(f"no memory for the scratch of a thread, {SCRATCH_BYTES + more} bytes")
    if work.threads > 1:
        work.threads = startable_threads(work.threads, thread_stack_size)
    return 0


cdef void end(Work* work) noexcept:
    if work.state != NULL:
        PyEval_RestoreThread(work.state)


# ---- looking at arrays

cdef tuple tuple_of(const cnp.npy_intp* numbers, int count):
    """Write no comprehension here or in another .pyx: when memory runs out, those of Cython 3.3 free an item twice."""
    cdef list found = []
    cdef int n
    for n in range(count):
        found.append(numbers[n])
    return tuple(found)


cdef tuple shape_of(cnp.ndarray a):
    return tuple_of(cnp.PyArray_DIMS(a), cnp.PyArray_NDIM(a))


cdef tuple result_shape(cnp.ndarray x, Py_ssize_t features):
    """x's shape, but for the last axis."""
    return tuple_of(cnp.PyArray_DIMS(x), cnp.PyArray_NDIM(x) - 1) + (features,)


cdef bint has_features(cnp.ndarray a, Py_ssize_t features) noexcept:
    """Whether it has so many in its last axis."""
    return cnp.PyArray_NDIM(a) > 0 and cnp.PyArray_DIMS(a)[cnp.PyArray_NDIM(a) - 1] == features


cdef cnp.dtype dtype_of(cnp.ndarray a):
    return <cnp.dtype> <PyObject*> cnp.PyArray_DESCR(a)


# ---- memory that Python can neither move, resize nor free

@cython.final
@cython.no_gc       # which also keeps the owner from gc.get_referents
cdef class Memory:
    """The base of every array on a layer's memory: holds the bytes, and has nothing by which Python could let them go.

    NumPy frees the memory of an array that owns it in `resize` and `__setstate__`, however many views there are. So no
    array that anyone can reach may own what a kernel reads. The owner here is an array that nobody else has, or an
    object that exports a buffer, which it must not move while that is held.
    """
    def __getbuffer__(self, Py_buffer* view, int flags):
        # NumPy asks for it before it lets someone set flags.writeable.
        PyBuffer_FillInfo(view, self, self.begin, self.nbytes, self.readonly, flags)

    def __dealloc__(self):
        PyBuffer_Release(&self.export)


cdef enum:
    ALIGNMENT = 64      # a cache line


cdef Memory new_memory(Py_ssize_t nbytes):
    """New memory, full of zeros, that begins on a cache line."""
    cdef Memory memory = Memory.__new__(Memory)
    cdef cnp.npy_intp size = nbytes + ALIGNMENT
    memory.owner = cnp.PyArray_ZEROS(1, &size, cnp.NPY_BYTE, 0)
    memory.begin = <void*> ((<size_t> cnp.PyArray_DATA(memory.owner) + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
    memory.nbytes = nbytes
    return memory


cdef Memory memory_of(cnp.ndarray array):
    """The object that holds the memory of an array. An array that owns it hands it over, and is a view from then on."""
    cdef object at = array
    cdef Memory memory
    while cnp.PyArray_Check(at):
        with cython.critical_section(at):
            memory = taken_over(at)
        if memory is not None:
            return memory
        if cnp.PyArray_CHKFLAGS(at, cnp.NPY_ARRAY_OWNDATA):
            raise ValueError(
                f"the memory cannot be shared: it is that of an array of {dtype_of(at)} which cannot hand it over, "
                "because it holds objects or is to be copied back (flags.writebackifcopy); make a copy")
        if cnp.PyArray_BASE(at) == NULL:
            break
        at = <object> cnp.PyArray_BASE(at)
    if isinstance(at, Memory):
        return at
    memory = Memory.__new__(Memory)
    memory.owner = at
    memory.begin, memory.nbytes = cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array)
    if PyObject_CheckBuffer(at) and not cnp.PyArray_Check(at):
        PyObject_GetBuffer(at, &memory.export, PyBUF_FULL_RO)
    return memory


cdef Memory taken_over(cnp.ndarray array):
    """The memory that an array owned until now. None if it is not the owner, or is one that cannot let go."""
    cdef Memory memory
    cdef cnp.ndarray owner
    cdef cnp.npy_intp size = cnp.PyArray_NBYTES(array)
    if (not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_OWNDATA) or cnp.PyArray_BASE(array) != NULL
            or PyDataType_REFCHK(dtype_of(array))):
        return None
    memory = Memory.__new__(Memory)
    owner = cnp.PyArray_SimpleNewFromData(1, &size, cnp.NPY_BYTE, cnp.PyArray_DATA(array))
    memory.owner, memory.begin, memory.nbytes = owner, cnp.PyArray_DATA(array), size
    cnp.set_array_base(array, memory)
    # What the array was allocated by must free it.
    (<PyArrayObject_fields*> owner).mem_handler = (<PyArrayObject_fields*> array).mem_handler
    Py_XINCREF((<PyArrayObject_fields*> owner).mem_handler)
    cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_OWNDATA)
    cnp.PyArray_ENABLEFLAGS(owner, cnp.NPY_ARRAY_OWNDATA)
    return memory


def zeros(tuple shape, cnp.dtype kind not None):
    """A new C-contiguous array of zeros that begins on a cache line."""
    cdef cnp.npy_intp dims[NPY_MAXDIMS]
    cdef object size = kind.itemsize
    cdef int axis
    for axis in range(len(shape)):
        size *= shape[axis]
        dims[axis] = shape[axis]
    if size > PY_SSIZE_T_MAX - ALIGNMENT:
        raise MemoryError(f"no {size} bytes for an array of shape {shape} and dtype {kind}")
    cdef Memory memory = new_memory(size)
    array = cnp.PyArray_SimpleNewFromData(len(shape), dims, kind.type_num, memory.begin)
    cnp.set_array_base(array, memory)
    return array


@cython.final
@cython.no_gc
cdef class Parameter:
    """One of a layer's arrays: its place, which never changes, and the ndarray that is handed out for it."""
    cdef cnp.ndarray view(self):
        """A new ndarray on the memory."""
        view = cnp.PyArray_SimpleNewFromData(self.ndim, self.shape, self.typenum, self.span.begin)
        cnp.set_array_base(view, self.memory)
        return view

    cdef inline bint matches(self, a) noexcept:
        """Whether `a` is an ndarray of this very shape, dtype and layout."""
        cdef int axis
        if not (PyArray_CheckExact(a) and cnp.PyArray_TYPE(<cnp.ndarray> a) == self.typenum
                and PyArray_ISCARRAY_RO(<cnp.ndarray> a) and cnp.PyArray_NDIM(<cnp.ndarray> a) == self.ndim):
            return False
        for axis in range(self.ndim):
            if cnp.PyArray_DIMS(<cnp.ndarray> a)[axis] != self.shape[axis]:
                return False
        return True

    cdef inline bint is_at(self, a) noexcept:
        """Whether `a` is an ndarray on exactly this memory."""
        return self.matches(a) and cnp.PyArray_DATA(<cnp.ndarray> a) == self.span.begin

    cdef cnp.ndarray array(self):
        """The ndarray that is handed out: the same each time, until somebody gives it another shape."""
        cdef cnp.ndarray fresh
        with cython.critical_section(self):
            if not self.is_at(self.handed_out):
                fresh = self.view()
                if not cnp.PyArray_ISWRITEABLE(self.handed_out):
                    cnp.PyArray_CLEARFLAGS(fresh, cnp.NPY_ARRAY_WRITEABLE)
                self.handed_out = fresh
            return self.handed_out

    cdef bint is_frozen(self) noexcept:
        """Whether somebody has set flags.writeable = False on what is handed out."""
        cdef bint frozen
        with cython.critical_section(self):
            frozen = not cnp.PyArray_ISWRITEABLE(self.handed_out)
        return frozen


cdef Parameter parameter_on(cnp.ndarray array):
    """A parameter on the memory of this array."""
    cdef Parameter p = Parameter.__new__(Parameter)
    cdef int axis
    p.typenum, p.ndim = cnp.PyArray_TYPE(array), cnp.PyArray_NDIM(array)
    for axis in range(p.ndim):
        p.shape[axis] = cnp.PyArray_DIMS(array)[axis]
    p.span.begin = <char*> cnp.PyArray_DATA(array)
    p.span.end = p.span.begin + cnp.PyArray_NBYTES(array)
    p.memory = memory_of(array)     # last, because an owner's __buffer__ can be Python code that reshapes the array
    p.handed_out = p.view()
    return p


cdef cnp.ndarray array_of(Parameter p):
    return None if p is None else p.array()


cdef cnp.ndarray view_of(Parameter p):
    return None if p is None else p.view()


cdef Span span_of(Parameter p) noexcept:
    """The bytes of a parameter. None has no bytes."""
    return Span(NULL, NULL) if p is None else p.span


# No cycle can go through a model's own members, so the garbage collector need not look here.
@cython.no_gc
cdef class Model:
    """Takes rows of in_features and gives rows of out_features, in one dtype. Here is how it looks at its arguments.

    A subclass has the methods _as_array, _check_mask and _number, for arguments that are not plain ndarrays and floats.
    """

    def __cinit__(self, *args, **kwargs):
        self.typenum = cnp.NPY_NOTYPE       # no array passes until there is a form
        self.vectorcall = call_model
        if PY_VERSION_HEX < 0x030C0000 and Py_TYPE(self).tp_call == model_call:
            # A class that is made in Python inherits this from 3.12 on. If it gets another __call__ later, that is
            # taken back there, and call_model() sees it here.
            Py_TYPE(self).tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL

    def __call__(self, x, out=None):
        return self.map(x, out)

    cdef object map(self, x, out):
        """What forward does."""
        raise NotImplementedError

    cdef int set_form(self, int typenum, Py_ssize_t in_features, Py_ssize_t out_features) except -1:
        self.in_features, self.out_features = in_features, out_features
        self.dtype = cnp.PyArray_DescrFromType(typenum)
        self.is_double = typenum == cnp.NPY_DOUBLE
        self.itemsize = 8 if self.is_double else 4
        self.typenum = typenum
        return 0

    cdef inline int check_bound(self) except -1:
        if self.dtype is None:
            raise RuntimeError(f"{type(self).__name__} has no parameters yet: its __init__ was not called")
        return 0

    # ---- before the last look: numbers, conversions, allocation

    cdef inline double number(self, str name, value) except? -1:
        """value as a double that the model's dtype can hold."""
        cdef double d = value if isinstance(value, float) else self._number(name, value)
        if not self.is_double and fabs(d) > FLT_MAX and not isinf(d):
            from fastlinear._advice import shown
            raise ValueError(f"{self!r}: {name} must fit float32, got {shown(value)}")
        return d

    cdef inline cnp.ndarray empty(self, cnp.ndarray x, Py_ssize_t features):
        """A new array of x's shape, but for the last axis."""
        cdef cnp.npy_intp shape[NPY_MAXDIMS]
        cdef int axis, last = cnp.PyArray_NDIM(x) - 1
        for axis in range(last):
            shape[axis] = cnp.PyArray_DIMS(x)[axis]
        shape[last] = features
        Py_INCREF(self.dtype)       # PyArray_NewFromDescr takes it over
        return PyArray_NewFromDescr(cnp.ndarray, self.dtype, last + 1, shape, NULL, NULL, 0, NULL)

    cdef cnp.ndarray taken(self, str name, value):
        """value as an ndarray of any kind. All Python code that a conversion can run runs here."""
        self.check_bound()
        if PyArray_CheckExact(value):
            return value
        if cnp.PyArray_Check(value):
            self._check_mask(name, value)
            return value
        value = self._as_array(name, value)
        if not cnp.PyArray_Check(value):
            raise TypeError(f"{self._name}: _as_array must return a numpy.ndarray, got {type(value).__name__}")
        return value

    cdef int taken_out(self, out) except -1:
        """The same for out, which is not converted. A masked array is refused, because its mask would be lost."""
        if not PyArray_CheckExact(out) and cnp.PyArray_Check(out):
            self._check_mask("out", out)
        if cnp.PyArray_Check(out) and cnp.PyArray_ISWRITEABLE(out):
            # NumPy warns of writing to what broadcast_arrays() returns: now, because a warning can be an error.
            PyArray_FailUnlessWriteable(out, "out")
        return 0

    cdef int check_cast(self, str name, cnp.ndarray array) except -1:
        """Raise unless its dtype casts safely to the model's."""
        if not PyArray_CanCastTypeTo(dtype_of(array), self.dtype, cnp.NPY_SAFE_CASTING):
            from fastlinear.linear import _check_cast
            _check_cast(f"{self._name}: {name}", dtype_of(array), self.dtype, "the model's")
        return 0

    cdef int check_rows(self, str name, cnp.ndarray array, Py_ssize_t features) except -1:
        """Raise unless can_read() will let the array pass once it is plain."""
        self.check_cast(name, array)
        if not has_features(array, features):
            from fastlinear._advice import for_rows
            raise ValueError(f"{self._name}: {name} must have {features} features in its last axis, got shape "
                             f"{shape_of(array)}{for_rows(name, shape_of(array), features, self.in_features)}")
        return 0

    cdef int check_no_scale(self, out) except -1:
        """Raise if the out of a backward is a number, which was meant for the argument after it."""
        if type(out) is float or type(out) is int:
            from fastlinear._advice import shown
            raise TypeError(f"{self._name}: out must be a numpy.ndarray, got {type(out).__name__} {shown(out)}; a "
                            f"scale comes by keyword, scale={shown(out)}")
        return 0

    cdef int check_out(self, out, cnp.ndarray x, Py_ssize_t features) except -1:
        """Raise unless a result of x's shape, but for the last axis, can be copied into out, if there is one."""
        if out is None:
            return 0
        if not cnp.PyArray_Check(out):
            raise TypeError(f"{self._name}: out must be a numpy.ndarray, got {type(out).__name__}")
        if not (cnp.PyArray_TYPE(out) == self.typenum and cnp.PyArray_ISNOTSWAPPED(out)):
            raise TypeError(f"{self._name}: out must have dtype {self.dtype}, got {dtype_of(out)}")
        if not (cnp.PyArray_NDIM(out) > 0 and cnp.PyArray_DIMS(out)[cnp.PyArray_NDIM(out) - 1] == features
                and same_batch_shape(out, x)):
            raise ValueError(f"{self._name}: out must have shape {result_shape(x, features)}, got {shape_of(out)}")
        if not cnp.PyArray_ISWRITEABLE(out):
            raise ValueError(f"{self._name}: out must be writable, got a read-only array")
        return 0

    cdef cnp.ndarray plain(self, cnp.ndarray array):
        """A C-contiguous, aligned array of the model's dtype: this one, if it is like that. Runs no Python code."""
        Py_INCREF(self.dtype)       # PyArray_FromArray takes it over
        return PyArray_FromArray(
            array, self.dtype, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_ENSUREARRAY)

    cdef bint apart_from_memory(self, Span a) noexcept:
        """Whether `a` shares no byte with the parameters and the gradients, which backward writes to."""
        return True

    cdef cnp.ndarray plain_apart(self, cnp.ndarray array):
        """The same as plain(), apart from the model's memory."""
        cdef cnp.ndarray a = self.plain(array)
        cdef Span span = Span(<char*> cnp.PyArray_DATA(a), <char*> cnp.PyArray_DATA(a) + cnp.PyArray_NBYTES(a))
        if self.apart_from_memory(span):
            return a
        return cnp.PyArray_NewCopy(a, cnp.NPY_CORDER)

    cdef object changed(self):
        return RuntimeError(f"{self._name}: an argument changed while the call made itself ready; nothing was written")

    @property
    def _name(self):
        return f"{type(self).__name__}({self.in_features}, {self.out_features})"


# ---- model(x) and model(x, out=y) without a tuple and a dictionary of arguments, which would take a fifth and three
# fifths of a small call (PEP 590)

cdef object (*model_call)(object, tuple, dict)      # a Model's __call__, as Python's types have it


cdef object call_model(object model, PyObject* const* args, size_t count, PyObject* names):
    """model(*args), where the last arguments are those with names."""
    cdef Py_ssize_t n = PyVectorcall_NARGS(count)
    if Py_TYPE(model).tp_call == model_call:
        if n == 1 and names == NULL:
            return (<Model> model).map(<object> args[0], None)
        if n == 2 if names == NULL else n == 1 and len(<tuple> names) == 1 and (<tuple> names)[0] is "out":
            return (<Model> model).map(<object> args[0], <object> args[1])
    return call_by_type(model, args, n, () if names == NULL else <tuple> names)


cdef object call_by_type(object model, PyObject* const* args, Py_ssize_t n, tuple names):
    """The same for other arguments, most of which are wrong, and for a class that was given another __call__ since."""
    cdef list positional = []
    cdef dict by_name = {}
    cdef Py_ssize_t k
    for k in range(n):
        positional.append(<object> args[k])
    for k in range(len(names)):
        by_name[names[k]] = <object> args[n + k]
    Py_EnterRecursiveCall(" while calling a Python object")     # as Python does where it calls tp_call
    try:
        return Py_TYPE(model).tp_call(model, tuple(positional), by_name)
    finally:
        Py_LeaveRecursiveCall()


cdef int use_vectorcall(Model model) except -1:
    """Tell Python that what is of this model's class has a vectorcall."""
    global model_call
    model_call = Py_TYPE(model).tp_call
    Py_TYPE(model).tp_vectorcall_offset = <char*> &model.vectorcall - <char*> <PyObject*> model
    Py_TYPE(model).tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL
    return 0


use_vectorcall(Model.__new__(Model))
use_vectorcall(Layer.__new__(Layer))


@cython.no_gc
cdef class Layer(Model):
    """The compiled base of Linear; see there."""

    def _bind(self, weight, bias, grad_weight=None, grad_bias=None):
        """Take these C-contiguous, aligned, writable arrays, of one dtype and fitting shapes, as the layer's memory.

        The layer keeps them for life, because a call that has released the GIL reads them. An array that owned its
        memory owns it no longer (see memory_of).
        """
        cdef Parameter w, b, grad_w, grad_b
        check_to_bind("weight", weight, None, 2)
        check_to_bind("bias", bias, weight, 1)
        check_to_bind("grad_weight", grad_weight, weight, 2)
        check_to_bind("grad_bias", grad_bias, weight, 1)
        if weight is None or (grad_weight is None and grad_bias is not None) or (
                grad_weight is not None and (bias is None) != (grad_bias is None)):
            raise ValueError("_bind: there must be a weight, and gradients for all parameters or for none")
        w, grad_w = parameter_on(weight), None if grad_weight is None else parameter_on(grad_weight)
        b, grad_b = None if bias is None else parameter_on(bias), None if grad_bias is None else parameter_on(grad_bias)
        with cython.critical_section(self):
            if self.W is not None:
                raise RuntimeError(f"{self!r} has its parameters and keeps them; make another layer")
            self.W, self.b, self.grad_W, self.grad_b = w, b, grad_w, grad_b
            self.w_span, self.b_span = span_of(w), span_of(b)
            self.grad_w_span, self.grad_b_span = span_of(grad_w), span_of(grad_b)
            self.has_gradients = grad_w is not None
            self.set_form(w.typenum, w.shape[1], w.shape[0])

    cdef inline double size(self, Py_ssize_t rows) noexcept:
        """The multiply-adds of so many rows, for begin()."""
        return <double> rows * self.in_features * self.out_features

    cdef object frozen(self):
        return ValueError(f"{self!r}: its memory was made read-only (flags.writeable = False), so it cannot change")

    cdef inline int check_writable(self, bint gradients) except -1:
        """Raise if somebody has frozen a parameter, or a gradient (layer.weight.flags.writeable = False)."""
        cdef bint frozen
        if gradients:
            frozen = self.grad_W.is_frozen() or (self.grad_b is not None and self.grad_b.is_frozen())
        else:
            frozen = self.W.is_frozen() or (self.b is not None and self.b.is_frozen())
        if frozen:
            raise self.frozen()
        return 0

    cdef int ensure_gradients(self) except -1:
        """Make the gradients, zero, unless they are there."""
        cdef Parameter weight, bias = None
        if load_int(&self.has_gradients):
            return 0
        self.check_bound()
        weight = parameter_on(zeros((self.out_features, self.in_features), self.dtype))
        if self.b is not None:
            bias = parameter_on(zeros((self.out_features,), self.dtype))
        with cython.critical_section(self):
            # Whoever comes first makes them, and nobody else can come between this look and the last line.
            if not self.has_gradients:
                self.grad_W, self.grad_b = weight, bias
                self.grad_w_span, self.grad_b_span = span_of(weight), span_of(bias)
                store_int(&self.has_gradients, True)
        return 0

    # ---- the last look: nothing here runs Python code

    cdef inline bint apart_from_parameters(self, Span a) noexcept:
        return apart(a, self.w_span) and apart(a, self.b_span)

    cdef inline bint apart_from_gradients(self, Span a) noexcept:
        return apart(a, self.grad_w_span) and apart(a, self.grad_b_span)

    cdef bint apart_from_memory(self, Span a) noexcept:
        return self.apart_from_parameters(a) and self.apart_from_gradients(a)

    cdef inline bint can_map(self, Pass* p, Span* source_span, source, Py_ssize_t source_features,
                             result, Py_ssize_t result_features) noexcept:
        """Whether a kernel can compute result from source and the parameters, as they are."""
        if not (self.can_read(source, source_features) and self.can_write(result, result_features)
                and same_batch_shape(<cnp.ndarray> source, <cnp.ndarray> result)):
            return False
        p.rows = rows_of(<cnp.ndarray> source)
        source_span[0] = self.bytes(<cnp.ndarray> source, p.rows, source_features)
        p.result = self.bytes(<cnp.ndarray> result, p.rows, result_features)
        return apart(p.result, source_span[0]) and self.apart_from_parameters(p.result)

    cdef inline bint can_read_both(self, Pass* p, x, grad_output) noexcept:
        """Whether a kernel can go over the rows of x and grad_output as they are."""
        if not (self.can_read(x, self.in_features) and self.can_read(grad_output, self.out_features)
                and same_batch_shape(<cnp.ndarray> x, <cnp.ndarray> grad_output)):
            return False
        p.rows = rows_of(<cnp.ndarray> x)
        p.x = self.bytes(<cnp.ndarray> x, p.rows, self.in_features)
        p.grad_output = self.bytes(<cnp.ndarray> grad_output, p.rows, self.out_features)
        return True

    cdef inline bint can_write_grad_input(self, Pass* p, result, x, bint input_grad) noexcept:
        """After can_read_both(): whether a kernel can write grad_input as well. result is None if nobody wants it."""
        p.result = Span(NULL, NULL)
        if not input_grad:
            return result is None
        if not (self.can_write(result, self.in_features) and same_batch_shape(<cnp.ndarray> result, <cnp.ndarray> x)):
            return False
        p.result = self.bytes(<cnp.ndarray> result, p.rows, self.in_features)
        return (apart(p.result, p.x) and apart(p.result, p.grad_output) and self.apart_from_parameters(p.result))

    cdef inline bint can_accumulate(self, Pass* p, x, grad_output, gx, bint input_grad) noexcept:
        """Whether a kernel can add to the gradients, which must be there, from x and grad_output as they are."""
        return (load_int(&self.has_gradients) and self.can_read_both(p, x, grad_output)
                and self.can_write_grad_input(p, gx, x, input_grad) and self.apart_from_gradients(p.result)
                and self.apart_from_gradients(p.x) and self.apart_from_gradients(p.grad_output))

    cdef inline bint can_update(self, Pass* p, x, grad_output, gx, bint input_grad) noexcept:
        """Whether a kernel can change the parameters from x and grad_output as they are."""
        return (self.can_read_both(p, x, grad_output) and self.can_write_grad_input(p, gx, x, input_grad)
                and self.apart_from_parameters(p.x) and self.apart_from_parameters(p.grad_output))

    cdef int check_both(self, cnp.ndarray x, cnp.ndarray grad_output, out, bint input_grad) except -1:
        """Raise unless x and grad_output fit the layer and each other, and grad_input can go where it is to go."""
        if (self.in_features != self.out_features and has_features(x, self.out_features)
                and has_features(grad_output, self.in_features)):
            raise ValueError(f"{self._name}: x must have {self.in_features} features in its last axis, got shape "
                             f"{shape_of(x)}, and grad_output {self.out_features}, got shape {shape_of(grad_output)}; "
                             "x comes first, then grad_output")
        self.check_rows("x", x, self.in_features)
        self.check_rows("grad_output", grad_output, self.out_features)
        if not same_batch_shape(x, grad_output):
            raise ValueError(
                f"{self._name}: grad_output must have shape {result_shape(x, self.out_features)} to match x of shape "
                f"{shape_of(x)}, got {shape_of(grad_output)}")
        if out is not None and not input_grad:
            raise ValueError(f"{self._name}: out is for grad_input, which input_grad=False leaves out")
        self.check_out(out, x, self.in_features)
        return 0

    cdef cnp.ndarray values(self, str name, Parameter p, value):
        """value as p.matches() wants it."""
        cdef cnp.ndarray array = self.taken(name, value)
        cdef tuple shape = (p.shape[0], p.shape[1])[:p.ndim]
        self.check_cast(name, array)
        if shape_of(array) != shape:
            from fastlinear._advice import for_shape
            raise ValueError(f"{self._name}: {name} must have shape {shape}, got {shape_of(array)}"
                             f"{for_shape(name, shape_of(array), shape)}")
        return self.plain(array)

    # ---- the memory

    @property
    def weight(self):
        """The weights W, an ndarray (out_features, in_features), C-contiguous, which is the layer's own memory.

        Writing into it changes the layer; assigning checks shape and dtype and copies the values in. Another shape or
        dtype set on it (``layer.weight.shape = ...``) changes that ndarray only, and the next access gives a new one.

        >>> layer = Linear(3, 2, rng=0)
        >>> layer.weight[:, 0] = 0
        >>> layer.weight = np.ones((2, 3), np.float32)
        """
        self.check_bound()
        return self.W.array()

    @weight.setter
    def weight(self, value):
        self.check_bound()
        self.assign("weight", self.W, value)

    @property
    def bias(self):
        """The bias b, an ndarray (out_features,), or None. Reading and assigning it works as for weight."""
        self.check_bound()
        return array_of(self.b)

    @bias.setter
    def bias(self, value):
        self.check_bound()
        self.assign("bias", self.b, value)

    @property
    def grad_weight(self):
        """The gradient of weight, an ndarray (out_features, in_features), C-contiguous. backward accumulates into it.

        It is made, full of zeros, when it is first used. A layer that only runs forward has none.
        """
        self.ensure_gradients()
        return self.grad_W.array()

    @grad_weight.setter
    def grad_weight(self, value):
        self.ensure_gradients()
        self.assign("grad_weight", self.grad_W, value)

    @property
    def grad_bias(self):
        """The gradient of bias, an ndarray (out_features,), or None for a layer without bias. See grad_weight."""
        self.ensure_gradients()
        return array_of(self.grad_b)

    @grad_bias.setter
    def grad_bias(self, value):
        self.ensure_gradients()
        self.assign("grad_bias", self.grad_b, value)

    cdef int assign(self, str name, Parameter p, value) except -1:
        """`layer.weight = value` and its like."""
        if p is None:
            raise ValueError(f"{self._name}: there is no {name}: the layer was made with bias=False")
        if not p.matches(value):
            value = self.values(name, p, value)
        if p.is_frozen():
            raise self.frozen()
        if not p.matches(value):
            raise self.changed()
        # The same memory, after `layer.weight -= ...`, is a copy onto itself.
        memmove(p.span.begin, cnp.PyArray_DATA(value), p.span.end - p.span.begin)
        return 0

    def _memory(self):
        """weight, bias, grad_weight and grad_bias themselves. None for what the layer does not have, or not yet."""
        self.check_bound()
        if not load_int(&self.has_gradients):
            return self.W.array(), array_of(self.b), None, None
        return self.W.array(), array_of(self.b), self.grad_W.array(), array_of(self.grad_b)

    def _values(self, str name, value):
        """Copies of value, as the parameter of that name can take it, or an error."""
        self.check_bound()
        return self.values(name, {"weight": self.W, "bias": self.b}[name], value).copy()

    def _store(self, weight, bias):
        """Copy values of the right shape and dtype into the parameters: into both, or into none."""
        self.check_bound()
        self.check_writable(False)
        self.check_values(weight, bias)
        self.copy_values(weight, bias)

    cdef int check_values(self, weight, bias) except -1:
        """Raise unless copy_values() can take them."""
        if not (self.W.matches(weight) and (bias is None if self.b is None else self.b.matches(bias))):
            raise ValueError(
                f"{self._name}: weight and bias must be C-contiguous ndarrays of the layer's shapes and dtype")
        return 0

    cdef void copy_values(self, weight, bias) noexcept:
        """Copy values into the parameters. Runs no Python code."""
        memmove(self.w_span.begin, cnp.PyArray_DATA(weight), self.w_span.end - self.w_span.begin)
        if bias is not None:
            memmove(self.b_span.begin, cnp.PyArray_DATA(bias), self.b_span.end - self.b_span.begin)

    # ---- forward

    cdef object map(self, x, out):
        return run_forward(self, x, out)

    def forward(self, x, out=None):
        """y = x Wᵀ + b for every row of x (Torch7: forward, updateOutput; BLAS: gemm, gemv). ``layer(x)`` is the same.

        x: (..., in_features). out: (..., out_features), overwritten; made new if None. It can overlap anything.
        Returns out. Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]], [10, 20])
        >>> x, y = np.ones((5, 3), np.float32), np.empty((5, 2), np.float32)
        >>> layer.forward(x, out=y) is y
        True
        >>> y[0]
        array([16., 35.], dtype=float32)
        """
        return run_forward(self, x, out)

    # ---- backward

    def backward(self, x, grad_output, out=None, scale=1.0, input_grad=True):
        """backward_params and backward_input in one call (Torch7: backward).

        x: (..., in_features), grad_output: (..., out_features), with the same leading axes. grad_weight and grad_bias
        are accumulated, with grad_output multiplied by scale; grad_input is not scaled. grad_input overwrites out
        (..., in_features), or a new array if None. Returns grad_input, or None with input_grad=False.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]])
        >>> layer.backward([1, 0, 2], [1, -1])
        array([-3., -3., -3.], dtype=float32)
        >>> layer.grad_weight
        array([[ 1.,  0.,  2.],
               [-1.,  0., -2.]], dtype=float32)
        """
        return run_backward(self, x, grad_output, out, self.number("scale", scale), input_grad)

    def backward_params(self, x, grad_output, scale=1.0):
        """grad_weight += scale · grad_outputᵀ x and grad_bias += scale · Σ grad_output (Torch7: accGradParameters;
        BLAS: gemm, ger).

        x: (..., in_features), grad_output: (..., out_features), with the same leading axes. Both gradients are
        accumulated: the rows are added one after another, and grad_output is multiplied by scale first. Returns None.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear(3, 2)
        >>> layer.backward_params([1, 0, 2], [1, -1])
        >>> layer.backward_params([1, 0, 2], [1, -1], scale=10)
        >>> layer.grad_bias
        array([ 11., -11.], dtype=float32)
        """
        run_backward(self, x, grad_output, None, self.number("scale", scale), False)

    def backward_input(self, grad_output, out=None):
        """grad_input = grad_output W (Torch7: updateGradInput; BLAS: gemm, gemv transposed).

        grad_output: (..., out_features). out: (..., in_features), overwritten; made new if None. Returns out.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]])
        >>> layer.backward_input([1, 1])
        array([5., 7., 9.], dtype=float32)
        """
        cdef Pass p
        cdef Work work
        cdef object gx = out
        cdef Kernels* table = kernels_of(self.is_double)
        if out is None and self.can_read(grad_output, self.out_features):
            gx = self.empty(<cnp.ndarray> grad_output, self.in_features)
        if not self.can_map(&p, &p.grad_output, grad_output, self.out_features, gx, self.in_features):
            grad_output = self.taken("grad_output", grad_output)
            self.taken_out(out)
            self.check_rows("grad_output", grad_output, self.out_features)
            self.check_out(out, grad_output, self.in_features)
            grad_output = self.plain(grad_output)
            gx = self.empty(<cnp.ndarray> grad_output, self.in_features)
            if not self.can_map(&p, &p.grad_output, grad_output, self.out_features, gx, self.in_features):
                raise self.changed()
        if table == NULL:
            kernels.grad_input(grad_output.reshape(p.rows, self.out_features), self.W.view(),
                               gx.reshape(p.rows, self.in_features))
        elif p.rows:
            begin(&work, self.size(p.rows), 0)
            table.grad_input(p.grad_output.begin, self.w_span.begin, p.result.begin,
                             p.rows, self.in_features, self.out_features, work.threads, work.scratch)
            end(&work)
        return delivered(gx, out)

    def backward_update(self, x, grad_output, lr, out=None, input_grad=True):
        """grad_input, and the plain SGD step W −= lr · grad_outputᵀ x, b −= lr · Σ grad_output, in one pass over W
        (Torch7: updateGradInput, then accUpdateGradParameters).

        x: (..., in_features), grad_output: (..., out_features), with the same leading axes. weight and bias are changed
        in place; no gradient is touched or needed. grad_input comes from the weights as they were before the step. It
        overwrites out (..., in_features), or a new array if None. Returns grad_input, or None with input_grad=False.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]])
        >>> layer.backward_update([1, 0, 2], [1, -1], lr=0.5)
        array([-3., -3., -3.], dtype=float32)
        >>> layer.weight
        array([[0.5, 2. , 2. ],
               [4.5, 5. , 7. ]], dtype=float32)
        """
        cdef double rate = self.number("lr", lr)
        cdef bint with_input = input_grad
        cdef Pass p
        cdef Work work
        cdef object gx = out
        cdef Kernels* table = kernels_of(self.is_double)
        if with_input and out is None and self.can_read(x, self.in_features):
            gx = self.empty(<cnp.ndarray> x, self.in_features)
        if not self.can_update(&p, x, grad_output, gx, with_input):
            x, grad_output = self.taken("x", x), self.taken("grad_output", grad_output)
            self.taken_out(out)
            self.check_both(x, grad_output, out, with_input)
            x, grad_output = self.plain_apart(x), self.plain_apart(grad_output)
            gx = self.empty(<cnp.ndarray> x, self.in_features) if with_input else None
            if not self.can_update(&p, x, grad_output, gx, with_input):
                raise self.changed()
        self.check_writable(False)
        if table == NULL:
            kernels.update(x.reshape(p.rows, self.in_features), grad_output.reshape(p.rows, self.out_features), rate,
                           self.W.view(), view_of(self.b), gx.reshape(p.rows, self.in_features) if with_input else None)
        elif p.rows:
            begin(&work, self.size(p.rows), 0)
            table.update(p.x.begin, p.grad_output.begin, rate, self.w_span.begin, self.b_span.begin,
                         p.result.begin, p.rows, self.in_features, self.out_features, work.threads, work.scratch)
            end(&work)
        return delivered(gx, out)

    # ---- the parameters

    def step(self, lr):
        """weight −= lr · grad_weight and bias −= lr · grad_bias (Torch7: updateParameters; BLAS: axpy). Returns None.

        The gradients stay as they are; call zero_grad before you accumulate the next ones. Raises TypeError if lr is no
        real number, ValueError if lr does not fit the dtype or a parameter was made read-only.

        >>> layer = Linear.from_weights([[1, 2, 3]], [0])
        >>> layer.backward_params([1, 0, 2], [1])
        >>> layer.step(0.5)
        >>> layer.weight, layer.bias
        (array([[0.5, 2. , 2. ]], dtype=float32), array([-0.5], dtype=float32))
        """
        cdef double rate = self.number("lr", lr)
        cdef Work work
        cdef Kernels* table = kernels_of(self.is_double)
        self.ensure_gradients()
        self.check_writable(False)
        if table == NULL:
            kernels.step(self.grad_W.view().reshape(-1), rate, self.W.view().reshape(-1))
            if self.b is not None:
                kernels.step(self.grad_b.view(), rate, self.b.view())
            return
        release_gil(&work, self.size(1))
        table.step(self.grad_w_span.begin, rate, self.w_span.begin,
                   self.in_features * self.out_features)
        if self.b_span.begin != NULL:
            table.step(self.grad_b_span.begin, rate, self.b_span.begin, self.out_features)
        end(&work)

    def zero_grad(self):
        """Set grad_weight and grad_bias to zero (Torch7: zeroGradParameters; PyTorch: zero_grad). Returns None.

        Gradients that were never used are zero already, and are not made. Raises ValueError if a gradient was made
        read-only.

        >>> layer = Linear(3, 1)
        >>> layer.backward_params([1, 0, 2], [1])
        >>> layer.zero_grad()
        >>> layer.grad_weight
        array([[0., 0., 0.]], dtype=float32)
        """
        cdef Work work
        self.check_bound()
        if not load_int(&self.has_gradients):
            return
        self.check_writable(True)
        release_gil(&work, self.size(1))
        memset(self.grad_w_span.begin, 0, self.grad_w_span.end - self.grad_w_span.begin)
        if self.grad_b_span.begin != NULL:
            memset(self.grad_b_span.begin, 0, self.grad_b_span.end - self.grad_b_span.begin)
        end(&work)


# ---- the ways of a call

cdef run_forward(Layer self, x, out):
    cdef Pass p
    cdef Work work
    cdef object y = out
    cdef Kernels* table = kernels_of(self.is_double)
    if out is None and self.can_read(x, self.in_features):
        y = self.empty(<cnp.ndarray> x, self.out_features)
    if not self.can_map(&p, &p.x, x, self.in_features, y, self.out_features):
        x = self.taken("x", x)
        self.taken_out(out)
        self.check_rows("x", x, self.in_features)
        self.check_out(out, x, self.out_features)
        x = self.plain(x)
        y = self.empty(<cnp.ndarray> x, self.out_features)
        if not self.can_map(&p, &p.x, x, self.in_features, y, self.out_features):
            raise self.changed()
    if table == NULL:
        kernels.forward(x.reshape(p.rows, self.in_features), self.W.view(), view_of(self.b),
                        y.reshape(p.rows, self.out_features))
    elif p.rows:
        begin(&work, self.size(p.rows), 0)
        table.forward(p.x.begin, self.w_span.begin, self.b_span.begin, p.result.begin,
                      p.rows, self.in_features, self.out_features, work.threads, work.scratch)
        end(&work)
    return delivered(y, out)


cdef inline run_backward(Layer self, x, grad_output, out, double scale, bint input_grad):
    cdef Pass p
    cdef Work work
    cdef object gx = out
    cdef Kernels* table = kernels_of(self.is_double)
    if input_grad and out is None and self.can_read(x, self.in_features):
        gx = self.empty(<cnp.ndarray> x, self.in_features)
    if not self.can_accumulate(&p, x, grad_output, gx, input_grad):
        x, grad_output = self.taken("x", x), self.taken("grad_output", grad_output)
        self.taken_out(out)
        self.check_no_scale(out)
        self.check_both(x, grad_output, out, input_grad)
        self.ensure_gradients()
        x, grad_output = self.plain_apart(x), self.plain_apart(grad_output)
        gx = self.empty(<cnp.ndarray> x, self.in_features) if input_grad else None
        if not self.can_accumulate(&p, x, grad_output, gx, input_grad):
            raise self.changed()
    self.check_writable(True)
    if table == NULL:
        x, grad_output = x.reshape(p.rows, self.in_features), grad_output.reshape(p.rows, self.out_features)
        if input_grad:
            kernels.grad_input(grad_output, self.W.view(), gx.reshape(p.rows, self.in_features))
        kernels.grad_weight(x, grad_output, scale, self.grad_W.view())
        if self.b is not None:
            kernels.grad_bias(grad_output, scale, self.grad_b.view())
    elif p.rows:
        begin(&work, self.size(p.rows), 0)
        if input_grad:
            table.grad_input(p.grad_output.begin, self.w_span.begin, p.result.begin,
                             p.rows, self.in_features, self.out_features, work.threads, work.scratch)
        table.grad_weight(p.x.begin, p.grad_output.begin, scale, self.grad_w_span.begin,
                          p.rows, self.in_features, self.out_features, work.threads, work.scratch)
        if self.b_span.begin != NULL:
            table.grad_bias(p.grad_output.begin, scale, self.grad_b_span.begin,
                            p.rows, self.out_features)
        end(&work)
    return delivered(gx, out)


cdef delivered(result, out):
    """The result, in out if there is one. A result that was computed apart is copied, so out can have any layout."""
    if out is None or result is out:
        return result
    if result is not None:
        cnp.PyArray_CopyInto(out, result)
    return out


# ---- an activation by itself: the same way, for an array of any shape

cdef enum:
    ELEMENT_COST = 8    # of an element of an activation, in multiply-adds


cdef inline bint is_plain(a) noexcept:
    """Whether a kernel can read `a` as it is: an ndarray of float32 or float64, contiguous."""
    return (PyArray_CheckExact(a) and PyArray_ISCARRAY_RO(<cnp.ndarray> a)
            and cnp.PyArray_TYPE(<cnp.ndarray> a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE))


cdef inline bint can_activate(int kind, x, y) noexcept:
    """Whether a kernel can compute y from x, as they are: apart from each other, or the same memory."""
    cdef Span source, result
    if not (is_plain(x) and is_plain(y) and PyArray_ISCARRAY(<cnp.ndarray> y)
            and cnp.PyArray_TYPE(<cnp.ndarray> x) == cnp.PyArray_TYPE(<cnp.ndarray> y)
            and cnp.PyArray_SAMESHAPE(<cnp.ndarray> x, <cnp.ndarray> y)
            and (kind != SOFTMAX or cnp.PyArray_NDIM(<cnp.ndarray> x) > 0)):
        return False
    source.begin, result.begin = <char*> cnp.PyArray_DATA(<cnp.ndarray> x), <char*> cnp.PyArray_DATA(<cnp.ndarray> y)
    source.end = source.begin + cnp.PyArray_NBYTES(<cnp.ndarray> x)
    result.end = result.begin + cnp.PyArray_NBYTES(<cnp.ndarray> y)
    return source.begin == result.begin or apart(source, result)


cdef cnp.ndarray empty_as(cnp.ndarray x):
    return PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)


cdef cnp.ndarray floating(str function, value):
    """value as a contiguous array of float32, or else float64, if its dtype casts safely to that. Runs Python code."""
    from fastlinear.linear import _array
    cdef cnp.ndarray array = _array(f"{function}: x", value)
    for dtype in (cnp.PyArray_DescrFromType(cnp.NPY_FLOAT), cnp.PyArray_DescrFromType(cnp.NPY_DOUBLE)):
        if PyArray_CanCastTypeTo(dtype_of(array), dtype, cnp.NPY_SAFE_CASTING):
            Py_INCREF(dtype)        # PyArray_FromArray takes it over
            return PyArray_FromArray(
                array, dtype, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_ENSUREARRAY)
    from fastlinear._advice import for_cast
    raise TypeError(f"{function}: x has dtype {dtype_of(array)}, which does not cast safely to float32 or float64"
                    f"{for_cast('x', None if array is value else value, dtype_of(array), dtype, '')}")


cdef int check_activated(str function, int kind, cnp.ndarray x, out) except -1:
    from fastlinear.linear import _check_mask
    if kind == SOFTMAX and cnp.PyArray_NDIM(x) == 0:
        raise ValueError(f"{function}: x must have at least one axis, got a number")
    if out is None:
        return 0
    if not cnp.PyArray_Check(out):
        raise TypeError(f"{function}: out must be a numpy.ndarray, got {type(out).__name__}")
    _check_mask(f"{function}: out", out)
    if not (cnp.PyArray_TYPE(out) == cnp.PyArray_TYPE(x) and cnp.PyArray_ISNOTSWAPPED(out)):
        raise TypeError(f"{function}: out must have dtype {dtype_of(x)}, got {dtype_of(out)}")
    if not cnp.PyArray_SAMESHAPE(out, x):
        raise ValueError(f"{function}: out must have shape {shape_of(x)}, got {shape_of(out)}")
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError(f"{function}: out must be writable, got a read-only array")
    PyArray_FailUnlessWriteable(out, "out")     # NumPy can warn, and a warning can be an error
    return 0


def activate(str function, int kind, x, out=None):
    """The functions of activations.py. kind is a place in reference.ACTIVATIONS."""
    cdef Work work
    cdef Py_ssize_t columns, n
    cdef object y = out
    cdef Elementwise* table
    if out is None and is_plain(x):
        y = empty_as(<cnp.ndarray> x)
    if not can_activate(kind, x, y):
        x = floating(function, x)
        check_activated(function, kind, x, out)
        y = empty_as(<cnp.ndarray> x)
        if not can_activate(kind, x, y):
            raise RuntimeError(f"{function}: an argument changed while the call made itself ready; nothing was written")
    n, columns = cnp.PyArray_SIZE(<cnp.ndarray> x), 1
    if cnp.PyArray_NDIM(<cnp.ndarray> x) > 0:
        columns = cnp.PyArray_DIMS(<cnp.ndarray> x)[cnp.PyArray_NDIM(<cnp.ndarray> x) - 1]
    table = elementwise_of(cnp.PyArray_TYPE(<cnp.ndarray> x) == cnp.NPY_DOUBLE)
    if n == 0:
        return delivered(y, out)
    if table == NULL:
        elementwise.activate(kind, x.reshape(n // columns, columns), y.reshape(n // columns, columns))
    else:
        release_gil(&work, <double> n * ELEMENT_COST)
        if n >= 2 * WORTH_A_THREAD // ELEMENT_COST:
            work.threads = <int> min(<double> threads_now(), <double> n * ELEMENT_COST / WORTH_A_THREAD)
            work.threads = startable_threads(work.threads, thread_stack_size)
        table.activate(kind, cnp.PyArray_DATA(<cnp.ndarray> x), cnp.PyArray_DATA(<cnp.ndarray> y),
                       n // columns, columns, work.threads)
        end(&work)
    return delivered(y, out)


cdef int check_to_bind(str name, array, cnp.ndarray weight, int ndim) except -1:
    """Raise unless the array can be a layer's memory, which the kernels trust."""
    cdef cnp.ndarray a
    if array is None:
        return 0
    if not PyArray_CheckExact(array):
        raise TypeError(f"_bind: {name} must be a numpy.ndarray, got {type(array).__name__}")
    a = array
    if not (PyArray_ISCARRAY(a) and cnp.PyArray_NDIM(a) == ndim
            and cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE)):
        raise ValueError(f"_bind: {name} must be C-contiguous, aligned, writable, native, of float32 or float64, with "
                         f"{ndim} axes, got {dtype_of(a)} of shape {shape_of(a)}")
    if weight is not None and not (cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(weight)
                                   and shape_of(a) == shape_of(weight)[:ndim]):
        raise ValueError(f"_bind: {name} must have dtype {dtype_of(weight)} and shape {shape_of(weight)[:ndim]}"
                         f", got {dtype_of(a)} of shape {shape_of(a)}")
    return 0
