"""SGD, Adam and AdamW over the layers of a model, with PyTorch's formulas, arguments, defaults and states.

A step is one compiled pass over each parameter, its gradient and its state (``_optimisers.pyx``). This file checks
numbers, and takes states in and out.
"""

from __future__ import annotations

import copyreg
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastlinear._optimisers import AdamBase, Optimiser, SGDBase, clip_grad_norm, real_number
from fastlinear.linear import _advice, _array, _check_cast, _shown

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastlinear._optimisers import _Model as Model

    Array = NDArray[Any]
    Settings = dict[str, Any]
    Shapes = list[tuple[tuple[int, ...], np.dtype[Any]]]

__all__ = ["SGD", "Adam", "AdamW", "clip_grad_norm"]

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

_FREE = ("params", "foreach", "capturable", "differentiable", "fused", "initial_lr", "param_names")
"""The entries of PyTorch's parameter groups that do not change the results."""


class _PyTorchForm(Optimiser):
    """The part of the optimisers that is not compiled: settings, and states in the form of PyTorch's."""

    __slots__ = ()

    _BUFFERS: ClassVar[tuple[str, ...]]
    """PyTorch's names of the arrays that are kept for each parameter."""
    _STEP: ClassVar[bool]
    """Whether the number of steps is part of the state."""
    _FIXED: ClassVar[Settings]
    """Other entries of PyTorch's parameter groups, with the value that stands for what this class does."""

    if TYPE_CHECKING:

        @property
        def _settings(self) -> Settings: ...

    def _checked(self, settings: Settings, shapes: Shapes) -> Settings:
        """The settings for parameters of these shapes and dtypes."""
        raise NotImplementedError

    def _numbers(self, settings: Settings) -> Settings:
        """Checked settings as the arguments of _configure()."""
        raise NotImplementedError

    def _begin(self, model: Model, settings: Settings) -> None:
        """What __init__ does. The model comes last, so that an optimiser whose settings are refused has none."""
        layers = self._layers_of(model)
        self._bind(model, layers, self._numbers(self._checked(settings, self._shapes_of(layers))))

    # ---- numbers

    @classmethod
    def _named(cls, name: str) -> str:
        return f"{cls.__name__}: {name}"

    @classmethod
    def _not_negative(cls, name: str, value: Any) -> float:
        number = real_number(cls._named(name), value)
        if not 0 <= number < math.inf:
            raise ValueError(f"{cls._named(name)} must be finite and not negative, got {_shown(value)}")
        return number

    @classmethod
    def _number(cls, name: str, value: Any, shapes: Shapes) -> float:
        """value, which must be finite in each parameter's dtype. Below the smallest it is 0 there, as in PyTorch."""
        number = cls._not_negative(name, value)
        if number > _LARGEST_FLOAT32 and any(dtype == np.float32 for _, dtype in shapes):
            raise ValueError(f"{cls._named(name)} must fit float32, got {_shown(value)}")
        return number

    # ---- states

    def state_dict(self) -> dict[str, Any]:
        """The settings and copies of the state, in the form that PyTorch's optimiser of this name takes.

        ``state`` has a dictionary for each parameter that has been stepped, by its number in the order of PyTorch's
        ``parameters()``. ``param_groups`` has one group. In a program that has imported torch the arrays are tensors,
        because PyTorch's ``load_state_dict`` takes nothing else.

        >>> SGD(Linear(3, 2), lr=0.5).state_dict()["param_groups"][0]["lr"]
        0.5
        """
        unused = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
        group = {**self._settings, **self._FIXED, **unused}
        torch = sys.modules.get("torch")
        convert: Callable[[Array], Any] = getattr(torch, "from_numpy", np.asarray)
        state: dict[int, dict[str, Any]] = {}
        steps, buffers = self.steps, self._buffers()
        if steps and self._keeps_state():
            for k, arrays in enumerate(buffers):
                state[k] = {"step": float(steps)} if self._STEP else {}
                state[k] |= {name: convert(a.copy()) for name, a in zip(self._BUFFERS, arrays, strict=True)}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(buffers)))}]}

    def _keeps_state(self) -> bool:
        return True

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the settings and the state of a state_dict, from here or from PyTorch's optimiser of this name.

        They overwrite those of this optimiser; arrays and CPU tensors are copied. What does not fit (other parameters,
        an option that is not known here, a wrong shape) is a ValueError, a dtype that does not cast safely is a
        TypeError, and then nothing has changed.

        >>> layer = Linear(3, 2)
        >>> opt, other = SGD(layer, lr=0.5), SGD(layer)
        >>> other.load_state_dict(opt.state_dict())
        >>> other.lr
        0.5
        """
        who = type(self).__name__
        shapes = self._shapes()
        if not isinstance(state_dict, Mapping):
            kind = type(state_dict).__name__
            raise TypeError(f"{who}: the state must be a mapping, got {kind}{_advice().for_state(state_dict)}")
        if set(state_dict) != {"state", "param_groups"}:
            raise ValueError(
                f"{who}: the state must have the keys ['param_groups', 'state'], got {_advice().listed(state_dict)}"
            )
        group, state = self._group_of(state_dict["param_groups"], len(shapes)), state_dict["state"]
        if not isinstance(state, Mapping):
            raise TypeError(f"{who}: the parameters of the state must be a mapping, got {type(state).__name__}")
        settings = self._settings_of(group, shapes)
        numbers = list(group["params"])
        if surplus := [number for number in state if number not in numbers]:
            raise ValueError(f"{who}: the state has a parameter {_shown(surplus[0])}, its group has {numbers}")
        states = [state.get(number, {}) for number in numbers]
        steps = self._steps_of(states)
        buffers = [
            [self._buffer(kept.get(name), name, k, *shape) for name in self._BUFFERS]
            for k, (kept, shape) in enumerate(zip(states, shapes, strict=True))
        ]
        if (
            self._STEP
            and steps
            and (lacking := [k for k, arrays in enumerate(buffers) if any(a is None for a in arrays)])
        ):
            raise ValueError(f"{who}: the state of parameter {lacking[0]} must have {' and '.join(self._BUFFERS)}")
        self._load(steps, buffers, self._numbers(settings))

    def _group_of(self, groups: Any, count: int) -> Mapping[str, Any]:
        """The one group of a state, or an error if it does not have that many parameters."""
        who = type(self).__name__
        if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
            raise TypeError(f"{who}: param_groups must be a list of mappings in the state, got {_shown(groups)}")
        if len(groups) != 1:
            raise ValueError(f"{who}: the state must have one parameter group, got {len(groups)}")
        params = groups[0].get("params")
        if not isinstance(params, (list, tuple)) or not all(isinstance(number, int) for number in params):
            raise TypeError(f"{who}: params must be a list of numbers in the group of the state, got {_shown(params)}")
        if len(params) != count:
            raise ValueError(f"{who}: the model has {count} parameters, the state has {len(params)}")
        group: Mapping[str, Any] = groups[0]
        return group

    def _settings_of(self, group: Mapping[str, Any], shapes: Shapes) -> Settings:
        who = type(self).__name__
        if missing := [name for name in self._settings if name not in group]:
            raise ValueError(f"{who}: the parameter group of the state lacks {', '.join(missing)}")
        for name, value in group.items():
            if name in self._FIXED:
                if value != self._FIXED[name]:
                    fixed = self._FIXED[name]
                    raise ValueError(f"{who}: {name} must be {fixed} in the state, got {_shown(value)}")
            elif name not in self._settings and name not in _FREE:
                raise ValueError(f"{who}: the state has an option {name}={_shown(value)} that is not known here")
        return self._checked({name: group[name] for name in self._settings}, shapes)

    def _steps_of(self, states: list[Mapping[str, Any]]) -> int:
        """How many steps were taken, which must be the same number for all parameters."""
        who = type(self).__name__
        for k, kept in enumerate(states):
            if not isinstance(kept, Mapping):
                raise TypeError(f"{who}: the state of parameter {k} must be a mapping, got {type(kept).__name__}")
            if self._STEP and kept and "step" not in kept:
                raise ValueError(f"{who}: the state of parameter {k} must have step, got {_advice().listed(kept)}")
        if not self._STEP:
            return int(any(states))
        steps = {real_number(f"{who}: step", kept["step"]) if kept else 0.0 for kept in states}
        if len(steps) > 1 or not all(0 <= step < 2**53 and step.is_integer() for step in steps):
            raise ValueError(f"{who}: all parameters must have taken the same number of steps, got {sorted(steps)}")
        return int(steps.pop())

    def _buffer(self, value: Any, name: str, k: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | None:
        if value is None:
            return None
        what = self._named(f"{name} of parameter {k}")
        array = _array(what, value)
        _check_cast(what, array.dtype, dtype)
        if array.shape != shape:
            raise ValueError(f"{what} must have shape {shape}, got {array.shape}")
        return np.array(array, dtype, order="C")

    # ---- copies: copy.copy has the same model and a state of its own; copy.deepcopy and pickle take the model along

    def __reduce__(self) -> tuple[Any, ...]:
        attributes: Any = getattr(self, "__dict__", None)
        names = copyreg._slotnames(type(self))  # type: ignore[attr-defined]  # what pickle itself asks
        if slots := {name: getattr(self, name) for name in names if hasattr(self, name)}:
            attributes = attributes, slots
        state = self.model, self._settings, self.steps, self._buffers(), attributes
        return type(self).__new__, (type(self),), state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take a state of __reduce__. The model comes last, so that an optimiser whose state fails has none."""
        model, settings, steps, buffers, attributes = state
        layers = self._layers_of(model)
        shapes = self._shapes_of(layers)
        numbers = self._numbers(self._checked(settings, shapes))
        copies = [
            [self._buffer(a, name, k, *shape) for name, a in zip(self._BUFFERS, arrays, strict=True)]
            for k, (arrays, shape) in enumerate(zip(buffers, shapes, strict=True))
        ]
        in_dict, in_slots = attributes if isinstance(attributes, tuple) else (attributes, {})
        if self.model is None:  # or _bind refuses
            if in_dict:
                self.__dict__.update(in_dict)
            for name, value in in_slots.items():
                setattr(self, name, value)
        self._bind(model, layers, numbers, steps, copies)

    def __repr__(self) -> str:
        if self.model is None:
            return f"{type(self).__name__}() without a model: its __init__ was not called"
        settings = ", ".join(f"{name}={value}" for name, value in self._settings.items())
        return f"{type(self).__name__}({self.model!r}, {settings})"


class SGD(_PyTorchForm, SGDBase):
    """Stochastic gradient descent with momentum (the usual one or Nesterov's) and weight decay: ``torch.optim.SGD``.

    ``step()`` changes every parameter of the model by its gradient. ``zero_grad()`` sets the gradients to zero, before
    the next ones are accumulated. ``lr`` can be set at any time. Without options a step does what ``layer.step(lr)``
    does, to the bit.

    >>> layer = Linear.from_weights([[1, 2]])
    >>> opt = SGD(layer, lr=0.5, momentum=0.5)
    >>> layer.backward_params([1, -1], [1])
    >>> opt.step(); layer.weight
    array([[0.5, 2.5]], dtype=float32)
    >>> opt.lr = 1
    >>> opt.step(); layer.weight
    array([[-1.,  4.]], dtype=float32)

    Parameters
    ----------
    model : Linear or Sequential
        Or anything with ``layers``, a list or tuple of Linears; anything else is a TypeError. A layer that is in it
        twice counts once. The optimiser keeps the layers that the model has now.
    lr : float
        The learning rate. This and the other numbers must be finite in the layers' dtype and not negative, or a
        ValueError says so.
    momentum, nesterov, weight_decay : float, bool, float
        See ``step``. nesterov must be True or False, and needs a momentum.

    Attributes
    ----------
    model
        As given; read-only.
    momentum, nesterov, weight_decay
        As given, or as ``load_state_dict`` found them; read-only.
    steps : int
        How many steps were taken; read-only.
    """

    __slots__ = ()

    _BUFFERS = ("momentum_buffer",)
    _STEP = False
    _FIXED: ClassVar[Settings] = {"dampening": 0, "maximize": False}

    def __init__(
        self, model: Model, lr: float = 1e-3, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        self._begin(model, settings)

    @property
    def _settings(self) -> Settings:
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
        }

    def _checked(self, settings: Settings, shapes: Shapes) -> Settings:
        lr, momentum, weight_decay = (
            self._number(name, settings[name], shapes) for name in ("lr", "momentum", "weight_decay")
        )
        nesterov = settings["nesterov"]
        if not isinstance(nesterov, (bool, np.bool_)):
            keyword = f"; weight_decay comes after it, weight_decay={nesterov}" if type(nesterov) is float else ""
            raise TypeError(f"{self._named('nesterov')} must be True or False, got {_shown(nesterov)}{keyword}")
        if nesterov and not momentum:
            raise ValueError(f"{type(self).__name__}: nesterov needs a momentum, got 0")
        return {"lr": lr, "momentum": momentum, "nesterov": bool(nesterov), "weight_decay": weight_decay}

    def _numbers(self, settings: Settings) -> Settings:
        return settings

    def _keeps_state(self) -> bool:
        return self.momentum != 0


class Adam(_PyTorchForm, AdamBase):
    """Adam, adaptive moments: ``torch.optim.Adam`` without amsgrad.

    ``step()`` changes every parameter of the model by its gradient. ``zero_grad()`` sets the gradients to zero, before
    the next ones are accumulated. ``lr`` can be set at any time.

    >>> layer = Linear.from_weights([[1, 2]])
    >>> opt = Adam(layer, lr=0.5)
    >>> layer.backward_params([1, -1], [2])
    >>> opt.step(); layer.weight.round(4)
    array([[0.5, 2.5]], dtype=float32)

    Parameters
    ----------
    model : Linear or Sequential
        Or anything with ``layers``, a list or tuple of Linears; anything else is a TypeError. A layer that is in it
        twice counts once. The optimiser keeps the layers that the model has now.
    lr : float
        The learning rate. This and the other numbers must be finite in the layers' dtype and not negative, or a
        ValueError says so.
    betas : (float, float)
        The parts of the running means of the gradient and of its square that a step keeps: at least 0 and below 1.
    eps, weight_decay : float
        See ``step``.

    Attributes
    ----------
    model
        As given; read-only.
    beta1, beta2, eps, weight_decay : float
        As given, or as ``load_state_dict`` found them; read-only.
    decoupled : bool
        Whether the weight decay is AdamW's; read-only.
    steps : int
        How many steps were taken; read-only.
    """

    __slots__ = ()

    _BUFFERS = ("exp_avg", "exp_avg_sq")
    _STEP = True
    _FIXED: ClassVar[Settings] = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False}

    def __init__(
        self,
        model: Model,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self._begin(model, settings)

    @property
    def _settings(self) -> Settings:
        return {
            "lr": self.lr,
            "betas": (self.beta1, self.beta2),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def _checked(self, settings: Settings, shapes: Shapes) -> Settings:
        lr, eps, weight_decay = (self._number(name, settings[name], shapes) for name in ("lr", "eps", "weight_decay"))
        try:
            first, second = settings["betas"]
        except (TypeError, ValueError):
            raise TypeError(f"{self._named('betas')} must be two numbers, got {_shown(settings['betas'])}") from None
        betas = self._not_negative("betas[0]", first), self._not_negative("betas[1]", second)
        for k, beta in enumerate(betas):
            if not beta < 1:
                raise ValueError(f"{self._named(f'betas[{k}]')} must be below 1, got {beta}")
        return {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}

    def _numbers(self, settings: Settings) -> Settings:
        beta1, beta2 = settings["betas"]
        rest = {name: number for name, number in settings.items() if name != "betas"}
        return {**rest, "beta1": beta1, "beta2": beta2, "decoupled": self._FIXED["decoupled_weight_decay"]}


class AdamW(Adam):
    """Adam with decoupled weight decay: ``torch.optim.AdamW`` without amsgrad.

    Parameters (model, lr, betas, eps, weight_decay), attributes and errors are those of Adam. Only weight_decay, whose
    default is 0.01, acts in another way: each step first multiplies the parameters by 1 - lr · weight_decay.

    >>> layer = Linear.from_weights([[2, 3]])
    >>> opt = AdamW(layer, lr=0.5, weight_decay=1)
    >>> layer.backward_params([1, -1], [2])
    >>> opt.step(); layer.weight.round(4)
    array([[0.5, 2. ]], dtype=float32)
    """

    __slots__ = ()

    _FIXED: ClassVar[Settings] = {**Adam._FIXED, "decoupled_weight_decay": True}

    def __init__(
        self,
        model: Model,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(model, lr, betas, eps, weight_decay)
