"""Choosing again from stored features: the same code, no model, and the run itself left alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from direct_anneal.cli import main
from direct_anneal.errors import InputError
from direct_anneal.io.records import sealed
from direct_anneal.io.threads import ThreadMap
from direct_anneal.objectives.damage import WITHOUT_SIGNS
from direct_anneal.run.verify_run import verify_run
from direct_anneal.selection import Run, select_again
from direct_anneal.selection.retention import solved
from selection.pools import NUM_POOL, chosen, exported
from selection.tiny import SKETCH_SIZE, chosen_ids, evidence, files_below, manifest
from solver.elsewhere import Pickling

pytestmark = pytest.mark.usefixtures("no_model")

# Of runs by an objective that looks at no sign of damage.
DESCENT: dict[str, Any] = {"objective": "descent", "objective_options": WITHOUT_SIGNS}


@pytest.fixture(scope="module")
def done(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run. To be read, not changed."""
    return chosen(checkpoint, world, tmp_path_factory.mktemp("out") / "run")


def composition(out: Path) -> Counter[str]:
    table = evidence(out)
    return Counter(table.filter(table["selected"])["domain"].to_pylist())


def as_written(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_below(out).items() if name.startswith(("selection.", "selected"))}


def test_unchanged_it_gives_the_same_bytes(done: Run, tmp_path: Path) -> None:
    before = files_below(done.out)
    run = select_again(done, out=tmp_path / "out")
    assert as_written(run.out) == as_written(done.out)
    assert files_below(done.out) == before
    told = manifest(run.out)
    assert told["features_of"] == str(done.out)
    same = set(told) - {"features_of", "timings", "config", "warnings", "seal"}
    assert {name: told[name] for name in same} == {name: manifest(done.out)[name] for name in same}


@pytest.mark.parametrize("objective", ["energy", "descent"])
def test_with_products_computed_elsewhere_it_gives_the_same_bytes(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    monkeypatch.setattr("direct_anneal.distributed.connect.find_spec", lambda name: name)  # be Ray there or not
    monkeypatch.setattr("direct_anneal.distributed.TaskMap", Pickling)
    monkeypatch.setattr("direct_anneal.solver.matrix._PART_BYTES", 8 * SKETCH_SIZE * 7)
    options: dict[str, Any] = {"objective": objective, "bands": 2, "noise": "centred", "relax_budget": True}
    options["objective_options"] = WITHOUT_SIGNS if objective == "descent" else None
    here = select_again(done.out, out=tmp_path / "here", frontier=(1.5,), **options)
    there = select_again(done.out, out=tmp_path / "there", frontier=(1.5,), engine="ray", workers=3, **options)
    assert as_written(there.out) == as_written(here.out)
    assert (there.out / "frontier.parquet").read_bytes() == (here.out / "frontier.parquet").read_bytes()
    untimed = [{**run.manifest, "config": None, "timings": None} for run in (here, there)]
    assert untimed[0] == untimed[1]
    assert there.manifest["config"]["engine"] == "ray"


def test_threads_change_nothing_and_blas_has_one(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("direct_anneal.solver.matrix._PART_BYTES", 8 * SKETCH_SIZE * 7)
    seen = []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.extend(found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas")
        return solved(*arguments, **options)

    monkeypatch.setattr("direct_anneal.selection.pipeline.solved", watched)
    written = []
    for threads in (1, 4):
        monkeypatch.setattr("direct_anneal.selection.pipeline.ThreadMap", partial(ThreadMap, threads))
        with threadpool_limits(threads, user_api="blas"):
            written.append(as_written(select_again(done.out, out=tmp_path / str(threads)).out))
    assert written[0] == written[1]
    assert set(seen) == {1}


@pytest.mark.parametrize(
    "change", [{"num_samples": 7}, {"num_tokens": 500}, DESCENT, {"budget_ratio": 0.8}, {"elbow": 0.8}]
)
def test_changed_it_gives_what_select_would_have(
    checkpoint: Path, world: Path, done: Run, tmp_path: Path, change: dict[str, Any]
) -> None:
    again = shutil.copytree(done.out, tmp_path / "again")
    chosen(checkpoint, world, again, overwrite=True, **change)
    run = select_again(done.out, out=tmp_path / "out", **change)
    assert as_written(run.out) == as_written(again)
    assert run.manifest["config"]["out"] == str(tmp_path / "out")


def test_a_run_that_was_stopped_before_its_end_will_do(done: Run, tmp_path: Path) -> None:
    stopped = shutil.copytree(done.out, tmp_path / "stopped")
    for path in [*stopped.glob("selec*"), stopped / "manifest.json"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = select_again(stopped, out=tmp_path / "out")
    assert as_written(run.out) == as_written(done.out)


class TestRefused:
    def test_code_that_the_run_says_may_run(self, done: Run, checkpoint: Path, tmp_path: Path) -> None:
        """The model that it names is not even opened."""
        copy, model = shutil.copytree(done.out, tmp_path / "copy"), shutil.copytree(checkpoint, tmp_path / "model")
        (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        config = json.loads((model / "config.json").read_text())
        told = {"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil"}
        (model / "config.json").write_text(json.dumps(config | told))
        mark = json.loads((copy / "direct-anneal.json").read_text())
        mark = sealed(mark | {"model": str(model), "trust_remote_code": True})
        (copy / "direct-anneal.json").write_text(json.dumps(mark))
        assert as_written(select_again(copy, out=tmp_path / "out").out) == as_written(done.out)
        assert not (tmp_path / "ran").exists()

    def test_the_runs_own_directory_unless_asked(self, done: Run, tmp_path: Path) -> None:
        copy = shutil.copytree(done.out, tmp_path / "copy")
        before = files_below(copy)
        with pytest.raises(InputError, match=r"out must be another directory.*overwrite"):
            select_again(copy, out=copy, num_samples=3)
        assert files_below(copy) == before
        select_again(copy, out=copy, num_samples=3, overwrite=True)
        assert len(chosen_ids(copy)) == 3

    def test_what_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="the run must be the directory of a select or features run"):
            select_again(tmp_path, out=tmp_path / "out")

    def test_features_that_are_not_complete(self, done: Run, tmp_path: Path) -> None:
        copy = shutil.copytree(done.out, tmp_path / "copy")
        next((copy / "features" / "pool").glob("features-*.npy")).unlink()
        with pytest.raises(InputError, match="1 are missing or damaged: run select again"):
            select_again(copy, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_pool_that_has_changed(self, checkpoint: Path, world: Path, done: Run, tmp_path: Path) -> None:
        copy = shutil.copytree(done.out, tmp_path / "copy")
        pieces = copy / "corpus" / "pool"
        record = next(pieces.glob("*.json"))
        content = json.loads(record.read_text())
        content["state"][0][-1] += 1  # as if the file had been written to since
        record.write_text(json.dumps(sealed(content)))
        with pytest.raises(InputError, match="pool must be as it was when its features were computed"):
            select_again(copy, out=tmp_path / "out")


class TestConstraints:
    def test_floors_and_ceilings_as_shares_and_numbers(self, done: Run, tmp_path: Path) -> None:
        run = select_again(done.out, out=tmp_path / "out", num_samples=20, floors=["table=0.45"], ceilings={"code": 2})
        counts = composition(run.out)
        assert counts["table"] >= 9
        assert counts["code"] <= 2
        assert sum(counts.values()) == 20
        assert run.manifest["config"]["floors"] == {"table": 0.45}

    def test_in_tokens(self, done: Run, tmp_path: Path) -> None:
        run = select_again(done.out, out=tmp_path / "out", num_tokens=1000, floors={"code": 0.5})
        table = evidence(run.out).filter(evidence(run.out)["selected"])
        tokens = dict(zip(table["id"].to_pylist(), table["num_tokens"].to_pylist(), strict=True))
        code = [name for name, domain in zip(tokens, table["domain"].to_pylist(), strict=True) if domain == "code"]
        assert sum(tokens[name] for name in code) >= 500
        assert sum(tokens.values()) <= 1000

    def test_forced_in_and_out(self, done: Run, tmp_path: Path) -> None:
        free = chosen_ids(done.out)
        kept_out, put_in = sorted(free)[:3], sorted(set(evidence(done.out)["id"].to_pylist()) - free)[:2]
        (tmp_path / "in.txt").write_text("\n".join(put_in) + "\n\n")
        (tmp_path / "out.txt").write_text("\n".join(kept_out))
        run = select_again(
            done.out, out=tmp_path / "out", force_in=tmp_path / "in.txt", force_out=str(tmp_path / "out.txt")
        )
        assert set(put_in) <= chosen_ids(run.out)
        assert not set(kept_out) & chosen_ids(run.out)
        assert len(exported(run.out, run.manifest["files"])) == len(free)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"floors": ["law=1"]}, "floors must name a domain of the pool, but law is none: there are code, "),
            ({"floors": ["code=50"]}, r"the floor of domain code asks for 50 samples, but the pool has \d+"),
            ({"ceilings": ["code"]}, "ceilings must be DOMAIN=SHARE"),
            ({"floors": ["code=0.5", "code=0.2"]}, "floors must name each domain once, but code is named twice"),
            ({"ceilings": ["code=1.5"]}, "ceilings must be DOMAIN=SHARE"),
            ({"floors": {"code": True}}, "floors must be DOMAIN=SHARE"),
            ({"floors": ["code=9"], "ceilings": ["code=2"]}, "floors must be at most the ceiling of code, 2, got 9"),
            ({"floors": ["code=0.5"], "quota_unit": "tokens"}, "a share of the selection's tokens"),
            ({"quota_unit": "words"}, "quota_unit must be samples or tokens"),
            ({"force_in": "nowhere.txt"}, "force_in must be a text file of ids"),
        ],
    )
    def test_what_cannot_be_is_said_in_a_line(
        self, done: Run, tmp_path: Path, options: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(InputError, match=reason):
            select_again(done.out, out=tmp_path / "out", num_samples=30, **options)

    def test_ids_that_are_none_or_on_both_sides(self, done: Run, tmp_path: Path) -> None:
        listed = tmp_path / "ids.txt"
        listed.write_text("p000\nnobody\n")
        with pytest.raises(InputError, match=r"has 1 that are none \('nobody'\)"):
            select_again(done.out, out=tmp_path / "out", force_out=listed)
        listed.write_text("p000\n")
        with pytest.raises(InputError, match=r"1 are in both force_in and force_out \(p000\)"):
            select_again(done.out, out=tmp_path / "out", force_in=listed, force_out=listed)

    def test_other_ids_in_the_same_file_make_another_run(self, done: Run, tmp_path: Path) -> None:
        listed, given = tmp_path / "ids.txt", {"out": tmp_path / "out", "force_in": tmp_path / "ids.txt"}
        listed.write_text("p000\n")
        first = select_again(done.out, **given)
        again = as_written(select_again(done.out, **given).out)
        listed.write_text("p001\n")
        with pytest.raises(InputError, match="holds another run \\(lists force_in: there "):
            select_again(done.out, **given)
        assert as_written(first.out) == again
        assert all(found.harmless for found in verify_run(first.out))
        with pytest.raises(InputError, match=r"force_in must be a text file of ids, one a line, but .*gone\.txt"):
            select_again(done.out, **(given | {"force_in": tmp_path / "gone.txt"}))

    def test_select_takes_them_too(self, checkpoint: Path, world: Path, done: Run, tmp_path: Path) -> None:
        again = shutil.copytree(done.out, tmp_path / "again")
        chosen(checkpoint, world, again, overwrite=True, ceilings={"table": 0.1})
        run = select_again(done.out, out=tmp_path / "out", ceilings={"table": 0.1})
        assert as_written(again) == as_written(run.out)
        assert composition(again)["table"] <= 0.1 * NUM_POOL / 4


class TestFrontier:
    def test_each_row_is_what_that_budget_gives(self, done: Run, tmp_path: Path) -> None:
        run = select_again(done.out, out=tmp_path / "out", frontier=(0.9, 1e-4, 0.7))
        rows = pq.read_table(run.out / "frontier.parquet").to_pylist()
        assert rows == run.manifest["frontier"]
        assert [row["ratio"] for row in rows] == [1e-4, 0.7, 0.9]
        assert (rows[0]["status"], rows[0]["objective"]) == ("infeasible", None)
        for row in rows[1:]:
            alone = select_again(done.out, out=tmp_path / str(row["ratio"]), budget_ratio=row["ratio"])
            assert row["objective"] == alone.manifest["objective"]["value"]
            assert {entry["domain"]: entry["selected"] for entry in row["domains"]} == composition(alone.out)
            assert row["used_ratio"] <= row["ratio"] * (1 + 1e-12)

    def test_the_grid_reaches_from_just_feasible_to_free(self, done: Run, tmp_path: Path) -> None:
        rows = select_again(done.out, out=tmp_path / "out", frontier=(), **DESCENT).manifest["frontier"]
        assert all(row["objective"] is not None for row in rows)
        objectives = [row["objective"] for row in rows]
        assert objectives == sorted(objectives)  # descent is solved exactly
        free = select_again(done.out, out=tmp_path / "free", budget_ratio=100.0, **DESCENT)
        assert objectives[-1] == pytest.approx(free.manifest["objective"]["value"], rel=1e-12)

    def test_a_later_run_in_its_place_leaves_none(self, done: Run, tmp_path: Path) -> None:
        select_again(done.out, out=tmp_path / "out", frontier=(0.9,))
        select_again(done.out, out=tmp_path / "out", budget_ratio=0.9, overwrite=True)
        assert not (tmp_path / "out" / "frontier.parquet").exists()


class TestCommand:
    def test_it_prints_the_frontier(self, done: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["solve", str(done.out), "--out", str(tmp_path / "out"), "--frontier", "0.8,1.0"]
        assert main([*arguments, "--num-samples", "10", "--floor", "code=0.3", "--ceiling", "table=2"]) == 0
        printed = capsys.readouterr().out
        assert "Over budgets" in printed
        assert "frontier.parquet" in printed
        assert composition(tmp_path / "out")["code"] >= 3

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ([], "solve needs --out"),
            (["--out", "o", "--frontier", "a,b"], "--frontier must be budget ratios"),
            (["--out", "o", "--frontier", "0"], "--frontier must be budget ratios"),
        ],
    )
    def test_what_is_wrong_is_a_line(
        self, done: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
    ) -> None:
        assert main(["solve", str(done.out), *arguments]) == 2
        assert reason in capsys.readouterr().err
