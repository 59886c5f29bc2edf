"""`pytest bench --benchmark-only`: a few shapes in a minute or two; with --full, every listed shape and the grid."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules of this folder are no package


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="benchmark every shape and batch, not only a few")
