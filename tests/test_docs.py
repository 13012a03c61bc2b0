"""The documentation against the code, so that it cannot rot: pages are run, names are those that there are."""

from __future__ import annotations

import io
import json
import re
import shlex
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import direct_anneal
from direct_anneal.cli import _parsed, main
from direct_anneal.cli.flags import values
from direct_anneal.config.option import settled
from direct_anneal.demo import write_demo_corpus

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block of a page, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), flags=re.M | re.S)


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


def run_page(page: str) -> None:
    """Run a page as its reader would: commands in one shell, Python in one session."""
    variables: dict[str, str] = {}
    session: dict[str, Any] = {}
    for language, content in blocks(page):
        if language == "python":
            exec(content, session)
            continue
        for line in content.replace("\\\n", " ").splitlines():
            run(line, variables)


def test_every_command_of_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("direct_anneal.demo.walkthrough.run_demo", small_demo)
    monkeypatch.setattr("direct_anneal.report.try_report", lambda *_: None)  # tests/report draws pages
    run_page("quickstart.md")
    assert {"demo", "first", "second", "third"} <= {path.name for path in tmp_path.iterdir()}


def test_the_tutorial_from_the_benchmark_to_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("direct_anneal.report.try_report", lambda *_: None)  # tests/report draws pages
    run_page("tutorial.md")
    said = capsys.readouterr().out
    assert "Selected 20 of 100 documents" in said
    assert "target_ratio=0.3" in said  # the snippet for OLMo-core
    chosen = {json.loads(line)["site"] for line in (tmp_path / "run-capped" / "selected.jsonl").open()}
    assert "broken" not in chosen
    assert "recipe" in chosen
    assert list((tmp_path / "olmo").glob("part-*.npy"))
    # The picture is of this very run; docs/figures/tutorial.py makes it again.
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    counts = {name: entry for name, entry in manifest["composition"]["domains"].items() if entry["pool"]}
    picture = (DOCS / "figures" / "tutorial_domains.svg").read_text(encoding="utf-8")
    assert all(f">{name}</text>" in picture for name in counts)
    assert sorted(map(int, re.findall(r">(\d+) chosen</text>", picture))) == sorted(
        entry["selected"] for entry in counts.values()
    )


def printed_commands(text: str) -> list[str]:
    """Return what follows `direct-anneal` on lines of code and in code within a line."""
    found, fenced = re.findall(r"`direct-anneal ([a-z]+ [^`]*)`", text), False
    for line in text.replace("\\\n", " ").splitlines():
        fenced ^= line.startswith("```")
        if command := re.match(r"( *)(?:torchrun .*? -m direct_anneal|direct-anneal) +([a-z].*)", line):
            found += [command[2]] if fenced or len(command[1]) == 4 else []
    return found


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_commands_that_pages_print_are_ones(page: Path) -> None:
    """Options and their values; the lab log aside, which tells of the commands as they were."""
    for line in printed_commands(page.read_text(encoding="utf-8")) if page.stem != "log" else ():
        command, given = _parsed([word for word in shlex.split(line, comments=True) if word != "..."])
        settled(command.config, values(command.config, {k: v for k, v in given.items() if k != "dry_run"}))


def test_what_python_does_in_memory(checkpoint: Path) -> None:
    """Run the blocks on modules, arrays and parts; those that run commands have tests of their own."""
    torch.manual_seed(0)
    samples = [(torch.randn(6), torch.tensor(i % 3)) for i in range(120)]
    module = torch.nn.Linear(6, 3)
    arrays = np.random.default_rng(0).normal(size=(300, 16))
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.randint(3, model.config.vocab_size, (128, 8))
    session: dict[str, Any] = {
        "module": module,
        "samples": samples,
        "validation": samples[:20],
        "pool_features": arrays,
        "validation_features": arrays[:50],
        "model": model,
        "pool_ids": ids,
        "validation_ids": ids[:8],
    }
    ran = [
        content
        for _, content in blocks("python.md")
        if any(name in content for name in ("select_samples", "DirectSelector", "SelectionProblem"))
    ]
    assert len(ran) == 3
    for content in ran:
        exec(content, session)
    assert len(session["selection"].indices) == 100


def test_pictures_of_pages_are_there() -> None:
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    named = [(page, name) for page in pages for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8"))]
    assert named
    assert not [name for page, name in named if not (page.parent / name).is_file()]


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells of code, in order, in one session; what stands there as output is empty, so that it cannot be stale."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))
    session: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), session)
    assert len(session["chosen"]) == session["run"].manifest["num_selected"] == 24
    assert (tmp_path / "notebook-run" / "report.html").exists()


def test_the_image_is_built_of_what_is_there() -> None:
    """Docker is not needed to see that each path that is copied exists, and that nothing is installed unpinned."""
    root = DOCS.parent
    lines = (root / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    assert all((root / name).exists() for name in copied)
    assert all("-c constraints.txt" in line for line in lines if "pip install" in line)
    assert next(line for line in lines if line.startswith("FROM")).startswith("FROM python:3.")


def test_lines_of_pages_are_short() -> None:
    """Tables and headings aside, which cannot be broken."""
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md"]
    long = [
        f"{page.name}:{number}"
        for page in pages
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > 120 and not line.lstrip().startswith(("|", "#"))
    ]
    assert not long


def test_modules_that_pages_name_are_there() -> None:
    """The lab log aside, which tells of the code as it was."""
    root = DOCS.parent
    pages = [page for page in [*DOCS.glob("*.md"), root / "README.md"] if page.name != "log.md"]
    named = {
        (page.name, name) for page in pages for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text("utf-8"))
    }
    assert named
    places = (root, root / "src", root / "src" / "direct_anneal")
    assert not [name for name in named if not any((place / name[1]).exists() for place in places)]


def test_the_architecture_names_every_room() -> None:
    package = Path(direct_anneal.__file__).parent
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    named = set(re.findall(r"`(\w+)`", (DOCS / "architecture.md").read_text(encoding="utf-8")))
    assert rooms - named == {"__init__", "__main__"}


def test_the_site_has_every_page() -> None:
    """A page that the navigation does not name is found by nobody."""
    navigation = tomllib.loads((DOCS.parent / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    named = sorted(re.findall(r"'([\w-]+\.md)'", repr(navigation)))
    assert named == sorted(page.name for page in DOCS.glob("*.md"))


def test_every_public_name_has_its_entry() -> None:
    """A name that is gone would leave the page in silence."""
    listed = re.findall(r"^        - (\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(listed) == sorted(direct_anneal.__all__)
