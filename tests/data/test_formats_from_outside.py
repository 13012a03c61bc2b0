"""The format of docs/extending.md, made outside of the package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data.corpus_samples import prepared, texts
from direct_anneal.data import expand, write_selected
from direct_anneal.data.formats import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_a_format_is_one_class(tmp_path):
    [code] = re.findall(r"```python\n(# my_format\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    before = dict(FORMATS)
    try:
        exec(code, {})
        (tmp_path / "pool").mkdir()
        (tmp_path / "pool" / "a.txt").write_text("one text\n\nanother\n\na third")
        assert [str(source) for source in expand(["pool"], "pool")] == ["pool/a.txt"]
        corpus = prepared(tmp_path / "corpus", "pool")
        assert texts(corpus) == ["one text", "another", "a third"]
        [output] = write_selected(corpus, np.array([True, False, True]), tmp_path / "out")
        assert output.name == "selected.txt"
        assert output.read_text() == "one text\n\na third"
    finally:
        FORMATS.clear()
        FORMATS.update(before)
