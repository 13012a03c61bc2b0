from __future__ import annotations

from pathlib import Path

import pytest

from direct_anneal.demo import DemoCorpus, write_demo_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    """The demo's corpus at its default size, from the standard library of the Python that runs the tests."""
    return write_demo_corpus(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def tiny_library(tmp_path: Path) -> Path:
    """A trimmed standard library: two modules with text, and what a walk must survive."""
    root = tmp_path / "lib"
    for module in ("one", "two"):
        functions = "\n\n\n".join(_function(module, number) for number in range(70))
        (root / module).mkdir(parents=True)
        (root / module / "__init__.py").write_text(f'"""The module {module} has functions in it."""\n\n{functions}\n')
    (root / "latin.py").write_bytes('"""Un docstring écrit en latin-1, sans déclaration"""'.encode("latin-1"))
    (root / "broken.py").write_text("def unfinished(\n")
    (root / "surrogate.py").write_text(
        '"""A lone surrogate, \\ud800, is legal in a literal but cannot be stored as UTF-8"""'
    )
    for excluded in ("test", "site-packages"):
        (root / excluded).mkdir()
        (root / excluded / "module.py").write_text(
            '"""EXCLUDED: this docstring must never become a document of ours"""'
        )
    return root


def _function(module: str, number: int) -> str:
    return f'''\
# Remark {number} of module {module} is about nothing in particular
# but it is long enough to count as a document of its own.
def function_{number}(first, second):
    """Function {number} of {module} returns the sum of its arguments, and {number} is added to it."""
    total = first + second
    return total + {number} + len("{module}")'''
