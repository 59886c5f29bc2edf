"""Nets and tapes under what is done to layers in test_hostile.py, test_limits.py, test_resources.py,
test_interruption.py and test_threads.py: no crash, nothing half written, nothing left behind, no allocation."""

import gc
import itertools
import os
import sys
import time

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, Sequential, _dispatch

from . import test_hostile as hostile
from .helpers import ISAS
from .memory import Guarded, in_child
from .test_interruption import interrupted  # noqa: F401  # a fixture
from .test_resources import growth, peak, same_reference_counts

IN, OUT = hostile.IN, hostile.OUT
each_isa = pytest.mark.parametrize("name", ISAS)


def net_of(sizes=(IN, 6, OUT), dtype=np.float32):
    parts = [Linear(a, b, dtype=dtype, rng=n) for n, (a, b) in enumerate(itertools.pairwise(sizes))]
    return Sequential(*itertools.chain(*((part, "silu") for part in parts[:-1])), parts[-1])


def state(net):
    return [[None if a is None else a.tobytes() for a in layer._memory()] for layer in net.layers]


# ---- Python code in the midst of a call

TURNS = {
    "call: x": (hostile.ARRAYS, "x", lambda v, e: v.layer(e, v.y)),
    "record: x": (hostile.ARRAYS, "x", lambda v, e: v.layer.record(e)),
    "record: x, with a tape": (hostile.ARRAYS, "x", lambda v, e: v.layer.record(e, v.tape)),
    "backward: grad_output": (hostile.ARRAYS, "g", lambda v, e: v.layer.backward(v.tape, e, v.gx)),
    "backward: scale": (hostile.NUMBERS, 1, lambda v, e: v.layer.backward(v.tape, v.g, v.gx, e)),
    "backward: input_grad": (hostile.NUMBERS, 1, lambda v, e: v.layer.backward(v.tape, v.g, v.gx, 1, e)),
    "backward_update: grad_output": (hostile.ARRAYS, "g", lambda v, e: v.layer.backward_update(v.tape, e, 0, v.gx)),
    "backward_update: lr": (hostile.NUMBERS, 0, lambda v, e: v.layer.backward_update(v.tape, v.g, e, v.gx)),
    "step: lr": (hostile.NUMBERS, 0, lambda v, e: v.layer.step(e)),
}


class Victims(hostile.Victims):
    def __init__(self, problem, place):
        super().__init__(problem, place)
        self.layer = net_of()
        self.tape = self.layer.record(problem.x)

    def to_attributes(self, act):
        for layer in self.layer.layers:
            for name in hostile.NAMES:
                hostile.attempt(lambda name=name, layer=layer: act(getattr(layer, name)))
        hostile.attempt(lambda: act(self.tape.output))

    def run(self):
        x, g = self.problem.x, self.problem.grad_output
        hostile.attempt(self.layer.record, x.tolist(), self.tape)
        hostile.attempt(self.layer.backward, self.tape, g)
        hostile.attempt(self.layer.backward_update, self.tape, g.tolist(), 0)
        hostile.attempt(self.layer.step, 0)
        self.layer.zero_grad()


def give_turns(name, guarded, whole):
    """Every deed at every turn, or a share of them, on a net."""
    hostile.unmap_what_is_freed()
    _dispatch.use(name)
    rows = 5 if guarded else 1500
    problem = hostile.integers(rows, IN, OUT, np.float32)
    rooms = {a: Guarded(rows * IN, np.float32, True, True) for a in Victims.arguments} if guarded else {}

    def place(argument, value):
        return rooms[argument].place(value) if guarded else value.copy()

    cases = [(what, kind, deed) for what, (kinds, *_) in TURNS.items() for kind in kinds for deed in hostile.DEEDS]
    if not whole:
        cases = cases[2 * ISAS.index(name) + guarded :: 4 * len(ISAS)]
    expected, turns = net_of()(problem.x), 0
    for what, kind, deed in cases:
        print(what, kind.__name__, deed, file=sys.stderr)
        _, stands_for, call = TURNS[what]
        victims, count = Victims(problem, place), []
        value = getattr(victims, stands_for) if hasattr(victims, str(stands_for)) else stands_for
        evil = kind(value, lambda: None)

        def turn(victims=victims, deed=deed, count=count):
            count.append(1)
            if len(count) < 20:
                hostile.DEEDS[deed](victims)

        evil.deed = turn
        hostile.attempt(call, victims, evil)
        turns += bool(count)
        hostile.attempt(victims.freeze, False)
        assert np.array_equal(victims.layer(problem.x), expected), (what, kind, deed)
        assert np.array_equal(victims.layer.record(problem.x, victims.tape).output, expected), (what, kind, deed)
    assert turns > len(cases) / 2, turns


@hostile.in_a_child
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["a share", "all"])
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "freed"])
@each_isa
def test_python_code_in_the_midst_of_a_call(name, guarded, whole):
    """Whatever it does to arguments, layers and tape, the call raises or computes, and the net is whole."""
    run = in_child(give_turns, name, guarded, whole)
    assert run.returncode == 0, run.stderr[-3000:]


def record_amid_collections(name):
    """Change x when the garbage collector runs, at each of the moments in record() at which it may."""
    hostile.unmap_what_is_freed()
    _dispatch.use(name)

    class Cycle:
        def __init__(self, deed):
            self.deed, self.itself = deed, self

        def __del__(self):
            self.deed()

    deeds = {
        "shape": ((1, 1), lambda x: setattr(x, "shape", ())),
        "resize": ((50_000, 64), lambda x: x.resize((1, 1), refcheck=False)),
    }
    thresholds, done = gc.get_threshold(), []
    for (what, (shape, deed)), count in itertools.product(deeds.items(), range(1, 10)):
        net = Sequential(Linear(shape[1], 60, rng=0), "silu", Linear(60, 2, rng=1))
        x = np.ones(shape, np.float32)
        gc.collect()
        gc.disable()
        Cycle(lambda deed=deed, x=x, what=what: (hostile.attempt(deed, x), done.append(what)))
        gc.set_threshold(gc.get_count()[0] + count, 1000, 1000)
        gc.enable()
        try:  # and not suppress(), which would make more objects than record() does
            tape = net.record(x)
        except ValueError:
            tape = None
        gc.disable()
        gc.set_threshold(*thresholds)
        assert tape is None or tape.output.shape == (shape[0], 2), (what, count, tape)
        gc.collect()
    assert set(done) == set(deeds)


@hostile.in_a_child
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each_isa
def test_a_garbage_collection_in_the_midst_of_record(name):
    """What it runs may change x: record() looks at x after its last chance to."""
    run = in_child(record_amid_collections, name)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", hostile.CHANGES.values(), ids=hostile.CHANGES)
def test_what_is_handed_out_is_not_what_the_net_reads(isa, change):
    """Another shape, dtype, strides or state of an output or a weight changes that ndarray and nothing else."""
    net, x = net_of(), np.ones((5, IN), np.float32)
    tape, expected, grad_output = net.record(x), net(x), np.ones((5, OUT), np.float32)
    gx = net.backward(tape, grad_output)
    for array in (tape.output, net.layers[0].weight, net.layers[1].grad_weight):
        hostile.attempt(change, array)
    np.testing.assert_array_equal(tape.output, expected)
    np.testing.assert_array_equal(net(x), expected)
    np.testing.assert_array_equal(net.backward(tape, grad_output), gx)


def test_values_that_change_while_they_are_stored(isa):
    """A pair that gives other arrays the second time is asked once."""
    net = Sequential(Linear(300, 200, rng=0))
    big, small = (np.full((n, m), 7, np.float32) for n, m in ((200, 300), (1, 1)))
    turns = iter([(big, big[:, 0].copy()), (small, small[0])])

    class Changing:
        def __iter__(self):
            return iter(next(turns))

    net._store([Changing()])
    np.testing.assert_array_equal(net[0].weight, big)
    assert len(list(turns)) == 1


# ---- memory

STARVED = {
    "call": lambda net, tape, x, g: net(x),
    "converted": lambda net, tape, x, g: net(x.tolist(), out=np.empty((3, 2 * OUT), np.float32)[:, ::2]),
    "record": lambda net, tape, x, g: net.record(x),
    "record again": lambda net, tape, x, g: net.record(x.tolist(), tape),
    "backward": lambda net, tape, x, g: net.backward(tape, g),
    "backward, converted": lambda net, tape, x, g: net.backward(tape, g.tolist()),
    "backward_update": lambda net, tape, x, g: net.backward_update(tape, g.tolist(), 0.5),
    "step": lambda net, tape, x, g: net.step(0.5),
    "zero_grad": lambda net, tape, x, g: net.zero_grad(),
    "load_state_dict": lambda net, tape, x, g: net.load_state_dict(net_of().state_dict()),
    "make": lambda net, tape, x, g: Sequential(*net.parts),
    "repr": lambda net, tape, x, g: (repr(net), repr(tape), tape.output),
}


def starve(name):
    """Let the first allocation of a call fail, then the second, and so on until the call does not notice any more."""
    import _testcapi

    _dispatch.use(name)
    x, g, *_ = hostile.integers(3, IN, OUT, np.float32)
    failures = 0
    for (what, call), trained in itertools.product(STARVED.items(), (False, True)):

        def run(n, call=call, trained=trained):
            net = net_of()
            tape = net.record(x)
            if trained:
                net.backward(tape, g)
            if n is None:
                return False, net
            _testcapi.set_nomemory(n, n + 1)
            missed = False
            try:
                call(net, tape, x, g)
            except Exception:
                missed = True
            finally:
                _testcapi.remove_mem_hooks()
            return missed, net

        before, after = (state(run(n)[1]) for n in (None, 1 << 30))
        successes = 0
        for n in itertools.count():
            missed, net = run(n)
            if name != "reference":  # which changes one array after another
                now = state(net)
                parameters = [layer[:2] for layer in now]
                assert parameters in ([layer[:2] for layer in before], [layer[:2] for layer in after]), (what, n)
                if trained:
                    assert now in (before, after), (what, n)
            assert net(x).shape == (3, OUT)
            failures, successes = failures + missed, 0 if missed else successes + 1
            if successes == 20:
                break
    assert failures > 100, failures


@each_isa
def test_every_allocation_may_fail(name):
    """Whichever allocation of Python's fails: an exception, no crash, and all layers are as before or as after."""
    pytest.importorskip("_testcapi")
    run = in_child(starve, name)
    assert run.returncode == 0, run.stderr[-3000:]


CALLS = {
    "call": lambda net, tape, x, g, y, gx: net(x, y),
    "record": lambda net, tape, x, g, y, gx: net.record(x, tape),
    "backward": lambda net, tape, x, g, y, gx: net.backward(tape, g, out=gx),
    "backward without grad_input": lambda net, tape, x, g, y, gx: net.backward(tape, g, input_grad=False),
    "backward_update": lambda net, tape, x, g, y, gx: net.backward_update(tape, g, 1e-9, out=gx),
    "step": lambda net, tape, x, g, y, gx: net.step(1e-9),
    "zero_grad": lambda net, tape, x, g, y, gx: net.zero_grad(),
}


def arguments(rows):
    """A net with gradients, a tape, x, grad_output and room for both results."""
    net, rng = net_of((IN, 64, 48, OUT)), np.random.default_rng(0)
    x, g = (rng.standard_normal((rows, n), np.float32) for n in (IN, OUT))
    tape = net.record(x)
    net.backward(tape, g)
    return net, tape, x, g, np.empty_like(g), np.empty_like(x)


@pytest.mark.thread_unsafe(reason="counts what the whole process holds")
@pytest.mark.parametrize("rows", [1, 5, 2000])
@pytest.mark.parametrize("name", CALLS)
def test_no_allocation(compiled_isa, rows, name):
    """With tape and outputs given, a call takes not one byte more than a function that does nothing."""
    given = arguments(rows)
    assert peak(CALLS[name], given, 20) <= peak(lambda *arguments: None, given, 20)


@pytest.mark.thread_unsafe(reason="counts what the whole process holds")
@pytest.mark.parametrize("name", CALLS)
def test_calls_leave_nothing_behind(isa, name):
    """No memory and no reference stays after many calls, good or bad."""
    given = net, tape, x, g, y, gx = arguments(3)
    with same_reference_counts(*given, net.dtype, *net.layers):
        assert growth(lambda: CALLS[name](*given), 50) < 20
        assert growth(lambda: hostile.attempt(CALLS[name], net, tape, x[:, 1:], g[:, 1:], gx, y), 50) < 20
        assert growth(lambda: (net.record(x).output, net(x), net.backward(tape, g)), 50) < 20


# ---- signals, forks


@pytest.mark.thread_unsafe(reason="signals go to the main thread")
@pytest.mark.parametrize("name", [name for name in CALLS if name != "call"])
def test_a_signal_waits_for_the_end_of_a_call(compiled_isa, interrupted, name):  # noqa: F811
    """A signal in the midst of a call arrives after it: all layers have changed, or none."""
    net = net_of((512, 600, 500, 400))
    x, g = np.ones((64, 512), np.float32), np.ones((64, 400), np.float32)
    tape, y, gx = net.record(x), g.copy(), x.copy()
    net.backward(tape, g)
    arguments = net, tape, x, g, y, gx
    hits = 0
    for part in (2, 3, 4, 5, 7, 10, 20, 50):
        saved = [[a.copy() for a in layer._memory()] for layer in net.layers]
        before, begin = state(net), time.perf_counter()
        CALLS[name](*arguments)
        delay = max((time.perf_counter() - begin) / part, 1e-6)
        after = state(net)
        for layer, arrays in zip(net.layers, saved, strict=True):
            layer.weight, layer.bias, layer.grad_weight, layer.grad_bias = arrays
        hit = interrupted(lambda: CALLS[name](*arguments), delay)
        assert state(net) in ([before, after] if hit else [after])
        hits += hit and state(net) == after
    assert hits


@pytest.mark.thread_unsafe(reason="signals go to the main thread")
def test_all_parameters_are_loaded_or_none(interrupted):  # noqa: F811
    """Wherever a signal hits load_state_dict, all layers are old or all are new."""
    nets = [net_of((300, 200, 100)), net_of((300, 200, 100))]
    for layer in nets[1].layers:
        layer.reset(rng=9)
    states = [net.state_dict() for net in nets]
    known = [[a.tobytes() for a in values.values()] for values in states]
    begin = time.perf_counter()
    nets[0].load_state_dict(states[0])
    duration, hits = time.perf_counter() - begin, 0
    for n in range(300):
        hits += interrupted(lambda n=n: nets[0].load_state_dict(states[n % 2]), duration * (n % 40 + 1) / 40)
        assert [a.tobytes() for a in nets[0].state_dict().values()] in known
    assert hits > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python's own, on any fork beside threads
@pytest.mark.thread_unsafe(reason="forks")
def test_a_fork_after_parallel_work(compiled_isa, threads):
    """The child computes the same bits, on one thread, and does not hang."""
    threads(2)
    net, x = net_of((256, 512, 512, 10)), np.ones((512, 256), np.float32)
    expected = net(x).tobytes()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if net(x).tobytes() == net.record(x).output.tobytes() == expected else 1)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert fastlinear.get_num_threads() in (1, 2)
