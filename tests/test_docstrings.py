"""Docstrings in one manner: functions say what they do, types and modules what they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RELATIVE = {"What", "Which", "Who", "Whose", "Whom", "How", "As", "Whether", "Of", "That", "Where", "When", "Why", "If"}
NO_VERB = {"The", "A", "An", "It", "Its", "This", "These", "All", "Each", "Every", "One", "Two", "Some", "Everything"}
NO_VERB |= {"Nothing", "For", "By", "In", "To", "While"}


def openings(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield each docstring's line and first word, and whether a function has it that is no property."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            decorators = [] if isinstance(node, ast.Module) else map(ast.unparse, node.decorator_list)
            acts = isinstance(node, ast.FunctionDef) and not any("property" in name for name in decorators)
            if words:
                yield getattr(node, "lineno", 1), words[0].strip(".,:;"), acts


def fault(word: str, *, acts: bool) -> str | None:
    """Say what is wrong with a docstring that opens with this word; `acts`: it is a function's."""
    if word in RELATIVE:
        return "opens with a relative clause"
    if acts and (word in NO_VERB or (word.istitle() and word.endswith("s") and not word.endswith("ss"))):
        return "does not open with an imperative"
    return None


def test_docstrings_open_plainly():
    faults = []
    for room in ("src", "tests", "benchmarks", "recipes"):
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            for line, word, acts in openings(ast.parse(path.read_text(encoding="utf-8"))):
                if wrong := fault(word, acts=acts and room == "src"):
                    faults.append(f"{path.relative_to(REPOSITORY)}:{line} {word!r} {wrong}")
    assert not faults


def test_the_rule_finds_what_it_is_for():
    assert fault("Whether", acts=False)
    assert fault("The", acts=True)
    assert fault("Writes", acts=True)
    assert not fault("Writes", acts=False)
    assert not fault("Return", acts=True)
    assert not fault("Guess", acts=True)
