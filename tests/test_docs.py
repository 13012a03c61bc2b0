"""The documentation against the code, so that it cannot rot: the quickstart is run, names are those that there are."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import direct_anneal
from direct_anneal.cli import main
from direct_anneal.demo import write_demo_corpus

DOCS = Path(__file__).parents[1] / "docs"


def blocks() -> list[tuple[str, str]]:
    """Language and content of each fenced block of the quickstart, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / "quickstart.md").read_text(encoding="utf-8"), flags=re.M | re.S)


def small_demo(directory: Path, **_: Any) -> None:
    """Some of the demo's documents, without the minutes of its selection."""
    write_demo_corpus(directory / "data", num_documents=120, num_validation=24)


def run(line: str, variables: dict[str, str]) -> None:
    if assigned := re.fullmatch(r"(\w+)=\$\(python -c '(.*)'\)", line):
        with redirect_stdout(io.StringIO()) as said:
            exec(assigned[2], {})
        variables[assigned[1]] = said.getvalue().strip()
        return
    program, *words = shlex.split(line)
    assert program == "direct-anneal", f"the page runs {program}, which this test knows nothing of"
    code = main([variables.get(word.removeprefix("$"), word) for word in words])
    assert code == 0, line


def test_every_command_of_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("direct_anneal.demo.walkthrough.run_demo", small_demo)
    variables: dict[str, str] = {}
    for language, content in blocks():
        if language == "python":
            exec(content, {})
            continue
        for line in content.replace("\\\n", " ").splitlines():
            run(line, variables)
    assert {"demo", "first", "second", "third"} <= {path.name for path in tmp_path.iterdir()}


def test_every_public_name_has_its_entry() -> None:
    """A name that is gone would leave the page in silence."""
    listed = re.findall(r"^        - (\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(listed) == sorted(direct_anneal.__all__)
