# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""The compiled base of Sequential: layers with activations after them, in one call.

A net is a plan that never changes: an array of stages, each of which is a layer's memory and the activation after it. A
call goes over the rows of its batch in blocks, so that the values of a block stay in cache from stage to stage. That
changes no bit, because a row does not depend on its batch, and sums over rows go on from block to block. No Python runs
between the stages. Arguments are looked at as in _layer.pyx.
"""
cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cython.parallel cimport prange
from libc.math cimport isfinite
from libc.string cimport memmove, memset

from fastlinear._layer cimport (
    WORTH_A_THREAD, Layer, Memory, Model, Pass, Span, Work, apart, begin, delivered, elementwise_module,
    elementwise_of, end, kernel_module, kernels_of, load_int, new_memory, release_gil, rows_of, same_batch_shape,
    shape_of, tuple_of, view_of)
from fastlinear._table cimport GELU, IDENTITY, SCRATCH_BYTES, SILU, SOFTMAX, Elementwise, Kernels

from fastlinear.reference import ACTIVATIONS

cnp.import_array()

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "numpy/arrayobject.h":
    enum:
        NPY_MAXDIMS


cdef enum:
    # Free to tune: no result depends on them.
    BLOCK_BYTES = 1 << 17       # of the widest values of a block, so that the next stage finds them in L2
    BLOCK_ROWS = 256            # a block has at least so many rows: it reads all weights (with 16 rows, backward
                                # through layers of 1024 takes three times as long),
    MOST_BLOCK_BYTES = 1 << 20  # unless so many rows would take more scratch than this
    ROWS_A_THREAD = 32          # with fewer rows, threads share the outputs of each layer and not the rows
    ACTIVATION = 16             # multiply-adds that take as long as the activation of one value
    LINE = 64                   # each array in scratch and tape begins at a multiple of this address


cdef struct Stage:
    PyObject* layer             # which the net holds
    char* weight
    char* bias                  # NULL if there is none
    Py_ssize_t in_features
    Py_ssize_t out_features
    int kind                    # of the activation after the layer
    double size                 # multiply-adds of a row


cdef struct Kept:
    # What a tape keeps of a stage, for all rows.
    char* before                # the activation; NULL where the derivative follows from what comes after it
    char* output


cdef struct Rows:
    # The rows of a call, and everything that its stages need.
    Stage* stages
    Kept* kept                  # NULL without a tape
    Kernels* kernels
    Elementwise* elementwise
    int depth
    Py_ssize_t itemsize
    Py_ssize_t block            # rows
    size_t buffer               # bytes of a buffer; each thread has two
    char* x
    char* grad_output
    char* result                # the output, or grad_input, which can be NULL
    double rate                 # the scale, or the learning rate
    bint updates
    int threads
    char* scratch
    char* buffers


cdef inline Py_ssize_t lines(Py_ssize_t nbytes) noexcept nogil:
    return (nbytes + LINE - 1) // LINE * LINE


cdef inline bint needs_before(int kind) noexcept nogil:
    """Whether the derivative needs the values before the activation."""
    return kind == SILU or kind == GELU


cdef inline int threads_for(const Stage* stage, Py_ssize_t rows, int threads) noexcept nogil:
    """How many of the threads the work of a stage is worth."""
    cdef double size
    if threads == 1:
        return 1
    size = stage.size * rows / WORTH_A_THREAD
    return threads if size >= threads else 1 if size < 2 else <int> size


cdef void forward_rows(const Rows* r, Py_ssize_t first, Py_ssize_t last, int threads, char* scratch,
                       char* buffers) noexcept nogil:
    """The outputs of the rows from first up to last, with so many threads for each kernel."""
    cdef Py_ssize_t row, rows, width
    cdef char *source
    cdef char *before
    cdef char *target
    cdef const Stage* stage
    cdef int s, n
    row = first
    while row < last:
        rows = min(r.block, last - row)
        source = r.x + row * r.stages[0].in_features * r.itemsize
        for s in range(r.depth):
            stage = &r.stages[s]
            width = stage.out_features * r.itemsize
            if r.kept != NULL:
                target = r.kept[s].output + row * width
            elif s == r.depth - 1:
                target = r.result + row * width
            else:
                target = buffers + (s & 1) * r.buffer
            before = target
            if r.kept != NULL and r.kept[s].before != NULL:
                before = r.kept[s].before + row * width
            n = threads_for(stage, rows, threads)
            r.kernels.forward(source, stage.weight, stage.bias, before, rows, stage.in_features, stage.out_features,
                              n, scratch)
            if stage.kind != IDENTITY:
                r.elementwise.activate(stage.kind, before, target, rows, stage.out_features, n)
            source = target
        row += rows


cdef void forward_loops(const Rows* r, Py_ssize_t rows) noexcept nogil:
    """The outputs of all rows. Threads share the rows if there are enough, and otherwise the outputs of each layer."""
    cdef int thread
    if r.threads == 1 or rows < r.threads * <Py_ssize_t> ROWS_A_THREAD:
        forward_rows(r, 0, rows, r.threads, r.scratch, r.buffers)
    else:
        for thread in prange(r.threads, num_threads=r.threads, schedule="static"):
            forward_rows(r, share(rows, thread, r.threads), share(rows, thread + 1, r.threads), 1,
                         r.scratch + thread * <size_t> SCRATCH_BYTES, r.buffers + thread * 2 * r.buffer)


cdef inline Py_ssize_t share(Py_ssize_t rows, int thread, int threads) noexcept nogil:
    """Where a thread's rows begin, without a product that could overflow."""
    return rows // threads * thread + min(<Py_ssize_t> thread, rows % threads)


cdef void backward_rows(const Rows* r, Py_ssize_t all_rows) noexcept nogil:
    """The gradients of all rows, added in their order, or subtracted in an update. The threads share the work of each
    layer, because a sum over rows must not be divided."""
    cdef char *gradient
    cdef char *source
    cdef char *target
    cdef const Stage* stage
    cdef Py_ssize_t row = 0, rows, width
    cdef int s, n, free
    while row < all_rows:
        rows = min(r.block, all_rows - row)
        gradient = r.grad_output + row * r.stages[r.depth - 1].out_features * r.itemsize
        free = 0        # the buffer that gradient is not in
        for s in range(r.depth - 1, -1, -1):
            stage = &r.stages[s]
            width = stage.out_features * r.itemsize
            n = threads_for(stage, rows, r.threads)
            if stage.kind != IDENTITY:
                if s == r.depth - 1:
                    target = r.buffers
                    free = 1
                else:
                    target = gradient
                r.elementwise.derivative(
                    stage.kind, gradient, r.kept[s].output + row * width,
                    NULL if r.kept[s].before == NULL else r.kept[s].before + row * width,
                    target, rows, stage.out_features, n)
                gradient = target
            width = stage.in_features * r.itemsize
            source = (r.kept[s - 1].output if s else r.x) + row * width
            if s:
                target = r.buffers + free * r.buffer
                free = 1 - free
            else:
                target = NULL if r.result == NULL else r.result + row * width
            if r.updates:
                r.kernels.update(source, gradient, r.rate, stage.weight, stage.bias, target, rows,
                                 stage.in_features, stage.out_features, n, r.scratch)
            else:
                accumulate(r, stage, source, gradient, target, rows, n)
            gradient = target
        row += rows


cdef inline void accumulate(const Rows* r, const Stage* stage, const char* source, const char* gradient, char* target,
                            Py_ssize_t rows, int threads) noexcept nogil:
    cdef Span weight, bias
    gradients_of(stage, &weight, &bias)
    if target != NULL:
        r.kernels.grad_input(gradient, stage.weight, target, rows, stage.in_features, stage.out_features, threads,
                             r.scratch)
    r.kernels.grad_weight(source, gradient, r.rate, weight.begin, rows, stage.in_features, stage.out_features,
                          threads, r.scratch)
    if stage.bias != NULL:
        r.kernels.grad_bias(gradient, r.rate, bias.begin, rows, stage.out_features)


cdef inline void gradients_of(const Stage* stage, Span* weight, Span* bias) noexcept nogil:
    """Where a layer's gradients are. They must have been made."""
    weight[0] = (<Layer> stage.layer).grad_w_span
    bias[0] = (<Layer> stage.layer).grad_b_span


# The net can be a subclass whose attributes lead back to the tape. The garbage collector breaks such a cycle at the
# dict in it, and never lets go of what a running call needs (no_gc_clear).
@cython.final
@cython.no_gc_clear
cdef class Tape:
    """What Sequential.record() keeps for backward: a copy of x, and the values after each layer and its activation.

    A tape has memory of its own, so x can change afterwards. The weights can change, too; backward uses them as they
    are when it is called. A tape serves one net and one shape of batch, and any number of backward calls. record(x,
    tape) writes it again. Only record() can make one; to make, copy or pickle it otherwise is a TypeError.
    """
    cdef Network net
    cdef Memory memory
    cdef Kept* kept
    cdef char* x
    cdef Py_ssize_t rows
    cdef int ndim
    cdef cnp.npy_intp shape[NPY_MAXDIMS]        # of the output
    cdef object __weakref__

    def __dealloc__(self):
        PyMem_Free(self.kept)

    def __init__(self, *args, **kwargs):
        raise TypeError("a Tape is made by Sequential.record()")

    def __reduce__(self):
        raise TypeError("a Tape cannot be copied or pickled: it is its net's; record() makes another")

    @property
    def output(self):
        """The net's output (..., out_features), an ndarray of the net's dtype.

        It cannot be written to, because backward reads it. It is the tape's own memory, so record(x, tape) changes it.
        """
        cdef cnp.ndarray view
        if self.net is None:
            raise TypeError("a Tape is made by Sequential.record()")
        view = cnp.PyArray_SimpleNewFromData(self.ndim, self.shape, self.net.typenum,
                                             self.kept[self.net.depth - 1].output)
        cnp.set_array_base(view, self.memory)
        cnp.PyArray_CLEARFLAGS(view, cnp.NPY_ARRAY_WRITEABLE)
        return view

    def __repr__(self):
        if self.net is None:
            return "Tape() of no net"
        return f"<Tape of {self.net._name}: output of shape {self.output_shape()}>"

    cdef tuple output_shape(self):
        return tuple_of(self.shape, self.ndim)

    cdef bint is_for(self, cnp.ndarray x) noexcept:
        """Whether x has the batch shape of the tape."""
        cdef int axis
        if cnp.PyArray_NDIM(x) != self.ndim:
            return False
        for axis in range(self.ndim - 1):
            if cnp.PyArray_DIMS(x)[axis] != self.shape[axis]:
                return False
        return True

    cdef Span span(self) noexcept:
        cdef char* first = <char*> self.memory.begin
        return Span(first, first + self.memory.nbytes)


cdef int make_tape(Tape tape, Network net, cnp.ndarray x) except -1:
    """Make the tape one for batches of x's shape. No Python code runs, because x has been looked at."""
    cdef Py_ssize_t rows = rows_of(x), at = 0
    cdef double nbytes = 0
    cdef int s, axis
    cdef Stage* stage
    for s in range(net.depth):
        nbytes += (1 + needs_before(net.stages[s].kind)) * <double> net.stages[s].out_features
    nbytes = (nbytes + net.in_features) * rows * net.itemsize + (2 * net.depth + 1) * LINE
    if nbytes > PY_SSIZE_T_MAX // 2:
        raise MemoryError(f"{net._name}: no {nbytes:.3g} bytes for a tape of x of shape {shape_of(x)}")
    tape.kept = <Kept*> PyMem_Calloc(net.depth, sizeof(Kept))
    if tape.kept == NULL:
        raise MemoryError
    tape.memory = new_memory(<Py_ssize_t> nbytes)
    tape.memory.readonly = True
    tape.x = <char*> tape.memory.begin
    at = lines(rows * net.in_features * net.itemsize)
    for s in range(net.depth):
        stage = &net.stages[s]
        if needs_before(stage.kind):
            tape.kept[s].before = tape.x + at
            at += lines(rows * stage.out_features * net.itemsize)
        tape.kept[s].output = tape.x + at
        at += lines(rows * stage.out_features * net.itemsize)
    tape.rows, tape.ndim = rows, cnp.PyArray_NDIM(x)
    for axis in range(tape.ndim - 1):
        tape.shape[axis] = cnp.PyArray_DIMS(x)[axis]
    tape.shape[tape.ndim - 1] = net.out_features
    tape.net = net      # last: with it, the tape is whole
    return 0


# no_gc_clear as for Tape: the stages point into the layers' memory, which must outlast every call.
@cython.no_gc_clear
cdef class Network(Model):
    """The compiled base of Sequential; see there."""
    cdef tuple held             # the layers
    cdef Stage* stages
    cdef int depth
    cdef Py_ssize_t widest      # the most values of a row between two stages
    cdef double row_size        # multiply-adds that a row takes

    def __dealloc__(self):
        PyMem_Free(self.stages)

    def _bind(self, tuple parts):
        """Take these parts, Linears and names of activations, which the net keeps for life."""
        cdef list layers = [], kinds = []
        cdef Layer layer
        cdef Stage* stages
        cdef Stage* stage
        cdef int s, depth
        check_parts(type(self).__name__, parts, layers, kinds)
        depth = len(layers)
        stages = <Stage*> PyMem_Calloc(depth, sizeof(Stage))
        if stages == NULL:
            raise MemoryError
        with cython.critical_section(self):
            if self.stages != NULL:
                PyMem_Free(stages)
                raise RuntimeError(f"{self!r} has its parts and keeps them; make another net")
            for s in range(depth):
                layer = layers[s]
                stage = &stages[s]
                stage.layer = <PyObject*> layer
                stage.weight, stage.bias = layer.w_span.begin, layer.b_span.begin
                stage.in_features, stage.out_features = layer.in_features, layer.out_features
                stage.kind = kinds[s]
                stage.size = <double> layer.in_features * layer.out_features
                if stage.kind != IDENTITY:
                    stage.size += ACTIVATION * <double> layer.out_features
                self.row_size += stage.size
                self.widest = max(self.widest, layer.out_features)
            self.held, self.stages, self.depth = tuple(layers), stages, depth
            self.set_form((<Layer> layers[0]).typenum, stages[0].in_features, stages[depth - 1].out_features)

    # ---- the parts

    @property
    def layers(self):
        """The Linears, a tuple."""
        self.check_bound()
        return self.held

    @property
    def parts(self):
        """The Linears and the names of the activations, a tuple: ``Sequential(*net.parts)`` has the same layers."""
        cdef list parts = []
        cdef int s
        self.check_bound()
        for s in range(self.depth):
            parts.append(self.held[s])
            if self.stages[s].kind != IDENTITY:
                parts.append(ACTIVATIONS[self.stages[s].kind])
        return tuple(parts)

    # ---- the last look: nothing here runs Python code

    cdef inline bint apart_from_parameters(self, Span a) noexcept:
        cdef int s
        for s in range(self.depth):
            if not (apart(a, (<Layer> self.stages[s].layer).w_span)
                    and apart(a, (<Layer> self.stages[s].layer).b_span)):
                return False
        return True

    cdef inline bint apart_from_gradients(self, Span a) noexcept:
        cdef int s
        for s in range(self.depth):
            if not (<Layer> self.stages[s].layer).apart_from_gradients(a):
                return False
        return True

    cdef bint apart_from_memory(self, Span a) noexcept:
        return self.apart_from_parameters(a) and self.apart_from_gradients(a)

    cdef inline bint can_map(self, Pass* p, x, y) noexcept:
        """Whether the kernels can compute y from x as they are."""
        if not (self.can_read(x, self.in_features) and self.can_write(y, self.out_features)
                and same_batch_shape(<cnp.ndarray> x, <cnp.ndarray> y)):
            return False
        p.rows = rows_of(<cnp.ndarray> x)
        p.x = self.bytes(<cnp.ndarray> x, p.rows, self.in_features)
        p.result = self.bytes(<cnp.ndarray> y, p.rows, self.out_features)
        return apart(p.result, p.x) and self.apart_from_parameters(p.result)

    cdef bint can_go_back(self, Pass* p, Tape tape, grad_output, gx, bint input_grad, bint updates) noexcept:
        """Whether backward can read grad_output as it is, and write gx, which is None if nobody wants it."""
        if not (self.can_read(grad_output, self.out_features) and tape.is_for(<cnp.ndarray> grad_output)):
            return False
        p.rows = tape.rows
        p.grad_output = self.bytes(<cnp.ndarray> grad_output, p.rows, self.out_features)
        p.result = Span(NULL, NULL)
        if not (self.apart_from_parameters(p.grad_output) if updates else
                self.have_gradients() and self.apart_from_gradients(p.grad_output)):
            return False
        if not input_grad:
            return gx is None
        if not (self.can_write(gx, self.in_features) and tape.is_for(<cnp.ndarray> gx)):
            return False
        p.result = self.bytes(<cnp.ndarray> gx, p.rows, self.in_features)
        return (apart(p.result, p.grad_output) and apart(p.result, tape.span()) and self.apart_from_parameters(p.result)
                and (updates or self.apart_from_gradients(p.result)))

    cdef bint have_gradients(self) noexcept:
        cdef int s
        for s in range(self.depth):
            if not load_int(&(<Layer> self.stages[s].layer).has_gradients):
                return False
        return True

    # ---- before the last look

    cdef int ensure_gradients(self) except -1:
        cdef Layer layer
        for layer in self.held:
            layer.ensure_gradients()
        return 0

    cdef int check_writable(self, bint gradients) except -1:
        """Raise if somebody has frozen a layer's memory, so that no layer changes."""
        cdef Layer layer
        for layer in self.held:
            layer.check_writable(gradients)
        return 0

    def _store(self, list values):
        """Copy a pair (weight, bias or None) of the right shapes and dtype into each layer: into all layers or none."""
        cdef Layer layer
        cdef int s
        cdef list weights = [], biases = []
        self.check_bound()
        for weight, bias in values:     # once, because this can run Python code
            weights.append(weight)
            biases.append(bias)
        self.check_writable(False)
        if len(weights) != self.depth:
            raise ValueError(f"{self._name}: there must be values for {self.depth} layers, got {len(weights)}")
        for s in range(self.depth):
            layer, weight, bias = self.held[s], weights[s], biases[s]
            layer.check_values(weight, bias)
        for s in range(self.depth):
            layer, weight, bias = self.held[s], weights[s], biases[s]
            layer.copy_values(weight, bias)

    cdef int check_tape(self, tape) except -1:
        if not isinstance(tape, Tape):
            raise TypeError(f"{self._name}: tape must be a Tape, which record() gives, got {type(tape).__name__}"
                            + ("; tape = net.record(x)" if cnp.PyArray_Check(tape) else ""))
        if (<Tape> tape).net is not self:
            raise ValueError(f"{self._name}: the tape must be one that this net has recorded, got {tape!r}")
        return 0

    # ---- forward

    cdef object map(self, x, out):
        return call(self, x, out)

    def forward(self, x, out=None):
        """All parts, one after another, for every row of x (Torch7: forward). ``net(x)`` is the same.

        x: (..., in_features). out: (..., out_features), overwritten; made new if None. It can overlap anything.
        Returns out. Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape.

        >>> net = Sequential(Linear.from_weights([[1, 2], [3, -4]]), "relu")
        >>> net.forward([[1, 1], [1, 0]])
        array([[3., 0.],
               [1., 3.]], dtype=float32)
        """
        return call(self, x, out)

    def record(self, x, tape=None):
        """A forward that keeps what backward needs. Returns the tape; ``tape.output`` is the output.

        x: (..., in_features); the tape has a copy of it. tape: a tape that this net has recorded for a batch of the
        same shape; it is overwritten, without an allocation. It is made new if None. Raises TypeError for a dtype that
        does not cast safely, ValueError for a wrong shape or another net's tape.

        >>> net = Sequential(Linear.from_weights([[1, 2], [3, -4]]), "relu")
        >>> tape = net.record([1, 1])
        >>> tape.output
        array([3., 0.], dtype=float32)
        >>> net.record([1, 0], tape) is tape
        True
        """
        cdef Rows r
        cdef Tape t
        if tape is None:
            t = Tape.__new__(Tape)      # before the look at x, because it can set off a garbage collection
        else:
            self.check_tape(tape)
            t = <Tape> tape
        if not self.can_read(x, self.in_features):
            x = self.taken("x", x)
            self.check_rows("x", x, self.in_features)
            x = self.plain(x)
            if not self.can_read(x, self.in_features):
                raise self.changed()
        if tape is None:
            make_tape(t, self, x)
        elif not t.is_for(x):
            raise ValueError(
                f"{self._name}: the tape is of a batch whose output has shape {t.output_shape()}, and x has shape "
                f"{shape_of(x)}; record it without a tape")
        r.x, r.result, r.kept = t.x, NULL, t.kept
        self.run_forward(&r, t.rows, <char*> cnp.PyArray_DATA(x))
        return t

    cdef int run_forward(self, Rows* r, Py_ssize_t rows, const char* to_copy) except -1:
        """Take all rows through all stages. The x of a tape is copied from to_copy."""
        cdef Work work
        if not self.prepare(r):
            return self.reference_forward(r, rows, to_copy)
        if rows == 0 or (self.out_features == 0 and to_copy == NULL):
            return 0        # there can be so many rows without features that a loop over them would never end
        r.block = self.block_of(rows)
        r.buffer = 0 if r.kept != NULL or self.depth == 1 else lines(r.block * self.widest * self.itemsize)
        begin(&work, self.row_size * rows, 2 * r.buffer)
        if to_copy != NULL:
            memmove(r.x, to_copy, rows * self.in_features * self.itemsize)
        r.threads, r.scratch = work.threads, work.scratch
        r.buffers = work.scratch + work.threads * <size_t> SCRATCH_BYTES
        forward_loops(r, rows)
        end(&work)
        return 0

    cdef inline bint prepare(self, Rows* r) noexcept:
        """Fill in what the net knows of a call. False if the reference is to run it."""
        r.kernels, r.elementwise = kernels_of(self.is_double), elementwise_of(self.is_double)
        r.stages, r.depth, r.itemsize = self.stages, self.depth, self.itemsize
        return r.kernels != NULL and r.elementwise != NULL

    cdef inline Py_ssize_t block_of(self, Py_ssize_t rows) noexcept:
        cdef Py_ssize_t width = self.widest * self.itemsize
        if rows == 1 or width == 0:
            return rows
        return min(rows, max(BLOCK_BYTES // width, min(<Py_ssize_t> BLOCK_ROWS, MOST_BLOCK_BYTES // width), 1))

    # ---- backward

    def backward(self, tape, grad_output, out=None, scale=1.0, input_grad=True):
        """The backward of all parts, the last one first, which adds to every layer's gradients (Torch7: backward).

        tape: from record(). grad_output: (..., out_features), the gradient by tape.output, with the same leading axes.
        grad_weight and grad_bias of each layer are accumulated, with the gradient multiplied by scale; grad_input is
        not scaled. grad_input overwrites out (..., in_features), or a new array if None. Returns grad_input, or None
        with input_grad=False. The weights are used as they are now.
        Raises TypeError for a dtype that does not cast safely, ValueError for a wrong shape or another net's tape.

        >>> net = Sequential(Linear.from_weights([[1, 2], [3, -4]]), "relu")
        >>> tape = net.record([1, 1])
        >>> net.backward(tape, [1, 1])
        array([1., 2.], dtype=float32)
        >>> net.layers[0].grad_weight
        array([[1., 1.],
               [0., 0.]], dtype=float32)
        """
        return self.run_backward(tape, grad_output, out, self.number("scale", scale), input_grad, False)

    def backward_update(self, tape, grad_output, lr, out=None, input_grad=True):
        """The backward_update of all parts, the last one first: grad_input, and the plain SGD step of every layer.

        tape, grad_output, out and input_grad are as for backward. The parameters of every layer are changed in place;
        no gradient is touched or needed. A layer's grad_input comes from its weights as they were before the step. That
        of the net overwrites out, or a new array if None. Returns grad_input, or None with input_grad=False. Raises
        what backward raises, and ValueError if lr is not finite.

        >>> net = Sequential(Linear.from_weights([[1, 2], [3, -4]]), "relu")
        >>> net.backward_update(net.record([1, 1]), [1, 1], lr=0.5)
        array([1., 2.], dtype=float32)
        >>> net.layers[0].weight
        array([[ 0.5,  1.5],
               [ 3. , -4. ]], dtype=float32)
        """
        return self.run_backward(tape, grad_output, out, self.learning_rate(lr), input_grad, True)

    cdef run_backward(self, tape, grad_output, out, double rate, wants_input, bint updates):
        cdef Pass p
        cdef Rows r
        cdef Tape t
        cdef Work work
        cdef Memory own = None
        cdef bint input_grad = wants_input
        cdef object gx = out
        self.check_bound()
        self.check_tape(tape)
        t = <Tape> tape
        if (input_grad and out is None and self.can_read(grad_output, self.out_features)
                and t.is_for(<cnp.ndarray> grad_output)):
            gx = self.empty(<cnp.ndarray> grad_output, self.in_features)
        if not self.can_go_back(&p, t, grad_output, gx, input_grad, updates):
            grad_output = self.taken("grad_output", grad_output)
            self.taken_out(out)
            if not updates:
                self.check_no_scale(out)
            self.check_rows("grad_output", grad_output, self.out_features)
            if not t.is_for(grad_output):
                raise ValueError(f"{self._name}: grad_output must have shape {t.output_shape()} to match the tape, "
                                 f"got {shape_of(grad_output)}")
            if out is not None and not input_grad:
                raise ValueError(f"{self._name}: out is for grad_input, which input_grad=False leaves out")
            self.check_out(out, grad_output, self.in_features)
            if not updates:
                self.ensure_gradients()
            grad_output = self.plain_apart(grad_output)
            gx = self.empty(<cnp.ndarray> grad_output, self.in_features) if input_grad else None
            if not self.can_go_back(&p, t, grad_output, gx, input_grad, updates):
                raise self.changed()
        self.check_writable(not updates)
        r.x, r.kept, r.grad_output, r.result = t.x, t.kept, p.grad_output.begin, p.result.begin
        r.rate, r.updates = rate, updates
        if not self.prepare(&r):
            self.reference_backward(&r, p.rows, input_grad)
        elif p.rows:
            # An update goes over all rows at once, because a layer's grad_input is from its weights before the step.
            r.block = p.rows if updates else self.block_of(p.rows)
            r.buffer = lines(r.block * self.widest * self.itemsize)
            if r.buffer > MOST_BLOCK_BYTES:
                own = new_memory(2 * r.buffer)      # unlike scratch, it is not kept for the thread's next call
            begin(&work, 3 * self.row_size * p.rows, 0 if own is not None else 2 * r.buffer)
            r.threads, r.scratch = work.threads, work.scratch
            r.buffers = <char*> own.begin if own is not None else work.scratch + work.threads * <size_t> SCRATCH_BYTES
            backward_rows(&r, p.rows)
            end(&work)
        return delivered(gx, out)

    # ---- the reference, in NumPy

    cdef cnp.ndarray matrix(self, char* first, Py_ssize_t rows, Py_ssize_t columns):
        """An array on memory that outlasts the call."""
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = rows, columns
        return cnp.PyArray_SimpleNewFromData(2, shape, self.typenum, first)

    cdef cnp.ndarray new_matrix(self, Py_ssize_t rows, Py_ssize_t columns):
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = rows, columns
        return cnp.PyArray_ZEROS(2, shape, self.typenum, 0)

    cdef int reference_forward(self, Rows* r, Py_ssize_t rows, const char* to_copy) except -1:
        cdef Stage* stage
        cdef Layer layer
        cdef int s
        kernels, elementwise = kernel_module(), elementwise_module()
        if to_copy != NULL:
            memmove(r.x, to_copy, rows * self.in_features * self.itemsize)
        values = self.matrix(r.x, rows, self.in_features)
        for s in range(self.depth):
            stage, layer = &self.stages[s], self.held[s]
            source, values = values, self.new_matrix(rows, stage.out_features)
            kernels.forward(source, layer.W.view(), view_of(layer.b), values)
            if r.kept != NULL and r.kept[s].before != NULL:
                self.matrix(r.kept[s].before, rows, stage.out_features)[...] = values
            if stage.kind != IDENTITY:
                elementwise.activate(stage.kind, values, values)
            if r.kept != NULL:
                self.matrix(r.kept[s].output, rows, stage.out_features)[...] = values
        if r.result != NULL:
            self.matrix(r.result, rows, self.out_features)[...] = values
        return 0

    cdef int reference_backward(self, Rows* r, Py_ssize_t rows, bint input_grad) except -1:
        cdef Stage* stage
        cdef Layer layer
        cdef int s
        kernels, elementwise = kernel_module(), elementwise_module()
        gradient = self.matrix(r.grad_output, rows, self.out_features)
        for s in range(self.depth - 1, -1, -1):
            stage, layer = &self.stages[s], self.held[s]
            if stage.kind != IDENTITY:
                after, gradient = gradient, self.new_matrix(rows, stage.out_features)
                elementwise.derivative(
                    stage.kind, after, self.matrix(r.kept[s].output, rows, stage.out_features),
                    None if r.kept[s].before == NULL else self.matrix(r.kept[s].before, rows, stage.out_features),
                    gradient)
            source = self.matrix(r.kept[s - 1].output if s else r.x, rows, stage.in_features)
            target = self.new_matrix(rows, stage.in_features) if s or input_grad else None
            if r.updates:
                kernels.update(source, gradient, r.rate, layer.W.view(), view_of(layer.b), target)
            else:
                if target is not None:
                    kernels.grad_input(gradient, layer.W.view(), target)
                kernels.grad_weight(source, gradient, r.rate, layer.grad_W.view())
                if layer.b is not None:
                    kernels.grad_bias(gradient, r.rate, layer.grad_b.view())
            gradient = target
        if input_grad:
            self.matrix(r.result, rows, self.in_features)[...] = gradient
        return 0

    # ---- the parameters

    cdef double learning_rate(self, lr) except? -1:
        """lr as a finite number: any other would spoil every weight of every layer."""
        cdef double rate = self.number("lr", lr)
        if not isfinite(rate):
            from fastlinear._advice import shown
            raise ValueError(f"{self._name}: lr must be finite, got {shown(lr)}")
        return rate

    def step(self, lr):
        """The step of every layer: weight −= lr · grad_weight and bias −= lr · grad_bias. Returns None.

        Raises TypeError if lr is no real number, ValueError if it is not finite or a parameter was made read-only; then
        no layer has changed.

        >>> net = Sequential(Linear.from_weights([[1, 2]]), "relu")
        >>> grad_input = net.backward(net.record([1, 1]), [1])
        >>> net.step(lr=0.5)
        >>> net.layers[0].weight
        array([[0.5, 1.5]], dtype=float32)
        """
        cdef double rate
        cdef Work work
        cdef Kernels* kernels
        cdef Layer layer
        cdef int s
        self.check_bound()
        rate = self.learning_rate(lr)
        kernels = kernels_of(self.is_double)
        self.ensure_gradients()
        self.check_writable(False)
        if kernels == NULL:
            for layer in self.held:
                layer.step(rate)
            return
        release_gil(&work, self.row_size)
        for s in range(self.depth):
            step(&self.stages[s], kernels, rate)
        end(&work)

    def zero_grad(self):
        """Set grad_weight and grad_bias of every layer to zero. Returns None.

        Gradients that were never used are zero already, and are not made. Raises ValueError if a gradient was made
        read-only; then no layer has changed.

        >>> net = Sequential(Linear.from_weights([[1, 2]]), "relu")
        >>> grad_input = net.backward(net.record([1, 1]), [1])
        >>> net.zero_grad()
        >>> net.layers[0].grad_weight
        array([[0., 0.]], dtype=float32)
        """
        cdef Work work
        cdef Layer layer
        cdef int s
        self.check_bound()
        for layer in self.held:
            if load_int(&layer.has_gradients):
                layer.check_writable(True)
        release_gil(&work, self.row_size)
        for s in range(self.depth):
            zero(&self.stages[s])
        end(&work)


cdef inline void zero(const Stage* stage) noexcept nogil:
    cdef Span weight, bias
    if load_int(&(<Layer> stage.layer).has_gradients):
        gradients_of(stage, &weight, &bias)
        memset(weight.begin, 0, weight.end - weight.begin)
        if bias.begin != NULL:
            memset(bias.begin, 0, bias.end - bias.begin)


cdef inline void step(const Stage* stage, Kernels* kernels, double rate) noexcept nogil:
    cdef Span weight, bias
    gradients_of(stage, &weight, &bias)
    kernels.step(weight.begin, rate, stage.weight, stage.in_features * stage.out_features)
    if stage.bias != NULL:
        kernels.step(bias.begin, rate, stage.bias, stage.out_features)


cdef call(Network self, x, out):
    cdef Pass p
    cdef Rows r
    cdef object y = out
    if out is None and self.can_read(x, self.in_features):
        y = self.empty(<cnp.ndarray> x, self.out_features)
    if not self.can_map(&p, x, y):
        x = self.taken("x", x)
        self.taken_out(out)
        self.check_rows("x", x, self.in_features)
        self.check_out(out, x, self.out_features)
        x = self.plain(x)
        y = self.empty(<cnp.ndarray> x, self.out_features)
        if not self.can_map(&p, x, y):
            raise self.changed()
    r.x, r.result, r.kept = p.x.begin, p.result.begin, NULL
    self.run_forward(&r, p.rows, NULL)
    return delivered(y, out)


@cython.wraparound(True)
cdef int check_parts(str name, tuple parts, list layers, list kinds) except -1:
    """Divide parts into layers and the kinds of the activations after them, or raise if they make no net."""
    cdef Layer layer, before = None
    cdef Py_ssize_t place, place_before = 0
    known = ", ".join(ACTIVATIONS[1:])
    for place in range(len(parts)):
        part = parts[place]
        if isinstance(part, Layer):
            layer = <Layer> part
            layer.check_bound()
            if kinds and kinds[-1] == SOFTMAX:
                raise ValueError(f"{name}: softmax must be the last part, and part {place} is {part!r}")
            for place_before in range(place):
                if parts[place_before] is part:
                    raise ValueError(f"{name}: parts {place_before} and {place} are the same layer; a net has each "
                                     "layer once, so give it a copy (copy.deepcopy)")
            if before is not None and before.typenum != layer.typenum:
                raise ValueError(f"{name}: all layers must have one dtype, and part {place} has {layer.dtype} after "
                                 f"{before.dtype}; convert it with astype({before.dtype})")
            if before is not None and before.out_features != layer.in_features:
                raise ValueError(f"{name}: part {place} takes {layer.in_features} features, and what comes before it "
                                 f"gives {before.out_features}: {layer!r} after {before!r}")
            layers.append(layer)
            kinds.append(IDENTITY)
            before = layer
        elif isinstance(part, str):
            if part not in ACTIVATIONS[1:]:
                from fastlinear._advice import for_part, shown
                raise ValueError(f"{name}: part {place} must be a Linear or the name of an activation, one of {known}, "
                                 f"got {shown(part)}{for_part(part)}")
            if not kinds or kinds[-1] != IDENTITY:
                raise ValueError(f"{name}: an activation must follow a Linear, and part {place}, "
                                 f"{ACTIVATIONS[ACTIVATIONS.index(part)]!r}, "
                                 + ("is the first" if not kinds else f"follows {ACTIVATIONS[kinds[-1]]!r}"))
            kinds[-1] = ACTIVATIONS.index(part)
        else:
            from fastlinear._advice import for_part
            raise TypeError(f"{name}: part {place} must be a Linear or the name of an activation ({known}), "
                            f"got {type(part).__name__}{for_part(part)}")
    if not layers:
        raise ValueError(f"{name}: there must be a Linear among the parts, got {parts!r}")
    return 0
