"""Types of the compiled base of Sequential; the words are in _network.pyx."""

from typing import Any, Literal, SupportsFloat, TypeAlias, final, overload

from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

from fastlinear._layer import Model
from fastlinear.linear import Linear

_Array: TypeAlias = NDArray[Any]

ACTIVATIONS: tuple[str, ...]

@final
class Tape:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    @property
    def output(self) -> _Array: ...

@disjoint_base
class Network(Model):
    @property
    def layers(self) -> tuple[Linear, ...]: ...
    @property
    def parts(self) -> tuple[Linear | str, ...]: ...
    def forward(self, x: ArrayLike, out: _Array | None = None) -> _Array: ...
    def record(self, x: ArrayLike, tape: Tape | None = None) -> Tape: ...
    @overload
    def backward(
        self,
        tape: Tape,
        grad_output: ArrayLike,
        out: _Array | None = None,
        scale: SupportsFloat = 1.0,
        input_grad: Literal[True] = True,
    ) -> _Array: ...
    @overload
    def backward(
        self,
        tape: Tape,
        grad_output: ArrayLike,
        out: None = None,
        scale: SupportsFloat = 1.0,
        *,
        input_grad: Literal[False],
    ) -> None: ...
    @overload
    def backward(
        self,
        tape: Tape,
        grad_output: ArrayLike,
        out: _Array | None = None,
        scale: SupportsFloat = 1.0,
        input_grad: bool = True,
    ) -> _Array | None: ...
    @overload
    def backward_update(
        self,
        tape: Tape,
        grad_output: ArrayLike,
        lr: SupportsFloat,
        out: _Array | None = None,
        input_grad: Literal[True] = True,
    ) -> _Array: ...
    @overload
    def backward_update(
        self, tape: Tape, grad_output: ArrayLike, lr: SupportsFloat, out: None = None, *, input_grad: Literal[False]
    ) -> None: ...
    @overload
    def backward_update(
        self,
        tape: Tape,
        grad_output: ArrayLike,
        lr: SupportsFloat,
        out: _Array | None = None,
        input_grad: bool = True,
    ) -> _Array | None: ...
    def step(self, lr: SupportsFloat) -> None: ...
    def zero_grad(self) -> None: ...
    def _bind(self, parts: tuple[Any, ...]) -> None: ...
    def _store(self, values: list[tuple[_Array, _Array | None]]) -> None: ...
