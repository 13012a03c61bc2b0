from __future__ import annotations

import ast
import json
from pathlib import Path

import pyarrow as pa
import pytest

from direct_anneal.demo import DAMAGED, TARGET, DemoCorpus, write_demo_corpus
from direct_anneal.demo.documents import generated_documents, is_for_training
from direct_anneal.demo.generated import GENERATORS
from direct_anneal.demo.installation import MAX_CHARACTERS, MIN_CHARACTERS, library_documents, normalised
from direct_anneal.errors import InputError

SMALL = {"num_documents": 100, "num_validation": 10}


def rows(*paths: Path) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for path in paths
        for line in pa.CompressedInputStream(str(path), "zstd").read().decode().splitlines()
        if line
    ]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_default_corpus_has_the_promised_sizes(corpus: DemoCorpus) -> None:
    pool, validation = rows(*corpus.pool), rows(corpus.validation)
    assert len(pool) == 2400
    assert {d: sum(row["domain"] == d for row in pool) for d in corpus.domains} == corpus.domains
    assert sorted(row["domain"] for row in validation) == ["code"] * 160 + ["docs"] * 160
    assert len({row["id"] for row in pool + validation}) == 2720
    assert 0.10 <= sum(corpus.domains[d] for d in DAMAGED) / 2400 <= 0.25
    assert set(TARGET) | DAMAGED < set(corpus.domains)


def test_validation_is_disjoint_from_the_pool(corpus: DemoCorpus) -> None:
    pool = {normalised(row["text"]) for row in rows(*corpus.pool)}
    assert pool.isdisjoint(normalised(row["text"]) for row in rows(corpus.validation))


def test_honest_documents_are_unique_whole_and_unseen_in_training(corpus: DemoCorpus) -> None:
    honest = [row["text"] for row in rows(*corpus.pool, corpus.validation) if row["domain"] not in DAMAGED]
    assert len({normalised(text) for text in honest}) == len(honest)
    assert all(MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS for text in honest)
    assert not any(is_for_training(text) for text in honest)


def test_same_arguments_same_bytes_also_over_an_earlier_corpus(tiny_library: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_demo_corpus(tmp_path / name, **SMALL, stdlib=tiny_library)
    first = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == first
    write_demo_corpus(tmp_path / "b", **SMALL, seed=1, stdlib=tiny_library)
    assert contents(tmp_path / "b").keys() == first.keys()
    assert contents(tmp_path / "b") != first
    write_demo_corpus(tmp_path / "b", **SMALL, stdlib=tiny_library)
    assert contents(tmp_path / "b") == first


def test_trimmed_library_is_enough_for_a_small_corpus(tiny_library: Path, tmp_path: Path) -> None:
    corpus = write_demo_corpus(tmp_path / "out", **SMALL, stdlib=tiny_library)
    texts = [row["text"] for row in rows(*corpus.pool, corpus.validation)]
    assert len(texts) == 110
    assert not any("EXCLUDED" in text or "latin-1" in text or "surrogate" in text for text in texts)


def test_code_parses_and_has_lost_its_docstring(tiny_library: Path) -> None:
    for text in library_documents(tiny_library)["code"]:
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)
        assert ast.get_docstring(function) is None
        assert len(function.body) == 2


def test_docstring_on_the_line_of_its_header_leaves_the_code_whole(tmp_path: Path) -> None:
    source = (
        'def short(first, second): "Adds two numbers, and says so on the line of its header."; return first + second'
    )
    (tmp_path / "module.py").write_text(source)
    assert library_documents(tmp_path)["code"] == [source]


def test_form_feeds_do_not_shift_the_lines_of_code(tmp_path: Path) -> None:
    function = "def after_a_form_feed(first, second):\n    total = first + second\n    return total * total"
    (tmp_path / "module.py").write_text(f"import os\n\x0c\n{function}\n")
    assert library_documents(tmp_path)["code"] == [function]


def test_library_without_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compiled.pyc").write_bytes(b"\0")
    with pytest.raises(InputError, match="none could be read"):
        write_demo_corpus(tmp_path / "out", stdlib=tmp_path)
    assert not (tmp_path / "out").exists()


def test_library_that_is_too_small_is_refused_by_domain(tiny_library: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="documents of the domain docs"):
        write_demo_corpus(tmp_path / "out", stdlib=tiny_library)


def test_sizes_that_leave_a_domain_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 100 documents"):
        write_demo_corpus(tmp_path, num_documents=20)


@pytest.mark.parametrize("domain", sorted(GENERATORS))
def test_generated_halves_do_not_meet(domain: str) -> None:
    ours, theirs = (list(generated_documents(domain, 50, seed=3, for_training=half)) for half in (False, True))
    assert len(set(ours)) == len(set(theirs)) == 50
    assert set(ours).isdisjoint(theirs)
