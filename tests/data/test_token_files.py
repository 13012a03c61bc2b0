"""Pools of tokens alone: headerless memmaps, Megatron's and datatrove's files, and files that mean harm."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from data.corpus_samples import VOCAB_SIZE
from direct_anneal.data import TokenLayout, expand, prepare, reopen, write_selected
from direct_anneal.data.fields import Fields
from direct_anneal.data.formats import tokens
from direct_anneal.errors import InputError

EOS = 0
DOCUMENTS = [[5, 6, 7, EOS], [8, EOS], [9, 10, 11, 12, 13, EOS], [200, 1, EOS]]
LAYOUT = TokenLayout(dtype="uint16", eos_id=EOS)
FORMATS = ("npy", "bin", "ds")


def write(directory: Path, format: str, documents=DOCUMENTS, dtype="<u2", name="a") -> Path:
    """By hand, from the formats' own descriptions."""
    path = directory / f"{name}.{format}"
    np.concatenate([np.array(document, dtype) for document in documents]).tofile(path)
    lengths = [len(document) for document in documents]
    if format == "bin":
        write_index(path, lengths, np.dtype(dtype).itemsize)
    if format == "ds":
        np.cumsum(lengths).astype("<u8").tofile(directory / f"{name}.ds.index")
    return path


def write_index(path: Path, lengths, size=2, *, code=8, bounds=None, pointers=None, count=None) -> None:
    bounds = range(len(lengths) + 1) if bounds is None else bounds
    pointers = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * size if pointers is None else pointers
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, code, len(lengths) if count is None else count, len(bounds))
        + np.array(lengths, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(bounds, "<i8").tobytes()
    )


def read(pattern: Path, layout: TokenLayout = LAYOUT) -> list[list[int]]:
    [source] = expand([str(pattern)], "pool", layout)
    return [record["input_ids"].tolist() for _, record in source.records()]


def corpus_of(tmp_path: Path, path: Path, layout: TokenLayout = LAYOUT):
    return prepare(
        expand([str(path)], "pool", layout),
        role="pool",
        fields=Fields(),
        load_tokenizer=lambda: pytest.fail("there is no text"),
        tokenizer_fingerprint="none",
        vocab_size=VOCAB_SIZE,
        max_length=1000,
        directory=tmp_path / "corpus",
    )


@pytest.mark.parametrize("format", FORMATS)
def test_documents_come_one_by_one(tmp_path, format):
    path = write(tmp_path, format)
    assert read(path) == DOCUMENTS
    corpus = corpus_of(tmp_path, path)
    assert [corpus.tokens(i).tolist() for i in range(4)] == DOCUMENTS
    assert corpus.index["id"].to_pylist() == [f"a.{format}:{i}" for i in range(4)]
    assert set(corpus.index["domain"].to_pylist()) == {"a"}


@pytest.mark.parametrize("format", FORMATS)
def test_the_chosen_come_back_in_their_format(tmp_path, format):
    corpus = corpus_of(tmp_path, write(tmp_path, format))
    files = write_selected(corpus, np.array([True, False, True, False]), tmp_path / "out")
    assert read(tmp_path / "out" / f"selected.{format}") == [DOCUMENTS[0], DOCUMENTS[2]]
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()}
    write_selected(corpus, np.array([False, False, False, True]), tmp_path / "out")
    assert read(tmp_path / "out" / f"selected.{format}") == [DOCUMENTS[3]]


@pytest.mark.parametrize("format", FORMATS)
def test_no_document_at_all(tmp_path, format):
    corpus = corpus_of(tmp_path, write(tmp_path, format))
    write_selected(corpus, np.zeros(4, dtype=bool), tmp_path / "out")
    assert read(tmp_path / "out" / f"selected.{format}") == []


def test_what_follows_the_last_end_token_is_a_document(tmp_path):
    path = tmp_path / "a.npy"
    np.array([1, 2, EOS, 3, 4], "<u2").tofile(path)
    assert read(path) == [[1, 2, EOS], [3, 4]]


def test_memmaps_are_cut_at_end_tokens_wherever_chunks_end(tmp_path, monkeypatch):
    path = write(tmp_path, "npy")
    for size in range(1, 8):
        monkeypatch.setattr("direct_anneal.data.formats.memmap._CHUNK_TOKENS", size)
        assert read(path) == DOCUMENTS


def test_megatron_documents_of_several_sequences_are_whole(tmp_path):
    path = write(tmp_path, "bin")
    write_index(path, [4, 2, 6, 3], bounds=[0, 2, 2, 4])
    assert read(path) == [DOCUMENTS[0] + DOCUMENTS[1], [], DOCUMENTS[2] + DOCUMENTS[3]]


@pytest.mark.parametrize(("code", "dtype"), [(1, "u1"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_megatron_says_its_type(tmp_path, code, dtype):
    path = write(tmp_path, "bin", dtype=dtype)
    write_index(path, [len(document) for document in DOCUMENTS], np.dtype(dtype).itemsize, code=code)
    assert read(path) == DOCUMENTS


def test_datatrove_metadata_says_the_type_and_the_option_where_there_is_none(tmp_path):
    path = write(tmp_path, "ds", dtype="<u4")
    with pytest.raises(InputError, match="token_dtype"):
        read(path)
    assert read(path, TokenLayout(dtype="uint32")) == DOCUMENTS
    (tmp_path / "a.ds.metadata").write_text("some/tokenizer|4\n15\n15 T")
    assert read(path) == DOCUMENTS
    (tmp_path / "a.ds.metadata").write_text("some/tokenizer|3\n15\n15 T")
    with pytest.raises(InputError, match="'3'"):
        read(path)


def test_another_layout_is_read_anew(tmp_path):
    path = write(tmp_path, "npy")
    corpus = corpus_of(tmp_path, path)
    other = corpus_of(tmp_path, path, TokenLayout(dtype="uint16", eos_id=10))
    assert other.num_tokens.tolist() == [8, 7]
    with pytest.raises(InputError, match="must be as it was"):
        reopen(
            corpus.sources,
            role="pool",
            fields=Fields(),
            tokenizer_fingerprint="none",
            vocab_size=VOCAB_SIZE,
            max_length=1000,
            directory=tmp_path / "corpus",
            fingerprint=corpus.fingerprint,
        )


def test_an_index_that_changed_is_noticed(tmp_path):
    path = write(tmp_path, "bin")
    corpus = corpus_of(tmp_path, path)
    write_index(path, [6, 9])
    with pytest.raises(InputError, match="changed since"):
        write_selected(corpus, np.ones(4, dtype=bool), tmp_path / "out")


def test_files_beside_the_tokens_are_no_pools_of_their_own(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    for format in FORMATS:
        write(pool, format)
    (pool / "a.csv.gz").write_bytes(b"")
    (pool / "weights.bin").write_bytes(b"\0\0")  # has no index: not Megatron's
    np.save(pool / "array.npy", np.zeros(3))
    names = ["pool/a.bin", "pool/a.ds", "pool/a.npy"]
    assert [str(source) for source in expand([str(pool)], "pool", LAYOUT)] == names
    assert [str(source) for source in expand([f"{pool}/a*"], "pool", LAYOUT)][:3] == names
    assert [str(source) for source in expand([f"{pool}/a.idx"], "pool", LAYOUT)] == names[:1]


def test_tokens_beyond_the_vocabulary_are_left_out_and_counted(tmp_path):
    corpus = corpus_of(tmp_path, write(tmp_path, "ds", [*DOCUMENTS, [VOCAB_SIZE, 1]]))
    assert corpus.num_samples == 4
    assert corpus.issues.counts == {"bad-tokens": 1}


@pytest.mark.parametrize("format", FORMATS)
def test_a_document_without_end_is_left_out_and_counted(tmp_path, monkeypatch, format):
    monkeypatch.setattr(tokens, "MAX_DOCUMENT_TOKENS", 5)
    corpus = corpus_of(tmp_path, write(tmp_path, format))
    assert corpus.num_samples == 3
    assert corpus.issues.counts == {"bad-line": 1}


class TestHarm:
    """One clear line each, before memory is asked for."""

    def fails(self, path: Path, match: str, layout: TokenLayout = LAYOUT) -> None:
        with pytest.raises(InputError, match=match) as caught:
            read(path, layout)
        assert "\n" not in str(caught.value)

    def test_a_memmap_with_a_header(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([1, 2, EOS], "<u2"))
        self.fails(tmp_path / "a.npy", "header")

    def test_a_memmap_whose_end_token_nobody_knows(self, tmp_path):
        self.fails(write(tmp_path, "npy"), "eos_id", TokenLayout(dtype="uint16"))

    @pytest.mark.parametrize("format", FORMATS)
    def test_a_file_cut_within_a_token(self, tmp_path, format):
        path = write(tmp_path, format)
        path.write_bytes(path.read_bytes()[:-1])
        self.fails(path, "no multiple of 2")

    @pytest.mark.parametrize("format", ["bin", "ds"])
    def test_a_file_cut_between_tokens(self, tmp_path, format):
        path = write(tmp_path, format)
        path.write_bytes(path.read_bytes()[:-2])
        self.fails(path, "14")

    @pytest.mark.parametrize("format", ["bin", "ds"])
    def test_an_index_that_is_gone(self, tmp_path, format):
        path = write(tmp_path, format)
        (tmp_path / {"bin": "a.idx", "ds": "a.ds.index"}[format]).unlink()
        self.fails(path, r"a\.(bin must lie beside its index a\.idx|ds\.index must be a readable file)")

    @pytest.mark.parametrize("length", [0, 8, 33, 60, -1])
    def test_a_truncated_megatron_index(self, tmp_path, length):
        path = write(tmp_path, "bin")
        index = tmp_path / "a.idx"
        index.write_bytes(index.read_bytes()[:length])
        self.fails(path, "write both again")

    def test_wrong_magic_version_and_type(self, tmp_path):
        path = write(tmp_path, "bin")
        index = tmp_path / "a.idx"
        good = index.read_bytes()
        for place, value in ((0, b"X"), (9, b"\2"), (17, b"\7")):
            index.write_bytes(good[:place] + value + good[place + 1 :])
            self.fails(path, "write both again")

    @pytest.mark.parametrize("count", [2**62, 2**64 - 1, 5, 3])
    def test_a_count_of_sequences_that_are_not_there(self, tmp_path, count):
        path = write(tmp_path, "bin")
        write_index(path, [4, 2, 6, 3], count=count)
        self.fails(path, "take .* bytes, but it has")

    def test_no_bounds(self, tmp_path):
        path = write(tmp_path, "bin")
        write_index(path, [4, 2, 6, 3], bounds=[])
        self.fails(path, "bounds are 0")

    @pytest.mark.parametrize("pointers", [[0, 8, 12, 2**40], [0, 8, 12, -2], [0, 0, 0, 0], [24, 0, 12, 8]])
    def test_pointers_that_leap(self, tmp_path, pointers):
        path = write(tmp_path, "bin")
        write_index(path, [4, 2, 6, 3], pointers=pointers)
        self.fails(path, "one after another")

    @pytest.mark.parametrize("lengths", [[4, 2, 6, 2**31 - 1], [4, 2, 6, 2], [4, -2, 10, 3]])
    def test_lengths_that_do_not_fit(self, tmp_path, lengths):
        path = write(tmp_path, "bin")
        write_index(path, lengths)
        self.fails(path, "one after another|it counts")

    @pytest.mark.parametrize("bounds", [[0, 2**60], [0, 3, 1, 4], [1, 4], [0, 3], [-1, 4], [0, 1, -(2**63), -1, 4]])
    def test_documents_of_sequences_that_are_not_there(self, tmp_path, bounds):
        path = write(tmp_path, "bin")
        write_index(path, [4, 2, 6, 3], bounds=bounds)
        self.fails(path, "do not divide")

    @pytest.mark.parametrize("ends", [[4, 6, 12, 2**63], [4, 3, 15], [4, 6], [2**64 - 1]])
    def test_document_ends_that_do_not_fit(self, tmp_path, ends):
        path = write(tmp_path, "ds")
        np.array(ends, "<u8").tofile(tmp_path / "a.ds.index")
        self.fails(path, "write both again")

    def test_an_index_of_documents_cut_within_a_number(self, tmp_path):
        path = write(tmp_path, "ds")
        (tmp_path / "a.ds.index").write_bytes(b"\0" * 13)
        self.fails(path, "no multiple of 8")

    def test_metadata_without_end(self, tmp_path):
        path = write(tmp_path, "ds")
        with (tmp_path / "a.ds.metadata").open("wb") as file:
            file.truncate(2**30)  # a hole, of zeros
        self.fails(path, "2 or 4 bytes")


def test_the_smaller_type_that_holds_the_vocabulary():
    assert [TokenLayout.of(size, None).dtype for size in (2**16, 2**16 + 1)] == ["uint16", "uint32"]
    assert TokenLayout.of(100, None, "uint32").dtype == "uint32"
