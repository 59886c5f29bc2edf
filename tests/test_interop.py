"""Arrays and weights of other libraries, each where it is installed: in without a copy where the protocol allows it,
out as ndarrays."""

import array
import os

import numpy as np
import pytest

from fastlinear import Linear
from fastlinear.linear import _array

from .helpers import assert_same_bits

os.environ.setdefault("KERAS_BACKEND", "jax")
pytestmark = [
    pytest.mark.thread_unsafe(reason="the libraries start threads of their own"),
    # What they say of their own use of NumPy, Python and each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def host_memory(library, values):
    """An array of that library with these values."""
    if library == "array":
        return array.array("d" if values.dtype == np.float64 else "f", values.ravel().tolist())
    if library == "memoryview":
        return memoryview(values)
    module = pytest.importorskip({"jax": "jax.numpy"}.get(library, library))
    if library == "torch":
        return module.from_numpy(values)
    return module.asarray(values)


LIBRARIES = ["torch", "jax", "array_api_strict", "memoryview", "array"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_arrays_go_in(library):
    """A layer computes from them what it computes from the ndarray, and gives ndarrays."""
    rng = np.random.default_rng(0)
    layer, twin = Linear(6, 4, rng=0), Linear(6, 4, rng=0)
    shape = () if library == "array" else (3,)
    x, grad_output = (rng.standard_normal((*shape, n), np.float32) for n in (6, 4))
    theirs = host_memory(library, x), host_memory(library, grad_output)
    for got, expected in (
        (layer(theirs[0]), twin(x)),
        (layer.backward(*theirs), twin.backward(x, grad_output)),
        (layer.backward_input(theirs[1]), twin.backward_input(grad_output)),
        (layer.backward_update(*theirs, 0.5), twin.backward_update(x, grad_output, 0.5)),
    ):
        assert type(got) is np.ndarray
        assert_same_bits(got, expected)
    assert_same_bits(layer.grad_weight, twin.grad_weight)
    assert_same_bits(layer.weight, twin.weight)


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_copy_on_the_way(library):
    """What the kernels read is the other library's own memory."""
    values = np.arange(1024, dtype=np.float32)
    theirs = host_memory(library, values)
    ours = _array("x", theirs)
    if library == "jax":  # asarray might have copied; the pointer tells
        assert ours.ctypes.data == theirs.unsafe_buffer_pointer()
    elif library == "array":
        assert ours.ctypes.data == theirs.buffer_info()[0]
    else:
        assert np.shares_memory(ours, values)


@pytest.mark.parametrize("library", ["torch", "jax", "array_api_strict"])
def test_weights_from_them(library):
    """from_weights and load_state_dict take their arrays."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((4, 6), np.float32), rng.standard_normal(4, np.float32)
    theirs = host_memory(library, weight), host_memory(library, bias)
    layer = Linear.from_weights(*theirs)
    assert_same_bits(layer.weight, weight)
    layer = Linear(6, 4)
    layer.load_state_dict({"weight": theirs[0], "bias": theirs[1]})
    assert_same_bits(layer.weight, weight)
    assert_same_bits(layer.bias, bias)


class OnAnotherDevice:
    """An array on a GPU, as CuPy's are: DLPack says where, and NumPy cannot read it."""

    shape = (3,)

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **options):
        raise BufferError("this array is on a GPU; copy it to the host with .get()")


def test_device_memory():
    """An array that is not in the host's memory is a TypeError that passes on what its library says."""
    with pytest.raises(TypeError, match=r"x cannot be read as an array: OnAnotherDevice: .* \.get\(\)"):
        Linear(3, 2)(OnAnotherDevice())


def test_keras():
    """A Dense's kernel, transposed, and back."""
    keras = pytest.importorskip("keras")
    dense = keras.layers.Dense(4)
    dense.build((None, 6))
    dense.set_weights([np.random.default_rng(0).standard_normal(w.shape, np.float32) for w in dense.get_weights()])
    kernel, bias = dense.get_weights()
    layer = Linear.from_weights(kernel.T, bias)
    x = np.random.default_rng(1).standard_normal((5, 6), np.float32)
    np.testing.assert_allclose(layer(x), np.asarray(dense(x)), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(Linear.from_weights(dense.kernel.value.T, dense.bias.value).weight, layer.weight)
    layer.backward_update(x, layer(x), 0.1)
    dense.set_weights([layer.weight.T, layer.bias])
    np.testing.assert_allclose(layer(x), np.asarray(dense(x)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_flax(api):
    """The same of Flax, in both its interfaces."""
    jax, flax = pytest.importorskip("jax"), pytest.importorskip("flax")
    x = np.random.default_rng(1).standard_normal((5, 6), np.float32)
    if api == "linen":
        dense = flax.linen.Dense(4, bias_init=flax.linen.initializers.normal())
        params = dense.init(jax.random.key(0), x)["params"]
        kernel, bias = params["kernel"], params["bias"]
        expected = dense.apply({"params": params}, x)
    else:
        from flax import nnx

        module = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        kernel, bias = module.kernel[...], module.bias[...]
        expected = module(x)
    layer = Linear.from_weights(kernel.T, bias)
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["LogisticRegression", "LinearRegression", "SGDClassifier"])
def test_scikit_learn(name):
    """coef_ and intercept_ are a layer's weight and bias."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5))
    target = x @ rng.standard_normal((5, 3))
    model = getattr(linear_model, name)().fit(x, target if name == "LinearRegression" else target.argmax(axis=1))
    layer = Linear.from_weights(model.coef_, model.intercept_)
    expected = model.predict(x) if name == "LinearRegression" else model.decision_function(x)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-12)
    single = linear_model.LinearRegression().fit(x, target[:, 0])  # one target: a vector and a number
    np.testing.assert_allclose(
        Linear.from_weights(single.coef_[None], [single.intercept_])(x)[:, 0], single.predict(x), rtol=1e-12, atol=1e-12
    )
