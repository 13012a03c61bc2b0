"""Every member of the family of objectives, and every curvature, through `select`: by formulas, from what was stored.

N pool, M validation samples, R sketch size, s stiff directions, m bands.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from direct_anneal.cli import main
from direct_anneal.curvature import Spectrum
from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.selection import Run, SelectConfig
from selection.pools import chosen, stored, stored_ngrams, write_validation
from selection.tiny import evidence, files_below

Float = NDArray[np.float64]

# As in the tests of `select`: float64 throughout, from the same stored features; float16 units are 1 long up to 2⁻¹¹.
RAW_RTOL, UNIT_RTOL = 1e-6, 2.0**-9


def dense_spectrum(z: Float, num_stiff: int) -> tuple[Float, Float]:
    """λ (s,) and V (R, s) of the empirical Fisher."""
    eigenvalues, vectors = np.linalg.eigh(z.T @ z / len(z))
    return eigenvalues[::-1][:num_stiff], vectors[:, ::-1][:, :num_stiff]


def rows(pool: Float, gradients: str) -> Float:
    return pool if gradients == "raw" else pool / np.linalg.norm(pool, axis=1, keepdims=True)


def stiff_costs(x: Float, eigenvalues: Float, vectors: Float, noise: str) -> Float:
    """λ_j (v_jᵀ (x_i − c))² one by one, (N, s)."""
    centre = x.mean(axis=0) if noise == "centred" else np.zeros(x.shape[1])
    return np.array(
        [[lam * (v @ (row - centre)) ** 2 for lam, v in zip(eigenvalues, vectors.T, strict=True)] for row in x]
    )


MEMBERS: list[dict[str, Any]] = [
    {"objective": "energy"},
    {"objective": "energy", "filter": "none", "gradients": "unit", "noise": "centred"},
    {"objective": "energy", "filter": "flat", "gradients": "unit"},
    {"objective": "descent", "budget_ratio": 1.0},
    {"objective": "matching"},
    {"objective": "matching", "ngram_weight": 0.0},
    {"objective": "descent", "ngram_weight": 0.5},
    {"objective": "matching", "target_scale": 2.0, "filter_curvature": "validation", "gradients": "raw"},
    {"objective": "matching", "filter": "flat", "budget_ratio": 1.0},
    {"objective": "matching", "filter": "none", "gradients": "raw"},
    {"objective": "descent", "filter_curvature": "pool", "damping": 0.1, "gradients": "raw"},
    {"objective": "descent", "filter_curvature": "validation", "damping": 0.01, "gradients": "raw"},
    {"objective": "descent", "filter_curvature": "validation"},
    {"objective": "descent", "filter": "flat", "noise": "centred"},
    {"objective": "descent", "filter": "none", "gradients": "raw", "noise": "centred"},
]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: "-".join(map(str, member.values())))
def test_a_member_by_its_formula(checkpoint: Path, world: Path, tmp_path: Path, member: dict[str, Any]) -> None:
    content = chosen(checkpoint, world, tmp_path / "out", num_stiff=5, **member).manifest
    form = content["objective"]
    own = {name: value for name, value in member.items() if name not in ("objective", "budget_ratio")}
    assert {name: form[name] for name in own} == own
    z, table = stored(tmp_path / "out", "validation"), evidence(tmp_path / "out")
    selected = table["selected"].to_numpy()
    x = rows(stored(tmp_path / "out", "pool"), form["gradients"])
    eigenvalues, V = dense_spectrum(z, 5)
    rtol = RAW_RTOL if form["gradients"] == "raw" else UNIT_RTOL
    cost = stiff_costs(x, eigenvalues, V, form["noise"]).sum(axis=1)
    np.testing.assert_allclose(table["stiff_cost"].to_numpy(), cost, rtol=rtol, atol=rtol * cost.mean())
    if form["name"] == "energy" or "budget_ratio" in member:
        assert content["budget"]["limit"] == pytest.approx(cost.mean() * selected.sum(), rel=rtol)
    else:
        assert content["budget"]["limit"] is content["budget"]["ratio"] is None
    flat = np.eye(len(V)) - V @ V.T
    if form["name"] == "energy":
        total = (x @ flat if form["filter"] == "flat" else x)[selected].sum(axis=0)
        value = total @ total
    else:
        counted = rows(z, form["gradients"])
        if weight := form["ngram_weight"]:
            x, counted = (
                np.hstack([gradients, weight * stored_ngrams(tmp_path / "out", role)]) / np.hypot(1, weight)
                for role, gradients in (("pool", x), ("validation", counted))
            )
            z, flat = counted, np.eye(x.shape[1])
        moments = {"pool": x.T @ x / len(x), "validation": z.T @ z / len(z)}
        moments["both"] = (moments["pool"] + counted.T @ counted / len(z)) / 2
        H = moments[form["filter_curvature"] or "validation"]
        f = {"none": np.eye(len(H)), "flat": flat}.get(form["filter"])
        if f is None:  # newton; without its damping H may have no inverse
            f = np.linalg.inv(H + form["damping"] * np.eye(len(H)) * np.linalg.eigvalsh(H)[-1])
        total = x[selected].sum(axis=0)
        value = total @ f @ counted.mean(axis=0)
        if form["name"] == "matching":
            start, aim = x.mean(axis=0), counted.mean(axis=0)
            chance = np.trace(f @ np.cov(counted.T)) / len(counted) + np.trace(f @ np.cov(x.T, ddof=0)) / len(x)
            known = max(0.0, 1 - chance / ((aim - start) @ f @ (aim - start)))
            assert form["known"] == pytest.approx(known, rel=0.02, abs=1e-4)
            target = selected.sum() * (start + form["target_scale"] * form["known"] * (aim - start))
            start, apart = selected.sum() * start - target, total - target
            value = start @ f @ start - apart @ f @ apart
    assert form["value"] == pytest.approx(value, rel=2 * rtol)


@pytest.mark.parametrize(("noise", "gradients"), [("raw", "raw"), ("centred", "unit")])
def test_a_budget_of_held_out_validation_by_its_formula(
    checkpoint: Path, world: Path, tmp_path: Path, noise: str, gradients: str
) -> None:
    options = {"noise": noise, "gradients": gradients, "num_stiff": 4, "budget_reference": "validation"}
    run = chosen(checkpoint, world, tmp_path / "out", relax_budget=True, **options)
    assert run.manifest["budget"]["relaxed"] is False
    z = stored(tmp_path / "out", "validation")
    (sidecar,) = (run.out / "features" / "validation").glob("*.parquet")
    ids = pq.read_table(sidecar)["id"].to_pylist()
    digests = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids]
    z = z[np.argsort(digests)]  # halves alternate in this order
    x = rows(z, gradients)
    x = x - x.mean(axis=0) if noise == "centred" else x
    costs = []
    for own, other in ((z[0::2], x[1::2]), (z[1::2], x[0::2])):
        costs += list(stiff_costs(other, *dense_spectrum(own, 4), "raw").sum(axis=1))
    limit = np.mean(costs) * run.manifest["num_selected"]
    assert run.manifest["budget"]["limit"] == pytest.approx(limit, rel=UNIT_RTOL)


class TestBands:
    @pytest.mark.parametrize("objective", ["energy", "descent"])
    def test_each_has_a_budget_of_its_own_and_keeps_it(
        self, checkpoint: Path, world: Path, tmp_path: Path, objective: str
    ) -> None:
        run = chosen(checkpoint, world, tmp_path / "out", objective=objective, bands=3, budget_ratio=0.8, num_stiff=6)
        content = run.manifest
        z, table = stored(run.out, "validation"), evidence(run.out)
        selected = table["selected"].to_numpy()
        x = rows(stored(run.out, "pool"), content["objective"]["gradients"])
        each = stiff_costs(x, *dense_spectrum(z, 6), "raw")
        ends = content["spectrum"]["bands"]
        assert len(ends) == 3
        assert ends[-1] == 6
        rtol = RAW_RTOL if objective == "energy" else UNIT_RTOL
        limits, uses = content["budget"]["limit"], content["budget"]["used"]
        for start, end, limit, used in zip([0, *ends[:-1]], ends, limits, uses, strict=True):
            band = each[:, start:end].sum(axis=1)
            assert limit == pytest.approx(0.8 * band.mean() * selected.sum(), rel=rtol)
            assert used == pytest.approx(band[selected].sum(), rel=rtol)
            assert used <= limit * (1 + 1e-12)
        np.testing.assert_allclose(table["stiff_cost"].to_numpy(), each.sum(axis=1), rtol=rtol)

    def test_an_infeasible_one_states_a_ratio_that_works(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        options = {"objective": "descent", "bands": 2, "num_stiff": 6}
        with pytest.raises(InputError, match="least feasible ratio") as refusal:
            chosen(checkpoint, world, tmp_path / "out", budget_ratio=1e-3, **options)
        suggested = float(str(refusal.value).split("pass budget_ratio ")[1].split()[0])
        chosen(checkpoint, world, tmp_path / "out", budget_ratio=1.1 * suggested, overwrite=True, **options)

    def test_the_summary_shows_each(self, checkpoint: Path, world: Path, tmp_path: Path, capsys: Any) -> None:
        given = ["--model", checkpoint, "--pool", world / "pool", "--validation", world / "validation.jsonl"]
        more = ["--out", tmp_path / "out", "--fraction", "0.25", "--sketch-size", "32", "--bands", "2"]
        more += ["--objective", "matching"]
        assert main(["select", *map(str, given + more), "--elbow", "gap", "--num-stiff", "2"]) == 2
        assert "leave one out" in capsys.readouterr().err
        assert main(["select", *map(str, given + more), "--num-stiff", "2", "--budget-ratio", "1"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Budget")]
        assert line.count("%") == 2

    def test_more_than_there_are_stiff_directions(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="bands must leave a stiff direction to each"):
            chosen(checkpoint, world, tmp_path / "out", bands=4, num_stiff=3)


class TestElbows:
    def test_each_rule_is_the_spectrums(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        counts = {}
        for name, options in {"gap": {"elbow": "gap"}, "share": {"elbow": 0.5}, "number": {"num_stiff": 3}}.items():
            spectrum = chosen(checkpoint, world, tmp_path / name, **options).manifest["spectrum"]
            values = np.array(spectrum["eigenvalues"])
            counts[name] = spectrum["num_stiff"]
            assert spectrum["energy"] == pytest.approx(values[: counts[name]].sum() / values.sum())
        above = int(np.sum(values >= values.mean()))
        assert counts["gap"] == np.argmax(values[:above] / values[1 : above + 1]) + 1
        assert counts["share"] == np.argmax(np.cumsum(values) >= 0.5 * values.sum()) + 1
        assert counts["number"] == 3

    def test_a_number_above_the_rank(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"num_stiff must be at most the \d+ directions"):
            chosen(checkpoint, world, tmp_path / "out", num_stiff=30)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": "energy", "filter": "newton"}, "objective matching or descent, or filter flat"),
        ({"objective": "energy", "damping": 0.1}, "damping must be left out"),
        ({"objective": "descent", "filter": "flat", "damping": 0.1}, "damping must be left out"),
        ({"objective": "descent", "damping": 0.0}, "damping must be above 0"),
        ({"objective": "descent", "damping": 1e-18}, "at least 1e-10"),
        ({"objective": "descent", "damping": float("nan")}, "damping must be finite"),
        ({"objective": "nearest"}, "objective must be matching, descent, energy, path or blend, got nearest"),
        ({"objective": "matchnig"}, "did you mean matching?"),
        ({"objective_options": {"power": 2}}, "power in objective_options must be left out with objective matching"),
        ({"plugin": "no.such.module"}, "plugin must name a module"),
        ({"filter": "steep"}, "filter must be newton, flat or none, got steep"),
        ({"gradients": "long"}, "gradients must be raw or unit"),
        ({"noise": "loud"}, "noise must be raw or centred"),
        ({"bands": 0}, "bands must be at least 1"),
        ({"curvature": "fisher"}, "curvature must be"),
        ({"elbow": "knee"}, "elbow must be"),
        ({"elbow": True}, "elbow must be"),
        ({"num_stiff": 0}, "num_stiff must be at least 1"),
        ({"num_stiff": 3, "elbow": 0.9}, "leave one out"),
        ({"num_eigenpairs": 3}, "num_eigenpairs must be left out unless curvature is ggn"),
        ({"curvature": "ggn", "num_eigenpairs": 0}, "num_eigenpairs must be"),
        ({"curvature": "ggn", "sketch_size": 8}, "num_eigenpairs must be in 1..8"),
        ({"curvature": "ggn", "num_eigenpairs": 4, "num_stiff": 5}, "num_stiff must be at most the 4"),
        ({"curvature": "hessian", "dtype": "bfloat16"}, "dtype must be float32"),
        ({"curvature": "hessian", "optimizer": "adam.pt"}, "optimizer"),
        ({"curvature": "mc-fisher", "reduction": "sum"}, "reduction must be mean"),
        ({"curvature": "mc-fisher", "filter_curvature": "pool"}, "curvature empirical-fisher"),
        ({"filter": "flat", "filter_curvature": "pool"}, "filter newton"),
        ({"objective": "descent", "target_scale": 2.0}, "it is of matching"),
        ({"target_scale": 0.0}, "target_scale must be above 0"),
        ({"target_scale": "far"}, "target_scale"),
        ({"objective": "energy", "filter_curvature": "both"}, "it is of matching, descent"),
        ({"filter_curvature": "both", "sketch_size": 20_000}, "matrix"),
        ({"ngram_weight": -1.0}, "ngram_weight must be at least 0"),
        ({"gradients": "raw", "ngram_weight": 1.0}, "ngram_weight must be 0 but for gradients unit"),
        ({"objective": "energy", "ngram_weight": 0.5}, "ngram_weight must be 0"),
        ({"filter_curvature": "validation", "ngram_weight": 0.5}, "filter_curvature pool or both, got"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], told: str) -> None:
    given = {"objective": "matching"} | options
    with pytest.raises(InputError) as refusal:
        SelectConfig(model="m", pool=("p",), validation=("v",), out="o", fraction=0.5, **given)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_choice_defines_the_run() -> None:
    base = SelectConfig(model="m", pool=("p",), validation=("v",), out="o", fraction=0.5, objective="descent")
    changes: list[dict[str, Any]] = [
        {"filter": "none", "damping": None, "filter_curvature": None, "ngram_weight": None},
        {"damping": 0.2},
        {"filter_curvature": "pool"},
        {"budget_ratio": 1.0},
        {"gradients": "raw", "ngram_weight": None},
        {"ngram_weight": 0.0},
        {"noise": "centred"},
        {"bands": 2},
        {"curvature": "mc-fisher", "filter_curvature": None, "ngram_weight": None},
        {"curvature": "ggn", "num_eigenpairs": 8, "filter_curvature": None, "ngram_weight": None},
        {"elbow": "gap"},
        {"num_stiff": 3},
    ]
    same = {
        "filter": "newton",
        "damping": 0.01,
        "filter_curvature": "both",
        "gradients": "unit",
        "ngram_weight": 1.0,
        "budget_ratio": "none",
    }
    assert replace(base, **same).defining == base.defining
    for change in changes:
        assert replace(base, **change).defining != base.defining


class TestCurvature:
    def chosen(self, checkpoint: Path, world: Path, out: Path, curvature: str, **options: Any) -> Run:
        """Select with few documents and directions, since each takes some dozens of products."""
        few = out.parent / "few.jsonl"
        if not few.exists():
            write_validation(few, count=8)
        pairs = {} if curvature == "mc-fisher" else {"num_eigenpairs": 3}
        given = {"validation": str(few), "objective": "descent", "num_stiff": 2, **pairs, **options}
        return chosen(checkpoint, world, out, curvature=curvature, **given)

    @pytest.mark.parametrize("curvature", ["mc-fisher", "ggn", "hessian"])
    def test_its_spectrum_is_kept_and_a_second_run_needs_no_model(
        self, checkpoint: Path, world: Path, tmp_path: Path, curvature: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = self.chosen(checkpoint, world, tmp_path / "out", curvature)
        spectrum = run.manifest["spectrum"]
        assert spectrum["curvature"] == curvature
        assert spectrum["stiff_cost_held_out"] > 0
        kept = load_file(run.out / "curvature" / f"{curvature}.safetensors")
        assert spectrum["eigenvalues"] == kept["all.eigenvalues"].tolist()
        whole = Spectrum(kept["all.eigenvalues"], kept["all.eigenvectors"], 2, 8)
        x = rows(stored(run.out, "pool"), "unit")
        np.testing.assert_allclose(evidence(run.out)["stiff_cost"].to_numpy(), whole.stiff_cost(x), rtol=UNIT_RTOL)

        before = files_below(run.out)
        monkeypatch.setattr(Checkpoint, "load_model", lambda *_: pytest.fail("the model was loaded"))
        again = self.chosen(checkpoint, world, run.out, curvature)
        after = files_below(run.out)
        assert {name for name in before if before[name] != after[name]} <= {"manifest.json"}
        assert {**again.manifest, "timings": None} == {**run.manifest, "timings": None}

    def test_a_damaged_one_is_estimated_again_to_the_same(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        run = self.chosen(checkpoint, world, tmp_path / "out", "mc-fisher")
        path = run.out / "curvature" / "mc-fisher.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-3])
        self.chosen(checkpoint, world, run.out, "mc-fisher")
        assert path.read_bytes() == content

    @pytest.mark.parametrize("curvature", ["mc-fisher", "ggn"])
    def test_batches_and_the_order_of_the_file_do_not_matter(
        self, checkpoint: Path, world: Path, tmp_path: Path, curvature: str
    ) -> None:
        one = self.chosen(checkpoint, world, tmp_path / "one", curvature)
        lines = (tmp_path / "few.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "back.jsonl").write_text("".join(reversed(lines)))
        options = {"validation": str(tmp_path / "back.jsonl"), "batch_tokens": 100}
        other = self.chosen(checkpoint, world, tmp_path / "other", curvature, **options)
        values = [np.array(run.manifest["spectrum"]["eigenvalues"][:2]) for run in (one, other)]
        # Float32 gradients in other batches; Lanczos stops at 1e-4.
        np.testing.assert_allclose(values[0], values[1], rtol=1e-3)
