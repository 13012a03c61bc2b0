"""General text beside the selection: how much, which, and where it is written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from direct_anneal.config.select import SelectConfig
from direct_anneal.errors import InputError
from direct_anneal.export import export
from direct_anneal.objectives import Gradients, Inputs
from direct_anneal.objectives.matching import MatchingConfig
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.verify_run import verify_run
from direct_anneal.selection import Run, select_again
from direct_anneal.selection.replay import draw_replay
from export.exported import provenance
from selection.pools import chosen, exported
from selection.tiny import chosen_ids, evidence, files_below, manifest, write_checkpoint

SHARE = 0.3


def naive(ids: list[str], tokens: list[int], selected: set[int], out: set[int], share: float, seed: int) -> set[int]:
    """Documents in the order of their hashes, until one more would be farther from the share than one less."""
    key = f"replay {seed}".encode()
    rest = sorted(
        (hashlib.blake2b(id.encode(), digest_size=16, key=key).digest(), place)
        for place, id in enumerate(ids)
        if place not in selected | out
    )
    wanted = share * sum(tokens[place] for place in selected) / (1 - share)
    best = min(range(1, len(rest) + 1), key=lambda n: abs(sum(tokens[place] for _, place in rest[:n]) - wanted))
    return {place for _, place in rest[:best]}


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_a_naive_drawing_gives_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, share = 40, rng.uniform(0.05, 0.6)
    ids = [f"d{i}" for i in range(count)]
    tokens = rng.integers(1, 30, count)
    kind = rng.choice(3, count, p=[0.6, 0.2, 0.2])
    kind[0] = 1
    drawn = draw_replay(ids, tokens, kind == 1, kind == 2, share=share, seed=seed).chosen
    groups = [set(np.flatnonzero(kind == one).tolist()) for one in (1, 2)]
    assert set(np.flatnonzero(drawn).tolist()) == naive(ids, tokens.tolist(), *groups, share, seed)
    wanted = share / (1 - share) * tokens[kind == 1].sum()
    assert abs(tokens[drawn].sum() - wanted) <= tokens.max()
    order = rng.permutation(count)
    again = draw_replay(
        [ids[i] for i in order], tokens[order], (kind == 1)[order], (kind == 2)[order], share=share, seed=seed
    ).chosen
    assert np.array_equal(again, drawn[order])
    other = draw_replay(ids, tokens, kind == 1, kind == 2, share=share, seed=seed + 100).chosen
    assert not np.array_equal(other, drawn)


def test_too_little_of_the_pool_is_told_with_the_most_there_is() -> None:
    ids, tokens = list("abcd"), np.full(4, 10)
    selected, out = np.array([True, True, False, False]), np.array([False, False, False, True])
    with pytest.raises(InputError, match=r"replay must be at most 0\.333 .* 10 tokens .* 0\.5 takes 20"):
        draw_replay(ids, tokens, selected, out, share=0.5, seed=0)
    assert draw_replay(ids, tokens, selected, out, share=0.333, seed=0).chosen.tolist() == [False, False, True, False]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_is_below_one(share: float) -> None:
    with pytest.raises(InputError, match=r"replay must be (at least 0 and below 1|finite)"):
        SelectConfig(model="m", pool="p", validation="v", out="o", fraction=0.1, replay=share)


def test_matching_leans_as_far_as_the_mixture_needs() -> None:
    """With the share s of replay at the pool's mean, selection and replay have their mean where the target was."""
    rng = np.random.default_rng(0)
    rows, aims = rng.normal(size=(30, 4)), rng.normal(size=(6, 4)) + 1
    norms = {name: np.linalg.norm(z, axis=1) for name, z in (("pool", rows), ("validation", aims))}
    loaded = {
        "pool": Gradients([rows / norms["pool"][:, None]], norms["pool"]),
        "validation": Gradients([aims / norms["validation"][:, None]], norms["validation"]),
    }
    objective = MatchingConfig(filter="none", gradients="raw", ngram_weight=0.0)
    problems = {share: objective_problem(objective, loaded, share) for share in (0.0, 0.75)}
    start, plain, diluted = problems[0.0].start, problems[0.0].target, problems[0.75].target
    np.testing.assert_allclose(0.25 * diluted + 0.75 * start, plain, rtol=1e-12)
    assert np.linalg.norm(plain - start) > 0.1


def objective_problem(objective: MatchingConfig, loaded: dict[str, Gradients], share: float) -> Any:
    from direct_anneal.curvature import Estimate, Spectrum

    z = loaded["validation"].dense
    spectrum = Spectrum.from_sketches(z)
    return objective.build(
        Inputs(
            num_selected=5,
            loaders={"gradients": loaded.__getitem__},
            estimate=lambda: Estimate(spectrum, None),
            replay=share,
        )
    ).problem


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    """A run without replay. To be read, not changed."""
    directory = tmp_path_factory.mktemp("replay")
    model = write_checkpoint(directory / "model")
    return chosen(model, world, directory / "run", objective="descent", fraction=0.2)


def as_written(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_below(out).items() if name.startswith(("selec", "replay"))}


@pytest.mark.usefixtures("no_model")
class TestOfARun:
    def test_files_column_and_manifest_say_the_same(self, done: Run, tmp_path: Path) -> None:
        before = evidence(done.out)
        kept_out = sorted(set(before["id"].to_pylist()) - chosen_ids(done.out))[::3]
        (tmp_path / "out.txt").write_text("\n".join(kept_out))
        run = select_again(done.out, out=tmp_path / "run", replay=SHARE, force_out=str(tmp_path / "out.txt"))
        table, told = evidence(run.out), manifest(run.out)["replay"]
        selected, replay, tokens = (table[name].to_numpy() for name in ("selected", "replay", "num_tokens"))
        drawn = set(table.filter(table["replay"])["id"].to_pylist())
        assert not (selected & replay).any()
        assert not drawn & set(kept_out)
        assert {record["id"] for record in exported(run.out, told["files"])} == drawn
        wanted = SHARE / (1 - SHARE) * tokens[selected].sum()
        assert abs(tokens[replay].sum() - wanted) <= tokens.max()
        assert told["share_reached"] == tokens[replay].sum() / tokens[selected | replay].sum()
        assert (told["num_documents"], told["num_tokens"]) == (replay.sum(), tokens[replay].sum())
        assert sum(told["domains"].values()) == replay.sum()
        own = [name for name in run.manifest["files"] if name not in told["files"]]
        assert {record["id"] for record in exported(run.out, own)} == set(
            table.filter(table["selected"])["id"].to_pylist()
        )
        assert len(own) == len(told["files"]) > 3

    def test_without_it_nothing_is_there(self, done: Run, tmp_path: Path) -> None:
        run = select_again(done.out, out=tmp_path / "run", replay=0)
        assert "replay" not in run.manifest
        assert run.manifest["config"]["replay"] is None
        assert "replay" not in evidence(run.out).column_names
        assert not list(run.out.glob("replay*"))
        with pytest.raises(InputError, match="hold general text beside the selection"):
            export(run.out, to="jsonl", out=tmp_path / "export", part="both")

    def test_verify_covers_it_and_a_next_run_takes_it_away(self, done: Run, tmp_path: Path) -> None:
        run = select_again(done.out, out=tmp_path / "run", replay=SHARE)
        assert all(finding.harmless for finding in verify_run(run.out))
        for name in run.manifest["replay"]["files"]:
            path = run.out / name
            path = next(path.glob("*.arrow")) if path.is_dir() else path
            before = path.read_bytes()
            path.write_bytes(before + b" ")
            wrong = [finding for finding in verify_run(run.out) if not finding.harmless]
            assert [finding.place for finding in wrong] == [path]
            path.write_bytes(before)
        before = as_written(run.out)
        assert as_written(select_again(done.out, out=tmp_path / "run", replay=SHARE, overwrite=True).out) == before
        select_again(done.out, out=tmp_path / "run", overwrite=True)
        assert not list(run.out.glob("replay*"))

    @pytest.mark.parametrize("part", ["selected", "replay", "both"])
    def test_export_writes_each_part(self, done: Run, tmp_path: Path, part: str) -> None:
        run = select_again(done.out, out=tmp_path / "run", replay=SHARE)
        record = export(run.out, to="megatron", out=tmp_path / "export", part=part)
        opened = RunDir.open(run.out)
        masks = {"selected": opened.selected(), "replay": opened.replayed()}
        wanted = masks["selected"] | masks["replay"] if part == "both" else masks[part]
        ids = np.array(evidence(run.out)["id"].to_pylist())
        assert sorted(row["id"] for row in provenance(tmp_path / "export")) == sorted(ids[wanted])
        share = run.manifest["replay"]["share_reached"]
        assert record["mixture_share"] == {"selected": 1 - share, "replay": share, "both": 1.0}[part]
