"""The notebook that this library started from: nn.Linear(5, 4) in Torch7, forward and backward of one example."""

import numpy as np
import pytest

from fastlinear import Linear

# As printed, to four decimals. The weights were not printed.
X = np.array([0.9052, 0.7486, 0.2017, 0.2014, 0.0126])
OUTPUT = np.array([-0.6340, -0.4447, -0.0561, 0.1812])
NEXT_GRADIENT = np.array([0.8265, 0.9632, 0.6219, 0.5434])
GRAD_INPUT = np.array([-0.6341, -0.1365, 0.4231, 0.0697, 0.2226])
GRAD_WEIGHT = np.array(
    [
        [0.7481, 0.6187, 0.1667, 0.1664, 0.0104],
        [0.8719, 0.7211, 0.1943, 0.1940, 0.0122],
        [0.5630, 0.4656, 0.1255, 0.1252, 0.0078],
        [0.4919, 0.4068, 0.1096, 0.1094, 0.0069],
    ]
)
GRAD_BIAS = NEXT_GRADIENT


def printed(value, figures):
    """Whether value is what was printed. The printed inputs are rounded, too: by up to half of 1e-4 each."""
    return np.allclose(value, figures, rtol=0, atol=1e-4)


@pytest.fixture
def layer(dtype):
    """The smallest W with Wᵀ g = gradInput, and the b that then gives the output: one of many such layers."""
    weight = np.outer(NEXT_GRADIENT, GRAD_INPUT) / (NEXT_GRADIENT @ NEXT_GRADIENT)
    return Linear.from_weights(weight.astype(dtype), (OUTPUT - weight @ X).astype(dtype))


@pytest.fixture
def arrays(dtype):
    return X.astype(dtype), NEXT_GRADIENT.astype(dtype)


def test_figures(isa, layer, arrays):
    """Output, gradInput, gradWeight and gradBias come out as Torch7 printed them."""
    x, next_gradient = arrays
    assert printed(layer(x), OUTPUT)
    assert printed(layer.backward(x, next_gradient), GRAD_INPUT)
    assert printed(layer.grad_weight, GRAD_WEIGHT)
    assert printed(layer.grad_bias, GRAD_BIAS)


def test_gradients_of_the_parameters_need_no_weights(isa, dtype, arrays):
    """gradWeight and gradBias are the same for any W and b."""
    layer = Linear(5, 4, dtype=dtype, rng=0)
    layer.backward_params(*arrays)
    assert printed(layer.grad_weight, GRAD_WEIGHT)
    assert printed(layer.grad_bias, GRAD_BIAS)


def test_three_relations_by_hand(isa, layer, arrays):
    """gradInput = Wᵀ·g, gradWeight = g ⊗ x, gradBias = g: each worked out next to the layer's own result."""
    x, g = arrays
    grad_input = layer.backward(x, g)
    eps = float(np.finfo(layer.dtype).eps)
    for i in range(5):
        assert grad_input[i] == pytest.approx(sum(layer.weight[o, i] * g[o] for o in range(4)), abs=4 * eps)
    for o in range(4):
        for i in range(5):
            assert layer.grad_weight[o, i] == g[o] * x[i]
        assert layer.grad_bias[o] == g[o]
