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
    raise ImportError("fastlinear.torch needs PyTorch: pip install 'fastlinear[torch]'") from error
from torch.nn import functional

import fastlinear

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[Any]

__all__ = ["Linear"]


try:
    # What tells whether someone is watching; none of it is public.
    from torch._C import (
        _are_functorch_transforms_active,
        _functorch,
        _get_tracing_state,
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
    )
    from torch.autograd import forward_ad

    forward_ad._current_level  # noqa: B018
except (ImportError, AttributeError) as error:
    raise ImportError(f"fastlinear.torch knows PyTorch 2.13, and this one, {torch.__version__}, differs") from error


class Linear(torch.nn.Linear):
    """``torch.nn.Linear``, computed by fastlinear: same constructor, parameters, state_dict and gradients.

    Input (..., in_features) and parameters must be on the CPU, of one dtype, float32 or float64; another dtype is a
    TypeError, another device or a wrong shape a ValueError. The kernels read the parameters where PyTorch keeps them.
    Results keep fastlinear's promises: a row's output does not depend on its batch or on the number of threads. That is
    fastlinear's (``fastlinear.set_num_threads``) or, if that is less, PyTorch's.

    Backward is fastlinear's, too. In what it does not know, PyTorch's own ``nn.Linear`` computes: second derivatives
    (``create_graph=True``), forward-mode derivatives, ``torch.func`` (vmap, grad, ...), ``torch.compile``,
    ``torch.jit.trace``, autocast, modes (``FlopCounterMode``, ``set_default_device``), subclasses of Tensor, and a
    weight that is not contiguous.
    """

    _bound: _Bound | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name
        """x Wᵀ + b for every row of the input (..., in_features); a new tensor (..., out_features)."""
        try:
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:  # computed from others (torch.nn.utils.parametrize, prune)
            weight, bias = self.weight, self.bias
        if type(input) not in _PLAIN or _watched():
            return functional.linear(input, weight, bias)
        bound = self._bound
        if bound is None or not bound.is_on(weight, bias):
            # PyTorch may have moved the parameters: to(), load_state_dict(assign=True), share_memory_(), .data = ...
            bound = _bind(weight, bias)
            self.__dict__["_bound"] = bound
            if bound is None:
                return functional.linear(input, weight, bias)
        if torch.is_grad_enabled() and (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return FastLinear.apply(input, weight, bias, bound.layer)
        return torch.from_numpy(bound.layer(_array("input", input, bound.weight.dtype)))

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """What to(), half(), share_memory() and their like do: the memory from before is not held any longer."""
        self.__dict__["_bound"] = None
        return super()._apply(*arguments, **options)

    def _get_name(self) -> str:
        return "fastlinear.torch.Linear"

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: the copy has parameters of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_bound"}


_PLAIN = torch.Tensor, torch.nn.Parameter


def _watched() -> bool:
    """Whether someone wants to see each operation or to change what it does, and so must meet PyTorch's own."""
    return (
        _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or _get_tracing_state() is not None
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
    )


class _Bound(NamedTuple):
    """A layer on the memory of a module's parameters."""

    layer: fastlinear.Linear
    weight: Tensor
    weight_address: int
    bias: Tensor | None
    bias_address: int

    def is_on(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether that is these parameters' memory, still. A storage can get other memory (share_memory_), a parameter
        another storage or another shape (.data = ...)."""
        if weight.data_ptr() != self.weight_address or not weight.is_set_to(self.weight):
            return False
        if bias is None or self.bias is None:
            return bias is self.bias
        return bool(bias.data_ptr() == self.bias_address and bias.is_set_to(self.bias))


def _bind(weight: Tensor, bias: Tensor | None) -> _Bound | None:
    """None for parameters that PyTorch must handle itself: subclasses of Tensor, and what is not contiguous."""
    if type(weight) not in _PLAIN or (bias is not None and type(bias) not in _PLAIN):
        return None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    arrays = _array("weight", weight), None if bias is None else _array("bias", bias, weight.dtype)
    if not all(array is None or array.flags.carray for array in arrays):
        return None
    return _Bound(_layer(*arrays), weight, weight.data_ptr(), bias, 0 if bias is None else bias.data_ptr())


def _layer(weight: Array, bias: Array | None) -> fastlinear.Linear:
    """A layer on that memory."""
    layer = fastlinear.Linear.__new__(fastlinear.Linear)
    layer._bind(weight, bias)
    return layer


def _array(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Array:
    """The memory of a tensor, which must be dense, on the CPU and of this dtype."""
    if tensor.dtype is not dtype:
        if dtype is not None:
            raise TypeError(f"{name} must be {dtype} like the weight, got {tensor.dtype}; convert it with .to({dtype})")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be torch.float32 or torch.float64, got {tensor.dtype}; convert with .float()")
    return _memory(name, tensor)


def _memory(name: str, tensor: Tensor) -> Array:
    if tensor.requires_grad:
        tensor = tensor.detach()
    try:
        memory: Array = tensor.numpy()
    except (RuntimeError, TypeError) as error:
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise ValueError(
                f"{name} must be a dense tensor on the CPU, got {tensor.layout} on {tensor.device}; use .cpu(), "
                ".to_dense()"
            ) from error
        memory = tensor.resolve_neg().numpy()
    return memory


class FastLinear(torch.autograd.Function):
    """The layer as a node of autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: fastlinear.Linear) -> Tensor:
        y = torch.from_numpy(layer(_array("input", x, weight.dtype)))
        for_x, for_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.shape = weight.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        out_features, in_features = ctx.shape
        # With create_graph=True what is done here is differentiated in turn; is_grads_batched=True has many at once.
        if (
            torch.is_grad_enabled()
            or type(grad_output) is not torch.Tensor
            or _watched()
            or _functorch.is_legacy_batchedtensor(grad_output)
        ):
            rows = grad_output.reshape(-1, out_features)
            return (
                grad_output @ weight if for_x else None,
                rows.T @ x.reshape(-1, in_features) if for_weight else None,
                rows.sum(0) if for_bias else None,
                None,
            )

        gradient = _memory("grad_output", grad_output)
        # A layer for this once, whose gradients become PyTorch's. Backward reads no bias, nor here more of the weight
        # than it was saved for.
        memory = (
            np.require(_memory("weight", weight), None, ["C", "A", "W"])
            if for_x
            else np.empty(ctx.shape, gradient.dtype)
        )
        layer = _layer(memory, np.empty(out_features, memory.dtype) if for_bias else None)
        grad_x = grad_weight = grad_bias = None
        if for_weight:
            grad_x = layer.backward(_memory("input", x), gradient, input_grad=for_x)
            grad_weight, grad_bias = layer.grad_weight, layer.grad_bias
        else:
            if for_x:
                grad_x = layer.backward_input(gradient)
            if for_bias:
                grad_bias = gradient.reshape(-1, out_features).sum(0)
        return *(None if g is None else torch.from_numpy(g) for g in (grad_x, grad_weight, grad_bias)), None


def parameters_of(module: torch.nn.Linear) -> tuple[Array, Array | None]:
    """The memory of weight and bias, for Linear.from_torch."""
    if not isinstance(module, torch.nn.Linear):
        raise TypeError(f"from_torch: the module must be a torch.nn.Linear, got {type(module).__name__}")
    if isinstance(module.weight, torch.nn.parameter.UninitializedParameter):
        raise ValueError("from_torch: the module has no parameters yet; call it once")
    weight = _array("from_torch: weight", module.weight)
    bias = module.bias
    return weight, None if bias is None else _array("from_torch: bias", bias, module.weight.dtype)


def module_of(weight: Array, bias: Array | None) -> torch.nn.Linear:
    """A torch.nn.Linear on that memory, for Linear.to_torch."""
    state = {"weight": torch.from_numpy(weight)} | ({} if bias is None else {"bias": torch.from_numpy(bias)})
    out_features, in_features = weight.shape
    module = torch.nn.Linear(in_features, out_features, bias is not None, device="meta", dtype=state["weight"].dtype)
    module.load_state_dict(state, assign=True)
    return module
