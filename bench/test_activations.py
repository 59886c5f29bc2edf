"""Every activation of every library on 10,000 numbers, into memory that is there where the library can do that."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import peers
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastlinear import activations

SIZE = 10_000
ROW = 100
"""What softmax takes as a row."""


def of_fastlinear(name: str, x: np.ndarray) -> Callable[[], object]:
    function, out = getattr(activations, name), np.empty_like(x)
    return lambda: function(x, out=out)


def of_numpy(name: str, x: np.ndarray) -> Callable[[], object] | None:
    """The formulas as one writes them, with out= in each step; NumPy has no erf, so there is no gelu."""
    out, spare = np.empty_like(x), np.empty_like(x)

    def relu() -> None:
        np.maximum(x, 0, out=out)

    def leaky_relu() -> None:
        np.multiply(x, 0.01, out=out)
        np.maximum(x, out, out=out)

    def elu() -> None:
        np.minimum(x, 0, out=out)
        np.expm1(out, out=out)
        np.maximum(x, out, out=out)

    def sigmoid() -> None:
        np.negative(x, out=out)
        np.exp(out, out=out)
        np.add(out, 1, out=out)
        np.reciprocal(out, out=out)

    def tanh() -> None:
        np.tanh(x, out=out)

    def silu() -> None:
        sigmoid()
        np.multiply(out, x, out=out)

    def softmax() -> None:
        np.subtract(x, x.max(axis=-1, keepdims=True), out=spare)
        np.exp(spare, out=spare)
        np.divide(spare, spare.sum(axis=-1, keepdims=True), out=out)

    return locals().get(name)


def of_torch(name: str, x: np.ndarray) -> Callable[[], object] | None:
    import torch
    from torch.nn import functional

    tensor = torch.from_numpy(x)
    if name == "softmax":
        return lambda: torch.softmax(tensor, -1)
    if name in ("sigmoid", "tanh"):
        function, out = getattr(torch, name), torch.empty_like(tensor)
        return lambda: function(tensor, out=out)
    return lambda: getattr(functional, name)(tensor)


def of_onnxruntime(name: str, x: np.ndarray) -> Callable[[], object] | None:
    """With bound buffers. Its model is built by the onnx package, which is not always there."""
    import onnxruntime
    from onnx import TensorProto, helper

    operator = {"relu": "Relu", "leaky_relu": "LeakyRelu", "elu": "Elu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    operator |= {"gelu": "Gelu", "softmax": "Softmax"}
    if name not in operator:
        return None
    kind = TensorProto.FLOAT if x.dtype == np.float32 else TensorProto.DOUBLE
    ends = [helper.make_tensor_value_info(end, kind, x.shape) for end in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator[name], ["x"], ["y"])], name, ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # it has not every operator for float64
        return None
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(x)))
    return lambda: session.run_with_iobinding(binding)


LIBRARIES = {"fastlinear": of_fastlinear, "numpy": of_numpy, "torch": of_torch, "onnxruntime": of_onnxruntime}
NEEDED = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx")}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", activations.NAMES)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.benchmark(max_time=0.1, warmup=False)
def test_activation(benchmark: BenchmarkFixture, library: str, name: str, dtype: type) -> None:
    if missing := [module for module in NEEDED.get(library, ()) if not importlib.util.find_spec(module)]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    peers.set_threads(1)
    x = (np.random.default_rng(0).standard_normal((SIZE // ROW, ROW)) * 3).astype(dtype)
    if (run := LIBRARIES[library](name, x)) is None:
        pytest.skip(f"{library} has no {name}")
    benchmark.group = f"{name} {dtype.__name__}"
    benchmark(run)
