"""fastlinear.torch.Linear is torch.nn.Linear to every user of it, and parameters go to PyTorch and back."""

import contextlib
import copy
import io
import pickle
import threading
import weakref

import numpy as np
import pytest

import fastlinear

from .helpers import python

torch = pytest.importorskip("torch", reason="torch is an extra of its own: pip install '.[torch]'")
from torch import nn  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from fastlinear.torch import Linear  # noqa: E402

torch.set_num_threads(1)
# PyTorch warns of its own use of its own deprecated parts.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
BATCHES = [(), (1,), (7,), (2, 3), (0,)]


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def pair(*arguments, **options):
    """Our module and PyTorch's with the same parameters."""
    ours, theirs = Linear(*arguments, **options), nn.Linear(*arguments, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


# ---- the module


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradcheck(isa, bias, batch):
    """First and second derivatives, forward mode and batches of gradients are those of finite differences."""
    module = Linear(5, 4, bias, dtype=torch.float64)
    x = torch.randn(*batch, 5, dtype=torch.float64, requires_grad=True)

    def call(x, *parameters):
        state = dict(zip(("weight", "bias"), parameters, strict=False))
        return torch.func.functional_call(module, state, (x,))

    arguments = x, *module.parameters()
    assert torch.autograd.gradcheck(call, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, arguments)


@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("bias",), ("x", "weight"), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_same_gradients_as_nn_linear(isa, batch, frozen):
    """Output and gradients are those of nn.Linear, and there are none of what is frozen."""
    ours, theirs = pair(6, 5)
    data, grad_output = torch.randn(*batch, 6), torch.randn(*batch, 5)
    results = []
    for module in (ours, theirs):
        x = data.clone().requires_grad_("x" not in frozen)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
        y = module(x)
        y.backward(grad_output)
        results.append([y.detach(), x.grad, module.weight.grad, module.bias.grad])
    for got, expected in zip(*results, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            close(got, expected)


def test_same_seed_same_parameters():
    """The constructor draws what nn.Linear draws."""
    torch.manual_seed(3)
    ours = Linear(7, 4)
    torch.manual_seed(3)
    theirs = nn.Linear(7, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert repr(ours) == f"fastlinear.torch.{theirs!r}"
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_training_in_a_sequential():
    """A model with ours in place of nn.Linear ends 50 steps of Adam at the same weights."""
    torch.manual_seed(0)
    ours = nn.Sequential(Linear(8, 16), nn.ReLU(inplace=True), Linear(16, 3))
    theirs = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))
    theirs.load_state_dict(ours.state_dict())
    data, truth = torch.randn(64, 8), torch.randint(3, (64,))
    start = copy.deepcopy(ours.state_dict())
    for model in (ours, theirs):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(data), truth).backward()
            optimizer.step()
    for name, value in ours.state_dict().items():
        assert (value - start[name]).abs().max() > 0.1
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=1e-3)


def test_gradients_accumulate():
    """Two backwards without zero_grad add up, and an input used twice gets both its gradients."""
    ours, theirs = pair(4, 4)
    results = []
    for module in (ours, theirs):
        x = torch.linspace(-1, 1, 8).reshape(2, 4).requires_grad_()
        module(module(x)).sum().backward()
        module(x).sum().backward()
        results.append((x.grad, module.weight.grad, module.bias.grad))
    for got, expected in zip(*results, strict=True):
        close(got, expected)


def test_changed_between_forward_and_backward():
    """As in PyTorch, backward through parameters that changed since is an error, not a wrong gradient."""
    module = Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    y = module(x)
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_sparse_gradient():
    """A sparse grad_output is PyTorch's, as in nn.Linear."""
    ours, theirs = Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    x, grad_output = torch.randn(2, 4, requires_grad=True), torch.eye(2, 3).to_sparse()
    result, expected = (torch.autograd.grad(m(x), [x, m.weight], grad_output) for m in (ours, theirs))
    torch.testing.assert_close(result, expected)


def test_only_what_backward_needs_must_stay():
    """As in PyTorch: a weight may change where no gradient of the input is wanted, an input where the weight is
    frozen, and parameters may come from inference mode."""
    results = []
    for module in pair(4, 3):
        x = torch.ones(2, 4)
        y = module(x)
        with torch.no_grad():
            module.weight.add_(1)
        y.sum().backward()
        frozen = copy.deepcopy(module).requires_grad_(False)
        x = torch.ones(2, 4, requires_grad=True)
        inner = 2 * x
        y = frozen(inner)
        inner.data.zero_()
        inner.add_(1)
        y.sum().backward()
        results.append((module.weight.grad, module.bias.grad, x.grad))
    for got, expected in zip(*results, strict=True):
        close(got, expected)
    with torch.inference_mode():
        module = Linear(4, 3)
    module.requires_grad_(False)
    assert module(torch.ones(2, 4)).shape == (2, 3)


def test_a_parameter_as_input():
    """A learned input keeps the promise about batches, too."""
    module = Linear(300, 5)
    queries = nn.Parameter(torch.randn(9, 300))
    y = module(queries)
    assert type(y.grad_fn).__name__ == "FastLinearBackward"
    assert torch.equal(module(queries[3]), y[3])


def test_the_negative_bit():
    """The imaginary part of a conjugated tensor is a view with its sign to come."""
    ours, theirs = pair(4, 3)
    x = torch.randn(2, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    close(ours(x), theirs(x))


class Tenfold(torch.Tensor):
    """A weight with arithmetic of its own."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        result = super().__torch_function__(function, types, arguments, options or {})
        return 10 * result if function is functional.linear else result


def test_a_subclass_as_weight():
    """A weight that does its own arithmetic does it here, too."""
    ours, theirs = pair(4, 3, bias=False)
    x = torch.ones(2, 4)
    ours(x)
    for module in (ours, theirs):
        module.weight = nn.Parameter(torch.ones(3, 4).as_subclass(Tenfold))
    assert ours(x).max() == theirs(x).max() == 40


def _shared(module):
    module.share_memory()


def _assigned(module):
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)


def _loaded(module):
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})


def _transposed(module):
    module.weight.data = torch.randn(5, 5).T


def _same_address(module):
    module.weight.data = module.weight.data.T


def _bias_strided(module):
    module.bias.data = torch.randn(10)[::2]


def _to_double_and_back(module):
    module.double().float()


def _no_bias(module):
    module.bias = None


def _new_parameter(module):
    module.weight = nn.Parameter(torch.randn(5, 5))


def _weight_norm(module):
    parametrizations.weight_norm(module)


def _bias_computed(module):
    parametrizations.weight_norm(module, "bias")


def _pruned(module):
    prune.l1_unstructured(module, "weight", amount=0.5)


CHANGES = [
    _shared,
    _assigned,
    _loaded,
    _transposed,
    _same_address,
    _bias_strided,
    _to_double_and_back,
    _no_bias,
    _new_parameter,
    _weight_norm,
    _bias_computed,
    _pruned,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_parameters_that_move(change):
    """Whatever is done to the parameters, the module computes with those that it has now, forward and backward."""
    module = Linear(5, 5)
    x = torch.randn(3, 5)
    module(x)
    change(module)
    close(module(x), functional.linear(x, module.weight, module.bias))
    parameters = list(module.parameters())
    got = torch.autograd.grad(module(x).square().sum(), parameters, retain_graph=True)
    expected = torch.autograd.grad(functional.linear(x, module.weight, module.bias).square().sum(), parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_their_own(clone):
    """A copy computes the same, and with its own parameters."""
    module = Linear(4, 3)
    x = torch.randn(2, 4)
    before = module(x).detach().clone()
    other = clone(module)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(module(x), before)
    assert not torch.equal(other(x), before)


def test_whole_modules_in_files():
    """torch.save of the module, and of its state for an nn.Linear."""
    module, theirs = Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(2, 4)
    module(x)
    for what in (module, module.state_dict()):
        file = io.BytesIO()
        torch.save(what, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=isinstance(what, dict))
        if isinstance(loaded, dict):
            theirs.load_state_dict(loaded)
            loaded = theirs
        close(loaded(x), module(x))


class Subclass(torch.Tensor):
    """A tensor of a user's own."""


def _autocast(module, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return module(x)


def _flops(module, x):
    with FlopCounterMode(display=False) as counter:
        y = module(x)
    return y + counter.get_total_flops()


def _function_mode(module, x):
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            return 2 * result if function is functional.linear else result

    with Doubling():
        return module(x)


WATCHERS = {
    "make_fx": lambda module, x: make_fx(module)(x)(2 * x),
    "FlopCounterMode": _flops,
    "TorchFunctionMode": _function_mode,
    "vmap": lambda module, x: torch.vmap(module)(x),
    "vmap without grad": lambda module, x: torch.no_grad()(torch.vmap(module))(x),
    "grad of each sample": lambda module, x: torch.vmap(torch.func.grad(lambda row: module(row).square().sum()))(x),
    "jvp": lambda module, x: torch.func.jvp(module, (x,), (torch.ones_like(x),))[1],
    "jacrev": lambda module, x: torch.func.jacrev(module)(x),
    "autocast": _autocast,
    "trace": lambda module, x: torch.jit.trace(module, x)(2 * x),
    "export": lambda module, x: torch.export.export(module, (x,)).module()(x),
    "compile": lambda module, x: torch.compile(module, backend="eager", fullgraph=True)(x),
    "subclass": lambda module, x: module(x.as_subclass(Subclass)),
    "inference mode": lambda module, x: torch.inference_mode()(module)(x),
}


@pytest.mark.parametrize("name", WATCHERS)
def test_what_pytorch_does_around_a_module(name):
    """Transforms, tracing, export, compiling, autocast and subclasses of Tensor meet what nn.Linear would give."""
    ours, theirs = pair(6, 5)
    x = torch.randn(4, 6)
    ours(x)
    got, expected = (WATCHERS[name](module, x) for module in (ours, theirs))
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    close(got.clone(), expected.clone())


ODD = {
    "half": (lambda module: module.half(), torch.ones(2, 4, dtype=torch.half)),
    "module on meta": (lambda module: module.to("meta"), torch.ones(2, 4)),
    "all on meta": (lambda module: module.to("meta"), torch.ones(2, 4, device="meta")),
    "input on meta": (lambda module: module, torch.ones(2, 4, device="meta")),
    "float64": (lambda module: module, torch.ones(2, 4).double()),
    "int64": (lambda module: module, torch.ones(2, 4, dtype=torch.int64)),
    "sparse": (lambda module: module, torch.ones(2, 4).to_sparse()),
    "features": (lambda module: module, torch.ones(2, 5)),
    "no axis": (lambda module: module, torch.ones(())),
    "list": (lambda module: module, [[1.0] * 4]),
    "array": (lambda module: module, np.ones((2, 4), np.float32)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_odd_input(name, grad):
    """Another dtype, device, layout, shape or type gives what nn.Linear gives: a result or its error, word for word."""
    change, x = ODD[name]
    results = []
    for module in pair(4, 3):
        with torch.set_grad_enabled(grad):
            try:
                y = change(module)(x)
                results.append((y.shape, y.dtype, y.device, y.requires_grad))
            except Exception as error:
                results.append((type(error), str(error)))
    assert results[0] == results[1]


def _no_matrix(module):
    module.weight = nn.Parameter(torch.randn(4))


def _three_axes(module):
    module.weight = nn.Parameter(torch.randn(2, 3, 4))


def _more_rows(module):
    module.weight = nn.Parameter(torch.randn(5, 4))


def _half_weight(module):
    module.weight = nn.Parameter(module.weight.detach().half())


def _expanded(module):
    module.weight = nn.Parameter(torch.randn(1).expand(3, 4))


def _bias_of(*shape, dtype=torch.float32):
    def change(module):
        module.bias = nn.Parameter(torch.randn(shape, dtype=dtype))

    change.__name__ = f"bias of {shape} {dtype}"
    return change


@pytest.mark.parametrize(
    "change",
    [
        _no_matrix,
        _three_axes,
        _more_rows,
        _half_weight,
        _expanded,
        *(_bias_of(*shape) for shape in [(), (1,), (2,), (4,), (2, 3), (1, 3)]),
        _bias_of(3, dtype=torch.float64),
    ],
    ids=lambda change: change.__name__.strip("_"),
)
def test_only_a_layer_is_bound(change, monkeypatch):
    """A kernel sees no parameters but a contiguous matrix and one number for each output, of one dtype."""
    taken = []
    bind = fastlinear.Linear._bind
    monkeypatch.setattr(
        fastlinear.Linear, "_bind", lambda layer, *arrays: taken.append(arrays) or bind(layer, *arrays), raising=False
    )
    module = Linear(4, 3)
    module(torch.ones(2, 4))
    assert [a.shape for a in taken.pop()] == [(3, 4), (3,)]
    change(module)
    for x in (torch.ones(2, 4), torch.ones(2, 4, requires_grad=True)):
        with contextlib.suppress(RuntimeError):  # PyTorch's word on it, which the random programs compare
            module(x).sum().backward()
    assert not taken


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_what_may_be_done_to_an_output(batch, bias):
    """It is nobody's view: it can be changed and detached in place."""
    module = Linear(4, 3, bias)
    x = torch.randn(*batch, 4)
    y = module(x)
    y.add_(1)
    y.sum().backward()
    close(module.weight.grad, x.reshape(-1, 4).sum(0).expand(3, 4))
    if 0 not in batch:  # PyTorch's own output is a view
        assert not y.detach_().requires_grad


def test_the_bias_alone(dtype):
    """The bias's gradient has the same bits if the weight is frozen: the rows are added one after another."""
    module = Linear(7, 1, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    x, grad_output = (torch.randn(1000, n, dtype=module.weight.dtype) for n in (7, 1))
    module(x).backward(grad_output)
    together = module.bias.grad.clone()
    module.zero_grad()
    module.weight.requires_grad_(False)
    module(x).backward(grad_output)
    assert torch.equal(module.bias.grad, together)
    assert together.item() == np.add.accumulate(grad_output.numpy()[:, 0])[-1]


def test_a_running_sum_stops_where_one_is_half_a_unit():
    """What the page says of very many rows: in float32 no number of ones adds to 2 ** 24."""
    module = Linear(1, 1)
    grad_output = torch.ones(100, 1)
    grad_output[0] = 2.0**24
    module(torch.zeros(100, 1)).backward(grad_output)
    assert module.bias.grad.item() == 2.0**24


def test_names_of_subclasses():
    """A subclass prints its own name, as one of nn.Linear does."""

    class Own(Linear):
        pass

    assert repr(Own(4, 3)) == "Own(in_features=4, out_features=3, bias=True)"


class Careless(Linear):
    """It copies all that it has, as a __getstate__ of one's own may."""

    def __getstate__(self):
        return dict(self.__dict__)


@pytest.mark.parametrize("kind", [Linear, Careless, nn.Linear], ids=lambda kind: kind.__name__)
def test_a_copy_binds_anew(kind):
    """What a module keeps of its parameters' memory is not copied, whatever class copies it, even if it became
    nn.Linear since."""
    module = Careless(4, 3)
    module(torch.ones(4))
    module.__class__ = kind
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)) if kind is not Careless else module):
        assert copied is module or copied.__dict__["_bound"] is None
        close(copied(torch.ones(4)), module(torch.ones(4)))


def test_many_threads_while_parameters_change():
    """Each output comes from the parameters before a change or after it, never from a mixture, and the last from the
    last ones."""
    module = Linear(64, 64, bias=False).requires_grad_(False)
    x = torch.ones(64)
    values = [torch.full((64, 64), float(k)) for k in range(50)]
    seen = set()

    def work():
        for _ in range(200):
            seen.update(module(x).unique().tolist())

    threads = [threading.Thread(target=work) for _ in range(3)]
    module.weight.data = values[0].clone()
    for thread in threads:
        thread.start()
    for value in values:
        module.weight.data = value.clone()
    for thread in threads:
        thread.join()
    assert seen <= {64.0 * k for k in range(50)}
    assert module(x).unique().tolist() == [64.0 * 49]


@pytest.mark.filterwarnings("ignore")
def test_eager_quantization():
    """What the page says: prepare, convert and quantize_dynamic leave the module as it is, and take it as nn.Linear."""
    import torch.ao.quantization as quantization

    def model():
        made = nn.Sequential(quantization.QuantStub(), Linear(4, 3), quantization.DeQuantStub())
        made.qconfig = quantization.default_qconfig
        return made

    def quantized(made):
        quantization.prepare(made, inplace=True)
        made(torch.ones(2, 4))
        return quantization.convert(made, inplace=True)

    assert type(quantization.quantize_dynamic(nn.Sequential(Linear(4, 3)))[0]) is Linear
    ours = quantized(model())
    assert type(ours[1]) is Linear
    with pytest.raises(RuntimeError):
        ours(torch.ones(2, 4))
    theirs = model()
    theirs[1].__class__ = nn.Linear
    assert type(quantized(theirs)[1]).__module__.startswith("torch.ao.nn.quantized")


def test_rows_do_not_depend_on_their_batch(dtype):
    """The promise that PyTorch does not make, kept inside PyTorch: to the last bit."""
    module = Linear(300, 70, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    x = torch.randn(67, 300, dtype=module.weight.dtype, requires_grad=True)
    y = module(x)
    y.backward(torch.ones_like(y))
    for row in (0, 1, 33, 66):
        alone = x[row].detach().requires_grad_()
        module(alone).backward(torch.ones_like(y[row]))
        assert torch.equal(module(alone), y[row])
        assert torch.equal(alone.grad, x.grad[row])


# ---- parameters to PyTorch and back


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("copy", [True, False], ids=["copy", "shared"])
def test_there_and_back(dtype, bias, copy):
    """from_torch and to_torch keep every bit, and copy=False keeps the memory."""
    layer = fastlinear.Linear(5, 3, bias, dtype=dtype, rng=0)
    module = layer.to_torch(copy=copy)
    assert type(module) is nn.Linear
    assert (module.in_features, module.out_features, module.bias is not None) == (5, 3, bias)
    assert all(parameter.requires_grad for parameter in module.parameters())
    back = fastlinear.Linear.from_torch(module, copy=copy)
    for name, value in layer.state_dict().items():
        assert np.array_equal(getattr(back, name), value)
        assert np.array_equal(getattr(module, name).detach().numpy(), value)
    with torch.no_grad():
        module.weight[1, 2] = 7
    assert (layer.weight[1, 2] == 7, back.weight[1, 2] == 7) == (not copy, not copy)


def test_ours_is_taken_too():
    """from_torch shares with fastlinear.torch.Linear, so a layer can learn inside a PyTorch model."""
    module = Linear(3, 2)
    layer = fastlinear.Linear.from_torch(module, copy=False)
    x = np.ones(3, np.float32)
    layer.backward_update(x, np.ones(2, np.float32), 0.5)
    assert np.array_equal(module(torch.from_numpy(x)).detach().numpy(), layer(x))


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (lambda: nn.Linear(3, 2, dtype=torch.bfloat16), TypeError, r"got torch.bfloat16; convert with .float\(\)"),
        (lambda: nn.Linear(3, 2, device="meta"), ValueError, r"dense tensor on the CPU, got .* meta; use .cpu\(\)"),
        (lambda: nn.LazyLinear(2), ValueError, "no parameters yet"),
        (lambda: nn.Conv1d(3, 2, 1), TypeError, "must be a torch.nn.Linear, got Conv1d"),
        (lambda: "layer", TypeError, "must be a torch.nn.Linear, got str"),
    ],
    ids=["bfloat16", "meta", "lazy", "Conv1d", "str"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_that_do_not_fit(module, error, message):
    """Another device, dtype or kind of module is an error that says what to do."""
    with pytest.raises(error, match=message):
        fastlinear.Linear.from_torch(module())


def test_the_memory_from_before_is_let_go():
    """half() and its like free the float32 weights at once."""
    module = Linear(3, 2)
    module(torch.ones(3))
    memory = weakref.ref(module.__dict__["_bound"].layer)
    module.half()
    assert memory() is None


def test_what_cannot_be_shared():
    """copy=False of a transposed weight, and of a read-only one, is a ValueError; a copy of it is right."""
    layer = fastlinear.Linear(3, 2, rng=0)
    layer.weight.flags.writeable = False
    with pytest.raises(ValueError, match=r"to_torch: copy=False: weight was made read-only"):
        layer.to_torch(copy=False)
    assert np.array_equal(layer.to_torch().weight.detach().numpy(), layer.weight)
    module = nn.Linear(3, 2)
    module.weight.data = torch.randn(3, 2).T
    with pytest.raises(ValueError, match="copy=False needs weight"):
        fastlinear.Linear.from_torch(module, copy=False)
    assert np.array_equal(fastlinear.Linear.from_torch(module).weight, module.weight.detach().numpy())


def test_safetensors_as_a_state_dict(tmp_path):
    """What save writes, PyTorch's own reader has as a state dict; and the other way."""
    pytest.importorskip("safetensors.torch")
    from safetensors.torch import load_file, save_file

    layer, module = fastlinear.Linear(4, 3, rng=0), nn.Linear(4, 3)
    layer.save(tmp_path / "ours.safetensors")
    module.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    assert np.array_equal(module.weight.detach().numpy(), layer.weight)
    save_file(module.state_dict(), tmp_path / "theirs.safetensors")
    assert np.array_equal(fastlinear.Linear.load(tmp_path / "theirs.safetensors").weight, layer.weight)


def test_without_pytorch():
    """Where PyTorch is not installed, the error names it and two commands."""
    run = python("import sys; sys.modules['torch'] = None\nimport fastlinear.torch")
    assert run.returncode == 1
    assert "ImportError: fastlinear.torch needs PyTorch: `pip install torch`, or from a checkout of" in run.stderr
    assert "`pip install '.[torch]'`" in run.stderr
