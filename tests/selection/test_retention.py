"""Text that must not get worse: effects against a naive computation, the limit against all selections there are."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import Estimate, Spectrum
from direct_anneal.errors import InputError
from direct_anneal.objectives import Gradients, Inputs
from direct_anneal.objectives.descent import DescentConfig
from direct_anneal.run.verify_run import verify_run
from direct_anneal.selection import Run, merge_features, select_again
from direct_anneal.selection.retention import retention_of, solved
from selection.pools import chosen, computed, stored
from selection.tiny import documents, evidence, files_below, manifest, write_checkpoint, write_jsonl

N, K = 10, 4


class World:
    """Ten gradients, a target that the retained text is against, and problems of them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.pool = rng.normal(size=(N, 5)) + np.array([0.5, 0, 0, 0, 0])
        self.validation = rng.normal(size=(4, 5)) + np.array([-2.0, 1, 0, 0, 0])
        self.retained = rng.normal(size=(3, 5)) + np.array([2.0, 0, 0, 0, 0])
        self.num_tokens = rng.integers(5, 12, N)

    def of(self, gradients: Any, floor: float | None, **size: int) -> tuple[Any, Inputs, Any]:
        parts = {"pool": split(self.pool), "validation": split(self.validation)}
        inputs = Inputs(
            num_tokens=self.num_tokens,
            loaders={"gradients": parts.__getitem__},
            estimate=lambda: Estimate(Spectrum.from_sketches(self.validation), None),
            constraints={"tie_order": np.arange(N)},
            **(size or {"num_selected": K}),
        )
        objective = DescentConfig(filter="none", gradients=gradients, ngram_weight=0.0)
        known: Any = SimpleNamespace(retain=split(self.retained))
        return objective, inputs, retention_of(objective, inputs, known, floor)

    def effects(self, gradients: str) -> np.ndarray:
        """One by one, in float64."""
        pool, retained = (
            [row / np.linalg.norm(row) if gradients == "unit" else row for row in rows]
            for rows in (self.pool, self.retained)
        )
        return np.array([np.mean([float(x @ r) for r in retained]) for x in pool])


def split(rows: np.ndarray) -> Gradients:
    norms = np.linalg.norm(rows, axis=1)
    return Gradients([rows / norms[:, None]], norms)


@pytest.mark.parametrize("gradients", ["unit", "raw"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("floor", [None, 0.5, 1.3])
def test_the_best_of_all_selections_that_keep_the_floor(seed: int, gradients: str, floor: float | None) -> None:
    world = World(seed)
    objective, inputs, retention = world.of(gradients, floor)
    effects = world.effects(gradients)
    np.testing.assert_allclose(retention.effects, effects, rtol=1e-12, atol=1e-12)
    mean = effects.mean()
    least = mean + ((1.0 if floor is None else floor) - 1) * abs(mean)
    kept = [some for some in map(list, combinations(range(N), K)) if effects[some].mean() >= least - 1e-12]
    if not kept:
        with pytest.raises(InputError, match="retain_floor must be at most"):
            solved(objective, inputs, retention, relax=False)
        return
    built, selection, _ = solved(objective, inputs, retention, relax=False)
    assert effects[selection.indices].mean() >= least - 1e-9
    free = objective.solve(objective.build(inputs).problem)
    values = np.ravel(built.problem.features.dot(built.problem.target))
    best = max(values[some].sum() for some in kept)
    assert selection.objective == pytest.approx(best, rel=1e-9)
    assert free.objective >= selection.objective - 1e-9
    assert retention.entry(selection)["selected"] == pytest.approx(effects[selection.indices].mean())


@pytest.mark.parametrize("seed", range(4))
def test_by_tokens_each_token_counts(seed: int) -> None:
    world = World(seed)
    objective, inputs, retention = world.of("unit", 1.0, token_budget=40)
    effects, tokens = world.effects("unit"), world.num_tokens
    _, selection, _ = solved(objective, inputs, retention, relax=False)
    mean = (effects * tokens)[selection.indices].sum() / tokens[selection.indices].sum()
    assert mean >= (effects * tokens).sum() / tokens.sum() - 1e-9
    assert retention.mean(selection) == pytest.approx(mean)


@pytest.mark.parametrize("size", [{"num_selected": K}, {"token_budget": 40}])
def test_what_an_error_suggests_works(size: dict[str, int]) -> None:
    world = World(1)
    with pytest.raises(InputError, match=r"retain_floor must be at most about \S+, with all else") as caught:
        solved(*world.of("unit", 1e3, **size), relax=False)
    [most] = re.findall(r"at most about (\S+),", str(caught.value))
    if "num_selected" in size:  # fractions of documents fit a number of tokens where whole ones need not
        solved(*world.of("unit", float(most), **size), relax=False)
        with pytest.raises(InputError):
            solved(*world.of("unit", float(most) + 0.01, **size), relax=False)


def test_a_floor_needs_a_text() -> None:
    with pytest.raises(InputError, match="retain_floor must come with retain"):
        SelectConfig(model="m", pool="p", validation="v", out="o", fraction=0.1, retain_floor=1.0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    """A run that retains text. To be read, not changed."""
    directory = tmp_path_factory.mktemp("retain")
    model = write_checkpoint(directory / "model")
    retained = write_jsonl(directory / "general.jsonl", documents(12, seed=9, prefix="g", domains=("table",)))
    return chosen(model, world, directory / "run", objective="descent", fraction=0.2, retain=str(retained))


@pytest.mark.usefixtures("no_model")
class TestOfARun:
    def test_effects_and_floor(self, done: Run, tmp_path: Path) -> None:
        pool, retained = stored(done.out, "pool"), stored(done.out, "retain")
        unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (pool, retained)]
        effects = unit[0] @ unit[1].mean(axis=0)
        assert len(retained) == 12
        for floor in (1.0, 1.1):
            run = done if floor == 1.0 else select_again(done.out, out=tmp_path / "again", retain_floor=floor)
            table, told = evidence(run.out), manifest(run.out)["retain"]
            np.testing.assert_allclose(table["retain"].to_numpy(), effects, atol=1e-3)  # units are stored in 16 bits
            column, selected = table["retain"].to_numpy(), table["selected"].to_numpy()
            assert told["random"] == pytest.approx(column.mean(), rel=1e-12)
            assert told["selected"] == pytest.approx(column[selected].mean(), rel=1e-12)
            assert told["floor"] == pytest.approx(floor * column.mean(), rel=1e-12)
            assert told["selected"] >= told["floor"] - 1e-9
            assert told["floor_ratio"] == floor
        assert {"pool", "validation", "retain"} == set(manifest(done.out)["corpora"])
        assert manifest(done.out)["fingerprints"]["retain"] != manifest(done.out)["fingerprints"]["validation"]

    def test_verify_covers_its_features_and_documents(self, done: Run) -> None:
        assert all(finding.harmless for finding in verify_run(done.out))
        for path in (
            next((done.out / "features" / "retain").glob("features-*.npy")),
            next((done.out / "corpus" / "retain").glob("*.tokens")),
        ):
            before = path.read_bytes()
            path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
            assert any(not finding.harmless for finding in verify_run(done.out)), path
            path.write_bytes(before)
        gone = done.out / "features" / "retain"
        gone.rename(done.out / "elsewhere")
        assert any("no features are there" in finding.wrong for finding in verify_run(done.out))
        (done.out / "elsewhere").rename(gone)


def test_jobs_share_its_work(done: Run, world: Path, tmp_path: Path) -> None:
    config = done.manifest["config"]
    for job in ("0/2", "1/2"):
        computed(Path(config["model"]), world, tmp_path / "run", retain=config["retain"], shards=job)
    merged = merge_features(tmp_path / "run")
    assert merged.corpora["retain"]["documents"] == 12
    assert files_below(merged.out / "features" / "retain") == files_below(done.out / "features" / "retain")
