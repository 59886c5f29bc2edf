"""What several Python threads can do at once, for ThreadSanitizer to watch: python -m tests.race [rounds].

In each round eight threads meet at a new net and its first layer and do, in an order of their own,
    without a lock    all that only reads the parameters, and the first use of the gradients; each with a tape of its
                      own; activations and losses of arrays that all of them read;
    under a lock      all that accumulates into its gradients, or copies them, while the others go on reading the
                      parameters;
    under that lock   all that writes its parameters, after the readers have ended: learn and optimisers, too;
and without a lock everything on a net of their own, and the settings of the process. docs/reliability.md says the
same in a table. Each result that does not depend on the others' turns is compared with that of a layer used alone.

.ci/race builds what is committed with ThreadSanitizer, runs this and reads the reports.
"""

from __future__ import annotations

import copy
import pickle
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import fastlinear
from fastlinear import SGD, Adam, AdamW, Linear, Sequential, activations, clip_grad_norm, losses

THREADS = 8
SIZES = [(5, 4, 1), (64, 64, 3), (70, 300, 8)]
"""in_features, out_features and rows. The last is worth the release of a GIL, where there is one."""


def inputs(sizes: tuple[int, int, int], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    in_features, out_features, batch = sizes
    rng = np.random.default_rng(0)
    x, grad_output = rng.standard_normal((batch, in_features)), rng.standard_normal((batch, out_features))
    return x.astype(dtype), grad_output.astype(dtype)


def net_of(sizes: tuple[int, int, int], dtype: type, seed: int) -> Sequential:
    """As many features come out as go in, so that x is a gradient, too."""
    first, second = (Linear(*widths, dtype=dtype, rng=seed) for widths in (sizes[:2], sizes[1::-1]))
    return Sequential(first, "silu", second, "tanh")


def reading(net: Sequential, x: np.ndarray, grad_output: np.ndarray) -> dict[str, Callable[[], object]]:
    """What changes nothing of the layer; each returns what it must be equal to when the layer is used alone."""
    layer, tape, labels = net.layers[0], net.record(x), np.arange(len(x)) % x.shape[1]
    of_arrays: dict[str, Callable[[], object]] = {
        name: lambda name=name: getattr(activations, name)(x) for name in activations.NAMES
    }
    return {
        **of_arrays,
        "squared_error": lambda: losses.squared_error(x, np.ones_like(x))[1],
        "huber": lambda: losses.huber(x, np.ones_like(x))[1],
        "log_loss": lambda: losses.log_loss(x, labels)[1],
        "hinge": lambda: losses.hinge(x, labels, np.empty_like(x))[1],
        "net": lambda: net(x),
        "net, out": lambda: net(x, out=np.empty_like(x)),
        "net, record": lambda: net.record(x).output,
        "net, record again": lambda: net.record(x, tape).output,
        "net, attributes": lambda: np.array([len(repr(net)), len(repr(tape)), len(net), len(net.state_dict())]),
        "call": lambda: layer(x),
        "forward": lambda: layer.forward(x, out=np.empty_like(grad_output)),
        "forward, converted": lambda: layer(np.asfortranarray(x)),
        "backward_input": lambda: layer.backward_input(grad_output),
        "backward_input, out": lambda: layer.backward_input(grad_output, out=np.empty_like(x)),
        "parameters": lambda: np.append(layer.weight.ravel(), layer.bias),
        "attributes": lambda: np.array([layer.in_features, layer.out_features, layer.weight.nbytes, len(repr(layer))]),
        "gradients": lambda: np.array([*layer.grad_weight.shape, *layer.grad_bias.shape]),
        "state_dict": lambda: layer.state_dict()["weight"],
    }


def accumulating(net: Sequential, x: np.ndarray, grad_output: np.ndarray) -> dict[str, Callable[[], object]]:
    """What writes the gradients, or reads them, and reads the parameters."""
    layer, tape = net.layers[0], net.record(x)
    return {
        "net, backward": lambda: net.backward(tape, x),
        "net, backward, no grad_input": lambda: net.backward(net.record(x), x, input_grad=False),
        "net, zero_grad": net.zero_grad,
        "net, copies": lambda: (copy.deepcopy(net), pickle.loads(pickle.dumps(net))),
        "clip_grad_norm": lambda: clip_grad_norm(net, 1.0),
        "optimiser": lambda: Adam(net).zero_grad(),
        "optimiser, deepcopy": lambda: copy.deepcopy(Adam(net)).step(),
        "copy": lambda: copy.copy(layer),
        "deepcopy": lambda: copy.deepcopy(layer),
        "pickle": lambda: pickle.loads(pickle.dumps(layer)),
        "astype": lambda: layer.astype(np.float64),
        "backward": lambda: layer.backward(x, grad_output),
        "backward, no grad_input": lambda: layer.backward(x, grad_output, input_grad=False, scale=0.5),
        "backward_params": lambda: layer.backward_params(x, grad_output),
        "zero_grad": layer.zero_grad,
        "assigned": lambda: setattr(layer, "grad_bias", np.zeros_like(layer.bias)),
    }


def updating(net: Sequential, x: np.ndarray, grad_output: np.ndarray) -> dict[str, Callable[[], object]]:
    """What writes the parameters."""
    layer, tape, labels = net.layers[0], net.record(x), np.zeros(len(x), int)
    adam, sgd = AdamW(net, 1e-6), SGD(net, 1e-6, momentum=0.5)
    state = {"weight": layer.weight.copy(), "bias": layer.bias.copy()}
    return {
        "backward_update": lambda: layer.backward_update(x, grad_output, 1e-6),
        "net, backward_update": lambda: net.backward_update(tape, x, 1e-6),
        "net, load_state_dict": lambda: net.load_state_dict(net.state_dict()),
        "Adam": adam.step,
        "Adam, load_state_dict": lambda: adam.load_state_dict(adam.state_dict()),
        "SGD": sgd.step,
        "learn": lambda: layer.learn(x, grad_output, 1e-6),
        "learn labels": lambda: layer.learn(x, labels, 1e-6, loss="log_loss", batch_size=4),
        "net, step": lambda: net.step(1e-6),
        "step": lambda: layer.step(1e-6),
        "reset": lambda: layer.reset(rng=0),
        "load_state_dict": lambda: layer.load_state_dict(state),
        "assigned": lambda: setattr(layer, "weight", np.zeros_like(layer.weight)),
        "written": lambda: layer.weight.__imul__(2),
        "frozen": lambda: layer.weight.setflags(write=True),
    }


def of_the_process() -> dict[str, Callable[[], object]]:
    return {
        "set_num_threads": lambda: fastlinear.set_num_threads(1 + threading.get_ident() % 2),
        "get_num_threads": fastlinear.get_num_threads,
        "show_config": lambda: fastlinear.show_config("dicts"),
        "new": lambda: Linear(3, 2, rng=0),
        "from_weights": lambda: Linear.from_weights(np.ones((2, 3), np.float32), copy=False),
    }


def everything(net: Sequential, x: np.ndarray, grad_output: np.ndarray) -> list[Callable[[], object]]:
    parts = reading(net, x, grad_output), accumulating(net, x, grad_output), updating(net, x, grad_output)
    return [call for part in parts for call in part.values()]


def meet(sizes: tuple[int, int, int], dtype: type, seed: int) -> None:
    """One round: see the head."""
    x, grad_output = inputs(sizes, dtype)
    shared = net_of(sizes, dtype, seed)
    expected = {name: call() for name, call in reading(copy.deepcopy(shared), x, grad_output).items()}
    lock, barrier = threading.Lock(), threading.Barrier(THREADS, timeout=600)

    def work(number: int) -> None:
        turns = random.Random(1000 * seed + number)
        own = net_of(sizes, dtype, number)
        readers = list(reading(shared, x, grad_output).items())
        accumulators = list(accumulating(shared, x, grad_output).values())
        alone = everything(own, x.copy(), grad_output.copy())
        updates = updating(shared, x, grad_output).values()
        settings = list(of_the_process().values())
        for calls in (readers, accumulators, alone, settings):
            turns.shuffle(calls)
        barrier.wait()
        shared.layers[0].grad_weight  # noqa: B018  # all at once, the first use
        for step, (name, call) in enumerate(readers):
            np.testing.assert_array_equal(call(), expected[name], name)
            with lock:
                accumulators[(step + number) % len(accumulators)]()
            alone[step]()
            settings[step % len(settings)]()
        barrier.wait()
        for update in updates:
            with lock:
                update()
        for call in alone:
            call()

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(work, number) for number in range(THREADS)]:
            future.result()


def first_gradients(rounds: int) -> None:
    """Each thread accumulates into a new layer under a lock, while others make its gradients by a look at them."""
    x, grad_output = inputs((5, 4, 1), np.float32)
    for _ in range(rounds):
        layer, lock, barrier = Linear(5, 4, rng=0), threading.Lock(), threading.Barrier(THREADS, timeout=600)

        def work(number: int, layer: Linear = layer, lock: threading.Lock = lock, meet: threading.Barrier = barrier):
            meet.wait()
            if number % 2:
                layer.grad_bias  # noqa: B018
            with lock:
                layer.backward_params(x, grad_output)

        with ThreadPoolExecutor(THREADS) as pool:
            for future in [pool.submit(work, number) for number in range(THREADS)]:
                future.result()
        alone = Linear(5, 4, rng=0)
        for _ in range(THREADS):
            alone.backward_params(x, grad_output)
        np.testing.assert_array_equal(layer.grad_weight, alone.grad_weight)


def main(rounds: int) -> None:
    before = fastlinear.get_num_threads()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    first_gradients(10 * rounds)
    for seed in range(rounds):
        for sizes in SIZES:
            for dtype in (np.float32, np.float64):
                meet(sizes, dtype, seed)
    fastlinear.set_num_threads(before)
    print(
        f"{rounds} rounds on {THREADS} threads, {'with' if gil else 'without'} the GIL, {fastlinear.isa}: all as alone"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
