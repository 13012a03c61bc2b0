from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from scipy.stats import spearmanr

from direct_anneal.cli import main
from direct_anneal.distill import DistilConfig, read_scorer
from direct_anneal.distill.card import held_out, spearman
from direct_anneal.distill.fit import FOLDS, _steps, fit, folds_of, frequencies, normal_scores
from direct_anneal.distill.hashing import words
from direct_anneal.distill.pipeline import distil
from direct_anneal.distill.scorer import joined
from direct_anneal.errors import InputError
from distill.naive import hash_of, places_of, words_of

BITS = 14


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestFit:
    def test_frequencies_are_counted_shares(self) -> None:
        texts = ["a b a b", "", "c"]
        block = words(*joined([text.encode() for text in texts]))
        found = frequencies([block, block], BITS).toarray()
        for row, text in enumerate([*texts, *texts]):
            places = places_of([hash_of(word) for word in words_of(text)], BITS)
            wanted = np.bincount(places, minlength=2**BITS) / max(len(places), 1)
            np.testing.assert_allclose(found[row], wanted, rtol=1e-14)

    def test_conjugate_gradients_end_at_least_squares(self) -> None:
        rng = np.random.default_rng(0)
        matrix, target = rng.normal(size=(30, 8)), rng.normal(size=30)
        *_, solution = _steps(sp.csr_array(matrix), target)
        np.testing.assert_allclose(solution, np.linalg.lstsq(matrix, target)[0], rtol=1e-6)

    def test_a_fold_is_predicted_without_itself(self) -> None:
        rng = np.random.default_rng(1)
        shares, counts = sp.csr_array(rng.random((60, 2**10)) * (rng.random((60, 2**10)) < 0.05)), np.full(60, 9)
        target, folds = rng.normal(size=60), np.arange(60) % FOLDS
        before = fit(shares, counts, target, folds)
        inside = folds == 2
        # Shuffled within a fold, its mean is the same: only what it judges (fold 1, by the steps) may move.
        other = target.copy()
        other[inside] = rng.permutation(target[inside])
        np.testing.assert_array_equal(fit(shares, counts, other, folds).predicted[inside], before.predicted[inside])

    def test_what_words_say_is_found(self) -> None:
        rng = np.random.default_rng(2)
        texts = [" ".join(rng.choice(list("abcdefgh"), size=20).tolist()) for _ in range(200)]
        worth = np.array([text.count("a") - text.count("b") for text in texts], dtype=np.float64)
        block = words(*joined([text.encode() for text in texts]))
        folds = folds_of([str(number) for number in range(200)])
        fitted = fit(frequencies([block], BITS), np.diff(block[1]), normal_scores(worth), folds)
        assert spearman(fitted.predicted, worth) > 0.9

    def test_folds_hang_on_ids_alone(self) -> None:
        ids = [f"d{number}" for number in range(100)]
        assert folds_of(ids[::-1]).tolist() == folds_of(ids)[::-1].tolist()
        assert set(folds_of(ids).tolist()) == set(range(FOLDS))


class TestCard:
    def test_rank_correlation_is_spearmans(self) -> None:
        rng = np.random.default_rng(0)
        one, other = rng.integers(5, size=(2, 40)).astype(np.float64)
        assert spearman(one, other) == pytest.approx(spearmanr(one, other)[0])
        assert spearman(one, np.zeros(40)) == 0

    def test_says_what_was_kept(self) -> None:
        order = np.arange(100.0)
        chosen = order >= 80
        kept = held_out(order, order, order, chosen, np.arange(100) % FOLDS)
        assert kept["rank_correlation"] == kept["overlap"] == kept["slope"] == pytest.approx(1)
        assert kept["overlap_by_chance"] == 0.2
        assert kept["overlap_of_leading"]["0.1"] == 1
        lost = held_out(-order, order, order, chosen, np.arange(100) % FOLDS)
        assert lost["rank_correlation"] == pytest.approx(-1)
        assert lost["overlap"] == 0

    @pytest.mark.parametrize("seed", range(4))
    def test_figures_are_those_of_plain_counting(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        count = 83
        order = rng.integers(30, size=count).astype(np.float64)  # with ties, as losses of equal documents are
        predicted, target = np.round(order / 9 + rng.normal(size=count), 1), normal_scores(order)
        selected, folds = rng.random(count) < 0.3, rng.integers(FOLDS, size=count)
        found = held_out(predicted, target, order, selected, folds)

        def rank(values: list[float], value: float) -> float:
            return sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2

        def correlation(rows: list[int]) -> float:
            columns = [[values[row] for row in rows] for values in (predicted, order)]
            one, other = ([rank(values, value) for value in values] for values in columns)
            mean = (len(rows) + 1) / 2
            a, b = [value - mean for value in one], [value - mean for value in other]
            product = sum(x * y for x, y in zip(a, b, strict=True))
            return product / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

        def leading(values: np.ndarray, number: int) -> list[int]:
            return sorted(range(count), key=lambda row: (-values[row], row))[:number]

        assert found["rank_correlation"] == pytest.approx(correlation(list(range(count))))
        of_folds = [correlation([row for row in range(count) if folds[row] == fold]) for fold in range(FOLDS)]
        assert found["rank_correlation_of_folds"] == pytest.approx([min(of_folds), max(of_folds)])
        chosen = {row for row in range(count) if selected[row]}
        assert found["overlap"] == pytest.approx(len(chosen & {*leading(predicted, len(chosen))}) / len(chosen))
        assert found["overlap_by_chance"] == pytest.approx(len(chosen) / count)
        for share, overlap in found["overlap_of_leading"].items():
            number = round(float(share) * count)
            assert overlap == pytest.approx(len({*leading(order, number)} & {*leading(predicted, number)}) / number)
        assert [*found["overlap_of_leading"]] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]
        slope, _ = np.polyfit(predicted, target, 1)
        assert found["slope"] == pytest.approx(slope)
        tenths = found["calibration"]
        assert [part["documents"] for part in tenths] == [9, 9, 9, 8, 8, 8, 8, 8, 8, 8]
        upwards, first = leading(predicted, count)[::-1], 0
        for part in tenths:
            rows = upwards[first : first + part["documents"]]
            first += part["documents"]
            assert part["predicted"] == pytest.approx(sum(predicted[row] for row in rows) / len(rows))
            assert part["target"] == pytest.approx(sum(target[row] for row in rows) / len(rows))


class TestDistil:
    def test_writes_a_scorer_with_its_card(self, run: Path, tmp_path: Path) -> None:
        card = distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), bits=BITS, target="loss"))
        scorer = read_scorer(tmp_path / "scorer")
        table = pq.read_table(run / "selection.parquet")
        texts = [record["text"] for record in _read(run.parent / "pool.jsonl")]
        assert card["documents"] == table.num_rows == 90
        assert spearman(scorer.scores(texts).astype(np.float64), table["loss"].to_numpy()) > 0.6
        assert card["held_out"]["rank_correlation"] > 0.3
        assert card["tokens_per_size"] == 1  # the model's tokens are bytes
        assert scorer.card["held_out"] == card["held_out"]

    def test_ranks_count_from_the_best(self, run: Path, tmp_path: Path) -> None:
        distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), bits=BITS))
        table = pq.read_table(run / "selection.parquet")
        texts = [record["text"] for record in _read(run.parent / "pool.jsonl")]
        assert spearman(read_scorer(tmp_path / "scorer").scores(texts).astype(float), -table["rank"].to_numpy()) > 0.5

    def test_tokens_do_as_well(self, run: Path, tmp_path: Path) -> None:
        distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), bits=BITS, unit="tokens", target="loss"))
        assert read_scorer(tmp_path / "scorer").unit == "tokens"

    def test_twice_is_the_same_bytes(self, run: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            distil(DistilConfig(run=str(run), out=str(tmp_path / name), bits=BITS, target="selected"))
        files = {path.name for path in (tmp_path / "a").iterdir()}
        assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)

    def test_other_columns_are_refused(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"target must be one of .*, rank, .*, got path"):
            distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), target="path"))
        with pytest.raises(InputError, match="target must be one of"):
            distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), target="domain"))

    def test_another_scorer_is_not_written_over(self, run: Path, tmp_path: Path) -> None:
        distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), bits=BITS))
        with pytest.raises(InputError, match="holds another run"):
            distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), bits=BITS + 1))
        distil(DistilConfig(run=str(run), out=str(tmp_path / "scorer"), bits=BITS + 1, overwrite=True))
        assert read_scorer(tmp_path / "scorer").bits == BITS + 1

    def test_unfinished_runs_are_refused(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "run")
        (tmp_path / "run" / "manifest.json").unlink()
        with pytest.raises(InputError, match="finished"):
            distil(DistilConfig(run=str(tmp_path / "run"), out=str(tmp_path / "scorer")))

    def test_the_command_says_what_is_kept(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["distil", str(run), "--out", str(tmp_path / "scorer"), "--bits", "12", "--quiet"]) == 0
        assert main(["distil", str(run), "--out", str(tmp_path / "scorer"), "--bits", "12"]) == 0
        assert "distilled from 90 documents" in capsys.readouterr().out
        assert main(["distil", str(run), "--out", str(tmp_path / "other"), "--bits", "40"]) == 2
        assert "--bits must be in 10..26" in capsys.readouterr().err
