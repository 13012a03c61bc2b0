"""Signs of damage for objectives that look at gradients: what is left out, read, kept and asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from direct_anneal.errors import InputError
from direct_anneal.objectives.damage import WITHOUT_SIGNS
from direct_anneal.path import PathLosses, columns_at
from direct_anneal.run.verify_run import verify_run
from direct_anneal.selection import compute_features, select_again, select_documents
from selection.tiny import chosen_ids, documents, evidence, files_below, manifest, write_jsonl

LOOP = "the same few words again and again, "
UNREAD: dict[str, Any] = {"min_order": 0.0}  # random weights read nothing better for its order


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A pool of three domains with a loop in it, and the same loop as the target."""
    directory = tmp_path_factory.mktemp("world")
    write_jsonl(directory / "validation.jsonl", [{"id": f"v{place}", "text": (3 + place) * LOOP} for place in range(4)])
    pool = [*documents(21, seed=2, prefix="p"), {"id": "loop", "domain": "loop", "text": 6 * LOOP}]
    write_jsonl(directory / "pool.jsonl", pool)
    return {role: str(directory / f"{role}.jsonl") for role in ("pool", "validation")}


@pytest.fixture(scope="module")
def run(checkpoint: Path, world: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "matching"
    select_documents(
        model=checkpoint,
        out=out,
        objective="matching",
        objective_options=UNREAD,
        sketch_size=32,
        num_samples=4,
        **world,
    )
    return out


@pytest.mark.parametrize("objective", ["matching", "descent"])
def test_a_loop_is_left_out_even_where_it_is_what_is_wanted(run: Path, tmp_path: Path, objective: str) -> None:
    found = {}
    for name, limits in (("limits", UNREAD), ("none", WITHOUT_SIGNS)):
        select_again(run, out=tmp_path / name, objective=objective, objective_options=limits)
        found[name] = "loop" in chosen_ids(tmp_path / name)
    assert found == {"limits": False, "none": True}
    told = manifest(tmp_path / "limits")
    assert told["objective"]["damaged"]["repeat themselves"] == 1
    assert any("1 documents left out, because they look damaged" in warning for warning in told["warnings"])
    table = evidence(tmp_path / "limits")
    assert (table["repeated"].to_numpy() > 0.5).tolist() == [name == "loop" for name in table["id"].to_pylist()]


def test_what_was_not_read_is_no_sign_and_that_is_said(run: Path, tmp_path: Path) -> None:
    again = select_again(run, out=tmp_path / "again", objective_options={"min_order": 0.93})
    assert any("the order of words was read in no document" in warning for warning in again.manifest["warnings"])


def test_what_is_forced_in_is_chosen_all_the_same(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("loop\n")
    select_again(run, out=tmp_path / "again", force_in=str(tmp_path / "in.txt"))
    assert "loop" in chosen_ids(tmp_path / "again")


def test_no_path_is_walked_for_signs(run: Path) -> None:
    losses = PathLosses.load(run / "features/pool-path")
    assert losses.names == ()
    assert losses.usable.all()
    assert columns_at(run / "features/pool-path") == {"signs"}
    assert not list((run / "path").glob("*.safetensors"))
    assert not [finding for finding in verify_run(run) if not finding.harmless]


def test_features_that_are_for_any_objective_have_signs(
    checkpoint: Path, world: dict[str, str], run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features"
    compute_features(model=checkpoint, out=out, sketch_size=32, **world)
    again = {"objective": "matching", "objective_options": UNREAD, "num_samples": 4}
    select_again(out, out=tmp_path / "again", **again)
    assert sorted(chosen_ids(tmp_path / "again")) == sorted(chosen_ids(run))


def test_the_order_of_words_is_that_which_comes_with_a_path(
    checkpoint: Path, world: dict[str, str], tmp_path: Path
) -> None:
    read = []
    for objective, own in (("matching", {}), ("path", {"learning_rates": (1e-2,), "max_passes": 1.0, "num_folds": 2})):
        options = {**own, "min_order": 1e-9}
        given = {"objective": objective, "objective_options": options, "sketch_size": 32, "num_samples": 4}
        select_documents(model=checkpoint, out=tmp_path / objective, **given, **world)
        read.append(PathLosses.load(tmp_path / objective / "features/pool-path"))
    for name in ("order", "repeated", "common"):
        np.testing.assert_allclose(*(getattr(losses, name) for losses in read), atol=1e-6, err_msg=name)
    assert np.isfinite(read[0].order).sum() > 15


def test_signs_that_came_with_a_path_serve_without_another_reading(
    checkpoint: Path, world: dict[str, str], tmp_path: Path
) -> None:
    quick = {"learning_rates": (1e-2,), "max_passes": 1.0, "num_folds": 2, "min_order": 1e-9}
    given = {"model": checkpoint, "out": tmp_path / "run", "sketch_size": 32, "num_samples": 4, **world}
    select_documents(**given, objective="blend", objective_options=quick)
    before = {name: bytes_ for name, bytes_ in files_below(tmp_path / "run").items() if name.startswith("features/")}
    select_documents(**given, objective="matching", objective_options={"min_order": 1e-9}, overwrite=True)
    after = files_below(tmp_path / "run")
    assert {name: after.get(name) for name in before} == before


def test_a_run_without_signs_says_how_to_go_on(checkpoint: Path, world: dict[str, str], tmp_path: Path) -> None:
    given = {"objective": "energy", "sketch_size": 32, "num_samples": 4}
    select_documents(model=checkpoint, out=tmp_path / "energy", **given, **world)
    assert not (tmp_path / "energy/features/pool-path").exists()
    with pytest.raises(InputError, match="must have signs of damage for objective matching, but has gradients"):
        select_again(tmp_path / "energy", out=tmp_path / "again", objective="matching")
    select_again(tmp_path / "energy", out=tmp_path / "again", objective="matching", objective_options=WITHOUT_SIGNS)
