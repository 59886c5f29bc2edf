"""``fastlinear.torch.Linear``: PyTorch's ``nn.Linear`` with fastlinear's kernels under its autograd.

Change the import, and an existing model runs on them:

>>> from torch import nn, randn
>>> from fastlinear.torch import Linear
>>> model = nn.Sequential(Linear(64, 32), nn.ReLU(), Linear(32, 10))
>>> model(randn(5, 64)).square().sum().backward()
>>> model[0].weight.grad.shape
torch.Size([32, 64])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

try:
    import torch
except ImportError as error:
    from fastlinear._advice import missing

    raise ImportError(missing("fastlinear.torch", "PyTorch", "torch", "torch", error)) from error
from torch import nn
from torch.nn import functional

import fastlinear

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[Any]

__all__ = ["Linear"]


try:
    # These tell whether someone is watching. None of them is public.
    from torch._C import (
        _are_functorch_transforms_active,
        _get_tracing_state,
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
    )
    from torch.autograd import forward_ad

    forward_ad._current_level  # noqa: B018
except (ImportError, AttributeError) as error:
    raise ImportError(f"fastlinear.torch knows PyTorch 2.13, and this one, {torch.__version__}, differs") from error


class Linear(torch.nn.Linear):
    """``torch.nn.Linear``, computed by fastlinear: same constructor, parameters, state_dict, gradients and errors.

    If input (..., in_features) and parameters are on the CPU and of one dtype, float32 or float64, fastlinear computes
    forward and backward, and the kernels read the parameters where PyTorch keeps them. These results keep fastlinear's
    promises: a row's output does not depend on its batch or on the number of threads. The number of threads is that of
    ``fastlinear.set_num_threads`` or, if it is less, PyTorch's.

    Everything else is computed by PyTorch, or raises its error, as in ``nn.Linear``: other dtypes and devices; shapes
    that do not fit; layers and batches of size 0; a weight that is not a contiguous matrix, or a bias that is not one
    number for each output; second derivatives (``create_graph=True``), forward-mode derivatives, ``torch.func`` (vmap,
    grad, ...), ``torch.compile``, ``torch.jit.trace``, autocast, modes (``FlopCounterMode``, ``set_default_device``),
    and subclasses of Tensor.

    >>> from torch import randn
    >>> from fastlinear.torch import Linear
    >>> Linear(64, 32)(randn(5, 64)).shape
    torch.Size([5, 32])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name
        """x Wᵀ + b for every row of the input (..., in_features). Returns a new tensor (..., out_features)."""
        own = self.__dict__
        parameters = own["_parameters"]
        if (
            type(self) is Linear
            and "weight" in parameters
            and "bias" in parameters
            and "weight" not in own
            and "bias" not in own
        ):
            # nn.Module.__getattr__ would find the same, but takes a fifth of the time of a small call.
            weight, bias = parameters["weight"], parameters["bias"]
        else:
            weight, bias = self.weight, self.bias
        if _watched():
            return functional.linear(input, weight, bias)
        bound = own.get("_bound")
        if bound is None or not bound.is_on(weight, bias):
            # PyTorch might have moved the parameters: to(), load_state_dict(assign=True), share_memory_(), .data = ...
            bound = own["_bound"] = _bind(weight, bias)
        x = _memory(input)
        if bound is None or not _fits(x, bound.layer):
            return functional.linear(input, weight, bias)

        if not torch.is_grad_enabled() or not (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return torch.from_numpy(bound.layer(x))
        # Autograd sees what it sees in nn.Linear: a matrix of rows and a view of the weight, saved in the order in
        # which addmm or mm saves them. So a change before backward is an error where it is one in nn.Linear; a weight
        # that has other memory by then counts as it was; and a second forward (torch.utils.checkpoint) saves the same,
        # even if PyTorch computes it.
        rows, batch = input, x.shape[:-1]
        order = 1 if bias is not None and (x.ndim == 2 or input.is_contiguous()) else -1
        if x.ndim != 2:
            rows = input.reshape(-1, x.shape[-1])
            x = _memory(rows)
        y: Tensor = FastLinear.apply(rows, weight.t(), bias, bound.layer, x, batch, order)
        return y

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """to(), half(), share_memory() and their like: after them, the memory from before is not held any longer."""
        self.__dict__["_bound"] = None
        return super()._apply(*arguments, **options)

    def _get_name(self) -> str:
        return "fastlinear.torch.Linear" if type(self) is Linear else super()._get_name()


def _watched() -> bool:
    """Whether someone wants to see each operation or to change what it does. Then PyTorch's own must run."""
    return (
        _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or _get_tracing_state() is not None
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
    )


# ---- from tensors to kernels: everything reaches them through these functions

_PLAIN = torch.Tensor, torch.nn.Parameter
_DTYPES = np.dtype(np.float32), np.dtype(np.float64)
_NO_MEMORY = np.empty((), object)
"""An array whose dtype and shape fit nothing."""


def _memory(tensor: Any) -> Array:
    """The memory of a tensor, or _NO_MEMORY if NumPy cannot look at it: the tensor is on another device, sparse,
    nested, empty, has the negative bit, or is wrapped by PyTorch or by a subclass."""
    if type(tensor) in _PLAIN:
        try:
            if tensor.data_ptr():
                memory: Array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
                return memory
        except (RuntimeError, TypeError, ValueError):
            pass
    return _NO_MEMORY


def _fits(x: Array, layer: fastlinear.Linear) -> bool:
    """Whether the layer can take x without a conversion."""
    return bool(x.dtype == layer.dtype and x.ndim > 0 and x.shape[-1] == layer.in_features)


def _layer(weight: Array, bias: Array | None) -> fastlinear.Linear | None:
    """A layer on that memory, or None if it is not a layer's."""
    if not (weight.ndim == 2 and weight.dtype in _DTYPES and weight.flags.carray):
        return None
    if bias is not None and not (bias.shape == weight.shape[:1] and bias.dtype == weight.dtype and bias.flags.carray):
        return None
    layer = fastlinear.Linear.__new__(fastlinear.Linear)
    layer._bind(weight, bias)
    return layer


class _Bound(NamedTuple):
    """A layer on the memory of a module's parameters."""

    layer: fastlinear.Linear
    weight: _Place
    bias: _Place | None

    def is_on(self, weight: Any, bias: Any) -> bool:
        """Whether this is still the memory of these parameters."""
        if bias is None or self.bias is None:
            return bias is self.bias and self.weight.is_of(weight)
        return self.weight.is_of(weight) and self.bias.is_of(bias)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled as None, because a copy of the module has parameters of its own."""
        return type(None), ()


class _Place(NamedTuple):
    """Where the values of a tensor were."""

    tensor: Tensor
    view: Tensor
    dtype: torch.dtype
    address: int

    def is_of(self, tensor: Any) -> bool:
        """Whether the values of that tensor are there. A storage can get other memory (share_memory_). A tensor can get
        another storage, shape or dtype (.data = ...), and everything of another tensor (swap_tensors)."""
        try:
            return bool(
                tensor is self.tensor
                and tensor.data_ptr() == self.address
                and type(tensor) in _PLAIN
                and tensor.dtype is self.dtype
                and tensor.is_set_to(self.view)
            )
        except RuntimeError:  # it has no memory now
            return False


def _bind(weight: Any, bias: Any) -> _Bound | None:
    """A layer on these parameters, or None if PyTorch must handle them itself."""
    if type(weight) not in _PLAIN or (bias is not None and type(bias) not in _PLAIN):
        return None
    # Everything is taken from views, which stay as they are if another thread changes the parameters meanwhile.
    view, bias_view = weight.detach(), None if bias is None else bias.detach()
    layer = _layer(_memory(view), None if bias_view is None else _memory(bias_view))
    if layer is None:
        return None
    return _Bound(layer, _place(weight, view), None if bias_view is None else _place(bias, bias_view))


def _place(tensor: Tensor, view: Tensor) -> _Place:
    return _Place(tensor, view, view.dtype, view.data_ptr())


class FastLinear(torch.autograd.Function):
    """The layer as a node of autograd, on a matrix of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        transposed: Tensor,
        bias: Tensor | None,
        layer: fastlinear.Linear,
        x: Array,
        batch: tuple[int, ...],
        order: int,
    ) -> Tensor:
        """The output (*batch, out_features). transposed is the weight's transpose, x the memory of the rows, a matrix;
        order is 1 if the rows are saved first, or -1."""
        for_rows, for_weight, *_ = ctx.needs_input_grad
        if for_rows or for_weight:
            ctx.save_for_backward(*(rows if for_weight else None, transposed if for_rows else None)[::order])
        ctx.set_materialize_grads(False)
        ctx.shapes = x.shape, (layer.out_features, layer.in_features), (*batch, layer.out_features)
        ctx.order = order
        return torch.from_numpy(layer(x).reshape(ctx.shapes[-1]))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        for_rows, for_weight, for_bias, *_ = ctx.needs_input_grad
        rows, transposed = ctx.saved_tensors[:: ctx.order] if for_rows or for_weight else (None, None)
        if grad_output is None:
            return (None,) * 7
        gradients = None
        # With create_graph=True, what happens here is differentiated in turn.
        if not torch.is_grad_enabled() and not _watched():
            gradients = _gradients(grad_output, rows, transposed, for_bias, *ctx.shapes)
        if gradients is None:
            # A matrix is not reshaped, because a sparse one cannot be.
            g = grad_output if grad_output.ndim == 2 else grad_output.reshape(-1, grad_output.shape[-1])
            gradients = (
                None if transposed is None else g @ transposed.T,
                None if rows is None else rows.T @ g,
                g.sum(0) if for_bias else None,
            )
        return *gradients, None, None, None, None


def _gradients(
    grad_output: Tensor,
    rows: Tensor | None,
    transposed: Tensor | None,
    for_bias: bool,
    rows_shape: tuple[int, int],
    weight_shape: tuple[int, int],
    output_shape: tuple[int, ...],
) -> tuple[Tensor | None, ...] | None:
    """The gradients of the rows (if the weight was saved), of the weight's transpose (if the rows were saved) and of
    the bias, by fastlinear, or None if PyTorch must compute them. The shapes are those of forward, because hooks can
    change what was saved."""
    gradient = _memory(grad_output)
    if gradient.shape != output_shape:
        return None
    (count, _), (out_features, _), dtype = rows_shape, weight_shape, gradient.dtype
    gradient = gradient.reshape(count, out_features)
    x = None if rows is None else _memory(rows)
    if x is not None and not (x.shape == rows_shape and x.dtype == dtype):
        return None
    # A layer for this one call, whose gradients become PyTorch's. It reads no bias, and no weight that was not saved.
    weight = np.empty(weight_shape, dtype) if transposed is None else _memory(transposed).T
    bias = np.empty(out_features, dtype) if for_bias else None
    layer = _layer(weight, bias)
    if layer is None or weight.shape != weight_shape or weight.dtype != dtype:
        return None
    if x is not None:
        grad_x = layer.backward(x, gradient, input_grad=transposed is not None)
        return _tensors(grad_x, layer.grad_weight.T, layer.grad_bias)
    grad_x = None if transposed is None else layer.backward_input(gradient)
    # A layer without features computes the gradient of the bias alone, with the bits that it has beside the weight's.
    alone = _layer(np.empty((out_features, 0), dtype), bias) if for_bias else None
    if alone is None:
        return _tensors(grad_x, None, None)
    alone.backward_params(np.empty((count, 0), dtype), gradient)
    return _tensors(grad_x, None, alone.grad_bias)


def _tensors(*arrays: Array | None) -> tuple[Tensor | None, ...]:
    return tuple(None if array is None else torch.from_numpy(array) for array in arrays)


# ---- weights alone


def parameters_of(module: torch.nn.Linear) -> tuple[Array, Array | None]:
    """The memory of weight and bias, for Linear.from_torch."""
    if not isinstance(module, torch.nn.Linear):
        hint = "; Sequential.from_torch takes it" if isinstance(module, nn.Sequential) else ""
        raise TypeError(f"from_torch: the module must be a torch.nn.Linear, got {type(module).__name__}{hint}")
    if isinstance(module.weight, torch.nn.parameter.UninitializedParameter):
        raise ValueError("from_torch: the module has no parameters yet; call it once")
    weight = _array("from_torch: weight", module.weight)
    bias = module.bias
    return weight, None if bias is None else _array("from_torch: bias", bias, module.weight.dtype)


def _array(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Array:
    """The memory of a tensor, which must be dense, on the CPU and of this dtype, or of one of the layer's."""
    if dtype is None and tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be torch.float32 or torch.float64, got {tensor.dtype}; convert with .float()")
    if dtype is not None and tensor.dtype is not dtype:
        raise TypeError(f"{name} must be {dtype} like the weight, got {tensor.dtype}; convert it with .to({dtype})")
    try:
        memory: Array = tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} must be a dense tensor on the CPU, got {tensor.layout} on {tensor.device}; use .cpu(), .to_dense()"
        ) from error
    return memory


def module_of(weight: Array, bias: Array | None) -> torch.nn.Linear:
    """A torch.nn.Linear on that memory, for Linear.to_torch."""
    state = {"weight": torch.from_numpy(weight)} | ({} if bias is None else {"bias": torch.from_numpy(bias)})
    out_features, in_features = weight.shape
    module = torch.nn.Linear(in_features, out_features, bias is not None, device="meta", dtype=state["weight"].dtype)
    module.load_state_dict(state, assign=True)
    return module


_ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softmax": nn.Softmax,
}
_CONSTANTS = {
    nn.LeakyReLU: ("negative_slope", (0.01,)),
    nn.ELU: ("alpha", (1.0,)),
    nn.GELU: ("approximate", ("none",)),
    nn.Softmax: ("dim", (-1, 1)),  # 1 is the last axis of a batch
}
"""The constants with which an activation must have been made, because fastlinear's are fixed."""


def parts_of(module: torch.nn.Module) -> list[torch.nn.Linear | str]:
    """The parts of a torch.nn.Sequential, and of those inside of it, in one row, for Sequential.from_torch."""
    parts: list[torch.nn.Linear | str] = []
    for name, leaf in _leaves("module", module):
        if isinstance(leaf, nn.Linear) and any(leaf is part for part in parts):
            raise ValueError(
                f"from_torch: {name} is the same Linear as one before it; a net has each layer once, so give it a copy"
            )
        parts += _parts_of_leaf(name, leaf)
    return parts


def _leaves(name: str, module: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules that compute, in their order, with their places. (named_children() would give each only once.)"""
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_torch: {name} must be a torch.nn.Module, got {type(module).__name__}")
    if type(module) is nn.Sequential:
        for place, child in module._modules.items():
            yield from _leaves(f"{name}[{place}]", child)
    else:
        yield name, module


def _parts_of_leaf(name: str, module: torch.nn.Module) -> list[torch.nn.Linear | str]:
    if isinstance(module, nn.Linear):
        return [module]
    if type(module) is nn.Identity or (type(module) is nn.Dropout and not module.training):
        return []
    if type(module) is nn.Dropout:
        raise ValueError(f"from_torch: {name} is a Dropout in training mode; call eval() first, which makes it nothing")
    for activation, kind in _ACTIVATIONS.items():
        if type(module) is kind:
            constant, values = _CONSTANTS.get(kind, ("", ()))
            if constant and getattr(module, constant) not in values:
                raise ValueError(
                    f"from_torch: {name}, {module}, must have {constant}={values[0]!r}, as {activation} has"
                )
            return [activation]
    raise ValueError(
        f"from_torch: {name} is a {type(module).__name__}, which has no counterpart; there are Sequential, Linear, "
        f"{', '.join(kind.__name__ for kind in _ACTIVATIONS.values())}, Identity, and Dropout in evaluation mode"
    )


def sequential_of(parts: list[torch.nn.Linear | str]) -> torch.nn.Sequential:
    """The torch.nn.Sequential of these parts, for Sequential.to_torch."""
    return nn.Sequential(*map(_module, parts))


def _module(part: torch.nn.Linear | str) -> torch.nn.Module:
    if not isinstance(part, str):
        return part
    return nn.Softmax(dim=-1) if part == "softmax" else _ACTIVATIONS[part]()
