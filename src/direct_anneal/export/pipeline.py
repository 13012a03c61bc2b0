"""Export: from a finished run to a directory that a trainer reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.config.files import ExportConfig
from direct_anneal.config.signature import takes
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError, option
from direct_anneal.export.hub import push_to_hub
from direct_anneal.export.inputs import Records
from direct_anneal.export.registry import FORMATS
from direct_anneal.export.retokenised import Content, retokenised
from direct_anneal.export.shards import Document, Exported, Format, Setting, Writer
from direct_anneal.io.atomic import TEMPORARY_SUFFIX, flush_to_disk, leftovers, remove, temporary_name
from direct_anneal.io.digests import short_digest
from direct_anneal.io.lock import LOCK, held, require_no_file_at
from direct_anneal.io.records import RecordError, read_record, write_record
from direct_anneal.io.redaction import redacted
from direct_anneal.progress import Advance, current_progress
from direct_anneal.run.run_dir import RunDir

RECORD = "export.json"

_OWN_TOKENS = "content.tmp"  # documents in the tokens of the model that will be annealed, while they are written

_BLOCK_ROWS = 16_384
_MDS_BYTES = 2**32  # its offsets are 32 bits long
_PROVENANCE = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "source")),
        ("row", pa.int64()),
        ("domain", pa.string()),
        ("num_tokens", pa.int64()),
        ("file", pa.string()),
        ("place", pa.int64()),
    ]
)


@takes(ExportConfig)
def export(config: ExportConfig) -> dict[str, Any]:
    """Write a run's chosen documents in the format that a trainer reads.

    Documents are shuffled: trainers cut windows out of neighbours, or read from the front, and neighbours in a pool are
    alike. The order hangs on ids and seed alone, not on the pool's order or files. In formats of tokens these are the
    run's own, with the end token after each document that does not end in it. Where a smaller model chose with another
    tokenizer, they are of the model that will be annealed.

    `out` gets the files of the format, provenance.parquet (id, source, row, domain, num_tokens as written, file, place:
    a row, or a token), snippet.py or the like, and export.json.

    Returns:
        what export.json says, the snippet, and with `push_to_hub` the address of the commit, `hub`.

    Raises:
        InputError: the run is not finished or its files changed; a format needs an end token and none is known; `out`
            holds something else.

    Cost: memory O(K) and one shard at most; disk the output, and for records their text once more while it runs.
    """
    out, to, format = Path(config.out), config.to, FORMATS[config.to]
    _check_used(config, format)
    opened = RunDir.open(config.run, trust_remote_code=config.trust_remote_code)
    pool, selected, share = opened.corpus("pool"), _documents(opened, config.part), _share(opened, config)
    shown = current_progress()
    with _new_directory(out, overwrite=config.overwrite) as temporary:
        order, content = shuffled(pool, selected, config.seed), Content(corpus=pool, rows=None, tokens=opened.tokens)
        if opened.tokens.is_foreign:
            with shown.stage("Tokenising for the model", "documents", len(order)) as advance:
                content = retokenised(opened, selected, temporary / _OWN_TOKENS, advance)
            there = content.has(order)
            if not there.all():
                shown.note(f"{(~there).sum():,} documents left out: in the model's own tokens they predict nothing")
            order = order[there]
        setting = _setting(opened, content, order, format, config)
        if to == "mds" and setting.shard_bytes >= _MDS_BYTES:
            raise InputError(
                field="shard_size", must="be below 4 GiB for mds", got=f"got {setting.shard_bytes:,} bytes"
            )
        if setting.eos_id is not None and config.eos_id is None:
            with suppress(InputError):  # the checkpoint may be gone, and is not needed
                for note in opened.checkpoint().special_tokens.of_the_separator():
                    shown.note(note)
        records = None
        if format.holds == "records":
            with shown.stage("Reading the chosen documents", "documents", len(order)) as advance:
                records = Records(opened, selected, temporary / "records.tmp", advance)
            setting = replace(setting, schema=records.schema)
        with shown.stage("Writing", "documents", len(order)) as advance:
            writer = format.open(temporary, setting)
            files = _write(pool, content, order, writer, setting.eos_id, records, temporary, advance)
        if records is not None:
            records.remove()
        shutil.rmtree(temporary / _OWN_TOKENS, ignore_errors=True)
        exported = Exported(out=out.as_posix(), setting=setting, share=share, files=files)
        snippet = redacted(format.snippet(exported))
        (temporary / f"snippet.{format.pasted_into}").write_text(snippet, encoding="utf-8")
        prompts = int((content.num_prompt(order) > 0).sum())
        record = {
            "format": to,
            "run": config.run,
            "seed": config.seed,
            "shard_bytes": setting.shard_bytes,
            "part": config.part,
            "mixture_share": share,
            "eos_id": setting.eos_id,
            "sequence_length": setting.window if to == "mds" else None,
            "num_documents": len(order),
            "num_tokens": sum(tokens for _, tokens in files),
            "num_prompts_trained_on": 0 if format.masks_prompts else prompts,
            "files": [name for name, _ in files],
            "written": sorted({*_names(temporary), RECORD}),
        }
        record = write_record(temporary / RECORD, record)
    if config.push_to_hub is None:
        return {**record, "snippet": snippet}
    with shown.stage("Uploading", "directory", 1) as advance:
        address = push_to_hub(out, config.push_to_hub)
        advance(1)
    return {**record, "snippet": snippet, "hub": address}


def _check_used(config: ExportConfig, format: Format) -> None:
    """See that the format uses every option that is given.

    Raises:
        InputError: it does not.
    """
    uses: dict[str, Callable[[Format], bool]] = {
        "sequence_length": lambda format: format.has_window,
        "eos_id": lambda format: format.holds == "tokens",
    }
    for name, used_by in uses.items():
        if (value := getattr(config, name)) is not None and not used_by(format):
            raise InputError(
                field=name,
                must=f"be left out with {option('to')} {config.to}, which does not use it",
                got=value,
                do=f"these do: {', '.join(to for to, other in FORMATS.items() if used_by(other))}",
            )


def _documents(run: RunDir, part: str) -> np.ndarray:
    """Mark the exported documents of the pool, (N,) bool."""
    if part == "replay":
        return run.replayed()
    return run.selected() if part == "selected" else run.selected() | run.replayed()


def _share(run: RunDir, config: ExportConfig) -> float:
    """Return the share of the training data that the exported documents are."""
    if config.mixture_share is not None:
        return config.mixture_share
    replay = run.replay_share
    return {"selected": 1 - replay, "replay": replay, "both": 1.0}[config.part]


def shuffled(corpus: Corpus, selected: np.ndarray, seed: int) -> np.ndarray:
    """Return the selected samples' positions, (K,) int64, in an order that their ids and the seed alone decide."""
    positions = np.flatnonzero(selected)
    digests = np.empty((len(positions), 2), dtype=np.uint64)
    for start in range(0, len(positions), _BLOCK_ROWS):
        ids = corpus.index["id"].take(pa.array(positions[start : start + _BLOCK_ROWS])).to_pylist()
        keyed = (short_digest(id, key=str(seed)) for id in ids)
        digests[start : start + len(ids)] = np.frombuffer(b"".join(keyed), dtype=">u8").reshape(-1, 2)
    return positions[np.lexsort((digests[:, 1], digests[:, 0]))]


def _setting(run: RunDir, content: Content, order: np.ndarray, format: Format, config: ExportConfig) -> Setting:
    vocab_size = content.corpus.vocab_size
    end = content.tokens.separator if config.eos_id is None else config.eos_id
    if format.holds == "tokens" and (end is None or end >= vocab_size):
        raise InputError(
            f"each document needs a token after it that is in the vocabulary of {vocab_size}, but "
            f"{'the checkpoint names none' if end is None else f'{end} is not'}: pass {option('eos_id')}"
        )
    return Setting(
        vocab_size=vocab_size,
        eos_id=end if format.holds == "tokens" else None,
        tokenizer=run.config.model,
        window=config.sequence_length or content.tokens.max_length,
        shard_bytes=config.shard_size or format.shard_bytes,
        has_prompts=bool((content.num_prompt(order) > 0).any()),
        schema=pa.schema([]),
    )


def _write(
    pool: Corpus,
    content: Content,
    order: np.ndarray,
    writer: Writer,
    eos_id: int | None,
    records: Records | None,
    directory: Path,
    advance: Advance,
) -> list[tuple[str, int]]:
    """Write the documents and where each went; returns (file, tokens of the documents in it)."""
    counts: dict[str, int] = {}
    with pq.ParquetWriter(directory / "provenance.parquet", _PROVENANCE, compression="zstd") as provenance:
        for start in range(0, len(order), _BLOCK_ROWS):
            block = order[start : start + _BLOCK_ROWS]
            rows = pool.index.take(pa.array(block)).to_pylist()
            for position, row in zip(block.tolist(), rows, strict=True):
                tokens = _tokens(content, position, eos_id)
                document = Document(
                    id=row["id"],
                    domain=str(row["domain"]),
                    tokens=tokens,
                    num_prompt=int(content.corpus.num_prompt[content.row(position)]),
                    record=b"" if records is None else records.line(position),
                )
                row["file"], row["place"] = writer.add(document)
                row["num_tokens"] = len(tokens)
                counts[row["file"]] = counts.get(row["file"], 0) + len(tokens)
                advance(1)
            provenance.write_table(pa.Table.from_pylist(rows, _PROVENANCE))
    writer.close()
    return list(counts.items())


def _tokens(content: Content, position: int, eos_id: int | None) -> np.ndarray:
    corpus, row = content.corpus, content.row(position)
    tokens = corpus.tokens(row)
    if len(tokens) != corpus.num_tokens[row] or (len(tokens) and tokens.max() >= corpus.vocab_size):
        raise InputError(
            subject="the run's corpus",
            must=f"hold the tokens of {corpus.index['id'][row].as_py()}",
            got="but they are damaged",
            do="run select again",
        )
    return tokens if eos_id is None or tokens[-1] == eos_id else np.append(tokens, eos_id)


@contextmanager
def _new_directory(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory that becomes `out` on a clean exit, in the place of an earlier export there."""
    require_no_file_at(out)
    if out.exists() and any(out.iterdir()):
        if not (out / RECORD).is_file():
            raise InputError(field="out", must="be new, empty or an earlier export", got=f"but {out} holds other files")
        if not overwrite:
            raise InputError(
                f"{out} holds an earlier export: choose another {option('out')}, or pass {option('overwrite')}"
            )
        if strange := _strange(out):
            raise InputError(
                field="out",
                must="hold nothing but the earlier export, which is removed",
                got=f"but {out} has {', '.join(strange[:3])}, too",
                do="move that away, or choose another",
            )
    temporary = out.with_name(out.name + TEMPORARY_SUFFIX)
    strange_there = temporary.exists() and not (temporary / RECORD).is_file() and _names(temporary)
    if temporary.is_symlink() or strange_there:
        raise InputError(f"{temporary} is in the way: move it away")
    with held(temporary):
        for path in temporary.iterdir():
            if path.name != LOCK:
                remove(path)
        (temporary / RECORD).touch()  # so that what a kill leaves is known for ours
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for path in temporary.iterdir():
            flush_to_disk(path)
    if out.exists():
        out.rename(temporary_name(out))  # and not removed: a kill right here would leave neither
    temporary.rename(out)
    for left in leftovers(out):
        if left != temporary:  # which may be that of another export by now
            shutil.rmtree(left, ignore_errors=True)


def _strange(out: Path) -> list[str]:
    """Return the files that an earlier export did not write; none where its record does not tell."""
    try:
        written = read_record(out / RECORD).get("written")
    except (OSError, RecordError):
        written = None
    return [] if written is None else sorted(_names(out) - set(written))


def _names(directory: Path) -> set[str]:
    files = (path for path in directory.rglob("*") if not path.is_dir() and path != directory / LOCK)
    return {path.relative_to(directory).as_posix() for path in files}
