"""Ctrl-C: it comes before or after a change, never in the middle of one."""

import signal
import time

import numpy as np
import pytest

from fastlinear import Linear

from .helpers import integers, layer_of, memory_of

pytestmark = [
    pytest.mark.thread_unsafe(reason="signals go to the main thread"),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
]


class Interrupt(BaseException):
    """What the handler raises, as KeyboardInterrupt is raised by Python's own."""


@pytest.fixture
def interrupted():
    """Call something with a signal on its way: whether it was interrupted."""
    expected = False

    def handler(*_):
        if expected:  # another thread of the process may take the signal, and then it is handled at any time later
            raise Interrupt

    def run(call, delay):
        nonlocal expected
        try:
            expected = True
            signal.setitimer(signal.ITIMER_REAL, delay)
            call()
            signal.setitimer(signal.ITIMER_REAL, 0)
            expected = False
        except Interrupt:
            expected = False
            return True
        return False

    before = signal.signal(signal.SIGALRM, handler)
    yield run
    signal.signal(signal.SIGALRM, before)


SIZES = 64, 1024, 1024
CALLS = {
    "forward": lambda layer, x, g, y, gx: layer(x, out=y),
    "backward": lambda layer, x, g, y, gx: layer.backward(x, g, out=gx),
    "backward_params": lambda layer, x, g, y, gx: layer.backward_params(x, g),
    "backward_update": lambda layer, x, g, y, gx: layer.backward_update(x, g, 0.5, out=gx),
    "step": lambda layer, x, g, y, gx: layer.step(0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_signal_waits_for_the_end_of_a_call(compiled_isa, interrupted, name):
    """A signal in the midst of a call arrives after it: all of the call has happened, bit for bit. One that was
    earlier than the call: nothing has."""
    problem = integers(*SIZES, np.float32)
    results = [np.zeros_like(problem.grad_output), np.zeros_like(problem.x)]
    layer = layer_of(problem)
    layer.backward(problem.x, problem.grad_output)

    def state():
        return [array.tobytes() for array in (*memory_of(layer).values(), *results)]

    def call():
        CALLS[name](layer, problem.x, problem.grad_output, *results)

    hits = 0
    for part in (2, 3, 4, 5, 7, 10, 20, 50):
        memory_before, results_before = memory_of(layer), [r.copy() for r in results]
        before, begin = state(), time.perf_counter()
        call()
        delay = max((time.perf_counter() - begin) / part, 1e-6)
        after = state()
        for key, value in memory_before.items():
            setattr(layer, key, value)
        for result, value in zip(results, results_before, strict=True):
            result[...] = value
        hit = interrupted(call, delay)
        assert state() in ([before, after] if hit else [after])
        hits += hit and state() == after
    assert hits


STATES = [Linear(300, 200, rng=seed).state_dict() for seed in range(2)]
CHANGES = {
    "reset": lambda layer, n: layer.reset(n),
    "load_state_dict": lambda layer, n: layer.load_state_dict(STATES[n]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_change_together_or_not_at_all(interrupted, name):
    """Wherever a signal hits, weight and bias are both old or both new."""
    layer = Linear(300, 200, rng=0)
    begin = time.perf_counter()
    CHANGES[name](layer, 0)
    duration = time.perf_counter() - begin
    hits = 0
    for attempt in range(400):
        hits += interrupted(lambda n=attempt % 2: CHANGES[name](layer, n), duration * (attempt % 40 + 1) / 40)
        assert [layer.state_dict()["weight"].tobytes(), layer.state_dict()["bias"].tobytes()] in [
            [state["weight"].tobytes(), state["bias"].tobytes()] for state in STATES
        ], f"after {hits} signals"
    assert hits > 10


def test_gradients_vanish_together_or_not_at_all(interrupted):
    """zero_grad, too."""
    layer = Linear(1000, 200, rng=0)
    hits = 0
    for attempt in range(400):
        layer.grad_weight[...] = layer.grad_bias[...] = 1
        hits += interrupted(layer.zero_grad, 1e-6 * (attempt % 40 + 1))
        assert {*np.unique(layer.grad_weight)} == {*np.unique(layer.grad_bias)}
    assert hits > 10


def test_a_handler_that_accumulates_too(compiled_isa):
    """A signal handler that calls backward_params while a new layer's first one is on its way: both count. (On the
    reference accumulating is several steps of NumPy.)"""
    layer, x, g = None, np.ones(7, np.float32), np.ones(3, np.float32)
    calls = []

    def handler(*_):
        calls.append(1)
        layer.backward_params(x, g)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for attempt in range(400):
            layer = Linear(7, 3, rng=0)
            calls.clear()
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (attempt % 40 + 1))
            layer.backward_params(x, g)
            while not calls:
                time.sleep(0)
            assert np.all(layer.grad_weight == 2)
            assert np.all(layer.grad_bias == 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
