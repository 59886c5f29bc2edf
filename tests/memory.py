"""Memory for the tests of addresses, made by mmap on Linux: against pages that may not be touched, or of many gigabytes
at the price of few. What touches the wrong address can end the process, so it is called in a process apart.

Nothing here is ever unmapped: it ends with that process.
"""

import ctypes
import mmap
import os
import platform
import sys
from pathlib import Path

import numpy as np

from .helpers import python

PAGE = mmap.PAGESIZE
AVAILABLE = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") and sys.maxsize > 2**32
"""Whether this machine has what is used here."""

# Linux's numbers: Python has no names for some, and none at all elsewhere, where this is imported, too.
_NOTHING, _READ, _WRITE = 0, 1, 2
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NO_RESERVE = 0x1, 0x2, 0x10, 0x20, 0x4000


def _map(size, access, flags, address=None, file=-1):
    """The address of `size` mapped bytes."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    kinds = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    got = function(*(kind(value) for kind, value in zip(kinds, (address, size, access, flags, file, 0), strict=True)))
    if got == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"mmap of {size} bytes")
    return got


def _reserve(size):
    """The address of so many bytes that may not be touched."""
    return _map(size, _NOTHING, _PRIVATE | _ANONYMOUS | _NO_RESERVE)


def _file(size):
    """A file in memory."""
    file = os.memfd_create("fastlinear")
    os.ftruncate(file, size)
    return file


def _array(address, count, dtype):
    """The elements at an address; flagged as writable, whether they are or not."""
    memory = (ctypes.c_byte * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


class Guarded:
    """Room for arrays of up to `count` elements, each of which ends (or begins) where the memory does: one byte further
    is a page that may not be touched. What is not `writable` may not be written either."""

    def __init__(self, count, dtype, ends, writable):
        size = -(-count * np.dtype(dtype).itemsize // PAGE) * PAGE
        file = _file(size)
        self.begin = _reserve(size + 2 * PAGE) + PAGE
        self.end = self.begin + size
        _map(size, _READ | _WRITE if writable else _READ, _SHARED | _FIXED, self.begin, file)
        self._ends, self._count = ends, size // np.dtype(dtype).itemsize
        self._seen = _array(self.begin, self._count, dtype)
        self._behind = np.frombuffer(mmap.mmap(file, size), dtype)  # the same memory, where it can be written

    def place(self, values):
        """The values, at the edge. The array of before is gone."""
        start = self._count - values.size if self._ends else 0
        part = slice(start, start + values.size)
        self._behind[part].reshape(values.shape)[...] = values
        return self._seen[part].reshape(values.shape)


def repeated(values, shape):
    """An array (rows, columns) of elements values[row mod rows of values, column mod columns of values], in memory of
    the size of values: one file, mapped again and again. What is written to one place is seen in all others; values
    becomes that file as it stands alone. One of its axes must be whole, so that it is one piece after another."""
    (rows, columns), size = shape, values.nbytes
    assert values.shape[1] == columns or (len(values) == 1 and columns % values.shape[1] == 0), "not piece after piece"
    assert size % PAGE == 0, "only whole pages can be mapped"
    assert 2**32 % size, "an address that is 4 GiB off would be as good"
    file, times = _file(size), -(-rows * columns // values.size)
    address = _reserve(times * size)
    for n in range(times):
        _map(size, _READ | _WRITE, _SHARED | _FIXED, address + n * size, file)
    alone = np.frombuffer(mmap.mmap(file, size), values.dtype).reshape(values.shape)
    alone[...] = values
    array = _array(address, rows * columns, values.dtype)
    # To read maps 16 pages at once, to write one page: a write for each of them would take longer than all the rest.
    array[:: 16 * PAGE // array.itemsize].sum()
    return array.reshape(shape), alone


_CHILD = """
import faulthandler, resource, signal, sys
import fastlinear
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would be as large as all that is mapped
signal.signal(signal.SIGSEGV, signal.SIG_DFL)     # not AddressSanitizer's: what died of what is told by the exit status
faulthandler.enable()
sys.path.insert(0, {root!r})
from {module} import {name} as function
function(*{arguments!r})
"""


def in_child(function, *arguments, timeout=300):
    """Call a function of a test module in a new interpreter, which a wrong address ends rather than this one. The
    arguments are passed on by their repr."""
    folder = Path(__file__).parent
    module = f"{folder.name}.{Path(function.__code__.co_filename).stem}"
    code = _CHILD.format(root=str(folder.parent), module=module, name=function.__name__, arguments=arguments)
    return python(code, timeout=timeout, OPENBLAS_NUM_THREADS="1")
