"""Small nets, one call and one training step, beside NumPy, PyTorch and ONNX Runtime: python bench/networks.py

    python bench/networks.py [--seconds 2] [--picture docs/pictures/policy-width.png]

One thread each, float32, processor time, medians of interleaved rounds, µs. NumPy writes into arrays that are there
(`out=`), PyTorch runs in inference mode, as modules and with `out=`, of which the faster counts, ONNX Runtime on bound
buffers. Training is a squared error with Adam: fastlinear's tape, losses and optimiser; PyTorch's autograd with its own
Adam, the default one and the fused one; NumPy by hand. The picture has the time of one row over the width of a policy
of two hidden layers.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import set_threads
from timing import Work, interleave
from tqdm import tqdm

from fastlinear import Adam, Linear, Sequential, losses

ACTIVATIONS = {"relu": ("ReLU", "Relu"), "tanh": ("Tanh", "Tanh"), "elu": ("ELU", "Elu")}
"""What PyTorch and ONNX call them."""
HAVE = {name: importlib.util.find_spec(name) is not None for name in ("torch", "onnxruntime")}
WIDTHS = [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]


class Net(NamedTuple):
    widths: tuple[int, ...]
    activation: str

    def __str__(self) -> str:
        return "-".join(map(str, self.widths)) + f" {self.activation}"

    def make(self) -> Sequential:
        rng = np.random.default_rng(0)
        parts: list[Linear | str] = []
        for place, sizes in enumerate(pairwise(self.widths)):
            parts += [self.activation] if place else []
            parts.append(Linear(*sizes, rng=rng))
        return Sequential(*parts)


NETS = [
    Net((8, 64, 64, 2), "tanh"),
    Net((4, 64, 64, 1), "relu"),
    Net((17, 256, 256, 6), "relu"),
    Net((376, 400, 300, 17), "relu"),
    Net((48, 512, 256, 128, 12), "elu"),
]
TRAINED = [(Net((8, 64, 64, 2), "tanh"), 1), (Net((8, 64, 64, 2), "tanh"), 64), (Net((784, 256, 10), "relu"), 32)]


# ---- ONNX, whose package is not needed for so little: messages of (number of the field, value)


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Protocol Buffers: integers as they are, text and messages after their length."""
    data = b""
    for number, value in fields:
        if isinstance(value, int):
            data += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            data += varint(number << 3 | 2) + varint(len(value)) + value
    return data


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def onnx_model(net: Sequential, rows: int) -> bytes:
    """Gemm and activation nodes with constant weights (onnx.proto3 of ONNX has the numbers)."""

    def value(name: str, width: int) -> bytes:
        shape = message(*((1, message((1, size))) for size in (rows, width)))
        return message((1, name), (2, message((1, message((1, 1), (2, shape))))))

    def tensor(name: str, array: np.ndarray) -> bytes:
        return message(*((1, size) for size in array.shape), (2, 1), (8, name), (9, array.tobytes()))

    graph: list[tuple[int, bytes | str]] = [(2, "net")]
    at = "x"
    for place, part in enumerate(net.parts):
        result = "y" if place == len(net) - 1 else f"v{place}"
        if isinstance(part, str):
            graph.append((1, message((1, at), (2, result), (4, ACTIVATIONS[part][1]))))
        else:
            transposed = message((1, "transB"), (3, 1), (20, 2))
            names = f"W{place}", f"b{place}"
            graph.append((1, message((1, at), *((1, n) for n in names), (2, result), (4, "Gemm"), (5, transposed))))
            graph += [(5, tensor(names[0], part.weight)), (5, tensor(names[1], part.bias))]
        at = result
    graph += [(11, value("x", net.in_features)), (12, value("y", net.out_features))]
    return message((1, 8), (8, message((1, ""), (2, 17))), (7, message(*graph)))


def onnxruntime_names(net: Sequential, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_model(net, len(x)), options, providers=["CPUExecutionProvider"])
    bound = session.io_binding()
    bound.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    bound.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    return {"session": session, "bound": bound, "kept": (x, y)}


# ---- one call


def numpy_statement(net: Sequential, names: dict[str, Any]) -> str:
    """Into arrays that are there."""
    statements, at = [], "x"
    rows = len(names["x"])
    for place, part in enumerate(net.parts):
        if isinstance(part, Linear):
            names |= {f"W{place}": part.weight.T, f"b{place}": part.bias}
            names[f"h{place}"] = np.empty((rows, part.out_features), np.float32)
            statements.append(f"matmul({at}, W{place}, out=h{place}); add(h{place}, b{place}, out=h{place})")
            at = f"h{place}"
        elif part == "tanh":
            statements.append(f"tanh({at}, out={at})")
        elif part == "relu":
            statements.append(f"maximum({at}, 0, out={at})")
        else:
            names[f"t{place}"] = np.empty_like(names[at])
            statements.append(
                f"minimum({at}, 0, out=t{place}); expm1(t{place}, out=t{place}); "
                f"maximum({at}, 0, out={at}); add({at}, t{place}, out={at})"
            )
    names["result"] = names[at]
    return "; ".join(statements)


def torch_statement(net: Sequential, names: dict[str, Any]) -> str:
    """Into tensors that are there."""
    import torch

    statements, at = [], "x"
    rows = len(names["x"])
    for place, part in enumerate(net.parts):
        if isinstance(part, Linear):
            names |= {f"W{place}": torch.from_numpy(part.weight.copy()).T, f"b{place}": torch.from_numpy(part.bias)}
            names[f"h{place}"] = torch.empty(rows, part.out_features)
            statements.append(f"addmm(b{place}, {at}, W{place}, out=h{place})")
            at = f"h{place}"
        else:
            statements.append({"relu": f"{at}.relu_()", "tanh": f"{at}.tanh_()", "elu": f"elu_({at})"}[part])
    names["result"] = names[at]
    return "; ".join(statements)


def calls(kind: Net, rows: int) -> dict[str, Work]:
    """One call of the net, by each library and form; all must give the same."""
    net = kind.make()
    x = np.random.default_rng(1).standard_normal((rows, net.in_features), np.float32)
    y = np.empty((rows, net.out_features), np.float32)
    names = {name: getattr(np, name) for name in ("matmul", "add", "tanh", "maximum", "minimum", "expm1")} | {"x": x}
    works = {"fastlinear": Work("net(x, y)", {"net": net, "x": x, "y": y})}
    works["NumPy"] = Work(numpy_statement(net, names), names)
    results = {"NumPy": lambda: names["result"]}
    if HAVE["torch"]:
        import torch

        names_t = {"x": torch.from_numpy(x), "addmm": torch.addmm, "elu_": torch.nn.functional.elu_}
        works["PyTorch, out="] = Work(torch_statement(net, names_t), names_t, torch.inference_mode)
        results["PyTorch, out="] = lambda: names_t["result"].numpy()
        module = {"module": net.to_torch(), "x": names_t["x"]}
        works["PyTorch"] = Work("module(x)", module, torch.inference_mode)
    if HAVE["onnxruntime"]:
        y_onnx = np.empty_like(y)
        works["ONNX Runtime"] = Work("session.run_with_iobinding(bound)", onnxruntime_names(net, x, y_onnx))
        results["ONNX Runtime"] = lambda: y_onnx
    for work in works.values():
        with work.context():
            work.timer.timeit(1)
    for name, result in results.items():
        np.testing.assert_allclose(result(), y, rtol=1e-3, atol=1e-5, err_msg=name)
    return works


# ---- one training step

STEP = (
    "net.record(x, tape); _, g = squared_error(tape.output, target); "
    "opt.zero_grad(); net.backward(tape, g, input_grad=False); opt.step()"
)
TORCH_STEP = "opt.zero_grad(); loss(module(x), target).backward(); opt.step()"


def numpy_step(net: Sequential, x: np.ndarray, target: np.ndarray) -> Any:
    """Forward, backward and Adam by hand, into arrays that are there."""
    layers, kind = net.layers, net.parts[1]
    weights = [p.copy() for layer in layers for p in (layer.weight, layer.bias)]
    gradients, first, second, spare = ([np.zeros_like(p) for p in weights] for _ in range(4))
    values = [np.empty((len(x), layer.out_features), np.float32) for layer in layers]
    errors = [np.empty_like(v) for v in values]
    count = 0

    def step() -> None:
        nonlocal count
        at = x
        for n, h in enumerate(values):
            np.matmul(at, weights[2 * n].T, out=h)
            np.add(h, weights[2 * n + 1], out=h)
            if n < len(values) - 1:
                np.tanh(h, out=h) if kind == "tanh" else np.maximum(h, 0, out=h)
            at = h
        np.subtract(values[-1], target, out=errors[-1])
        errors[-1] /= len(x)
        for n in reversed(range(len(values))):
            source = values[n - 1] if n else x
            np.matmul(errors[n].T, source, out=gradients[2 * n])
            np.sum(errors[n], axis=0, out=gradients[2 * n + 1])
            if n:
                np.matmul(errors[n], weights[2 * n], out=errors[n - 1])
                errors[n - 1] *= 1 - source * source if kind == "tanh" else source > 0
        count += 1
        size, scale = 1e-3 / (1 - 0.9**count), 1 / (1 - 0.999**count) ** 0.5
        for w, g, m, v, t in zip(weights, gradients, first, second, spare, strict=True):
            m *= 0.9
            np.multiply(g, 0.1, out=t)
            m += t
            v *= 0.999
            np.multiply(g, g, out=t)
            t *= 0.001
            v += t
            np.sqrt(v, out=t)
            t *= scale
            t += 1e-8
            np.divide(m, t, out=t)
            t *= size
            w -= t

    return step


def steps(kind: Net, rows: int) -> dict[str, Work]:
    """One step of training, by each library."""
    net, rng = kind.make(), np.random.default_rng(1)
    x = rng.standard_normal((rows, net.in_features), np.float32)
    target = rng.standard_normal((rows, net.out_features), np.float32)
    names = {"net": net, "x": x, "target": target, "tape": net.record(x), "opt": Adam(net, lr=1e-3)}
    works = {"fastlinear": Work(STEP, names | {"squared_error": losses.squared_error})}
    works["NumPy"] = Work("step()", {"step": numpy_step(kind.make(), x, target)})
    if HAVE["torch"]:
        import torch

        for name, fused in (("PyTorch", None), ("PyTorch, fused Adam", True)):
            module = kind.make().to_torch()
            works[name] = Work(
                TORCH_STEP,
                {
                    "module": module,
                    "opt": torch.optim.Adam(module.parameters(), lr=1e-3, fused=fused),
                    "loss": torch.nn.functional.mse_loss,
                    "x": torch.from_numpy(x),
                    "target": torch.from_numpy(target),
                },
            )
    return works


# ---- the report


def merged(times: dict[str, float]) -> dict[str, float]:
    """The fastest form of each library, in µs."""
    best: dict[str, float] = {}
    for name, seconds in times.items():
        library = name.partition(",")[0]
        best[library] = min(best.get(library, np.inf), 1e6 * seconds)
    return best


def table(title: str, cases: list[tuple[str, dict[str, float]]]) -> Iterator[str]:
    libraries = list(cases[0][1])
    yield f"| {title} | {' | '.join(f'{library}, µs' for library in libraries)} | best peer / fastlinear |"
    yield f"| :-- | {' | '.join('--:' for _ in libraries)} | --: |"
    for name, times in cases:
        peers = [time for library, time in times.items() if library != "fastlinear"]
        cells = " | ".join(f"{times[library]:.3g}" for library in libraries)
        yield f"| {name} | {cells} | {min(peers) / times['fastlinear']:.2f} |"


def draw(path: Path, seconds: float) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    found = [merged(interleave(calls(Net((8, w, w, 2), "tanh"), 1), seconds)) for w in tqdm(WIDTHS, desc="widths")]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=110)
    axes = figure.subplots()
    colours = {"fastlinear": "#d55e00", "NumPy": "#0072b2", "PyTorch": "#009e73", "ONNX Runtime": "#cc79a7"}
    for library in found[0]:
        times = [here[library] for here in found]
        axes.plot(WIDTHS, times, marker="o", markersize=4, linewidth=2, color=colours[library], label=library)
    axes.legend()
    axes.set(xscale="log", yscale="log", xlabel="width of both hidden layers", ylabel="µs a call")
    axes.set_title("A policy 8-width-width-2 with tanh, one observation, one thread", fontsize=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(WIDTHS[::2])
    axes.grid(color="#dddddd", linewidth=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare small nets with NumPy, PyTorch and ONNX Runtime.")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison, about")
    parser.add_argument("--picture", type=Path, help="where to draw the time over the width of a policy")
    options = parser.parse_args()
    set_threads(1)
    cases = [(net, rows) for rows in (1, 64) for net in NETS]
    found = [
        (f"{net}, {rows} row{'s' * (rows > 1)}", merged(interleave(calls(net, rows), options.seconds)))
        for net, rows in tqdm(cases, desc="calls")
    ]
    print("\n".join(table("one call", found)))
    found = [
        (f"{net}, {rows} row{'s' * (rows > 1)}", merged(interleave(steps(net, rows), options.seconds)))
        for net, rows in tqdm(TRAINED, desc="training")
    ]
    print("\n" + "\n".join(table("one step with Adam", found)))
    if options.picture:
        draw(options.picture, options.seconds)


if __name__ == "__main__":
    main()
