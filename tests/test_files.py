"""Files and pickles: what is saved comes back, a save is whole or nothing, and no file or pickle does any harm."""

import io
import json
import os
import pickle
import re
import socket
import stat
import struct
import sys
import threading
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlinear import Linear, _files

from .helpers import assert_same_bits, assert_same_memory, memory_of, python

SUFFIXES = [".npz", ".safetensors"]


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return tmp_path / f"layer{request.param}"


@pytest.mark.parametrize("sizes", [(5, 4, True), (5, 4, False), (1, 1, True), (0, 3, True), (3, 0, True)], ids=str)
def test_a_file_brings_back_the_bits(path, dtype, sizes):
    """Every parameter, NaN, Inf, -0 and denormals too; a str or an os.PathLike names the file."""
    layer = Linear(*sizes, dtype=dtype, rng=0)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).smallest_subnormal], dtype)
    layer.weight.ravel()[:5] = special[: layer.weight.size]
    layer.save(path)
    for name in (path, str(path)):
        copy = Linear.load(name)
        assert repr(copy) == repr(layer)
        for key, value in layer.state_dict().items():
            assert_same_bits(copy.state_dict()[key], value)
        assert copy.weight.flags.carray
        assert not copy.weight.size or copy.weight.ctypes.data % 64 == 0


def test_what_other_writers_make_is_read(tmp_path):
    """numpy.savez, with compression and in Fortran order, and safetensors' own save_file."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez_compressed(tmp_path / "a.npz", weight=np.asfortranarray(weight), bias=weight[:, 0])
    np.savez(tmp_path / "b.npz", weight=weight.astype(">f4"), bias=np.ones(3, np.float16))
    old = b"{'descr': '<f4', 'shape': (3L, 4L), 'fortran_order': False}"  # Python 2's
    (tmp_path / "d.npz").write_bytes(archive(("weight.npy", npy(old, weight.tobytes()))))
    assert np.array_equal(Linear.load(tmp_path / "d.npz").weight, weight)
    np.lib.format.write_array(buffer := io.BytesIO(), weight, version=(3, 0))
    (tmp_path / "e.npz").write_bytes(archive(("weight.npy", buffer.getvalue())))
    assert np.array_equal(Linear.load(tmp_path / "e.npz").weight, weight)
    assert np.array_equal(Linear.load(tmp_path / "a.npz").weight, weight)
    layer = Linear.load(tmp_path / "b.npz")
    assert np.array_equal(layer.weight, weight)
    assert layer.weight.dtype == np.float32
    assert np.array_equal(layer.bias, np.ones(3))
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"weight": weight}, tmp_path / "c.safetensors")
    assert np.array_equal(Linear.load(tmp_path / "c.safetensors").weight, weight)


def test_what_is_saved_others_read(tmp_path):
    layer = Linear(4, 3, rng=0)
    layer.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert {name: arrays[name].tobytes() for name in arrays} == {
            name: value.tobytes() for name, value in layer.state_dict().items()
        }
    numpy = pytest.importorskip("safetensors.numpy")
    layer.save(tmp_path / "a.safetensors")
    assert {name: value.tobytes() for name, value in numpy.load_file(tmp_path / "a.safetensors").items()} == {
        name: value.tobytes() for name, value in layer.state_dict().items()
    }


def fail(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_a_save_is_whole_or_nothing(path, monkeypatch, step):
    """A disk that is full leaves the file that was there, and nothing else. The error names that file."""
    before = Linear(5, 4, rng=0)
    before.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left") as caught:
            Linear(5, 4, rng=1).save(path)
    assert caught.value.filename == str(path)
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208
    assert_same_memory(Linear.load(path), memory_of(before))
    Linear(5, 4, rng=1).save(path)
    assert_same_memory(Linear.load(path), memory_of(Linear(5, 4, rng=1)))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of Unix")
def test_a_limit_on_the_size_of_files(path):
    """The system stops a save in the middle of the arrays, of the file's table, anywhere: the old file stays."""
    Linear(5, 4, rng=0).save(path)
    before = path.read_bytes()
    code = f"""
import resource
from fastlinear import Linear
for limit in (0, 1, 100, 3000, 300_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        Linear(300, 300).save({str(path)!r})
    except OSError as error:
        assert error.filename == {str(path)!r}, error
        assert "too large" in str(error), error
    else:
        raise AssertionError(limit)
"""
    result = python(code)
    assert (result.returncode, result.stderr) == (0, "")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


def test_a_save_is_on_the_disk_before_it_has_its_name(path, monkeypatch):
    """First the content is written through, then the name is changed, then the folder is written through."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(fd):
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("name"), replace(*names)))
    Linear(2, 2).save(path)
    assert steps == ["file", "name"] + ["folder"] * (sys.platform != "win32")


def test_a_folder_that_cannot_be_written_through(path, monkeypatch):
    """The file has its name by then, so the save succeeds."""
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (fail if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync)(fd))
    layer = Linear(2, 2, rng=0)
    layer.save(path)
    assert_same_memory(Linear.load(path), memory_of(layer))


@pytest.mark.parametrize("name", ["layer", "layer.npy", "layer.pt", "layer.npz.gz", ""])
def test_unknown_kinds_of_file(tmp_path, name):
    for use in (Linear(2, 2).save, Linear.load):
        with pytest.raises(ValueError, match=r"must be one of \.npz, \.safetensors, got '.*'"):
            use(str(tmp_path / "x") + name)
    assert not list(tmp_path.iterdir())


def test_missing_files_and_folders(path):
    """The error names the file that was asked for, never one that only fastlinear knows."""
    other = path / "in" / path.name
    for use, name in ((Linear.load, path), (Linear.load, other), (Linear(2, 2).save, other)):
        with pytest.raises(FileNotFoundError) as caught:
            use(name)
        assert caught.value.filename == str(name)
    path.mkdir()
    for use in (Linear.load, Linear(2, 2).save):
        with pytest.raises(OSError, match=r"directory|denied") as caught:
            use(path)
        assert caught.value.filename == str(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_package_is_needed(path):
    """Both formats are read and written by NumPy and Python alone."""
    code = f"""
import sys
sys.modules["safetensors"] = None
from fastlinear import Linear
Linear(2, 2).save({str(path)!r})
Linear.load({str(path)!r})
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


class Answers:
    """A path object that answers with the next of its names each time that it is asked."""

    def __init__(self, *names):
        self.names = list(names)

    def __fspath__(self):
        return self.names.pop(0)


def test_paths_of_any_kind(path):
    """Bytes are a path, too. An object is asked for its name once."""
    layer = Linear(2, 2, rng=0)
    for name in (os.fsencode(path), Answers(str(path)), Answers(os.fsencode(path))):
        path.unlink(missing_ok=True)
        layer.save(name)
        assert_same_memory(Linear.load(path), memory_of(layer))
    for name in (os.fsencode(path), Answers(str(path)), Answers(os.fsencode(path))):
        assert_same_memory(Linear.load(name), memory_of(layer))
    for wrong in (3, None, [str(path)], Answers(3, 3)):
        for use in (Linear.load, layer.save):
            with pytest.raises(TypeError, match=r"str.* bytes"):
                use(wrong)
    for use in (Linear.load, layer.save):
        with pytest.raises(ValueError, match=r"must be one of \.npz, .*x00"):
            use(f"{path}\0{path.suffix}")


def test_a_name_as_long_as_the_system_allows(path):
    name = path.with_name("n" * (255 - len(path.suffix)) + path.suffix)
    Linear(2, 2).save(name)
    assert [p.name for p in path.parent.iterdir()] == [name.name]


# ---- names


def test_only_what_is_wanted_is_read(path):
    """The others may be anything, of any size; they need a word that they may be there."""
    arrays = {"0.weight": np.ones((2, 3)), "0.bias": np.arange(2.0), "2.weight": np.ones((4, 2), np.float32)}
    _files.save(arrays, path)
    everything = _files.load(path, arrays)
    for name, array in arrays.items():
        assert_same_bits(everything[name], array)
    first = _files.load(path, ["0.weight"], ["0.bias", "0.gain"], others=True)
    assert list(first) == ["0.weight", "0.bias"]
    content = path.read_bytes()
    at = content.index(arrays["2.weight"].tobytes())
    path.write_bytes(content[:at] + b"\7" * 32 + content[at + 32 :])
    assert list(_files.load(path, ["0.weight"], others=True)) == ["0.weight"]
    if path.suffix == ".npz":  # it has checksums
        with pytest.raises(ValueError, match="CRC"):
            _files.load(path, arrays)


def test_missing_and_surplus_names_are_said(path):
    _files.save({name: np.ones((2, 3)) for name in ("kernel", "bias", "gain", "x" * 1000)}, path)
    with pytest.raises(ValueError, match="missing") as caught:
        Linear.load(path)
    long = "x" * 80 + "..."
    assert str(caught.value) == (
        f"{path} must have the arrays 'weight' and may have 'bias'; missing: 'weight', "
        f"surplus: 'gain', 'kernel', '{long}'"
    )
    _files.save({str(n): np.ones(1) for n in range(1000)}, path)
    with pytest.raises(ValueError, match=r"missing: 'a', surplus: '0', .* and 992 more$"):
        _files.load(path, ["a"])
    with pytest.raises(ValueError, match=r"must have the arrays 'a'; missing: 'a'$"):
        _files.load(path, ["a"], others=True)


WIDTHS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


def test_arrays_of_every_dtype_and_layout(path):
    """What is not a layer's is kept as well: of another width, order, byte order, of no element, of no axis."""
    arrays = {dtype: np.arange(6).astype(dtype).reshape(2, 3) for dtype in WIDTHS}
    f4 = arrays["f4"]
    arrays |= {
        "swapped": f4.astype(">f4"),
        "fortran": np.asfortranarray(f4),
        "strided": np.repeat(f4, 2, axis=1)[:, ::2],
    }
    arrays |= {"empty": f4[:0], "number": np.array(1.5)}
    _files.save(arrays, path)
    for name, array in _files.load(path, arrays).items():
        assert np.array_equal(array, arrays[name])
        assert array.shape == arrays[name].shape
        assert array.dtype.newbyteorder("=") == arrays[name].dtype.newbyteorder("=")
        assert array.flags.writeable
    if path.suffix == ".safetensors":
        theirs = pytest.importorskip("safetensors.numpy").load_file(path)
        assert {name: a.tolist() for name, a in theirs.items()} == {name: a.tolist() for name, a in arrays.items()}


class Trap:
    """Whoever unpickles it has run code of the file's author."""

    def __reduce__(self):
        return exec, (TRAP,)


TRAP = "import threading; threading.current_thread().trapped = True"


def trapped():
    """Whether a trap has run in this thread since this was last asked."""
    return vars(threading.current_thread()).pop("trapped", False)


def npy(header, data=bytes(24), magic=b"\x93NUMPY\x01\x00"):
    return magic + struct.pack("<H", len(header)) + header + data


def member(shape="(2, 3)", descr="'<f4'", data=bytes(24), fortran="False", **options):
    return npy(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode(), data, **options)


def archive(*members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, data in members:
            out.writestr(name, data)
    return file.getvalue()


def patched(at, layout, value, content=None):
    """An archive of one sound member with a field of its entry in the central directory changed."""
    content = bytearray(content or archive(("weight.npy", member())))
    struct.pack_into(layout, content, content.rindex(b"PK\1\2") + at, value)
    return bytes(content)


def same_bytes_twice():
    """Two entries of the central directory that lead to one member."""
    content = archive(("weight.npy", member()), ("bias.npy", member()))
    at = content.index(b"PK\1\2")
    entry = content[at : content.rindex(b"PK\1\2")].replace(b"weight.npy", b"biased.npy")
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 2 * len(entry), at, 0)
    return content[:at] + content[at : at + len(entry)] + entry + end


def zip64(size, compressed, offset):
    """A member whose sizes and place are in 64 bits."""
    content = bytearray(archive(("weight.npy", member())))
    at = content.rindex(b"PK\1\2")
    content[at + 20 : at + 28] = content[at + 42 : at + 46] * 0 + b"\xff" * 8
    content[at + 42 : at + 46] = b"\xff" * 4
    extra = struct.pack("<HH3Q", 1, 24, size, compressed, offset)
    content[at + 30 : at + 32] = struct.pack("<H", len(extra))
    entry = content[at : content.rindex(b"PK\5\6")] + extra
    return bytes(content[:at] + entry + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), at, 0))


def moved_directory(by):
    """The end of the archive says that the central directory lies further on, so all that it names would lie before."""
    content = bytearray(archive(("weight.npy", member())))
    (offset,) = struct.unpack_from("<L", content, len(content) - 6)
    struct.pack_into("<L", content, len(content) - 6, offset + by)
    return bytes(content)


def savez(**arrays):
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


def tensors(data=bytes(24), **entries):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def tensor(dtype="F32", shape=(2, 3), begin=0, end=24):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


F4 = np.zeros((2, 3), np.float32)
HOSTILE = {
    "empty": (".npz", b""),
    "text": (".npz", b"weight"),
    "pickle": (".npz", pickle.dumps(Trap())),
    "pickled array": (".npz", savez(weight=np.array([[Trap()]], object))),
    "pickle in a member": (".npz", archive(("weight.npy", pickle.dumps(Trap())))),
    "object dtype by hand": (".npz", archive(("weight.npy", member(descr="'|O'", data=pickle.dumps(Trap()))))),
    "record dtype": (".npz", archive(("weight.npy", member(descr="[('a', '<f4')]")))),
    "text dtype": (".npz", savez(weight=np.array([["a"]]))),
    "code in the header": (
        ".npz",
        archive(("weight.npy", member(shape=f"exec({TRAP!r})"))),
    ),
    "more elements than bytes": (".npz", archive(("weight.npy", member(shape="(2, 4)")))),
    "fewer elements than bytes": (".npz", archive(("weight.npy", member(shape="(2, 2)")))),
    "more elements than memory": (".npz", archive(("weight.npy", member(shape="(1152921504606846976, 3)")))),
    "negative size": (".npz", archive(("weight.npy", member(shape="(-2, -3)")))),
    "size of another type": (".npz", archive(("weight.npy", member(shape="(2.0, 3)")))),
    "size from the bytes": (".npz", archive(("weight.npy", member(shape="(-1, 3)")))),
    "size of truth": (".npz", archive(("weight.npy", member(shape="(True, 3)", data=bytes(12))))),
    "size with a sign": (".npz", archive(("weight.npy", member(shape="(+2, 3)")))),
    "size with a comment": (".npz", archive(("weight.npy", member(shape="(2, #\n3)")))),
    "sizes without a comma": (".npz", archive(("weight.npy", member(shape="(2 3)")))),
    "size without a tuple": (".npz", archive(("weight.npy", member(shape="6")))),
    "sizes in a list": (".npz", archive(("weight.npy", member(shape="[2, 3]")))),
    "size beyond 64 bits": (".npz", archive(("weight.npy", member(shape=f"({2**64}, {2**64})")))),
    "no element of many": (".npz", archive(("weight.npy", member(shape=f"(0, {2**63})", data=b"")))),
    "header of signs": (".npz", archive(("weight.npy", member(shape="(" + "-" * 9000 + "1, 3)")))),
    "header of brackets": (".npz", archive(("weight.npy", member(shape="(" * 4000 + ")" * 4000)))),
    "header of spaces": (".npz", archive(("weight.npy", member(shape="(2," + " " * 9000 + "3)")))),
    "header of one key": (".npz", archive(("weight.npy", npy(b"{'descr': '<f4', 'descr': '<f4', 'descr': '<f4'}")))),
    "header without shape": (".npz", archive(("weight.npy", npy(b"{'descr': '<f4', 'fortran_order': False}")))),
    "header with more": (
        ".npz",
        archive(("weight.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'a': 1}"))),
    ),
    "header cut": (".npz", archive(("weight.npy", member()[:30]))),
    "header past the member": (".npz", archive(("weight.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)))),
    "order of another type": (".npz", archive(("weight.npy", member(fortran="0")))),
    "sub-array dtype": (".npz", archive(("weight.npy", member(descr="('<f4', (3,))", shape="(2,)")))),
    "dtype of many": (".npz", archive(("weight.npy", member(descr="'2<f4'", shape="(3,)")))),
    "dtype of no width": (".npz", archive(("weight.npy", member(descr="'<f3'", data=bytes(18))))),
    "dtype of truth": (".npz", archive(("weight.npy", member(descr="'|b1'", data=bytes(6))))),
    "complex dtype": (".npz", archive(("weight.npy", member(descr="'<c8'", data=bytes(48))))),
    "dates": (".npz", archive(("weight.npy", member(descr="'<M8[s]'", data=bytes(48))))),
    "encrypted": (".npz", patched(8, "<H", 1)),
    "strong encryption": (".npz", patched(8, "<H", 65)),
    "patched data": (".npz", patched(8, "<H", 32)),
    "bzip2": (".npz", archive(("weight.npy", member()), method=zipfile.ZIP_BZIP2)),
    "lzma": (".npz", archive(("weight.npy", member()), method=zipfile.ZIP_LZMA)),
    "unknown compression": (".npz", patched(10, "<H", 99)),
    "deflated by name only": (".npz", patched(10, "<H", 8)),
    "checksum": (".npz", patched(16, "<L", 1)),
    "larger than it says": (".npz", patched(24, "<L", 90)),
    "smaller than it says": (".npz", patched(24, "<L", 2**31)),
    "compressed to nothing": (".npz", patched(20, "<L", 0)),
    "compressed to more than the file": (".npz", patched(20, "<L", 2**31)),
    "member past the end": (".npz", patched(42, "<L", 2**31)),
    "member of another name": (".npz", archive(("weighT.npy", member())).replace(b"weighT", b"weight", 1)),
    "name that goes on after NUL": (".npz", archive(("weight.npy_", member())).replace(b"npy_", b"npy\0")),
    "name with NUL": (".npz", archive(("weight.npy_a", member())).replace(b"npy_a", b"npy\0a")),
    "same name": (".npz", archive(("weight.npy", member()), ("weighT.npy", member())).replace(b"weighT", b"weight")),
    "same bytes": (".npz", same_bytes_twice()),
    "zip64, size": (".npz", zip64(2**63, 85, 0)),
    "zip64, all sizes": (".npz", zip64(2**64 - 1, 2**64 - 1, 0)),
    "zip64, place": (".npz", zip64(len(member()), len(member()), 2**63)),
    "zip64, place that fits": (".npz", zip64(len(member()), len(member()), 2**62)),
    "member before the beginning": (".npz", moved_directory(1000)),
    "endless header": (".npz", archive(("weight.npy", member(shape="(" + "1, " * 20000 + ")")))),
    "unknown version": (".npz", archive(("weight.npy", member(magic=b"\x93NUMPY\x09\x00")))),
    "twice": (".npz", archive(("weight.npy", member()), ("weight", member()))),
    "path": (".npz", archive(("../weight.npy", member()))),
    "no array": (".npz", archive(("weight.txt", b"1 2 3"))),
    "other names": (".npz", savez(kernel=F4)),
    "one name too many": (".npz", savez(weight=F4, bias=F4[:, 0], gain=F4)),
    "no weight": (".npz", savez(bias=F4[:, 0])),
    "weight of another dtype": (".npz", savez(weight=F4.astype(np.int64))),
    "weight of three axes": (".npz", savez(weight=F4[None])),
    "bias that does not fit": (".npz", savez(weight=F4, bias=np.zeros(3, np.float32))),
    "bias of a wider dtype": (".npz", savez(weight=F4, bias=np.zeros(2))),
    "empty tensors": (".safetensors", b""),
    "pickle for tensors": (".safetensors", pickle.dumps(Trap())),
    "header longer than the file": (".safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "header of no json": (".safetensors", struct.pack("<Q", 4) + b"{{{{"),
    "offsets past the end": (".safetensors", tensors(weight=tensor(end=1 << 40))),
    "offsets backwards": (".safetensors", tensors(weight=tensor(begin=24, end=0))),
    "tensor larger than its bytes": (".safetensors", tensors(weight=tensor(shape=(2, 1 << 60)))),
    "half precision": (".safetensors", tensors(bytes(12), weight=tensor("F16", end=12))),
    "brain float": (".safetensors", tensors(bytes(12), weight=tensor("BF16", end=12))),
    "header longer than a piece": (".safetensors", struct.pack("<Q", 2**21) + b"{" + b" " * 2**21),
    "header of lists": (".safetensors", struct.pack("<Q", 10**5) + b"[" * 10**5),
    "header of a list": (".safetensors", struct.pack("<Q", 2) + b"[]"),
    "header of other text": (".safetensors", struct.pack("<Q", 4) + b"\xff\xfe\0{"),
    "length alone": (".safetensors", struct.pack("<Q", 0)),
    "tensors that overlap": (".safetensors", tensors(weight=tensor(), bias=tensor(shape=(2,), begin=8, end=16))),
    "tensors with a gap": (".safetensors", tensors(bytes(28), weight=tensor(begin=4, end=28))),
    "bytes after the tensors": (".safetensors", tensors(bytes(28), weight=tensor())),
    "tensor smaller than its bytes": (".safetensors", tensors(weight=tensor(shape=(2, 2)))),
    "tensor twice": (".safetensors", tensors(weight=tensor(), weighT=tensor()).replace(b"weighT", b"weight")),
    "negative tensor": (".safetensors", tensors(weight=tensor(shape=(-2, -3)))),
    "tensor of truth": (".safetensors", tensors(weight=tensor(shape=(True, 6)))),
    "tensor of fractions": (".safetensors", tensors(weight=tensor(shape=(2.0, 3)))),
    "tensor of NaN": (".safetensors", tensors(weight=tensor(end=float("nan")))),
    "tensor of infinite size": (".safetensors", tensors(weight=tensor(shape=(10**4000, 0), end=0), data=b"")),
    "tensor without a place": (".safetensors", tensors(weight={"dtype": "F32", "shape": [2, 3]})),
    "tensor of three places": (".safetensors", tensors(weight=tensor() | {"data_offsets": [0, 12, 24]})),
    "tensor that is text": (".safetensors", tensors(weight="dtype shape data_offsets")),
    "dtype that is a list": (".safetensors", tensors(weight=tensor(dtype=["F32"]))),
    "unknown dtype": (".safetensors", tensors(weight=tensor(dtype="F31"))),
    "other tensors": (".safetensors", tensors(kernel=tensor())),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    """Wrong, truncated and hostile files: a ValueError or TypeError that names what is wrong, and no code was run."""
    suffix, content = HOSTILE[name]
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(content)
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(str(path))}") as caught:
        Linear.load(path)
    assert len(str(caught.value)) < 1000
    assert not trapped()


def test_sound_parts_of_hostile_files(tmp_path):
    """The files above are hostile by what they have changed: unchanged, they are read."""
    at = archive(("weight.npy", member())).rindex(b"PK\1\2")
    for content in (patched(8, "<H", 0), zip64(len(member()), len(member()), 0)):
        (tmp_path / "a.npz").write_bytes(content)
        assert np.array_equal(Linear.load(tmp_path / "a.npz").weight, F4)
    assert at > len(member())
    (tmp_path / "a.safetensors").write_bytes(tensors(weight=tensor(), __metadata__={"format": "pt"}))
    assert np.array_equal(Linear.load(tmp_path / "a.safetensors").weight, F4)


def test_the_trap_works():
    """The files above are traps indeed: unpickling one runs code."""
    pickle.loads(pickle.dumps(Trap()))
    assert trapped()


def test_truncated_files(path):
    """A file that ends anywhere before its end is an error."""
    Linear(5, 4, rng=0).save(path)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="is damaged or not what its name says"):
            Linear.load(path)


@given(st.sampled_from(SUFFIXES), st.data())
def test_damaged_files(tmp_path_factory, suffix, data):
    """Any bytes changed: a clear error, or, where a format has no checksum, a layer of sound memory."""
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    Linear(3, 2, rng=0).save(path)
    content = bytearray(path.read_bytes())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)):
        content[at] = value
    path.write_bytes(content)
    try:
        layer = Linear.load(path)
    except (ValueError, TypeError):
        pass
    else:
        assert layer(np.ones(layer.in_features, layer.dtype)).shape == (layer.out_features,)


# ---- pickles: Python's own format runs code by design; what is checked here is that a state cannot make the layer
# read or write beside its memory


STATES = {
    "nothing": None,
    "too few": (F4,),
    "too many": (F4, None, None, None, None),
    "no weight": (None, None, None, None),
    "weight is text": ("weight", None, None, None),
    "weight of one axis": (F4[0], None, None, None),
    "weight of integers": (F4.astype(int), None, None, None),
    "weight of half precision": (F4.astype(np.float16), None, None, None),
    "short bias": (F4, F4[0, :1], None, None),
    "bias of another dtype": (F4, np.zeros(2), None, None),
    "short gradient": (F4, None, F4[:1], None),
    "gradient of another dtype": (F4, None, F4.astype(float), None),
    "gradient of the bias missing": (F4, F4[:, 0], F4, None),
    "gradient of the weight missing": (F4, F4[:, 0], None, F4[:, 0]),
    "gradient of no bias": (F4, None, F4, F4[:, 0]),
    "short gradient of the bias": (F4, F4[:, 0], F4, F4[0, :1]),
}


@pytest.mark.parametrize("name", STATES)
def test_states_that_do_not_fit(name):
    """A pickle whose arrays do not belong together is an error, and leaves a layer without memory."""
    layer = Linear.__new__(Linear)
    with pytest.raises((ValueError, TypeError)):
        layer.__setstate__((STATES[name], None))
    with pytest.raises(RuntimeError, match="no parameters yet"):
        layer(F4)


@pytest.mark.parametrize("name", [name for name in STATES if name != "nothing"])
def test_memory_that_does_not_fit(name):
    """Nor does a layer take such arrays from anyone else: the kernels trust their shapes."""
    layer = Linear.__new__(Linear)
    with pytest.raises((ValueError, TypeError)):
        layer._bind(*STATES[name])
    with pytest.raises(RuntimeError, match="no parameters yet"):
        layer(F4)


@pytest.mark.parametrize("odd", [lambda a: a[::-1], np.asfortranarray, lambda a: a.astype(a.dtype.newbyteorder())])
def test_states_of_odd_arrays(odd):
    """Arrays of another order or byte order are copied into place."""
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(2, dtype=np.float32)
    layer = Linear.__new__(Linear)
    layer.__setstate__(((odd(weight), odd(bias), odd(weight), odd(bias)), None))
    for got, array in zip(layer._memory(), (weight, bias, weight, bias), strict=True):
        assert np.array_equal(got, odd(array))
        assert got.flags.carray
        assert got.dtype == np.float32


def test_a_layer_keeps_its_memory():
    """A second __init__ or __setstate__ would free what a call on another thread reads: it is an error."""
    layer = Linear(3, 2, rng=0)
    before = memory_of(layer)
    for again in (lambda: layer.__init__(5, 4), lambda: layer.__setstate__(Linear(5, 4).__reduce__()[2])):
        with pytest.raises(RuntimeError, match="make another layer"):
            again()
    assert_same_memory(layer, before)


def test_formats_are_those_documented():
    assert list(_files._FORMATS) == SUFFIXES


def deflated(size, shape):
    return archive(("weight.npy", member(shape=shape, data=bytes(size))), method=zipfile.ZIP_DEFLATED)


def many_members(count):
    """A central directory of this many entries, all of them of one member."""
    content = archive(("a.npy", member()))
    at, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    directory = content[at:end] * count
    return content[:at] + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), at, 0)


LIES = {
    "goes on for 20 MB": (".npz", lambda: deflated(2 * 10**7, "(1, 1)")),
    "as many as there are": (".npz", lambda: deflated(2 * 10**7, "(-1, 1)")),
    "20 MB that nobody wants": (
        ".npz",
        lambda: archive(("other.npy", member(data=bytes(2 * 10**7))), method=zipfile.ZIP_DEFLATED),
    ),
    "says that it is 4 GB": (".npz", lambda: patched(24, "<L", 2**32 - 8)),
    "says that it is 4 GB in 4 MB": (
        ".npz",
        lambda: patched(20, "<L", 2**22, patched(24, "<L", 2**32 - 8, deflated(1000, f"({2**30}, 1)"))),
    ),
    "says that 1 kB is 400 MB": (".npz", lambda: patched(24, "<L", 4 * 10**8 + 76, deflated(1000, f"({10**8}, 1)"))),
    "header of 20 MB": (
        ".npz",
        lambda: archive(
            ("weight.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2 * 10**7) + b" " * 2 * 10**7),
            method=zipfile.ZIP_DEFLATED,
        ),
    ),
    "60,000 names": (".npz", lambda: many_members(60_000)),
    "header of 4 MB": (".safetensors", lambda: struct.pack("<Q", 2**22) + b"[]," * 2**21),
    "tensor of 4 GB": (".safetensors", lambda: tensors(weight=tensor(shape=(2**15, 2**15), end=2**32))),
    "one tensor 1,000 times": (
        ".safetensors",
        lambda: tensors(bytes(10**6), **{f"{i}": tensor(shape=(250, 1000), end=10**6) for i in range(1000)}),
    ),
}


@pytest.mark.thread_unsafe(reason="tracemalloc")
@pytest.mark.parametrize("name", LIES)
def test_a_lie_takes_little_memory(tmp_path, name):
    """Sizes that a file only claims, and arrays that nobody asked for, are refused before anything is read."""
    suffix, make = LIES[name]
    path = tmp_path / f"lie{suffix}"
    path.write_bytes(make())
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}"):
        Linear.load(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5 * 10**6


@pytest.mark.thread_unsafe(reason="tracemalloc")
def test_the_memory_of_a_load(path):
    """The arrays once, and once more for the layer, beside a few pieces of the file."""
    layer = Linear(2000, 1000)
    layer.save(path)
    tracemalloc.start()
    layer = Linear.load(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * layer.weight.nbytes + 4 * _files._PIECE


def test_memory_runs_out(path, monkeypatch):
    """The MemoryError names the file."""
    Linear(5, 4).save(path)

    def refuse(*_):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(MemoryError, match=re.escape(f"{path} does not fit into memory")):
        _files.load(path, ["weight"], ["bias"])


@pytest.mark.parametrize("change", ["grows", "shrinks", "is written again"])
def test_a_file_that_changes_while_it_is_read(path, monkeypatch, change):
    """An error, never a mixture of the old and the new."""
    Linear(700, 700).save(path)
    os.utime(path, ns=(10**18, 10**18))
    whole, read, changed = path.read_bytes(), _files._read_array, []

    def read_and_change(*arguments):
        if not changed:
            changed.append(True)
            with path.open("r+b") as file:
                if change == "shrinks":
                    file.truncate(len(whole) // 2)
                else:
                    file.write(whole if change == "is written again" else whole + b"more")
        return read(*arguments)

    monkeypatch.setattr(_files, "_read_array", read_and_change)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} (was changed|is damaged)"):
        Linear.load(path)


def test_a_file_that_is_replaced_while_it_is_read(path, monkeypatch):
    """What was opened is read to its end."""
    old, new, read = Linear(3, 2, rng=0), Linear(5, 4, rng=1), _files._read_array
    old.save(path)
    monkeypatch.setattr(_files, "_read_array", lambda *arguments: (new.save(path), read(*arguments))[1])
    assert_same_memory(Linear.load(path), memory_of(old))
    monkeypatch.undo()
    assert_same_memory(Linear.load(path), memory_of(new))


unix = pytest.mark.skipif(sys.platform == "win32", reason="links, modes and special files of Unix")


@unix
def test_a_file_that_is_replaced_keeps_its_mode_and_its_link(path):
    """Saving over a private file leaves it private, and over a symbolic link writes what it leads to."""
    target, link = path, path.with_stem("link")
    Linear(3, 2, rng=0).save(target)
    target.chmod(0o600)
    link.symlink_to(target)
    layer = Linear(3, 2, rng=1)
    layer.save(link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert np.array_equal(Linear.load(target).weight, layer.weight)


@unix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o200])
def test_a_private_file_is_private_while_it_is_written(path, monkeypatch, mode):
    """From the first byte of its new content to the last, nobody can read it who could not before."""
    Linear(3, 2, rng=0).save(path)
    path.chmod(mode)
    seen, save, fsync = [], _files._FORMATS[path.suffix].write, os.fsync

    def look(*_):
        seen.extend(p.stat().st_mode & 0o777 for p in path.parent.iterdir() if p != path)

    watched = _files._FORMATS[path.suffix]._replace(write=lambda *arguments: (look(), save(*arguments), look()))
    monkeypatch.setitem(_files._FORMATS, path.suffix, watched)
    monkeypatch.setattr(os, "fsync", lambda fd: (look(), fsync(fd)))
    Linear(3, 2, rng=1).save(path)
    assert seen[:3] == [0o600, 0o600, mode]
    assert path.stat().st_mode & 0o777 == mode


@unix
def test_a_new_file_has_the_mode_of_any(path):
    path.with_name("any").touch()
    Linear(3, 2).save(path)
    assert path.stat().st_mode == path.with_name("any").stat().st_mode


@unix
def test_ownership_is_kept(path, monkeypatch):
    """Owner and group are asked for. Where the system says no, another group gets no more than anybody had."""
    Linear(3, 2).save(path)
    path.chmod(0o664)
    owner, asked = (path.stat().st_uid, path.stat().st_gid), []

    def refuse(fd, uid, gid):
        asked.append((uid, gid))
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fchown", refuse)
        Linear(3, 2).save(path)
    assert asked == [owner, (-1, owner[1])]
    assert path.stat().st_mode & 0o777 == 0o644
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
        Linear(3, 2).save(path)
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (12345, 54321, 0o644)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="extended attributes of Linux")
def test_extended_attributes_are_kept(path):
    Linear(3, 2).save(path)
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:
        pytest.skip("the file system has none")
    Linear(3, 2).save(path)
    assert os.getxattr(path, "user.note") == b"mine"


@unix
def test_a_read_only_file_stays(path):
    """Also for the superuser, whom the system would let."""
    Linear(3, 2).save(path)
    before = path.read_bytes()
    path.chmod(0o444)
    with pytest.raises(PermissionError) as caught:
        Linear(3, 2).save(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208
    Linear.load(path)


@unix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user, whom only root can be")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_may_not_be_written_is_not_replaced(suffix):
    """Files and folders of others, for a user who is not the superuser."""
    with TemporaryDirectory() as folder:  # pytest's own keep other users out
        path = Path(folder) / f"layer{suffix}"
        Linear(3, 2).save(path)
        before = path.read_bytes()
        for folder_mode, mode in ((0o777, 0o644), (0o555, 0o666), (0o755, 0o600)):
            path.parent.chmod(folder_mode)
            path.chmod(mode)
            result = python(f"""
import os
import zipfile  # while the interpreter's own files can still be read
from fastlinear import Linear
layer = Linear(3, 2)
os.setgid(65534), os.setuid(65534)
try:
    layer.save({str(path)!r})
except PermissionError as error:
    assert error.filename == {str(path)!r}, error
else:
    raise AssertionError
""")
            assert result.returncode == 0, result.stderr
            assert path.read_bytes() == before
            assert list(path.parent.iterdir()) == [path]


@unix
def test_hard_links(path):
    """The name that is saved to gets the new file, whole; the other keeps the old one, whole."""
    other = path.with_stem("other")
    old, new = Linear(3, 2, rng=0), Linear(3, 2, rng=1)
    old.save(path)
    other.hardlink_to(path)
    new.save(path)
    assert_same_memory(Linear.load(path), memory_of(new))
    assert_same_memory(Linear.load(other), memory_of(old))


@unix
def test_links_that_lead_nowhere(path):
    """A link to a file that is not there makes that file; one into a missing folder, to a folder or to itself fails."""
    folder = path.parent / "folder"
    folder.mkdir()
    for target, error in (
        (folder / path.name, None),
        (folder / "missing" / path.name, FileNotFoundError),
        (folder, IsADirectoryError),
        (path, OSError),
    ):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(error or FileNotFoundError) as caught:
            Linear.load(path)
        assert caught.value.filename == str(path)
        if error:
            with pytest.raises(error) as caught:
                Linear(3, 2).save(path)
            assert caught.value.filename == str(path)
        else:
            Linear(3, 2, rng=0).save(path)
            assert_same_memory(Linear.load(target), memory_of(Linear(3, 2, rng=0)))
        assert path.is_symlink()
    assert sorted(p.name for p in path.parent.rglob("*")) == sorted([path.name, path.name, "folder"])


@unix
def test_special_files(path):
    """A FIFO, a socket, a device, and links to them: refused, without waiting, and still there."""
    fifo, listening, links = path.with_stem("fifo"), path.with_stem("socket"), []
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(str(listening))
        except OSError:  # the name is too long for a socket
            listening = fifo
        for target in (fifo, listening, "/dev/zero", "/dev/full"):
            links.append(path.with_stem(f"link{len(links)}"))
            links[-1].symlink_to(target)
        before = {name: name.stat().st_ino for name in (fifo, listening, *links)}
        code = f"""
from fastlinear import Linear
for name in {[str(name) for name in before]}:
    for use in (Linear.load, Linear(2, 2).save):
        try:
            use(name)
        except ValueError as error:
            assert str(error).startswith(name + " must be a regular file, got a "), error
        else:
            raise AssertionError(name)
"""
        result = python(code, timeout=30)
        assert result.returncode == 0, result.stderr
        assert {name: name.stat().st_ino for name in before} == before
        assert all(link.is_symlink() for link in links)
        assert set(path.parent.iterdir()) == set(before)


@unix
def test_a_fifo_that_takes_the_place_of_a_file(path, monkeypatch):
    """Between the look at the file and its opening. It is refused then, too, and does not wait."""
    Linear(3, 2).save(path)
    check = _files._check_regular

    def check_and_replace(name, mode):
        check(name, mode)
        path.unlink()
        os.mkfifo(path)
        os.close(os.open(path, os.O_RDWR))  # raises if it is not there

    monkeypatch.setattr(_files, "_check_regular", check_and_replace)
    with pytest.raises(ValueError, match=r"must be a regular file, got a FIFO"):
        Linear.load(path)


@unix
def test_sparse_files(tmp_path):
    """A terabyte of nothing is not read: a file has what its table of contents says and no more."""
    for suffix in SUFFIXES:
        path = tmp_path / f"sparse{suffix}"
        Linear(3, 2).save(path)
        for size in (2**40, 2**62):
            with suppress(OSError):  # not every file system goes that far
                os.truncate(path, size)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged"):
            Linear.load(path)
