from __future__ import annotations

from pathlib import Path

import pytest

from direct_anneal.pipeline import Run
from pipeline.pools import chosen, write_pool, write_validation
from pipeline.tiny import documents, write_jsonl

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "closing": "</pre></svg></style></body><img src=http://example.org/x onerror=alert(1)>",
    "quotes": "\"'><b onmouseover=alert(1) \"' a `b` {{ 7 * 7 }} {% raw %} &amp; &#60;script&#62;",
    "control": "a\x00b\x07c\x1b[31m red \r\n and a bell",
    "override": "‮evil txt.exe⁦ isolated",
    "dollars": "$\\frac{1}{2}$ and $x^{$ and \\$",
    "unicode": "﷽ 👩‍👩‍👧 ￿ ﻿ é",
    "long": "x" * 20_000,
}


@pytest.fixture(scope="session")
def done(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished selection with its report and frontier, of a pool in every format. To be read, not changed."""
    directory = tmp_path_factory.mktemp("reported")
    write_pool(directory / "pool")
    write_validation(directory / "validation.jsonl")
    return chosen(checkpoint, directory, directory / "out", frontier=(0.9, 1e-4, 2.0), report=True)


@pytest.fixture(scope="session")
def hostile(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same of a pool whose texts, ids and domains would like to be more than texts; all of them are shown."""
    directory = tmp_path_factory.mktemp("hostile")
    odd = [
        {"id": f"{name} {text[:40]}", "domain": f"{name} {text[:60]}", "text": text} for name, text in HOSTILE.items()
    ]
    (directory / "pool").mkdir()
    write_jsonl(directory / "pool" / "$<i>\"pool'$.jsonl", [*odd, *documents(4, seed=5)])
    write_validation(directory / "validation.jsonl")
    return chosen(checkpoint, directory, directory / "out", fraction=0.5, frontier=(0.9, 2.0), report=True)
