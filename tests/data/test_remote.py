"""Pools behind URLs: listed once, fetched when they are read, refused where they are another then."""

from __future__ import annotations

import functools
from pathlib import Path

import boto3
import fsspec
import huggingface_hub.constants
import numpy as np
import pytest

from data.corpus_samples import VOCAB_SIZE, ByteTokenizer, prepared, texts, write_lines, write_records
from data.test_token_files import DOCUMENTS, LAYOUT, write
from data.web_servers import Quiet, secure_server, serving
from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Fields, expand, prepare, remote, write_selected
from direct_anneal.errors import InputError
from features.object_store import BUCKET, bucket

RECORDS = [{"id": f"d{i}", "text": f"text number {i}", "domain": "web"} for i in range(6)]


@pytest.fixture(scope="module")
def url():
    with bucket() as there:
        yield there


def put(path: Path, key: str) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def corpus_of(tmp_path, sources):
    return prepare(
        sources,
        role="pool",
        fields=Fields(),
        load_tokenizer=ByteTokenizer,
        tokenizer_fingerprint="bytes",
        vocab_size=VOCAB_SIZE,
        max_length=1000,
        directory=tmp_path / "corpus",
    )


def test_a_bucket_gives_what_its_files_give(tmp_path, url):
    for number, format in enumerate(("jsonl.gz", "parquet")):
        put(write_records(tmp_path / "here", f"part-{number}", format, RECORDS), f"pool/deep/part-{number}.{format}")
    put(write_lines(tmp_path / "README.md", [b"hello"]), "pool/README.md")
    (tmp_path / "lines.json").write_text('{"text": "from lines"}\n')
    put(tmp_path / "lines.json", "pool/lines.json")
    sources = expand([f"{url}/pool"], "pool", cache=tmp_path / "fetched")
    below = [str(source).removeprefix(f"{url}/pool/") for source in sources]
    assert below == ["deep/part-0.jsonl.gz", "deep/part-1.parquet", "lines.json"]
    assert not any(source.is_here for source in sources)
    corpus = corpus_of(tmp_path, sources)
    assert texts(corpus) == [record["text"] for record in RECORDS] * 2 + ["from lines"]
    assert corpus.index["id"].to_pylist()[:6] == [f"d{i}" for i in range(6)]
    globbed = expand(
        [f"{url}/pool/**/*.parquet", f"{url}/pool/deep/part-1.parquet"], "pool", cache=tmp_path / "fetched"
    )
    assert [str(source) for source in globbed] == [f"{url}/pool/deep/part-1.parquet"]
    local = prepared(tmp_path / "c2", "here/part-0.jsonl.gz", "here/part-1.parquet")
    assert corpus_of(tmp_path / "x", sources[:2]).fingerprint == local.fingerprint
    outputs = write_selected(corpus, np.array([True] + [False] * 12), tmp_path / "out")
    assert {path.name for path in outputs} == {"selected.jsonl.gz", "selected.jsonl", "selected.parquet"}


def test_tokens_bring_what_belongs_to_them(tmp_path, url):
    for format in ("bin", "ds", "npy"):
        write(tmp_path, format)
    for path in tmp_path.glob("a.*"):
        put(path, f"tokens/{path.name}")
    cache = tmp_path / "fetched"
    for pattern in (f"{url}/tokens", f"{url}/tokens/a.bin", f"{url}/tokens/*.ds*"):
        for source in expand([pattern], "pool", LAYOUT, cache=cache):
            assert [record["input_ids"].tolist() for _, record in source.records()] == DOCUMENTS
    assert len(expand([f"{url}/tokens"], "pool", LAYOUT, cache=cache)) == 3


def test_what_changes_after_it_was_listed_is_refused_and_a_new_listing_is_another_state(tmp_path, url):
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "one two"}'])
    put(path, "changing/a.jsonl")
    [before] = expand([f"{url}/changing/a.jsonl"], "pool", cache=tmp_path / "fetched")
    put(write_lines(path, [b'{"text": "two one"}']), "changing/a.jsonl")  # as long as before
    with pytest.raises(InputError, match="must stay as it was when it was listed"):
        list(before.records())
    assert not before.is_here
    [after] = expand([f"{url}/changing/a.jsonl"], "pool", cache=tmp_path / "fetched")
    assert after.state() != before.state()
    assert [record["text"] for _, record in after.records()] == ["two one"]


def test_a_network_that_fails_is_tried_again(tmp_path, url, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    put(write_lines(tmp_path / "a.jsonl", [b'{"text": "one two"}']), "flaky/a.jsonl")
    [source] = expand([f"{url}/flaky/a.jsonl"], "pool", cache=tmp_path / "fetched")
    system, calls = source.remote.system, []
    real = system.get_file

    def get_file(*arguments, fails):
        calls.append(arguments)
        if len(calls) <= fails:
            raise ConnectionResetError("reset by peer")
        return real(*arguments)

    monkeypatch.setattr(system, "get_file", functools.partial(get_file, fails=99))
    with pytest.raises(InputError, match=r"flaky/a\.jsonl must be reachable.*reset by peer"):
        source.local()
    assert len(calls) == remote.TRIES
    calls.clear()
    monkeypatch.setattr(system, "get_file", functools.partial(get_file, fails=3))
    assert len(list(source.records())) == 1
    assert len(calls) == 4


def test_refusals(tmp_path, url):
    def refusal(pattern, **options):
        with pytest.raises(InputError) as raised:
            expand([pattern], "pool", **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "must be reachable" in refusal(f"{url}/nowhere/a.jsonl", cache=tmp_path)
    assert "matches none" in refusal(f"{url}/nowhere/*.jsonl", cache=tmp_path)
    assert "on this machine" in refusal(f"{url}/nowhere/a.jsonl")
    assert "fsspec can open" in refusal("nonsense://user:secret@host/a.jsonl?key=secret", cache=tmp_path)
    assert "secret" not in refusal("nonsense://user:secret@host/a.jsonl?key=secret", cache=tmp_path)
    assert "hf://datasets/ORG/NAME" in refusal("hf://models/a/b")


def test_a_web_server(tmp_path):
    (tmp_path / "www").mkdir()
    write_lines(tmp_path / "www" / "a.jsonl.gz", [b'{"text": "one two"}', b'{"text": "three"}'])
    with serving(functools.partial(Quiet, directory=str(tmp_path / "www"))) as port:
        address = f"http://127.0.0.1:{port}/a.jsonl.gz"
        [source] = expand([f"{address}?signature=secret"], "pool", cache=tmp_path / "fetched")
        assert str(source) == address
        assert [record["text"] for _, record in source.records()] == ["one two", "three"]


def test_https_where_the_certificate_is_trusted_and_only_there(tmp_path, monkeypatch):
    aiohttp = pytest.importorskip("aiohttp")
    write_lines(_made(tmp_path / "www") / "a.jsonl", [b'{"text": "one two"}'])
    with secure_server(tmp_path / "www", tmp_path) as (url, trusting):
        monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
        with pytest.raises(InputError, match=r"a\.jsonl must be reachable.*check the address, the network"):
            expand([f"{url}/a.jsonl"], "pool", cache=tmp_path / "fetched")

        async def client(**options):
            options.pop("loop", None)
            return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting), **options)

        monkeypatch.setitem(fsspec.config.conf, "https", {"get_client": client, "skip_instance_cache": True})
        [source] = expand([f"{url}/a.jsonl?signature=secret"], "pool", cache=tmp_path / "fetched")
        assert str(source) == f"{url}/a.jsonl"
        assert [record["text"] for _, record in source.records()] == ["one two"]


def test_revisions_of_a_dataset_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--org--name"
    for revision, commit, text in (("main", "1" * 40, "new text"), ("v1", "2" * 40, "old text")):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        write_records(_made(repository / "snapshots" / commit / "data"), "a", "jsonl", [{"text": text}])
        (repository / "snapshots" / commit / "README.md").write_text("x")
    found = {}
    for revision, commit in (("", "1"), ("@main", "1"), ("@v1", "2"), ("@" + "2" * 40, "2")):
        for inner in ("", "/data/*.jsonl", "/data"):
            [source] = expand([f"hf://datasets/org/name{revision}{inner}"], "pool")
            assert str(source) == f"hf://datasets/org/name@{commit * 40}/data/a.jsonl"
            found[commit] = [record["text"] for _, record in source.records()]
    assert found == {"1": ["new text"], "2": ["old text"]}
    with pytest.raises(InputError, match="must be a dataset of the hub"):
        expand(["hf://datasets/org/name@v9"], "pool")


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def test_out_is_a_directory_here():
    with pytest.raises(InputError, match=r"out must be a directory on this machine.*but s3:// is none"):
        SelectConfig(model="m", pool="p", validation="v", fraction=0.1, out="s3://user:secret@bucket/run")
