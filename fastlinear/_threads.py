"""How many threads a call may use."""

from __future__ import annotations

import operator
import os
import re
from contextlib import suppress

from fastlinear import _layer

_VARIABLE = "FASTLINEAR_NUM_THREADS"


def set_num_threads(n: int) -> None:
    """Let a call use up to n threads, 1 to 1024. Small calls stay on the calling thread. Results do not depend on n.

    A limit that is set later through OpenMP (threadpoolctl, ``omp_set_num_threads``) is obeyed. In a child process
    after a fork, calls run on one thread whatever is set, because the common OpenMP runtime does not survive a fork.
    Raises TypeError if n is not an integer, ValueError if it is not from 1 to 1024.

    >>> before = fastlinear.get_num_threads()
    >>> fastlinear.set_num_threads(1)
    >>> fastlinear.get_num_threads()
    1
    >>> fastlinear.set_num_threads(before)
    """
    try:
        threads = operator.index(n)
    except TypeError:
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}") from None
    if not 1 <= threads <= 1024:
        from fastlinear._advice import shown

        raise ValueError(f"set_num_threads: n must be from 1 to 1024, got {shown(threads)}")
    _layer.set_threads(threads)


def get_num_threads() -> int:
    """The most threads that a call would use now, at least 1.

    >>> 1 <= fastlinear.get_num_threads() <= 1024
    True
    """
    return _layer.get_threads()


def default_num_threads() -> int:
    """The cores that this process may use: its affinity, and the quota of its control group, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max") as file:  # control groups, version 2
            quota, period = file.read().split()
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    with suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:  # version 1
            quota_us = int(file.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
            period_us = int(file.read())
        if quota_us > 0:
            cores = min(cores, max(1, -(-quota_us // period_us)))
    return cores


def openmp_stack_size() -> int:
    """The bytes of stack that OpenMP gives each thread, by its variables. 0 if these say nothing that OpenMP takes."""
    for variable in ("OMP_STACKSIZE", "GOMP_STACKSIZE", "KMP_STACKSIZE"):
        if size := re.fullmatch(r"\s*(\d{1,9})\s*([bkmg]?)\s*", os.environ.get(variable, ""), re.ASCII | re.IGNORECASE):
            return int(size[1]) << {"b": 0, "": 10, "k": 10, "m": 20, "g": 30}[size[2].lower()]
    return 0


def initialise() -> None:
    """Set the number of threads, from FASTLINEAR_NUM_THREADS or by default. After a fork it is one."""
    _layer.set_thread_stack_size(openmp_stack_size())
    wanted = os.environ.get(_VARIABLE)
    if wanted:
        if not wanted.isascii() or not wanted.isdigit() or len(wanted) > 4 or not 1 <= int(wanted) <= 1024:
            raise ImportError(f"{_VARIABLE}={wanted!r} must be an integer from 1 to 1024")
        set_num_threads(int(wanted))
    else:
        # OMP_NUM_THREADS counts, too, and so does whoever else has limited OpenMP already.
        _layer.set_threads(min(default_num_threads(), _layer.openmp_threads()))
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_layer.after_fork_in_child)
