"""The fully-connected layer, as a user meets it: making a layer, taking arguments of any kind, moving state.

The way from a call to a kernel and the layer's memory are in ``_layer.pyx``, the arithmetic is in ``_kernels.pyx``. The
compiled base calls the methods with a leading underscore for arguments that are not plain ndarrays and floats.
"""

from __future__ import annotations

import copyreg
import operator
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastlinear import _files
from fastlinear._layer import zeros
from fastlinear._learn import Learner

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    from types import ModuleType

    import torch
    from numpy.typing import ArrayLike, DTypeLike, NDArray
    from typing_extensions import Self

    Array = NDArray[Any]

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _layer_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        wanted = None if dtype is None else np.dtype(dtype)  # NumPy takes None as float64
    except MemoryError:
        raise
    except Exception:  # and PyTorch's not at all, and runs code of some objects
        wanted = None
    if wanted is None or wanted not in _DTYPES:  # None would be equal to float64
        got = _advice().came(dtype) if wanted is None else wanted
        raise TypeError(f"Linear: dtype must be float32 or float64, got {got}{_advice().for_dtype(dtype)}")
    return wanted


def _size(name: str, value: Any) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(
            f"Linear: {name} must be an integer, got {type(value).__name__} {_shown(value)}{_advice().for_size(value)}"
        ) from None
    if size < 0:
        raise ValueError(f"Linear: {name} must not be negative, got {_shown(size)}")
    if size > sys.maxsize:
        raise ValueError(f"Linear: {name} must be at most {sys.maxsize}, got {_shown(size)}")
    return size


def _has_bias(bias: Any) -> bool:
    """What True and False say. Any other object could be true or false by accident, or by what it runs."""
    if type(bias) is bool or type(bias) is np.bool_:
        return bool(bias)
    raise TypeError(f"Linear: bias must be True or False, got {_advice().came(bias)}{_advice().for_bias(bias)}")


class Arguments:
    """The methods that a compiled Model calls for arguments that are not plain ndarrays and floats."""

    __slots__ = ()

    _name: str
    dtype: np.dtype[Any]

    def _as_array(self, name: str, value: Any) -> Array:
        """value as an ndarray. Python's own numbers have no dtype, and so get the model's."""
        name = f"{self._name}: {name}"
        array = np.asarray(_array(name, value))
        if isinstance(value, (list, tuple, int, float)) and array.dtype.kind in "biuf":
            return _rounded(name, array, self.dtype)
        if array.dtype is not self.dtype:
            _check_cast(name, array.dtype, self.dtype, "the model's", value)
        return array

    def _check_mask(self, name: str, value: Any) -> None:
        _check_mask(f"{self._name}: {name}", value)

    def _number(self, name: str, value: Any) -> float:
        """value as a float, for which it is asked once. NumPy would only warn when it drops an imaginary part."""
        kind = type(value)  # unlike __class__ it cannot be made up
        if issubclass(kind, np.generic) and value.dtype.kind == "c":
            raise TypeError(f"{self._name}: {name} must be a real number, got {kind.__name__}")
        self._check_mask(name, value)
        if issubclass(kind, np.ndarray) and (value.ndim or value.dtype.kind == "c"):
            raise TypeError(f"{self._name}: {name} must be a real number, got {_advice().came(value)}")
        try:
            return float(operator.index(value) if isinstance(value, int) else value.__float__())
        except (TypeError, AttributeError):
            raise TypeError(f"{self._name}: {name} must be a real number, got {_advice().came(value)}") from None
        except OverflowError:
            raise ValueError(f"{self._name}: {name} must fit {self.dtype}, got an integer beyond it") from None


class Linear(Arguments, Learner):
    """A fully-connected layer, y = x Wᵀ + b, with its gradients.

    It is ``nn.Linear`` of Torch7 and PyTorch on a CPU, for plain ndarrays and without autograd. ``forward`` and every
    ``backward`` take vectors (in_features,), matrices (batch, in_features) and arrays with more leading axes.

    >>> layer = Linear.from_weights([[1, 2, 3], [4, 5, 6]], [10, 20])
    >>> layer
    Linear(in_features=3, out_features=2, bias=True, dtype=float32)
    >>> layer([1, 0, 1])
    array([14., 30.], dtype=float32)

    Backward is stateless: it uses its arguments and the parameters only, so one layer can serve many threads and
    many time steps. Arrays that are C-contiguous, aligned and of the layer's dtype are used as they are. Strided,
    Fortran-ordered, byte-swapped or misaligned ones, lists, and arrays of another library (``__dlpack__``,
    ``__array__``) are converted. A dtype that does not cast safely is a TypeError, and a wrong shape is a ValueError;
    both come before anything is written. An ``out`` can overlap any input.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of x and of y; 0 is allowed.
    bias : bool
        Whether there is a b: True or False, and nothing else.
    dtype : float32 or float64
        Of the parameters, the inputs and the outputs. This and rng come by keyword.
    rng : None, int or numpy.random.Generator
        Seed or source of the initial parameters: uniform in ±1/sqrt(in_features), as in Torch7 and PyTorch.

    Attributes
    ----------
    in_features, out_features : int
        As given; read-only.
    dtype : numpy.dtype
        float32 or float64; read-only.
    """

    __slots__ = ()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *by_position: NoReturn,  # which an error answers that names the keywords
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        shape = _size("out_features", out_features), _size("in_features", in_features)
        with_bias = _has_bias(bias)
        if by_position:
            example = f"Linear({shape[1]}, {shape[0]}, {with_bias}, dtype=np.float32, rng=0)"
            raise TypeError(f"Linear: dtype and rng come by keyword, as in {example}")
        kind = _layer_dtype(dtype)
        self._bind(zeros(shape, kind), zeros(shape[:1], kind) if with_bias else None)
        self.reset(rng)

    @classmethod
    def from_weights(cls, weight: ArrayLike, bias: ArrayLike | None = None, copy: bool = True) -> Self:
        """A layer with these parameters: weight (out_features, in_features), bias (out_features,) or None.

        The layer has the dtype of weight, float32 or float64; another one is a TypeError, and a wrong shape is a
        ValueError. With ``copy=False`` the layer shares the memory of both arrays. They must then be C-contiguous,
        aligned, writable ndarrays of that dtype, and what cannot be shared is a ValueError. An array that owns its
        memory hands it over, so that nobody can free it while the layer reads it: from then on the array is a view
        (``flags.owndata`` is False), and its ``resize`` refuses.

        >>> weight = np.zeros((2, 3))
        >>> layer = Linear.from_weights(weight, copy=False)
        >>> weight[0] = 1
        >>> layer([1, 2, 3])
        array([6., 0.])
        """
        w = np.asarray(_array("from_weights: weight", weight))
        if not isinstance(weight, np.ndarray) and w.dtype.kind in "biu":
            w = w.astype(np.float32)
        dtype = w.dtype.newbyteorder("=")
        if dtype not in _DTYPES:
            raise TypeError(
                f"from_weights: weight must be float32 or float64, got {w.dtype}{_advice().for_weights(w.dtype)}"
            )
        if w.ndim != 2:
            raise ValueError(f"from_weights: weight must have shape (out_features, in_features), got {w.shape}")
        b = None
        if type(bias) is bool:
            raise TypeError(f"from_weights: bias must be an array of shape {w.shape[:1]}, or None, got {bias}")
        if bias is not None:
            b = np.asarray(_array("from_weights: bias", bias))
            if not isinstance(bias, (np.ndarray, np.generic)) and b.dtype.kind in "biuf":
                b = _rounded("from_weights: bias", b, dtype)
            _check_cast("from_weights: bias", b.dtype, dtype)
            if b.shape != w.shape[:1]:
                turned = "; weight is (out_features, in_features), and weight.T would fit"
                raise ValueError(
                    f"from_weights: bias must have shape {w.shape[:1]} to match weight, got {b.shape}"
                    + (turned if b.shape == w.shape[1:] else "")
                )
        if copy:
            w = _filled(w, dtype)
            b = None if b is None else _filled(b, dtype)
        else:
            for name, given, array in (("weight", weight, w), ("bias", bias, b)):
                if array is not None and not (
                    isinstance(given, np.ndarray) and array.dtype == dtype and array.flags.carray
                ):
                    raise ValueError(
                        f"from_weights: copy=False needs {name} as a C-contiguous, aligned, writable ndarray of "
                        f"{dtype}, got {_describe(given, array)}; use copy=True"
                    )
            if b is not None and np.may_share_memory(w, b):
                raise ValueError("from_weights: copy=False needs weight and bias not to overlap; use copy=True")
        layer = cls.__new__(cls)
        layer._bind(w, b)
        return layer

    @classmethod
    def from_torch(cls, module: torch.nn.Linear, copy: bool = True) -> Self:
        """A layer with the parameters of a ``torch.nn.Linear``, which are float32 or float64 and on the CPU.

        With ``copy=False`` both have the same memory, so what one learns the other knows. A module on another device
        is a ValueError, and so is one that is not contiguous with ``copy=False``. Another dtype, or what is no
        ``torch.nn.Linear``, is a TypeError. Needs the extra ``torch``.

        >>> from torch import nn
        >>> Linear.from_torch(nn.Linear(3, 2))
        Linear(in_features=3, out_features=2, bias=True, dtype=float32)
        """
        from fastlinear.torch import parameters_of

        return cls.from_weights(*parameters_of(module), copy=copy)

    def to_torch(self, copy: bool = True) -> torch.nn.Linear:
        """A ``torch.nn.Linear`` with the layer's parameters.

        With ``copy=False`` it is on the same memory, and read-only parameters are then a ValueError. Needs the extra
        ``torch``. For a module that also computes with fastlinear, see ``fastlinear.torch.Linear``.

        >>> import torch
        >>> Linear(3, 2).to_torch()
        Linear(in_features=3, out_features=2, bias=True)
        """
        weight, bias, _, _ = self._memory()
        from fastlinear.torch import module_of

        if not copy:
            for name, parameter in (("weight", weight), ("bias", bias)):
                self._check_frozen(f"to_torch: copy=False: {name}", parameter)
        else:
            weight, bias = weight.copy(), None if bias is None else bias.copy()
        return module_of(weight, bias)

    # ---- the parameters

    def reset(self, rng: int | np.random.Generator | None = None, stdv: float | None = None) -> None:
        """Draw new parameters, uniform in ±1/sqrt(in_features), or in ±stdv·sqrt(3) (Torch7: reset).

        rng: seed or Generator, or None for new random numbers in each call. stdv: the standard deviation of the new
        parameters, finite and not negative, or a ValueError says so. weight and bias are overwritten; the gradients
        stay as they are. Returns None.

        >>> layer = Linear(100, 50, rng=0)
        >>> layer.reset(rng=1, stdv=0.5)
        >>> bool(0.85 < abs(layer.weight).max() <= 0.5 * 3**0.5)
        True
        """
        weight, bias, _, _ = self._memory()
        if stdv is None:
            bound = self.in_features**-0.5 if self.in_features else 0.0
        else:
            bound = self._number("stdv", stdv) * 3**0.5
            if not 0 <= 2 * bound <= float(np.finfo(self.dtype).max):
                raise ValueError(f"{self._name}: stdv must be finite and not negative, got {_shown(stdv)}")
        try:
            generator = np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{self._name}: rng must be a seed (an integer that is not negative), a numpy.random.Generator or "
                f"None, got {_advice().came(rng)}"
            ) from error
        values = [None if p is None else generator.random(p.shape, self.dtype) for p in (weight, bias)]
        for value in values:
            if value is not None:
                value *= 2 * bound
                value -= bound
        self._store(*values)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under PyTorch's names: ``weight`` and, if there is one, ``bias``.

        >>> {name: array.shape for name, array in Linear(3, 2).state_dict().items()}
        {'weight': (2, 3), 'bias': (2,)}
        """
        weight, bias, _, _ = self._memory()
        return {"weight": weight.copy()} | ({} if bias is None else {"bias": bias.copy()})

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Copy the parameters of a state in, which overwrites weight and bias. Returns None.

        The keys of state must be those of state_dict(). A key that is missing or surplus and an array of a wrong shape
        are a ValueError, a dtype that does not cast safely is a TypeError, and then nothing has changed.

        >>> layer, other = Linear(3, 2, rng=0), Linear(3, 2, rng=1)
        >>> other.load_state_dict(layer.state_dict())
        >>> np.array_equal(layer.weight, other.weight)
        True
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"{self._name}: the state must be a mapping, got {type(state).__name__}{_advice().for_state(state)}"
            )
        names = ["weight"] if self.bias is None else ["bias", "weight"]
        if set(state) != set(names):
            raise ValueError(
                f"{self._name}: the state must have the keys {names}, got {_advice().listed(state)}"
                f"{_advice().for_keys(names, state)}"
            )
        weight = self._values("weight", state["weight"])
        self._store(weight, self._values("bias", state["bias"]) if "bias" in names else None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters, as state_dict() has them, to a file.

        path ends in ``.npz`` (NumPy's format) or ``.safetensors``; another ending is a ValueError. PyTorch's
        ``load_state_dict`` takes what the package safetensors reads from the latter. If anything goes wrong, the file
        is as it was before. A file that is there is replaced and keeps its mode. A read-only file is a PermissionError,
        a FIFO or a device is a ValueError.

        >>> layer = Linear(3, 2)
        >>> layer.save("layer.npz")
        >>> np.array_equal(Linear.load("layer.npz").weight, layer.weight)
        True
        """
        _files.save(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], prefix: str = "") -> Self:
        """A layer with the parameters of a file: ``weight`` and, if it is there, ``bias``.

        path ends in ``.npz`` or ``.safetensors``. With a prefix, for example ``"0."``, it is one layer of a larger
        file: ``0.weight`` and, if it is there, ``0.bias``. The rest of the file is not read then.

        The layer has the dtype of the arrays, float32 or float64. Nothing in a file is ever run. A file that is damaged
        or has other names or shapes, and what is no regular file, is a ValueError; another dtype is a TypeError. The
        error names the file and says what is wrong.

        >>> Linear(3, 2).save("layer.safetensors")
        >>> Linear.load("layer.safetensors")
        Linear(in_features=3, out_features=2, bias=True, dtype=float32)
        """
        if not isinstance(prefix, str):
            raise TypeError(f"{cls.__name__}.load: prefix must be a str, got {type(prefix).__name__}")
        path = _files.as_text(path)
        weight, bias = f"{prefix}weight", f"{prefix}bias"
        state = _files.load(path, [weight], [bias], others=bool(prefix))
        with _files.naming(path):
            return cls.from_weights(state[weight], state.get(bias))

    def astype(self, dtype: DTypeLike) -> Self:
        """A copy of the layer in another dtype, gradients included.

        dtype: float32 or float64; another one is a TypeError.

        >>> Linear(3, 2).astype(np.float64)
        Linear(in_features=3, out_features=2, bias=True, dtype=float64)
        """
        kind = _layer_dtype(dtype)
        layer = type(self).__new__(type(self))
        layer._bind(*(None if p is None else _filled(p, kind) for p in self._memory()))
        return layer

    def __repr__(self) -> str:
        if self.dtype is None:
            return f"{type(self).__name__}() without parameters: its __init__ was not called"
        return (
            f"{type(self).__name__}(in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, dtype={self.dtype})"
        )

    # copy.copy shares the parameters, as a shallow copy of any object shares its members; copy.deepcopy and pickle
    # have their own. The gradients come along, and what a subclass keeps in its __dict__ and __slots__.

    def __reduce__(self) -> tuple[Any, ...]:
        attributes: Any = getattr(self, "__dict__", None)
        names = copyreg._slotnames(type(self))  # type: ignore[attr-defined]  # what pickle itself asks
        if slots := {name: getattr(self, name) for name in names if hasattr(self, name)}:
            attributes = attributes, slots
        return type(self).__new__, (type(self),), (self._memory(), attributes)

    def __setstate__(self, state: tuple[tuple[Array | None, ...], Any]) -> None:
        """Take a state of __reduce__. The memory comes last, so that a layer whose state does not fit has none."""
        memory, attributes = state
        arrays = _checked(memory)
        in_dict, in_slots = attributes if isinstance(attributes, tuple) else (attributes, {})
        if self.dtype is None:  # or _bind refuses
            if in_dict:
                self.__dict__.update(in_dict)
            for name, value in in_slots.items():
                setattr(self, name, value)
        self._bind(*arrays)

    def _check_frozen(self, name: str, memory: Array | None) -> None:
        if memory is not None and not memory.flags.writeable:
            raise ValueError(f"{self._name}: {name} was made read-only (flags.writeable = False), so it cannot change")


def _advice() -> ModuleType:
    """The module that has what an error adds, imported when there is one."""
    from fastlinear import _advice

    return _advice


def _shown(value: Any) -> str:
    """What came, for an error."""
    shown: str = _advice().shown(value)
    return shown


def _check_mask(name: str, value: Any) -> None:
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; fill it with filled(value)")


def _array(name: str, value: Any) -> Array:
    """value as an ndarray: without a copy where its library allows that."""
    if isinstance(value, np.ndarray):
        _check_mask(name, value)
        return value
    kind = type(value)
    if issubclass(kind, (str, bytes)):  # NumPy would ask a subclass for its text
        raise TypeError(f"{name} must be an array of numbers, got {_advice().came(value)}")
    try:
        if hasattr(value, "__dlpack__"):
            try:
                return np.from_dlpack(value)
            except (BufferError, RuntimeError, TypeError, AttributeError):
                if not hasattr(value, "__array__"):
                    raise
        array = np.asarray(value)
    except (BufferError, RuntimeError, TypeError) as error:
        hint = _advice().for_unreadable(name, value)
        raise TypeError(f"{name} cannot be read as an array: {type(value).__name__}: {error}{hint}") from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}{_advice().for_sequence(value)}") from error
    if (
        array.dtype.kind in "OSU"
        and (array.ndim == 0 or not (isinstance(value, (list, tuple)) or hasattr(value, "__array__")))
        and not isinstance(value, int)  # which can be too large for NumPy
    ):
        raise TypeError(f"{name} must be an array of numbers, got {_advice().came(value)}{_advice().for_array(value)}")
    return array


def _checked(memory: Iterable[Any]) -> list[Array | None]:
    """The arrays that a pickle has for a layer's memory, or an error: the kernels trust their shapes and dtypes."""
    weight, bias, grad_weight, _ = arrays = [a if a is None else np.asarray(a) for a in memory]
    if weight is None or weight.ndim != 2 or weight.dtype.newbyteorder("=") not in _DTYPES:
        raise ValueError(
            f"Linear: weight must be a matrix of float32 or float64 in the state, got {_describe(weight, weight)}"
        )
    dtype, vector = weight.dtype.newbyteorder("="), weight.shape[:1]
    shapes = {"weight": weight.shape, "bias": None if bias is None else vector, "grad_weight": None, "grad_bias": None}
    if grad_weight is not None:
        shapes |= {"grad_weight": weight.shape, "grad_bias": shapes["bias"]}
    for (name, shape), array in zip(shapes.items(), arrays, strict=True):
        came = None if array is None else array.shape
        if came != shape or (array is not None and array.dtype.newbyteorder("=") != dtype):
            raise ValueError(f"Linear: {name} must have shape {shape} and dtype {dtype} in the state, got {came}")
    return [a if a is None or (a.flags.carray and a.dtype.isnative) else _filled(a, dtype) for a in arrays]


def _rounded(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    """Python's numbers in that dtype, if they are in its range."""
    with np.errstate(all="ignore"):
        array = values.astype(dtype)
    if (beyond := np.isinf(array) & ~np.isinf(values)).any():
        raise ValueError(f"{name} must fit {dtype}, got {values[beyond][0]}")
    return array


def _check_cast(
    name: str, came: np.dtype[Any], wanted: np.dtype[Any], owner: str = "the layer's", value: Any = None
) -> None:
    """Raise unless an array's dtype casts safely to that of the owner: a layer, a net or another argument. value is
    what the array was made from, or None."""
    if not np.can_cast(came, wanted, "safe"):
        raise TypeError(
            f"{name} has dtype {came}, which does not cast safely to {owner} {wanted}"
            f"{_advice().for_cast(name, value, came, wanted, owner)}"
        )


def _filled(values: Array, dtype: np.dtype[Any]) -> Array:
    """An aligned copy."""
    array = zeros(values.shape, dtype)
    array[...] = values
    return array


def _describe(given: Any, array: Array | None) -> str:
    if array is None or not isinstance(given, np.ndarray):
        return type(given).__name__
    flags = [name for name in ("c_contiguous", "aligned", "writeable") if not getattr(array.flags, name)]
    return f"{array.dtype} " + (f"({', '.join('not ' + f for f in flags)})" if flags else "array")
