"""Records that a comparison keeps beside its choices: read like every other record of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from direct_anneal.compare.evidence import Evidence
from direct_anneal.compare.scenario import _adding_seconds, _has, _kept, _seconds
from direct_anneal.errors import InputError


def test_seconds_add_up_and_an_interrupted_part_is_not_whole(tmp_path: Path) -> None:
    run = tmp_path / "select-a"
    assert (_seconds(run, "paths"), _has(run, "paths")) == (0.0, False)
    with pytest.raises(KeyboardInterrupt), _adding_seconds(run, "paths"):
        raise KeyboardInterrupt
    first = _seconds(run, "paths")
    assert first > 0
    assert not _has(run, "paths")
    with _adding_seconds(run, "paths"):
        pass
    assert _seconds(run, "paths") > first
    assert _has(run, "paths")


def test_a_record_of_before_opens_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "choice.json"
    assert _kept(record) is None
    record.write_text('{"files": [], "seconds": 1.5}')  # no seal yet
    assert _kept(record) == {"files": [], "seconds": 1.5}
    for damaged in ('{"files": [', "[]", '{"seconds": 2.5, "seal": "00"}'):
        record.write_text(damaged)
        with pytest.raises(InputError, match=r"choice\.json must be as it was written.*remove it") as told:
            _kept(record)
        assert "\n" not in str(told.value)


def test_a_damaged_array_is_made_again(tmp_path: Path) -> None:
    evidence, made = Evidence(tmp_path / "evidence", *[None] * 8), list[int]()  # type: ignore[arg-type]

    def make() -> np.ndarray:
        made.append(1)
        return np.arange(9.0)

    for _ in range(2):
        assert evidence._kept("loss-start", make).tolist() == list(range(9))
    assert len(made) == 1
    path = evidence.directory / "loss-start.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert evidence._kept("loss-start", make).tolist() == list(range(9))
    assert len(made) == 2
