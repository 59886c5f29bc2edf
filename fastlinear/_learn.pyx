# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True
"""Linear.learn: rows in, one step of gradient descent after another, in one compiled loop.

What it computes is reference.learn. There are two ways to that: rows one by one for one output, which are in _rows.h,
and everything else, which calls the kernels that the public methods call. Arguments are taken as in _layer.pyx: first
all that can run Python code, then all checks, then the rows. They come in blocks, between which signals are handled.
Arrays can change meanwhile. So kernels look at a label before they follow it, and a block copies its part of order and
checks it when its turn comes.
"""
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_CheckExact
from cpython.ref cimport Py_INCREF
from libc.math cimport INFINITY, isinf
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastlinear._layer cimport (
    WORTH_RELEASING, Layer, Parameter, PyArray_CheckExact, PyArray_ISCARRAY_RO, PyThreadState, Work, begin,
    elementwise_of, end, kernels_of, shape_of)
from fastlinear._table cimport (
    HINGE, HUBER, LOG_LOSS, SCRATCH_BYTES, SQUARED_ERROR, Elementwise, Kernels, Loss)

from operator import index

import numpy as np

from fastlinear import reference

cnp.import_array()

cdef extern from "Python.h":
    PyThreadState* PyEval_SaveThread()

    Py_ssize_t PyNumber_AsSsize_t(object, void*) except? -1
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "numpy/arrayobject.h":
    object PyArray_FromArray(cnp.ndarray, cnp.dtype, int)

cdef extern from *:
    """
    #define is_numpy_integer(o) PyArray_IsScalar(o, Integer)
    #define is_numpy_float(o) PyArray_IsScalar(o, Float)
    """
    bint is_numpy_integer(object)
    bint is_numpy_float(object)     # float32

cdef enum:
    # In multiply-adds, some 10 ms: then a signal is handled. That costs a microsecond, but 5 ms where another thread
    # keeps the GIL busy.
    BLOCK = 1 << 24
    OVERHEAD = 64               # what a row costs beside its features, in the same unit
    CONVERTED_BYTES = 1 << 20   # rows that are converted at a time
    GATHERED_BYTES = 1 << 17    # rows of a batch that are gathered at a time, so that they stay in L2
    ONE_PASS_BYTES = 1 << 17    # of w: what _rows.h adds up in forward's order, and has room for in a thread's scratch

cdef dict KINDS = {"squared_error": <int> SQUARED_ERROR, "huber": <int> HUBER, "hinge": <int> HINGE,
                   "log_loss": <int> LOG_LOSS}
cdef cnp.dtype LABELS = np.dtype(np.int64)
cdef object LEAST = np.minimum.reduce, MOST = np.maximum.reduce
cdef dict NAMES = {kind: name for name, kind in KINDS.items()}


cdef inline double loss_of(Loss loss, Elementwise* elementwise, char* scores, const char* y, double scale,
                           Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    """The sum over the rows; their gradients, times scale, take the place of the scores."""
    if loss == SQUARED_ERROR:
        return elementwise.squared_error(scores, y, scale, scores, rows, columns)
    if loss == HUBER:
        return elementwise.huber(scores, y, scale, scores, rows, columns)
    if loss == HINGE:
        return elementwise.hinge(scores, <const int64_t*> y, scale, scores, rows, columns)
    return elementwise.log_loss(scores, <const int64_t*> y, scale, scores, rows, columns)


cdef inline double weight_at(const char* weights, Py_ssize_t b, bint is_double) noexcept nogil:
    return (<const double*> weights)[b] if is_double else (<const float*> weights)[b]


cdef inline bint has_labels(Loss loss) noexcept nogil:
    """Whether what belongs to a row is a class, and not numbers."""
    return loss == LOG_LOSS or loss == HINGE


cdef struct Place:
    char* begin
    Py_ssize_t nbytes


cdef inline Place place_of(cnp.ndarray array) noexcept:
    """Where an array is. Python code, which a signal or a finaliser can run, can resize it; none runs here."""
    cdef Place place
    place.begin, place.nbytes = NULL, 0
    if array is not None:
        place.begin, place.nbytes = <char*> cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array)
    return place


cdef cnp.ndarray own_view(cnp.ndarray array):
    return None if array is None else np.asarray(array)[...]


cdef struct Task:
    # What one call wants.
    Loss loss
    Py_ssize_t batch
    double l2
    bint adaptive
    Place[4] places             # X, y, sample_weight, order: as they were when they were looked at
    # Some rows, and what belongs to them, in the order of the steps.
    Py_ssize_t rows
    const char* x
    Py_ssize_t x_row            # bytes from one row of x to the next
    const Py_ssize_t* order     # which row of x; NULL: one after another
    const char* y               # reals (rows, out), or labels, int64_t (rows,)
    Py_ssize_t y_row
    const char* weights         # reals (rows,), or NULL
    const double* lr            # of each step; with lr_step 0 of all
    Py_ssize_t lr_step
    # Memory.
    char* gathered              # GATHERED_BYTES, or a row
    char* scores                # (batch, out)
    char* gradient              # (out, in) and (out,), for adaptive


cdef class Learner(Layer):
    """What Linear.learn needs; see there."""

    # ---- the rows, without Python

    cdef double learn_rows(self, Task* task, double total, Kernels* kernels, Elementwise* elementwise,
                           Work* work) noexcept nogil:
        """All rows of a task, which are whole batches or the last. Returns total and the losses, added one by one."""
        cdef Py_ssize_t b = 0, n
        cdef const double* lr = task.lr
        if (self.out_features == 1 and task.batch == 1 and not task.adaptive
                and self.in_features * self.itemsize <= ONE_PASS_BYTES):
            return elementwise.learn_rows(
                task.loss, task.x, task.x_row // self.itemsize, task.order, task.y, task.weights, lr, task.lr_step,
                task.l2, self.w_span.begin, self.b_span.begin, task.rows, self.in_features, work.scratch, total)
        while b < task.rows:
            n = min(task.batch, task.rows - b)
            total = self.learn_batch(task, total, b, n, lr[0], kernels, elementwise, work)
            lr += task.lr_step
            b += n
        return total

    cdef const char* rows_of_x(self, Task* task, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """n rows one behind another: where they are, or gathered."""
        cdef Py_ssize_t row = self.in_features * self.itemsize, r
        if n == 1:
            return task.x + (task.order[b] if task.order != NULL else b) * task.x_row
        if task.order == NULL and task.x_row == row:
            return task.x + b * row
        for r in range(n):
            memcpy(task.gathered + r * row, self.rows_of_x(task, b + r, 1), row)
        return task.gathered

    cdef double learn_batch(self, Task* task, double total, Py_ssize_t b, Py_ssize_t n, double lr, Kernels* kernels,
                            Elementwise* elementwise, Work* work) noexcept nogil:
        """One step, on rows b to b + n: forward, loss, decay, update. Parts of a batch are as good as the whole.
        Returns total and the losses."""
        cdef Py_ssize_t ins = self.in_features, outs = self.out_features, weights = ins * outs
        cdef Py_ssize_t row = outs * self.itemsize, part = n, first = 0, some, r
        cdef const char* x = NULL
        cdef const char* y = task.y + b * task.y_row
        cdef char* scores
        if task.order != NULL or task.x_row != ins * self.itemsize:
            part = min(n, max(GATHERED_BYTES // max(ins * self.itemsize, 1), 1))
        while first < n:
            some = min(part, n - first)
            x = self.rows_of_x(task, b + first, some)
            kernels.forward(x, self.w_span.begin, self.b_span.begin, task.scores + first * row, some, ins, outs,
                            work.threads, work.scratch)
            first += some
        if task.weights == NULL:
            # The mean of the batch, as losses gives it, times its rows.
            total += loss_of(task.loss, elementwise, task.scores, y, 1.0 / n, n, outs) / n * n
        else:
            for r in range(n):
                scores = task.scores + r * row
                total += weight_at(task.weights, b + r, self.is_double) * loss_of(
                    task.loss, elementwise, scores, y + r * task.y_row, 1.0 / n, 1, outs)
                elementwise.scale(weight_at(task.weights, b + r, self.is_double), scores, outs)
        if task.l2 != 0:
            elementwise.scale(1 - lr * task.l2, self.w_span.begin, weights)
        if task.adaptive:
            memset(task.gradient, 0, (weights + outs) * self.itemsize)
        first = 0
        while first < n:
            some = min(part, n - first)
            if part < n:
                x = self.rows_of_x(task, b + first, some)
            scores = task.scores + first * row
            if task.adaptive:
                kernels.grad_weight(x, scores, 1, task.gradient, some, ins, outs, work.threads, work.scratch)
                kernels.grad_bias(scores, 1, task.gradient + weights * self.itemsize, some, outs)
            else:
                kernels.update(x, scores, lr, self.w_span.begin, self.b_span.begin, NULL, some, ins, outs, work.threads,
                               work.scratch)
            first += some
        if task.adaptive:
            elementwise.adagrad(task.gradient, lr, self.grad_w_span.begin, self.w_span.begin, weights)
            if self.b_span.begin != NULL:
                elementwise.adagrad(task.gradient + weights * self.itemsize, lr, self.grad_b_span.begin,
                                    self.b_span.begin, outs)
        return total

    # ---- a call

    def learn(self, X, y, lr, loss="squared_error", batch_size=1, l2=0.0, sample_weight=None, order=None,
              adaptive=False):
        """Learn from rows: gradient descent on the mean loss of batch_size rows at a time, in one compiled loop.

        Bit for bit what these calls do for each batch in turn (``fastlinear.reference.learn`` is the whole)::

            value, grad_output = losses.log_loss(layer(X[rows]), y[rows])
            layer.weight *= 1 - lr * l2
            layer.backward_update(X[rows], grad_output, lr, input_grad=False)

        X: (rows, in_features), or (in_features,) for one row. Rows are read where they lie if each is contiguous and of
        the layer's dtype; else they are converted block by block, so X can be larger than memory (``numpy.memmap``).
        y: for the losses ``squared_error`` and ``huber`` (rows, out_features), or (rows,) for one output; for
        ``log_loss`` and ``hinge`` labels (rows,) of any integer dtype: 0 or 1 for one output, else less than
        out_features. The formulas are those of ``fastlinear.losses``.
        lr: a number, or (steps,), one for each batch. The last batch has what is left.
        l2: strength of the penalty l2/2 · ΣW²: each step begins with ``weight *= 1 - lr * l2``. The bias has none.
        sample_weight: (rows,), factors of the rows' losses and gradients. order: (steps of rows,), the indices of the
        rows to learn, in turn: shuffling without a copy of X.
        adaptive: a step size for each weight by AdaGrad (Duchi, Hazan and Singer, JMLR 12, 2011), for features of
        unlike scales. With g the batch's gradient by a parameter, s += g² and parameter -= lr g / (sqrt(s) + 1e-10).
        The sums s are kept in grad_weight and grad_bias, which learn does not need otherwise: zero_grad() begins anew.

        Returns the mean over the rows of the losses (times sample_weight), each before its batch's step; NaN without
        rows. NaN in X or y spreads to the loss and from there to all weights:
        ``np.flatnonzero(~np.isfinite(X).all(axis=1))`` finds the rows.
        Raises TypeError for a dtype that does not cast safely, ValueError for wrong shapes, labels and indices; then
        nothing has changed. A signal, such as Ctrl-C, is handled between blocks of some 10 ms, or of a batch that takes
        longer. The layer then has learned whole batches, and the exception says how many rows: ``error.rows_learned``.

        >>> layer = Linear(2, 1, rng=0)
        >>> X, y = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32), np.array([1, 0, 1, 0])
        >>> first = layer.learn(X, y, lr=1.0, loss="log_loss")
        >>> layer.learn(X, y, lr=1.0, loss="log_loss", order=np.arange(400) % 4) < first
        True
        >>> (layer(X)[:, 0] > 0).tolist()
        [True, False, True, False]
        """
        cdef object known = KINDS.get(loss) if type(loss) is str else None
        cdef object result
        cdef Task task
        self.check_bound()
        if known is None:
            from fastlinear._advice import for_loss, shown
            raise ValueError(f"{self._name}: loss must be one of {', '.join(KINDS)}, got {shown(loss)}"
                             f"{for_loss(loss, KINDS)}")
        task.loss = <Loss> <int> known
        if (type(lr) is float and PyArray_CheckExact(X) and cnp.PyArray_NDIM(<cnp.ndarray> X) == 1
                and PyLong_CheckExact(batch_size) and batch_size == 1 and type(l2) is float and l2 == 0
                and sample_weight is None and order is None and adaptive is False):
            result = self.one_row(X, y, self.number("lr", lr), &task)
            if result is not None:
                return result
        return self.many_rows(X, y, lr, &task, batch_size, l2, sample_weight, order, adaptive)

    cdef object one_row(self, x, y, double lr, Task* task):
        """The quick way of one row; None if the arguments are not what it wants, and then nothing has changed."""
        cdef Kernels* kernels = kernels_of(self.is_double)
        cdef Elementwise* elementwise = elementwise_of(self.is_double)
        cdef Work work
        cdef int64_t label
        cdef double target
        cdef float narrow
        cdef double total
        if kernels == NULL or self.in_features * self.itemsize > ONE_PASS_BYTES:
            return None
        if has_labels(task.loss):
            if not (PyLong_CheckExact(y) or is_numpy_integer(y)):
                return None
            label = PyNumber_AsSsize_t(y, NULL)
            if not 0 <= label < max(self.out_features, 2):
                return None
            task.y = <char*> &label
        elif self.out_features == 1:
            if not (isinstance(y, float) or is_numpy_float(y)):
                return None
            target = y
            narrow = <float> target
            if not self.is_double and isinf(narrow) and not isinf(target):
                return None
            task.y = <char*> &target if self.is_double else <char*> &narrow
        else:
            if not (self.can_read(y, self.out_features) and cnp.PyArray_NDIM(<cnp.ndarray> y) == 1):
                return None
            task.y = <char*> cnp.PyArray_DATA(<cnp.ndarray> y)
        if not (self.can_read(x, self.in_features) and self.apart_from_parameters(self.bytes(x, 1, self.in_features))):
            return None
        self.check_writable(False)
        task.batch, task.l2, task.adaptive = 1, 0, False
        task.rows, task.order, task.weights = 1, NULL, NULL
        task.x, task.x_row = <char*> cnp.PyArray_DATA(<cnp.ndarray> x), self.in_features * self.itemsize
        task.y_row, task.lr, task.lr_step = 0, &lr, 0
        begin(&work, self.size(1), self.out_features * self.itemsize)
        task.scores = work.scratch + work.threads * <size_t> SCRATCH_BYTES
        total = self.learn_rows(task, 0, kernels, elementwise, &work)
        end(&work)
        return total

    cdef object many_rows(self, X, y, lr, Task* task, batch_size, l2, sample_weight, order, adaptive):
        cdef cnp.ndarray x, targets, rates, weights = None, places = None
        cdef Py_ssize_t rows, steps, outs = 1 if has_labels(task.loss) else self.out_features
        cdef tuple arrays
        cdef bint one
        # First all that can run Python code ...
        task.batch = self.size_of("batch_size", batch_size)
        task.l2 = self.number("l2", l2)
        task.adaptive = adaptive
        rates = self.rates_of(lr)
        x = self.taken("X", X)
        targets = self.integers_of("y", y) if has_labels(task.loss) else self.taken("y", y)
        if sample_weight is not None:
            weights = self.taken("sample_weight", sample_weight)
        if order is not None:
            places = self.integers_of("order", order)
        # ... then views of our own, whose shapes nobody changes, and where their memory is ...
        arrays = x, targets, weights, places
        task.places = [place_of(x), place_of(targets), place_of(weights), place_of(places)]
        x, targets, weights, places = own_view(x), own_view(targets), own_view(weights), own_view(places)
        # ... then all checks, before anything is written.
        if not 0 <= task.l2 < INFINITY:
            from fastlinear._advice import shown
            raise ValueError(f"{self._name}: l2 must be finite and not negative, got {shown(l2)}")
        self.check_rows("X", x, self.in_features)
        if cnp.PyArray_NDIM(x) > 2:
            raise ValueError(f"{self._name}: X must have shape (rows, {self.in_features}), or ({self.in_features},) "
                             f"for one row, got shape {shape_of(x)}")
        one = cnp.PyArray_NDIM(x) == 1
        rows = 1 if one else cnp.PyArray_DIMS(x)[0]
        targets = self.columns("y", targets, rows, one, outs, has_labels(task.loss))
        if has_labels(task.loss):
            self.check_range("y", targets, max(self.out_features, 2), "labels")
        else:
            self.check_cast("y", targets)
        if weights is not None:
            weights = self.columns("sample_weight", weights, rows, one, 1, False)
            self.check_cast("sample_weight", weights)
        if places is not None:
            if one or cnp.PyArray_NDIM(places) != 1:
                raise ValueError(f"{self._name}: order must have one axis, for an X with two, got shape "
                                 f"{shape_of(places)} for X of shape {shape_of(x)}")
            self.check_range("order", places, rows, "indices of rows")
            rows = cnp.PyArray_DIMS(places)[0]
        steps = (rows + task.batch - 1) // task.batch
        if cnp.PyArray_NDIM(rates) == 1 and cnp.PyArray_DIMS(rates)[0] != steps:
            raise ValueError(f"{self._name}: lr must be a number or have shape ({steps},), one for each batch, got "
                             f"shape {shape_of(rates)}")
        if task.adaptive:
            self.ensure_gradients()
        self.check_learnable(task)
        return self.blocks(arrays, x[None] if one else x, targets, weights, places, rates, rows, task)

    cdef object blocks(self, tuple arrays, cnp.ndarray x, cnp.ndarray targets, cnp.ndarray weights, cnp.ndarray places,
                       cnp.ndarray rates, Py_ssize_t rows, Task* task):
        """Block after block of whole batches, and between them what signals there are."""
        cdef Kernels* kernels = kernels_of(self.is_double)
        cdef Elementwise* elementwise = elementwise_of(self.is_double)
        cdef Work work
        cdef Py_ssize_t outs = self.out_features, ins = self.in_features, size = self.itemsize
        cdef Py_ssize_t done = 0, n, block, batch = min(task.batch, max(rows, 1)), steps, gathered
        cdef cnp.ndarray here, at, y, w, lr, room, scores, gradient
        cdef bint as_it_is = self.has_plain_rows(x)
        cdef bint x_shared = self.shares_memory(x), targets_shared = self.shares_memory(targets)
        cdef bint weights_shared = weights is not None and self.shares_memory(weights)
        cdef double total = 0
        self.check_places(arrays, task)
        if x_shared:
            x, as_it_is = self.plain(x).copy(), True
        if targets_shared:
            targets = targets.copy()
        if weights_shared:
            weights = weights.copy()
        if kernels == NULL:
            return reference.learn(self, x, targets, rates if cnp.PyArray_NDIM(rates) else float(rates),
                                   NAMES[<int> task.loss], task.batch, task.l2, weights, places, task.adaptive)
        block = <Py_ssize_t> (BLOCK / ((<double> ins + OVERHEAD) * max(outs, 1)))
        if not as_it_is:
            block = min(block, CONVERTED_BYTES // max(ins * size, 1))
        block = max(block // batch, 1) * batch
        gathered = max(GATHERED_BYTES, ins * size)
        room, scores = np.empty(gathered, np.byte), np.empty((batch, outs), self.dtype)     # an error if too big
        task.gathered, task.scores = <char*> cnp.PyArray_DATA(room), <char*> cnp.PyArray_DATA(scores)
        if task.adaptive:
            gradient = np.empty((ins + 1, outs), self.dtype)
            task.gradient = <char*> cnp.PyArray_DATA(gradient)
        try:
            while done < rows:
                # What ran meanwhile, a handler or another thread, might have freed an array or frozen the layer.
                self.check_places(arrays, task)
                self.check_learnable(task)
                n = min(block, rows - done)
                # Nothing that kernels read of these leads them astray, but order, which is a copy that nobody else has.
                at = None
                if places is not None:
                    at = np.array(places[done:done + n], np.intp)
                    self.check_range("order", at, cnp.PyArray_DIMS(x)[0], "indices of rows")
                y = self.part(targets, done, n, at, LABELS if has_labels(task.loss) else self.dtype)
                w = None if weights is None else self.part(weights, done, n, at, self.dtype)
                steps = done // batch
                lr = rates if cnp.PyArray_NDIM(rates) == 0 else rates[steps:steps + (n + batch - 1) // batch]
                here = x
                if not as_it_is:
                    here, at = self.plain(x[done:done + n] if at is None else x.take(at, axis=0)), None
                elif at is None:
                    here = x[done:done + n]
                self.check_places(arrays, task)
                task.rows, task.x, task.x_row = n, <char*> cnp.PyArray_DATA(here), cnp.PyArray_STRIDES(here)[0]
                task.order = NULL if at is None else <Py_ssize_t*> cnp.PyArray_DATA(at)
                task.y = <char*> cnp.PyArray_DATA(y)
                task.y_row = sizeof(int64_t) if has_labels(task.loss) else outs * size
                task.weights = NULL if w is None else <char*> cnp.PyArray_DATA(w)
                task.lr, task.lr_step = <double*> cnp.PyArray_DATA(lr), cnp.PyArray_NDIM(lr)
                begin(&work, self.size(batch), 0)
                if work.state == NULL and (<double> ins + OVERHEAD) * outs * n >= WORTH_RELEASING:
                    work.state = PyEval_SaveThread()
                total = self.learn_rows(task, total, kernels, elementwise, &work)
                end(&work)
                done += n
                if done < rows:
                    PyErr_CheckSignals()
        except BaseException as error:
            error.rows_learned = done
            raise
        return total / rows if rows else float("nan")

    # ---- what the arguments are

    cdef int check_places(self, tuple arrays, Task* task) except -1:
        """The arguments' memory is where it was."""
        cdef Place place
        cdef int i
        for i in range(4):
            place = place_of(arrays[i])
            if place.begin != task.places[i].begin or place.nbytes != task.places[i].nbytes:
                raise RuntimeError(f"{self._name}: an argument changed while its rows were learned")
        return 0

    cdef int check_learnable(self, Task* task) except -1:
        """Nothing that learning changes is frozen."""
        if task.adaptive:
            self.check_writable(True)
        return self.check_writable(False)

    cdef cnp.ndarray part(self, cnp.ndarray array, Py_ssize_t done, Py_ssize_t n, cnp.ndarray at,
                          cnp.dtype dtype):
        """Rows done to done + n, or those that `at` names, as kernels read them: a copy only if there must be one."""
        array = array[done:done + n] if at is None else array.take(at, axis=0)
        Py_INCREF(dtype)        # PyArray_FromArray takes it over
        return PyArray_FromArray(array, dtype, cnp.NPY_ARRAY_CARRAY_RO | cnp.NPY_ARRAY_FORCECAST)

    cdef bint has_plain_rows(self, cnp.ndarray x):
        """Whether a kernel can read each row of x as it is, wherever they lie."""
        return (cnp.PyArray_TYPE(x) == self.typenum and cnp.PyArray_ISNOTSWAPPED(x) and cnp.PyArray_ISALIGNED(x)
                and (self.in_features <= 1 or cnp.PyArray_STRIDES(x)[1] == self.itemsize)
                and cnp.PyArray_STRIDES(x)[0] % self.itemsize == 0)

    cdef bint shares_memory(self, cnp.ndarray x):
        """Whether learning would change x."""
        return any([parameter is not None and np.may_share_memory(x, (<Parameter> parameter).view())
                    for parameter in (self.W, self.b, self.grad_W, self.grad_b)])

    cdef Py_ssize_t size_of(self, str name, value) except -1:
        try:
            value = index(value)
        except TypeError:
            from fastlinear._advice import shown
            raise TypeError(f"{self._name}: {name} must be an integer, got {type(value).__name__} {shown(value)}"
                            ) from None
        if value < 1:
            from fastlinear._advice import shown
            raise ValueError(f"{self._name}: {name} must be at least 1, got {shown(value)}")
        return min(value, <object> PY_SSIZE_T_MAX // 2)

    cdef cnp.ndarray rates_of(self, lr):
        """lr as a float64 array, without an axis if it is a number."""
        if cnp.PyArray_Check(lr):
            self._check_mask("lr", lr)
        if isinstance(lr, str):
            from fastlinear._advice import shown
            raise TypeError(f"{self._name}: lr must be a number or one for each batch, got {shown(lr)}"
                            + ("; it comes before the loss" if type(lr) is str and lr in KINDS else ""))
        if isinstance(lr, (int, float, np.generic)) or getattr(lr, "ndim", 1) == 0 or not hasattr(lr, "__len__"):
            return np.array(self.number("lr", lr))
        rates = np.asarray(lr)
        if rates.ndim != 1 or not np.can_cast(rates.dtype, np.float64, "safe"):
            raise TypeError(f"{self._name}: lr must be a number or one for each batch, real and of one axis, got "
                            f"{rates.dtype} of shape {rates.shape}")
        rates = np.array(rates, np.float64)
        beyond = np.flatnonzero(np.isfinite(rates) & (abs(rates) > float(np.finfo(self.dtype).max)))
        if len(beyond):
            raise ValueError(f"{self._name}: lr must fit {self.dtype}, got {rates[beyond[0]]} for step {beyond[0]}")
        return rates

    cdef cnp.ndarray integers_of(self, str name, value):
        if cnp.PyArray_Check(value):
            self._check_mask(name, value)
        from fastlinear.linear import _array
        array = np.asarray(_array(f"{self._name}: {name}", value))
        if array.size == 0 and not cnp.PyArray_Check(value):
            array = array.astype(np.intp)
        if array.dtype.kind not in ("iu" if name == "order" else "biu"):
            from fastlinear._advice import for_labels
            raise TypeError(f"{self._name}: {name} must be integers, got {array.dtype}"
                            + (for_labels(name, array.dtype, array.shape, None) if name == "y" else ""))
        return array

    cdef cnp.ndarray columns(self, str name, cnp.ndarray array, Py_ssize_t rows, bint one, Py_ssize_t outs,
                             bint labels):
        """What belongs to the rows as (rows, outs), or (rows,) if it is one number for each."""
        cdef tuple shape = shape_of(array), wanted = (rows, outs)
        cdef bint good
        if one:
            good = shape == (outs,) or (outs == 1 and shape == ())
            wanted = (outs,)
        else:
            good = shape == (rows, outs) or (outs == 1 and shape == (rows,))
            if outs == 1:
                wanted = (rows,)
        if not good:
            from fastlinear._advice import for_targets
            raise ValueError(f"{self._name}: {name} must have shape {wanted} to match X, got {shape}"
                             + (for_targets(name, array.dtype, shape, wanted, labels) if name == "y" else ""))
        return np.asarray(array).reshape(rows) if outs == 1 else np.asarray(array).reshape(rows, outs)

    cdef int check_range(self, str name, cnp.ndarray array, Py_ssize_t stop, str what) except -1:
        """Runs no Python code (array.min() would), because that could free the array."""
        cdef Py_ssize_t r, outside = 0
        cdef const int64_t* plain
        if cnp.PyArray_TYPE(array) == cnp.NPY_INT64 and PyArray_ISCARRAY_RO(array):
            # Labels that a kernel can read: twice as fast as to look for the least and the largest.
            plain = <const int64_t*> cnp.PyArray_DATA(array)
            for r in range(cnp.PyArray_SIZE(array)):
                outside |= <uint64_t> plain[r] >= <uint64_t> stop
            if not outside:
                return 0
        elif array.size == 0 or (LEAST(array) >= 0 and MOST(array) < stop):
            return 0
        places = ((array < 0) | (array >= stop)).nonzero()[0]
        if not len(places):     # another thread has written to it meanwhile
            raise self.changed()
        place, value = places[0], array[places[0]]
        from fastlinear._advice import for_signs
        raise ValueError(f"{self._name}: {name} must be {what} from 0 to {stop - 1}, got {value} at {place}"
                         + (for_signs(name, value, stop) if name == "y" else ""))
