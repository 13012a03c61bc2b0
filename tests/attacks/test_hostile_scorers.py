"""Scorers from strangers: damaged, of absurd sizes, or no files at all. One line each, and nothing is scored."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from direct_anneal.cli import main
from direct_anneal.distill import read_scorer, write_scorer
from direct_anneal.distill.scorer import CARD, WEIGHTS
from direct_anneal.errors import InputError
from direct_anneal.io.records import write_record
from distill.conftest import random_scorer
from selection.tiny import documents, write_jsonl


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    write_scorer(random_scorer(), tmp_path / "scorer")
    return tmp_path / "scorer"


def _with(**members: object) -> Callable[[Path], object]:
    def edit(scorer: Path) -> None:
        write_record(scorer / CARD, json.loads((scorer / CARD).read_text()) | members)

    return edit  # under a seal that is right


def _forged(header: str, length: int | None = None) -> Callable[[Path], object]:
    """Weights of this header, under a digest that is right."""

    def forge(scorer: Path) -> None:
        content = (len(header) if length is None else length).to_bytes(8, "little") + header.encode() + bytes(64)
        (scorer / WEIGHTS).write_bytes(content)
        _with(sha256=sha256(content).hexdigest())(scorer)

    return forge


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(scorer: Path) -> None:
        (scorer / name).unlink()
        make(scorer / name)

    return replace


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


HUGE = '{"weights":{"dtype":"I32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
SPOILT: dict[str, Callable[[Path], object]] = {
    "depth": _instead(CARD, lambda path: path.write_text('{"a":' + "[" * 100_000)),
    "a number without end": _instead(CARD, lambda path: path.write_text("1" * 10_000)),
    "bytes": _instead(CARD, lambda path: path.write_bytes(b"\xff\0")),
    "a card of a terabyte": _instead(CARD, _sparse),
    "weights of a terabyte": _instead(WEIGHTS, _sparse),
    "a card that waits": _instead(CARD, os.mkfifo),
    "weights that wait": _instead(WEIGHTS, os.mkfifo),
    "a card without end": _instead(CARD, lambda path: path.symlink_to("/dev/zero")),
    "weights without end": _instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
    "a loop": _instead(CARD, lambda path: path.symlink_to(path)),
    "a directory": _instead(WEIGHTS, lambda path: path.mkdir()),
    "a header of 2^60 bytes": _forged("{}", 2**60),
    "an array of 2^40": _forged(HUGE),
    "a header of depth": _forged("[" * 10_000),
    "bits without end": _with(bits=10**9),
    "negative bits": _with(bits=-4),
    "bits in words": _with(bits="12"),
    "a scale in words": _with(scale="1e9"),
    "no vocabulary": _with(vocab_size=None),
    "a negative vocabulary": _with(vocab_size=-1),
    "no rate": _with(tokens_per_size="x"),
    "a rate of nothing": _with(tokens_per_size=0),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_is_refused_in_a_line(scorer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    SPOILT[kind](scorer)
    texts = write_jsonl(tmp_path / "texts.jsonl", documents(3, seed=1))
    words = ["score", "--scorer", scorer, "--pool", texts, "--out", tmp_path / "out", "--workers", "1"]
    code = main([*map(str, words), "--num-tokens", "9"])
    told = capsys.readouterr().err
    assert code == 2, told
    assert told.startswith("direct-anneal: "), told
    assert told.count("\n") == 1, told
    assert not (tmp_path / "out").exists()


def test_every_flipped_bit_of_what_scores_is_detected(scorer: Path) -> None:
    rng, whole = random.Random(0), read_scorer(scorer)
    texts = ["a text to be scored", "and another one"]
    for number in range(100):
        path = scorer / (CARD, WEIGHTS)[number % 2]
        content = path.read_bytes()
        flipped, place = bytearray(content), rng.randrange(8 * len(content))
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read_scorer(scorer)
        except InputError:
            pass
        else:
            assert found.scores(texts).tobytes() == whole.scores(texts).tobytes(), (path.name, place)
            assert dict(found.card) == dict(whole.card), (path.name, place)
        path.write_bytes(content)
