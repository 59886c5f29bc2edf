"""Types of the compiled base of Linear; the words are in _layer.pyx."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Literal, SupportsFloat, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

_Array: TypeAlias = NDArray[Any]

compiler: str
flags: str
has_openmp: bool

def supports(feature: str) -> bool: ...
def use_kernels(module: ModuleType) -> None: ...
def set_threads(n: int) -> None: ...
def get_threads() -> int: ...
def openmp_threads() -> int: ...
def after_fork_in_child() -> None: ...

@disjoint_base
class Layer:
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def weight(self) -> _Array: ...
    @weight.setter
    def weight(self, value: ArrayLike) -> None: ...
    @property
    def bias(self) -> _Array | None: ...
    @bias.setter
    def bias(self, value: ArrayLike) -> None: ...
    @property
    def grad_weight(self) -> _Array: ...
    @grad_weight.setter
    def grad_weight(self, value: ArrayLike) -> None: ...
    @property
    def grad_bias(self) -> _Array | None: ...
    @grad_bias.setter
    def grad_bias(self, value: ArrayLike) -> None: ...
    def __call__(self, x: ArrayLike, out: _Array | None = None) -> _Array: ...
    def forward(self, x: ArrayLike, out: _Array | None = None) -> _Array: ...
    @overload
    def backward(
        self,
        x: ArrayLike,
        grad_output: ArrayLike,
        out: _Array | None = None,
        scale: SupportsFloat = 1.0,
        input_grad: Literal[True] = True,
    ) -> _Array: ...
    @overload
    def backward(
        self,
        x: ArrayLike,
        grad_output: ArrayLike,
        out: None = None,
        scale: SupportsFloat = 1.0,
        *,
        input_grad: Literal[False],
    ) -> None: ...
    @overload
    def backward(
        self,
        x: ArrayLike,
        grad_output: ArrayLike,
        out: _Array | None = None,
        scale: SupportsFloat = 1.0,
        input_grad: bool = True,
    ) -> _Array | None: ...
    def backward_params(self, x: ArrayLike, grad_output: ArrayLike, scale: SupportsFloat = 1.0) -> None: ...
    def backward_input(self, grad_output: ArrayLike, out: _Array | None = None) -> _Array: ...
    @overload
    def backward_update(
        self,
        x: ArrayLike,
        grad_output: ArrayLike,
        lr: SupportsFloat,
        out: _Array | None = None,
        input_grad: Literal[True] = True,
    ) -> _Array: ...
    @overload
    def backward_update(
        self, x: ArrayLike, grad_output: ArrayLike, lr: SupportsFloat, out: None = None, *, input_grad: Literal[False]
    ) -> None: ...
    @overload
    def backward_update(
        self,
        x: ArrayLike,
        grad_output: ArrayLike,
        lr: SupportsFloat,
        out: _Array | None = None,
        input_grad: bool = True,
    ) -> _Array | None: ...
    def step(self, lr: SupportsFloat) -> None: ...
    def _bind(self, weight: Any, bias: Any, grad_weight: Any = None, grad_bias: Any = None) -> None: ...
    def _write(self, arrays: Iterable[_Array], values: Iterable[Any]) -> None: ...
    def _memory(self) -> tuple[_Array, _Array | None, _Array | None, _Array | None]: ...
