"""The examples, run as a user runs them: they end well, and print and write what they say.

They need the extra ``examples``; the last ones also ``mpi`` and an MPI (``mpiexec``). What an example prints as its
result it has checked itself: a failed check is another exit status.
"""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, Sequential

HOME = Path(__file__).parents[1]
EXAMPLES = HOME / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside the tests")


@pytest.fixture
def example(tmp_path):
    """Runs an example with the fastlinear under test, in a folder of its own."""
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package)

    def run(name, *options, launcher=()):
        home = str(Path(fastlinear.__file__).parents[1])
        paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [*launcher, sys.executable, str(EXAMPLES / name), *options]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )

    return run


def output(result):
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_digits(example, tmp_path):
    """Both ways of learning and the net reach 0.95 on the test data, and what was learned is on disk."""
    out = output(example("digits.py", "--output", "here"))
    assert re.findall(r"^(\w+) +train", out, re.MULTILINE) == [
        "backward_then_step",
        "backward_update",
        "net_with_adam",
    ]
    assert all(float(accuracy) >= 0.95 for accuracy in re.findall(r"test (\S+)", out))
    assert Linear.load(tmp_path / "here/digits.safetensors").weight.shape == (10, 64)
    assert len(Sequential.load(tmp_path / "here/digits-net.safetensors")) == 3
    assert is_png(tmp_path / "here/digits.png")


def test_online(example):
    """The loss falls along the stream, and scikit-learn finds the same weights (the example checks that)."""
    out = output(example("online.py", "--rows", "20000", "--compared", "2000"))
    lines = re.findall(r"^ +(\S+) +(\S+) +([\d,]+)$", out, re.MULTILINE)
    assert [int(rows.replace(",", "")) for _, _, rows in lines] == [*(2**k for k in range(15)), 20000]
    assert float(lines[0][0]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(lines[-1][1]) < 0.5
    assert re.findall(r"^(fastlinear|scikit-learn) +[\d,]+$", out, re.MULTILINE) == ["fastlinear", "scikit-learn"]
    adaptive = output(example("online.py", "--rows", "20000", "--compared", "100", "--adaptive", "--lr", "0.3"))
    assert float(re.search(r"progressive loss (\S+);", adaptive)[1]) < 0.6


def test_control(example, tmp_path):
    """Training makes nearly every pendulum stand, where none stood before."""
    out = output(example("control.py", "--output", "here"))
    before, after = map(float, re.search(r"(\S+)% of the pendulums before training, (\S+)% after", out).groups())
    assert before < 10
    assert after >= 95
    assert re.search(r"^fastlinear +\S+ µs a call$", out, re.MULTILINE)
    assert Sequential.load(tmp_path / "here/policy.safetensors").parts[1::2] == ("tanh", "tanh")
    assert is_png(tmp_path / "here/control.png")


def test_control_gradient():
    """The gradient that has come back through the net and the policy's inputs is that of finite differences."""
    for package in ("matplotlib", "tqdm"):
        pytest.importorskip(package)
    namespace = {"__name__": "control"}
    exec(compile((EXAMPLES / "control.py").read_text(encoding="utf-8"), "control.py", "exec"), namespace)
    policy = namespace["make_policy"](8, np.random.default_rng(0)).astype(np.float64)
    state = np.array([0.4, -2.0]), np.array([0.3, -0.7])

    def action(angle, velocity):
        return policy(namespace["see"](angle, velocity))[:, 0]

    seen = namespace["see"](*state)
    got = namespace["see_backward"](seen, policy.backward(policy.record(seen), np.ones((2, 1))))
    for index, gradient in enumerate(got):
        above, below = ([s + (i == index) * h for i, s in enumerate(state)] for h in (1e-6, -1e-6))
        assert np.allclose(gradient, (action(*above) - action(*below)) / 2e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits.py", ["--epochs", "0"], "--epochs and --batch-size must be at least 1"),
        ("online.py", ["--rows", "0"], "--rows and --compared must be at least 1"),
        ("control.py", ["--iterations", "0"], "must be at least 1"),
        ("control.py", ["--iterations", "1"], "fewer than 95%"),
    ],
)
def test_what_cannot_work_is_said(example, name, options, message):
    result = example(name, *options)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def mpiexec(ranks):
    """The mpiexec beside this Python (MPI from PyPI) or else the system's. Open MPI must be told to share the cores."""
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("there is no mpiexec")
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
    options = ["--oversubscribe", "--allow-run-as-root"] if "OpenRTE" in version or "Open MPI" in version else []
    return [launcher, *options, "-n", str(ranks)]


@pytest.mark.parametrize("exact", [False, True], ids=["sum", "exact"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_data_parallel(example, ranks, exact):
    """All ranks hold the same bits after each step; one process gets the same within rounding, or with --exact the
    same bits. Both are what the example checks, too."""
    options = ["--epochs", "10", "--batch-size", "64", "--lr", "0.8", *(["--exact"] if exact else [])]
    out = output(example("data_parallel_mpi.py", *options, launcher=mpiexec(ranks)))
    assert f"{ranks} rank(s): the same bits on each after every step" in out
    here, alone, difference = map(
        float, re.search(r"test accuracy (\S+), one process (\S+); the largest .* is (\S+)", out).groups()
    )
    assert min(here, alone) >= 0.93
    assert difference <= (0 if exact else 1e-5)
