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
from fastlinear._network import Tape

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
EXPLAINED = PUBLIC | {
    f"{kind.__name__}.{name}": getattr(kind, name)
    for kind in (fastlinear.SGD, fastlinear.Adam, fastlinear.AdamW, Tape)
    for name in dir(kind)
    if name[0] != "_"
}
"""What a user can call or read, whether it has a place of its own on the page of the interface or not."""

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


def test_the_lines_of_the_readme():
    """They run, and give what their comments say."""
    names = {}
    exec(re.search(r"```python\n(.*?)```", read(HOME / "README.md"), re.DOTALL)[1], names)
    assert names["y"].shape == (32, 10)
    assert names["grad_input"].shape == names["x"].shape
    assert not names["layer"].grad_weight.any()


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


def examples_of(names):
    return [name for name, it in names.items() if ">>>" in (inspect.getdoc(it) or "")]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", examples_of(EXPLAINED | {"losses": fastlinear.losses}))
def test_docstrings_run(name, threads, tmp_path, monkeypatch):
    """Each example, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    public = {name: getattr(fastlinear, name) for name in fastlinear.__all__}
    public |= {name: getattr(fastlinear.losses, name) for name in fastlinear.losses.__all__}
    text = inspect.getdoc(fastlinear.losses if name == "losses" else EXPLAINED[name])
    for package in re.findall(r"^>>> (?:from|import) (\w+)", text, re.MULTILINE):
        pytest.importorskip(package)
    run(text, {**public, "np": np, "fastlinear": fastlinear}, name)


@pytest.mark.parametrize("name", EXPLAINED)
def test_docstrings_say_enough(name):
    """Each argument by its name, what can go wrong, what becomes of out, and an example; of an attribute what it is."""
    it = EXPLAINED[name]
    text = inspect.getdoc(it)
    if not callable(it):
        owner, _, attribute = name.rpartition(".")
        of_class = "\n".join(inspect.getdoc(kind) or "" for kind in getattr(fastlinear, owner, Tape).__mro__)
        assert text or re.search(rf"^(?:\w+, )*{attribute}\b[\w, ]*(?: :|$)", of_class, re.MULTILINE)
        return
    try:
        parameters = inspect.signature(it).parameters.values()
        arguments = {p.name for p in parameters if p.kind is not p.VAR_POSITIONAL}
    except ValueError:  # a compiled method of Python 3.10 to 3.12
        arguments = set(re.findall(r"(\w+)(?==|,|\))", it.__text_signature__ or ""))
    arguments -= {"self"}
    assert {argument for argument in arguments if not re.search(rf"\b{argument}\b", text)} == set()
    assert ">>> " in text
    if arguments:
        assert re.search(r"Error|errors", text)
    if "out" in arguments:
        assert re.search(r"overwr\w+", text)


def test_everything_public_is_on_the_page_of_the_interface():
    listed = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)(?:\(.*\))?$", read(HOME / "docs/api.md"), re.MULTILINE))
    inherent = {
        f"{kind}.{name}" for kind in ("Linear", "Sequential") for name in ("in_features", "out_features", "dtype")
    }
    assert set(PUBLIC) - inherent <= listed


def test_contributing_shows_every_file():
    """Its tree has a line for each file of the package, apart from the types of the compiled modules, and no other."""
    tree = re.search(r"```text\n(setup.py.*?)```", read(HOME / "CONTRIBUTING.md"), re.DOTALL)[1]
    package = re.search(r"^fastlinear/.*?(?=^tests/)", tree, re.DOTALL | re.MULTILINE)[0]
    sources = {file.name for file in (HOME / "fastlinear").iterdir() if file.suffix in (".py", ".pyx", ".pxd", ".h")}
    assert set(re.findall(r"^  (\w+\.\w+)", package, re.MULTILINE)) == sources


def names(module):
    tree = ast.parse(read(HOME / "tests" / module))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tests_that_are_named_exist(page):
    for module, test in re.findall(r"(test_\w+\.py)::(\w+)", read(page)):
        assert test in names(module), f"{module}::{test}"


def test_every_promise_has_a_test():
    """Each item of each list on the page of promises names a test, or a command that is there."""
    promises = re.findall(r"^(?:-|\d+\.) .*(?:\n  +.*)*", read(HOME / "docs/reliability.md"), re.MULTILINE)
    assert len(promises) > 60
    for promise in promises:
        commands = re.findall(r"`(\.ci/\w+)`", promise)
        assert re.search(r"`test_\w+\.py::\w+`", promise) or commands, promise
        assert all((HOME / command).is_file() for command in commands), promise


def test_one_figure_for_one_thing():
    """Each time, rate and ratio of the page on speed stands in the same digits on the page of benchmarks."""
    page = read(HOME / "docs/how-it-is-fast.md").replace("\n", " ")
    figures = re.findall(r"\b\d[\d.]* (?:ns|µs|ms|GB/s)\b|\b\d+\.\d GFLOP/s|\b\d\.\d\d\b", page)
    assert len(figures) > 15
    measured = read(HOME / "docs/benchmarks/README.md")
    assert not [figure for figure in figures if figure not in measured]


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
