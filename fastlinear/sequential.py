"""A small net, as a user meets it: layers with activations after them, in one call. The calls are in _network.pyx."""

from __future__ import annotations

import copyreg
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastlinear import _files
from fastlinear._network import Network
from fastlinear.linear import Arguments, Linear, _advice, _layer_dtype

if TYPE_CHECKING:  # numpy.typing would add half to the time of the import
    import torch
    from numpy.typing import ArrayLike, DTypeLike, NDArray
    from typing_extensions import Self

    Array = NDArray[Any]


_LINEAR = "linear"  # what a file calls a layer among the parts


class Sequential(Arguments, Network):
    """Linears one after another, each with an activation after it or none: a whole net in one call.

    The parts are Linears and the names of activations: relu, leaky_relu, elu, sigmoid, tanh, silu, gelu and, as the
    last part, softmax. Sizes must meet and dtypes agree, or a ValueError says where; what is neither a Linear nor a
    name is a TypeError. The net has the layers themselves and not copies: what changes them changes the net. Its list
    of parts never changes.

    >>> net = Sequential(Linear(8, 64, rng=0), "tanh", Linear(64, 2, rng=1))
    >>> net
    Sequential(
      (0): Linear(in_features=8, out_features=64, bias=True, dtype=float32)
      (1): tanh
      (2): Linear(in_features=64, out_features=2, bias=True, dtype=float32)
    )
    >>> net(np.zeros((5, 8), np.float32)).shape
    (5, 2)

    What a net computes is, to the bit, what its parts compute one after another. To train it, ``record`` a forward and
    give its tape to ``backward``:

    >>> x, target = np.ones((5, 8), np.float32), np.zeros((5, 2), np.float32)
    >>> for _ in range(100):
    ...     tape = net.record(x)
    ...     net.zero_grad()
    ...     grad_input = net.backward(tape, tape.output - target)
    ...     net.step(lr=0.01)
    >>> bool(abs(net(x)).max() < 1e-3)
    True

    Any number of threads can call a net at once. It takes the arguments that Linear takes, and converts them likewise.

    Attributes
    ----------
    layers : tuple of Linear
    parts : tuple of Linear and str
        ``net[k]`` is ``net.parts[k]``, and ``len(net)`` is their number.
    in_features, out_features : int
        Sizes of the last axis of x and of y; read-only.
    dtype : numpy.dtype
        float32 or float64, that of every layer; read-only.
    """

    __slots__ = ()

    def __init__(self, *parts: Linear | str) -> None:
        self._bind(parts)

    # ---- the parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, place: int) -> Linear | str:
        return self.parts[place]

    def __iter__(self) -> Iterator[Linear | str]:
        return iter(self.parts)

    def __repr__(self) -> str:
        if self.dtype is None:
            return f"{type(self).__name__}() without parts: its __init__ was not called"
        parts = "".join(f"  ({place}): {part}\n" for place, part in enumerate(self.parts))
        return f"{type(self).__name__}(\n{parts})"

    def _named_layers(self) -> list[tuple[str, Linear]]:
        """The layers, each with the prefix that PyTorch's nn.Sequential gives to the names of its parameters."""
        return [(f"{place}.", part) for place, part in enumerate(self.parts) if not isinstance(part, str)]

    # ---- moving state

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under the names of PyTorch's ``nn.Sequential``.

        >>> {name: array.shape for name, array in Sequential(Linear(3, 2), "relu", Linear(2, 1)).state_dict().items()}
        {'0.weight': (2, 3), '0.bias': (2,), '2.weight': (1, 2), '2.bias': (1,)}
        """
        return {prefix + name: a for prefix, layer in self._named_layers() for name, a in layer.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Copy the parameters of a state in, which overwrites those of every layer. Returns None.

        The keys of state must be those of state_dict(). A key that is missing or surplus and an array of a wrong shape
        are a ValueError, a dtype that does not cast safely is a TypeError, and then no layer has changed.

        >>> net, other = (Sequential(Linear(3, 2, rng=seed), "relu") for seed in (0, 1))
        >>> other.load_state_dict(net.state_dict())
        >>> np.array_equal(net([1, 2, 3]), other([1, 2, 3]))
        True
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"{self._name}: the state must be a mapping, got {type(state).__name__}{_advice().for_state(state)}"
            )
        wanted = self.state_dict()
        if set(state) != set(wanted):
            raise ValueError(
                f"{self._name}: the state must have the keys {list(wanted)}, got {_advice().listed(state)}"
                f"{_advice().for_keys(wanted, state)}"
            )
        values: list[tuple[Array, Array | None]] = []
        for prefix, layer in self._named_layers():
            with self._naming(prefix):
                weight = layer._values("weight", state[f"{prefix}weight"])
                bias = None if layer.bias is None else layer._values("bias", state[f"{prefix}bias"])
            values.append((weight, bias))
        self._store(values)

    @contextmanager
    def _naming(self, prefix: str) -> Iterator[None]:
        """An error about a layer's values also says the layer's place in the net."""
        try:
            yield
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self._name}: part {prefix[:-1]}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the net to a file: its parameters, as state_dict() has them, and what its parts are.

        ``load`` needs nothing else. path ends in ``.npz`` (NumPy's format) or ``.safetensors``; another ending is a
        ValueError. PyTorch's ``nn.Sequential`` takes the arrays of the latter. If anything goes wrong, the file is as
        it was before; see Linear.save.

        >>> Sequential(Linear(3, 2), "relu").save("net.npz")
        """
        parts = [part if isinstance(part, str) else _LINEAR for part in self.parts]
        _files.save(self.state_dict(), path, note=json.dumps(parts))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """A net from a file that ``save`` has written. Nothing in a file is ever run.

        path is that of the file. A ValueError or TypeError names the file and says what is wrong: it is damaged, its
        arrays do not match its parts, or it does not say what its parts are (because it is a Linear's, or another
        program's).

        >>> Sequential(Linear(3, 2), "relu").save("net.npz")
        >>> Sequential.load("net.npz").parts[1]
        'relu'
        """
        path = _files.as_text(path)
        parts: list[str] = []

        def names(note: str | None) -> tuple[list[str], list[str]]:
            parts[:] = _noted_parts(note)
            places = [place for place, part in enumerate(parts) if part == _LINEAR]
            return [f"{place}.weight" for place in places], [f"{place}.bias" for place in places]

        def part_of(place: int) -> Linear | str:
            if parts[place] != _LINEAR:
                return parts[place]
            return Linear.from_weights(state[f"{place}.weight"], state.get(f"{place}.bias"))

        state = _files.load(path, names)
        with _files.naming(path):
            return cls(*map(part_of, range(len(parts))))

    @classmethod
    def from_torch(cls, module: torch.nn.Module, copy: bool = True) -> Self:
        """A net with the parameters of a ``torch.nn.Sequential``.

        Its modules are nn.Linear and nn.ReLU, LeakyReLU, ELU, Sigmoid, Tanh, SiLU, GELU and Softmax with PyTorch's
        default constants. A Sequential inside of it becomes part of the one net. Identity and, in evaluation mode,
        Dropout compute nothing and are left out. Any other module is a ValueError that names it. With ``copy=False``
        both have the same memory, as for Linear.from_torch. Needs the extra ``torch``.

        >>> from torch import nn
        >>> len(Sequential.from_torch(nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
        2
        """
        from fastlinear.torch import parts_of

        parts = parts_of(module)
        return cls(*(part if isinstance(part, str) else Linear.from_torch(part, copy=copy) for part in parts))

    def to_torch(self, copy: bool = True) -> torch.nn.Sequential:
        """A ``torch.nn.Sequential`` of the same parts.

        With ``copy=False`` it is on the same memory, and read-only parameters are then a ValueError. Needs the extra
        ``torch``.

        >>> import torch
        >>> len(Sequential(Linear(3, 2), "relu").to_torch())
        2
        """
        from fastlinear.torch import sequential_of

        return sequential_of([part if isinstance(part, str) else part.to_torch(copy=copy) for part in self.parts])

    def astype(self, dtype: DTypeLike) -> Self:
        """A copy of the net in another dtype, gradients included.

        dtype: float32 or float64; another one is a TypeError.

        >>> Sequential(Linear(3, 2), "relu").astype(np.float64).dtype
        dtype('float64')
        """
        kind = _layer_dtype(dtype)
        net = type(self).__new__(type(self))
        net._bind(tuple(part if isinstance(part, str) else part.astype(kind) for part in self.parts))
        return net

    # copy.copy is another net of the same layers; copy.deepcopy and pickle have layers of their own. What a subclass
    # keeps in its __dict__ and __slots__ comes along.

    def __reduce__(self) -> tuple[Any, ...]:
        attributes: Any = getattr(self, "__dict__", None)
        names = copyreg._slotnames(type(self))  # type: ignore[attr-defined]  # what pickle itself asks
        if slots := {name: getattr(self, name) for name in names if hasattr(self, name)}:
            attributes = attributes, slots
        return type(self).__new__, (type(self),), (self.parts, attributes)

    def __setstate__(self, state: tuple[tuple[Linear | str, ...], Any]) -> None:
        """Take a state of __reduce__. The parts come last, so that a net whose state does not fit has none."""
        parts, attributes = state
        in_dict, in_slots = attributes if isinstance(attributes, tuple) else (attributes, {})
        if self.dtype is None:  # or _bind refuses
            if in_dict:
                self.__dict__.update(in_dict)
            for name, value in in_slots.items():
                setattr(self, name, value)
        self._bind(tuple(parts))


def _noted_parts(note: str | None) -> list[str]:
    """The names of the parts in a file's note. Sequential itself says whether they make a net."""
    if note is None:
        raise ValueError("it does not say what its parts are; make the net and use load_state_dict()")
    try:
        parts = json.loads(note)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it says in no known way what its parts are: {note[:80]!r}") from error
    if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        raise ValueError(f"its parts must be a list of names, got {note[:80]!r}")
    return parts
