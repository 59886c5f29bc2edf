"""Whatever Python code gets a turn in a call, and whatever is done to the arrays that a layer hands out or was given:
no crash, nothing read or written out of bounds, nothing half written.

What might crash runs in a process apart, where each array ends at a page that may not be touched, or is so large that
its memory is unmapped when it is freed.
"""

import copy
import ctypes
import gc
import mmap
import pickle
import sys
import tempfile
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, _dispatch

from .helpers import (
    ISAS,
    METHODS,
    READS_GRAD_OUTPUT,
    READS_X,
    WRITES_OUT,
    assert_same_bits,
    assert_same_memory,
    integers,
    layer_of,
    memory_of,
    unchanged,
)
from .memory import AVAILABLE, Guarded, in_child

IN, OUT = 7, 3
NAMES = "weight", "bias", "grad_weight", "grad_bias"

in_a_child = pytest.mark.skipif(not AVAILABLE, reason="maps memory in Linux's way")
each_isa = pytest.mark.parametrize("name", ISAS)


@pytest.fixture
def problem(dtype):
    return integers(5, IN, OUT, dtype)


@pytest.fixture
def layer(problem):
    layer = layer_of(problem)
    layer.grad_weight, layer.grad_bias = problem.weight[::-1], problem.bias[::-1]
    return layer


# ---- what a layer hands out


def set_shape(a):
    a.shape = (-1, 1)


def set_dtype(a):
    a.dtype = f"i{a.itemsize}"


def set_strides(a):
    a.strides = (0,) * a.ndim


def set_state(a):
    a.__setstate__(np.full(2, np.nan).__reduce__()[2])


CHANGES = {"shape": set_shape, "dtype": set_dtype, "strides": set_strides, "state": set_state}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's own, on setting these
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_handed_out_is_not_what_the_layer_reads(isa, problem, layer, name, change):
    """Another shape, dtype, strides or state of layer.weight and its like changes that ndarray and nothing else."""
    before, twin = memory_of(layer), copy.deepcopy(layer)
    change(getattr(layer, name))
    for other in (layer, copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_memory(other, before)
    assert repr(layer) == repr(twin)
    assert layer.state_dict()["weight"].shape == (OUT, IN)
    for call in METHODS.values():
        change(getattr(layer, name))
        got, expected = (call(each, problem.x, problem.grad_output, None) for each in (layer, twin))
        assert (got is expected is None) or got.tobytes() == expected.tobytes()
    for each in (layer, twin):
        each.step(0.5)
    assert_same_memory(layer, memory_of(twin))
    assert getattr(layer, name) is getattr(layer, name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_freeze_outlives_another_shape(layer, problem, name):
    """What was frozen stays so when the ndarray that said it gets another shape, until it is set back."""
    handed_out = getattr(layer, name)
    handed_out.flags.writeable = False
    handed_out.shape = (-1, 1)
    change = {"w": lambda: layer.step(0.5), "b": lambda: layer.step(0.5), "g": layer.zero_grad}[name[0]]
    for _ in range(2):
        with unchanged(layer), pytest.raises(ValueError, match="read-only"):
            change()
        with unchanged(layer), pytest.raises(ValueError, match="read-only"):
            setattr(layer, name, getattr(layer, name))
    getattr(layer, name).flags.writeable = True
    change()


@pytest.mark.parametrize("name", NAMES)
def test_attributes_are_used_as_arrays_are(isa, layer, name):
    """In-place arithmetic, item assignment, assignment: what a user expects, and the memory stays where it is."""
    before, address = getattr(layer, name).copy(), getattr(layer, name).ctypes.data
    held = getattr(layer, name)
    setattr(layer, name, getattr(layer, name) - 1)
    exec(f"layer.{name} -= 2", {"layer": layer})
    exec(f"layer.{name} *= layer.{name}", {"layer": layer})
    assert_same_bits(held, (before - 3) ** 2)
    getattr(layer, name)[0] = 5
    setattr(layer, name, getattr(layer, name)[::-1])
    assert np.all(getattr(layer, name)[-1] == 5)
    assert getattr(layer, name).ctypes.data == address


def churn():
    """Give freed memory to others, who fill it."""
    return [np.full(size, np.nan) for size in (1, 2, 4, 11, 21, 42, 1 << 10, 1 << 15) for _ in range(20)]


def unmap_what_is_freed():
    """Let malloc give memory of 16 KiB and more back at once, so that whoever reads it then crashes."""
    ctypes.CDLL(None).mallopt(-3, 1 << 14)  # M_MMAP_THRESHOLD


def attempt(act, *arguments):
    """Do what may be refused, in any manner but a crash."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        act(*arguments)


ATTACKS = {
    "resize": lambda a: a.resize(1),
    "resize without a look at references": lambda a: a.resize(1, refcheck=False),
    "resize of the base": lambda a: a.base.resize(1, refcheck=False),
    "resize of the base's base": lambda a: a.base.base.resize(1, refcheck=False),
    "state": set_state,
    "state of the base": lambda a: set_state(a.base),
    "shape": set_shape,
    "dtype": set_dtype,
    "strides": set_strides,
    "release of the base": lambda a: memoryview(a.base).release(),
    "base made anew": lambda a: a.base.__init__(),
    "another class": lambda a: setattr(a.base, "__class__", np.ndarray),
    "what the base refers to": lambda a: [attempt(ATTACKS["state"], it) for it in gc.get_referents(a, a.base)],
    "reduce": lambda a: a.base.__setstate__(a.base.__reduce__()[2]),
    "reduce of Cython": lambda a: a.base.__setstate_cython__(a.base.__reduce_cython__()[2]),
}


def attack_what_is_handed_out(name):
    unmap_what_is_freed()
    _dispatch.use(name)
    for sizes in ((5, IN, OUT), (3, 300, 200)):
        problem = integers(*sizes, np.float32)
        for attack in ATTACKS.values():
            for attribute in NAMES:
                layer = layer_of(problem)
                layer.backward(problem.x, problem.grad_output)
                before = memory_of(layer)
                attempt(attack, getattr(layer, attribute))
                kept = churn()
                assert_same_memory(layer, before)
                layer.backward(problem.x, layer(problem.x))
                layer.step(0)
                del kept


@in_a_child
@each_isa
def test_memory_that_was_handed_out_cannot_be_freed(name):
    """resize, __setstate__ and the like, of what is handed out and of its base, leave the layer's memory there."""
    run = in_child(attack_what_is_handed_out, name)
    assert run.returncode == 0, run.stderr


class Subclass(np.ndarray):
    pass


def shared_arrays(shape):
    """(how it came about, array of ones, who else could let go of its memory and how)."""
    size = 4 * int(np.prod(shape))
    own = np.ones(shape, np.float32)
    for attack in ("resize", "resize without a look at references", "state", "shape"):
        a = own.copy()
        yield f"own, {attack}", a, partial(ATTACKS[attack], a)
        a = own.copy()
        weak = weakref.ref(a)
        yield f"nobody's, {attack}", a, lambda weak=weak, attack=attack: ATTACKS[attack](weak())
        a = own.copy()
        yield f"in a list, {attack}", a, lambda a=[a], attack=attack: ATTACKS[attack](a[0])
        a = own.reshape(-1).copy()
        yield f"view, {attack}", a.reshape(shape), lambda a=a, attack=attack: ATTACKS[attack](a)
        a = own.copy().view(Subclass)
        yield f"subclass, {attack}", a, partial(ATTACKS[attack], a)
        a = own.copy().view(Subclass)[:]
        yield f"base of a subclass, {attack}", a, lambda a=a.base, attack=attack: ATTACKS[attack](a)
    memory = bytearray(own.tobytes())
    yield "frombuffer", np.frombuffer(memory, np.float32).reshape(shape), memory.clear
    memory = bytearray(own.tobytes())
    yield "buffer", np.ndarray(shape, np.float32, memory), memory.clear
    memory = memoryview(bytearray(own.tobytes()))
    yield "memoryview", np.ndarray(shape, np.float32, memory), memory.release
    memory = mmap.mmap(-1, size)
    memory[:] = own.tobytes()
    yield "mmap", np.ndarray(shape, np.float32, memory), memory.close
    with tempfile.NamedTemporaryFile() as file:
        a = np.memmap(file, np.float32, "w+", shape=shape)
        a[...] = 1
        yield "memmap", a, a._mmap.close
        a = np.memmap(file, np.float32, "w+", shape=shape)
        a[...] = 1
        yield "memmap, state", a, partial(set_state, a)


def attack_what_is_shared():
    unmap_what_is_freed()
    for sizes in ((IN, OUT), (300, 200)):
        x = np.ones((2, sizes[0]), np.float32)
        for what, weight, let_go in shared_arrays(sizes[::-1]):
            for shares in (
                lambda w: Linear.from_weights(w, copy=False),
                lambda w: copy.copy(Linear.from_weights(w, copy=False)),
            ):
                layer = shares(weight)
                attempt(let_go)
                if what.startswith(("nobody", "memmap")):
                    del weight
                attempt(let_go)
                kept = churn()
                assert np.all(layer(x) == sizes[0]), what
                assert np.all(layer.weight == 1), what
                layer.weight = layer.weight * 1
                del kept, layer
                weight = np.ones(sizes[::-1], np.float32)


@in_a_child
def test_shared_memory_cannot_be_freed():
    """The memory of copy=False stays, whoever owned it and whatever its owner does, while the layer is there."""
    run = in_child(attack_what_is_shared)
    assert run.returncode == 0, run.stderr


def test_memory_that_cannot_be_handed_over():
    """copy=False: an array that frees its memory whoever else uses it, because it is to be copied back elsewhere or
    holds objects, is refused, and so is a view of it; a copy of it is not."""
    with np.nditer(
        np.ones((OUT, IN)), [], [["readwrite", "updateifcopy"]], op_dtypes=[np.float32], casting="same_kind"
    ) as iterator:
        copied_back = iterator.operands[0]
        assert copied_back.flags.writebackifcopy
        beside_objects = np.ones(1, [("weight", np.float32, (OUT, IN)), ("object", object)])["weight"][0]
        for weight in (copied_back, copied_back[:], beside_objects):
            assert weight.flags.carray
            with pytest.raises(ValueError, match="cannot be shared"):
                Linear.from_weights(weight, copy=False)
            assert_same_bits(Linear.from_weights(weight).weight, np.ones((OUT, IN), np.float32))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no __buffer__ in Python")
def test_an_owner_that_reshapes_the_array_while_it_is_shared():
    """copy=False: Python code that runs while the owner's memory is secured changes nothing of what was checked."""
    memory = np.ones((OUT, IN), np.float32)

    class Owner:
        def __buffer__(self, flags):
            if weight is not None:
                weight.shape = *[1] * 50, OUT * IN
            return memoryview(memory).cast("B")

    weight = None
    weight = np.ndarray((OUT, IN), np.float32, Owner())
    layer = Linear.from_weights(weight, copy=False)
    assert weight.ndim == 51
    assert layer.weight.shape == (OUT, IN)
    assert_same_bits(layer(np.ones(IN, np.float32)), np.full(OUT, IN, np.float32))


def test_a_shared_array_is_a_view_from_then_on():
    """copy=False: the array lives on as the layer's view does, is freed once, and can be shared a second time."""
    weight = np.arange(200_000, dtype=np.float32).reshape(400, 500)
    expected = weight.copy()
    one, two = (Linear.from_weights(weight, copy=False) for _ in range(2))
    assert not weight.flags.owndata
    assert np.shares_memory(one.weight, two.weight)
    one.weight[0] += 1
    assert_same_bits(two.weight, weight)
    del one
    weight[0] -= 1
    del two
    gc.collect()
    assert_same_bits(weight, expected)
    layer = Linear.from_weights(weight, copy=False)
    del weight
    kept = churn()
    assert_same_bits(layer.weight, expected)
    del kept


def test_a_chain_of_copies_holds_no_chain():
    """copy.copy of a copy, many times: each is on the same memory, and none keeps the ones before."""
    layer = Linear(IN, OUT, rng=0)
    before, first = layer.state_dict(), weakref.ref(layer)
    for _ in range(20_000):
        layer = copy.copy(layer)
    assert first() is None
    assert_same_bits(layer.weight, before["weight"])
    assert type(layer.weight.base) is type(Linear(IN, OUT).weight.base)


class Liar(np.ndarray):
    """A small array that says it is a large one."""

    shape = property(lambda self: (300, 200))
    dtype = property(lambda self: np.dtype(np.float64))
    ndim = property(lambda self: 2)
    flags = property(lambda self: np.ones((300, 200)).flags)
    strides = property(lambda self: (1600, 8))
    nbytes = property(lambda self: 480_000)
    itemsize = property(lambda self: 8)
    base = property(lambda self: None)
    __array_interface__ = property(lambda self: np.ones((300, 200)).__array_interface__)
    __array_struct__ = property(lambda self: np.ones((300, 200)).__array_struct__)

    def __array__(self, *args, **kwargs):
        return np.ones((300, 200))


def test_what_a_subclass_says_of_itself_does_not_count(isa, problem):
    """shape, dtype and flags of an ndarray subclass are NumPy's own, and not what its Python code says."""
    liar = np.arange(8, dtype=np.float32).reshape(2, 4).view(Liar)
    for share in (True, False):
        layer = Linear.from_weights(liar, copy=not share)
        assert (layer.in_features, layer.out_features, layer.dtype) == (4, 2, np.float32)
        assert np.array_equal(layer.weight, [[0, 1, 2, 3], [4, 5, 6, 7]])
        assert np.array_equal(layer(np.ones(4, np.float32)), [6, 22])
    layer = layer_of(problem)
    x, g, *_ = problem
    for methods, arguments in (
        (READS_X, (liar, g, None)),
        (READS_GRAD_OUTPUT, (x, liar, None)),
        (WRITES_OUT, (x, g, liar)),
    ):
        for method in methods:
            with unchanged(layer), pytest.raises((TypeError, ValueError), match=r"must have|does not cast"):
                METHODS[method](layer, *arguments)
    for name in NAMES:
        with unchanged(layer), pytest.raises((TypeError, ValueError), match=f"{name} must have shape|does not cast"):
            setattr(layer, name, liar)


# ---- Python code that gets a turn in a call


class Evil:
    """Stands for a value, and does something wherever Python asks for it."""

    def __init__(self, value, deed):
        self.value, self.deed = value, deed

    def _turn(self, *args, **kwargs):
        self.deed()
        return self.value

    def __float__(self):
        return float(self._turn())

    def __index__(self):
        return int(self._turn())

    def __bool__(self):
        return bool(self._turn())

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._turn())

    def __repr__(self):
        self.deed()
        return "Evil()"


class EvilDLPack(Evil):
    def __dlpack__(self, **kwargs):
        return np.asarray(self._turn()).__dlpack__()

    def __dlpack_device__(self):
        self.deed()
        return 1, 0


class EvilBuffer(Evil):
    """What NumPy reads through attributes."""

    @property
    def __array_interface__(self):
        return np.asarray(self._turn()).__array_interface__

    __array__ = property()  # there is none


class EvilList(list):
    """A list whose length and items are asked for."""

    def __init__(self, value, deed):
        super().__init__(np.asarray(value).tolist())
        self.deed = deed

    def __len__(self):
        self.deed()
        return super().__len__()

    def __getitem__(self, at):
        self.deed()
        return super().__getitem__(at)

    def __iter__(self):
        self.deed()
        return super().__iter__()


class EvilArray(np.ndarray):
    """A subclass with a hook at every turn."""

    deed = staticmethod(lambda: None)

    def __new__(cls, value, deed):
        array = np.array(value, subok=False).view(cls)
        array.deed = deed
        return array

    def __array_finalize__(self, other):
        getattr(other, "deed", lambda: None)()

    def _turn(self):
        self.deed()
        return np.asarray(self)

    shape = property(lambda self: self._turn().shape)
    dtype = property(lambda self: self._turn().dtype)
    flags = property(lambda self: self._turn().flags)
    __class__ = property(lambda self: self._turn() is None or EvilArray)

    def __setitem__(self, at, value):
        self.deed()

    def __array_ufunc__(self, *args, **kwargs):
        self.deed()
        return NotImplemented

    def __array_function__(self, *args, **kwargs):
        self.deed()
        return NotImplemented


class EvilDtype(Evil):
    @property
    def dtype(self):
        return np.dtype(self._turn())


class EvilGenerator(np.random.Generator):
    deed = staticmethod(lambda: None)

    def random(self, size=None, dtype=np.float64, out=None):
        self.deed()
        return np.zeros(1, dtype)


def evil_generator(value, deed):
    generator = EvilGenerator(np.random.PCG64(0))
    generator.deed = deed
    return generator


class EvilDict(dict):
    def __init__(self, value, deed):
        super().__init__(value)
        self.deed = deed

    def __iter__(self):
        self.deed()
        return super().__iter__()

    def __getitem__(self, key):
        self.deed()
        return super().__getitem__(key)


NUMBERS = [Evil]
ARRAYS = [Evil, EvilDLPack, EvilBuffer, EvilList, EvilArray]
# What is asked for, of which kind, what it stands for, and the call.
TURNS = {
    "call: x": (ARRAYS, "x", lambda v, e: v.layer(e)),
    "call with out: x": (ARRAYS, "x", lambda v, e: v.layer(e, v.y)),
    "call: out": ([EvilArray, Evil], "y", lambda v, e: v.layer(v.x, e)),
    "call, cast: out": ([EvilArray], "y", lambda v, e: v.layer(v.x.astype("f2"), e)),
    "backward: x": (ARRAYS, "x", lambda v, e: v.layer.backward(e, v.g, out=v.gx)),
    "backward: grad_output": (ARRAYS, "g", lambda v, e: v.layer.backward(v.x, e)),
    "backward of a subclass: grad_output": (ARRAYS, "g", lambda v, e: v.layer.backward(v.x.view(Subclass), e, v.gx)),
    "backward of a DLPack: grad_output": (ARRAYS, "g", lambda v, e: v.layer.backward(EvilDLPack(v.x, int), e, v.gx)),
    "backward of a cast: grad_output": (ARRAYS, "g", lambda v, e: v.layer.backward(v.x.astype("f2"), e, v.gx)),
    "backward: out": ([EvilArray, Evil], "gx", lambda v, e: v.layer.backward(v.x, v.g, out=e)),
    "backward: scale": (NUMBERS, 1.0, lambda v, e: v.layer.backward(v.x, v.g, v.gx, e)),
    "backward: input_grad": (NUMBERS, True, lambda v, e: v.layer.backward(v.x, v.g, input_grad=e)),
    "backward with out: input_grad": (NUMBERS, True, lambda v, e: v.layer.backward(v.x, v.g, v.gx, input_grad=e)),
    "backward_params: x": (ARRAYS, "x", lambda v, e: v.layer.backward_params(e, v.g)),
    "backward_params: grad_output": (ARRAYS, "g", lambda v, e: v.layer.backward_params(v.x, e)),
    "backward_params: scale": (NUMBERS, 1.0, lambda v, e: v.layer.backward_params(v.x, v.g, e)),
    "backward_input: grad_output": (ARRAYS, "g", lambda v, e: v.layer.backward_input(e, v.gx)),
    "backward_input: out": ([EvilArray, Evil], "gx", lambda v, e: v.layer.backward_input(v.g, e)),
    "backward_update: x": (ARRAYS, "x", lambda v, e: v.layer.backward_update(e, v.g, 0, v.gx)),
    "backward_update: grad_output": (ARRAYS, "g", lambda v, e: v.layer.backward_update(v.x, e, 0)),
    "backward_update: lr": (NUMBERS, 0.0, lambda v, e: v.layer.backward_update(v.x, v.g, e, v.gx)),
    "backward_update: out": ([EvilArray, Evil], "gx", lambda v, e: v.layer.backward_update(v.x, v.g, 0, e)),
    "backward_update: input_grad": (NUMBERS, True, lambda v, e: v.layer.backward_update(v.x, v.g, 0, None, e)),
    "backward_update, cast: lr": (NUMBERS, 0.0, lambda v, e: v.layer.backward_update(v.x.astype("f2"), v.g, e, v.gx)),
    "step: lr": (NUMBERS, 0.0, lambda v, e: v.layer.step(e)),
    "weight": (ARRAYS, "w", lambda v, e: setattr(v.layer, "weight", e)),
    "grad_weight": (ARRAYS, "w", lambda v, e: setattr(v.layer, "grad_weight", e)),
    "bias": (ARRAYS, "b", lambda v, e: setattr(v.layer, "bias", e)),
    "load_state_dict: weight": (ARRAYS, "w", lambda v, e: v.layer.load_state_dict({"weight": e, "bias": v.b})),
    "load_state_dict: bias": (ARRAYS, "b", lambda v, e: v.layer.load_state_dict({"weight": v.w, "bias": e})),
    "load_state_dict": ([EvilDict], "state", lambda v, e: v.layer.load_state_dict(e)),
    "reset: rng": ([evil_generator, *NUMBERS], 1, lambda v, e: v.layer.reset(e)),
    "reset: stdv": (NUMBERS, 1.0, lambda v, e: v.layer.reset(0, e)),
    "astype": ([Evil, EvilDtype], "f8", lambda v, e: v.layer.astype(e)),
    "verify: x": (ARRAYS, "x", lambda v, e: fastlinear.verify(v.layer, e, v.g)),
    "verify: grad_output": (ARRAYS, "g", lambda v, e: fastlinear.verify(v.layer, v.x, e)),
    "Linear: in_features": (NUMBERS, 3, lambda v, e: Linear(e, 2)),
    "Linear: out_features": (NUMBERS, 3, lambda v, e: Linear(2, e)),
    "Linear: dtype": ([Evil, EvilDtype], "f8", lambda v, e: Linear(2, 2, dtype=e)),
    "Linear: rng": ([evil_generator, *NUMBERS], 1, lambda v, e: Linear(2, 2, rng=e)),
    "from_weights: weight": (ARRAYS, "w", lambda v, e: Linear.from_weights(e, v.b)(v.x)),
    "from_weights: bias": (ARRAYS, "b", lambda v, e: Linear.from_weights(v.w, e)(v.x)),
    "from_weights, shared: weight": (ARRAYS, "w", lambda v, e: Linear.from_weights(e, v.b, copy=False)(v.x)),
    "from_weights, shared: bias": (ARRAYS, "b", lambda v, e: Linear.from_weights(v.w, e, copy=False)(v.x)),
    "from_weights: copy": (NUMBERS, False, lambda v, e: Linear.from_weights(v.w, v.b, e)(v.x)),
    "set_num_threads": (NUMBERS, 1, lambda v, e: fastlinear.set_num_threads(e)),
}


class Victims:
    """A layer and arguments for it, on which deeds are done."""

    arguments = "x", "g", "y", "gx", "w", "b"

    def __init__(self, problem, place):
        self.problem = problem
        x, g, w, b = problem
        values = x, g, np.zeros_like(g), np.zeros_like(x), w, b
        for name, value in zip(self.arguments, values, strict=True):
            setattr(self, name, place(name, value))
        self.state = {"weight": self.w, "bias": self.b}
        self.layer = layer_of(problem)

    def to_arrays(self, act):
        for name in self.arguments:
            attempt(act, getattr(self, name))

    def to_attributes(self, act):
        for name in NAMES:
            attempt(lambda name=name: act(getattr(self.layer, name)))

    def freeze(self, frozen):
        def act(a):
            a.flags.writeable = not frozen

        self.to_attributes(act)
        self.to_arrays(act)

    def run(self):
        """Call the layer again, with other arguments."""
        x, g = self.problem.x[:2], self.problem.grad_output[:2]
        attempt(self.layer.backward, x, g)
        attempt(self.layer.backward_update, x.tolist(), g, 0)
        attempt(self.layer.step, 0)
        self.layer.zero_grad()

    def raise_(self):
        raise ZeroDivisionError

    def collect(self):
        gc.collect()

    def run_on_a_thread(self):
        thread = threading.Thread(target=attempt, args=(self.run,))
        thread.start()
        thread.join()


def longer(a):
    a.shape = (a.size, 1)


def flat(a):
    a.shape = (-1,)


def bytes_(a):
    a.dtype = np.int8


DEEDS = {
    "longer": lambda v: v.to_arrays(longer),
    "flat": lambda v: v.to_arrays(flat),
    "bytes": lambda v: v.to_arrays(bytes_),
    "strides": lambda v: v.to_arrays(set_strides),
    "resize": lambda v: v.to_arrays(lambda a: a.resize(1, refcheck=False)),
    "state": lambda v: v.to_arrays(set_state),
    "freeze": lambda v: v.freeze(True),
    "attributes: shape": lambda v: v.to_attributes(set_shape),
    "attributes: dtype": lambda v: v.to_attributes(set_dtype),
    "attributes: state": lambda v: v.to_attributes(set_state),
    "run": Victims.run,
    "run on a thread": Victims.run_on_a_thread,
    "raise": Victims.raise_,
    "init": lambda v: attempt(v.layer.__init__, 99, 98),
    "collect": Victims.collect,
    "names gone": lambda v: [delattr(v, name) for name in Victims.arguments if hasattr(v, name)],
}


def give_turns(name, guarded, whole):
    """Every deed at every turn, or a share of them. They may spoil the results in any way but by memory of others."""
    unmap_what_is_freed()
    _dispatch.use(name)
    rows = 5 if guarded else 1500
    problem = integers(rows, IN, OUT, np.float32)
    rooms = {name: Guarded(rows * IN, np.float32, True, True) for name in Victims.arguments} if guarded else {}

    def place(name, value):
        return rooms[name].place(value) if guarded else value.copy()

    cases = [(what, kind, done) for what, (kinds, *_) in TURNS.items() for kind in kinds for done in DEEDS]
    if not whole:  # another share on each instruction set
        cases = cases[2 * ISAS.index(name) + guarded :: 4 * len(ISAS)]
    threads, turns = fastlinear.get_num_threads(), 0
    expected = problem.x @ problem.weight.T + problem.bias
    for what, kind, done in cases:
        print(what, kind.__name__, done, file=sys.stderr)
        _, stands_for, call = TURNS[what]
        victims = Victims(problem, place)
        value = getattr(victims, stands_for) if hasattr(victims, str(stands_for)) else stands_for
        evil, count = kind(value, lambda: None), []

        def turn(victims=victims, done=done, count=count):
            count.append(1)
            if len(count) < 20:  # a deed may set off another
                DEEDS[done](victims)

        evil.deed = turn
        attempt(call, victims, evil)
        turns += bool(count)
        layer = victims.layer
        attempt(victims.freeze, False)
        for attribute in NAMES:
            a = getattr(layer, attribute)
            assert a.shape == ((OUT, IN) if "weight" in attribute else (OUT,)), what
            # lr is 0 and all values are small: whatever is large or NaN came from elsewhere.
            assert np.all(abs(a) <= 100 * rows * 16), (what, done)
        layer.load_state_dict({"weight": problem.weight, "bias": problem.bias})
        assert np.array_equal(layer(problem.x), expected), (what, done)
        fastlinear.set_num_threads(threads)
    assert turns > len(cases) / 2, turns  # hooks that nobody asks would show nothing


@in_a_child
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["a share", "all"])
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "freed"])
@each_isa
def test_python_code_in_the_midst_of_a_call(name, guarded, whole):
    """__float__, __bool__, __array__, __dlpack__, hooks of subclasses: whatever they do to the arguments and to the
    layer, the call raises or computes, without a crash, and the layer is whole."""
    run = in_child(give_turns, name, guarded, whole)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("method", ["backward_update", "step", "backward", "backward_params"])
@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, np.ndarray.tolist], ids=lambda f: f.__name__)
def test_numbers_are_asked_once(isa, problem, method, form):
    """lr and scale give their value once on every way, and input_grad its truth."""
    layer, asked = layer_of(problem), []
    number = Evil(0.5, lambda: asked.append(1))
    x, g = form(problem.x), form(problem.grad_output)
    {
        "backward_update": lambda: layer.backward_update(x, g, number),
        "step": lambda: layer.step(number),
        "backward": lambda: layer.backward(x, g, scale=number),
        "backward_params": lambda: layer.backward_params(x, g, number),
    }[method]()
    assert asked == [1]
    if method.startswith("backward"):
        asked.clear()
        layer.backward(x, g, input_grad=number)
        layer.backward_update(x, g, 0.5, None, number)
        assert asked == [1, 1]


def test_a_number_that_freezes_out(isa, problem):
    """lr freezes out as it is asked: the weights do not change before the error."""
    for form in (np.asarray, np.asfortranarray):
        layer, out = layer_of(problem), np.empty_like(problem.x)
        lr = Evil(0.5, lambda out=out: setattr(out.flags, "writeable", False))
        with unchanged(layer), pytest.raises(ValueError, match="out must be writable"):
            layer.backward_update(form(problem.x), problem.grad_output, lr, out)


# ---- gradients, made once


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("method", WRITES_OUT)
def test_a_warning_that_is_an_error_comes_first(isa, problem, method):
    """NumPy warns of writing to what broadcast_arrays() gives. As an error that is one before anything is written."""
    layer, width = layer_of(problem), OUT if method in ("call", "forward") else IN
    out, _ = np.broadcast_arrays(np.zeros((5, 1), problem.x.dtype), np.zeros((5, width)))
    with unchanged(layer), pytest.raises(DeprecationWarning, match="broadcast_arrays"):
        METHODS[method](layer, problem.x, problem.grad_output, out)


def test_a_hook_that_gives_no_array(isa, problem):
    """What a subclass makes of a list must be an array, or it is a TypeError."""

    class Odd(Linear):
        def _as_array(self, name, value):
            return None

    layer = Odd.from_weights(problem.weight, problem.bias)
    for call in (
        lambda: layer([1.0] * IN),
        lambda: layer.backward_update([1.0] * IN, [1.0] * OUT, 1),
        lambda: setattr(layer, "weight", [[1.0] * IN] * OUT),
    ):
        with unchanged(layer), pytest.raises(TypeError, match="_as_array must return"):
            call()


@pytest.mark.thread_unsafe(reason="sets the switch interval")
def test_gradients_are_made_once():
    """Threads that use a new layer's gradients at once: all have the same ones, and no accumulation is lost."""
    x, g = np.ones(IN, np.float32), np.ones(OUT, np.float32)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            layer, barrier, lock = Linear(IN, OUT, rng=0), threading.Barrier(3), threading.Lock()

            def use(layer=layer, barrier=barrier, lock=lock):
                barrier.wait()
                first = layer.grad_weight
                with lock:  # accumulating is not atomic, with or without a GIL
                    layer.backward_params(x, g)
                assert layer.grad_weight is first

            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda _, use=use: use(), range(3)))
            assert np.all(layer.grad_weight == 3)
            assert np.all(layer.grad_bias == 3)
    finally:
        sys.setswitchinterval(before)
