"""Nets, tapes, optimisers, activations and losses under what is done to layers in test_hostile.py, test_limits.py,
test_resources.py, test_interruption.py and test_threads.py: no crash, nothing half written, nothing left behind, no
allocation."""

import copy
import gc
import itertools
import os
import pickle
import sys
import time

import numpy as np
import pytest

import fastlinear
from fastlinear import SGD, Adam, Linear, Sequential, _dispatch, activations, clip_grad_norm, losses

from . import test_hostile as hostile
from .helpers import ISAS, python
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

OUTS = [hostile.EvilArray, hostile.Evil]
TURNS = {
    "call: x": (hostile.ARRAYS, "x", lambda v, e: v.layer(e, v.y)),
    "call: out": (OUTS, "y", lambda v, e: v.layer(v.x, e)),
    "record: x": (hostile.ARRAYS, "x", lambda v, e: v.layer.record(e)),
    "record: x, with a tape": (hostile.ARRAYS, "x", lambda v, e: v.layer.record(e, v.tape)),
    "record: tape": ([hostile.Evil], "tape", lambda v, e: v.layer.record(v.problem.x.astype("f2"), e)),
    "backward: grad_output": (hostile.ARRAYS, "g", lambda v, e: v.layer.backward(v.tape, e, v.gx)),
    "backward: out": (OUTS, "gx", lambda v, e: v.layer.backward(v.tape, v.g, e)),
    "backward: scale": (hostile.NUMBERS, 1, lambda v, e: v.layer.backward(v.tape, v.g, v.gx, e)),
    "backward: input_grad": (hostile.NUMBERS, 1, lambda v, e: v.layer.backward(v.tape, v.g, v.gx, 1, e)),
    "backward_update: grad_output": (hostile.ARRAYS, "g", lambda v, e: v.layer.backward_update(v.tape, e, 0, v.gx)),
    "backward_update: lr": (hostile.NUMBERS, 0, lambda v, e: v.layer.backward_update(v.tape, v.g, e, v.gx)),
    "backward_update: out": (OUTS, "gx", lambda v, e: v.layer.backward_update(v.tape, v.g, 0, e)),
    "step: lr": (hostile.NUMBERS, 0, lambda v, e: v.layer.step(e)),
    "load_state_dict": ([hostile.EvilDict], "state", lambda v, e: v.layer.load_state_dict(e)),
    "load_state_dict: 2.weight": (
        hostile.ARRAYS,
        "w",
        lambda v, e: v.layer.load_state_dict({**v.state, "2.weight": e}),
    ),
    "astype": ([hostile.Evil, hostile.EvilDtype], "f8", lambda v, e: v.layer.astype(e)),
    "verify: x": (hostile.ARRAYS, "x", lambda v, e: fastlinear.verify(v.layer, e, v.g)),
    "verify: grad_output": (hostile.ARRAYS, "g", lambda v, e: fastlinear.verify(v.layer, v.x, e)),
    "activation: x": (hostile.ARRAYS, "x", lambda v, e: activations.silu(e, v.gx)),
    "activation: out": (OUTS, "gx", lambda v, e: activations.tanh(v.x, e)),
    "softmax: x": (hostile.ARRAYS, "g", lambda v, e: activations.softmax(e, v.y)),
    "softmax: out": (OUTS, "y", lambda v, e: activations.softmax(v.g, e)),
    "squared_error: output": (hostile.ARRAYS, "g", lambda v, e: losses.squared_error(e, v.y, v.y)),
    "squared_error: target": (hostile.ARRAYS, "g", lambda v, e: losses.squared_error(v.y, e, v.y)),
    "huber: out": (OUTS, "y", lambda v, e: losses.huber(v.g, v.problem.grad_output, e)),
    "log_loss: scores": (hostile.ARRAYS, "g", lambda v, e: losses.log_loss(e, v.labels, v.y)),
    "log_loss: labels": (hostile.ARRAYS, "labels", lambda v, e: losses.log_loss(v.g, e, v.y)),
    "hinge: labels": (hostile.ARRAYS, "labels", lambda v, e: losses.hinge(v.g, e)),
    "hinge: out": (OUTS, "y", lambda v, e: losses.hinge(v.g, v.labels, e)),
    "optimiser: lr": (hostile.NUMBERS, 0, lambda v, e: setattr(v.optimiser, "lr", e)),
    "SGD: momentum": (hostile.NUMBERS, 0.5, lambda v, e: SGD(v.layer, 0, e).step()),
    "SGD: nesterov": (hostile.NUMBERS, 1, lambda v, e: SGD(v.layer, 0, 0.5, e).step()),
    "Adam: betas": (hostile.NUMBERS, 0.5, lambda v, e: Adam(v.layer, 0, (e, 0.5)).step()),
    "Adam: eps": (hostile.NUMBERS, 1, lambda v, e: Adam(v.layer, 0, eps=e).step()),
    "Adam: load_state_dict": (hostile.ARRAYS, "w", lambda v, e: v.load(e)),
    "clip_grad_norm: max_norm": (hostile.NUMBERS, 1, lambda v, e: clip_grad_norm(v.layer, e)),
    "clip_grad_norm: error_if_nonfinite": (hostile.NUMBERS, 1, lambda v, e: clip_grad_norm(v.layer, 1, e)),
}


class Victims(hostile.Victims):
    def __init__(self, problem, place):
        super().__init__(problem, place)
        self.arguments = (*super().arguments, "labels")
        self.layer = net_of()
        self.tape = self.layer.record(problem.x)
        self.optimiser = Adam(self.layer, 0)
        self.w, self.b = (place(name, getattr(self.layer[2], a)) for name, a in (("w", "weight"), ("b", "bias")))
        self.labels = place("labels", np.arange(len(problem.x)) % OUT)
        self.state = {**self.layer.state_dict(), "2.weight": self.w, "2.bias": self.b}

    def load(self, exp_avg):
        """A state of the optimiser, in which that is a buffer of the last weight."""
        kept = {k: {"step": 1} for k in range(4)}
        for k, buffers in enumerate(self.optimiser._buffers()):
            kept[k] |= dict(zip(self.optimiser._BUFFERS, (a.copy() for a in buffers), strict=True))
        kept[2]["exp_avg"] = exp_avg
        self.optimiser.load_state_dict({"state": kept, "param_groups": self.optimiser.state_dict()["param_groups"]})

    def to_attributes(self, act):
        for layer in self.layer.layers:
            for name in hostile.NAMES:
                hostile.attempt(lambda name=name, layer=layer: act(getattr(layer, name)))
        hostile.attempt(lambda: act(self.tape.output))
        for array in itertools.chain(*self.optimiser._buffers()):
            hostile.attempt(act, array)

    def run(self):
        x, g = self.problem.x, self.problem.grad_output
        hostile.attempt(self.layer.record, x.tolist(), self.tape)
        hostile.attempt(self.layer.backward, self.tape, g)
        hostile.attempt(self.layer.backward_update, self.tape, g.tolist(), 0)
        hostile.attempt(self.layer.step, 0)
        hostile.attempt(self.optimiser.step)
        hostile.attempt(self.optimiser.load_state_dict, self.optimiser.state_dict())
        self.layer.zero_grad()


def give_turns(name, guarded, whole):
    """Every deed at every turn, or a share of them, on a net."""
    hostile.unmap_what_is_freed()
    _dispatch.use(name)
    rows = 5 if guarded else 1500
    problem = hostile.integers(rows, IN, OUT, np.float32)
    rooms = {a: Guarded(rows * IN, np.float32, True, True) for a in Victims.arguments} if guarded else {}
    if guarded:
        rooms["labels"] = Guarded(rows, np.int64, True, True)

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
        if what.startswith("load_state_dict"):  # of an array that was given other strides, say
            assert all(np.all(abs(layer.weight) <= 100) for layer in victims.layer.layers), (what, kind, deed)
            victims.layer.load_state_dict(net_of().state_dict())
        assert np.array_equal(victims.layer(problem.x), expected), (what, kind, deed)
        assert np.array_equal(victims.layer.record(problem.x, victims.tape).output, expected), (what, kind, deed)
        for buffers, layer in zip(victims.optimiser._buffers()[::2], victims.layer.layers, strict=True):
            assert [a.shape for a in buffers] == [layer.weight.shape] * 2, (what, kind, deed)
        victims.optimiser.lr = 0
        victims.optimiser.step()
        assert np.array_equal(victims.layer(problem.x), expected), (what, kind, deed)
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
    "copies": lambda net, tape, x, g: (copy.deepcopy(net), pickle.loads(pickle.dumps(net))),
    "Adam": lambda net, tape, x, g: Adam(net, 0.5).step(),
    "SGD": lambda net, tape, x, g: SGD(net, 0.5, 0.5, True).step(),
    "optimiser's copy": lambda net, tape, x, g: copy.copy(Adam(net)),
    "optimiser's state": lambda net, tape, x, g: (repr(Adam(net)), Adam(net).state_dict()),
    "clip_grad_norm": lambda net, tape, x, g: clip_grad_norm(net, 0.001),
    "activation": lambda net, tape, x, g: activations.silu(x, np.empty_like(x)),
    "activation, converted": lambda net, tape, x, g: activations.softmax(x.tolist(), np.empty((3, 2 * IN))[:, ::2]),
    "loss": lambda net, tape, x, g: losses.squared_error(net(x), g.tolist()),
    "loss of labels": lambda net, tape, x, g: losses.log_loss(g.tolist(), [0, 1, 2]),
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


# What takes threads, each the bytes of what it gives.
PARALLEL = {
    "call": lambda net, x, y: net(x),
    "record": lambda net, x, y: net.record(x).output,
    "backward": lambda net, x, y: (net.backward(net.record(x), y), *net.layers[0]._memory()),
    "backward_update": lambda net, x, y: (net.backward_update(net.record(x), y, 1e-3), *net.layers[1]._memory()),
    "Adam": lambda net, x, y: (Adam(net, 1e-3).step(), *net.layers[0]._memory())[1:],
    "SGD": lambda net, x, y: (SGD(net, 1e-3, 0.5).step(), *net.layers[0]._memory())[1:],
    "clip_grad_norm": lambda net, x, y: (np.array(clip_grad_norm(net, 0.5)), *net.layers[0]._memory()),
    "activation": lambda net, x, y: activations.gelu(x),
    "softmax": lambda net, x, y: activations.softmax(x),
    "squared_error": lambda net, x, y: losses.squared_error(net(x), y)[1],
    "log_loss": lambda net, x, y: losses.log_loss(net(x), np.arange(512) % 10)[1],
    "learn": lambda net, x, y: (np.array(net.layers[0].learn(x[:, :256], net.layers[0](x), 1e-3, batch_size=256)),),
}


def in_parallel():
    """The bytes of what each gives, one after another."""
    rng = np.random.default_rng(0)
    net, x, y = net_of((256, 512, 512, 10)), *(rng.standard_normal((512, n), np.float32) for n in (256, 10))
    results = [call(net, x, y) for call in PARALLEL.values()]
    return [[a.tobytes() for a in ([got] if isinstance(got, np.ndarray) else got)] for got in results]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python's own, on any fork beside threads
@pytest.mark.thread_unsafe(reason="forks")
def test_a_fork_after_parallel_work(compiled_isa, threads):
    """The child computes the same bits, on one thread, and does not hang."""
    threads(2)
    expected = in_parallel()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if in_parallel() == expected and fastlinear.get_num_threads() == 1 else 1)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert fastlinear.get_num_threads() in (1, 2)


NO_ROOM = """
import os, resource
import numpy as np
import fastlinear
from fastlinear import SGD, Adam, Linear, Sequential, activations, losses

net = Sequential(Linear(1024, 64, rng=0), "silu", Linear(64, 1024, rng=1))
row = np.ones((1, 1024), np.float32)
tape, optimiser = net.record(row), Adam(net)
net.backward(tape, row)
x = np.lib.stride_tricks.as_strided(row, (1 << 14, 1024), (0, 4))
labels, large = np.zeros(1 << 14, np.int64), Linear(2048, 2048)
calls = {
    "call": lambda: net(x), "record": lambda: net.record(x), "record again": lambda: net.record(x, tape),
    "verify": lambda: fastlinear.verify(net, x, x), "astype": lambda: Sequential(large).astype("f8"),
    "activation": lambda: activations.tanh(x), "softmax": lambda: activations.softmax(x),
    "squared_error": lambda: losses.squared_error(x, x), "log_loss": lambda: losses.log_loss(x, labels),
    "Adam": lambda: Adam(large), "SGD": lambda: SGD(Sequential(large)),
}

def state():
    arrays = [a for layer in net.layers for a in layer._memory()]
    return [a.tobytes() for a in (*arrays, *sum(optimiser._buffers(), []), tape.output)]

before = state()
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), -1))
for name, call in calls.items():
    try:
        call()
    except MemoryError:
        if state() == before:
            continue
    print("no error, or another, or something has changed:", name)
print(np.array_equal(net(row), tape.output))
"""


@pytest.mark.thread_unsafe(reason="limits are the process's")
@pytest.mark.skipif(sys.platform != "linux", reason="sets Linux's limits")
def test_results_that_do_not_fit():
    """Under RLIMIT_AS, whatever finds no room is a MemoryError, and nets, tapes and optimisers are as before."""
    run = python(NO_ROOM, OPENBLAS_NUM_THREADS="1", MALLOC_ARENA_MAX="1")
    assert run.stdout == "True\n", (run.stdout, run.stderr)
