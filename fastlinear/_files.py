"""A layer's state in a file: .npz, which is NumPy's, or .safetensors, which PyTorch and others read and write, too.

Both hold arrays and nothing else: reading one runs no code, whoever wrote it.
"""

from __future__ import annotations

import math
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from numpy.typing import NDArray

    State = dict[str, NDArray[Any]]
    Path = str | os.PathLike[str]

_MOST_HEADER = 10_000  # bytes; NumPy's own limit


def save(state: State, path: Path) -> None:
    """Write the arrays under their names. The file is whole or, if anything goes wrong, as it was before."""
    write, _ = _format(path)
    path = os.path.realpath(path)  # of a symbolic link, the file that it leads to
    part = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.part"
    try:
        with open(part, "xb") as file:
            write(state, file)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(part, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.remove(part)
        raise


def load(path: Path) -> State:
    """The arrays of a file by name. ValueError for one that is damaged or holds something else."""
    _, read = _format(path)
    with open(path, "rb") as file:
        try:
            return read(file)
        except (ImportError, MemoryError, OSError):
            raise
        except Exception as error:  # of many kinds, and none of them says which file
            raise ValueError(f"{os.fspath(path)} is damaged or not what its name says: {error}") from error


def _format(path: Path) -> tuple[Callable[[State, IO[bytes]], None], Callable[[IO[bytes]], State]]:
    suffix = os.path.splitext(path)[1]
    if suffix not in _FORMATS:
        raise ValueError(f"the file must be one of {', '.join(_FORMATS)}, got {os.fspath(path)!r}")
    return _FORMATS[suffix]


def _write_npz(state: State, file: IO[bytes]) -> None:
    np.savez(file, **state)  # type: ignore[arg-type]


def _read_npz(file: IO[bytes]) -> State:
    from zipfile import ZipFile

    state: State = {}
    with ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename or name in state:
                raise ValueError(f"unexpected member {info.filename!r}")
            with archive.open(info) as member:
                state[name] = _read_array(name, member)
    return state


def _read_array(name: str, member: IO[bytes]) -> NDArray[Any]:
    """As numpy.load does it, but no memory is taken for bytes that are not there, nor for more than the header says."""
    version = np.lib.format.read_magic(member)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"{name} has version {version} of NumPy's format")
    shape, fortran, dtype = header(member, max_header_size=_MOST_HEADER)
    if dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {dtype}, which is not a number's")
    size = dtype.itemsize * math.prod(shape)
    data = bytearray(member.read(size + 1))
    if len(data) != size:
        came = f"{len(data)} bytes" if len(data) < size else "more bytes"
        raise ValueError(f"{name} has {came} where its shape {shape} and dtype {dtype} need {size}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("files of .safetensors need its package: pip install 'fastlinear[io]'") from None
    return safetensors.numpy


def _write_safetensors(state: State, file: IO[bytes]) -> None:
    file.write(_safetensors().save({name: np.ascontiguousarray(array) for name, array in state.items()}))


def _read_safetensors(file: IO[bytes]) -> State:
    state: State = _safetensors().load(file.read())
    return state


_FORMATS = {".npz": (_write_npz, _read_npz), ".safetensors": (_write_safetensors, _read_safetensors)}
