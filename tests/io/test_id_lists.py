"""Ids that people list in files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from direct_anneal.io.id_lists import places_of, read_lines

IDS = ["a", "b", "a\u2028b", "pad", " pad ", "\u00a0nb", "nb", "x\ny", '"quoted"', "\x85next", "only ", "  "]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a", "a"),
        ("  a\t", "a"),
        (" pad ", " pad "),
        ("pad", "pad"),
        ("  pad", "pad"),
        ("a\u2028b", "a\u2028b"),
        ("\u00a0nb", "\u00a0nb"),
        ("\x85next", "\x85next"),
        ('"x\\ny"', "x\ny"),
        ('"quoted"', '"quoted"'),
        ('"nb"', "nb"),
        ("only ", "only "),
        ('"  "', "  "),
    ],
)
def test_a_line_names_the_id_that_it_is_before_any_that_it_resembles(tmp_path: Path, line: str, name: str) -> None:
    (tmp_path / "ids.txt").write_bytes(f"\ufeff{line}\r\n\n   \n".encode())
    places, missing = places_of(read_lines(tmp_path / "ids.txt"), pa.chunked_array([IDS]))
    assert [IDS[place] for place in places] == [name]
    assert missing == []


def test_order_is_kept_and_repetition_is_not() -> None:
    places, missing = places_of(["nb", "a", "nobody", " a", "nb"], IDS)
    assert [IDS[place] for place in places] == ["nb", "a"]
    assert missing == ["nobody"]
    assert len(places_of([], IDS)[0]) == 0
