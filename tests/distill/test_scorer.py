from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from direct_anneal.distill import read_scorer, write_scorer
from direct_anneal.distill.hashing import places, tokens, words
from direct_anneal.distill.scorer import CARD, WEIGHTS, joined
from direct_anneal.errors import InputError
from direct_anneal.io.records import write_record
from distill.conftest import random_scorer
from distill.naive import hash_of, places_of, score_of, token_hash, words_of

TEXT = st.text(st.sampled_from("aB é_9-–“.日本 ❤ \n\tßЖ0" + "\U0001f600"), max_size=40) | st.text(
    st.characters(exclude_categories=("Cs",)), max_size=30
)


class TestHashing:
    @settings(deadline=None)
    @given(st.lists(TEXT, max_size=6))
    def test_words_and_their_hashes_are_the_documented_ones(self, texts: list[str]) -> None:
        hashes, bounds = words(*joined([text.encode() for text in texts]))
        assert [hashes[a:b].tolist() for a, b in pairwise(bounds)] == [
            [hash_of(word) for word in words_of(text)] for text in texts
        ]

    def test_long_words_count_to_their_end(self) -> None:
        texts = ["x" * 1000, "x" * 1001, "x" * 999 + "y"]
        hashes, bounds = words(*joined([text.encode() for text in texts]))
        assert bounds.tolist() == [0, 1, 2, 3]
        assert hashes.tolist() == [hash_of(text.encode()) for text in texts]

    @settings(deadline=None)
    @given(st.lists(TEXT, max_size=5))
    def test_places_are_those_of_words_and_pairs_within_a_document(self, texts: list[str]) -> None:
        hashes, bounds = words(*joined([text.encode() for text in texts]))
        single, pairs = places(hashes, bounds, 14)
        for text, a, b in zip(texts, bounds, bounds[1:], strict=False):
            found = [*single[a:b].tolist(), *(place for place in pairs[a:b].tolist() if place >= 0)]
            assert found == places_of([hash_of(word) for word in words_of(text)], 14)

    def test_other_texts_beside_it_change_nothing(self) -> None:
        alone, _ = words(*joined([b"one two three"]))
        beside, bounds = words(*joined([b"zero", b"one two three", b"four"]))
        assert beside[bounds[1] : bounds[2]].tolist() == alone.tolist()

    def test_frequent_english_words_have_places_of_their_own(self) -> None:
        vocabulary = [f"{a}{b}{c}".encode() for a in "bcdfg" for b in "aeiou" for c in "lmnrst"]
        hashes, bounds = words(*joined(vocabulary))
        assert len(set(places(hashes, bounds, 20)[0].tolist())) >= len(vocabulary) - 1


class TestScores:
    @settings(deadline=None)
    @given(st.lists(TEXT, min_size=1, max_size=6))
    def test_are_the_documented_sums(self, texts: list[str]) -> None:
        scorer = random_scorer()
        for text, score in zip(texts, scorer.scores(texts), strict=True):
            hashes = [hash_of(word) for word in words_of(text)]
            if hashes:
                assert score == pytest.approx(score_of(hashes, scorer), rel=1e-6, abs=1e-6)  # float32
            else:
                assert np.isnan(score)

    def test_of_tokens_too(self) -> None:
        scorer, documents = random_scorer("tokens"), [[5, 0, 17], [3], [7, 7]]
        ids = np.concatenate([np.array(document, dtype=np.uint16) for document in documents])
        found = scorer.score_tokens(ids, np.array([0, 3, 4, 6]))
        wanted = [score_of([token_hash(token) for token in document], scorer) for document in documents]
        assert found == pytest.approx(wanted, rel=1e-6)
        assert tokens(np.array([5]))[0] == token_hash(5)

    def test_do_not_depend_on_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [f"the {'very ' * number}old text {number}" for number in range(50)]
        whole = random_scorer().scores(texts)
        monkeypatch.setattr("direct_anneal.distill.scorer._BLOCK_BYTES", 64)
        assert random_scorer().scores(texts).tobytes() == whole.tobytes()

    def test_of_nothing_are_none(self) -> None:
        assert random_scorer().scores([]).shape == (0,)

    def test_of_texts_need_a_scorer_of_words(self) -> None:
        with pytest.raises(InputError, match="must count words for texts, but counts tokens"):
            random_scorer("tokens").scores(["a"])


class TestOnDisk:
    def test_comes_back_the_same(self, tmp_path: Path) -> None:
        scorer = random_scorer()
        write_scorer(scorer, tmp_path)
        found = read_scorer(tmp_path)
        assert found.weights.tobytes() == scorer.weights.tobytes()
        assert (found.scale, found.unit, found.bits) == (scorer.scale, scorer.unit, scorer.bits)
        texts = ["a text", "another one"]
        assert found.scores(texts).tobytes() == scorer.scores(texts).tobytes()

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda path: (path / CARD).unlink(), "No such file"),
            (lambda path: (path / CARD).write_text("{"), "Expecting"),
            (lambda path: (path / CARD).write_text("[1]"), "must be a JSON object"),
            (lambda path: _edit(path, format=2), "not of format 1"),
            (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-1]), "is not the file"),
            (lambda path: _forge(path, b"1234567"), "header"),
            (lambda path: _edit(path, bits=13), "not as its card says"),
            (lambda path: _edit(path, bits="12"), "not as its card says"),
            (lambda path: _edit(path, scale=None), "not as its card says"),
            (lambda path: _edit(path, unit="letters"), "not as its card says"),
        ],
    )
    def test_damage_is_named(self, scorer: Path, damage: Callable[[Path], object], told: str) -> None:
        damage(scorer)
        with pytest.raises(InputError, match="must be a scorer that distil wrote") as caught:
            read_scorer(scorer)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_is_read_without_torch(self, scorer: Path) -> None:
        code = (
            "import sys; from direct_anneal.distill.scorer import read_scorer; "
            f"print(read_scorer({str(scorer)!r}).scores(['a b'])[0], 'torch' in sys.modules)"
        )
        if _face_imports_torch():
            pytest.skip("the package's face imports torch")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split()[1] == "False"


def _face_imports_torch() -> bool:
    code = "import sys, direct_anneal; print('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def _edit(path: Path, **changes: object) -> None:
    card = json.loads((path / CARD).read_text())
    write_record(path / CARD, card | changes)


def _forge(path: Path, content: bytes) -> None:
    (path / WEIGHTS).write_bytes(content)
    _edit(path, sha256=hashlib.sha256(content).hexdigest())
