"""What every module shares: each test that asks for `kernels` runs on every instruction set of this machine.

A test that asks for a layer's `isa` is about what comes before a kernel, so each run takes the instruction set in use
and the reference, and only -m sweep takes the others.
"""

import os

# Threads that have nothing to do sleep. Eight that spin on two cores make what they wait for take three times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by the OpenMP runtime when fastlinear is imported

import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

import fastlinear
from fastlinear import _dispatch

from .helpers import COMPILED, DTYPES, ISAS

# Hypothesis warns that a fixture runs once for all examples of a test. That is right for isa, which sets the
# instruction set.
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("nightly", settings.get_profile("ci"), derandomize=False, max_examples=10_000)
settings.load_profile("ci")


ONE_THREAD_FIXTURES = {"layer", "threads", "monkeypatch", "capsys", "tmp_path", "path"}
"""Fixtures whose value all threads of pytest-run-parallel would share, although a test changes it."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if ONE_THREAD_FIXTURES.intersection(item.fixturenames):
            item.add_marker(pytest.mark.thread_unsafe(reason="its fixtures are not to be shared"))


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread():
    """The reference runs on NumPy's BLAS, whose threads would only get in the way of those that are tested."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


@pytest.fixture(params=DTYPES, ids=lambda dtype: dtype.__name__)
def dtype(request):
    return request.param


IN_USE = fastlinear.isa if fastlinear.isa in COMPILED else COMPILED[0]


def _in_use_first(names):
    return [pytest.param(n, marks=() if n in (IN_USE, _dispatch.REFERENCE) else pytest.mark.sweep) for n in names]


def _use(name):
    before = fastlinear.isa
    fastlinear.isa = name
    _dispatch.use(name)
    yield name
    fastlinear.isa = before
    _dispatch.use(before)


@pytest.fixture(params=_in_use_first(ISAS))
def isa(request):
    """Every layer of the test runs on this instruction set, or on the reference; on the rest of them with -m sweep."""
    yield from _use(request.param)


@pytest.fixture(params=_in_use_first(COMPILED))
def compiled_isa(request):
    """As isa, without the reference, which does not keep the contract on bits."""
    yield from _use(request.param)


@pytest.fixture(params=ISAS)
def kernels(request):
    """The module with the kernels of every instruction set, and the reference as one of them."""
    return _dispatch.load(request.param)


@pytest.fixture(params=COMPILED)
def compiled(request):
    """As kernels, without the reference."""
    return _dispatch.load(request.param)


@pytest.fixture
def threads():
    """fastlinear.set_num_threads, with the setting put back after the test."""
    before = fastlinear.get_num_threads()
    yield fastlinear.set_num_threads
    fastlinear.set_num_threads(before)
