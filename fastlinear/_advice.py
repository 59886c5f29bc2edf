"""What an error adds where it is plain what was meant. Imported when there is an error, and not before.

Each function returns the end of a message, from its semicolon on, or "" where it is not plain what was meant. What came
may be anything, so an error must not fail for its own words: came() and shown() ask no more of an object than they can
do without, and a hint that cannot be given is none.
"""

from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlinear.reference import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import ParamSpec

    Given = ParamSpec("Given")

_SHOWN = (str, bytes, int, float, complex, bool)  # whose repr is Python's own
_MODELS = ("the model's", "the layer's")
_KINDS = {"O": "Python objects", "U": "text", "S": "text", "M": "dates", "m": "spans of time"}
_ALSO_CALLED = {"swish": "silu", "logistic": "sigmoid", "expit": "sigmoid"}
_LOSSES = {
    "mse": "squared_error",
    "mseloss": "squared_error",
    "l2": "squared_error",
    "log": "log_loss",
    "logistic": "log_loss",
    "crossentropy": "log_loss",
    "crossentropyloss": "log_loss",
    "huberloss": "huber",
}


def _hint(function: Callable[Given, str]) -> Callable[Given, str]:
    """The function, with "" for whatever an object raises when it is looked at."""

    @functools.wraps(function)
    def hint(*args: Given.args, **kwargs: Given.kwargs) -> str:
        try:
            return function(*args, **kwargs)
        except Exception:
            return ""

    return hint


def shown(value: Any) -> str:
    """repr(value) in at most 80 characters; the name of its type if it has no repr, as a number of too many digits."""
    try:
        text = repr(value)
    except Exception:
        return _name_of_type(type(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(keys: Iterable[Any]) -> str:
    """The keys of a state, sorted, at most eight."""
    names = sorted(key if type(key) is str else shown(key) for key in keys)
    few = [name if len(name) <= 80 else f"{name[:77]}..." for name in names[:8]]
    return f"{few}" + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")


def _name_of_type(kind: type) -> str:
    """Its own, whatever its metaclass says."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return name


def came(value: Any) -> str:
    """What came, for an error: its type, and what it is where that is short."""
    kind = type(value)
    if value is None:
        return "None"
    if kind in _SHOWN:
        try:
            return f"{kind.__name__} {value!r:.60}"
        except ValueError:  # an integer with more digits than Python prints
            return kind.__name__
    if _is_torch_dtype(kind):
        return str(value)
    if issubclass(kind, type):
        return f"the class {_name_of_type(value)}"
    if kind is np.ndarray:
        return f"ndarray of {value.dtype} and shape {value.shape}"
    return _name_of_type(kind)


def _is_torch_dtype(kind: type) -> bool:
    return kind.__module__ == "torch" and kind.__name__ == "dtype"


def _variable(name: str) -> str:
    """What to call an argument in code, of the name that an error has for it."""
    return last if (last := name.rsplit(": ", 1)[-1]).isidentifier() else "it"


# ---- arguments of Linear()


@_hint
def for_bias(bias: Any) -> str:
    """Which keyword a value was meant for that stands where bias does. Only its type is asked, which cannot answer."""
    kind = type(bias)
    if bias is None:
        return "; no bias is bias=False"
    if kind is int and bias.bit_length() <= 128:
        return f"; a seed comes by keyword, rng={bias}" + ("; no bias is bias=False" if bias == 0 else "")
    if issubclass(kind, (np.integer, np.random.Generator)):
        return "; a seed or a Generator comes by keyword, rng=..."
    if name := _dtype_name(bias):
        return f"; a dtype comes by keyword, dtype=np.{name}"
    if kind in (np.ndarray, list):
        return "; Linear.from_weights(weight, bias) makes a layer of values"
    return ""


def _dtype_name(value: Any) -> str:
    """The name of a layer's dtype, of whatever stands for one in NumPy, Python or PyTorch; "" of anything else."""
    kind = type(value)
    if _is_torch_dtype(kind):
        value = str(value).removeprefix("torch.")
    elif not issubclass(kind, (type, str, np.dtype)):
        return ""
    try:
        name = np.dtype(value).name
    except TypeError:
        return ""
    return name if name in ("float32", "float64") else ""


@_hint
def for_dtype(dtype: Any) -> str:
    if dtype is None:
        return "; leave it out for float32"
    return f"; write np.{name}" if (name := _dtype_name(dtype)) else ""


@_hint
def for_size(value: Any) -> str:
    """Of a shape, where the number of features is wanted."""
    if type(value) is tuple and value and type(value[-1]) is int:
        return f"; the features of that shape are its last number, {value[-1]}"
    return ""


# ---- arrays


@_hint
def for_array(value: Any) -> str:
    """Of what is no array: how to come by one."""
    kind = type(value)
    if kind.__module__ == "fastlinear._network" and kind.__name__ == "Tape":
        return "; what a tape has of the output is tape.output"
    if kind is dict and "weight" in value:
        return "; its arrays are arguments of their own: from_weights(**state)"
    if kind.__module__.startswith("torch.nn.modules"):
        return "; from_torch takes PyTorch's modules"
    if hasattr(kind, "toarray"):
        return "; a sparse matrix has toarray()"
    if hasattr(kind, "__next__"):
        return "; make a list of it first"
    return ""


@_hint
def for_sequence(value: Any) -> str:
    """Of a sequence that does not make one array."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is float and type(value[1]) is np.ndarray:
        return "; of what a loss returns, the gradient is the second part: loss, grad_output = ..."
    if type(value) in (list, tuple) and [getattr(part, "ndim", None) for part in value[:3]] == [2, 1]:
        return "; a weight and a bias are two arguments"
    return ""


@_hint
def for_unreadable(name: str, value: Any) -> str:
    """Of an array of another library that NumPy cannot look at."""
    return f"; {_variable(name)}.float() can be" if "bfloat16" in str(getattr(value, "dtype", "")) else ""


@_hint
def for_cast(name: str, value: Any, came: np.dtype[Any], wanted: np.dtype[Any], owner: str) -> str:
    """Of an array (value, if not None, is what it was made of) whose dtype does not cast safely to the one wanted:
    how to convert it, if it has real numbers."""
    if came.kind == "c":
        return "; it must hold real numbers"
    if came.kind not in "biuf":
        return f"; it must hold numbers, not {_KINDS.get(came.kind, 'records')}"
    variable = _variable(name)
    if value is None or hasattr(type(value), "astype"):
        convert = f"{variable}.astype(np.{wanted})"
    elif hasattr(type(value), "__dlpack__"):  # as PyTorch's tensors
        convert = f"{variable}.{'float' if wanted == np.float32 else 'double'}()"
    else:
        convert = f"np.asarray({variable}, np.{wanted})"
    wider = owner in _MODELS and np.can_cast(came, np.float64, "safe")
    return f"; convert it with {convert}" + (", or make the layer with dtype=np.float64" if wider else "")


@_hint
def for_weights(dtype: np.dtype[Any]) -> str:
    return "; convert it with weight.astype(np.float32)" if dtype.kind in "biuf" else ""


@_hint
def for_rows(name: str, shape: tuple[int, ...], features: int, in_features: int) -> str:
    """Of an array that has not so many features in its last axis."""
    variable = _variable(name)
    if not features or not math.prod(shape):
        return ""
    if len(shape) == 2 and shape[0] == features:
        return f"; {variable}.T would fit"
    if len(shape) > 2 and math.prod(shape[1:]) == features:
        return f"; {variable}.reshape({shape[0]}, {features}) would fit"
    if len(shape) > 1 and math.prod(shape) == features:
        return f"; {variable}.reshape({features}) would fit"
    if len(shape) == 1 and features == 1:
        return f"; {variable}[:, None] would fit, as {shape[0]} rows"
    if name == "grad_output" and shape and shape[-1] == in_features:
        return "; that is the shape of x"
    return ""


@_hint
def for_shape(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Of an array that must have a shape, and has as many elements in another."""
    if math.prod(shape) != math.prod(wanted) or not math.prod(wanted):
        return ""
    if len(shape) == 2 and shape == wanted[::-1] and 1 not in shape:
        return f"; {_variable(name)}.T would fit"
    if [n for n in shape if n != 1] == [n for n in wanted if n != 1]:
        return f"; {_variable(name)}.reshape({', '.join(map(str, wanted))}) would fit"
    return ""


@_hint
def for_labels(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], scores: tuple[int, ...] | None) -> str:
    """Of labels that are no integers, or not one for each row of scores of this shape, which None leaves open."""
    variable = _variable(name)
    rows = None if scores is None else scores[:-1]
    if dtype.kind in "US":
        return f"; np.unique({variable}, return_inverse=True)[1] numbers them"
    if dtype.kind not in "biuf":
        return ""
    if dtype.kind == "f" and len(shape) > 1 and shape[:-1] == scores:
        return "; scores come first, then labels"
    if len(shape) > 1 and shape[-1] > 1 and rows in (None, shape[:-1]):
        return f"; of one-hot rows take np.argmax({variable}, -1)"
    if rows is not None and shape != rows:
        return for_shape(name, shape, rows)
    return f"; np.asarray({variable}, int) converts them" if dtype.kind == "f" else ""


@_hint
def for_targets(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], wanted: tuple[int, ...], labels: bool) -> str:
    """Of the y of learn, if it does not have one row for each row of X."""
    if labels:
        return for_labels(name, dtype, shape, (*wanted, 0))
    if len(wanted) == 2 and shape == wanted[:1] and dtype.kind in "biu":
        return "; for labels give loss='log_loss' or 'hinge'"
    return for_shape(name, shape, wanted)


@_hint
def for_signs(name: str, label: int, classes: int) -> str:
    """Of a label that no output has."""
    return f"; of labels -1 and 1 take np.asarray({_variable(name)}) > 0" if label == -1 and classes == 2 else ""


# ---- names


@_hint
def for_part(part: Any) -> str:
    """Of what is no part of a Sequential."""
    kind = type(part)
    if kind in (list, tuple):
        if kind is tuple and len(part) == 2 and all(type(n) is int for n in part):
            return f"; write Linear{part}"
        return "; write Sequential(*parts)"
    if part is None:
        return "; leave it out"
    if name := _activation(part if kind is str else _name_of(part)):
        return f"; write {name!r}"
    if kind.__module__.startswith("torch.") and kind.__name__ in ("Linear", "Sequential"):
        return f"; {kind.__name__}.from_torch takes PyTorch's modules"
    if kind.__name__ == "Sequential":
        return "; write *net.parts, because a net has no nets in it"
    return "; write Linear(in_features, out_features)" if _name_of(part) == "Linear" else ""


def _name_of(value: Any) -> str:
    """Of a function or a class its own, of an object that of its class."""
    name = getattr(value, "__name__", None)
    return name if type(name) is str else type(value).__name__


def _plain(name: str) -> str:
    """LeakyReLU, leaky-relu and leaky_relu are one name."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _activation(name: str) -> str:
    """The activation that others call so, and that is the same function; "" if there is none."""
    return {_plain(known): known for known in ACTIVATIONS[1:]}.get(_plain(name), _ALSO_CALLED.get(_plain(name), ""))


@_hint
def for_loss(loss: Any, names: Collection[str]) -> str:
    plain = _plain(loss if type(loss) is str else _name_of(loss))
    name = {_plain(known): known for known in names}.get(plain, _LOSSES.get(plain))
    return f"; write {name!r}" if name else ""


# ---- models, states and files


@_hint
def for_model(model: Any) -> str:
    """Of what an optimiser does not take."""
    kind = type(model)
    if kind.__module__.split(".")[0] == "torch":
        return "; PyTorch's modules and parameters have torch.optim"
    if kind in (list, tuple, dict, np.ndarray) or hasattr(kind, "__next__"):
        return "; give the model itself, not its parameters or layers"
    if kind in (float, int):
        return "; the model comes first, then lr"
    return "; it must be an object that was made of it" if issubclass(kind, type) else ""


@_hint
def for_state(state: Any) -> str:
    """Of what is no state."""
    if hasattr(type(state), "state_dict"):
        return "; give its state_dict()"
    if isinstance(state, (str, bytes, os.PathLike)):
        return "; load(path) makes a model of a file"
    return ""


@_hint
def for_keys(expected: Collection[str], got: Collection[Any]) -> str:
    """Of a state with other keys."""
    names = {name for name in got if type(name) is str}
    if {"kernel", "bias"} >= names >= {"kernel"}:
        return "; Keras's and JAX's kernel is weight.T"
    prefixes = sorted({name[: -len(key)] for key in expected for name in names if name.endswith(key)})
    for prefix in prefixes:
        if prefix and names >= {prefix + key for key in expected}:
            return f"; those that begin with {prefix!r} would fit without it"
    return ""


@_hint
def for_path(name: str, saving: bool) -> str:
    """Of a file whose suffix is none of ours."""
    stem, suffix = os.path.splitext(name)
    if "\0" in name:
        return "; there is a NUL in it"
    if len(name) > 1000:  # longer than what is shown of it
        return ""
    if not suffix:
        return f"; write {name + '.npz'!r}"
    if suffix.lower() in (".npz", ".safetensors"):
        return f"; write {stem + suffix.lower()!r}"
    if suffix in (".pt", ".pth", ".bin", ".ckpt"):
        if saving:
            return f"; write {stem + '.safetensors'!r}, which safetensors.torch reads"
        return "; load_state_dict(torch.load(path, weights_only=True)) takes PyTorch's"
    if suffix == ".npy" and not saving:
        return "; np.load reads one array, and Linear.from_weights takes arrays"
    return ""


# ---- packages


def missing(what: str, needs: str, packages: str, extra: str, error: ImportError) -> str:
    """A whole message, of a part of fastlinear that needs other packages."""
    return (
        f"{what} needs {needs}: `pip install {packages}`, or from a checkout of fastlinear `pip install '.[{extra}]'` "
        f"({error})"
    )
