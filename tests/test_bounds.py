"""No access outside of an array: each lies against a page that may not be touched, so one byte too far is a crash.

Arrays that are only read lie on pages that cannot be written. A crash ends a child process, and the test says in which
call that happened.
"""

import ctypes
import math
import os
import signal
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest

from fastlinear import Linear, _dispatch, set_num_threads

from .helpers import COMPILED, Problem, integers
from .memory import AVAILABLE, Guarded, in_child

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="maps memory in Linux's way")

# Not the reference: how NumPy's BLAS reads is not ours to say.
each_isa = pytest.mark.parametrize("name", COMPILED)
each_side = pytest.mark.parametrize("side", ["end", "begin"])

MOST = 70
EDGES = {"end": (1, 2, 3, 5, 8, 17, 33, MOST), "begin": (1, 5, 33)}


def small(side):
    """(batch, in, out): one runs over all sizes while the others take those at edges of tiles. Some are empty."""
    triples = product(range(MOST + 1), EDGES[side], EDGES[side])
    turned = {triple[n:] + triple[:n] for triple in triples for n in range(3)}
    return sorted(turned | {sizes for sizes in product((0, 1, 5, MOST), repeat=3) if 0 in sizes})


# Past each block by one, so that the last has a single element, row or column, or by what fills half a tile: blocks of
# k, of outputs, of columns and of the batch; by dots and packed, of few features and of many; long blocks of k; a W
# that is fetched ahead; blocks of outputs side by side, for a few columns of a few rows.
LARGE = [
    *product((1, 3, 7), (513, 1025, 2049, 4097), (9, 257)),
    *product((17, 33, 257), (39, 513, 1025), (49, 65)),
    *product((65, 257), (129, 257), (61, 97)),
    *product((1, 5, 33), (2**14 + 1, 2**15 + 1), (3,)),
    (33, 2**14 + 1, 129),
    (1, 2049, 2060),
    *product((1, 3), (2, 13), (513, 769)),
]


class Out(NamedTuple):
    """An array that a call writes: what is in it before, and what must be in it after."""

    before: np.ndarray
    after: np.ndarray


def outcomes(p):
    """What the calls below write. The sums are small integers, which are exact in p's dtype."""
    grad_weight, grad_bias = p.grad_output.T @ p.x, p.grad_output.sum(0)
    y = p.x @ p.weight.T
    out = {
        "y": Out(np.full_like(y, np.nan), y + p.bias),
        "y without bias": Out(np.full_like(y, np.nan), y),
        "grad_input": Out(np.full_like(p.x, np.nan), p.grad_output @ p.weight),
        "step of weight": Out(p.weight, p.weight - p.weight / 4),
        "step of bias": Out(p.bias, p.bias - p.bias / 4),
    }
    for scale in (1, 0.5, -0.25):
        out[f"weight {scale:+}"] = Out(p.weight, p.weight + scale * grad_weight)
        out[f"bias {scale:+}"] = Out(p.bias, p.bias + scale * grad_bias)
    return out


class Room:
    """Guarded memory for a problem and for what is written, and a file that says what it is used for."""

    def __init__(self, dtype, side, note):
        def most(*axes):
            return max(int(np.prod([sizes[axis] for axis in axes])) for sizes in [(MOST, MOST, MOST), *LARGE])

        counts = most(0, 1), most(0, 2), most(1, 2), most(2)
        self._read = [Guarded(count, dtype, side == "end", writable=False) for count in counts]
        self._written = [Guarded(max(counts), dtype, side == "end", writable=True) for _ in range(3)]
        self._note = os.open(note, os.O_WRONLY | os.O_CREAT)

    def place(self, problem):
        """The problem in memory that cannot be written; the flags of weight and bias say otherwise, for a layer."""
        p = Problem(*(room.place(values) for room, values in zip(self._read, problem, strict=True)))
        p.x.flags.writeable = p.grad_output.flags.writeable = False
        return p

    def check(self, what, call, *outs):
        """Make the call with an array for each out, None for None, and compare."""
        os.pwrite(self._note, what.ljust(100).encode(), 0)
        arrays = [o if o is None else room.place(o.before) for o, room in zip(outs, self._written, strict=False)]
        call(*arrays)
        for n, (out, array) in enumerate(zip(outs, arrays, strict=True)):
            assert out is None or (array == out.after).all(), f"output {n} of {what}"


def problems(side, dtype, part, most):
    """Every so many of the sizes; of the large ones those with at most so many products."""
    whole = integers(MOST, MOST, MOST, dtype)
    for b, i, o in small(side)[::part]:
        yield Problem(whole.x[:b, :i], whole.grad_output[:b, :o], whole.weight[:o, :i], whole.bias[:o])
    for sizes in LARGE[::part]:
        if math.prod(sizes) <= most:
            yield integers(*sizes, dtype)


def check_kernels(room, kernels, p, threads):
    """Every kernel with all that may be given, and with all that may be left out."""
    sizes = *p.x.shape, p.weight.shape[0]
    x, g, w, b = room.place(p)
    out = outcomes(p)

    def check(kernel, call, *names):
        room.check(f"{kernel} of {sizes}, threads: {threads}", call, *(out.get(name) for name in names))

    check("forward", lambda y: kernels.forward(x, w, b, y, threads), "y")
    check("forward without bias", lambda y: kernels.forward(x, w, None, y, threads), "y without bias")
    check("grad_input", lambda gx: kernels.grad_input(g, w, gx, threads), "grad_input")
    check("grad_weight", lambda gw: kernels.grad_weight(x, g, 1, gw, threads), "weight +1")
    check("grad_weight, scaled", lambda gw: kernels.grad_weight(x, g, 0.5, gw, threads), "weight +0.5")
    for names in ("weight -0.25", "bias -0.25", "grad_input"), ("weight -0.25", None, None):
        check("update of " + ", ".join(filter(None, names)), lambda *o: kernels.update(x, g, 0.25, *o, threads), *names)
    if sizes[1] <= 1:  # for these not all sizes count
        check("grad_bias", lambda gb: kernels.grad_bias(g, 1, gb), "bias +1")
        check("grad_bias, scaled", lambda gb: kernels.grad_bias(g, 0.5, gb), "bias +0.5")
    if sizes[0] <= 1:
        check("step", lambda new: kernels.step(w.reshape(-1), 0.25, new.reshape(-1)), "step of weight")
        check("step of bias", lambda new: kernels.step(b, 0.25, new), "step of bias")


def run_kernels(name, dtype, side, part, most, note):
    kernels, room = _dispatch.load(name), Room(dtype, side, note)
    for p in problems(side, dtype, part, most):
        for threads in (1, 3) if p.x.size > MOST**2 else (1,):
            check_kernels(room, kernels, p, threads)


def check_layer(room, p):
    """Every method, on a vector and on three axes too. What no call writes is on pages that cannot be written."""
    sizes = *p.x.shape, p.weight.shape[0]
    x, g, w, b = room.place(p)
    lead = {1: (), 70: (7, 10)}.get(len(x), x.shape[:1])
    x, g = x.reshape(*lead, x.shape[1]), g.reshape(*lead, g.shape[1])
    layer, out = Linear.from_weights(w, b, copy=False), outcomes(p)

    def layer_on(*memory):
        """A layer on this memory, gradients included, for which there is no public way."""
        made = Linear.__new__(Linear)
        made._bind(*memory)
        return made

    def check(method, call, *names):
        room.check(f"layer.{method} of {sizes}", call, *(out[name] for name in names))

    def backward(gx, gw, gb):
        layer_on(w, b, gw, gb).backward(x, g, out=gx.reshape(x.shape))

    def backward_update(new_w, new_b, gx):
        Linear.from_weights(new_w, new_b, copy=False).backward_update(x, g, 0.25, out=gx.reshape(x.shape))

    def step(new_w, new_b):
        layer_on(new_w, new_b, w, b).step(0.25)

    check("__call__", lambda y: layer(x, y.reshape(g.shape)), "y")
    check("backward_input", lambda gx: layer.backward_input(g, gx.reshape(x.shape)), "grad_input")
    check("backward", backward, "grad_input", "weight +1", "bias +1")
    check("backward_update", backward_update, "weight -0.25", "bias -0.25", "grad_input")
    check("step", step, "step of weight", "step of bias")


def run_layer(name, dtype, side, part, most, note):
    _dispatch.use(name)
    set_num_threads(3)
    room = Room(dtype, side, note)
    for p in problems(side, dtype, part, most):
        check_layer(room, p)


def assert_ran(run, note):
    assert run.returncode == 0, f"exit status {run.returncode} at {note.read_text()}\n{run.stderr[-2000:]}"


@pytest.mark.parametrize(("part", "most"), [(7, 2**21), pytest.param(1, 2**60, marks=pytest.mark.sweep)])
@each_side
@each_isa
def test_kernels_stay_inside(name, dtype, side, part, most, tmp_path):
    """Every kernel, on sizes 1 to 70 and past every block, on one thread and on three: no crash, right results."""
    note = tmp_path / "note"
    assert_ran(in_child(run_kernels, name, dtype.__name__, side, part, most, str(note)), note)


@pytest.mark.parametrize(("part", "most"), [(23, 2**21), pytest.param(3, 2**60, marks=pytest.mark.sweep)])
@each_side
@each_isa
def test_layer_stays_inside(name, dtype, side, part, most, tmp_path):
    """Every method of a layer, on some of these sizes, with parameters that it shares: no crash, right results."""
    note = tmp_path / "note"
    assert_ran(in_child(run_layer, name, dtype.__name__, side, part, most, str(note)), note)


# How a byte is touched, and whether that may be.
TOUCHES = {
    "read the first byte": (lambda room: ctypes.string_at(room.begin, 1), True),
    "read the last byte": (lambda room: ctypes.string_at(room.end - 1, 1), True),
    "write the last byte": (lambda room: ctypes.memset(room.end - 1, 0, 1), True),
    "read before the first byte": (lambda room: ctypes.string_at(room.begin - 1, 1), False),
    "read past the last byte": (lambda room: ctypes.string_at(room.end, 1), False),
    "write before the first byte": (lambda room: ctypes.memset(room.begin - 1, 0, 1), False),
    "write past the last byte": (lambda room: ctypes.memset(room.end, 0, 1), False),
    "write the last byte of what is read only": (lambda room: ctypes.memset(room.end - 1, 0, 1), False),
}


def touch(what):
    ones = np.ones(50, np.float32)
    for ends in (True, False):
        room = Guarded(ones.size, ones.dtype, ends, writable="read only" not in what)
        array = room.place(ones)
        assert array.sum() == 50, "the room is of no use"
        assert array.ctypes.data == (room.end - array.nbytes if ends else room.begin), "the array is not at the edge"
    print("ready", flush=True)
    TOUCHES[what][0](room)
    print("alive")


@pytest.mark.parametrize("what", TOUCHES)
def test_the_guard_guards(what):
    """One byte outside, or a write to what is only read, ends the process by SIGSEGV; all inside may be touched."""
    run, allowed = in_child(touch, what), TOUCHES[what][1]
    assert run.stdout == ("ready\nalive\n" if allowed else "ready\n"), run.stderr
    assert run.returncode == (0 if allowed else -signal.SIGSEGV), run.stderr


def overrun(note):
    """A kernel that is told of one element too many, as a broken one would be."""
    room = Room("float32", "end", note)
    p = room.place(integers(3, 5, 7, np.float32))
    longer = np.lib.stride_tricks.as_strided(p.bias, (8,))
    room.check(
        "a step too far", lambda new: _dispatch.load(COMPILED[0]).step(longer, 1.0, new), Out(np.ones(8), np.ones(8))
    )


def test_an_overrun_is_told(tmp_path):
    """What the tests above would say of a kernel that reads one element too many."""
    note = tmp_path / "note"
    with pytest.raises(AssertionError, match=r"exit status -11 at a step too far(?s:.*)in overrun"):
        assert_ran(in_child(overrun, str(note)), note)
