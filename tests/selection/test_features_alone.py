"""Features without a choice: what `select` computes, for `solve` or `select` to choose by."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import fsspec
import pytest

from direct_anneal.cli import main
from direct_anneal.errors import InputError
from direct_anneal.selection import SOLVING_FIELDS, Features, FeaturesConfig, Run, SelectConfig, select_again
from selection.killing import content
from selection.pools import NUM_POOL, NUM_VALIDATION, chosen, computed
from selection.tiny import SKETCH_SIZE, files_below, manifest


def below(out: Path, part: str) -> dict[str, bytes]:
    return {name: content for name, content in files_below(out).items() if name.startswith(part)}


@pytest.fixture(scope="module")
def alone(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Features alone. To be copied, not changed."""
    return computed(checkpoint, world, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def selected(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run by an objective that looks at all of them. To be copied, not changed."""
    return chosen(checkpoint, world, tmp_path_factory.mktemp("selected") / "run", objective="matching")


@pytest.fixture
def out(alone: Features, tmp_path: Path) -> Path:
    return Path(shutil.copytree(alone.out, tmp_path / "out"))


def test_they_are_those_of_a_selection_and_nothing_else_is_there(alone: Features, selected: Run) -> None:
    assert {path.name for path in alone.out.iterdir()} == {"corpus", "direct-anneal.json", "features", "options.json"}
    assert below(alone.out, "features/") == below(selected.out, "features/")
    assert alone.corpora == selected.manifest["corpora"]
    assert (alone.corpora["pool"]["documents"], alone.corpora["validation"]["documents"]) == (NUM_POOL, NUM_VALIDATION)
    assert not SOLVING_FIELDS & json.loads((alone.out / "direct-anneal.json").read_text()).keys()
    assert alone.warnings
    assert set(alone.warnings) <= set(selected.manifest["warnings"])


def test_written_to_a_url_and_fetched_they_are_the_same(
    checkpoint: Path, world: Path, alone: Features, tmp_path: Path
) -> None:
    far = computed(checkpoint, world, tmp_path / "far", features=f"memory://{tmp_path.name}/run")
    here = below(alone.out, "features/")
    signs = {name for name in here if name.startswith("features/pool-path/")}  # which stay there
    assert signs
    assert below(far.out, "features/") == {name: held for name, held in here.items() if name not in signs}
    assert fsspec.filesystem("memory").exists(f"/{tmp_path.name}/run/pool-path/columns.json")
    assert fsspec.filesystem("memory").exists(f"/{tmp_path.name}/run/pool/store.json")


@pytest.mark.usefixtures("no_model")
class TestChoosingByThem:
    def test_solve(self, selected: Run, alone: Features, tmp_path: Path) -> None:
        before = files_below(alone.out)
        select_again(alone.out, out=tmp_path / "solved", fraction=0.25, objective="matching")
        assert below(tmp_path / "solved", "sel") == below(selected.out, "sel")
        assert files_below(alone.out) == before

    def test_solve_needs_a_size(self, alone: Features, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"size of the selection must be given once.*got none"):
            select_again(alone.out, out=tmp_path / "solved")

    def test_select_goes_on_there(self, checkpoint: Path, world: Path, selected: Run, out: Path) -> None:
        chosen(checkpoint, world, out, objective="matching")
        assert content(out) == content(selected.out)


class TestAgain:
    @pytest.mark.usefixtures("no_model")
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_where_they_are_nothing_changes(
        self, checkpoint: Path, world: Path, selected: Run, tmp_path: Path, overwrite: bool
    ) -> None:
        """Not even a selection that was made by them."""
        out = Path(shutil.copytree(selected.out, tmp_path / "out"))
        computed(checkpoint, world, out, overwrite=overwrite)
        assert files_below(out) == files_below(selected.out)

    def test_others_are_refused_and_overwriting_leaves_no_selection_by_the_earlier_ones(
        self, checkpoint: Path, world: Path, selected: Run, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(selected.out, tmp_path / "out"))
        with pytest.raises(InputError, match=r"seed: there 0, now 1.*overwrite"):
            computed(checkpoint, world, out, seed=1)
        assert files_below(out) == files_below(selected.out)
        computed(checkpoint, world, out, seed=1, overwrite=True)
        assert {path.name for path in out.iterdir()} == {"corpus", "direct-anneal.json", "features", "options.json"}
        select_again(out, out=tmp_path / "solved", num_samples=5, objective="matching")
        assert manifest(tmp_path / "solved")["config"]["seed"] == 1

    def test_others_are_refused_before_a_selection_too(self, checkpoint: Path, world: Path, out: Path) -> None:
        with pytest.raises(InputError, match=r"seed: there 0, now 1.*overwrite"):
            computed(checkpoint, world, out, seed=1)
        assert json.loads((out / "direct-anneal.json").read_text())["seed"] == 0, "solve would tell of another seed"


@pytest.mark.parametrize("field", sorted(SOLVING_FIELDS))
def test_what_choosing_alone_depends_on_is_refused(checkpoint: Path, world: Path, tmp_path: Path, field: str) -> None:
    with pytest.raises(TypeError, match=f"has no option '{field}'"):
        computed(checkpoint, world, tmp_path / "out", **{field: 1})
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_to_do_with_them(
    checkpoint: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file of options may be a selection's."""
    out, options = tmp_path / "out", tmp_path / "run.json"
    given = {"model": str(checkpoint), "pool": str(world / "pool"), "sketch_size": SKETCH_SIZE, "fraction": 0.25}
    options.write_text(json.dumps(given))
    words = ["features", "--config", str(options), "--validation", str(world / "validation.jsonl"), "--out", str(out)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"pool: {NUM_POOL} documents, " in told
    command = told.splitlines()[-1].split("direct-anneal ")[1]
    assert main(command.replace(" F ", " 0.1 ").replace("DIR", str(tmp_path / "solved")).split()) == 0
    assert manifest(tmp_path / "solved")["num_selected"] == 6


def test_every_option_has_its_flag_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["features", "--help"])
    shown = capsys.readouterr().out.replace("\n", " ")
    for field in fields(SelectConfig):
        flag = f"--{field.name.replace('_', '-')} "
        assert (flag in shown) == (field.name in FeaturesConfig.__dataclass_fields__), field.name
