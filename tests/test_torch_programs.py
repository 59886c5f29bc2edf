"""Random programs on fastlinear.torch.Linear and on nn.Linear, side by side: what one does, the other does.

A program is a list of steps, each a name and its arguments in plain words, such as::

    [("module", 4, 3, True, "float32"), ("input", "strided", (2, 3), "leaf", 0), ("forward", "plain")]

Both modules go through it on the same data. After each step the values that it gave, or the kind of its error, must
agree, and in the end all parameters and gradients, with what is None and what requires gradients.

A failing program is shrunk and printed. It can be run again as it stands: ``check([...])``. A new kind of step is a
function with the decorator ``step``, whose arguments list what each of its parameters is drawn from.
"""

import copy
import io
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra of its own: pip install '.[torch]'")
from torch import nn  # noqa: E402
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import fastlinear.torch  # noqa: E402
from fastlinear.torch import Linear  # noqa: E402

torch.set_num_threads(1)

EPS = 200
"""Results may differ by that many eps of the largest value: the two sum up in different orders."""


class Doubled(torch.Tensor):
    """A tensor with arithmetic of its own."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        result = super().__torch_function__(function, types, arguments, options or {})
        return 2 * result if function is nn.functional.linear else result


class World:
    """One of the two modules, and what a program does with it."""

    def __init__(self, linear):
        self.linear = linear
        self.module = self.leaf = self.input = self.output = None
        self.leaves = []
        self.spent = False

    def run(self, program):
        """What each step gave: tensors, None, or the kind of its error. In the end, all that is left."""
        torch.manual_seed(0)
        results = []
        eps = torch.finfo(getattr(torch, program[0][-1])).eps  # what was computed in it can be converted later
        default = torch.get_default_dtype()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name, *arguments in program:
                    try:
                        results.append((name, seen(STEPS[name][0](self, *arguments), eps)))
                    except Exception as error:
                        results.append((name, type(error).__name__))
                        if name in ("backward", "grad"):  # which gradients came before the error is nobody's promise
                            return results
                results += [(name, seen(value, eps)) for name, value in self.left()]
        finally:
            torch.set_default_dtype(default)
        return results

    def left(self):
        for k, leaf in enumerate(self.leaves):
            yield f"gradient of input {k}", leaf.grad
        for name, parameter in self.module.named_parameters():
            yield name, parameter
            yield f"gradient of {name}", parameter.grad
            yield f"{name} requires gradients", str(parameter.requires_grad)
        for name, buffer in self.module.named_buffers():
            yield name, buffer
        yield "names", str(list(self.module.state_dict()))

    def call(self, x=None):
        return self.module(self.input if x is None else x)

    def keep(self, tensor):
        if tensor.requires_grad and tensor.is_leaf:
            self.leaves.append(tensor)
        self.leaf = tensor
        return tensor

    @property
    def dtype(self):
        return getattr(self.module.weight, "dtype", torch.float32)

    def assign(self, name, value):
        """Put a tensor in the place of a parameter, which may be gone."""
        if name in self.module._parameters or not hasattr(self.module, name):
            value = nn.Parameter(value, requires_grad=value.dtype.is_floating_point)
        setattr(self.module, name, value)


class Seen(NamedTuple):
    """A tensor as it was after a step."""

    what: tuple[object, ...]
    values: torch.Tensor | None
    eps: float = 0.0


def seen(value, eps):
    """A copy of a result that later steps cannot change. Its eps is the one given, or its dtype's if that is larger."""
    if isinstance(value, (tuple, list)):
        return [seen(part, eps) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_nested:
        return [seen(part, eps) for part in value.unbind()]
    what = *(getattr(value, name) for name in ATTRIBUTES), value.is_inference(), type(value).__name__
    if value.device.type == "meta":
        return Seen(what, None)
    try:
        with torch.inference_mode(), torch._C.DisableTorchFunctionSubclass():
            values = value.detach().to_dense().resolve_conj().as_subclass(torch.Tensor).clone()
    except RuntimeError:  # a parameter of inference mode whose .data is of none
        return Seen(what, None)
    eps = max(eps, torch.finfo(values.dtype).eps) if values.is_floating_point() else 0.0
    return Seen(what, values.to(torch.complex128 if values.is_complex() else torch.float64), eps)


ATTRIBUTES = "shape", "dtype", "layout", "device", "requires_grad", "is_leaf"


@torch.inference_mode()
def same(got, expected):
    """None if two results agree, or what differs."""
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        return next((d for d in map(same, got, expected) if d), None)
    if not (isinstance(got, Seen) and isinstance(expected, Seen)):
        return None if got == expected else f"{got} instead of {expected}"
    if got.what != expected.what:
        return f"{got.what} instead of {expected.what}"
    a, b = got.values, expected.values
    if a is None or b is None or a.numel() == 0:
        return None
    scale = max(1.0, b.abs().nan_to_num(0, 0, 0).max().item())
    if torch.allclose(a, b, rtol=0, atol=EPS * got.eps * scale, equal_nan=True):
        return None
    return f"{a} instead of {b}"


def difference(program):
    """What the two do differently, or None."""
    ours, theirs = World(Linear).run(program), World(nn.Linear).run(program)
    for (name, got), (other, expected) in zip(ours, theirs, strict=False):
        found = f"{name} instead of {other}" if name != other else same(got, expected)
        if found:
            return f"{name}: {found}"
    return None if len(ours) == len(theirs) else f"{len(ours)} results instead of {len(theirs)}"


def shrunk(program):
    """A program that still differs, from which no step can be left out."""
    for k in range(len(program) - 1, 0, -1):
        fewer = program[:k] + program[k + 1 :]
        if difference(fewer):
            return shrunk(fewer)
    return program


def check(program, seed=None):
    found = difference(program)
    if found:
        program = shrunk(program)
        pytest.fail(f"seed {seed}: {difference(program) or found}\n{program!r}", pytrace=False)


# ---- the steps

STEPS = {}


def step(*choices, often=1):
    """A step of programs, with what each of its arguments is drawn from."""

    def register(function):
        STEPS[function.__name__] = function, choices, often
        return function

    return register


SIZES = (1, 2, 3, 4, 5) * 3 + (17, 0)
DTYPES = ("float32", "float64") * 4 + ("bfloat16",)
PARAMETERS = ("weight", "bias")


@step(SIZES, SIZES, (True, True, False), DTYPES, often=0)
def module(world, in_features, out_features, bias, dtype):
    world.module = world.linear(in_features, out_features, bias, dtype=getattr(torch, dtype))


def _misaligned(shape, dtype):
    size = torch.Size(shape).numel()
    tensor = torch.frombuffer(bytearray((size + 1) * dtype.itemsize), dtype=dtype, count=size, offset=1)
    return tensor.view(shape).fill_(0.5)


LAYOUTS = {
    "plain": lambda shape, dtype: torch.randn(shape, dtype=dtype),
    "strided": lambda shape, dtype: torch.randn(*(2 * n for n in shape), dtype=dtype)[
        (..., *[slice(None, None, 2)] * len(shape))
    ],
    "last strided": lambda shape, dtype: torch.randn(*shape[:-1], 3 * shape[-1], dtype=dtype)[..., ::3],
    "first strided": lambda shape, dtype: torch.randn(2 * shape[0], *shape[1:], dtype=dtype)[::2],
    "permuted": lambda shape, dtype: torch.randn(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1]),
    "swapped": lambda shape, dtype: torch.randn(shape[1], shape[0], *shape[2:], dtype=dtype).transpose(0, 1),
    "expanded": lambda shape, dtype: torch.randn(shape[-1:], dtype=dtype).expand(shape),
    "zero-strided": lambda shape, dtype: torch.randn((), dtype=dtype).expand(shape),
    "one for each row": lambda shape, dtype: torch.randn(*shape[:-1], 1, dtype=dtype).expand(shape),
    "overlapping": lambda shape, dtype: torch.randn(sum(shape) + 1, dtype=dtype).as_strided(shape, [1] * len(shape)),
    "negative": lambda shape, dtype: (
        torch.complex(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)).conj().imag
    ),
    "negative view": lambda shape, dtype: torch._neg_view(torch.randn(shape, dtype=dtype)),
    "misaligned": lambda shape, dtype: _misaligned(shape, dtype),
    "offset": lambda shape, dtype: torch.randn(torch.Size(shape).numel() + 3, dtype=dtype)[3:].view(shape),
    "zero tensor": lambda shape, dtype: torch._efficientzerotensor(shape, dtype=dtype),
    "subclass": lambda shape, dtype: torch.randn(shape, dtype=dtype).as_subclass(Doubled),
    "sparse": lambda shape, dtype: torch.randn(shape, dtype=dtype).to_sparse(),
    "mkldnn": lambda shape, dtype: torch.randn(shape, dtype=dtype).to_mkldnn(),
    "meta": lambda shape, dtype: torch.randn(shape, dtype=dtype, device="meta"),
    "inference": lambda shape, dtype: torch.inference_mode()(torch.randn)(shape, dtype=dtype),
    "nested": lambda shape, dtype: torch.nested.nested_tensor([torch.randn(n, shape[-1], dtype=dtype) for n in (2, 3)]),
    "integer": lambda shape, dtype: torch.ones(shape, dtype=torch.int64),
    "other dtype": lambda shape, dtype: torch.randn(
        shape, dtype=torch.float64 if dtype is torch.float32 else torch.float32
    ),
    "complex": lambda shape, dtype: torch.randn(shape, dtype=torch.complex64).conj(),
    "shared": lambda shape, dtype: torch.randn(shape, dtype=dtype).share_memory_(),
    "read-only": lambda shape, dtype: torch.from_numpy(torch.randn(shape, dtype=dtype).numpy()),
}
COMMON = (
    "plain",
    "strided",
    "last strided",
    "first strided",
    "permuted",
    "swapped",
    "expanded",
    "zero-strided",
    "negative",
)
BATCHES = ((), (1,), (2,), (3,), (2, 3), (1, 1), (0,), (2, 0), (3, 2), (2, 1, 3), (9,))


def layouts(*more):
    return COMMON * 3 + tuple(LAYOUTS) + more


@step(
    layouts(),
    BATCHES,
    ("leaf", "inner", "parameter", "no gradient", "leaf", "doubled"),
    (0, 0, 0, 0, 0, 0, 1, -1),
    often=2,
)
def input(world, layout, batch, kind, surplus):  # noqa: A001
    """A new input; surplus features make it not fit."""
    shape = (*batch, max(0, world.module.in_features + surplus))
    value = LAYOUTS[layout](shape, world.dtype)
    if kind == "parameter":
        value = nn.Parameter(value)
    elif kind != "no gradient":
        value.requires_grad_()
    world.input = world.keep(value)
    if kind == "inner":
        world.input = value * 1
    elif kind == "doubled":
        world.input = value.double().to(value.dtype)
    return world.input


@step(("one", "weight", "rows of weight", "output", "bias", "transposed weight", "0-D"))
def odd_input(world, kind):
    """An input that is not made for it."""
    weight, bias = world.module.weight, world.module.bias
    world.input = {
        "one": lambda: 1.0,
        "weight": lambda: weight,
        "rows of weight": lambda: weight[:2],
        "output": lambda: world.output,
        "bias": lambda: bias,
        "transposed weight": lambda: weight.T,
        "0-D": lambda: torch.ones((), dtype=weight.dtype),
    }[kind]()
    return world.input


def _in_threads(world):
    with ThreadPoolExecutor(3) as pool:
        outputs = [pool.submit(world.call) for _ in range(3)]
    return sum(k * output.result().square().sum() for k, output in enumerate(outputs))


def _jacobian(world, **options):
    if world.input.layout is torch._mkldnn:
        raise TypeError("PyTorch writes beyond the memory of such a tensor")
    return torch.autograd.functional.jacobian(world.module, world.input, **options)


class _Nothing(torch.autograd.Function):
    """Its gradient is None."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def _hooked(world):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t * 2):
        return world.call()


def _narrowed(world):
    """What was saved comes back as another shape."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[..., :1]):
        return world.call()


def _saved_as_double(world):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.double()):
        return world.call()


def _autocast(world):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return world.call()


def _state(world):
    return {name: p * 2 for name, p in world.module.named_parameters()}


FORWARDS = {
    "plain": lambda world: world.call(),
    "no_grad": lambda world: torch.no_grad()(world.call)(),
    "enable_grad": lambda world: torch.enable_grad()(world.call)(),
    "inference": lambda world: torch.inference_mode()(world.call)(),
    "twice": lambda world: world.call() + world.call(),
    "detached": lambda world: world.call(world.input.detach()),
    "doubled": lambda world: world.call(world.input * 2),
    "flat": lambda world: world.call(world.input.flatten()),
    "unsqueezed": lambda world: world.call(world.input.unsqueeze(0)),
    "row": lambda world: world.call(world.input[0]),
    "chain": lambda world: world.call(world.call().tanh()),
    "functional": lambda world: nn.functional.linear(world.input, world.module.weight, world.module.bias),
    "autocast": _autocast,
    "checkpoint": lambda world: checkpoint(world.module, world.input, use_reentrant=False),
    "reentrant checkpoint": lambda world: checkpoint(world.module, world.input, use_reentrant=True),
    "saved hooks": _hooked,
    "save_on_cpu": lambda world: _save_on_cpu(world),
    "narrowed": _narrowed,
    "saved as double": _saved_as_double,
    "functional_call": lambda world: torch.func.functional_call(world.module, _state(world), (world.input,)),
    "functional_call tied": lambda world: torch.func.functional_call(
        world.module, {"weight": world.module.weight.detach()}, (world.input,)
    ),
    "vmap": lambda world: torch.vmap(world.module)(world.input),
    "vmap last": lambda world: torch.vmap(world.module, in_dims=-1)(world.input),
    "grad": lambda world: torch.func.grad(lambda x: world.call(x).square().sum())(world.input),
    "per sample": lambda world: torch.vmap(torch.func.grad(lambda x: world.call(x).square().sum()))(world.input),
    "jvp": lambda world: torch.func.jvp(world.module, (world.input,), (torch.ones_like(world.input),)),
    "vjp": lambda world: (lambda y, pull: (y, pull(torch.ones_like(y))))(*torch.func.vjp(world.module, world.input)),
    "jacrev": lambda world: torch.func.jacrev(world.module)(world.input),
    "hessian": lambda world: torch.func.hessian(lambda x: world.call(x).square().sum())(world.input),
    "jacobian": lambda world: _jacobian(world),
    "vectorized jacobian": lambda world: _jacobian(world, vectorize=True),
    "forward mode": lambda world: _jacobian(world, vectorize=True, strategy="forward-mode"),
    "threads": _in_threads,
    "no gradient comes": lambda world: _Nothing.apply(world.call()),
    "some gradient comes": lambda world: _Nothing.apply(world.call()) + world.call(),
    "anomaly": lambda world: _anomaly(world),
    "by keyword": lambda world: world.module(input=world.input),
    "without hooks": lambda world: world.module.forward(world.input),
    "of the class": lambda world: world.linear.forward(world.module, world.input),
}


def _save_on_cpu(world):
    with torch.autograd.graph.save_on_cpu():
        return world.call()


def _anomaly(world):
    with torch.autograd.detect_anomaly(check_nan=False):
        return world.call()


@step(("plain",) * 20 + tuple(FORWARDS), often=2)
def forward(world, how):
    world.output = FORWARDS[how](world)
    return world.output


@step(
    (
        "add_",
        "data.add_",
        "detach().mul_",
        "no_grad",
        "data =",
        "data = strided",
        "leaf.data =",
        "leaf no_grad",
        "set_",
        "first element",
        "requires_grad_",
        "weight into input",
        "leaf.grad = None",
    ),
    often=2,
)
def change_input(world, how):
    """Between a forward and a backward, say."""
    x, leaf = world.input, world.leaf
    with torch.no_grad():
        if how == "add_":
            with torch.enable_grad():
                x.add_(1)
        elif how == "data.add_":
            x.data.add_(1)
        elif how == "detach().mul_":
            x.detach().mul_(2)
        elif how == "no_grad":
            x.mul_(3)
        elif how == "data =":
            x.data = torch.randn_like(x)
        elif how == "data = strided":
            x.data = torch.randn(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2]
        elif how == "leaf.data =":
            leaf.data = leaf.data * 2
        elif how == "leaf no_grad":
            leaf.add_(1)
        elif how == "set_":
            x.detach().set_(torch.randn_like(x))
        elif how == "first element":
            x[..., 0] = 5
        elif how == "requires_grad_":
            x.requires_grad_(not x.requires_grad)
        elif how == "weight into input":
            x.copy_(world.module.weight[0])
        elif how == "leaf.grad = None":
            leaf.grad = None


@step(("add_", "relu_", "first", "mul_ by itself", "data", "view add_", "unbind", "retain_grad", "requires_grad_"))
def change_output(world, how):
    y = world.output
    if how == "add_":
        y.add_(1)
    elif how == "relu_":
        y.relu_()
    elif how == "first":
        y[0] = 0
    elif how == "mul_ by itself":
        y.mul_(y.detach().clone())
    elif how == "data":
        y.data.mul_(2)
    elif how == "view add_":
        y.view(-1).add_(1)
    elif how == "unbind":
        y.unbind(0)[0].add_(1)
    elif how == "retain_grad":
        y.retain_grad()
        world.leaves.append(y)
    elif how == "requires_grad_":
        y.requires_grad_()
    return y


GRADIENTS = {
    layout: LAYOUTS[layout] for layout in (*COMMON, "offset", "zero tensor", "subclass", "meta", "other dtype")
}


@step(
    ("sum", "sum", "square", "mean", "first", "times itself", *COMMON, *GRADIENTS),
    (False, False, True),
    (False, False, False, True),
    often=2,
)
def backward(world, how, retain_graph, create_graph):
    y = world.output
    world.spent = not (retain_graph or create_graph)
    options = {"retain_graph": retain_graph or None, "create_graph": create_graph}
    if how in GRADIENTS:
        y.backward(GRADIENTS[how](tuple(y.shape), y.dtype), **options)
    else:
        losses = {
            "sum": lambda: y.sum(),
            "square": lambda: y.square().sum(),
            "mean": lambda: y.mean(),
            "first": lambda: y.reshape(-1)[0],
            "times itself": lambda: (y * y.detach()).sum(),
        }
        losses[how]().backward(**options)


@step(
    ("input", "weight", "bias", "all", "input, unused"),
    ("plain", "create_graph", "batched", "retain", "double"),
    often=1,
)
def grad(world, of, how):
    """torch.autograd.grad, and for "double" the gradients of the gradients."""
    y = world.output
    alone = of == "bias"
    if alone and world.spent:  # in nn.Linear the bias has a node of its own if the input is strided, and not otherwise
        raise RuntimeError("backward a second time")
    retain = alone or how == "retain" or None
    world.spent = not (retain or how in ("create_graph", "double"))
    parameters = [getattr(world.module, name, None) for name in PARAMETERS]
    of = {
        "input": [world.input],
        "weight": [parameters[0]],
        "bias": [parameters[1]],
        "all": [t for t in (world.input, *parameters) if t is not None],
        "input, unused": [world.input, torch.ones(2, requires_grad=True)],
    }[of]
    if how == "batched":
        return torch.autograd.grad(
            y,
            of,
            torch.randn(2, *y.shape, dtype=y.dtype),
            is_grads_batched=True,
            allow_unused=True,
            retain_graph=retain,
        )
    loss = y.square().sum()
    gradients = torch.autograd.grad(
        loss,
        of,
        create_graph=how in ("create_graph", "double"),
        retain_graph=retain,
        allow_unused=True,
    )
    if how == "double":
        sum(g.square().sum() for g in gradients if g is not None).backward()
    return gradients


def _weight_of(kind):
    def make(world):
        w = world.module.weight
        n, m, dtype = world.module.out_features, world.module.in_features, world.dtype
        if kind in ("1-D", "3-D", "0-D", "taller", "wider"):
            shape = {"1-D": (m,), "3-D": (2, n, m), "0-D": (), "taller": (n + 1, m), "wider": (n, m + 1)}[kind]
            return torch.randn(shape, dtype=dtype)
        if kind == "itself":
            return w.detach()
        if kind == "as integers":
            return w.detach().view(
                torch.int32 if dtype.itemsize == 4 else torch.int64 if dtype.itemsize == 8 else torch.int16
            )
        if kind == "negated view":
            return torch._neg_view(w.detach())
        if kind == "transposed":
            return w.detach().T
        if kind == "flipped shape":
            return w.detach().reshape(m, n)
        return LAYOUTS[kind]((n, m), dtype)

    return make


WEIGHTS = (
    "1-D",
    "3-D",
    "0-D",
    "taller",
    "wider",
    "itself",
    "as integers",
    "negated view",
    "transposed",
    "flipped shape",
)


def _bias_of(kind):
    def make(world):
        n, dtype = world.module.out_features, world.dtype
        shapes = {"0-D": (), "one": (1,), "(2, 3)": (2, 3), "(1, out)": (1, n), "(2, out)": (2, n), "longer": (n + 1,)}
        if kind in shapes:
            return torch.randn(shapes[kind], dtype=dtype)
        if kind == "of weight":
            return world.module.weight.detach()[:, 0]
        if kind == "row of weight":
            return world.module.weight.detach().reshape(-1)[:n]
        return LAYOUTS[kind]((n,), dtype)

    return make


BIASES = ("0-D", "one", "(2, 3)", "(1, out)", "(2, out)", "longer", "of weight", "row of weight")


@step(
    layouts(*WEIGHTS * 3),
    ("data", "parameter", "register", "buffer", "attribute", "dict", "swap", "data", "set_"),
    often=2,
)
def new_weight(world, kind, how):
    _replace(world, "weight", _weight_of(kind)(world), how)


@step(
    layouts(*BIASES * 3),
    ("data", "parameter", "register", "buffer", "attribute", "dict", "swap", "data", "set_"),
    often=1,
)
def new_bias(world, kind, how):
    _replace(world, "bias", _bias_of(kind)(world), how)


def _replace(world, name, value, how):
    if value.device.type == "meta":
        raise TypeError("PyTorch leaves the output of a matrix on meta as the memory was")
    module = world.module
    if how == "data":
        getattr(module, name).data = value
    elif how == "parameter":
        setattr(module, name, nn.Parameter(value, requires_grad=value.dtype.is_floating_point))
    elif how == "register":
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(value))
    elif how == "buffer":
        delattr(module, name)
        module.register_buffer(name, value)
    elif how == "attribute":
        delattr(module, name)
        setattr(module, name, value)
    elif how == "dict":
        module.__dict__[name] = value
    elif how == "swap":
        torch.utils.swap_tensors(getattr(module, name), nn.Parameter(value))
    elif how == "set_":
        getattr(module, name).detach().set_(value)


def _property(name):
    """A subclass whose parameter is computed."""

    def make(world):
        of = nn.Module.__getattr__
        body = {name: property(lambda self: of(self, name) * 2 + 1)}
        world.module.__class__ = type("Computed", (type(world.module),), body)

    return make


def _getattr(world):
    class Asked(type(world.module)):
        def __getattr__(self, name):
            value = super().__getattr__(name)
            return value * 3 if name == "weight" else value

    world.module.__class__ = Asked


def _vector(world):
    vector = parameters_to_vector(world.module.parameters())
    vector_to_parameters(vector.detach() * 0.5, world.module.parameters())


def _halved(world):
    for p in world.module.parameters():
        p.data = p.data * 0.5


def _in_place(world):
    with torch.no_grad():
        for p in world.module.parameters():
            p.mul_(2)


def _assigned(world):
    world.module.load_state_dict({k: v.clone() + 1 for k, v in world.module.state_dict().items()}, assign=True)


def _file(world):
    file = io.BytesIO()
    torch.save(world.module, file)
    file.seek(0)
    world.module = torch.load(file, weights_only=False)


def _to_empty(world):
    world.module.zero_grad()
    state = {name: torch.ones_like(value) for name, value in world.module.state_dict().items()}
    world.module.to_empty(device="cpu").load_state_dict(state)


def _swapping(world):
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        world.module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _set(name, value):
    return lambda world: setattr(world.module, name, value)


def _clone(function):
    def make(world):
        world.module = function(world.module)

    return make


CHANGES = {
    "halved .data": _halved,
    "vector_to_parameters": _vector,
    "in place": _in_place,
    "data in place": lambda world: [p.data.mul_(2) for p in world.module.parameters()] and None,
    "half": lambda world: world.module.half() and None,
    "double": lambda world: world.module.double() and None,
    "float": lambda world: world.module.float() and None,
    "bfloat16": lambda world: world.module.bfloat16() and None,
    "there and back": lambda world: world.module.double().float() and None,
    "swapping": _swapping,
    "to_empty": lambda world: _to_empty(world),
    "share_memory": lambda world: world.module.share_memory() and None,
    "weight share_memory_": lambda world: world.module.weight.share_memory_() and None,
    "loaded": lambda world: (
        world.module.load_state_dict({k: v + 1 for k, v in world.module.state_dict().items()}) and None
    ),
    "assigned": _assigned,
    "frozen": lambda world: world.module.requires_grad_(False) and None,
    "thawed": lambda world: world.module.requires_grad_(True) and None,
    "frozen weight": lambda world: world.module.weight.requires_grad_(False) and None,
    "frozen bias": lambda world: world.module.bias.requires_grad_(False) and None,
    "no bias": _set("bias", None),
    "no weight": _set("weight", None),
    "del bias": lambda world: delattr(world.module, "bias"),
    "del weight": lambda world: delattr(world.module, "weight"),
    "bias a number": lambda world: world.module.__dict__.update(bias=1.0),
    "weight a list": lambda world: world.module.__dict__.update(weight=[[1.0]]),
    "register None": lambda world: None,
    "bias tied to weight": lambda world: setattr(world.module, "bias", nn.Parameter(world.module.weight.data[:, 0])),
    "weight_norm": lambda world: parametrizations.weight_norm(world.module) and None,
    "weight_norm of bias": lambda world: parametrizations.weight_norm(world.module, "bias") and None,
    "old weight_norm": lambda world: nn.utils.weight_norm(world.module) and None,
    "spectral_norm": lambda world: parametrizations.spectral_norm(world.module) and None,
    "old spectral_norm": lambda world: nn.utils.spectral_norm(world.module) and None,
    "orthogonal": lambda world: parametrizations.orthogonal(world.module) and None,
    "remove parametrizations": lambda world: parametrize.remove_parametrizations(world.module, "weight") and None,
    "remove and bake": lambda world: (
        parametrize.remove_parametrizations(world.module, "weight", leave_parametrized=False) and None
    ),
    "pruned": lambda world: prune.l1_unstructured(world.module, "weight", amount=0.5) and None,
    "pruned bias": lambda world: prune.random_unstructured(world.module, "bias", amount=0.5) and None,
    "prune removed": lambda world: prune.remove(world.module, "weight") and None,
    "property weight": _property("weight"),
    "property bias": _property("bias"),
    "__getattr__": _getattr,
    "subclass": lambda world: setattr(world.module, "__class__", type("Own", (type(world.module),), {})),
    "class of nn": lambda world: setattr(world.module, "__class__", nn.Linear),
    "class of ours": lambda world: setattr(world.module, "__class__", world.linear),
    "deepcopy": _clone(copy.deepcopy),
    "copy": _clone(copy.copy),
    "pickle": _clone(lambda module: pickle.loads(pickle.dumps(module))),
    "file": _file,
    "zero_grad": lambda world: world.module.zero_grad(),
    "zero_grad to zero": lambda world: world.module.zero_grad(set_to_none=False),
    "SGD": lambda world: torch.optim.SGD(world.module.parameters(), 0.1).step(),
    "Adam": lambda world: torch.optim.Adam(world.module.parameters(), 0.1).step(),
    "eval": lambda world: world.module.eval() and None,
    "train": lambda world: world.module.train() and None,
    "default float64": lambda world: torch.set_default_dtype(torch.float64),
    "made in inference mode": lambda world: _made_in_inference(world),
    "weight class": lambda world: setattr(world.module.weight, "__class__", Doubled),
    "sizes lie": lambda world: None,
    "weight not a leaf": lambda world: _not_a_leaf(world),
    "replica": lambda world: _replica(world),
    "reset": lambda world: world.module.reset_parameters(),
}


def _made_in_inference(world):
    with torch.inference_mode():
        module = world.linear(world.module.in_features, world.module.out_features)
    world.module = module.requires_grad_(False)  # otherwise nn.Linear learns its bias alone


def _not_a_leaf(world):
    weight = world.module.weight
    del world.module.weight
    world.keep(weight)
    world.module.weight = weight * 2


def _replica(world):
    """What DataParallel makes of a module."""
    replica = world.module._replicate_for_data_parallel()
    for name, parameter in world.module.named_parameters():
        setattr(replica, name, parameter * 1)
    world.output = replica(world.input)
    return world.output


@step(tuple(CHANGES), often=4)
def change(world, how):
    return CHANGES[how](world)


HOOKS = {
    "forward": lambda world: world.module.register_forward_hook(lambda module, args, y: y * 2),
    "forward in place": lambda world: world.module.register_forward_hook(lambda module, args, y: y.add_(1)),
    "pre": lambda world: world.module.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "full backward": lambda world: world.module.register_full_backward_hook(
        lambda module, gx, gy: tuple(None if g is None else g * 2 for g in gx)
    ),
    "full backward pre": lambda world: world.module.register_full_backward_pre_hook(lambda module, gy: (gy[0] * 3,)),
    "backward pre to None": lambda world: world.module.register_full_backward_pre_hook(lambda module, gy: (None,)),
    "output": lambda world: world.output.register_hook(lambda g: g * 2),
    "output strided": lambda world: world.output.register_hook(lambda g: torch.stack([g, g], -1)[..., 0]),
    "output negative": lambda world: world.output.register_hook(torch._neg_view),
    "output to None": lambda world: world.output.grad_fn.register_prehook(lambda grads: (None,)),
    "output narrowed": lambda world: world.output.grad_fn.register_prehook(lambda grads: (grads[0][:1],)),
    "output as double": lambda world: world.output.grad_fn.register_prehook(lambda grads: (grads[0].double(),)),
    "output subclass": lambda world: world.output.grad_fn.register_prehook(
        lambda grads: (grads[0].as_subclass(Doubled),)
    ),
    "input": lambda world: world.input.register_hook(lambda g: g * 2),
    "weight": lambda world: world.module.weight.register_hook(lambda g: g * 2),
    "weight after": lambda world: world.module.weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(2)),
    "changes weight": lambda world: world.module.register_forward_pre_hook(lambda module, args: _changed(module)),
    "changes weight after": lambda world: world.module.register_forward_hook(lambda module, args, y: _changed(module)),
}


def _changed(module):
    if not torch._C._are_functorch_transforms_active():  # PyTorch itself crashes there
        module.weight.data = module.weight.data * 2


@step(tuple(HOOKS))
def hook(world, where):
    HOOKS[where](world)


def random_program(seed):
    """A module, an input, forward and backward, with anything before, between and after."""
    choose = random.Random(seed)
    names = [name for name, (_, _, often) in STEPS.items() for _ in range(often)]

    def draw(name):
        return (name, *(choose.choice(choices) for choices in STEPS[name][1]))

    def some(most):
        return [draw(choose.choice(names)) for _ in range(choose.randint(0, most))]

    def plain(how, name):
        return draw(name) if choose.random() < 0.6 else how

    program = [draw("module"), *some(1), draw("input"), *some(1), plain(("forward", "plain"), "forward")]
    if choose.random() < 0.5:
        program += [draw(choose.choice(["change", "change_input", "new_weight", "new_bias"]))]
    return [*program, *some(1), plain(("backward", "sum", False, False), "backward"), *some(3)]


# ---- the tests

FOUND = {
    "halved between forward and backward": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "plain"),
        ("change", "halved .data"),
        ("backward", "square", False, False),
    ],
    "vector_to_parameters between them": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "plain"),
        ("change", "vector_to_parameters"),
        ("backward", "square", False, False),
    ],
    "half() between them": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "inner", 0),
        ("forward", "plain"),
        ("change", "half"),
        ("grad", "input", "plain"),
    ],
    "bias 0-D": [
        ("module", 4, 3, True, "float32"),
        ("new_bias", "0-D", "parameter"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "plain"),
        ("backward", "square", False, False),
    ],
    "bias of one": [
        ("module", 4, 17, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("new_bias", "one", "parameter"),
        ("forward", "plain"),
        ("backward", "square", False, False),
    ],
    "bias (2, 3)": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("new_bias", "(2, 3)", "parameter"),
        ("forward", "no_grad"),
    ],
    "bias too long": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "no gradient", 0),
        ("new_bias", "longer", "parameter"),
        ("forward", "no_grad"),
    ],
    "weight 1-D": [
        ("module", 4, 3, False, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("new_weight", "1-D", "parameter"),
        ("forward", "plain"),
        ("backward", "square", False, False),
    ],
    "weight of other numbers in the same memory": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("change", "frozen"),
        ("forward", "no_grad"),
        ("new_weight", "as integers", "data"),
        ("forward", "no_grad"),
    ],
    "width 0 and a frozen weight": [
        ("module", 3, 0, True, "float32"),
        ("change", "frozen weight"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "plain"),
        ("backward", "square", False, False),
    ],
    "width 0 and create_graph": [
        ("module", 3, 0, True, "float32"),
        ("input", "plain", (2, 3), "leaf", 0),
        ("forward", "plain"),
        ("backward", "sum", False, True),
    ],
    "strided 3-D input changed after forward": [
        ("module", 4, 3, True, "float32"),
        ("input", "strided", (2, 3), "no gradient", 0),
        ("forward", "plain"),
        ("change_input", "add_"),
        ("backward", "square", False, False),
    ],
    "strided 2-D input changed after forward": [
        ("module", 4, 3, True, "float32"),
        ("input", "last strided", (2,), "no gradient", 0),
        ("forward", "plain"),
        ("change_input", "add_"),
        ("backward", "square", False, False),
    ],
    "a vector with other .data": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (), "leaf", 0),
        ("forward", "plain"),
        ("change_input", "leaf.data ="),
        ("backward", "square", False, False),
    ],
    "weight of the instance": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("new_weight", "plain", "dict"),
        ("forward", "plain"),
    ],
    "property of a subclass": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("change", "property weight"),
        ("forward", "plain"),
    ],
    "__getattr__ of a subclass": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("change", "__getattr__"),
        ("forward", "plain"),
    ],
    "no gradient comes back": [
        ("module", 4, 3, True, "float32"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "no gradient comes"),
        ("backward", "sum", False, False),
    ],
    "the bias's gradient twice": [
        ("module", 4, 3, True, "float32"),
        ("change", "frozen weight"),
        ("input", "plain", (2,), "no gradient", 0),
        ("forward", "plain"),
        ("backward", "sum", False, False),
        ("backward", "sum", False, False),
    ],
    "no weight": [
        ("module", 4, 3, True, "float32"),
        ("change", "no weight"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "plain"),
    ],
    "bfloat16": [
        ("module", 4, 3, True, "bfloat16"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "plain"),
        ("backward", "sum", False, False),
    ],
    "checkpoint, and its second forward is PyTorch's": [
        ("module", 4, 4, True, "float64"),
        ("input", "plain", (4,), "leaf", 0),
        ("forward", "checkpoint"),
        ("new_bias", "0-D", "parameter"),
        ("backward", "last strided", False, False),
    ],
    "the same without a bias": [
        ("module", 4, 4, False, "float64"),
        ("odd_input", "rows of weight"),
        ("forward", "checkpoint"),
        ("new_weight", "last strided", "data"),
        ("backward", "strided", False, False),
    ],
    "forward of the class on nn.Linear": [
        ("module", 4, 3, True, "float64"),
        ("change", "class of nn"),
        ("input", "plain", (2,), "leaf", 0),
        ("forward", "of the class"),
    ],
}


@pytest.mark.parametrize("name", FOUND)
def test_programs_that_differed(name):
    """What random programs found is mended. Each takes every step, or both fail at the same one."""
    check(FOUND[name])


@pytest.mark.parametrize("begin", range(0, 200, 25))
def test_random_programs(begin):
    """Two hundred programs, always the same."""
    for seed in range(begin, begin + 25):
        check(random_program(seed), seed)


@pytest.mark.long
@pytest.mark.parametrize("begin", range(1_000, 15_000, 1_000))
def test_many_random_programs(begin):
    """14,000 programs."""
    for seed in range(begin, begin + 1_000):
        check(random_program(seed), seed)


def test_the_programs_reach_the_kernels():
    """Most programs of the quick run compute with fastlinear, and take most of their steps without an error."""
    calls, errors, steps = 0, 0, 0
    for seed in range(200):
        world = World(Linear)
        program = random_program(seed)
        results = world.run(program)
        calls += world.module.__dict__.get("_bound") is not None
        errors += sum(type(result) is str and result.endswith("Error") for _, result in results)
        steps += len(program)
    assert calls > 70
    assert errors < steps / 3


@pytest.mark.parametrize("slip", ["old weight", "other sum", "zeros for None"])
def test_a_slip_is_found(slip, monkeypatch):
    """The comparison can fail: each of these slips differs in one of the programs that are kept."""
    if slip == "old weight":
        monkeypatch.setattr(fastlinear.torch._Bound, "is_on", lambda self, weight, bias: True)
    elif slip == "other sum":
        right = fastlinear.torch._tensors
        monkeypatch.setattr(
            fastlinear.torch, "_tensors", lambda x, *rest: right(None if x is None else 1.001 * x, *rest)
        )
    else:
        zeros = staticmethod(lambda ctx, gradient: (None, *(torch.zeros(n) for n in ((4, 3), 3)), *[None] * 4))
        monkeypatch.setattr(fastlinear.torch.FastLinear, "backward", zeros)
    assert any(difference(program) for program in FOUND.values())
