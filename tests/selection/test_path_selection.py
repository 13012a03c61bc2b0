"""`select` and `solve` by the path: without gradients, beside them, and what it leaves out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from rich.console import Console

from direct_anneal.errors import InputError
from direct_anneal.path import PathLosses, columns_at
from direct_anneal.progress import Advance, Items, Silent, Work, showing
from direct_anneal.report import print_summary, write_report
from direct_anneal.run.verify_run import verify_run
from direct_anneal.selection import compute_features, planning, select_again, select_documents
from selection.tiny import chosen_ids, documents, evidence, files_below, manifest, write_checkpoint, write_jsonl

QUICK: dict[str, Any] = {"learning_rates": (1e-2,), "max_passes": 1.0, "num_folds": 2}
LOOP = "the same few words again and again, "


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of code, a pool of three domains, and a loop in it."""
    directory = tmp_path_factory.mktemp("world")
    write_jsonl(directory / "validation.jsonl", documents(12, seed=1, prefix="v", domains=("code",)))
    pool = [*documents(21, seed=2, prefix="p"), {"id": "loop", "domain": "loop", "text": 6 * LOOP}]
    write_jsonl(directory / "pool.jsonl", pool)
    return directory


def selected(checkpoint: Path, world: Path, out: Path, **options: Any) -> Any:
    given: dict[str, Any] = {
        "model": checkpoint,
        "pool": str(world / "pool.jsonl"),
        "validation": str(world / "validation.jsonl"),
        "out": out,
        "objective": "path",
        "objective_options": {**QUICK, "min_order": 1e-9},  # random weights read nothing better for its order
        "sketch_size": 32,
    }
    if not {"num_tokens", "num_samples"} & options.keys():
        options["fraction"] = 0.25
    return select_documents(**(given | options))


@pytest.fixture(scope="module")
def run(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "path"
    selected(checkpoint, world, out)
    return out


def test_chooses_the_largest_drops(run: Path) -> None:
    table = evidence(run)
    drop, chosen, damaged = (table[name].to_numpy() for name in ("path", "selected", "repeated"))
    np.testing.assert_allclose(drop, table["loss_replayed"].to_numpy() - table["loss_end"].to_numpy())
    fit = damaged <= 0.5
    assert drop[chosen].min() >= drop[fit & ~chosen].max()
    np.testing.assert_allclose(table["score"].to_numpy(), drop)
    np.testing.assert_allclose(table["loss"].to_numpy(), table["loss_start"].to_numpy())


def test_where_too_few_documents_look_whole_that_is_said(run: Path, tmp_path: Path) -> None:
    strict = {**QUICK, "min_order": 1e-9, "max_repeated": 0.0, "max_common": 0.0}
    with pytest.raises(InputError, match="documents that do not look damaged must have the 20 documents") as refused:
        select_again(run, out=tmp_path / "again", num_samples=20, objective_options=strict)
    assert "max_repeated" in str(refused.value)


def test_the_blend_has_limits_of_damage_of_its_own(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    limits = {"min_order": 0.0, "max_repeated": 1.0, "max_common": 1.0}
    selected(checkpoint, world, tmp_path / "out", objective="blend", objective_options=limits, num_samples=22)
    assert "loop" in chosen_ids(tmp_path / "out")
    assert np.isnan(PathLosses.load(tmp_path / "out/features/pool-path").order).all(), "which is not looked at then"


def test_where_the_pool_is_of_the_targets_kind_the_blend_is_matching(checkpoint: Path, tmp_path: Path) -> None:
    for role, seed, count in (("pool", 3, 60), ("validation", 4, 50)):
        write_jsonl(tmp_path / f"{role}.jsonl", documents(count, seed=seed, prefix=role, domains=("code",)))
    quick = {**QUICK, "min_order": 0.0, "num_folds": 0}
    ran = selected(checkpoint, tmp_path, tmp_path / "out", objective="blend", objective_options=quick, num_samples=9)
    assert ran.manifest["objective"]["chosen_by"] == "matching"
    assert ran.manifest["objective"]["told_apart"] == ran.manifest["safety"]["told_apart"] < 0.97
    assert any("so matching chose" in told for told in ran.manifest["warnings"])
    assert "path" not in evidence(tmp_path / "out").column_names
    assert not any((tmp_path / "out/path").glob("*")), "nothing was walked"
    write_report(tmp_path / "out")
    select_again(tmp_path / "out", out=tmp_path / "fewer", num_samples=5)
    again = {"out": tmp_path / "again", "overwrite": True}
    options = {"objective": "matching", "objective_options": {"min_order": 0.0}}
    select_again(tmp_path / "out", **again, **options)
    assert chosen_ids(tmp_path / "again") == chosen_ids(tmp_path / "out")
    path_wanted = {**quick, "matching_below": 0}
    with pytest.raises(InputError, match="have losses along the path for objective blend"):
        select_again(tmp_path / "out", **again, objective_options=path_wanted)
    asked = {"objective": "blend", "objective_options": path_wanted, "num_samples": 9, "overwrite": True}
    kept = selected(checkpoint, tmp_path, tmp_path / "out", **asked)
    assert "chosen_by" not in kept.manifest["objective"]
    assert chosen_ids(tmp_path / "again") != chosen_ids(tmp_path / "out")


def test_options_that_are_left_out_stay_the_runs(run: Path, tmp_path: Path) -> None:
    """And of the walk, those that the losses were computed with are recorded, whatever was asked for."""
    again = select_again(run, out=tmp_path / "again", num_samples=4, objective_options=["max_common=0.5"])
    kept = again.manifest["config"]["objective_options"]
    assert (kept["max_common"], kept["min_order"], kept["max_passes"]) == (0.5, 1e-9, 1.0)
    third = select_again(again.out, out=tmp_path / "third", objective_options={"max_repeated": 0.4})
    kept = third.manifest["config"]["objective_options"]
    assert (kept["max_repeated"], kept["max_common"]) == (0.4, 0.5)
    other = select_again(run, out=tmp_path / "other", objective="path", num_samples=4)
    assert other.manifest["config"]["objective_options"]["learning_rates"] == [1e-2]
    assert all(found.harmless for found in verify_run(other.out))
    with pytest.raises(InputError, match=r"\(objective_options max_common: there 0.5, now 0.6\)"):
        select_again(run, out=tmp_path / "again", num_samples=4, objective_options={"max_common": 0.6})


def test_documents_that_are_all_alike_have_no_correlation(checkpoint: Path, tmp_path: Path) -> None:
    (same,) = documents(1, seed=3, prefix="p")
    write_jsonl(tmp_path / "pool.jsonl", [{**same, "id": str(i)} for i in range(6)])
    write_jsonl(tmp_path / "validation.jsonl", documents(12, seed=1, prefix="v", domains=("code",)))
    limits = {**QUICK, "min_order": 0.0, "max_repeated": 1.0, "max_common": 1.0}
    ran = selected(checkpoint, tmp_path, tmp_path / "out", objective="blend", objective_options=limits, num_samples=2)
    assert ran.manifest["objective"]["rank_correlation"] is None


def test_order_is_no_sign_of_damage_to_a_model_that_does_not_read_it(run: Path, tmp_path: Path) -> None:
    """Random weights: hardly a document is read better for its order, and none of these is left out for that."""
    again = select_again(run, out=tmp_path / "again", num_samples=4, objective_options={**QUICK, "min_order": 0.99})
    assert any("too weak to read the order of words" in warning for warning in again.manifest["warnings"])
    table = evidence(tmp_path / "again")
    assert (table["order"].to_numpy()[table["selected"].to_numpy()] < 0.99).any()


def test_takes_no_gradients_and_no_spectrum(run: Path) -> None:
    assert manifest(run)["spectrum"] == {}
    assert evidence(run)["grad_norm"].null_count == 22
    assert sorted(path.name for path in (run / "features").iterdir()) == ["pool-path"]
    path = manifest(run)["objective"]["path"]
    assert path["learning_rate"] == 1e-2
    assert path["left_out_gain"] > 0


def test_can_be_reported(run: Path) -> None:
    told = Console(record=True, width=200, file=StringIO())
    print_summary(manifest(run), run, told)
    assert "stiff" not in told.export_text()
    page = write_report(run).read_text(encoding="utf-8")
    assert "the largest drop of loss while the model learns the target" in page
    assert "Progress against stiff cost" not in page


def test_leaves_damage_out_and_says_so(run: Path, checkpoint: Path, world: Path, tmp_path: Path) -> None:
    assert "loop" not in chosen_ids(run)
    assert any("1 repeat themselves" in said for said in manifest(run)["warnings"])
    (tmp_path / "wanted.txt").write_text("loop\n")
    select_again(run, out=tmp_path / "forced", num_samples=3, force_in=tmp_path / "wanted.txt")
    assert "loop" in chosen_ids(tmp_path / "forced")


def test_solve_begins_with_the_losses(run: Path, tmp_path: Path) -> None:
    before = files_below(run)
    select_again(run, out=tmp_path / "again", num_samples=4)
    assert len(chosen_ids(tmp_path / "again")) == 4
    assert chosen_ids(tmp_path / "again") <= chosen_ids(run)
    assert files_below(run) == before


def test_solve_says_what_was_not_computed(run: Path, checkpoint: Path, world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have gradients for objective energy, but has losses along the path"):
        select_again(run, out=tmp_path / "again", num_samples=3, objective="energy", objective_options={})
    given = {role: str(world / f"{role}.jsonl") for role in ("pool", "validation")}
    compute_features(model=checkpoint, out=tmp_path / "features", sketch_size=32, **given)
    with pytest.raises(InputError, match="must have losses along the path for objective blend, but has gradients"):
        select_again(tmp_path / "features", out=tmp_path / "again", num_samples=3)


def test_by_tokens_each_token_counts(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    selected(checkpoint, world, tmp_path / "tokens", num_tokens=300)
    table = evidence(tmp_path / "tokens")
    drop, n = table["path"].to_numpy(), table["num_tokens"].to_numpy()
    np.testing.assert_allclose(table["score"].to_numpy(), drop * n / n.mean())


def test_stands_beside_an_objective_on_gradients(run: Path, checkpoint: Path, world: Path, tmp_path: Path) -> None:
    selected(
        checkpoint, world, tmp_path / "both", objective="energy", objective_options=None, beside=("path",), fraction=0.2
    )
    beside = manifest(tmp_path / "both")["beside"]
    assert [entry["objective"] for entry in beside] == ["path"]
    assert manifest(tmp_path / "both")["spectrum"]["num_stiff"] > 0
    # Losses at the start came with the gradients.
    stores = [PathLosses.load(each / "features/pool-path") for each in (tmp_path / "both", run)]
    np.testing.assert_allclose(stores[0].start, stores[1].start, rtol=1e-5)
    assert [(each / "features/pool-path/start").exists() for each in (tmp_path / "both", run)] == [False, True]


def test_plan_of_a_path(
    run: Path, checkpoint: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the pool, of which the same is read: walks take what they took, losses ten times as much work."""
    monkeypatch.setattr(planning, "NUM_SAMPLED", 22)
    lines = (world / "pool.jsonl").read_text()
    found = []
    for times in (1, 10):
        pool = tmp_path / f"pool-{times}.jsonl"
        pool.write_text(times * lines)
        found.append(
            planning.plan(
                model=checkpoint,
                pool=str(pool),
                validation=str(world / "validation.jsonl"),
                out=tmp_path / "out",
                objective="path",
                objective_options={**QUICK, "min_order": 1e-9},
                fraction=0.25,
            )
        )
    one, ten = found
    assert one.seconds.keys() == manifest(run)["timings"].keys()
    assert all(seconds > 0 for seconds in one.seconds.values())
    assert ten.documents["pool"] == 10 * one.documents["pool"]
    assert ten.disk["path"] == one.disk["path"]
    actual = sum(path.stat().st_size for path in (run / "features").rglob("*.*"))
    assert one.disk["features"] == pytest.approx(actual, rel=0.1)
    # A loss, its tokens and its beginning's at the start, shuffled, and at both ends; then all three and three signs.
    columns = 8 * (4 * 3 + 7)
    grown = (ten.disk["features"] - one.disk["features"]) / (ten.documents["pool"] - one.documents["pool"])
    assert columns < grown < 3 * columns  # with ids, and headers that so few rows share
    assert 2 * one.flops < ten.flops < 10 * one.flops
    assert not (tmp_path / "out").exists()


def test_several_paths_share_the_selection(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    """A target of two domains, one learnt far faster: one sum would see the other hardly at all."""
    both = [
        *documents(12, seed=1, prefix="c", domains=("code",)),
        *documents(12, seed=5, prefix="t", domains=("table",)),
    ]
    write_jsonl(tmp_path / "validation.jsonl", both)
    quick = {**QUICK, "paths": "domains", "parts": "matching", "min_order": 0.0}
    selected(
        checkpoint,
        world,
        tmp_path / "run",
        validation=str(tmp_path / "validation.jsonl"),
        objective_options=quick,
        num_samples=6,
    )
    table, told = evidence(tmp_path / "run"), manifest(tmp_path / "run")["objective"]
    chosen = table["selected"].to_numpy()
    reached = []
    for name in ("code", "table"):
        drop = table[f"path_{name}"].to_numpy()
        fit = table["repeated"].to_numpy() <= 0.5
        assert told["reach"][name] == pytest.approx(np.sort(drop[fit])[::-1][:6].sum())
        reached.append(drop[chosen].sum() / told["reach"][name])
    assert min(reached) > 0.5
    value = 2 - sum((1 - part) ** 2 for part in reached)
    assert told["value"] == pytest.approx(value)
    np.testing.assert_allclose(
        table["path"].to_numpy(), (table["path_code"].to_numpy() + table["path_table"].to_numpy()) / 2
    )


def test_verify_looks_at_the_losses(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert all(finding.harmless for finding in verify_run(tmp_path / "run"))
    columns = tmp_path / "run/features/pool-path/whole/columns-00000.parquet"
    columns.write_bytes(columns.read_bytes()[:-1])
    assert [finding.place.name for finding in verify_run(tmp_path / "run") if not finding.harmless] == ["whole"]


def test_stiff_directions_bound_what_is_chosen(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    """Columns of the restrained path, a budget in bands, its frontier, `solve` at another one, and the report."""
    own = {**QUICK, "min_order": 0.0, "num_restrained": 3}
    selected(checkpoint, world, tmp_path / "run", objective_options=own, budget_ratio=0.8, frontier=(0.8, 2.0))
    table, told = evidence(tmp_path / "run"), manifest(tmp_path / "run")
    plain, restrained, stiff = (table[name].to_numpy() for name in ("path", "path_restrained", "path_stiff"))
    np.testing.assert_allclose(plain, restrained + stiff)
    cost, chosen = table["stiff_cost"].to_numpy(), table["selected"].to_numpy()
    assert cost[chosen].sum() <= 0.8 * cost.mean() * chosen.sum() * (1 + 1e-9)
    assert told["budget"]["ratio"] == pytest.approx(0.8)
    assert len(told["frontier"]) == 2
    select_again(tmp_path / "run", out=tmp_path / "bands", bands=2, budget_ratio=1.5)
    assert len(manifest(tmp_path / "bands")["budget"]["limit"]) == 2
    shown = Console(record=True, width=200, file=StringIO())
    print_summary(told, tmp_path / "run", shown)
    assert "of the stiff budget used" in shown.export_text()
    assert "the largest drop of loss while the model learns the target" in write_report(tmp_path / "run").read_text(
        "utf-8"
    )


def test_another_objective_takes_the_path_as_it_was_walked(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    """Its own options of the walk are left out, so that they are not asked for."""
    selected(checkpoint, world, tmp_path / "run", beside=("matching",))
    again = {"out": tmp_path / "again", "objective": "blend", "num_samples": 4}
    told = select_again(tmp_path / "run", objective_options=None, **again).manifest["objective"]
    assert told["path"]["config"]["learning_rates"] == [1e-2]
    with pytest.raises(InputError, match=r"max_passes must be 1\.0, as the losses were computed with, got 2\.0"):
        select_again(tmp_path / "run", objective_options={"max_passes": 2.0}, overwrite=True, **again)


def interrupted(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("changed", ["pool", "validation", "model"])
def test_losses_of_what_was_there_before_are_refused(
    checkpoint: Path, world: Path, tmp_path: Path, changed: str
) -> None:
    """Gradients were computed anew after something changed, and the run was stopped before the losses were."""
    given: dict[str, Any] = {"model": checkpoint, "out": tmp_path / "run", "sketch_size": 32, "path": QUICK}
    for role in ("pool", "validation"):
        given[role] = str(shutil.copy(world / f"{role}.jsonl", tmp_path))
    compute_features(**given)
    if changed == "model":
        given["model"] = write_checkpoint(tmp_path / "model", seed=1)
    else:
        records = [json.loads(line) for line in Path(given[changed]).read_text().splitlines()]
        write_jsonl(Path(given[changed]), [{**record, "text": record["text"][::-1]} for record in records])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("direct_anneal.selection.pipeline.losses_along", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute_features(**given, overwrite=True)
    again: dict[str, Any] = {"objective": "blend", "objective_options": {**QUICK, "min_order": 0.0}, "fraction": 0.25}
    told = f"losses of the pool must be of this run's model and documents, but those there are of another {changed}"
    with pytest.raises(InputError, match=told):
        select_again(tmp_path / "run", out=tmp_path / "again", **again)
    assert not (tmp_path / "again").exists()
    compute_features(**given, overwrite=True)
    select_again(tmp_path / "run", out=tmp_path / "again", **again)


def test_signs_are_taken_from_a_path_to_another_target(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    """They do not depend on it; the path's own losses do."""
    selected(checkpoint, world, tmp_path / "run", objective="blend", objective_options={**QUICK, "min_order": 0.0})
    other = write_jsonl(tmp_path / "other.jsonl", documents(12, seed=7, prefix="o", domains=("table",)))
    options = {"objective": "matching", "objective_options": {"min_order": 0.0}}
    selected(checkpoint, world, tmp_path / "run", validation=str(other), overwrite=True, **options)
    assert "path" in columns_at(tmp_path / "run/features/pool-path")
    select_again(tmp_path / "run", out=tmp_path / "again", **options)
    with pytest.raises(InputError, match="but those there are of another validation"):
        select_again(tmp_path / "run", out=tmp_path / "blend", **{**options, "objective": "blend"})


class Counting(Silent):
    """Notes of each stage its total, and what it came to."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int | None, int]] = {}

    @contextmanager
    def stage(
        self, name: str, unit: str, total: int | None = None, items: Items | None = None, work: Work | None = None
    ) -> Iterator[Advance]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount

        yield advance
        self.counts[name] = total, done


@pytest.mark.parametrize(("objective", "opened"), [("path", 1), ("blend", 5), ("energy", 4)])
def test_progress_comes_to_its_end_when_features_are_opened(
    checkpoint: Path, world: Path, tmp_path: Path, objective: str, opened: int
) -> None:
    selected(
        checkpoint,
        world,
        tmp_path / "run",
        objective=objective,
        objective_options={} if objective == "energy" else {**QUICK, "min_order": 0.0},
    )
    with showing(progress := Counting()):
        select_again(tmp_path / "run", out=tmp_path / "again")
    assert progress.counts["Opening the features"] == (opened, opened)
