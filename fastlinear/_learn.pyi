"""Types of Linear.learn; the words are in _learn.pyx."""

from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

from numpy.typing import ArrayLike, NDArray

from fastlinear._layer import Layer

_Loss: TypeAlias = Literal["squared_error", "huber", "log_loss", "hinge"]

class Learner(Layer):
    def learn(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        lr: SupportsFloat | Sequence[float] | NDArray[Any],
        loss: _Loss | str = "squared_error",
        batch_size: SupportsIndex = 1,
        l2: SupportsFloat = 0.0,
        sample_weight: ArrayLike | None = None,
        order: ArrayLike | None = None,
        adaptive: bool = False,
    ) -> float: ...
