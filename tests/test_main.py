"""python -m fastlinear: the build, the self-check, the speed table, and an exit status that tells right from wrong."""

from types import SimpleNamespace

import numpy as np

import fastlinear
from fastlinear import __main__ as main
from fastlinear import _dispatch, _layer, reference

from .helpers import python


def test_command():
    """It exits with 0 and prints the configuration, an error of every output below the limit, and a row of times for
    every shape."""
    run = python(None, "-m", "fastlinear")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    lines = [line.split() for line in run.stdout.splitlines() if line]
    assert lines[0][:2] == ["fastlinear:", fastlinear.__version__]
    errors = {name: tuple(map(float, values)) for name, *values in lines if name in ("output", "grad_weight")}
    assert len(errors) == 2
    assert all(0 < error <= 4 for pair in errors.values() for error in pair)
    timed = {tuple(map(int, row[:3])) for row in lines if len(row) == 9 and row[0].isdigit()}
    assert timed == set(main.TIMED)


def test_check_is_right(isa, capsys):
    """The self-check finds every instruction set, and the reference, right."""
    assert main.check()
    assert "WRONG" not in capsys.readouterr().out


def test_a_wrong_kernel_is_an_exit_status(monkeypatch, capsys):
    """With a kernel that is off by a little in one element, the exit status is 1 and the output says where."""

    def wrong(x, weight, bias, out, threads=1):
        reference.forward(x, weight, bias, out)
        if out.dtype == np.float32 and out.size:
            out.flat[0] += 1e-4

    monkeypatch.setattr(main.subprocess, "run", lambda *args, **kwargs: None)
    _layer.use_kernels(SimpleNamespace(**{**vars(reference), "forward": wrong}))
    try:
        assert main.main() == 1
    finally:
        _dispatch.use(fastlinear.isa)
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "float32" in out
