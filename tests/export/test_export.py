from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.export import pipeline
from direct_anneal.export.formats.token_files import open_olmo
from direct_anneal.export.pipeline import export, shuffled
from direct_anneal.export.shards import Document, Setting
from direct_anneal.io.digests import sha256, tree_digests
from direct_anneal.io.lock import LOCK, held
from direct_anneal.io.records import sealed
from direct_anneal.run.run_dir import RunDir
from export.exported import EOS, FORMATS, TOKENS, by_place, expected, provenance, read_lines, with_end
from selection.tiny import byte_tokenizer, files_below


@pytest.mark.parametrize("to", TOKENS)
def test_every_chosen_document_lies_where_the_provenance_says(run, tmp_path, to):
    record = export(run, to=to, out=tmp_path / "out", shard_size=1500)
    wanted = {id: with_end(tokens) for id, tokens in expected(run).items()}
    assert by_place(tmp_path / "out", to) == wanted
    assert record["num_documents"] == len(wanted) == 30
    assert record["num_tokens"] == sum(map(len, wanted.values()))
    assert len(record["files"]) > 1


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
def test_records_keep_their_text_or_tokens(run, tmp_path, to):
    export(run, to=to, out=tmp_path / "out", shard_size=1500)
    read = read_lines if to == "jsonl" else (lambda path: pq.read_table(path).to_pylist())
    files = {path.name: read(path) for path in sorted((tmp_path / "out").glob(f"part-*.{to}"))}
    assert len(files) > 1
    records = [record for rows in files.values() for record in rows]
    tokenizer = byte_tokenizer()
    tokens = {r["id"]: r.get("input_ids") or tokenizer(r["text"])["input_ids"] for r in records}
    assert tokens == expected(run)
    for row in provenance(tmp_path / "out"):
        record = files[row["file"]][row["place"]]
        assert (record["id"], record["domain"]) == (row["id"], row["domain"])


@pytest.mark.parametrize("to", FORMATS)
def test_same_bytes_again_and_another_order_for_another_seed(run, tmp_path, to):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        export(run, to=to, out=tmp_path / name / "out", seed=seed)
    a, b = (files_below(tmp_path / name / "out") for name in "ab")
    for files in (a, b):  # these two name the directory
        files.pop(next(name for name in files if name.startswith("snippet")))
    assert a == b
    ids = {name: [row["id"] for row in provenance(tmp_path / name / "out")] for name in "ac"}
    assert ids["a"] != ids["c"]
    assert sorted(ids["a"]) == sorted(ids["c"])
    assert ids["a"] != sorted(ids["a"])


def test_the_order_hangs_on_ids_alone():
    def corpus_of(ids: list[str]) -> Corpus:
        corpus = object.__new__(Corpus)
        object.__setattr__(corpus, "index", pa.table({"id": ids}))
        return corpus

    ids = [f"d{i}" for i in range(100)]
    moved = [ids[i] for i in np.random.default_rng(0).permutation(100)]
    kept = [name not in ("d3", "d50") for name in moved]
    order = [ids[i] for i in shuffled(corpus_of(ids), np.ones(100, dtype=bool), 7)]
    other = [moved[i] for i in shuffled(corpus_of(moved), np.array(kept), 7)]
    assert other == [name for name in order if name not in ("d3", "d50")]


@pytest.mark.parametrize("to", TOKENS)
def test_a_shard_is_no_larger_than_asked(run, tmp_path, to):
    export(run, to=to, out=tmp_path / "out", shard_size=1000)
    sizes: dict[str, int] = {}
    for row in provenance(tmp_path / "out"):
        sizes[row["file"]] = sizes.get(row["file"], 0) + (4 if to == "hf" else 2) * row["num_tokens"]
    if to == "mds":  # a document may go on in the next shard
        sizes = {path.name: path.stat().st_size - 250 for path in (tmp_path / "out").glob("*.mds")}
    assert max(sizes.values()) <= 1000
    assert len(sizes) >= sum(sizes.values()) / 1000


def test_a_longer_document_has_a_shard_of_its_own(run, tmp_path):
    record = export(run, to="megatron", out=tmp_path / "out", shard_size=1)
    assert len(record["files"]) == 30


def test_olmo_bounds_stand_beside_the_tokens(run, tmp_path):
    record = export(run, to="olmo-core", out=tmp_path / "out", shard_size=1500)
    rows = provenance(tmp_path / "out")
    for name in record["files"]:
        text = gzip.decompress((tmp_path / "out" / name.replace(".npy", ".csv.gz")).read_bytes()).decode()
        ours = [row for row in rows if row["file"] == name]
        wanted = [f"{r['place']},{r['place'] + r['num_tokens']},{r['id']},{r['domain']}" for r in ours]
        assert text.splitlines() == wanted


def test_olmo_bounds_keep_ids_of_any_text(tmp_path):
    """But for line breaks, at which a reader of lines would end one."""
    names = ["a\u2028b", "c\x1dd", 'e,"f"', "g\r\nh"]
    setting = Setting(
        vocab_size=100, eos_id=0, tokenizer="", window=8, shard_bytes=1 << 20, has_prompts=False, schema=pa.schema([])
    )
    writer = open_olmo(tmp_path, setting)
    for name in names:
        writer.add(Document(id=name, domain="web", tokens=np.arange(3), num_prompt=0, record=b""))
    writer.close()
    (path,) = tmp_path.glob("*.csv.gz")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        assert [row[2] for row in csv.reader(file)] == [*names[:3], "g h"]


def test_prompts_are_masked_where_the_format_can_say_so(prompted, tmp_path):
    record = export(prompted, to="hf", out=tmp_path / "hf")
    assert record["num_prompts_trained_on"] == 0
    rows = datasets.load_from_disk(tmp_path / "hf").to_list()
    for row in rows:
        assert row["labels"] == [-100] * 3 + row["input_ids"][3:]
        assert row["input_ids"][-1] == EOS
    export(prompted, to="jsonl", out=tmp_path / "jsonl")
    assert {record["prompt"] for record in read_lines(tmp_path / "jsonl" / "part-00000.jsonl")} == {"Q: "}
    assert export(prompted, to="megatron", out=tmp_path / "bin")["num_prompts_trained_on"] == len(rows) == 10


def test_the_sequence_length_is_the_trainers(run, tmp_path):
    export(run, to="mds", out=tmp_path / "out", sequence_length=33)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    total = sum(row["num_tokens"] for row in provenance(tmp_path / "out"))
    assert sum(shard["samples"] for shard in index["shards"]) == -(-total // 33)


@pytest.mark.parametrize("to", FORMATS)
def test_the_snippet_names_directory_and_share(run, tmp_path, to):
    out = tmp_path / "out"
    mixed = export(run, to=to, out=out, mixture_share=0.3)["snippet"]
    assert str(out) in mixed
    assert "0.3" in mixed
    assert "0.7" in mixed
    assert "STABLE" in mixed
    [path] = out.glob("snippet.*")
    assert path.read_text() == mixed
    alone = export(run, to=to, out=out, overwrite=True)["snippet"]
    assert "STABLE" not in alone
    if path.suffix == ".py":
        for text in (mixed, alone):
            compile(text, "snippet", "exec")


def test_megatron_weights_are_the_shares_of_tokens(run, tmp_path):
    record = export(run, to="megatron", out=tmp_path / "out", mixture_share=0.25, shard_size=1500)
    weights = [float(line.split()[0]) for line in record["snippet"].splitlines() if "part-" in line]
    assert len(weights) == len(record["files"]) > 1
    # Weights are printed with six digits.
    assert sum(weights) == pytest.approx(0.25, abs=1e-5)


class TestTheDirectory:
    def test_nothing_is_overwritten_unasked(self, run, tmp_path):
        out = tmp_path / "out"
        export(run, to="jsonl", out=out)
        before = files_below(out)
        with pytest.raises(InputError, match="overwrite"):
            export(run, to="megatron", out=out)
        assert files_below(out) == before
        (out / "notes.txt").write_text("mine")
        with pytest.raises(
            InputError, match=r"^out must hold nothing but the earlier export, .* has notes.txt, too: move"
        ):
            export(run, to="megatron", out=out, overwrite=True)
        (out / "notes.txt").unlink()
        export(run, to="megatron", out=out, overwrite=True)
        assert not list(out.glob("*.jsonl"))

    def test_files_of_others_stay_whatever_is_asked(self, run, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("x")
        with pytest.raises(InputError, match="holds other files"):
            export(run, to="jsonl", out=tmp_path / "out", overwrite=True)
        (tmp_path / "new.tmp").mkdir()
        (tmp_path / "new.tmp" / "draft.tex").write_text("x")
        with pytest.raises(InputError, match="in the way"):
            export(run, to="jsonl", out=tmp_path / "new", overwrite=True)
        assert (tmp_path / "out" / "thesis.tex").exists()
        assert (tmp_path / "new.tmp" / "draft.tex").exists()

    def test_what_fails_leaves_the_earlier_export(self, run, tmp_path, monkeypatch):
        out = tmp_path / "out"
        export(run, to="jsonl", out=out)
        before = files_below(out)

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "_tokens", fail)
            with pytest.raises(OSError, match="No space"):
                export(run, to="jsonl", out=out, overwrite=True)
        assert files_below(out) == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_what_a_kill_leaves_is_cleared(self, run, tmp_path):
        (tmp_path / "out.tmp").mkdir()
        (tmp_path / "out.tmp" / "export.json").touch()
        (tmp_path / "out.tmp" / "part-00009.jsonl").touch()
        export(run, to="jsonl", out=tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert not (tmp_path / "out" / "part-00009.jsonl").exists()

    def test_two_at_once_do_not_meet(self, run, tmp_path):
        out = tmp_path / "out"
        with held(tmp_path / "out.tmp"), pytest.raises(InputError, match="one run at a time"):
            export(run, to="jsonl", out=out)
        assert not out.exists()
        export(run, to="jsonl", out=out)
        assert not (out / LOCK).exists()

    def test_a_kill_between_the_old_and_the_new_leaves_both(self, run, tmp_path, monkeypatch):
        out = tmp_path / "out"
        export(run, to="jsonl", out=out)
        before, rename = files_below(out), Path.rename

        def killed(self: Path, target: Path) -> Path:
            if target == out:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                export(run, to="megatron", out=out, overwrite=True)
        (aside,) = (path for path in tmp_path.iterdir() if path.name != "out.tmp")
        assert files_below(aside) == before
        export(run, to="megatron", out=out)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"to": "csv"}, "to must be hf, jsonl"),
        ({"to": "hf", "shard_size": 0}, "shard_size"),
        ({"to": "mds", "shard_size": 2**32}, "below 4 GiB"),
        ({"to": "hf", "mixture_share": 0.0}, "mixture_share"),
        ({"to": "hf", "mixture_share": 1.5}, "mixture_share"),
        ({"to": "hf", "eos_id": 256}, "vocabulary of 256"),
        ({"to": "hf", "seed": -1}, "seed"),
        ({"to": "hf", "seed": 2**32}, "seed must be in 0..4294967295"),
        *(
            ({"to": to, "sequence_length": 16}, f"sequence_length must be left out with to {to}, .*: olmo-core, mds$")
            for to in ("hf", "jsonl", "parquet", "megatron", "nanotron")
        ),
        *(({"to": to, "eos_id": 5}, f"eos_id must be left out with to {to}") for to in ("jsonl", "parquet")),
        ({"to": "hf", "push_to_hub": "no repository"}, "push_to_hub must be USER/NAME"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(run, tmp_path, options, match):
    with pytest.raises(InputError, match=match) as caught:
        export(run, out=tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class Hub:
    """A stand-in for the hub's client."""

    def __init__(self, calls: list, error: Exception | None = None) -> None:
        self.calls, self.error = calls, error

    def create_repo(self, name, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", name, options))

    def upload_folder(self, *, folder_path, **options):
        self.calls.append(("upload", sorted(path.name for path in Path(folder_path).iterdir()), options))
        return SimpleNamespace(commit_url="https://hub/commit/1")


class TestUploads:
    def test_only_where_asked_for_and_of_the_finished_directory(self, run, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(calls))
        record = export(run, to="jsonl", out=tmp_path / "here")
        assert calls == []
        assert "hub" not in record
        record = export(run, to="jsonl", out=tmp_path / "there", push_to_hub="someone/chosen")
        assert record["hub"] == "https://hub/commit/1"
        (create, name, options), (upload, files, target) = calls
        assert (create, name, upload) == ("create", "someone/chosen", "upload")
        assert options == {"repo_type": "dataset", "private": True, "exist_ok": True}
        assert target["repo_id"] == "someone/chosen"
        assert files == sorted(path.name for path in (tmp_path / "there").iterdir())

    def test_a_hub_that_refuses_leaves_the_export(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub([], OSError("401 Unauthorized")))
        with pytest.raises(InputError, match="401 Unauthorized: check the name, hf auth login and the network"):
            export(run, to="jsonl", out=tmp_path / "out", push_to_hub="someone/chosen")
        assert (tmp_path / "out" / "export.json").exists()


class TestRunsThatMeanHarm:
    """A run's directory may come from anyone: its files decide what is read, and nothing else."""

    @pytest.fixture
    def copy(self, run: Path, tmp_path: Path) -> Path:
        # With its documents beside it, whose times the corpus remembers.
        shutil.copytree(run, tmp_path / "run")
        return tmp_path / "run"

    def change(self, path: Path, **fields: object) -> None:
        """Change it as somebody would who knows the format: with the seal that goes with it."""
        path.write_text(json.dumps(sealed(json.loads(path.read_text()) | fields)))

    def test_the_model_that_it_names_is_not_opened(self, copy, tmp_path, model):
        poisoned = tmp_path / "poisoned"
        shutil.copytree(model, poisoned)
        self.change(poisoned / "config.json", auto_map={"AutoConfig": "evil.Evil"}, model_type="evil")
        (poisoned / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        self.change(copy / "direct-anneal.json", trust_remote_code=True, model=str(poisoned))
        export(copy, to="jsonl", out=tmp_path / "out")
        with pytest.raises(InputError, match="pass trust_remote_code"):
            RunDir.open(copy).checkpoint()
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": 3}', "\0"])
    @pytest.mark.parametrize("name", ["manifest.json", "direct-anneal.json"])
    def test_damaged_descriptions(self, copy, tmp_path, name, text):
        (copy / name).write_text(text)
        with pytest.raises(InputError):
            export(copy, to="jsonl", out=tmp_path / "out")

    def test_a_pool_of_another_file_is_not_copied(self, copy, tmp_path):
        secret = tmp_path / "secret.jsonl"
        secret.write_text('{"text": "a secret that is not in the pool"}\n')
        self.change(copy / "direct-anneal.json", pool=[str(secret)])
        with pytest.raises(InputError, match="must be as it was"):
            export(copy, to="jsonl", out=tmp_path / "out")

    def test_features_of_elsewhere(self, copy, tmp_path):
        self.change(copy / "manifest.json", features_of=str(tmp_path / "nowhere"))
        with pytest.raises(InputError, match="must be the directory of a select or features run"):
            export(copy, to="jsonl", out=tmp_path / "out")

    def test_a_selection_of_other_documents(self, copy, tmp_path):
        path = copy / "selection.parquet"
        table = pq.read_table(path)
        for content, match in ((table, "every document of the pool"), (None, "must be as the run wrote it")):
            pq.write_table(table[:-1], path)
            if content is None:
                path.write_bytes(b"PAR1")
            with pytest.raises(InputError, match="must be as the run wrote it, but was changed"):
                export(copy, to="jsonl", out=tmp_path / "out")
            digests = json.loads((copy / "manifest.json").read_text())["digests"]
            self.change(copy / "manifest.json", digests=digests | {path.name: sha256(path.read_bytes())})
            with pytest.raises(InputError, match=match):
                export(copy, to="jsonl", out=tmp_path / "out")

    def test_places_beyond_the_tokens(self, copy, tmp_path):
        for path in (copy / "corpus" / "pool").glob("*.parquet"):
            table = pq.read_table(path)
            far = pa.array([2**40] * len(table), pa.int64())
            changed = table.set_column(table.schema.get_field_index("offset"), table.schema.field("offset"), far)
            pq.write_table(changed, path)
            record = path.with_suffix(".json")
            digests = json.loads(record.read_text())["digests"]
            self.change(record, digests=digests | {"parquet": tree_digests({"": path})[""]})
        with pytest.raises(InputError, match="must say where each document's tokens lie"):
            export(copy, to="megatron", out=tmp_path / "out")


def test_the_command_line_knows_the_formats_that_there_are() -> None:
    """A module in export/formats and a name in `TrainerFormat`: nothing else has to know a format."""
    from typing import get_args

    from direct_anneal.config.files import TrainerFormat
    from direct_anneal.export import registry

    assert registry._FOUND.keys() == set(get_args(TrainerFormat))
