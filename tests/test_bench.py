"""The benchmark's own bookkeeping: what is published is what was measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
PAGE = HOME / "docs/benchmarks/README.md"

pytestmark = pytest.mark.skipif(not (HOME / "bench/hunt.py").is_file(), reason="the benchmark is not beside the tests")


def run(code, *arguments):
    """Run code in a process of its own, with the modules of bench/."""
    environment = os.environ | {"FASTLINEAR_ISA": "reference", "PYTHONPATH": f"{HOME / 'bench'}{os.pathsep}{HOME}"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_page_and_readme_are_what_the_figures_say():
    """No figure of the page, of the README's claim or of its table was edited, and none is out of date."""
    pytest.importorskip("tqdm")
    done = run(
        "import page; runs, hunts = page.load();"
        f"assert page.write(runs, hunts) == open({str(PAGE)!r}, encoding='utf-8').read(), 'page';"
        f"front = open({str(HOME / 'README.md')!r}, encoding='utf-8').read();"
        "assert page.readme(runs, hunts, front) == front, 'README'"
    )
    assert done.returncode == 0, f"{done.stderr}\nAfter python bench/report.py --redraw it should be the same"


def test_no_row_twice_and_every_picture_linked():
    """A figure stands once in a table; a picture leads to its full size."""
    text = PAGE.read_text(encoding="utf-8")
    for table in text.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        assert len(rows) == len(set(rows)), max(rows, key=rows.count)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures == re.findall(r"\[!\[[^]]*\]\([^)]+\)\]\(([^)]+)\)", text)
    assert {path.name for path in PAGE.parent.glob("*.png")} == set(pictures)


HUNTS = """
import contextlib, io, json, sys, types
import hunt, peers

def measure(operation, case, seconds):
    ratio = ratios.pop(0)
    return {"seconds": {"fastlinear": 1.0, "numpy": ratio}, "ratio": ratio}

hunt.measure, peers.set_threads = measure, lambda threads: None
sys.modules["pictures"] = types.SimpleNamespace(hunt=lambda *arguments: None)
folder, found = sys.argv[1], []
for line in sys.argv[2:]:
    ratios, _, arguments = line.partition(":")
    ratios = [float(ratio) for ratio in ratios.split(",")]
    sys.argv[1:] = ["--save", "--folder", folder, *arguments.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = hunt.main()
    found.append([status, out.getvalue(), hunt.load("reference", hunt.Path(folder))])
print(json.dumps(found))
"""
"""Hunts that measure nothing: each has the ratios of its points, and its arguments."""


def test_a_hunt_goes_on_where_it_was_cut(tmp_path):
    """A hunt in two pieces has the points of one in one piece; the status says whether one is below the floor."""
    pytest.importorskip("tqdm")
    hunts = ("2,0.98: --points 2", "0.5: --points 3", "2: --points 1 --seed 5", "2,0.98,0.5: --points 3 --fresh")
    done = run(HUNTS, str(tmp_path), *hunts)
    assert done.returncode == 0, done.stderr
    half, pieces, seeds, whole = json.loads(done.stdout)
    assert [status for status, *_ in (half, pieces, seeds, whole)] == [0, 1, 1, 1]
    assert "0.50" in pieces[1]
    assert "3 points, 1 below 0.97, no peer faster at 1" in pieces[1]
    assert [(hunt["seed"], len(hunt["points"])) for hunt in seeds[2]] == [(0, 3), (5, 1)]
    assert pieces[2] == whole[2]
