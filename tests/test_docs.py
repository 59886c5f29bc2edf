"""What the documentation says is there, is there, and what it shows runs."""

import ast
import doctest
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlinear
from fastlinear import Linear, Sequential

HOME = Path(__file__).parents[1]
PAGES = [HOME / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES += sorted(HOME.glob("docs/**/*.md"))
PAGES = [page for page in PAGES if page.is_file()]
PUBLIC = {
    name: getattr(fastlinear, name)
    for name in fastlinear.__all__
    if name not in ("__version__", "activations", "losses", "reference")
}
PUBLIC |= {
    f"fastlinear.{module}.{name}": getattr(getattr(fastlinear, module), name)
    for module in ("activations", "losses")
    for name in getattr(fastlinear, module).__all__
    if name != "NAMES"
}
PUBLIC |= {
    f"{kind.__name__}.{name}": getattr(kind, name)
    for kind in (Linear, Sequential)
    for name in dir(kind)
    if name[0] != "_"
}

pytestmark = pytest.mark.skipif(
    not (HOME / "docs/conf.py").is_file(), reason="the documentation is not beside the tests"
)


def named(page):
    return str(page.relative_to(HOME))


def read(page):
    return page.read_text(encoding="utf-8")


@pytest.fixture
def threads():
    before = fastlinear.get_num_threads()
    yield
    fastlinear.set_num_threads(before)


def run(text, names, where):
    """Each example gives what stands below it, whatever another page has told NumPy about printing."""
    test = doctest.DocTestParser().get_doctest(text, names, where, where, 0)
    with np.printoptions(precision=8, suppress=False):
        assert doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test).failed == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in read(page)], ids=named)
def test_pages_run(page, threads):
    if page.name == "how-it-is-fast.md" and fastlinear.isa not in ("avx512", "avx2"):
        pytest.skip("it shows the bits of fused multiply-adds")
    text = read(page)
    for package in re.findall(r"^>>> (?:from|import) (\w+)", text, re.MULTILINE):
        pytest.importorskip(package)
    run(text, {}, str(page))


@pytest.mark.parametrize("package", ["torch", "sklearn"])
def test_moving_over_from(package):
    """The blocks with other libraries: their assertions hold."""
    pytest.importorskip(package)
    blocks = re.findall(r"```python\n(.*?)```", read(HOME / "docs/moving-over.md"), re.DOTALL)
    blocks = [block for block in blocks if re.search(rf"^(import|from) {package}\b", block, re.MULTILINE)]
    assert blocks
    for block in blocks:
        exec(block, {})


def test_inside_pytorch(tmp_path, monkeypatch):
    """The blocks of that page, one after another."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    exec("".join(re.findall(r"```python\n(.*?)```", read(HOME / "docs/torch.md"), re.DOTALL)), {})


def without_figures(text):
    """The words alone: figures differ from run to run, and with them the width of columns."""
    return re.sub(r"[\d.,]+", "#", " ".join(text.split()))


@pytest.mark.parametrize("name", ["control-loop", "online-learner", "scoring-service", "simulation"])
def test_the_program_of_a_page(name, tmp_path):
    """The Python blocks of a page, one after another, are a program, and its text blocks are what the program prints.

    Figures apart, the words must be the same.
    """
    if fastlinear.isa == "reference":
        pytest.skip("it makes no promises about bits, and takes minutes")
    text = read(HOME / f"docs/{name}.md")
    program = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for package in re.findall(r"^ *(?:from|import) (\w+)", program, re.MULTILINE):
        pytest.importorskip(package)
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    paths = os.pathsep.join([str(Path(fastlinear.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    printed = "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL))
    assert without_figures(result.stdout) == without_figures(printed)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", [name for name, it in PUBLIC.items() if ">>>" in (inspect.getdoc(it) or "")])
def test_docstrings_run(name, threads):
    public = {name: getattr(fastlinear, name) for name in fastlinear.__all__}
    public |= {name: getattr(fastlinear.losses, name) for name in fastlinear.losses.__all__}
    run(inspect.getdoc(PUBLIC[name]), {**public, "np": np, "fastlinear": fastlinear}, name)


def test_everything_public_is_on_the_page_of_the_interface():
    listed = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)(?:\(.*\))?$", read(HOME / "docs/api.md"), re.MULTILINE))
    inherent = {
        f"{kind}.{name}" for kind in ("Linear", "Sequential") for name in ("in_features", "out_features", "dtype")
    }
    assert set(PUBLIC) - inherent <= listed


def names(module):
    tree = ast.parse(read(HOME / "tests" / module))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tests_that_are_named_exist(page):
    for module, test in re.findall(r"(test_\w+\.py)::(\w+)", read(page)):
        assert test in names(module), f"{module}::{test}"


def test_every_promise_has_a_test():
    """Each row of each table with a column "shown by" names a test."""
    rows = 0
    for table in read(HOME / "docs/reliability.md").split("\n\n"):
        header, *lines = table.splitlines()
        if header.endswith("| shown by |"):
            for line in lines[1:]:
                assert re.search(r"test_\w+\.py::\w+[^|]*\|$", line), line
                rows += 1
    assert rows > 20


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    """Relative links: the file is there, and the heading in it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if link.startswith(("http:", "https:")):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", read(target), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], link
