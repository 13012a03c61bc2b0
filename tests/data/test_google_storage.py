"""Pools at gs://, by gcsfs, which `make test-formats` installs, from a server on this machine."""

from __future__ import annotations

import fsspec
import pytest

from data.corpus_samples import prepared, texts, write_records
from data.web_servers import google_storage
from direct_anneal.data import expand
from direct_anneal.errors import InputError

RECORDS = [{"id": f"d{i}", "text": f"text number {i}", "domain": "web"} for i in range(6)]


def test_a_bucket_of_googles(tmp_path, monkeypatch):
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which speaks gRPC, and is asked for on import
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed: gs:// is not tested")
    for number, format in enumerate(("jsonl.gz", "parquet")):
        write_records(tmp_path / "here", f"part-{number}", format, RECORDS)
    objects = {f"pool/deep/{path.name}": path.read_bytes() for path in (tmp_path / "here").iterdir()}
    objects |= {"pool/README.md": b"hello", "other/a.jsonl": b'{"text": "elsewhere"}\n'}
    with google_storage(objects) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon", "skip_instance_cache": True})
        gcsfs.GCSFileSystem.clear_instance_cache()
        sources = expand(["gs://bucket/pool"], "pool", cache=tmp_path / "fetched")
        assert [str(source) for source in sources] == [
            "gs://bucket/pool/deep/part-0.jsonl.gz",
            "gs://bucket/pool/deep/part-1.parquet",
        ]
        globbed = expand(["gs://bucket/pool/**/*.parquet"], "pool", cache=tmp_path / "fetched")
        assert [str(source) for source in globbed] == ["gs://bucket/pool/deep/part-1.parquet"]
        local = prepared(tmp_path / "local", "here/part-0.jsonl.gz", "here/part-1.parquet")
        corpus = prepared(tmp_path / "remote", "gs://bucket/pool")
        assert texts(corpus) == [record["text"] for record in RECORDS] * 2
        assert corpus.fingerprint == local.fingerprint
        [before] = expand(["gs://bucket/other/a.jsonl"], "pool", cache=tmp_path / "fetched")
        objects["other/a.jsonl"] = b'{"text": "elsewhwre"}\n'
        with pytest.raises(InputError, match="must stay as it was when it was listed"):
            list(before.records())
