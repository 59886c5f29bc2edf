"""Two outside judges that come with torch: finite differences, and torch's own nn.Linear under SGD."""

import numpy as np
import pytest

from fastlinear import Linear

torch = pytest.importorskip("torch", reason="torch is an extra of its own: pip install '.[torch]'")
torch.set_num_threads(1)  # two pools of spinning threads in one process get in each other's way


class LinearFunction(torch.autograd.Function):
    """An autograd node whose two passes are those of the layer."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x)
        ctx.layer = Linear.from_weights(weight.detach(), None if bias is None else bias.detach())
        return torch.from_numpy(ctx.layer(x.detach()))

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        ctx.layer.zero_grad()
        grad_input = ctx.layer.backward(x.detach(), grad_output)
        gradients = grad_input, ctx.layer.grad_weight, ctx.layer.grad_bias
        return tuple(None if gradient is None else torch.tensor(gradient) for gradient in gradients)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("sizes", [(5, 4), (1, 1), (17, 9)], ids=str)
def test_gradcheck(isa, batch, sizes, bias):
    """The gradients are those of finite differences."""
    in_features, out_features = sizes
    generator = torch.Generator().manual_seed(0)
    arguments = [
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((*batch, in_features), (out_features, in_features), (out_features,))
    ]
    if not bias:
        arguments[2] = None
    assert torch.autograd.gradcheck(LinearFunction.apply, arguments)


@pytest.mark.parametrize("fused", [False, True], ids=["backward and step", "backward_update"])
def test_torch_over_100_steps(isa, dtype, fused):
    """nn.Linear and SGD from the same weights over 100 steps of the same data end at the same weights."""
    torch_dtype = torch.float64 if dtype == np.float64 else torch.float32
    theirs = torch.nn.Linear(20, 6, dtype=torch_dtype, device="cpu")
    ours = Linear(20, 6, dtype=dtype, rng=0)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    start = ours.state_dict()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
    rng = np.random.default_rng(0)
    for _ in range(100):
        x, target = rng.standard_normal((16, 20), dtype), rng.standard_normal((16, 6), dtype)
        optimizer.zero_grad()
        output = theirs(torch.from_numpy(x))
        (0.5 * (output - torch.from_numpy(target)).square().sum() / 16).backward()
        optimizer.step()
        grad_output = (ours(x) - target) / dtype(16)
        if fused:
            ours.backward_update(x, grad_output, 0.05)
        else:
            ours.zero_grad()
            ours.backward(x, grad_output)
            ours.step(0.05)
    tolerance = 100 * np.finfo(dtype).eps
    for name, tensor in theirs.state_dict().items():
        assert np.max(np.abs(getattr(ours, name) - start[name])) > 0.1
        np.testing.assert_allclose(getattr(ours, name), tensor.numpy(), rtol=0, atol=tolerance)


def test_tensors_are_taken_as_they_are(isa, dtype):
    """CPU tensors go in through DLPack, contiguous or not; one that requires a gradient is refused as torch does."""
    layer = Linear(6, 4, dtype=dtype, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 6), dtype)
    for tensor in (
        torch.from_numpy(x),
        torch.from_numpy(np.asfortranarray(x)),
        torch.from_numpy(x.repeat(2, 1))[:, ::2],
    ):
        assert np.array_equal(layer(tensor), layer(x))
    with pytest.raises(TypeError, match="x cannot be read as an array"):
        layer(torch.from_numpy(x).requires_grad_())
    assert np.array_equal(Linear.from_weights(torch.from_numpy(layer.weight)).weight, layer.weight)
