"""The descent path against literal float64 implementations, against its own definition, and through kills."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from data.corpus_samples import prepared
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features.columns import verify_columns
from direct_anneal.model.batching import IGNORED_LABEL, windows_of
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path import PathConfig, PathLosses, scores
from direct_anneal.path import walk as walks_module
from direct_anneal.path.depth import deepest, has_turned
from direct_anneal.path.documents import Texts
from direct_anneal.path.scoring import losses_of
from direct_anneal.path.stiff import OffStiff, off_stiff
from direct_anneal.path.walk import Steps, put_weights, walk
from direct_anneal.train.packing import PackedWindows, Part
from path.path_runs import Died, corpora, descend_until, descend_until_killed, descended, files_of
from selection.tiny import CONTEXT, documents, start, write_jsonl

RNG = np.random.default_rng(0)


def texts(*lengths: int) -> Texts:
    contents = [RNG.integers(0, 256, length) for length in lengths]
    return Texts([f"d{place}" for place in range(len(lengths))], contents, np.zeros(len(lengths), dtype=np.int64))


def model_at(checkpoint: Path) -> nn.Module:
    return Checkpoint(str(checkpoint)).load_model("cpu", "float32").double()


def exact_model() -> nn.Module:
    """A model that is float64 throughout, which Llama's norms are not."""
    torch.manual_seed(0)
    shape = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": 256,
        "n_positions": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**shape, **dropouts)).double().eval()


def windows_over(documents: Texts, count: int, window: int = 16) -> PackedWindows:
    return PackedWindows(
        [Part(documents)], num_windows=count, window=window, separator=0, seed=0, predict_prompts=False
    )


def literal_loss(model: nn.Module, tokens: Any, num_prompt: int = 0) -> torch.Tensor:
    """Mean token nats of one document, window after window, one at a time."""
    nats = []
    for first in range(0, len(tokens), CONTEXT):
        window = torch.as_tensor(tokens[first : first + CONTEXT])
        scores = torch.log_softmax(model(input_ids=window[None]).logits[0], -1)
        nats += [-scores[t - 1, window[t]] for t in range(1, len(window)) if first + t >= num_prompt]
    return torch.stack(nats).mean()


def flat_gradient(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    return corpora(tmp_path_factory.mktemp("corpora"))


class TestLosses:
    def test_are_those_of_a_literal_loop(self, checkpoint: Path) -> None:
        model, documents = model_at(checkpoint), texts(5, 40, 64, 65, 150, 2)
        documents = replace(documents, num_prompt=np.array([0, 10, 0, 3, 100, 0]))
        found = losses_of(model, documents.contents, documents.num_prompt, max_length=64, batch_tokens=130)
        with torch.no_grad():
            wanted = [
                literal_loss(model, tokens, prompt)
                for tokens, prompt in zip(documents.contents, documents.num_prompt, strict=True)
            ]
        # Sums of the same float64 terms in another order.
        np.testing.assert_allclose(found.means, np.array(wanted), rtol=1e-12)

    def test_of_nothing_are_nothing(self, checkpoint: Path) -> None:
        documents = texts(0, 1, 8)
        told: list[int] = []
        found = losses_of(
            model_at(checkpoint),
            documents.contents,
            documents.num_prompt,
            max_length=64,
            batch_tokens=64,
            advance=told.append,
        )
        assert found.predicted.tolist() == [0, 0, 7]
        assert found.nats[:2].tolist() == [0, 0]
        assert np.isnan(found.means[:2]).all()
        assert sum(told) == 9

    @pytest.mark.parametrize("batch_tokens", [1, 64, 300, 10_000])
    def test_do_not_depend_on_batches_beyond_rounding(self, checkpoint: Path, batch_tokens: int) -> None:
        model, documents = model_at(checkpoint).float(), texts(*range(3, 80, 7))
        one, other = (
            losses_of(model, documents.contents, documents.num_prompt, max_length=64, batch_tokens=tokens).nats
            for tokens in (64, batch_tokens)
        )
        np.testing.assert_allclose(one, other, rtol=1e-5)  # float32, sums of some tens of terms


class TestWalk:
    STEPS = Steps(learning_rate=1e-3, num_steps=6, stop=6, batch_size=2, warm_up_steps=1, weight_decay=0.1, clip=0.5)

    def test_is_literal_adamw(self, checkpoint: Path, tmp_path: Path) -> None:
        documents, steps = texts(30, 20, 25), self.STEPS
        model, oracle = model_at(checkpoint), model_at(checkpoint)
        windows = windows_over(documents, 12)
        walk(model, windows, steps, state_file=tmp_path / "state", mark="m")
        first = [torch.zeros_like(p) for p in oracle.parameters()]
        second = [torch.zeros_like(p) for p in oracle.parameters()]
        for t in range(6):
            rate = 1e-3 * (0.5 if t == 0 else 1 - (t - 1) / 5)
            nats = []
            for window in (windows[2 * t], windows[2 * t + 1]):
                scores = torch.log_softmax(oracle(input_ids=window["input_ids"][None]).logits[0], -1)
                nats += [-scores[place - 1, window["input_ids"][place]] for place in range(1, 16)]
            gradients = torch.autograd.grad(torch.stack(nats).mean(), list(oracle.parameters()))
            norm = torch.sqrt(sum((g**2).sum() for g in gradients))
            with torch.no_grad():
                for p, g, m, v in zip(oracle.parameters(), gradients, first, second, strict=True):
                    g = g * min(1.0, 0.5 / (float(norm) + 1e-6))
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.95).add_(0.05 * g * g)
                    p.mul_(1 - rate * 0.1)
                    p.sub_(rate * (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.95 ** (t + 1))).sqrt() + 1e-8))
        # Where a second moment is next to nothing, its root amplifies the rounding of sums.
        torch.testing.assert_close(flat(model), flat(oracle), rtol=1e-7, atol=1e-9)

    def test_an_infinitesimal_drop_is_the_inner_product_of_gradients(self, tmp_path: Path) -> None:
        """A step of η down the validation gradient drops a document's loss by η ⟨g_i, g_val⟩ + O(η²)."""
        model, pool, rate = exact_model(), texts(20, 33, 64), 1e-7
        windows = windows_over(texts(40), 1)
        with torch.enable_grad():
            slope = flat_gradient(model, literal_loss(model, windows[0]["input_ids"]))
            wanted = [rate * float(flat_gradient(model, literal_loss(model, t)) @ slope) for t in pool.contents]

        def down_the_gradient(update: dict[str, torch.Tensor]) -> None:
            sizes = [value.numel() for value in update.values()]
            for value, part in zip(update.values(), slope.split(sizes), strict=True):
                value.copy_(-rate * part.reshape(value.shape))

        before = losses_of(model, pool.contents, pool.num_prompt, max_length=64, batch_tokens=64)
        steps = Steps(learning_rate=1e-3, num_steps=1, stop=1, batch_size=1)
        walk(model, windows, steps, state_file=tmp_path / "state", mark="m", restraint=down_the_gradient)
        after = losses_of(model, pool.contents, pool.num_prompt, max_length=64, batch_tokens=64)
        np.testing.assert_allclose(before.means - after.means, wanted, rtol=1e-4)

    def test_drops_add_up_along_the_path(self, tmp_path: Path) -> None:
        """Σ_t ⟨(g_i(θ_t) + g_i(θ_t+1)) / 2, θ_t − θ_t+1⟩ is the drop, to third order in the steps."""
        model, pool = exact_model(), texts(20, 33, 64)
        points: list[tuple[torch.Tensor, list[torch.Tensor], list[float]]] = []

        def visit(_: int) -> None:
            with torch.enable_grad():
                losses = [literal_loss(model, tokens) for tokens in pool.contents]
                points.append(
                    (flat(model), [flat_gradient(model, loss) for loss in losses], [v.item() for v in losses])
                )

        steps = Steps(learning_rate=2e-4, num_steps=20, stop=20, batch_size=2)
        walk(model, windows_over(texts(40, 50), 40), steps, state_file=tmp_path / "s", mark="m", visit=visit)
        for document in range(3):
            summed = sum(
                float((there[1][document] + here[1][document]) @ (there[0] - here[0])) / 2
                for there, here in pairwise(points)
            )
            drop = points[0][2][document] - points[-1][2][document]
            assert summed == pytest.approx(drop, rel=1e-3)

    def test_goes_on_to_the_same_bytes(self, checkpoint: Path, tmp_path: Path) -> None:
        """From the kept state; or from the start, where that has a flipped bit."""
        documents, steps = texts(30, 20, 25), replace(self.STEPS, checkpoint_steps=2)
        ends, visits, begun = [], [], []
        for stopping in ("", "stopped", "flipped"):
            model = model_at(checkpoint).float()

            def visit(taken: int, stopping: str = stopping) -> float:
                if stopping and taken == 5:
                    raise Died
                return taken / 3

            state = tmp_path / f"state-{stopping}"
            windows = windows_over(documents, 12)
            if stopping:
                with pytest.raises(Died):
                    walk(model, windows, steps, state_file=state, mark="m", visit=visit)
                model = model_at(checkpoint).float()
            if stopping == "flipped":
                content = bytearray(state.read_bytes())
                content[-7] ^= 2
                state.write_bytes(content)
            amounts: list[int] = []
            visited = walk(
                model,
                windows,
                steps,
                state_file=state,
                mark="m",
                visit=lambda taken: taken / 3,
                advance=amounts.append,
            )
            visits.append(visited)
            ends.append(flat(model))
            begun.append(amounts[0])
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[0], ends[2])
        assert visits == 3 * [[(taken, taken / 3) for taken in range(7)]]
        assert begun == [0, 4, 0]


class TestDescend:
    @pytest.fixture(scope="class")
    @classmethod
    def whole(
        cls, checkpoint: Path, given: tuple[Corpus, Corpus], tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, PathLosses]:
        directory = tmp_path_factory.mktemp("whole")
        return directory, descended(checkpoint, directory, *given)

    def test_finds_what_is_like_the_target(self, whole: tuple[Path, PathLosses], given: tuple[Corpus, Corpus]) -> None:
        losses = whole[1]
        code = np.array([name == "code" for name in given[1].index["domain"].to_pylist()])
        drops = losses.drops[:, 0]
        assert drops[code].mean() > drops[~code].mean()
        assert losses.usable.all()
        assert losses.reasons == [None] * 12
        assert losses.described["left_out_gain"] > 0
        assert losses.described["in_validation"] == 2

    def test_start_is_the_checkpoints_loss(
        self, whole: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path
    ) -> None:
        with torch.no_grad():
            wanted = [float(literal_loss(model_at(checkpoint), given[1].tokens(row))) for row in range(12)]
        np.testing.assert_allclose(whole[1].start, wanted, rtol=1e-5)

    @pytest.mark.parametrize("moment", [1, 8, 12, 18])  # a search, a walk, losses at the start and at the end
    def test_a_run_that_died_goes_on_to_the_same_bytes(
        self,
        whole: tuple[Path, PathLosses],
        given: tuple[Corpus, Corpus],
        checkpoint: Path,
        tmp_path: Path,
        moment: int,
    ) -> None:
        def die() -> None:
            raise Died

        assert descend_until(checkpoint, tmp_path, *given, moment, die)
        losses = descended(checkpoint, tmp_path, *given)
        assert files_of(tmp_path) == files_of(whole[0])
        np.testing.assert_array_equal(losses.ends, whole[1].ends)

    def test_so_does_one_that_was_killed(
        self, whole: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        process = start(descend_until_killed, checkpoint, run, tmp_path / "given", 9)
        process.join()
        assert process.exitcode == -9
        losses = descended(checkpoint, run, *given)
        np.testing.assert_array_equal(losses.ends, whole[1].ends)

    def test_a_shard_is_the_same_whoever_computes_it(
        self, whole: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(whole[0], tmp_path / "run")
        (tmp_path / "run/losses/columns-00000.json").unlink()  # or nothing beneath is looked at
        for name in ("columns-00001.parquet", "columns-00001.json"):
            (tmp_path / "run/losses/start" / name).unlink()
        damaged = tmp_path / "run/losses/whole/columns-00002.parquet"
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
        assert "shard 2" in str(next(verify_columns(damaged.parent)))
        descended(checkpoint, tmp_path / "run", *given)
        assert files_of(tmp_path / "run") == files_of(whole[0])
        assert not list(verify_columns(damaged.parent))

    def test_documents_of_the_validation_set_are_scored_by_who_left_them_out(
        self, whole: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path
    ) -> None:
        validation, pool = given
        folds = Texts.of(validation).of_folds(2)
        for copy in (10, 11):
            model = model_at(checkpoint)
            put_weights(whole[0] / f"work/end-fold-{folds[copy - 10]}.safetensors", model)
            with torch.no_grad():
                wanted = float(literal_loss(model, pool.tokens(copy)))
            assert whole[1].ends[copy, 0] == pytest.approx(wanted, rel=1e-5)

    def test_folds_can_be_averaged(self, given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path) -> None:
        losses = descended(checkpoint, tmp_path, *given, scored_ends="folds")
        ends = []
        for fold in range(2):
            parts = [pq.read_table(p) for p in sorted((tmp_path / f"losses/fold-{fold}").glob("*.parquet"))]
            table = pa.concat_tables(parts)
            ends.append(table["nats"].to_numpy() / table["predicted"].to_numpy())
        np.testing.assert_array_equal(losses.ends[:10, 0], np.mean(ends, axis=0)[:10])
        stores = sorted(path.name for path in (tmp_path / "losses").iterdir() if path.is_dir())
        assert stores == ["fold-0", "fold-1", "order", "start"]
        assert losses.usable.all()

    def test_losses_of_another_run_are_refused(
        self, whole: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(whole[0], tmp_path / "run")
        with pytest.raises(InputError, match=r"hold columns of this run, but they are of another .*seed"):
            descended(checkpoint, tmp_path / "run", *given, seed=1)

    def test_a_validation_set_that_nothing_is_learnt_from_is_refused(
        self, given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="must gain from annealing on the rest, but at rates 9 it never did"):
            descended(checkpoint, tmp_path, *given, learning_rates=(9.0,), max_passes=0.3)

    def test_a_rate_that_diverges_is_given_up(
        self, given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = walks_module._step

        def lost(optimizer: torch.optim.Optimizer, parameters: Any, restraint: Any) -> None:
            original(optimizer, parameters, restraint)
            if optimizer.param_groups[0]["lr"] > 0.1:
                next(iter(parameters.values())).data.fill_(torch.nan)

        alone = descended(checkpoint, tmp_path / "alone", *given, learning_rates=(1e-2,))
        monkeypatch.setattr(walks_module, "_step", lost)
        both = descended(checkpoint, tmp_path / "both", *given, learning_rates=(1e-2, 0.5))
        assert both.described["learning_rate"] == 1e-2
        assert both.ends.tobytes() == alone.ends.tobytes()
        (first,) = both.described["curves"]["0.5"]
        assert first[-1][1] is None
        walk_itself: dict[str, Any] = {"learning_rate": 0.5, "num_steps": 3, "stop": 3, "batch_size": 1}
        windows = PackedWindows([Part(texts(60))], num_windows=3, window=20, separator=0, seed=0)
        with pytest.raises(InputError, match=r"^the loss on the validation set must stay finite, .* at rate 0\.5"):
            walk(model_at(checkpoint), windows, Steps(**walk_itself), state_file=tmp_path / "state", mark="")


class TestDepth:
    def test_is_where_the_mean_over_folds_is_lowest(self) -> None:
        curves = {
            1e-3: [[(0.0, 4.0), (0.5, 3.0), (1.0, 2.9)], [(0.0, 4.0), (0.5, 3.0), (1.0, 3.3)]],
            1e-2: [[(0.0, 4.0), (0.5, 2.0)], [(0.0, 4.0), (0.5, 4.4), (1.0, 9.0)]],
        }
        found = deepest(curves)
        assert (found.learning_rate, found.share, found.gain, found.stderr) == (1e-3, 0.5, 1.0, 0.0)

    def test_a_walk_is_given_up_after_three_points_without_gain(self) -> None:
        assert not has_turned([4.0, 3.0, 3.1, 3.2])
        assert has_turned([4.0, 3.0, 3.1, 3.2, 3.05])
        assert has_turned([4.0, float("nan")])

    def test_equal_documents_are_in_one_fold(self) -> None:
        documents = texts(5, 6, 7, 8)
        doubled = Texts([*documents.ids, "copy"], [*documents.contents, documents.contents[2]], np.zeros(5, np.int64))
        folds = doubled.of_folds(2)
        assert folds[4] == folds[2]
        assert sorted(np.bincount(folds[:4])) == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": ()}, "learning_rates must be one or more numbers above 0"),
        ({"num_folds": 1}, "num_folds must be 0, or at least 2, got 1"),
        ({"num_folds": 0}, "num_folds must be at least 2 where there is something to find out"),
        ({"warm_up": 1.0}, "warm_up must be in"),
        ({"walk_replay": 1.0}, r"walk_replay must be in \[0, 1\)"),
        ({"optimizer": 3}, "optimizer must be"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PathConfig(**options)


Replayed = tuple[Path, PathLosses, list[tuple[Any, ...]]]


class TestReplay:
    """Walks with documents of the pool among the validation set, beside walks on those documents alone."""

    OPTIONS: ClassVar[dict[str, Any]] = {"walk_replay": 0.5, "learning_rates": (1e-2,)}

    @pytest.fixture(scope="class")
    @classmethod
    def replayed(
        cls, checkpoint: Path, given: tuple[Corpus, Corpus], tmp_path_factory: pytest.TempPathFactory
    ) -> Replayed:
        directory, seen = tmp_path_factory.mktemp("replayed"), []

        def packed(parts: Sequence[Part], *, num_windows: int, **options: Any) -> PackedWindows:
            windows = PackedWindows(parts, num_windows=num_windows, **options)
            seen.append((windows, *parts))
            return windows

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("direct_anneal.path.walks.PackedWindows", packed)
            losses = descended(checkpoint, directory, *given, **cls.OPTIONS)
        return directory, losses, seen

    def test_drops_are_what_the_validation_set_adds(
        self, replayed: Replayed, given: tuple[Corpus, Corpus], checkpoint: Path
    ) -> None:
        directory, losses, _ = replayed
        wanted = np.empty((12, 2))
        folds = Texts.of(given[0]).of_folds(2)
        for row in range(12):
            name = "whole" if row < 10 else f"fold-{folds[row - 10]}"  # the last two are in the validation set
            for place, walked in enumerate((f"{name}-replay", name)):
                model = model_at(checkpoint)
                put_weights(directory / f"work/end-{walked}.safetensors", model)
                with torch.no_grad():
                    wanted[row, place] = float(literal_loss(model, given[1].tokens(row)))
        assert losses.replayed is not None
        np.testing.assert_allclose(losses.replayed[:, 0], wanted[:, 0], rtol=1e-5)
        np.testing.assert_allclose(losses.ends[:, 0], wanted[:, 1], rtol=1e-5)
        np.testing.assert_array_equal(losses.drops, losses.replayed - losses.ends)
        assert losses.usable.all()
        with torch.no_grad():
            at_start = [float(literal_loss(model_at(checkpoint), given[1].tokens(row))) for row in range(12)]
        np.testing.assert_allclose(losses.start, at_start, rtol=1e-5)

    def test_both_walks_see_the_same_documents_of_the_pool(
        self, replayed: Replayed, given: tuple[Corpus, Corpus]
    ) -> None:
        validation, pool = given
        (mixed, target, among), *_, (alone, own) = replayed[2][2:5]  # after two of the search
        assert target.corpus.index["id"].to_pylist() == validation.index["id"].to_pylist()
        assert among.share == 0.5
        assert len(alone) == round(len(mixed) / 2)
        drawn = among.corpus.index["id"].to_pylist()
        assert set(drawn) <= set(pool.index["id"].to_pylist()[:10])  # the last two are in the validation set
        ids = own.corpus.index["id"].to_pylist()
        assert sorted(ids) == sorted(drawn[row] for row in mixed.seen(1))
        assert sum(map(len, own.corpus.contents)) == pytest.approx(len(alone) * CONTEXT, rel=0.2)  # whole documents

    @pytest.mark.parametrize("passes", [0.25, 0.75, 2.5])
    def test_even_where_walks_end_within_an_epoch(
        self, given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path, passes: float
    ) -> None:
        seen: list[tuple[list[str], ...]] = []

        def packed(parts: Sequence[Part], **options: Any) -> PackedWindows:
            windows = PackedWindows(parts, **options)
            seen.append(
                tuple(
                    [part.corpus.index["id"][row].as_py() for row in windows.seen(place)]
                    for place, part in enumerate(parts)
                )
            )
            return windows

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("direct_anneal.path.walks.PackedWindows", packed)
            quick = {"num_folds": 0, "scored_ends": "whole", "max_passes": passes, "batch_tokens": 16, "window": 16}
            alone = corpora(tmp_path / "given")[1].only(np.arange(10))
            descended(checkpoint, tmp_path, given[0], alone, **self.OPTIONS, **quick)
        (_, among), _, (own,) = seen
        assert set(own) == set(among)

    def test_a_run_that_died_goes_on_to_the_same_bytes(
        self,
        replayed: Replayed,
        given: tuple[Corpus, Corpus],
        checkpoint: Path,
        tmp_path: Path,
    ) -> None:
        def die() -> None:
            raise Died

        for moment in (5, 10):
            run = tmp_path / str(moment)
            assert descend_until(checkpoint, run, *given, moment, die, **self.OPTIONS)
            descended(checkpoint, run, *given, **self.OPTIONS)
            assert files_of(run) == files_of(replayed[0])

    def test_a_walk_is_not_another_pools(
        self, replayed: Replayed, given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        write_jsonl(tmp_path / "other.jsonl", documents(10, seed=3, prefix="o"))
        other = prepared(tmp_path / "other", tmp_path / "other.jsonl")
        shutil.copytree(replayed[0] / "work", tmp_path / "work")
        before = (tmp_path / "work/end-whole.safetensors").read_bytes()
        descended(checkpoint, tmp_path, given[0], other, **self.OPTIONS)
        assert (tmp_path / "work/end-whole.safetensors").read_bytes() != before

    def test_each_of_several_paths_has_a_walk_on_its_own_replay(
        self, given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        options = {**self.OPTIONS, "paths": "clusters", "num_clusters": 2, "num_restrained": 1}
        losses = descended(checkpoint, tmp_path, *given, **options)
        assert losses.replayed is not None
        assert losses.replayed.shape == losses.ends.shape == (12, len(losses.names))
        assert len(losses.names) > 1
        assert (losses.replayed[:, 0] != losses.replayed[:, 1]).any()  # where lengths differ
        again = PathLosses.load(tmp_path / "losses").take(np.array([3, 11]))
        np.testing.assert_array_equal(again.replayed, losses.replayed[[3, 11]])
        np.testing.assert_array_equal(again.restrained_drops, again.replayed - again.restrained)

    def test_a_pool_that_is_the_validation_set_is_refused(
        self, given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="walk_replay must be 0 where every document of the pool is in the valid"):
            descended(checkpoint, tmp_path, given[0], given[0], **self.OPTIONS)


class TestRestraint:
    def test_directions_are_those_of_a_dense_ggn(self, tmp_path: Path) -> None:
        """Against J^T (diag p − p pᵀ) J in float64, one document's token at a time."""
        torch.manual_seed(0)
        shape = {"n_embd": 4, "n_layer": 1, "n_head": 1, "vocab_size": 12, "n_positions": 8, "n_inner": 4}
        model = GPT2LMHeadModel(
            GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
        )
        model = model.double().eval()
        documents = Texts(["a", "b"], [RNG.integers(0, 12, 6), RNG.integers(0, 12, 4)], np.zeros(2, dtype=np.int64))
        dense = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64).diag()
        for tokens in documents.contents:
            logits = model(input_ids=torch.from_numpy(tokens)[None]).logits[0, :-1]
            for row in logits:
                jacobian = torch.stack(
                    [
                        torch.cat(
                            [
                                g.flatten()
                                for g in torch.autograd.grad(
                                    one,
                                    list(model.parameters()),
                                    retain_graph=True,
                                    allow_unused=True,
                                    materialize_grads=True,
                                )
                            ]
                        )
                        for one in row
                    ]
                )
                p = torch.softmax(row.detach(), 0)
                dense += jacobian.T @ (p.diag() - p[:, None] * p) @ jacobian / len(logits) / 2
        wanted, vectors = torch.linalg.eigh(dense)
        found = off_stiff(model, documents, 3, max_length=8, seed=0)
        np.testing.assert_allclose(found.eigenvalues, wanted.flip(0)[:3].numpy(), rtol=1e-6)
        overlaps = (found.directions @ vectors.flip(1)[:, :3]).abs()
        torch.testing.assert_close(overlaps, torch.eye(3, dtype=torch.float64), atol=1e-4, rtol=0)

        before = flat(model)
        steps = Steps(learning_rate=1e-3, num_steps=3, stop=3, batch_size=1)
        walk(model, windows_over(documents, 3, 8), steps, state_file=tmp_path / "s", mark="m", restraint=found)
        moved = flat(model) - before
        assert float(moved.norm()) > 1e-3
        assert float((found.directions @ moved).norm()) < 1e-12 * float(moved.norm()) * 10**3

    def test_a_step_is_damped_by_a_share(self) -> None:
        directions = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))[0].T
        update = {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor([1.0, -2.0])}
        whole = torch.cat([value.flatten() for value in update.values()])
        OffStiff(np.ones(2), directions, share=0.25)(update)
        found = torch.cat([value.flatten() for value in update.values()])
        torch.testing.assert_close(directions @ found, 0.25 * (directions @ whole))
        torch.testing.assert_close(
            found - directions.T @ (directions @ found), whole - directions.T @ directions @ whole
        )

    @pytest.fixture(scope="class")
    @classmethod
    def restrained(
        cls, checkpoint: Path, given: tuple[Corpus, Corpus], tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, PathLosses]:
        directory = tmp_path_factory.mktemp("restrained")
        return directory, descended(checkpoint, directory, *given, num_restrained=2, learning_rates=(1e-2,))

    def test_walks_beside_the_plain_path(
        self, restrained: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
    ) -> None:
        directory, losses = restrained
        assert len(losses.described["restrained"]) == 2
        plain = descended(checkpoint, tmp_path, *given, learning_rates=(1e-2,))
        np.testing.assert_array_equal(losses.ends, plain.ends)
        drops = losses.restrained_drops
        assert drops is not None
        assert (drops != losses.drops).any()
        directions = load_file(directory / "work/stiff.safetensors")["directions"]
        model, start = model_at(checkpoint), flat(model_at(checkpoint))
        put_weights(directory / "work/end-whole-restrained.safetensors", model)
        moved = flat(model) - start
        assert float((directions.double() @ moved).norm()) < 1e-3 * float(moved.norm())
        with torch.no_grad():
            wanted = [float(literal_loss(model, given[1].tokens(row))) for row in range(10)]
        np.testing.assert_allclose(losses.restrained[:10, 0], wanted, rtol=1e-5)  # type: ignore[index]

    def test_slopes_are_inner_products_of_gradients(
        self, restrained: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path
    ) -> None:
        directory, losses = restrained
        directions = load_file(directory / "work/stiff.safetensors")["directions"].double()
        model = model_at(checkpoint)
        wanted = [
            directions @ flat_gradient(model, literal_loss(model, given[1].tokens(row))) for row in range(len(losses))
        ]
        assert losses.slopes is not None
        np.testing.assert_allclose(losses.slopes, torch.stack(wanted).numpy(), rtol=1e-3, atol=1e-4)  # float32 sums

    def test_is_kept_with_the_losses(
        self, restrained: tuple[Path, PathLosses], monkeypatch: pytest.MonkeyPatch, given: Any, checkpoint: Path
    ) -> None:
        directory, losses = restrained
        again = PathLosses.load(directory / "losses")
        np.testing.assert_array_equal(again.slopes, losses.slopes)
        np.testing.assert_array_equal(again.restrained, losses.restrained)
        assert again.only(np.arange(12) < 3).slopes.shape == (3, 2)  # type: ignore[union-attr]
        stored = files_of(directory)
        for name in ("columns.json", "columns-00000.json"):
            (directory / "losses" / name).unlink()

        def found_again(*_: object, **__: object) -> None:
            raise AssertionError("directions are kept")

        monkeypatch.setattr("direct_anneal.path.walks.off_stiff", found_again)
        descended(checkpoint, directory, *given, num_restrained=2, learning_rates=(1e-2,))
        assert files_of(directory) == stored


def test_known_losses_at_the_start_are_not_computed_again(
    given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
) -> None:
    """Two are not known: they are computed. One is another number: it is believed, so nobody looked again."""
    quick = {"learning_rates": (1e-2,), "num_folds": 2}
    own = descended(checkpoint, tmp_path / "own", *given, **quick)
    known = own.start.copy()
    known[[0, 3]] = np.nan
    again = descended(checkpoint, tmp_path / "again", *given, known_start=known, **quick)
    for name in ("num_tokens", "start", "ends", "repeated", "common"):
        np.testing.assert_allclose(getattr(again, name), getattr(own, name), rtol=1e-6)
    np.testing.assert_allclose(again.order, own.order, rtol=1e-4)  # the tail of a normal distribution
    assert not (tmp_path / "again/losses/start").exists()
    known[5] += 1.0
    other = descended(checkpoint, tmp_path / "other", *given, known_start=known, **quick)
    np.testing.assert_allclose(other.drops[5] - own.drops[5], 1.0, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "prompt"), [(0, 0), (1, 0), (2, 0), (64, 0), (65, 0), (66, 0), (130, 70), (9, 9)])
def test_predicted_tokens_are_counted_as_windows_predict_them(tokens: int, prompt: int) -> None:
    windows = windows_of([np.arange(tokens)], max_length=64, num_prompt=[prompt])
    wanted = sum(int((window.wanted != IGNORED_LABEL).sum()) for window in windows)
    found = scores.predicted_tokens(np.array([tokens]), np.array([prompt]), 64)
    assert found.tolist() == [wanted]


def test_without_order_there_is_one_pass_less(given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path) -> None:
    losses = descended(checkpoint, tmp_path, *given, read_order=False, learning_rates=(1e-2,))
    assert np.isnan(losses.order).all()
    assert losses.usable.all()
    assert not (tmp_path / "losses/order").exists()
