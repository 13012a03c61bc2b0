"""`select` end to end: what it promises to write (DESIGN, names that others rely on), and that it holds."""

from __future__ import annotations

import functools
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from data.corpus_samples import write_lines
from direct_anneal.config.names import corpus_name
from direct_anneal.errors import InputError
from direct_anneal.selection import Run
from direct_anneal.solver import Selection
from selection.pools import (
    NUM_POOL,
    NUM_VALIDATION,
    chosen,
    exported,
    exported_lines,
    recomputed,
    write_pool,
    write_validation,
)
from selection.tiny import (
    POISON,
    chosen_ids,
    documents,
    evidence,
    manifest,
    write_checkpoint,
    write_jsonl,
)

COLUMNS = ["id", "source", "row", "domain", "num_tokens", "loss", "grad_norm", "stiff_cost", "score", "weight", "rank"]

# What `solve` allows itself over the budget: sums of costs in another order differ by less.
BUDGET_RTOL = 1e-12
# float64 throughout, from the same stored features; eigenvectors of close eigenvalues lose a few digits.
RECOMPUTED_RTOL = 1e-6

SIZES: list[dict[str, Any]] = [{"fraction": 0.25}, {"num_samples": 7}, {"num_tokens": 700}]
OBJECTIVES, REFERENCES = ("energy", "descent", "matching"), ("pool", "validation")


def column(out: Path, name: str) -> np.ndarray:
    return evidence(out)[name].to_numpy()


def fits(out: Path, budget_of_tokens: int | None = None) -> np.ndarray:
    """Mark samples left out that could still be added within the stiff budget and the tokens."""
    selected, cost, tokens = column(out, "selected"), column(out, "stiff_cost"), column(out, "num_tokens")
    room = manifest(out)["budget"]["limit"] * (1 - BUDGET_RTOL) - cost[selected].sum()
    left = math.inf if budget_of_tokens is None else budget_of_tokens - tokens[selected].sum()
    return ~selected & (cost <= room) & (tokens <= left)


@pytest.fixture(scope="module")
def run(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run with the defaults but for its size. To be read, not changed."""
    return chosen(checkpoint, world, tmp_path_factory.mktemp("out") / "run")


class TestWhatIsWritten:
    def test_a_row_for_every_sample_in_the_pools_order(self, run: Run) -> None:
        table = evidence(run.out)
        assert table.column_names == [*COLUMNS, "selected"]
        assert sorted(table["id"].to_pylist()) == sorted(
            record["id"] for record in documents(NUM_POOL, seed=2, prefix="p")
        )
        places = list(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))
        assert places == sorted(places)

    def test_the_manifest_says_everything(self, run: Run) -> None:
        content = manifest(run.out)
        del content["seal"]
        assert content == json.loads(json.dumps(run.manifest))  # where a tuple is a list
        assert {
            "config",
            "versions",
            "fingerprints",
            "spectrum",
            "budget",
            "objective",
            "status",
            "timings",
        } <= content.keys()
        assert {"eigenvalues", "num_stiff", "num_validation"} <= content["spectrum"].keys()
        assert {"ratio", "reference", "limit", "used", "least_feasible"} <= content["budget"].keys()
        assert {"name", "value", "bound", "starts"} <= content["objective"].keys()
        assert content["config"]["fraction"] == 0.25
        assert content["config"]["max_length"] == 64  # as it was resolved
        assert content["spectrum"]["num_validation"] == NUM_VALIDATION
        assert content["num_selected"] == 15
        assert content["versions"].keys() >= {"python", "torch", "direct-anneal"}

    def test_the_run_that_is_returned_is_the_one_that_is_written(self, run: Run) -> None:
        assert isinstance(run.selection, Selection)
        ids = evidence(run.out)["id"].take(run.selection.indices).to_pylist()
        assert set(ids) == chosen_ids(run.out)
        ranked = evidence(run.out).sort_by("rank")["id"].to_pylist()
        assert ids == ranked[: len(ids)]

    def test_the_chosen_documents_are_copied_verbatim(self, run: Run, world: Path) -> None:
        files = run.manifest["files"]
        assert files == ["selected.jsonl", "selected.jsonl.gz", "selected.jsonl.zst", "selected.parquet", "selected"]
        records = exported(run.out, files)
        originals = {record["id"]: record for record in documents(NUM_POOL, seed=2, prefix="p")}
        assert len(records) == 15
        assert {record["id"] for record in records} == chosen_ids(run.out)
        for record in records:
            if "text" in record:
                assert record == originals[record["id"]]
        sources = {
            line for path in (world / "pool").iterdir() if ".jsonl" in path.name for line in exported_lines(path)
        }
        for name in files[:3]:
            assert set(exported_lines(run.out / name)) <= sources

    def test_ranks_are_a_permutation_with_the_selected_first(self, run: Run) -> None:
        rank, selected, score = (column(run.out, name) for name in ("rank", "selected", "score"))
        assert sorted(rank) == list(range(1, NUM_POOL + 1))
        assert max(rank[selected]) == 15
        for part in (selected, ~selected):
            by_rank = score[part][np.argsort(rank[part])]
            assert np.all(np.diff(by_rank) <= 0)

    def test_composition_counts_what_the_table_holds(self, run: Run) -> None:
        table = evidence(run.out)
        for domain, entry in run.manifest["composition"]["domains"].items():
            rows = [row for row in table.to_pylist() if row["domain"] == domain]
            assert entry["pool"] == len(rows)
            assert entry["selected"] == sum(row["selected"] for row in rows)
            assert entry["selected_tokens"] == sum(row["num_tokens"] for row in rows if row["selected"])


@pytest.mark.parametrize("objective", ["energy", "descent"])
def test_the_evidence_can_be_recomputed_from_the_features(
    checkpoint: Path, world: Path, tmp_path: Path, objective: str
) -> None:
    content = chosen(checkpoint, world, tmp_path / "out", objective=objective).manifest
    selected = column(tmp_path / "out", "selected")
    cost, x, direction = recomputed(tmp_path / "out", objective, selected)
    value = x[selected].sum(0) @ direction
    # Units are stored in float16 and not normed again, so that their own norm is 1 only up to 2⁻¹¹.
    rtol = RECOMPUTED_RTOL if objective == "energy" else 2.0**-9
    np.testing.assert_allclose(column(tmp_path / "out", "stiff_cost"), cost, rtol=rtol)
    np.testing.assert_allclose(
        column(tmp_path / "out", "score"), x @ direction / np.linalg.norm(direction), rtol=rtol, atol=rtol
    )
    assert content["objective"]["value"] == pytest.approx(value, rel=rtol)
    assert content["objective"]["value"] <= content["objective"]["bound"]


@pytest.mark.parametrize(
    ("size", "objective", "reference"),
    list(product(SIZES, OBJECTIVES, REFERENCES)),
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_size_and_budget_hold_as_written(
    checkpoint: Path, world: Path, tmp_path: Path, size: dict[str, Any], objective: str, reference: str
) -> None:
    out = tmp_path / "out"
    ratio = 0.3  # low enough to bind, and for some of these to need relaxing
    content = chosen(
        checkpoint,
        world,
        out,
        objective=objective,
        budget_reference=reference,
        budget_ratio=ratio,
        relax_budget=True,
        **size,
    ).manifest
    selected, cost, tokens = (column(out, name) for name in ("selected", "stiff_cost", "num_tokens"))
    budget = content["budget"]
    used = math.fsum(cost[selected])
    assert used <= budget["limit"] * (1 + BUDGET_RTOL)
    assert used == budget["used"]
    assert budget["least_feasible"] <= budget["limit"]
    assert (cost >= 0).all()
    assert content["objective"]["name"] == objective
    assert content["num_selected"] == selected.sum()
    wanted = size.get("num_tokens")
    if wanted is None:
        assert selected.sum() == size.get("num_samples", round(0.25 * NUM_POOL))
        assert column(out, "weight").sum() == pytest.approx(selected.sum())
    else:
        assert tokens[selected].sum() <= wanted
        assert not fits(out, wanted).any(), "something that is left would still fit"
    assert not (column(out, "weight") < 0).any()
    assert not (column(out, "weight") > 1).any()
    if not budget["relaxed"]:
        assert budget["ratio"] == pytest.approx(ratio)
        if reference == "pool":
            count = selected.sum() if wanted is None else wanted / tokens.mean()
            assert budget["limit"] == pytest.approx(ratio * cost.mean() * count)
        elif objective == "energy":
            count = selected.sum() if wanted is None else wanted / tokens.mean()
            assert budget["limit"] == pytest.approx(ratio * content["spectrum"]["stiff_cost_held_out"] * count)


def test_the_whole_pool_can_be_selected(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    for size in ({"fraction": 1.0}, {"num_samples": NUM_POOL}):
        run = chosen(checkpoint, world, tmp_path / next(iter(size)), **size)
        assert len(run.selection.indices) == NUM_POOL
        assert len(exported(run.out, run.manifest["files"])) == NUM_POOL


def test_one_document_can_be_selected(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    assert len(chosen_ids(chosen(checkpoint, world, tmp_path / "out", fraction=1e-6).out)) == 1


class TestBudget:
    def test_an_infeasible_one_is_refused_and_the_suggested_one_works(
        self, checkpoint: Path, world: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=r"pass budget_ratio [0-9.e-]+ or more") as refusal:
            chosen(checkpoint, world, tmp_path / "out", budget_ratio=1e-3)
        suggested = float(str(refusal.value).split("pass budget_ratio ")[1].split()[0])
        content = chosen(checkpoint, world, tmp_path / "out", budget_ratio=suggested, overwrite=True).manifest
        assert content["budget"]["least_feasible_ratio"] <= suggested
        # Three digits: at most one step of the third above.
        assert suggested <= content["budget"]["least_feasible_ratio"] * 1.011

    def test_a_relaxed_one_says_so(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        content = chosen(checkpoint, world, tmp_path / "out", budget_ratio=1e-3, relax_budget=True).manifest
        budget = content["budget"]
        assert budget["relaxed"] is True
        assert budget["limit"] == pytest.approx(1.1 * budget["least_feasible"])
        assert budget["used"] <= budget["limit"] * (1 + BUDGET_RTOL)
        (told,) = [warning for warning in content["warnings"] if "relaxed" in warning]
        assert "0.001" in told
        assert f"{budget['least_feasible_ratio']:.4g}" in told

    def test_a_feasible_one_is_not_relaxed(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        content = chosen(checkpoint, world, tmp_path / "out", relax_budget=True).manifest
        assert content["budget"]["relaxed"] is False
        assert content["budget"]["ratio"] == pytest.approx(1.0)
        assert not any("relaxed" in warning for warning in content["warnings"])

    def test_the_validation_reference_needs_samples_to_hold_out(
        self, checkpoint: Path, world: Path, tmp_path: Path
    ) -> None:
        few = write_validation(tmp_path / "few.jsonl", count=3)
        with pytest.raises(InputError, match="at least 4 validation samples"):
            chosen(checkpoint, world, tmp_path / "out", validation=str(few), budget_reference="validation")
        content = chosen(checkpoint, world, tmp_path / "again", validation=str(few)).manifest
        assert content["spectrum"]["stiff_cost_held_out"] is None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_alternative_is_what_the_other_objective_would_choose(
    checkpoint: Path, world: Path, tmp_path: Path, objective: str
) -> None:
    other = "matching" if objective == "energy" else "energy"
    content = chosen(checkpoint, world, tmp_path / "one", objective=objective, beside=other).manifest
    chosen(checkpoint, world, tmp_path / "other", objective=other, relax_budget=True)
    (alternative,) = content["beside"]
    mine, theirs = chosen_ids(tmp_path / "one"), chosen_ids(tmp_path / "other")
    assert alternative["objective"] == other
    assert alternative["shared"] == pytest.approx(len(mine & theirs) / len(mine))
    table = evidence(tmp_path / "other")
    domains = table.filter(table["selected"])["domain"].to_pylist()
    assert alternative["domains"] == {domain: domains.count(domain) for domain in set(domains)}


class TestOtherWaysToTheSame:
    def test_batches_do_not_change_what_is_selected(
        self, checkpoint: Path, world: Path, run: Run, tmp_path: Path
    ) -> None:
        out = chosen(checkpoint, world, tmp_path / "out", batch_tokens=200).out
        assert chosen_ids(out) == chosen_ids(run.out)

    def test_a_run_that_ran_out_of_memory_in_the_model_chooses_the_same(
        self, checkpoint: Path, world: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = LlamaForCausalLM.forward

        @functools.wraps(real)
        def limited(self: LlamaForCausalLM, input_ids: torch.Tensor, **options: Any) -> Any:
            if input_ids.numel() > 300:
                torch.empty(2**50)  # what the CPU's allocator says is its own affair
            return real(self, input_ids=input_ids, **options)

        monkeypatch.setattr(LlamaForCausalLM, "forward", limited)
        out = chosen(checkpoint, world, tmp_path / "out").out
        assert chosen_ids(out) == chosen_ids(run.out)
        told = [warning for warning in manifest(out)["warnings"] if "did not fit into memory" in warning]
        assert len(told) == 1

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_the_order_of_the_pool_does_not_change_what_is_selected(
        self, checkpoint: Path, world: Path, tmp_path: Path, objective: str
    ) -> None:
        records = documents(NUM_POOL, seed=2)
        order = np.random.default_rng(4).permutation(NUM_POOL)
        chosen_in = {}
        for name, ordered in (("sorted", records), ("shuffled", [records[i] for i in order])):
            pool = write_jsonl(tmp_path / f"{name}.jsonl", ordered)
            chosen_in[name] = chosen_ids(
                chosen(checkpoint, world, tmp_path / name, pool=str(pool), objective=objective).out
            )
        assert chosen_in["sorted"] == chosen_in["shuffled"]

    def test_copies_of_one_document_are_told_apart_by_id_not_by_place(
        self, checkpoint: Path, world: Path, tmp_path: Path
    ) -> None:
        copies = [{"id": f"c{i:02d}", "text": "the boy ran and saw the tree"} for i in range(12)]
        for name, ordered in (("forth", copies), ("back", copies[::-1])):
            pool = write_jsonl(tmp_path / f"{name}.jsonl", ordered)
            out = chosen(checkpoint, world, tmp_path / name, pool=str(pool), num_samples=5).out
            assert chosen_ids(out) == {f"c{i:02d}" for i in range(5)}

    def test_text_and_its_tokens_are_the_same_document(self, checkpoint: Path, tmp_path: Path) -> None:
        write_pool(tmp_path / "pool")
        write_validation(tmp_path / "validation.jsonl")
        mixed = chosen(checkpoint, tmp_path, tmp_path / "mixed").out
        plain = write_jsonl(tmp_path / "plain.jsonl", documents(NUM_POOL, seed=2, prefix="p"))
        assert chosen_ids(chosen(checkpoint, tmp_path, tmp_path / "plain", pool=str(plain)).out) == chosen_ids(mixed)


class TestGradientsThatAreNone:
    @pytest.fixture(scope="class")
    @classmethod
    def poisoned(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "poisoned", poisoned=True)

    def test_they_have_nulls_and_are_never_selected(self, poisoned: Path, world: Path, tmp_path: Path) -> None:
        records = documents(20, seed=5)
        for record in records[3::6]:
            record["text"] += POISON
        ill = {record["id"] for record in records[3::6]}
        pool = write_jsonl(tmp_path / "pool.jsonl", records)
        for objective in OBJECTIVES:
            # More than the healthy half, so that an unusable row would be drawn in if it were let in.
            out = chosen(poisoned, world, tmp_path / objective, pool=str(pool), num_samples=15, objective=objective).out
            for row in evidence(out).to_pylist():
                usable = row["id"] not in ill
                for name in ("stiff_cost", "score", "weight", "rank"):
                    assert (row[name] is not None) == usable
                assert usable or not row["selected"]
                assert usable == (row["loss"] is not None and math.isfinite(row["loss"]))
            assert evidence(out)["id"].to_pylist() == [record["id"] for record in records]
            content = manifest(out)
            assert {entry["id"] for entry in content["corpora"]["pool"]["quarantined"]["samples"]} == ill
            assert any(f"{len(ill)} NaN" in warning for warning in content["warnings"])
            assert len(exported(out, content["files"])) == 15

    def test_more_than_the_usable_cannot_be_selected(self, poisoned: Path, world: Path, tmp_path: Path) -> None:
        records = documents(10, seed=5)
        records[0]["text"] += POISON
        pool = write_jsonl(tmp_path / "pool.jsonl", records)
        with pytest.raises(InputError, match="at most the pool's 9 usable documents"):
            chosen(poisoned, world, tmp_path / "out", pool=str(pool), num_samples=10)

    @pytest.mark.parametrize("role", ["pool", "validation"])
    def test_none_at_all_is_an_error(self, poisoned: Path, world: Path, tmp_path: Path, role: str) -> None:
        ill = write_jsonl(tmp_path / "ill.jsonl", [{"text": f"{POISON} number {i}"} for i in range(8)])
        with pytest.raises(InputError, match=f"gradients of the {corpus_name(role)} must be finite"):
            chosen(poisoned, world, tmp_path / "out", **{role: str(ill)})


def test_odd_records_are_left_out_and_told(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    good = [json.dumps(record).encode() for record in documents(12, seed=6)]
    bad = [b"{", b'{"text": ""}', b'{"body": "no text"}', b'{"text": "x"}', b'{"input_ids": [1, 999]}', b"[1]"]
    pool = write_lines(tmp_path / "pool.jsonl", [line for pair in zip(good, bad * 2, strict=True) for line in pair])
    run = chosen(checkpoint, world, tmp_path / "out", pool=str(pool))
    assert evidence(run.out).num_rows == 12
    counts = {kind: entry["count"] for kind, entry in run.manifest["corpora"]["pool"]["incidents"].items()}
    assert {kind: counts[kind] for kind in ("bad-line", "empty-text", "no-text", "too-short", "bad-tokens")} == {
        "bad-line": 4,
        "empty-text": 2,
        "no-text": 2,
        "too-short": 2,
        "bad-tokens": 2,
    }
    for line in exported_lines(run.out / "selected.jsonl"):
        assert line in good


def test_a_shortfall_of_tokens_is_told(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    """At the least feasible budget nothing but the cheapest can be taken, and a split one does not count."""
    content = chosen(checkpoint, world, tmp_path / "out", num_tokens=900, budget_ratio=1e-4, relax_budget=True).manifest
    held = int(column(tmp_path / "out", "num_tokens")[column(tmp_path / "out", "selected")].sum())
    assert any("tokens asked for" in warning for warning in content["warnings"]) == (held < 0.95 * 900)


def test_by_tokens_a_sample_counts_for_each_of_its_tokens(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    content = chosen(
        checkpoint, world, tmp_path / "out", objective="descent", num_tokens=900, budget_ratio=0.9
    ).manifest
    selected, num_tokens = (column(tmp_path / "out", name) for name in ("selected", "num_tokens"))
    cost, x, direction = recomputed(tmp_path / "out", "descent", selected)
    share = num_tokens / num_tokens.mean()
    score = share * (x @ direction) / np.linalg.norm(direction)
    rtol = 2.0**-9  # as above
    np.testing.assert_allclose(column(tmp_path / "out", "score"), score, rtol=rtol, atol=rtol * share.max())
    np.testing.assert_allclose(column(tmp_path / "out", "stiff_cost"), share * cost, rtol=rtol)
    limit = 0.9 * (num_tokens @ cost / num_tokens.sum()) * 900 / num_tokens.mean()
    assert content["budget"]["limit"] == pytest.approx(limit, rel=rtol)
    rank = column(tmp_path / "out", "rank")
    for part in (selected, ~selected):
        assert np.all(np.diff((column(tmp_path / "out", "score") / num_tokens)[part][np.argsort(rank[part])]) <= 0)
