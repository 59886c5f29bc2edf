"""Every operation of every library, over shapes, batches and dtypes; grouped so that libraries stand together."""

from __future__ import annotations

from itertools import product

import numpy as np
import peers
import pytest
from peers import GRID_BATCHES, GRID_SHAPES, LIBRARIES, OPERATIONS, Case
from pytest_benchmark.fixture import BenchmarkFixture

FEW_SHAPES, FEW_BATCHES = [(13, 512), (784, 256)], [0, 32]

ANSWERS = {
    "forward": ("y",),
    "grad_input": ("gx",),
    "grad_weight": ("weight",),
    "grad_bias": ("bias",),
    "backward": ("gx", "weight", "bias"),
    "backward_update": ("gx", "weight", "bias"),
    "update_weight": ("weight",),
    "training_step": ("y", "gx", "weight", "bias"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full")
    shapes = list(dict.fromkeys([*GRID_SHAPES, *peers.listed_shapes()])) if full else FEW_SHAPES
    cases = [Case(*shape, batch, dtype) for shape, batch, dtype
             in product(shapes, GRID_BATCHES if full else FEW_BATCHES, peers.DTYPES)]  # fmt: skip
    metafunc.parametrize("case", cases, ids=str)
    metafunc.parametrize("operation", OPERATIONS)
    metafunc.parametrize("library", LIBRARIES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    peers.set_threads(1)


def prepared(library: str, operation: str, case: Case) -> peers.Work:
    if reason := LIBRARIES[library].missing():
        pytest.skip(reason)
    if (work := peers.prepare(library, operation, case)) is None:
        pytest.skip(f"{library} has no {operation}")
    return work


@pytest.mark.benchmark(max_time=0.1, warmup=False)
def test_operation(benchmark: BenchmarkFixture, library: str, operation: str, case: Case) -> None:
    work = prepared(library, operation, case)
    benchmark.group = f"{operation} {case}"
    with work.context():
        benchmark(work.function())


def test_answer(library: str, operation: str, case: Case) -> None:
    """What is timed computes what it says, in every form."""
    how = LIBRARIES[library]
    if reason := how.missing():
        pytest.skip(reason)
    forms = how.forms(operation, case) if library != "autograd" else ()
    if not forms:
        pytest.skip(f"{library} has no {operation} in one go that can be checked here")
    for form in forms:
        peers.parameters.cache_clear()
        peers.arrays.cache_clear()
        arrays = peers.arrays(case)
        before = {name: np.array(a, np.float64) for name, a in arrays.items() if isinstance(a, np.ndarray)}
        names = how.names(case)
        with how.context():
            exec(form, names)
        after = {name: np.asarray(names.get(name, arrays[name])) for name in before}
        x, g = np.atleast_2d(before["x"]), np.atleast_2d(before["g"])
        got = {
            "y": after["y"],
            "gx": after["gx"],
            "weight": (after["dW"] - before["dW"]) + (before["W"] - after["W"]) / peers.LEARNING_RATE,
            "bias": (after["db"] - before["db"]) + (before["b"] - after["b"]) / peers.LEARNING_RATE,
        }
        expected = {"y": x @ before["W"].T + before["b"], "gx": g @ before["W"], "weight": g.T @ x, "bias": g.sum(0)}
        for name in ANSWERS[operation]:
            np.testing.assert_allclose(
                got[name], expected[name].reshape(got[name].shape), rtol=1e-3, atol=0.05, err_msg=form
            )
