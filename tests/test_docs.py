"""What the documentation says is there, is there."""

import ast
import re
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
PAGES = [HOME / name for name in ("README.md", "CONTRIBUTING.md", "docs/reliability.md", "docs/index.md")]

pytestmark = pytest.mark.skipif(not (HOME / "docs").is_dir(), reason="the documentation is not beside the tests")


def names(module):
    tree = ast.parse((HOME / "tests" / module).read_text())
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page):
    for module, test in re.findall(r"(test_\w+\.py)::(\w+)", page.read_text()):
        assert test in names(module), f"{module}::{test}"


def test_every_promise_has_a_test():
    """Each row of each table with a column "shown by" names a test."""
    rows = 0
    for table in (HOME / "docs/reliability.md").read_text().split("\n\n"):
        header, *lines = table.splitlines()
        if header.endswith("| shown by |"):
            for line in lines[1:]:
                assert re.search(r"test_\w+\.py::\w+[^|]*\|$", line), line
                rows += 1
    assert rows > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Relative links: the file is there, and the heading in it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], link
