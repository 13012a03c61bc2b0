from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.corpus_samples import FORMATS, ByteTokenizer, prepared, texts, write_lines, write_records
from direct_anneal.data import Fields, corpus, expand, readers_of, texts_at, token_cache
from direct_anneal.data import texts as sources_texts
from direct_anneal.errors import InputError
from selection.tiny import files_below


def refuse_to_load():
    raise AssertionError("no tokenizer is needed here")


def kinds(corpus):
    return dict(corpus.issues.counts)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_becomes_the_same_samples(tmp_path, format):
    records = [{"text": f"Text {i} \u2028½\n" * (i + 1), "id": i, "domain": "ab"[i % 2]} for i in range(7)]
    corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", format, records))
    assert texts(corpus) == [record["text"] for record in records]
    assert corpus.index.column_names == ["id", "source", "row", "domain", "num_tokens"]
    assert corpus.index["id"].to_pylist() == [str(i) for i in range(7)]
    assert corpus.index["row"].to_pylist() == list(range(7))
    assert corpus.index["domain"].to_pylist() == list("abababa")
    assert set(corpus.index["source"].to_pylist()) == {"docs" if format == "arrow" else f"docs.{format}"}
    assert pa.types.is_dictionary(corpus.index["source"].type)
    assert pa.types.is_dictionary(corpus.index["domain"].type)
    assert corpus.num_tokens.dtype == np.int64
    assert corpus.num_tokens.tolist() == [len(corpus.tokens(i)) for i in range(7)]
    assert corpus.tokens(0).dtype == np.int64
    assert kinds(corpus) == {}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("vocab_size", [2**16, 2**16 + 1])
def test_tokens_are_taken_as_they_are_without_a_tokenizer(tmp_path, format, vocab_size):
    tokens = [[0, vocab_size - 1], [5, 6, 7], list(range(300))]
    path = write_records(tmp_path, "docs", format, [{"input_ids": row} for row in tokens])
    corpus = prepared(tmp_path / "out", path, vocab_size=vocab_size, load_tokenizer=refuse_to_load)
    assert [corpus.tokens(i).tolist() for i in range(3)] == tokens
    [stored] = (tmp_path / "out").glob("*.tokens")
    assert stored.stat().st_size == 305 * (2 if vocab_size == 2**16 else 4)
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            corpus.tokens(outside)


def test_every_issue_is_told_with_its_place(tmp_path):
    lines = [
        b'{"text": "a good one"}',
        b"{not json}",
        b'{"content": "elsewhere"}',
        b'{"text": " \\n\\t"}',
        b'{"text": "x"}',
        b'{"text": "quite a long document"}',
        b'{"input_ids": [1, 256]}',
        b'{"input_ids": [1, true]}',
        b'{"input_ids": [1, 99999999999999999999]}',
        b'{"input_ids": "1 2"}',
        b'{"input_ids": {"1": 2}}',
        b'{"input_ids": [-1, 2]}',
        b'{"input_ids": []}',
        b'{"id": "same", "text": "first"}',
        b'{"id": "same", "text": "second"}',
        b'{"text": null, "input_ids": [70, 71]}',
    ]
    corpus = prepared(tmp_path / "out", write_lines(tmp_path / "a.jsonl", lines), max_length=10)
    rows = {kind: [place.row for place in corpus.issues.places(kind)] for kind in corpus.issues.counts}
    # Row 9: a string in input_ids is no text that anyone asked to tokenise.
    assert rows == {
        "bad-line": [1],
        "no-text": [2],
        "empty-text": [3],
        "too-short": [4, 12],
        "over-long": [5],
        "bad-tokens": [6, 7, 8, 9, 10, 11],
        "duplicate-id": [14],
    }
    assert texts(corpus) == ["a good one", "quite a long document", "first", "second", "FG"]
    manifest = corpus.issues.to_manifest()
    assert manifest["too-short"]["count"] == 2
    assert manifest["too-short"]["places"][0].keys() == {"source", "row", "detail"}
    assert "256" in manifest["bad-tokens"]["places"][0]["detail"]
    listed = [json.loads(line) for line in (tmp_path / "out" / "incidents.jsonl").read_text().splitlines()]
    assert len(listed) == sum(corpus.issues.counts.values())
    assert len(corpus.issues.places("bad-tokens", limit=2)) == 2
    assert corpus.issues.places("truncated") == []


def test_a_token_list_with_a_null_is_bad(tmp_path):
    path = write_records(tmp_path, "docs", "parquet", [{"input_ids": [1, None, 2]}, {"input_ids": [1, 2]}])
    corpus = prepared(tmp_path / "out", path)
    assert kinds(corpus) == {"bad-tokens": 1}


def test_a_tokenizer_larger_than_the_vocabulary_is_noticed(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "fine"}', '{"text": "ünfit"}'.encode()])
    assert kinds(prepared(tmp_path / "out", path, vocab_size=128)) == {"bad-tokens": 1}


def test_a_cut_file_is_used_as_far_as_it_goes(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.zst", [b'{"text": "%d"}' % i for i in range(100, 200)])
    path.write_bytes(path.read_bytes()[:-20])
    whole = write_lines(tmp_path / "b.jsonl", [b'{"text": "whole"}'])
    corpus = prepared(tmp_path / "out", path, whole)
    assert kinds(corpus) == {"truncated": 1}
    assert texts(corpus)[-1] == "whole"


def test_manifest_names_at_most_a_hundred_places(tmp_path):
    corpus = prepared(tmp_path / "out", write_lines(tmp_path / "a.jsonl", [b"{}"] * 300 + [b'{"text": "one"}']))
    manifest = corpus.issues.to_manifest()
    assert (manifest["no-text"]["count"], len(manifest["no-text"]["places"])) == (300, 100)


def test_ids_and_domains_that_the_data_does_not_give(tmp_path):
    (tmp_path / "pool").mkdir()
    lines = [b'{"text": "one", "id": null}', b"", b'{"text": "two", "id": true}', b'{"text": "three", "domain": 3}']
    write_lines(tmp_path / "pool" / "wiki.v1.jsonl.gz", lines)
    corpus = prepared(tmp_path / "out", "pool")
    source = "pool/wiki.v1.jsonl.gz"
    assert corpus.index["id"].to_pylist() == [f"{source}:0", f"{source}:2", f"{source}:3"]
    assert corpus.index["domain"].to_pylist() == ["wiki.v1", "wiki.v1", "3"]


def test_fields_have_the_names_that_the_user_gives(tmp_path):
    path = write_records(tmp_path, "docs", "parquet", [{"content": "some text", "key": "k", "lang": "en"}])
    corpus = prepared(tmp_path / "out", path, fields=Fields(text="content", id="key", domain="lang"))
    assert (corpus.index["id"][0].as_py(), corpus.index["domain"][0].as_py()) == ("k", "en")


@pytest.mark.parametrize("format", FORMATS)
def test_of_several_names_the_first_that_a_record_has_counts(tmp_path, format):
    given = {"text": ("text", "content"), "id": ("id", "key"), "domain": ("domain", "lang")}
    records = [
        {"content": "two", "key": "b", "lang": "de"},
        {"text": "one", "content": "a summary", "id": "a", "key": "not this"},
        {"text": "  ", "content": "not this", "id": "c"},
        {"body": "under no name that was given"},
    ]
    names = sorted({name for record in records for name in record})
    with_nulls = [{name: record.get(name) for name in names} for record in records]
    path = write_records(tmp_path / "data", "docs", format, with_nulls)
    alone = "parquet" if format == "arrow" else format  # a dataset is saved in two files, and one record fills one
    apart = [write_records(tmp_path / "data", str(row), alone, [record]) for row, record in enumerate(records)]
    for number, paths in enumerate([[path], apart]):
        corpus = prepared(tmp_path / f"out-{number}", *paths, fields=Fields(**given))
        assert texts(corpus) == list(sources_texts(corpus, given["text"])) == ["two", "one"]
        assert texts_at(corpus, [1, 0], given["text"]) == {0: "two", 1: "one"}
        assert corpus.index["id"].to_pylist() == ["b", "a"]
        assert corpus.index["domain"].to_pylist() == ["de", corpus.sources[-1 if number == 0 else 1].stem]
        assert kinds(corpus) == {"empty-text": 1, "no-text": 1}
        assert "neither a string in 'text' or 'content' nor" in corpus.issues.places("no-text")[0].detail


def test_duplicates_are_told_apart_over_all_files(tmp_path):
    write_lines(tmp_path / "a.jsonl", [b'{"id": "x", "text": "aa"}', b'{"id": "x@b.jsonl:0", "text": "bb"}'])
    write_lines(tmp_path / "b.jsonl", [b'{"id": "x", "text": "cc"}', b'{"id": "y", "text": "dd"}'])
    corpus = prepared(tmp_path / "out", "*.jsonl")
    # The qualified id is taken as well: it is qualified once more.
    assert corpus.index["id"].to_pylist() == ["x", "x@b.jsonl:0", "x@b.jsonl:0@b.jsonl:0", "y"]
    [place] = corpus.issues.places("duplicate-id")
    assert (place.source, place.row) == ("b.jsonl", 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "f:0", "a@f:1"]), st.integers(0, 5)), min_size=1))
def test_ids_are_unique_and_the_first_stays(given_rows):
    # Rows are unique within a source: number them here.
    ids = pa.array([name for name, _ in given_rows], pa.large_string())
    source = pa.array(["f"] * len(given_rows)).dictionary_encode()
    unique, qualified = corpus._unique_ids(ids, source, pa.array(range(len(given_rows))))
    unique = unique.to_pylist()
    assert len(set(unique)) == len(unique)
    wanted = [name if name is not None else f"f:{row}" for row, (name, _) in enumerate(given_rows)]
    for row, (name, result) in enumerate(zip(wanted, unique, strict=True)):
        assert qualified[row] == (result != name)
        assert result.startswith(name)
    assert not qualified[0]


# The same content is the same corpus


def test_fingerprint_follows_content_not_place_or_time(tmp_path):
    lines = [b'{"text": "one"}', b'{"id": 7, "text": "two"}']
    (tmp_path / "here").mkdir()
    path = write_lines(tmp_path / "here" / "a.jsonl", lines)
    first = prepared(tmp_path / "out1", path).fingerprint
    os.utime(path, ns=(1, 1))
    assert prepared(tmp_path / "out1", path).fingerprint == first
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert prepared(tmp_path / "out2", tmp_path / "there").fingerprint == first
    assert prepared(tmp_path / "out3", write_lines(tmp_path / "a.jsonl.gz", lines)).fingerprint == first
    others = [
        [b'{"text": "onE"}', b'{"id": 7, "text": "two"}'],
        [b'{"text": "one"}', b'{"id": 8, "text": "two"}'],
        [b'{"id": 7, "text": "two"}', b'{"text": "one"}'],
        [b'{"text": "onet"}', b'{"id": 7, "text": "wo"}'],
    ]
    fingerprints = {prepared(tmp_path / "out4", write_lines(path, other)).fingerprint for other in others}
    assert len(fingerprints | {first}) == 5


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=9),
    batch=st.integers(1, 4),
)
def test_batches_change_nothing(tmp_path, documents, batch):
    path = write_lines(tmp_path / "a.jsonl", [json.dumps({"text": text}).encode() for text in ["anchor", *documents]])
    usable = [text for text in ["anchor", *documents] if text.strip() and len(text.encode()) >= 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("direct_anneal.data.documents._BATCH_DOCUMENTS", batch)
        patch.setattr("direct_anneal.data.token_cache._FLUSH_ROWS", batch)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        corpus = prepared(tmp_path / "out", path)
    assert texts(corpus) == usable


# Reuse


@pytest.mark.parametrize("format", FORMATS)
def test_a_second_call_reads_nothing(tmp_path, format):
    path = write_records(tmp_path, "docs", format, [{"text": "one text"}, {"text": "x"}, {"text": "another text"}])
    advanced: list[int] = []
    first = prepared(tmp_path / "out", path, advance=advanced.append)
    second = prepared(tmp_path / "out", path, load_tokenizer=refuse_to_load, advance=advanced.append)
    assert texts(second) == texts(first)
    assert second.fingerprint == first.fingerprint
    assert second.index.equals(first.index)
    assert kinds(second) == kinds(first) == {"too-short": 1}
    assert sum(advanced) == 6


@pytest.mark.parametrize(
    "changed",
    [{"max_length": 2}, {"vocab_size": 300}, {"tokenizer_fingerprint": "other"}, {"fields": Fields(id="key")}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_options_start_again_and_leave_nothing_behind(tmp_path, changed):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "one"}'])
    prepared(tmp_path / "out", path)
    tokenizer = ByteTokenizer()
    prepared(tmp_path / "out", path, tokenizer=tokenizer, **changed)
    assert tokenizer.texts == ["one"]
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_only_what_changed_is_done_again(tmp_path):
    for name in "abc":
        write_lines(tmp_path / f"{name}.jsonl", [b'{"text": "in %s"}' % name.encode()])
    prepared(tmp_path / "out", "*.jsonl")
    write_lines(tmp_path / "b.jsonl", [b'{"text": "new b"}'])
    os.utime(tmp_path / "b.jsonl", ns=(1, 1))
    (tmp_path / "c.jsonl").unlink()
    (tmp_path / "out" / "notes.txt").write_text("the user's own")
    (tmp_path / "out" / f"{'0' * 32}.tokens.tmp").write_text("left by a kill")
    tokenizer = ByteTokenizer()
    corpus = prepared(tmp_path / "out", "*.jsonl", tokenizer=tokenizer)
    assert tokenizer.texts == ["new b"]
    assert texts(corpus) == ["in a", "new b"]
    left = {path.name.split(".", 1)[1] for path in (tmp_path / "out").iterdir()}
    assert left == {"tokens", "parquet", "incidents.jsonl", "json", "jsonl", "txt"}
    assert len(list((tmp_path / "out").iterdir())) == 2 * 4 + 2


@pytest.mark.parametrize("suffix", ["tokens", "parquet", "incidents.jsonl", "json"])
@pytest.mark.parametrize("damage", ["gone", "longer"])
def test_a_damaged_cache_is_made_again(tmp_path, suffix, damage):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "one"}', b"bad"])
    first = prepared(tmp_path / "out", path)
    [cache_file] = [file for file in (tmp_path / "out").glob(f"*.{suffix}") if file.name != "incidents.jsonl"]
    if damage == "gone":
        cache_file.unlink()
    else:
        cache_file.write_bytes(cache_file.read_bytes() + b"more")
    second = prepared(tmp_path / "out", path)
    assert (texts(second), second.fingerprint, kinds(second)) == (texts(first), first.fingerprint, {"bad-line": 1})


class StopError(Exception):
    pass


def stopping_at(text):
    def tokenize(texts):
        if text in texts:
            raise StopError
        return ByteTokenizer()(texts)

    return tokenize


def test_an_interruption_keeps_finished_caches_and_only_those(tmp_path, monkeypatch):
    monkeypatch.setattr("direct_anneal.data.documents._BATCH_DOCUMENTS", 1)
    for name in "abc":
        write_lines(tmp_path / f"{name}.jsonl", [b'{"text": "%s%d"}' % (name.encode(), i) for i in range(3)])
    with pytest.raises(StopError):
        prepared(tmp_path / "out", "*.jsonl", tokenizer=stopping_at("b1"))
    assert len(list((tmp_path / "out").glob("*.json"))) == 1
    assert not list((tmp_path / "out").glob("*.tmp"))
    tokenizer = ByteTokenizer()
    corpus = prepared(tmp_path / "out", "*.jsonl", tokenizer=tokenizer)
    assert tokenizer.texts == ["b0", "b1", "b2", "c0", "c1", "c2"]
    assert corpus.fingerprint == prepared(tmp_path / "straight", "*.jsonl").fingerprint


@pytest.mark.parametrize("num_renames", range(6))
def test_a_kill_at_any_rename_costs_no_more_than_time(tmp_path, monkeypatch, num_renames):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "one"}', b"bad"])
    prepared(tmp_path / "out", path)
    write_lines(path, [b'{"text": "two"}', b"BAD"])
    os.utime(path, ns=(1, 1))
    renames = iter(range(num_renames))
    rename, unlink = Path.rename, Path.unlink

    def rename_or_die(self, target):
        if next(renames, None) is None:
            raise StopError
        rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rename_or_die)
        # A killed process tidies nothing up; the old record, though, must go first.
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: self.suffix == ".json" and unlink(self))
        with nullcontext() if num_renames == 5 else pytest.raises(StopError):
            prepared(tmp_path / "out", path)
    corpus = prepared(tmp_path / "out", path)
    assert texts(corpus) == ["two"]
    assert corpus.fingerprint == prepared(tmp_path / "straight", path).fingerprint
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_no_old_record_vouches_for_new_files(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "old"}'])
    before = path.stat()
    prepared(tmp_path / "out", path)
    write_lines(path, [b'{"text": "new"}'])
    os.utime(path, ns=(1, 1))

    def killed(*_args, **_options):
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "CacheRecord", killed)
        with pytest.raises(StopError):
            prepared(tmp_path / "out", path)
    write_lines(path, [b'{"text": "old"}'])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert texts(prepared(tmp_path / "out", path)) == ["old"]


def test_a_full_disk_is_an_os_error_and_leaves_no_temporary(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "one"}'])

    def full(texts):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        prepared(tmp_path / "out", path, tokenizer=full)
    assert raised.value.errno == errno.ENOSPC
    assert list((tmp_path / "out").iterdir()) == []


def test_a_source_that_changes_under_the_reader_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "one"}'])

    def changing(texts):
        path.write_bytes(b'{"text": "other"}\n')
        return ByteTokenizer()(texts)

    with pytest.raises(InputError, match="changed"):
        prepared(tmp_path / "out", path, tokenizer=changing)
    assert texts(prepared(tmp_path / "out", path)) == ["other"]


def test_a_corpus_without_samples_is_refused_with_reasons(tmp_path):
    write_lines(tmp_path / "a.jsonl", [b'{"text": ""}', b"bad", b"", b"bad"])
    with pytest.raises(
        InputError, match=r"the validation set must .* of 3 records in 1 sources .*2 bad-line, 1 empty-text"
    ):
        prepared(tmp_path / "out", "a.jsonl", role="validation")
    write_lines(tmp_path / "a.jsonl", [b"bad", b'{"content": "text", "url": "u"}'])
    told = "no record has 'text'; name the field that holds the text with text_field; the first record has content, url"
    with pytest.raises(InputError, match=told):
        prepared(tmp_path / "out", "a.jsonl")
    write_lines(tmp_path / "a.jsonl", [])
    with pytest.raises(InputError, match="all files are empty"):
        prepared(tmp_path / "out", "a.jsonl")


def test_a_fast_tokenizer_does_not_warn_of_length(tmp_path, caplog):
    vocabulary = {"[UNK]": 0, "a": 1}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=4)
    transformers.logging.enable_propagation()
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "a a a a a a a b"}'])
    with caplog.at_level(logging.WARNING):
        corpus = prepared(tmp_path / "out", path, tokenizer=tokenizer)
    transformers.logging.disable_propagation()
    assert corpus.tokens(0).tolist() == [1] * 7 + [0]
    assert not caplog.records


def test_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(4):
        lines = [json.dumps({"text": f"text {number} of row {row}", "id": row}).encode() for row in range(5)]
        write_lines(pool / f"{number}.jsonl", [*lines, b"not json", b'{"text": ""}'])
    told: list[int] = []
    one = prepared(tmp_path / "one", pool, load_tokenizer=ByteTokenizer)
    two = prepared(tmp_path / "two", pool, load_tokenizer=ByteTokenizer, workers=2, advance=told.append)
    assert sum(told) == 28
    assert two.fingerprint == one.fingerprint
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    (pool / "4.jsonl.gz").write_bytes(b"no gzip")
    (pool / "5.jsonl").write_text('{"text": "new"}')
    with pytest.raises(InputError, match=r"4\.jsonl\.gz"):
        prepared(tmp_path / "two", pool, load_tokenizer=ByteTokenizer, workers=2)


def test_processes_are_for_much_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        write_lines(tmp_path / f"{number}.jsonl", [b'{"text": "some text"}'])
    sources = expand([str(tmp_path)], role="pool")
    monkeypatch.setattr("direct_anneal.data.preparation.num_cores", lambda: 7)
    assert readers_of(sources, trust_remote_code=False) == 1
    monkeypatch.setattr("direct_anneal.data.preparation._BYTES_FOR_PROCESSES", 40)
    assert readers_of(sources, trust_remote_code=False) == 7
    assert readers_of(sources, trust_remote_code=True) == readers_of(sources[:1], trust_remote_code=False) == 1
