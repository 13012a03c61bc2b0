"""`--dry-run` changes nothing, refuses what the command refuses, and names the files that the command writes."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest

from direct_anneal.cli import COMMANDS, main
from direct_anneal.cli.init import template
from direct_anneal.io.lock import LOCK, MARK
from selection.tiny import SKETCH_SIZE, documents, write_jsonl

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture(scope="module")
def desk(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with documents and a finished run, "select"."""
    directory = tmp_path_factory.mktemp("desk")
    write_jsonl(directory / "pool.jsonl", documents(60, seed=11))
    write_jsonl(directory / "validation.jsonl", documents(8, seed=12, prefix="v"))
    (directory / "optimizer.pt").touch()
    (directory / "given").mkdir()
    words = words_of(directory, checkpoint)["select"]
    assert main(["select", *words, "--out", str(directory / "select"), "--quiet"]) == 0
    return directory


def words_of(desk: Path, checkpoint: Path) -> dict[str, list[str]]:
    """A command line that works for each command that writes, but for --out, or passes for one in a dry run."""
    pool, run, given = (str(desk / name) for name in ("pool.jsonl", "select", "given"))
    made = ["--model", str(checkpoint), "--pool", pool, "--validation", str(desk / "validation.jsonl")]
    made += ["--sketch-size", str(SKETCH_SIZE)]
    choose = ["--objective", "matching", "--fraction", "0.25", "--replay", "0.5"]
    return {
        "select": [*made, *choose],
        "features": made,
        "solve": [run, "--fraction", "0.5"],
        "report": [run],
        "export": [run, "--to", "jsonl"],
        "distil": [run],
        "score": ["--scorer", given, "--pool", pool, "--fraction", "0.5"],
        "merge": [given, "--fraction", "0.5"],
        "weights": [run, "--to", "megatron"],
        "convert": [given, "--model-config", str(checkpoint)],
        "anneal": ["--model", str(checkpoint), "--data", pool, "--epochs", "1", "--learning-rate", "0.001"],
        "evaluate": ["--model", str(checkpoint), "--data", pool],
        "compare": ["--from", run],
        "init": [],
        "demo": [],
    }


def state_of(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
    }


@pytest.mark.parametrize("name", [each.name for each in COMMANDS if each.writes is not None])
def test_no_command_writes_anything(
    desk: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(desk)
    before = state_of(desk)
    own_place = name in ("report", "merge", "compare", "init", "demo", "weights")  # with or without --out
    out = [] if own_place else ["--out", str(desk / "new")]
    assert main([name, *words_of(desk, checkpoint)[name], *out, "--dry-run"]) == 0, capsys.readouterr().err
    assert state_of(desk) == before
    assert f"Dry run of {name}: " in capsys.readouterr().out


@pytest.mark.parametrize("name", [each.name for each in COMMANDS if each.takes_file and each.writes is not None])
def test_a_file_of_init_is_taken_once_its_gaps_are_filled(
    desk: Path, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    values = {"out": tmp_path / "new", "model": checkpoint, "pool": desk / "pool.jsonl", "data": desk / "pool.jsonl"}
    values |= {"validation": desk / "validation.jsonl", "scorer": desk / "given"}
    text = template(next(each for each in COMMANDS if each.name == name))
    for option, value in {**values, "learning_rate": 0.001}.items():
        text = text.replace(f"\n{option}: FILL-IN\n", f"\n{option}: {value}\n")
    (tmp_path / "options.yaml").write_text(text)
    flags = {
        "select": ["--fraction", "0.25"],
        "solve": [str(desk / "select")],
        "anneal": ["--epochs", "1"],
        "evaluate": ["--data", str(desk / "pool.jsonl")],
    }
    assert main([name, *flags.get(name, []), "--config", str(tmp_path / "options.yaml"), "--dry-run"]) == 0


def test_it_names_the_files_that_are_written(desk: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("select", "export", "anneal", "init"):  # one of each kind: the others take seconds
        words = words_of(desk, checkpoint)[name]
        line = [name, *words, "--out", str(desk / name), "--log-format", "json"]
        assert main([*line, "--dry-run"]) == 0, capsys.readouterr().err
        told = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert told["dry_run"] is True
        assert told["writes"] == str(desk / name)
        if name != "select":  # which is there
            assert main(line) == 0, capsys.readouterr().err
        capsys.readouterr()
        if (desk / name).is_dir():
            made = {path.name + "/" * path.is_dir() for path in (desk / name).iterdir()} - {MARK, LOCK}
            hidden = {"corpus/"}  # kept for what follows; not for people
            files = [file.replace("files of the format", "part-*") for file in told["files"]]
            for file in files:
                assert fnmatch.filter(made, file) or file == "report.html", (name, file, made)
            left = {each for each in made if not any(fnmatch.fnmatch(each, file) for file in files)}
            assert left <= hidden, (name, left)
        again = main([*line, "--dry-run"])
        capsys.readouterr()
        assert again == (2 if name in ("export", "init") else 0), name


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.writes is None], ids=lambda each: each.name)
def test_commands_that_write_nothing_have_none(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.name in ("plan", "verify", "doctor")  # type: ignore[attr-defined]


class TestRefused:
    def refused(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
        assert main([*words, "--dry-run"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    def test_like_the_command(self, desk: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (desk / "full").mkdir(exist_ok=True)
        (desk / "full" / "mine.txt").write_text("mine")
        lines = words_of(desk, checkpoint)
        for name in ("features", "anneal", "evaluate"):
            message = self.refused([name, *lines[name], "--out", str(desk / "full")], capsys)
            assert "--out must be new, empty or" in message
            assert main([name, *lines[name], "--out", str(desk / "full")]) == 2
            capsys.readouterr()
        missing = [word.replace("pool.jsonl", "none.jsonl") for word in lines["anneal"]]
        assert "matches none" in self.refused(["anneal", *missing, "--out", str(desk / "new")], capsys)
        model = [word.replace(str(checkpoint), str(desk / "no" / "model")) for word in lines["anneal"]]
        assert "--model must be a checkpoint" in self.refused(["anneal", *model, "--out", str(desk / "new")], capsys)
        words = ["anneal", *lines["anneal"], "--out", str(desk / "new"), "--clip", "0"]
        assert "--clip must be above 0" in self.refused(words, capsys)
        assert "must name what is there" in self.refused(["export", "nowhere", "--to", "hf", "--out", "x"], capsys)
        assert not (desk / "new").exists()

    def test_what_is_elsewhere_is_not_looked_up(
        self, desk: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["anneal", "--model", "someone/model", "--data", "https://example.org/a.jsonl", "--epochs", "1"]
        assert main([*words, "--learning-rate", "0.1", "--out", str(desk / "new"), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "--model someone/model (no directory here, so a hub name; not looked up)" in said
        assert "--data https://example.org/a.jsonl (not looked up)" in said
        assert "options  epochs 1.0, learning_rate 0.1; the others are at their defaults" in said
