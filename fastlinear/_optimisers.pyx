# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""The compiled base of the optimisers: the state kept for each parameter, and a step over all of them in one call.

As in _layer.pyx, everything that can run Python code comes first. Then each kernel goes over memory that neither a
layer nor an optimiser ever moves or gives back. The arithmetic is in _optimiser.h.
"""
cimport cython
cimport numpy as cnp
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport INFINITY, fabs, isfinite, pow, sqrt
from libc.string cimport memmove, memset

from fastlinear._layer cimport (
    Layer, Memory, Parameter, PyArray_CheckExact, PyArray_ISCARRAY_RO, Span, Work, begin, elementwise_module,
    elementwise_of, end, load_int, new_memory, release_gil, shape_of, store_int)
from fastlinear._table cimport Elementwise

cnp.import_array()

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    CACHE_LINE = 64     # each buffer begins on one
    COST = 16           # of an element, in multiply-adds: what WORTH_RELEASING and WORTH_A_THREAD are measured in


cdef struct Slot:
    # The arguments of a kernel for one parameter.
    void* parameter
    void* gradient
    void* buffers[2]
    Py_ssize_t size
    bint is_double


cdef bint is_in(layer, list layers) noexcept:
    for known in layers:
        if layer is known:
            return True
    return False


cdef tuple layers_of(str caller, model):
    """The layers of a model, each once."""
    cdef list layers = []
    if isinstance(model, Layer):
        layers.append(model)
    else:
        given = getattr(model, "layers", None)
        for layer in given if isinstance(given, (list, tuple)) else ():
            if not isinstance(layer, Layer):
                raise TypeError(f"{caller}: each of model.layers must be a Linear, got {type(layer).__name__}")
            if not is_in(layer, layers):
                layers.append(layer)
        if not layers:
            from fastlinear._advice import for_model
            raise TypeError(f"{caller}: model must be a Linear or a Sequential, got {type(model).__name__}"
                            f"{for_model(model)}")
    for layer in layers:
        (<Layer> layer).check_bound()
    return tuple(layers)


cdef list shapes_of(tuple layers):
    cdef Layer layer
    cdef list found = []
    for item in layers:
        layer = <Layer> item
        found.append((shape_of(layer.W.view()), layer.dtype))
        if layer.b is not None:
            found.append((shape_of(layer.b.view()), layer.dtype))
    return found


cdef int check_buffers(str caller, list shapes, int count, list buffers) except -1:
    """Whether buffers has so many arrays of each of these shapes and dtypes, or None, for each parameter."""
    for (shape, dtype), arrays in zip(shapes, buffers, strict=True):
        for _, array in zip(range(count), arrays, strict=True):
            if array is not None and not (PyArray_CheckExact(array) and PyArray_ISCARRAY_RO(array)
                                          and array.shape == shape and array.dtype == dtype):
                raise ValueError(f"{caller}: the state does not fit the model's parameters")
    return 0


cdef inline Py_ssize_t size_of(Span span, bint is_double) noexcept:
    return (span.end - span.begin) // (8 if is_double else 4)


cdef inline Py_ssize_t lines(Span span) noexcept:
    """The bytes of a span, rounded up to whole cache lines."""
    return (span.end - span.begin + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


cdef int check_frozen_gradients(tuple layers) except -1:
    for layer in layers:
        if load_int(&(<Layer> layer).has_gradients):
            (<Layer> layer).check_writable(True)
    return 0


cdef class Optimiser:
    """The layers of a model, and the state of each of their parameters; see fastlinear/optimisers.py."""

    cdef readonly object model
    cdef readonly long long steps       # that were taken
    cdef tuple layers
    cdef Memory memory, slot_memory
    cdef Slot* slots
    cdef Py_ssize_t count               # of parameters
    cdef double size                    # elements in all of them
    cdef int buffers                    # for each parameter, at most 2: a subclass says how many its step needs
    cdef double largest                 # finite number in the dtypes of all parameters
    cdef int has_gradients              # whether the slots say where the gradients are
    cdef double rate
    cdef readonly double weight_decay
    cdef object __weakref__

    def _bind(self, model, tuple layers not None, dict numbers, long long steps=0, list buffers=None):
        """Make the state for the model's layers, which _layers_of() found, for life: what _load() takes, without
        buffers zeros. Where it fails, the optimiser has no model."""
        cdef Memory memory, slot_memory
        cdef Layer layer
        cdef Slot* slots
        cdef Py_ssize_t count = 0, n = 0
        cdef object nbytes = 0
        cdef double size = 0, largest = DBL_MAX
        self.check_unbound()
        for layer in layers:
            layer.check_bound()
            for span in (lines(layer.w_span), lines(layer.b_span)):
                nbytes += self.buffers * span
            count += 1 if layer.b is None else 2
            if not layer.is_double:
                largest = FLT_MAX
        if nbytes > PY_SSIZE_T_MAX - CACHE_LINE:
            raise MemoryError(f"no {nbytes} bytes for the state of {type(self).__name__}")
        memory, slot_memory = new_memory(nbytes), new_memory(count * sizeof(Slot))
        slots = <Slot*> slot_memory.begin
        at = <char*> memory.begin
        for layer in layers:
            n += place(slots + n, layer.w_span, layer.is_double, self.buffers, &at)
            if layer.b is not None:
                n += place(slots + n, layer.b_span, layer.is_double, self.buffers, &at)
        self.check_steps(steps)
        if buffers is not None:
            check_buffers(type(self).__name__, shapes_of(layers), self.buffers, buffers)
            for n in range(count):
                fill(&slots[n], self.buffers, buffers[n])
        for n in range(count):
            size += slots[n].size
        self._configure(**numbers)
        with cython.critical_section(self):
            fresh = self.layers is None     # another thread might have been faster
            if fresh:
                self.memory, self.slot_memory, self.slots = memory, slot_memory, slots
                self.count, self.size, self.largest, self.model, self.steps = count, size, largest, model, steps
                self.layers = layers
        if not fresh:
            self.check_unbound()

    cdef int check_unbound(self) except -1:
        if self.layers is not None:
            raise RuntimeError(f"{type(self).__name__} has its model and keeps it; make another optimiser")
        return 0

    cdef int check_steps(self, long long steps) except -1:
        if steps < 0:
            raise ValueError(f"{type(self).__name__}: the steps of the state must not be negative, got {steps}")
        return 0

    cdef int check_bound(self) except -1:
        if self.layers is None:
            raise RuntimeError(f"{type(self).__name__} has no model yet: its __init__ was not called")
        return 0

    cdef int make_ready(self) except -1:
        """Raise unless there can be a step. Gradients that nobody has used yet are made, full of zeros."""
        cdef Layer layer
        cdef Py_ssize_t n = 0
        self.check_bound()
        for item in self.layers:
            layer = <Layer> item
            layer.ensure_gradients()
            layer.check_writable(False)
        if not load_int(&self.has_gradients):
            for item in self.layers:
                layer = <Layer> item
                self.slots[n].gradient = layer.grad_w_span.begin
                n += 1
                if layer.b is not None:
                    self.slots[n].gradient = layer.grad_b_span.begin
                    n += 1
            store_int(&self.has_gradients, True)
        return 0

    cdef long long next_step(self) except -1:
        """The number of the step that begins."""
        cdef long long step
        with cython.critical_section(self):
            self.steps += 1
            step = self.steps
        return step

    cdef int take_back(self) except -1:
        """The step that began is none."""
        with cython.critical_section(self):
            self.steps -= 1
        return 0

    cdef int start(self, Work* work) except -1:
        """begin() for all parameters. If it fails, the step does not count."""
        try:
            begin(work, self.size * COST, 0)
        except MemoryError:
            self.take_back()
            raise
        return 0

    cdef list views(self):
        """For each parameter: itself, its gradient and its buffers, as flat ndarrays. For the reference."""
        cdef Layer layer
        cdef list found = []
        for layer in self.layers:
            found.append([layer.W.view().reshape(-1), layer.grad_W.view().reshape(-1)])
            if layer.b is not None:
                found.append([layer.b.view(), layer.grad_b.view()])
        for n, buffers in enumerate(self.own_buffers()):
            for buffer in buffers:
                found[n].append(buffer.reshape(-1))
        return found

    cdef list shapes(self):
        self.check_bound()
        return shapes_of(self.layers)

    def _shapes(self):
        """The shape and dtype of each parameter: weight and bias of one layer after another."""
        return self.shapes()

    def _layers_of(self, model):
        """The layers of a model that an optimiser can have, each once. model.layers is asked for once."""
        return layers_of(type(self).__name__, model)

    def _shapes_of(self, tuple layers not None):
        """As _shapes(), of the layers of a model."""
        return shapes_of(layers)

    def _buffers(self):
        """For each parameter, the arrays of its state, which are the optimiser's own memory."""
        return self.own_buffers()

    cdef list own_buffers(self):
        cdef cnp.npy_intp dims[2]
        cdef Py_ssize_t n
        cdef int axis, b
        cdef list found = []
        for n, (shape, _) in enumerate(self.shapes()):
            for axis in range(len(shape)):
                dims[axis] = shape[axis]
            arrays = []
            for b in range(self.buffers):
                array = cnp.PyArray_SimpleNewFromData(
                    len(shape), dims, cnp.NPY_DOUBLE if self.slots[n].is_double else cnp.NPY_FLOAT,
                    self.slots[n].buffers[b])
                cnp.set_array_base(array, self.memory)
                arrays.append(array)
            found.append(arrays)
        return found

    def _load(self, long long steps, list buffers, dict numbers):
        """Copy a state in, and let no signal come between its parts. buffers has arrays of the shapes and dtypes of
        _buffers(), or None for zeros; numbers are the arguments of _configure()."""
        cdef Py_ssize_t n
        self.check_steps(steps)
        check_buffers(type(self).__name__, self.shapes(), self.buffers, buffers)
        self._configure(**numbers)      # the last that can fail
        with cython.critical_section(self):
            for n in range(self.count):
                fill(&self.slots[n], self.buffers, buffers[n])
            self.steps = steps

    @property
    def lr(self):
        """The learning rate, a float. It can be set; a number that is negative or not finite is a ValueError."""
        return self.rate

    @lr.setter
    def lr(self, value):
        self.rate = self._number("lr", value, self.shapes())

    def zero_grad(self):
        """Set the gradients of every layer to zero. Returns None.

        Gradients that were never used are zero already, and are not made. Raises ValueError if a gradient was made
        read-only; then nothing has changed.

        >>> layer = Linear(2, 1)
        >>> layer.backward_params([3, 4], [1])
        >>> SGD(layer).zero_grad()
        >>> layer.grad_weight
        array([[0., 0.]], dtype=float32)
        """
        cdef Layer layer
        cdef Work work
        self.check_bound()
        check_frozen_gradients(self.layers)
        for item in self.layers:
            layer = <Layer> item
            if load_int(&layer.has_gradients):
                release_gil(&work, <double> layer.in_features * layer.out_features)
                memset(layer.grad_w_span.begin, 0, layer.grad_w_span.end - layer.grad_w_span.begin)
                if layer.grad_b_span.begin != NULL:
                    memset(layer.grad_b_span.begin, 0, layer.grad_b_span.end - layer.grad_b_span.begin)
                end(&work)


cdef inline void fill(Slot* slot, int buffers, list arrays) noexcept:
    """Copy checked arrays in, or zeros for None. No allocation."""
    cdef Py_ssize_t nbytes = slot.size * (8 if slot.is_double else 4)
    cdef int b
    for b in range(buffers):
        if arrays[b] is None:
            memset(slot.buffers[b], 0, nbytes)
        else:
            memmove(slot.buffers[b], cnp.PyArray_DATA(<cnp.ndarray> arrays[b]), nbytes)


cdef int place(Slot* slot, Span span, bint is_double, int buffers, char** at) except -1:
    """Give a slot its parameter and its buffers. The buffers begin at `at`, which is moved past them."""
    cdef int b
    slot.parameter, slot.is_double, slot.size = span.begin, is_double, size_of(span, is_double)
    for b in range(buffers):
        slot.buffers[b] = at[0]
        at[0] += lines(span)
    return 1


cdef class SGDBase(Optimiser):
    cdef readonly double momentum
    cdef readonly bint nesterov

    def __cinit__(self, *args, **kwargs):
        self.buffers = 1

    def _configure(self, double lr, double momentum, bint nesterov, double weight_decay):
        self.rate, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay

    def step(self):
        """Change every parameter in place by its gradient g, which stays as it is. Returns None.

        With weight_decay, g += weight_decay · parameter. With momentum, buffer = momentum · buffer + g, and then g is
        the buffer or, with nesterov, g + momentum · buffer. In the end, parameter −= lr · g. Without weight_decay and
        momentum this is the step of the layers. All of it is one pass over the memory. Raises ValueError if a parameter
        was made read-only; then nothing has changed.

        >>> layer = Linear.from_weights([[1, 2]])
        >>> layer.backward_params([1, -1], [1])
        >>> SGD(layer, lr=0.5).step()
        >>> layer.weight
        array([[0.5, 2.5]], dtype=float32)
        """
        cdef Elementwise* single = elementwise_of(False)
        cdef Elementwise* double_ = elementwise_of(True)
        cdef Work work
        cdef Slot* slot
        cdef Slot* stop
        cdef double lr, momentum, weight_decay
        cdef bint nesterov
        self.make_ready()
        self.next_step()
        lr, momentum, nesterov, weight_decay = self.rate, self.momentum, self.nesterov, self.weight_decay
        if single == NULL or double_ == NULL:
            for parameter, gradient, buffer in self.views():
                elementwise_module().sgd(gradient, lr, momentum, nesterov, weight_decay, parameter,
                                         buffer if momentum else None)
            return
        self.start(&work)
        slot, stop = self.slots, self.slots + self.count
        while slot < stop:
            (double_ if slot.is_double else single).sgd(
                slot.gradient, lr, momentum, nesterov, weight_decay, slot.parameter,
                slot.buffers[0] if momentum else NULL, slot.size, work.threads)
            slot += 1
        end(&work)


cdef class AdamBase(Optimiser):
    cdef readonly double beta1, beta2, eps
    cdef readonly bint decoupled        # AdamW's weight decay

    def __cinit__(self, *args, **kwargs):
        self.buffers = 2

    def _configure(self, double lr, double beta1, double beta2, double eps, double weight_decay, bint decoupled):
        self.rate, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.weight_decay, self.decoupled = weight_decay, decoupled

    def step(self):
        """Change every parameter in place by its gradient g, which stays as it is. Returns None.

        At step t, mean += (1 − β₁)(g − mean), square = β₂ square + (1 − β₂) g², and
        parameter −= lr / (1 − β₁ᵗ) · mean / (√square / √(1 − β₂ᵗ) + eps). Adam's weight decay adds
        weight_decay · parameter to g first; AdamW's multiplies the parameter by 1 − lr · weight_decay instead. All of
        it is one pass over the memory. The formulas are those of Kingma and Ba (ICLR 2015), and of Loshchilov and
        Hutter (ICLR 2019) for AdamW, as PyTorch has them. Raises ValueError if a parameter was made read-only, or if a
        number of the step is infinite in a layer's dtype; then nothing has changed.

        >>> layer = Linear.from_weights([[1, 2]])
        >>> layer.backward_params([1, -1], [2])
        >>> Adam(layer, lr=0.5).step()
        >>> layer.weight.round(4)
        array([[0.5, 2.5]], dtype=float32)
        """
        cdef Elementwise* single = elementwise_of(False)
        cdef Elementwise* double_ = elementwise_of(True)
        cdef Work work
        cdef Slot* slot
        cdef Slot* stop
        cdef double rate, beta1, beta2, eps, weight_decay = 0, decay = 1, correction
        cdef long long t
        self.make_ready()
        t = self.next_step()
        beta1, beta2, eps = self.beta1, self.beta2, self.eps
        rate, correction = self.rate / (1 - pow(beta1, <double> t)), 1 / sqrt(1 - pow(beta2, <double> t))
        if self.decoupled:
            decay = 1 - self.rate * self.weight_decay
        else:
            weight_decay = self.weight_decay
        if not (rate <= self.largest and fabs(decay) <= self.largest):
            self.take_back()
            raise ValueError(f"{type(self).__name__}: lr {self.rate} is too large for step {t} in the model's dtype: "
                             f"lr / (1 - beta1**{t}) is {rate}, 1 - lr * weight_decay {decay}")
        if single == NULL or double_ == NULL:
            for parameter, gradient, mean, square in self.views():
                elementwise_module().adam(gradient, rate, beta1, beta2, correction, eps, weight_decay, decay,
                                          parameter, mean, square)
            return
        self.start(&work)
        slot, stop = self.slots, self.slots + self.count
        while slot < stop:
            (double_ if slot.is_double else single).adam(
                slot.gradient, rate, beta1, beta2, correction, eps, weight_decay, decay, slot.parameter,
                slot.buffers[0], slot.buffers[1], slot.size, work.threads)
            slot += 1
        end(&work)


cdef double sum_of_squares(Parameter gradient, bint is_double):
    cdef Work work
    cdef double total
    cdef Elementwise* table = elementwise_of(is_double)
    cdef Py_ssize_t size = size_of(gradient.span, is_double)
    if table == NULL:
        return elementwise_module().squares(gradient.view().reshape(-1))
    release_gil(&work, size)
    total = table.squares(gradient.span.begin, size)
    end(&work)
    return total


cdef int scale_gradient(double factor, Parameter gradient, bint is_double) except -1:
    cdef Work work
    cdef Elementwise* table = elementwise_of(is_double)
    cdef Py_ssize_t size = size_of(gradient.span, is_double)
    if table == NULL:
        elementwise_module().scale(factor, gradient.view().reshape(-1))
        return 0
    release_gil(&work, size)
    table.scale(factor, gradient.span.begin, size)
    end(&work)
    return 0


def clip_grad_norm(model, max_norm, error_if_nonfinite=False):
    """Scale the gradients of a model in place so that their norm is at most max_norm. Returns the norm before, a float.

    model: a Linear or a Sequential. The norm is that of all gradients together, as one vector; it is added up in
    float64. If it is larger than max_norm, every gradient is multiplied by max_norm / (norm + 1e-6), as in PyTorch's
    ``clip_grad_norm_``. A NaN or an infinity in a gradient makes the norm NaN or infinite, and then spreads to all
    gradients as in PyTorch; with error_if_nonfinite=True it is a RuntimeError, and nothing has changed. max_norm must
    not be negative, or it is a ValueError; with infinity nothing is ever scaled. Raises ValueError if a gradient was
    made read-only.

    >>> layer = Linear.from_weights([[1, 2]])
    >>> layer.backward_params([3, 4], [1])
    >>> clip_grad_norm(layer, 1.0)
    5.0
    >>> layer.grad_weight.round(3)
    array([[0.6, 0.8]], dtype=float32)
    """
    cdef double most = not_negative("clip_grad_norm: max_norm", max_norm)
    cdef bint strict = error_if_nonfinite
    cdef double total = 0, factor
    cdef Layer layer
    cdef tuple layers = layers_of("clip_grad_norm", model)
    check_frozen_gradients(layers)
    for layer in layers:
        if load_int(&layer.has_gradients):
            total += sum_of_squares(layer.grad_W, layer.is_double)
            if layer.grad_b is not None:
                total += sum_of_squares(layer.grad_b, layer.is_double)
    total = sqrt(total)
    if strict and not isfinite(total):
        raise RuntimeError(f"clip_grad_norm: the norm of the gradients is {total}, so they cannot be scaled by it; "
                           "error_if_nonfinite=False would scale them")
    factor = most / (total + 1e-6)
    if most == INFINITY or factor >= 1:
        return total
    for layer in layers:
        if load_int(&layer.has_gradients):
            scale_gradient(factor, layer.grad_W, layer.is_double)
            if layer.grad_b is not None:
                scale_gradient(factor, layer.grad_b, layer.is_double)
    return total


def real_number(str name, value):
    """value as a float. It is asked for that once."""
    import operator
    if isinstance(value, cnp.ndarray) and (value.ndim or value.dtype.kind == "c"):
        from fastlinear._advice import came
        raise TypeError(f"{name} must be a real number, got {came(value)}")
    if isinstance(value, cnp.generic) and value.dtype.kind == "c":
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    try:
        return float(operator.index(value) if isinstance(value, int) else value.__float__())
    except (TypeError, AttributeError):
        from fastlinear._advice import came
        raise TypeError(f"{name} must be a real number, got {came(value)}") from None
    except OverflowError:
        raise ValueError(f"{name} must be finite, got an integer beyond float64") from None


cdef double not_negative(str name, value) except? -1:
    cdef double number = value if isinstance(value, float) else real_number(name, value)
    if not number >= 0:
        from fastlinear._advice import shown
        raise ValueError(f"{name} must not be negative, got {shown(value)}")
    return number
