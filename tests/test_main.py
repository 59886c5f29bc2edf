"""python -m fastlinear: the build, the self-check, the speed table, and an exit status that tells right from wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info

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
    errors, failures = main.check()
    assert not failures
    assert all(0 <= error <= 4 for row in errors.values() for error in row.values())
    main.print_check(errors, failures)
    assert "WRONG" not in capsys.readouterr().out


def test_json():
    """--json has the configuration, the errors and the times, for a program to read, and the same exit status."""
    run = python(None, "-m", "fastlinear", "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["right"] is True
    assert report["failures"] == []
    assert set(report["errors"]["output"]) == {"float32", "float64"}
    assert report["config"]["numpy"] == np.__version__
    assert [tuple(row[k] for k in ("batch", "in_features", "out_features")) for row in report["speed"]] == main.TIMED
    assert all(row[op][who] > 0 for row in report["speed"] for op in ("forward", "backward") for who in row[op])


def test_other_libraries_are_listed(capsys):
    """The BLAS and OpenMP runtimes that threadpoolctl sees are in show_config, in both its forms."""
    fastlinear.show_config()
    text = capsys.readouterr().out
    libraries = fastlinear.show_config(mode="dicts")["libraries"]
    assert libraries == threadpool_info()
    assert libraries
    assert all(library["filepath"] in text for library in libraries)


def test_without_threadpoolctl():
    """Without it, show_config says how to get it."""
    run = python("import sys; sys.modules['threadpoolctl'] = None\nimport fastlinear; fastlinear.show_config()")
    assert run.returncode == 0, run.stderr
    assert "pip install threadpoolctl" in run.stdout


def test_any_terminal():
    """Where the encoding has no Σ or µ, as on a pipe in Windows, they are replaced."""
    code = "from fastlinear import __main__ as main; main.any_terminal(); main.print_check({}, [])"
    run = python(code, PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr
    assert "units of eps" in run.stdout


def test_bad_mode():
    with pytest.raises(ValueError, match="mode must be 'stdout' or 'dicts', got 'json'"):
        fastlinear.show_config(mode="json")


def test_a_wrong_kernel_is_an_exit_status(monkeypatch, capsys):
    """With a kernel that is off by a little in one element, the exit status is 1 and the output says where."""

    def wrong(x, weight, bias, out, threads=1):
        reference.forward(x, weight, bias, out)
        if out.dtype == np.float32 and out.size:
            out.flat[0] += 1e-4

    monkeypatch.setattr(main.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout="[]"))
    _layer.use_kernels(SimpleNamespace(**{**vars(reference), "forward": wrong}), reference)
    try:
        assert main.main([]) == 1
        out = capsys.readouterr().out
        assert main.main(["--json"]) == 1
        report = json.loads(capsys.readouterr().out)
    finally:
        _dispatch.use(fastlinear.isa)
    assert report["right"] is False
    assert "float32" in report["failures"][0]
    assert "WRONG" in out
    assert "float32" in out
