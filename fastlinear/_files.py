"""Arrays in a file: .npz, which is NumPy's format, or .safetensors, which PyTorch and others read and write, too.

Both hold arrays and nothing else, so reading one runs no code, whoever wrote it. The names are read first, then the
sizes that the file declares, and then the bytes of the arrays that are wanted, a piece at a time. So a file that lies
takes no more memory than its own size accounts for.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import stat
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import IO

    from numpy.typing import NDArray

    State = Mapping[str, NDArray[Any]]
    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Names = Callable[[str | None], tuple[Collection[str], Collection[str]]]

_PIECE = 1 << 20  # bytes that one read can take; tables of contents are no longer than that
_MOST_HEADER = 10_000  # bytes of a .npy header; NumPy's own limit
_NOTE = "parts"  # the name of a note: an array of its UTF-8 in .npz, an entry of the metadata in .safetensors
_MOST_DEFLATED = 1032  # bytes that one byte of a compressed member can become, because two bits are at most 258 bytes


def save(state: State, path: Path, note: str | None = None) -> None:
    """Write the arrays under their names, and a note of what they are, if there is one.

    If anything goes wrong, the file is as it was before. A file that is there keeps its mode and, where the system lets
    us, its owner and group. For a symbolic link, the file that it leads to is written; of a hard link only this name
    changes. A read-only file, and a folder, FIFO or device in its place, is an error.
    """
    name, form = _parse(path, saving=True)
    with _naming(name):
        before = _replaceable(name)
        target = os.path.realpath(name)
        folder = os.path.dirname(target)
        part = os.path.join(folder, f".fastlinear-{os.urandom(8).hex()}.part")
        # Until it has the old file's mode, a part of that file is nobody else's to read.
        mode = 0o666 if before is None else 0o600
        try:
            with open(part, "xb", opener=lambda part, flags: os.open(part, flags, mode)) as file:
                form.write(state, file, note)
                file.flush()
                if before is not None:
                    _take_over(file.fileno(), target, before)
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                os.remove(part)
            raise
        _sync_folder(folder)


def load(path: Path, wanted: Collection[str] | Names, optional: Collection[str] = (), others: bool = False) -> State:
    """The arrays of these names: all that are wanted, and the optional ones that are there.

    wanted can be a function that returns both, wanted and optional names, from the file's note, or from None if there
    is no note. Other names are an error, except with others=True, and then they are not read. A file that is damaged,
    has other names, is no regular file, or changes while it is read is a ValueError.
    """
    name, form = _parse(path, saving=False)
    with _naming(name), _open(name) as file:
        before = os.fstat(file.fileno())
        with _content(name):
            content = form.read(file, before.st_size)
            names = set(content.names)
            note = content.note() if callable(wanted) else None
        if callable(wanted):
            names.discard(_NOTE)
            with naming(name):
                wanted, optional = wanted(note)
        _check_names(name, names, wanted, optional, others)
        with _content(name):
            state = {key: content.read(key) for key in (*wanted, *optional) if key in names}
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise ValueError(f"{name} was changed while it was read")
    return state


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error about arrays that came from a file also names the file."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{os.fsdecode(path)}: {error}") from error


# ---- paths and files


def as_text(path: Path) -> str:
    try:
        return str.__str__(os.fsdecode(path))  # which makes a str of a subclass, without its own code
    except TypeError:
        kind = type(path).__name__
        raise TypeError(f"the path of a file must be a str, bytes or os.PathLike, got {kind}") from None


def _parse(path: Path, saving: bool) -> tuple[str, _Format]:
    """The path as text, and the format. The path is asked once, because it can be an object that changes its answer."""
    name = as_text(path)
    suffix = os.path.splitext(name)[1]
    if suffix not in _FORMATS or "\0" in name:
        from fastlinear._advice import for_path

        raise ValueError(f"the file must be one of {', '.join(_FORMATS)}, got {name!r:.1000}{for_path(name, saving)}")
    return name, _FORMATS[suffix]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """An error of the system names this file, and not a temporary one or none."""
    try:
        yield
    except OSError as error:
        if error.filename == name:
            raise
        raise OSError(error.errno, error.strerror or str(error), name) from error


@contextmanager
def _content(name: str) -> Iterator[None]:
    """Errors while the content is read are of many kinds. Give them one kind and the name of the file."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{name} does not fit into memory: {error}") from error
    except OSError:  # the disk's, not the content's
        raise
    except Exception as error:
        raise ValueError(f"{name} is damaged or not what its name says: {error}") from error


def _check_regular(name: str, mode: int) -> None:
    """Refuse any other kind of file: it might block, act on being opened, or have no end."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")
        raise ValueError(f"{name} must be a regular file, got a {kind}")


def _open(name: str) -> _Reader:
    _check_regular(name, os.stat(name).st_mode)
    # O_NONBLOCK, because the file might have been replaced since by a FIFO, whose opening would wait.
    fd = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = _Reader(io.FileIO(fd))
    try:
        _check_regular(name, os.fstat(fd).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _replaceable(name: str) -> os.stat_result | None:
    """The status of the file that is there, or None. A file that could not be written in place is not replaced."""
    try:
        before = os.stat(name)
    except FileNotFoundError:
        return None
    _check_regular(name, before.st_mode)
    if not before.st_mode & 0o222:  # the superuser could write it, but whoever made it read-only did not want that
        raise PermissionError(errno.EACCES, "The file is read-only", name)
    os.close(os.open(name, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)))
    return before


def _take_over(fd: int, target: str, before: os.stat_result) -> None:
    """Give the new file the owner, group, mode and extended attributes (access control lists) of the old one."""
    if not hasattr(os, "fchown"):  # Windows, where files inherit these from their folder
        return
    mode = stat.S_IMODE(before.st_mode)
    if not any(_give(fd, *owner) for owner in ((before.st_uid, before.st_gid), (-1, before.st_gid))):
        os.fchmod(fd, mode & (0o707 | (mode & 0o007) << 3))  # another group can do no more than anybody could before
        return
    os.fchmod(fd, mode)
    with suppress(OSError, AttributeError):  # not every file system or system has them
        for key in os.listxattr(target):
            with suppress(OSError):  # some are the system's own
                os.setxattr(fd, key, os.getxattr(target, key))


def _give(fd: int, uid: int, gid: int) -> bool:
    try:
        os.fchown(fd, uid, gid)
    except PermissionError:
        return False
    return True


def _sync_folder(folder: str) -> None:
    """Make the new name outlast a power cut. Where that is impossible, the file is still the old or the new one."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class _Reader(io.BufferedReader):
    """A file that is read a piece at a time at most, whatever lengths are written in it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _PIECE
        if size > _PIECE:
            raise ValueError(f"its table of contents has {size} bytes, more than {_PIECE}")
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == 0 and not 0 <= offset <= os.fstat(self.fileno()).st_size:
            raise ValueError(f"it leads to byte {offset}, where it has none")  # where seek() would give an OSError
        return super().seek(offset, whence)


# ---- names


def _check_names(
    path: str, names: Collection[str], wanted: Collection[str], optional: Collection[str], others: bool
) -> None:
    missing = [name for name in wanted if name not in names]
    surplus = [] if others else sorted(set(names) - set(wanted) - set(optional))
    if missing or surplus:
        expected = _few(wanted) + (f" and may have {_few(optional)}" if optional else "")
        came = [f"{what}: {_few(which)}" for what, which in (("missing", missing), ("surplus", surplus)) if which]
        raise ValueError(f"{path} must have the arrays {expected}; {', '.join(came)}")


def _few(names: Collection[str]) -> str:
    """Names for a message: at most eight, and at most 80 characters of each."""
    shown = [repr(name if len(name) < 80 else f"{name[:80]}...") for name in list(names)[:8]]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


# ---- formats


class _Content(NamedTuple):
    """What a file has: names, how to read the array of a name, and the note or None."""

    names: Collection[str]
    read: Callable[[str], NDArray[Any]]
    note: Callable[[], str | None]


class _Write(Protocol):
    def __call__(self, state: State, file: IO[bytes], note: str | None, /) -> None: ...


class _Read(Protocol):
    """Finds what is in a file of so many bytes."""

    def __call__(self, file: IO[bytes], size: int, /) -> _Content: ...


class _Format(NamedTuple):
    write: _Write
    read: _Read


def _write_npz(state: State, file: IO[bytes], note: str | None) -> None:
    from zipfile import ZipFile

    if note is not None:
        state = {_NOTE: np.frombuffer(note.encode(), np.uint8), **state}
    with ZipFile(file, "w") as archive:
        for name, array in state.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_npz(file: IO[bytes], size: int) -> _Content:
    from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

    archive = ZipFile(file)
    members = {}
    for info in archive.infolist():
        name = info.orig_filename.removesuffix(".npy")
        if name == info.orig_filename or name in members:
            raise ValueError(f"unexpected member {_few([info.orig_filename])}")
        growth = {ZIP_STORED: 1, ZIP_DEFLATED: _MOST_DEFLATED}.get(info.compress_type)
        if growth is None:
            raise ValueError(f"{_few([name])} is compressed by method {info.compress_type}, which NumPy does not use")
        if info.file_size > growth * info.compress_size:
            raise ValueError(f"{_few([name])} has {info.file_size} bytes in {info.compress_size}")
        members[name] = info
    if sum(info.compress_size for info in members.values()) > size:
        raise ValueError("its members overlap")

    def read(name: str) -> NDArray[Any]:
        with archive.open(members[name]) as member:
            return _read_npy(name, member, members[name].file_size)

    def note() -> str | None:
        if _NOTE not in members:
            return None
        if members[_NOTE].file_size > _PIECE:
            raise ValueError(f"{_NOTE} has {members[_NOTE].file_size} bytes, more than {_PIECE}")
        text = read(_NOTE)
        if text.dtype != np.uint8:
            raise ValueError(f"{_NOTE} must be UTF-8 in an array of uint8, got {text.dtype}")
        return text.tobytes().decode()

    return _Content(members, read, note)


# A .npy header is a Python literal. These patterns are the part of the language that a plain array needs. NumPy lets
# Python's parser read the header, but that fails on deeply nested ones with a MemoryError, or worse.
_ENTRY = r"""(?x: ['"] (?: descr['"]\s*:\s*['"](?P<dtype{0}>[<>=|]?[iuf]\d{{1,2}})['"]
                         | fortran_order['"]\s*:\s*(?P<fortran{0}>True|False)
                         | shape['"]\s*:\s*\((?P<shape{0}>[\dL,\s]{{0,1000}})\) ) \s* )"""
_HEADER = rf"\s*\{{\s*{_ENTRY.format(0)},\s*{_ENTRY.format(1)},\s*{_ENTRY.format(2)},?\s*\}}\s*"
_SHAPE = r"\s*(?:\d{1,19}L?\s*,\s*)*(?:\d{1,19}L?\s*)?"  # Python 2 wrote an L now and then


def _read_npy(name: str, member: IO[bytes], size: int) -> NDArray[Any]:
    magic = member.read(8)
    lengths = {b"\x93NUMPY\1\0": "<H", b"\x93NUMPY\2\0": "<I", b"\x93NUMPY\3\0": "<I"}.get(magic)
    if lengths is None:
        raise ValueError(f"{name} begins with {magic!r}, which is no version of NumPy's format that is known")
    (length,) = struct.unpack(lengths, member.read(struct.calcsize(lengths)))
    if length > _MOST_HEADER:
        raise ValueError(f"{name} has a header of {length} bytes, more than {_MOST_HEADER}")
    text = member.read(length).decode("latin1")
    found = re.fullmatch(_HEADER, text)  # compiled when first used: a millisecond of the import
    entries = {} if found is None else {key[:-1]: v for key, v in found.groupdict().items() if v is not None}
    if len(entries) != 3 or not re.fullmatch(_SHAPE, entries["shape"]):
        raise ValueError(f"{name} must be a plain array of numbers, and its header is {text[:200]!r}")
    shape = tuple(int(n) for n in re.findall(r"\d+", entries["shape"]))
    dtype, order = np.dtype(entries["dtype"]), "F" if entries["fortran"] == "True" else "C"
    rest = size - len(magic) - struct.calcsize(lengths) - length
    return _read_array(name, shape, dtype, rest, member.read, order)  # up to the end, where the checksum is compared


def _read_array(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], size: int, read: Callable[[int], bytes], order: Any = "C"
) -> NDArray[Any]:
    """An array of `size` bytes, which its shape and dtype must need. No memory is taken before that is checked."""
    need = dtype.itemsize * math.prod(shape)
    if need != size:
        raise ValueError(f"{name} has {size} bytes where its shape {shape} and dtype {dtype} need {need}")
    data = np.empty(size, np.uint8)
    at = 0
    while at < size:
        piece = read(min(_PIECE, size - at))
        if not piece:
            raise EOFError(f"{name} ends after {at} of {size} bytes")
        data[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    return data.view(dtype).reshape(shape, order=order)


# https://github.com/huggingface/safetensors#format: the length of the header, the header in JSON, the bytes of all
# arrays without a gap. Little-endian, C order.
_TENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip


def _write_safetensors(state: State, file: IO[bytes], note: str | None) -> None:
    names = {np.dtype(dtype): name for name, dtype in _TENSORS.items()}
    # The widest first, so that each array begins at a multiple of its width.
    arrays = sorted(state.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {} if note is None else {"__metadata__": {_NOTE: note}}
    end = 0
    for name, array in arrays:
        begin, end = end, end + array.nbytes
        dtype = names[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, array in arrays:
        file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def _read_safetensors(file: IO[bytes], size: int) -> _Content:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise ValueError(f"its header has {length} bytes, more than the file")
    text = file.read(length)
    begin_of_data = 8 + len(text)
    header = json.loads(text.decode(), object_pairs_hook=_distinct)
    if not isinstance(header, dict):
        raise ValueError(f"its header must be a JSON object, got a {type(header).__name__}")
    metadata = header.pop("__metadata__", None)
    end = 0
    for begin, stop, name in sorted((*_extent(name, entry), name) for name, entry in header.items()):
        if begin != end:
            raise ValueError(f"{_few([name])} begins at {begin} and must begin at {end}, where the one before it ends")
        end = stop
    if end != size - begin_of_data:
        raise ValueError(f"its arrays have {end} bytes, and {size - begin_of_data} are there")

    def read(name: str) -> NDArray[Any]:
        entry = header[name]
        if entry["dtype"] not in _TENSORS:
            raise ValueError(f"{name} must have a dtype among {', '.join(_TENSORS)}, got {entry['dtype']!r}")
        begin, end = entry["data_offsets"]
        file.seek(begin_of_data + begin)
        return _read_array(name, tuple(entry["shape"]), np.dtype(_TENSORS[entry["dtype"]]), end - begin, file.read)

    def note() -> str | None:
        text = metadata.get(_NOTE) if isinstance(metadata, dict) else None
        if not (text is None or isinstance(text, str)):
            raise ValueError(f"{_NOTE} must be text in the metadata, got a {type(text).__name__}")
        return text

    return _Content(header, read, note)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("its header has a name twice")
    return entries


def _extent(name: str, entry: Any) -> tuple[int, int]:
    """Where the array begins and ends, by its entry in the header, which is checked."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = type(dtype) is str and type(shape) is list
        sound = sound and all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and begin <= end
    except (TypeError, ValueError, KeyError):
        sound = False
    if not sound:
        raise ValueError(f"{_few([name])} must have dtype, shape and data_offsets, got {str(entry)[:200]}")
    return begin, end


_FORMATS = {
    ".npz": _Format(_write_npz, _read_npz),
    ".safetensors": _Format(_write_safetensors, _read_safetensors),
}
