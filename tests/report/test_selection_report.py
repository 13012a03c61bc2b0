"""The report of a selection: a page that harms nobody, says what the files say, and can be made again."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from direct_anneal.cli import main
from direct_anneal.data.issues import REJECTIONS
from direct_anneal.errors import InputError
from direct_anneal.features import FeatureStore
from direct_anneal.io.sanitize import sanitized
from direct_anneal.report import data as report_data
from direct_anneal.report import page, write_report
from direct_anneal.report.data import Excerpt, gather
from direct_anneal.report.verdict import _left_out, judge
from direct_anneal.report.why import Standing
from direct_anneal.run.run_dir import RunDir
from direct_anneal.selection import Run, select_again
from report.conftest import HOSTILE, reported
from report.pages import harmless
from selection.pools import write_pool
from selection.tiny import evidence

MAX_BYTES = 3_000_000


def content(run: Run) -> str:
    return (run.out / "report.html").read_text(encoding="utf-8")


class TestThePage:
    def test_says_what_was_chosen_from_what_and_what_to_know(self, done: Run) -> None:
        text = " ".join(harmless(content(done)).text.split())
        assert "15 of 60 documents chosen" in text
        verdict = judge(done.manifest, done.out)
        assert verdict.sentence in text
        for warning in (*done.manifest["warnings"], *(check.text for check in verdict.checks)):
            assert warning[1:] in text
        for domain in done.manifest["composition"]["domains"]:
            assert domain in text
        for value in (*done.manifest["fingerprints"].values(), *done.manifest["versions"].values()):
            assert value is None or value in text

    def test_shows_documents_in_words(self, done: Run, tmp_path: Path) -> None:
        records = write_pool(tmp_path / "same")
        table = evidence(done.out)
        text = harmless(content(done)).text
        ranks = dict(zip(table["rank"].to_pylist(), table["id"].to_pylist(), strict=True))
        for rank in (1, 2, 15, 16, 60):
            record = records[ranks[rank]]
            assert f"{record['id']} ·" in text
            assert "text" not in record or record["text"] in text

    def test_lists_documents_of_every_domain_with_their_reasons(self, done: Run) -> None:
        listed = gather(done.out).excerpts["listed"]
        assert len(listed) == 60  # the whole pool, which is small
        read = harmless(content(done))
        assert read.text.count("Chosen: score in the top ") == 15
        assert sum(name == "data-chosen" and value == "1" for _, name, value in read.attributes) == 15

    def test_tells_a_place_in_the_pool(self) -> None:
        table = pa.table({"score": [1.0, 2.0, 3.0, 4.0], "path": [4.0, 3.0, 2.0, None], "stiff_cost": [1.0] * 4})
        assert (
            Standing(table.append_column("selected", [[True, True, False, False]]))
            .described({"path": 2.0})
            .startswith("loss")
        )
        standing = Standing(table.append_column("selected", [[False, False, True, True]]))
        assert standing.described({"score": 4.0, "path": None, "stiff_cost": 1.0}) == "score in the top 25%"
        told = standing.described({"score": 1.0, "path": 4.0, "stiff_cost": 1.0})
        assert told == "score in the bottom 25%, loss drop along the path in the top 33%"
        same = {
            "score": [1.0, 2.0, 3.0],
            "path": [1.0, 2.0, 3.0],
            "stiff_cost": [1.0] * 3,
            "selected": [False, False, True],
        }
        told = Standing(pa.table(same)).described({"score": 3.0, "path": 3.0, "stiff_cost": 1.0})
        assert told == "loss drop along the path in the top 33%"  # once, where the score is the drop

    def test_is_one_small_file_that_is_made_again_to_the_same_bytes(self, done: Run, tmp_path: Path) -> None:
        before = (done.out / "report.html").read_bytes()
        assert len(before) < MAX_BYTES
        assert write_report(done.out).read_bytes() == before
        assert main(["report", str(done.out)]) == 0
        assert (done.out / "report.html").read_bytes() == before

    def test_points_are_bounded_however_large_the_pool(self, done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("direct_anneal.report.figures.POINTS", {True: 4, False: 9})
        drawn = page.figures.trade_off(gather(done.out))
        assert drawn.count("<use ") - drawn.count('xlink:href="#m"') < 2 * (4 + 9) + 60  # ticks are drawn so, too

    def test_other_budgets_where_they_were_traced_and_the_command_where_not(self, done: Run, tmp_path: Path) -> None:
        assert 'aria-label="Progress and composition over stiff budgets' in content(done)
        without = reported(select_again(done.out, out=tmp_path / "out"))
        text = harmless(content(without)).text
        assert f"direct-anneal solve {without.out} --out {without.out}-frontier --frontier" in text

    def test_of_both_objectives_with_bands_and_tokens(self, done: Run, tmp_path: Path) -> None:
        options = {"objective": "descent", "num_tokens": 700, "bands": 2, "num_stiff": 4, "beside": "energy"}
        run = reported(select_again(done.out, out=tmp_path / "out", **options))
        text = harmless(content(run)).text
        assert "the largest decrease of the validation loss" in text
        assert "--objective energy" in text


class TestHostileDocuments:
    def test_a_whole_run_of_them(self, hostile: Run) -> None:
        read = harmless(content(hostile))
        for name, text in HOSTILE.items():
            assert sanitized(text, report_data.EXCERPT_CHARACTERS) in read.text, name
        assert "\x00" not in content(hostile)
        assert "\u202e" not in content(hostile)

    @pytest.mark.parametrize(
        "text", ["y" * 10_000_000, "\ud800 half a pair", "<!--", "]]>", "&lt;", "<svg onload=alert(1)>", "\u2028", ""]
    )
    def test_one_of_them(self, done: Run, text: str) -> None:
        findings = gather(done.out)
        (strongest, *_) = findings.excerpts["strongest"]
        hostile = replace(strongest, text=text)
        odd = replace(findings, excerpts={"strongest": [hostile], "listed": [hostile], **NO_OTHERS})
        written = page.render("selection.html", **page._selection(odd))
        read = harmless(written)
        assert sanitized(text, report_data.EXCERPT_CHARACTERS) in read.text
        assert len(written.encode()) < MAX_BYTES

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\x00\x1b\x7f", "␀␛⟨U+007F⟩"),
            ("a\u202eb\u2066", "a⟨U+202E⟩b⟨U+2066⟩"),
            ("\ud800\uffff\x85", "⟨U+D800⟩⟨U+FFFF⟩⟨U+0085⟩"),
            ("👩‍👧 é", "👩‍👧 é"),
        ],
    )
    def test_what_cannot_be_seen_is_shown(self, text: str, shown: str) -> None:
        assert sanitized(text) == shown
        sanitized(text).encode("utf-8")


NO_OTHERS: dict[str, list[Excerpt]] = {"last_in": [], "first_out": [], "weakest": []}


class TestFindings:
    def test_excerpts_are_at_both_ends_and_the_border(self, done: Run) -> None:
        found = gather(done.out).excerpts
        ranks = {kind: [shown.evidence["rank"] for shown in those] for kind, those in found.items()}
        del ranks["listed"]
        assert ranks == {
            "strongest": [1, 2, 3, 4, 5, 6],
            "last_in": [13, 14, 15],
            "first_out": [16, 17, 18],
            "weakest": [57, 58, 59, 60],
        }

    @pytest.mark.parametrize("num_samples", [1, 7, 59, 60])
    def test_no_document_is_shown_twice(self, done: Run, tmp_path: Path, num_samples: int) -> None:
        run = select_again(done.out, out=tmp_path / "out", num_samples=num_samples)
        excerpts = gather(run.out).excerpts
        listed = [excerpt.evidence["id"] for excerpt in excerpts.pop("listed")]
        assert len(listed) == len(set(listed))
        shown = [excerpt.evidence["id"] for those in excerpts.values() for excerpt in those]
        assert len(shown) == len(set(shown))
        harmless(write_report(run.out).read_text(encoding="utf-8"))

    def test_overlap_by_its_definition(self, done: Run) -> None:
        """With losses, and cosines of the stored rows to the mean validation gradient, counted anew."""
        table, overlaps = evidence(done.out), gather(done.out).overlaps
        chosen = set(np.flatnonzero(table["selected"].to_numpy()).tolist())
        stores = {role: FeatureStore.open(done.out / "features" / role) for role in ("pool", "validation")}
        rows = {role: np.concatenate(store.features()).astype(np.float64) for role, store in stores.items()}
        mean = (rows["validation"] * stores["validation"].samples()["grad_norm"].to_numpy()[:, None]).mean(0)
        scores = {"low-perplexity": -table["loss"].to_numpy(), "gradient-cosine": rows["pool"] @ mean}
        for name, values in scores.items():
            best = set(np.argsort(-values)[: len(chosen)].tolist())
            assert overlaps[name] == pytest.approx(len(best & chosen) / len(chosen))

    def test_repeats_by_their_definition(self, done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tiny documents of few words: some repeat others token for token in a pool that is put together so."""
        pool = RunDir.open(done.out).corpus("pool")
        places = np.array([0, 1, 2, 1, 0, 5])
        texts = [pool.tokens(i).tolist() for i in places.tolist()]
        repeated = sum(text in texts[:position] for position, text in enumerate(texts))
        found = report_data._repeats(pool, places)
        assert (found.documents, found.exact) == (6, repeated)
        assert found.near is not None
        assert found.near >= found.exact
        monkeypatch.setattr(report_data, "NEAR_TOKENS", 0)  # as for a pool that is too large
        assert report_data._repeats(pool, places) == replace(found, near=None)

    def test_near_repeats_share_most_runs_of_tokens(self, done: Run) -> None:
        findings = gather(done.out)
        pool = RunDir.open(done.out).corpus("pool")
        runs = [_runs(pool.tokens(i).tolist()) for i in range(pool.num_samples)]
        alike = sum(
            any(len(runs[i] & runs[j]) >= 0.8 * len(runs[i] | runs[j]) for j in range(i)) for i in range(len(runs))
        )
        # The first of a group is counted by id, not by place: as many of a pair either way.
        pairs = [
            (i, j)
            for i, j in itertools.combinations(range(len(runs)), 2)
            if len(runs[i] & runs[j]) >= 0.8 * len(runs[i] | runs[j])
        ]
        assert findings.repeats["pool"].near == alike == len({j for _, j in pairs})


def _runs(tokens: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))}


class TestWhatIsGone:
    """A report is made of what is there, and says what is not."""

    @pytest.fixture
    def copied(self, done: Run, tmp_path: Path) -> Path:
        return Path(shutil.copytree(done.out, tmp_path / "copy"))

    def test_documents(self, copied: Path) -> None:
        shutil.rmtree(copied / "corpus")
        text = harmless(write_report(copied).read_text(encoding="utf-8")).text
        assert text.count("Not shown: the pool must be as it was when its features were computed") == 3
        assert "15 of 60 documents chosen" in text

    def test_features(self, copied: Path) -> None:
        shutil.rmtree(copied / "features" / "pool")
        text = harmless(write_report(copied).read_text(encoding="utf-8")).text
        assert text.count("Not shown: features must lie in") == 1
        assert "What other selectors would choose" in text

    def test_everything(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(InputError, match="the run must be the directory of a select or features run"):
            write_report(tmp_path)
        assert main(["report", str(tmp_path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not list(tmp_path.iterdir())

    def test_what_earlier_versions_did_not_tell(self, copied: Path) -> None:
        content = json.loads((copied / "manifest.json").read_text())
        del content["seal"], content["digests"]
        (copied / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"of an earlier version.*run select or solve there again with overwrite"):
            write_report(copied)

    def test_a_file_of_the_run(self, copied: Path) -> None:
        (copied / "selection.parquet").write_bytes(b"PAR1 and nothing")
        with pytest.raises(InputError, match=r"selection\.parquet must be as the run wrote it"):
            write_report(copied)


def test_a_report_that_fails_fails_no_selection(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(page, "gather", fail)
    told = r"report\.html was not written \(ZeroDivisionError: by accident\).*direct-anneal report .*out tries again"
    with pytest.warns(RuntimeWarning, match=told):
        assert main(["solve", str(done.out), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "selection.parquet").exists()
    assert "report.html" not in capsys.readouterr().out


def test_overwriting_leaves_no_report_of_the_run_before(done: Run, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(done.out, tmp_path / "copy"))
    select_again(copied, out=copied, num_samples=3, overwrite=True)
    assert not (copied / "report.html").exists()


@pytest.mark.parametrize("kind", sorted(REJECTIONS))
def test_records_that_were_not_used_are_counted_whatever_the_reason(kind: str) -> None:
    pool = {"documents": 90, "quarantined": {"count": 2}, "incidents": {kind: {"count": 8}, "over-long": {"count": 5}}}
    assert _left_out(pool).text.startswith("10 of 98 records of the pool could not be used")
