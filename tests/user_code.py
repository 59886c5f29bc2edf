"""What a user with mypy --strict writes: .ci/run checks this file, nobody runs it."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastlinear
from fastlinear import Linear, Sequential, losses

Array = NDArray[Any]

layer = Linear(3, 2, bias=True, dtype=np.float32, rng=np.random.default_rng(0))
x: NDArray[np.float32] = np.ones((5, 3), np.float32)
grad_output: NDArray[np.float32] = np.ones((5, 2), np.float32)
out = np.empty_like(x)

assert_type(layer(x), Array)
assert_type(layer([1.0, 2.0, 3.0]), Array)
assert_type(layer.forward(x, out=np.empty_like(grad_output)), Array)
assert_type(layer.backward(x, grad_output), Array)
assert_type(layer.backward(x, grad_output, out=out, scale=0.5), Array)
layer.backward(x, grad_output, input_grad=False)
layer.backward_params(x, grad_output, scale=np.float32(0.5))
assert_type(layer.backward_input(grad_output, out), Array)
assert_type(layer.backward_update(x, grad_output, 0.1), Array)


def learn(input_grad: bool) -> None:
    assert_type(layer.backward(x, grad_output, input_grad=input_grad), Array | None)
    assert_type(layer.backward_update(x, grad_output, 0.1, input_grad=input_grad), Array | None)


layer.step(np.float64(0.1))
layer.zero_grad()
layer.reset(rng=0, stdv=0.1)
assert_type(layer.weight, Array)
assert_type(layer.bias, Array | None)
assert_type(layer.grad_weight, Array)
layer.weight = np.zeros((2, 3))
layer.bias = [1.0, 2.0]
assert_type(layer.in_features, int)
assert_type(layer.dtype, np.dtype[Any])

assert_type(Linear.from_weights(np.eye(3), None, copy=False), Linear)
assert_type(layer.astype("float64"), Linear)
assert_type(layer.state_dict(), dict[str, Array])
layer.load_state_dict({"weight": np.zeros((2, 3)), "bias": [0.0, 0.0]})
layer.save(Path("layer.npz"))
assert_type(Linear.load("layer.npz"), Linear)

assert_type(fastlinear.isa, str)
assert_type(fastlinear.get_num_threads(), int)
assert_type(fastlinear.verify(layer, x, grad_output), dict[str, float])
assert_type(fastlinear.show_config("dicts"), dict[str, Any])
fastlinear.show_config()
fastlinear.set_num_threads(2)


class Scaled(Linear):
    """A user's own layer."""

    def twice(self, x: Array) -> Array:
        return 2 * self(x)


assert_type(Scaled.from_weights(np.eye(3)), Scaled)
assert_type(Scaled.load("layer.npz"), Scaled)
assert_type(Scaled(3, 2).astype(np.float64), Scaled)

net = Sequential(layer, "relu", Linear(2, 1))
assert_type(net(x), Array)
tape = net.record(x)
tape = net.record(x, tape)
assert_type(tape.output, Array)
assert_type(net.backward(tape, np.ones((5, 1), np.float32)), Array)
net.backward_update(tape, np.ones((5, 1), np.float32), 0.1, input_grad=False)
net.step(0.1)
assert_type(net.layers, tuple[Linear, ...])
assert_type(net[0], Linear | str)
assert_type(Sequential.load("net.npz"), Sequential)
assert_type(fastlinear.verify(net, x, np.ones((5, 1))), dict[str, float])
optimiser = fastlinear.Adam(layer, lr=1e-3, betas=(0.9, 0.99))
optimiser.lr = 0.01
assert_type(optimiser.lr, float)
optimiser.step()
optimiser.zero_grad()
assert_type(optimiser.state_dict(), dict[str, Any])
fastlinear.SGD(fastlinear.Sequential(layer, "relu"), 0.1, momentum=0.9, nesterov=True)
assert_type(fastlinear.clip_grad_norm(layer, 1.0), float)
assert_type(losses.log_loss(layer(x), [0, 1, 0, 1, 1], out=grad_output), tuple[float, Array])

# Wrong use is an error of types. With warn_unused_ignores, which --strict turns on, so is an ignore without an error.
Linear("3", 2)  # type: ignore[arg-type]
layer.backward(x)  # type: ignore[call-overload]
layer.backward_update(x, grad_output, "0.1")  # type: ignore[call-overload]
layer.in_features = 4  # type: ignore[misc]
Sequential(layer, np.tanh)  # type: ignore[arg-type]
fastlinear.SGD(x)  # type: ignore[arg-type]
fastlinear.show_config("json")  # type: ignore[call-overload]
