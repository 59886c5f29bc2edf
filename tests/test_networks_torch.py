"""Sequential beside PyTorch: values and gradients in float64, and the way from a module and back."""

import numpy as np
import pytest

from fastlinear import Linear, Sequential, reference

torch = pytest.importorskip("torch")
nn = torch.nn

MODULES = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softmax": lambda: nn.Softmax(dim=-1),
}


def test_every_activation_is_here():
    assert tuple(MODULES) == reference.ACTIVATIONS[1:]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), ()], ids=str)
def test_values_and_gradients(isa, name, shape):
    """As autograd has them, to rounding in float64."""
    hidden = name if name != "softmax" else "tanh"
    module = nn.Sequential(nn.Linear(6, 20), MODULES[hidden](), nn.Linear(20, 4), MODULES[name]()).double()
    net, rng = Sequential.from_torch(module), np.random.default_rng(0)
    assert net.parts[1::2] == (hidden, name)
    x, grad_output = rng.standard_normal((*shape, 6)), rng.standard_normal((*shape, 4))
    x_torch = torch.tensor(x, requires_grad=True)
    y = module(x_torch)
    y.backward(torch.tensor(grad_output))
    tape = net.record(x)
    gx = net.backward(tape, grad_output)
    close = {"rtol": 1e-11, "atol": 1e-13}
    np.testing.assert_allclose(net(x), y.detach().numpy(), **close)
    np.testing.assert_allclose(tape.output, y.detach().numpy(), **close)
    np.testing.assert_allclose(gx, x_torch.grad.numpy(), **close)
    for layer, other in zip(net.layers, (module[0], module[2]), strict=True):
        np.testing.assert_allclose(layer.grad_weight, other.weight.grad.numpy(), **close)
        np.testing.assert_allclose(layer.grad_bias, other.bias.grad.numpy(), **close)


def test_there_and_back():
    """Parameters, parts and the names in the state are the same; without a copy, the memory is."""
    module = nn.Sequential(nn.Linear(3, 8, bias=False), nn.GELU(), nn.Linear(8, 2), nn.Softmax(dim=1))
    for copy in (True, False):
        net = Sequential.from_torch(module, copy=copy)
        assert net.parts[1::2] == ("gelu", "softmax")
        assert list(net.state_dict()) == list(module.state_dict())
        back = net.to_torch(copy=copy)
        assert str(back[1]) == "GELU(approximate='none')"
        assert back[3].dim == -1
        for name, value in back.state_dict().items():
            np.testing.assert_array_equal(value, module.state_dict()[name])
        net.layers[0].weight[...] = 7
        assert bool((back[0].weight == 7).all()) is not copy
        assert bool((module[0].weight == 7).all()) is not copy
    net.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
    module.load_state_dict({name: torch.from_numpy(value) for name, value in net.state_dict().items()})


def test_nested_modules_and_those_that_compute_nothing():
    """One row of parts: what SB3 has as a policy's body and its head."""
    body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 8), nn.Tanh(), nn.Identity())
    module = nn.Sequential(body, nn.Linear(8, 2)).eval()
    net, x = Sequential.from_torch(module), torch.randn(5, 3)
    assert net.parts[1::2] == ("tanh", "tanh")
    np.testing.assert_allclose(net(x), module(x).detach().numpy(), atol=1e-6)
    alone = Sequential.from_torch(nn.Linear(3, 2))
    assert len(alone) == 1


def test_an_activation_that_is_there_twice():
    """One nn.Tanh() in two places is two parts, although named_children() gives it once."""
    tanh = nn.Tanh()
    module = nn.Sequential(nn.Linear(3, 8), tanh, nn.Sequential(nn.Linear(8, 8), tanh), nn.Linear(8, 2), tanh)
    net, x = Sequential.from_torch(module), torch.randn(5, 3)
    assert net.parts[1::2] == ("tanh", "tanh", "tanh")
    np.testing.assert_allclose(net(x), module(x).detach().numpy(), atol=1e-6)


LAYER = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), r"module\[1\] is a BatchNorm1d, which has no counterpart"),
        (nn.Sequential(nn.Sequential(nn.Conv1d(1, 1, 1))), r"module\[0\]\[0\] is a Conv1d, which has no counterpart"),
        (
            nn.Sequential(nn.Linear(2, 3), nn.Dropout()),
            r"module\[1\] is a Dropout in training mode; call eval\(\) first",
        ),
        (nn.Sequential(nn.Linear(2, 3), nn.GELU("tanh")), "must have approximate='none', as gelu has"),
        (nn.Sequential(nn.Linear(2, 3), nn.ELU(0.5)), "must have alpha=1.0, as elu has"),
        (nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.2)), "must have negative_slope=0.01"),
        (nn.Sequential(nn.Linear(2, 3), nn.Softmax(0)), "must have dim=-1"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3)), "part 1 takes 2 features"),
        (nn.Sequential(nn.ReLU()), "must follow a Linear"),
        (nn.Sequential(), "there must be a Linear"),
        (
            nn.Sequential(LAYER, nn.Sequential(nn.ReLU(), LAYER)),
            r"module\[1\]\[1\] is the same Linear as one before it",
        ),
    ],
    ids=str,
)
def test_modules_without_a_counterpart(module, words):
    """An error that names the module and its place."""
    with pytest.raises(ValueError, match=words):
        Sequential.from_torch(module)


@pytest.mark.parametrize("thing", [None, 3, Linear(2, 3)], ids=lambda t: type(t).__name__)
def test_what_is_no_module(thing):
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got"):
        Sequential.from_torch(thing)


def test_a_policy_of_stable_baselines3():
    """PPO's net of the real library, where that is installed."""
    sb3, gymnasium = pytest.importorskip("stable_baselines3"), pytest.importorskip("gymnasium")
    policy = sb3.PPO("MlpPolicy", gymnasium.make("CartPole-v1"), device="cpu").policy
    net = Sequential.from_torch(nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net))
    observation = torch.randn(7, 4)
    with torch.no_grad():
        latent, _ = policy.mlp_extractor(observation)
        np.testing.assert_allclose(net(observation), policy.action_net(latent).numpy(), atol=1e-6)
