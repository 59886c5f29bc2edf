"""The release command: what it makes, what it refuses, and what a dry run and a failure half-way leave behind."""

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("git"), reason="needs GNU tools and git"),
    pytest.mark.skipif(not (ROOT / ".ci" / "release").exists(), reason="the sdist has no .ci"),
]

WHEELS = """#!/bin/sh
version=$(sed 's/.*"\\(.*\\)"/\\1/' "$(dirname "$0")/../fastlinear/_version.py")
mkdir -p "$1" && touch "$1/fastlinear-$version.tar.gz" "$1/fastlinear-$version-cp311-cp311-linux_x86_64.whl"
eval "${MEANWHILE:-}"
exit ${FAILS:-0}
"""
"""In place of .ci/wheels, which compiles for minutes."""

PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
for tool in pip twine cibuildwheel; do printf '#!/bin/sh\\nexit ${TWINE_FAILS:-0}\\n' > "$3/bin/$tool"; done
chmod +x "$3"/bin/*
"""
"""In place of `python -m venv FOLDER`: its tools are found well, and nothing is installed."""


@pytest.fixture
def project(tmp_path):
    """A small repository with the release command, and functions that run git and the command in it."""
    home = tmp_path / "project"
    (home / ".ci").mkdir(parents=True)
    (home / "fastlinear").mkdir()
    (home / ".github" / "workflows").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "release", home / ".ci")
    for name, text in (("wheels", WHEELS), ("python", PYTHON)):
        (home / ".ci" / name).write_text(text)
        (home / ".ci" / name).chmod(0o755)
    (home / ".github" / "workflows" / "ci.yml").write_text("pip install cibuildwheel==1.2.3\n")
    (home / ".gitignore").write_text("/dist/\n")
    (home / "fastlinear" / "_version.py").write_text('__version__ = "0.1.0"\n')
    (home / "CHANGELOG.md").write_text("# Changelog\n\n## [0.1.0] - unreleased\n\n- All.\n\n## [0.0.1] - 2020-02-02\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    clean |= {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "PYTHON": str(home / ".ci" / "python")}

    def run(*command, **environment):
        return subprocess.run(command, cwd=home, env=clean | environment, capture_output=True, text=True)

    def git(*command):
        return run("git", *command).stdout

    git("init", "--quiet", "--initial-branch=main")
    git("config", "user.name", "A")
    git("config", "user.email", "a@example.org")
    git("add", "--all")
    git("commit", "--quiet", "--message", "All")

    def state():
        files = {str(f): f.read_bytes() for f in home.rglob("*") if f.is_file() and ".git/" not in str(f)}
        return files, git("rev-parse", "HEAD"), git("tag"), git("status", "--porcelain")

    def release(*arguments, **environment):
        return run(".ci/release", *arguments, **environment)

    return home, git, state, release


def test_a_release(project):
    """A commit with the version and the dated heading, the tag on it, the packages, and the upload's command."""
    home, git, _, release = project
    run = release("0.2.0")
    assert run.returncode == 0, run.stderr
    assert (home / "fastlinear" / "_version.py").read_text() == '__version__ = "0.2.0"\n'
    today = dt.datetime.now(dt.timezone.utc).date()
    headings = re.findall(r"^## .*", (home / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in [f"## [0.2.0] - {today - dt.timedelta(days=d)}" for d in (0, 1)]
    assert headings[1:] == ["## [0.0.1] - 2020-02-02"]
    assert git("log", "--format=%s").splitlines() == ["Release 0.2.0", "All"]
    assert git("rev-parse", "v0.2.0^{commit}") == git("rev-parse", "HEAD")
    assert git("status", "--porcelain") == ""
    files = {file.name for file in (home / "dist" / "0.2.0").iterdir()}
    assert files == {"fastlinear-0.2.0.tar.gz", "fastlinear-0.2.0-cp311-cp311-linux_x86_64.whl"}
    assert "twine upload dist/0.2.0/*.tar.gz" in run.stdout
    again = release("0.2.0")
    assert again.returncode != 0
    assert "the tag v0.2.0 is there already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "works"),
    [
        (("0.2.0", "--dry-run"), {}, True),
        (("0.2.0",), {"FAILS": "1"}, False),
        (("0.2.0",), {"TWINE_FAILS": "1"}, False),
        (("0.2.0",), {"PYTHON": "/nowhere"}, False),
    ],
    ids=["a dry run", "the wheel's tests fail", "twine fails", "no Python"],
)
def test_nothing_is_changed(project, arguments, environment, works):
    """By a dry run, and by a failure at each step: no file, commit or tag."""
    _, _, state, release = project
    before = state()
    run = release(*arguments, **environment)
    assert (run.returncode == 0) == works, run.stderr
    assert state() == before


def test_a_branch_that_has_moved_on(project):
    """Someone commits while the wheel is built: their commit stays, and there is no tag, no package."""
    home, git, _, release = project
    run = release("0.2.0", MEANWHILE=f"git -C {home} commit --quiet --allow-empty --message Theirs")
    assert run.returncode != 0
    assert "main has changed meanwhile; nothing was kept" in run.stderr
    assert git("log", "--format=%s").splitlines() == ["Theirs", "All"]
    assert git("tag") == git("status", "--porcelain") == ""
    assert not (home / "dist" / "0.2.0").exists()


@pytest.mark.parametrize(
    ("arguments", "prepare", "message"),
    [
        ((), "true", "usage"),
        (("1",), "true", "usage"),
        (("0.2.0", "--dryrun"), "true", "unknown option --dryrun"),
        (("0.2.0", "0.3.0"), "true", "one version, not 0.2.0 and 0.3.0"),
        (("0.2.0",), "echo x > new", "not committed, or not in .gitignore:\n?? new"),
        (("0.2.0",), "git checkout --quiet --detach", "HEAD is on no branch"),
        (("0.2.0",), "mkdir -p dist/0.2.0", "dist/0.2.0 is there already"),
        (("0.2.0",), "sed -i s/unreleased/2026-01-01/ CHANGELOG.md; git commit -qam .", "must end in 'unreleased'"),
    ],
)
def test_refused(project, arguments, prepare, message):
    """And says what is wrong, before anything is built."""
    home, _, state, release = project
    subprocess.run(["sh", "-c", prepare], cwd=home, check=True)
    before = state()
    run = release(*arguments)
    assert run.returncode != 0
    assert message in run.stderr
    assert state() == before
