"""Files and pickles: what is saved comes back, a save is whole or nothing, and no file or pickle does any harm."""

import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlinear import Linear, _files

from .helpers import assert_same_bits, assert_same_memory, memory_of

SUFFIXES = [".npz", ".safetensors"]


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors", reason="files of .safetensors are an extra: pip install '.[io]'")
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


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_is_whole_or_nothing(path, monkeypatch, step):
    """A disk that is full leaves the file that was there, and nothing else."""
    before = Linear(5, 4, rng=0)
    before.save(path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            Linear(5, 4, rng=1).save(path)
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208
    assert_same_memory(Linear.load(path), memory_of(before))
    Linear(5, 4, rng=1).save(path)
    assert_same_memory(Linear.load(path), memory_of(Linear(5, 4, rng=1)))


@pytest.mark.parametrize("name", ["layer", "layer.npy", "layer.pt", "layer.npz.gz", ""])
def test_unknown_kinds_of_file(tmp_path, name):
    for use in (Linear(2, 2).save, Linear.load):
        with pytest.raises(ValueError, match=r"must be one of \.npz, \.safetensors, got '.*'"):
            use(str(tmp_path / "x") + name)
    assert not list(tmp_path.iterdir())


def test_missing_files_and_folders(path):
    with pytest.raises(FileNotFoundError):
        Linear.load(path)
    with pytest.raises(FileNotFoundError):
        Linear(2, 2).save(path / "in" / path.name)
    path.mkdir()
    with pytest.raises(OSError, match=r"directory|denied"):
        Linear.load(path)
    with pytest.raises(OSError, match=r"directory|denied"):
        Linear(2, 2).save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'fastlinear\[io\]'"):
        Linear(2, 2).save(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install 'fastlinear\[io\]'"):
        Linear.load(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == b""


class Trap:
    """Whoever unpickles it has run code of the file's author."""

    def __reduce__(self):
        return exec, ("import sys; sys.trapped = True",)


def trapped():
    return sys.__dict__.pop("trapped", False)


def member(shape="(2, 3)", descr="'<f4'", data=bytes(24), magic=b"\x93NUMPY\x01\x00"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return magic + struct.pack("<H", len(header)) + header + data


def archive(*members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name, data in members:
            out.writestr(name, data)
    return file.getvalue()


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
        archive(("weight.npy", member(shape="exec('import sys; sys.trapped = 1')"))),
    ),
    "more elements than bytes": (".npz", archive(("weight.npy", member(shape="(2, 4)")))),
    "fewer elements than bytes": (".npz", archive(("weight.npy", member(shape="(2, 2)")))),
    "more elements than memory": (".npz", archive(("weight.npy", member(shape="(1152921504606846976, 3)")))),
    "negative size": (".npz", archive(("weight.npy", member(shape="(-2, -3)")))),
    "size of another type": (".npz", archive(("weight.npy", member(shape="(2.0, 3)")))),
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
    "other tensors": (".safetensors", tensors(kernel=tensor())),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    """Wrong, truncated and hostile files: a ValueError or TypeError that names what is wrong, and no code was run."""
    suffix, content = HOSTILE[name]
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(content)
    with pytest.raises((ValueError, TypeError), match=r"hostile|from_weights"):
        Linear.load(path)
    assert not trapped()


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


# CPython 3.11 fails now and then (SystemError) when threads parse literals at once, as NumPy does for a header.
@pytest.mark.thread_unsafe(reason="ast.literal_eval")
@given(st.sampled_from(SUFFIXES), st.data())
def test_damaged_files(tmp_path_factory, suffix, data):
    """Any bytes changed: a clear error, or, where a format has no checksum, a layer of sound memory."""
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
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


@pytest.mark.thread_unsafe(reason="tracemalloc")
def test_a_small_file_takes_little_memory(tmp_path):
    """A compressed member that goes on for 100 MB after what its header says is refused before it is read."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("weight.npy", member(descr="'<f4'", shape=(1, 1), data=bytes(10**8)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="weight has more bytes where its shape"):
        Linear.load(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10**7


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links and modes")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_replaced_keeps_its_mode_and_its_link(tmp_path, suffix):
    """Saving over a private file leaves it private, and over a symbolic link writes what it leads to."""
    target, link = tmp_path / f"target{suffix}", tmp_path / f"link{suffix}"
    Linear(3, 2, rng=0).save(target)
    target.chmod(0o600)
    link.symlink_to(target)
    layer = Linear(3, 2, rng=1)
    layer.save(link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert np.array_equal(Linear.load(target).weight, layer.weight)
