"""What is compared: one table of statements for each library, and the arrays that they run on.

A library says how it does each *step* (forward, grad_input, ...) on a vector and on a batch, in one or more forms;
the form that is fastest at a case is the one that counts. An operation is one or more steps, unless the library does
it in one go. All outputs are preallocated, all inputs contiguous, and every library works on the same memory.
"""

from __future__ import annotations

import csv
import functools
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import Work, interleave

import fastlinear
from fastlinear import _dispatch

OPERATIONS = {
    "forward": ("forward",),
    "grad_input": ("grad_input",),
    "grad_weight": ("grad_weight",),
    "backward": ("grad_input", "grad_weight", "grad_bias"),
    "backward_update": ("grad_input", "update_weight", "update_bias"),
    "training_step": ("forward", "grad_input", "update_weight", "update_bias"),
}
"""Each operation and the steps that it is made of. grad_weight and grad_bias accumulate."""

GRID_SHAPES = [
    (16, 16),
    (64, 64),
    (256, 256),
    (13, 512),
    (479, 1024),
    (784, 10),
    (784, 256),
    (1024, 1024),
    (4096, 4096),
]
GRID_BATCHES = [0, 1, 2, 4, 8, 16, 32, 64, 256]
DTYPES = ["float32", "float64"]
LEARNING_RATE = 1e-4


class Case(NamedTuple):
    """A layer's shape, the rows of its input (0 is a vector, without a batch axis) and the dtype."""

    in_features: int
    out_features: int
    batch: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.in_features}x{self.out_features}-{self.batch or 'vector'}-{self.dtype}"


def listed_shapes() -> list[tuple[int, int]]:
    """The layers of real networks in shapes.csv."""
    with Path(__file__).with_name("shapes.csv").open(newline="") as file:
        return [(int(row["in_features"]), int(row["out_features"])) for row in csv.DictReader(file)]


# ---- the arrays


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array that begins on a cache line, filled with numbers in ±1."""
    size, period = int(np.prod(shape)), 1 << 14
    memory = np.empty(size + period + 16, dtype)
    start = -memory.ctypes.data % 64 // memory.itemsize
    periods = memory[start:][: -(-size // period) * period].reshape(-1, period)
    periods[...] = np.random.default_rng(0).uniform(-1, 1, period)
    return memory[start : start + size].reshape(shape)


@functools.lru_cache(maxsize=1)
def parameters(in_features: int, out_features: int, dtype: str) -> dict[str, Any]:
    """W, b, dW, db by these names, the layer on them, and scratch for those who need it."""
    weight, bias = aligned((out_features, in_features), dtype), aligned((out_features,), dtype)
    layer = fastlinear.Linear.from_weights(weight, bias, copy=False)
    return {
        "layer": layer,
        "unbiased": fastlinear.Linear.from_weights(weight),
        "W": weight,
        "b": bias,
        "dW": layer.grad_weight,
        "db": layer.grad_bias,
        "product": aligned((out_features, in_features), dtype),
        "total": aligned((out_features,), dtype),
    }


@functools.lru_cache(maxsize=1)
def arrays(case: Case) -> dict[str, Any]:
    """Those of the layer, and x, g, y, gx and more scratch."""
    rows = (case.batch,) if case.batch else ()
    return parameters(case.in_features, case.out_features, case.dtype) | {
        "x": aligned((*rows, case.in_features), case.dtype),
        "g": aligned((*rows, case.out_features), case.dtype),
        "y": aligned((*rows, case.out_features), case.dtype),
        "gx": aligned((*rows, case.in_features), case.dtype),
        "scaled": aligned((*rows, case.out_features), case.dtype),
        "ones": np.ones(case.batch, case.dtype),
    }


def forget() -> None:
    """Let the next work have arrays of its own."""
    arrays.cache_clear()
    parameters.cache_clear()


def fastlinear_names(case: Case) -> dict[str, Any]:
    return arrays(case) | {"lr": LEARNING_RATE}


def numpy_names(case: Case) -> dict[str, Any]:
    names = arrays(case)
    column = names["g"][:, None] if not case.batch else None
    return names | {"np": np, "lr": LEARNING_RATE, "Wt": names["W"].T, "gt": names["g"].T, "column": column,
                    "scaled_t": names["scaled"].T if case.batch else names["scaled"][:, None]}  # fmt: skip


def torch_names(case: Case) -> dict[str, Any]:
    import torch

    names = {name: torch.from_numpy(a) for name, a in arrays(case).items() if isinstance(a, np.ndarray)}
    return names | {"torch": torch, "linear": torch.nn.functional.linear, "lr": LEARNING_RATE,
                    "Wt": names["W"].t(), "gt": names["g"].t()}  # fmt: skip


def autograd_names(case: Case) -> dict[str, Any]:
    import torch

    names = {name: a.clone().requires_grad_() if name in "xWb" else a for name, a in torch_names(case).items()
             if name in ("x", "W", "b", "g")}  # fmt: skip
    optimiser = torch.optim.SGD([names["W"], names["b"]], lr=LEARNING_RATE)
    return names | {"linear": torch.nn.functional.linear, "optimiser": optimiser}


@functools.lru_cache(maxsize=2)
def gemm_model(in_features: int, out_features: int, dtype: str) -> bytes:
    """An ONNX model of one Gemm with constant W and b, on any number of rows."""
    from onnx import TensorProto, helper, numpy_helper

    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[dtype]
    constants = {"W": aligned((out_features, in_features), dtype), "b": aligned((out_features,), dtype)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "W", "b"], ["y"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", kind, ["batch", in_features])],
        [helper.make_tensor_value_info("y", kind, ["batch", out_features])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model.SerializeToString()


@functools.lru_cache(maxsize=1)
def session(in_features: int, out_features: int, dtype: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        gemm_model(in_features, out_features, dtype), options, providers=["CPUExecutionProvider"]
    )


def onnxruntime_names(case: Case) -> dict[str, Any]:
    run = session(case.in_features, case.out_features, case.dtype, THREADS)
    bound, kind = run.io_binding(), np.dtype(case.dtype).type
    for name, bind in (("x", bound.bind_input), ("y", bound.bind_output)):
        array = np.atleast_2d(arrays(case)[name])
        bind(name, "cpu", 0, kind, array.shape, array.ctypes.data)
    return {"session": run, "bound": bound, "arrays": arrays(case)}


# ---- the libraries


class Library(NamedTuple):
    """Where the names come from, what is run, what must be importable, and whether hold.py can hold it to AVX2."""

    names: Callable[[Case], dict[str, Any]]
    vector: dict[str, tuple[str, ...]]
    batch: dict[str, tuple[str, ...]]
    requires: tuple[str, ...] = ()
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    holdable: bool = True

    def forms(self, step: str, case: Case) -> tuple[str, ...]:
        return (self.batch if case.batch else self.vector).get(step, ())

    def missing(self) -> str | None:
        """Why this library cannot run here, or None."""
        for module in self.requires:
            try:
                importlib.import_module(module)
            except ImportError as problem:
                return str(problem)
        if not self.holdable and fastlinear.isa == "avx2" and "avx512" in _dispatch.available():
            return "it cannot be held to AVX2 on a processor with AVX-512"
        return None


@contextmanager
def kernels(isa: str) -> Iterator[None]:
    """Run every layer on that build of the kernels."""
    _dispatch.use(isa)
    try:
        yield
    finally:
        _dispatch.use(fastlinear.isa)


def inference() -> AbstractContextManager[Any]:
    import torch

    return torch.inference_mode()


FASTLINEAR = {
    "forward": ("layer.forward(x, out=y)",),
    "grad_input": ("layer.backward_input(g, out=gx)",),
    "grad_weight": ("unbiased.backward_params(x, g)",),
    "backward": ("layer.backward(x, g, out=gx)",),
    "backward_update": ("layer.backward_update(x, g, lr, out=gx)",),
    "training_step": ("layer.forward(x, out=y); layer.backward_update(x, g, lr, out=gx)",),
}
NUMPY_VECTOR = {
    "forward": ("np.matmul(W, x, out=y); np.add(y, b, out=y)", "np.dot(W, x, out=y); np.add(y, b, out=y)"),
    "grad_input": ("np.matmul(g, W, out=gx)", "np.dot(g, W, out=gx)"),
    "grad_weight": ("np.multiply(column, x, out=product); np.add(dW, product, out=dW)",),
    "grad_bias": ("np.add(db, g, out=db)",),
    "update_weight": (
        "np.multiply(g, lr, out=scaled); np.multiply(scaled_t, x, out=product); np.subtract(W, product, out=W)",
    ),
    "update_bias": ("np.subtract(b, scaled, out=b)",),
}
NUMPY_BATCH = {
    "forward": ("np.matmul(x, Wt, out=y); np.add(y, b, out=y)", "np.dot(x, Wt, out=y); np.add(y, b, out=y)"),
    "grad_input": ("np.matmul(g, W, out=gx)", "np.dot(g, W, out=gx)"),
    "grad_weight": (
        "np.matmul(gt, x, out=product); np.add(dW, product, out=dW)",
        "np.dot(gt, x, out=product); np.add(dW, product, out=dW)",
    ),
    "grad_bias": (
        "np.add.reduce(g, 0, out=total); np.add(db, total, out=db)",
        "np.dot(ones, g, out=total); np.add(db, total, out=db)",
    ),
    "update_weight": (
        "np.multiply(g, lr, out=scaled); np.matmul(scaled_t, x, out=product); np.subtract(W, product, out=W)",
        "np.multiply(g, lr, out=scaled); np.dot(scaled_t, x, out=product); np.subtract(W, product, out=W)",
    ),
    "update_bias": (
        "np.add.reduce(scaled, 0, out=total); np.subtract(b, total, out=b)",
        "np.dot(ones, scaled, out=total); np.subtract(b, total, out=b)",
    ),
}
TORCH_VECTOR = {
    "forward": ("y = linear(x, W, b)", "torch.addmv(b, W, x, out=y)"),
    "grad_input": ("torch.mv(Wt, g, out=gx)",),
    "grad_weight": ("dW.addr_(g, x)",),
    "grad_bias": ("db.add_(g)",),
    "update_weight": ("W.addr_(g, x, alpha=-lr)",),
    "update_bias": ("b.add_(g, alpha=-lr)",),
}
TORCH_BATCH = {
    "forward": ("y = linear(x, W, b)", "torch.addmm(b, x, Wt, out=y)"),
    "grad_input": ("torch.mm(g, W, out=gx)",),
    "grad_weight": ("dW.addmm_(gt, x)", "torch.mm(gt, x, out=product); dW.add_(product)"),
    "grad_bias": ("torch.sum(g, 0, out=total); db.add_(total)", "db.addmv_(gt, ones)"),
    "update_weight": ("W.addmm_(gt, x, alpha=-lr)", "torch.mm(gt, x, out=product); W.add_(product, alpha=-lr)"),
    "update_bias": ("torch.sum(g, 0, out=total); b.add_(total, alpha=-lr)", "b.addmv_(gt, ones, alpha=-lr)"),
}
AUTOGRAD = {"training_step": ("linear(x, W, b).backward(g); optimiser.step(); optimiser.zero_grad(); x.grad = None",)}
ONNXRUNTIME = {"forward": ("session.run_with_iobinding(bound)",)}

OURS = "fastlinear"
PEERS = ("numpy", "torch", "onnxruntime")
BUILDS = {f"{OURS}[{isa}]": isa for isa in _dispatch.available() if isa not in (fastlinear.isa, _dispatch.REFERENCE)}
"""The other builds of the kernels that this machine runs."""

LIBRARIES = {
    OURS: Library(fastlinear_names, FASTLINEAR, FASTLINEAR),
    "numpy": Library(numpy_names, NUMPY_VECTOR, NUMPY_BATCH),
    "torch": Library(torch_names, TORCH_VECTOR, TORCH_BATCH, ("torch",), inference),
    "onnxruntime": Library(
        onnxruntime_names, ONNXRUNTIME, ONNXRUNTIME, ("onnxruntime", "onnx"), nullcontext, holdable=False
    ),
    "autograd": Library(autograd_names, AUTOGRAD, AUTOGRAD, ("torch",)),
} | {
    name: Library(fastlinear_names, FASTLINEAR, FASTLINEAR, (), functools.partial(kernels, isa))
    for name, isa in BUILDS.items()
}

THREADS = 1


def cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def set_threads(threads: int, libraries: Iterable[str] = LIBRARIES) -> None:
    """Limit these libraries, as far as they are here, to so many threads."""
    global THREADS
    THREADS = threads
    fastlinear.set_num_threads(threads)
    if "torch" in libraries and not LIBRARIES["torch"].missing():
        importlib.import_module("torch").set_num_threads(threads)
    if "numpy" in libraries:
        importlib.import_module("threadpoolctl").threadpool_limits(threads, user_api="blas")


def prepare(library: str, operation: str, case: Case) -> Work | None:
    """The work of one library, in its fastest form; None if it does not do this operation."""
    how = LIBRARIES[library]
    if forms := how.forms(operation, case):
        steps = [forms]
    else:
        steps = [how.forms(step, case) for step in OPERATIONS[operation]]
    if not all(steps):
        return None
    names = how.names(case)
    return Work("; ".join(fastest(library, forms, case, names) for forms in steps), names, how.context)


CHOSEN: dict[tuple[str, tuple[str, ...], Case], str] = {}


def fastest(library: str, forms: tuple[str, ...], case: Case, names: dict[str, Any]) -> str:
    """The form that wins a short race at this case; run once a case, then remembered."""
    if len(forms) == 1:
        return forms[0]
    key = library, forms, case
    if key not in CHOSEN:
        race = {form: Work(form, names, LIBRARIES[library].context) for form in forms}
        times = interleave(race, seconds=0.02)
        CHOSEN[key] = min(times, key=times.__getitem__)
    return CHOSEN[key]


def works(operation: str, case: Case, libraries: Iterable[str]) -> dict[str, Work]:
    """The works of those libraries that do this operation."""
    prepared = {name: prepare(name, operation, case) for name in libraries}
    return {name: work for name, work in prepared.items() if work}


# ---- what an operation is made of


PRODUCTS = {"backward": 2, "backward_update": 2, "training_step": 3}
"""How many products of W's size an operation is; one, unless it is here."""


def flops(operation: str, case: Case) -> float:
    """The floating-point operations of the products."""
    return 2.0 * PRODUCTS.get(operation, 1) * max(case.batch, 1) * case.in_features * case.out_features


TRAFFIC = {
    "forward": "W b x y",
    "grad_input": "W g gx",
    "grad_weight": "dW dW g x",
    "backward": "W g gx dW dW x db db",
    "backward_update": "W W g gx x b b",
    "training_step": "W W b b x y g gx",
}
"""The arrays that an operation must move: each once if it is read or written, twice if both."""


def traffic(operation: str, case: Case) -> int:
    """The bytes that an operation must move between the caches and memory if nothing is moved twice."""
    rows, inputs, outputs = max(case.batch, 1), case.in_features, case.out_features
    sizes = {"W": inputs * outputs, "b": outputs, "x": rows * inputs, "y": rows * outputs}
    sizes |= {"dW": sizes["W"], "db": sizes["b"], "gx": sizes["x"], "g": sizes["y"]}
    return sum(sizes[name] for name in TRAFFIC[operation].split()) * np.dtype(case.dtype).itemsize
