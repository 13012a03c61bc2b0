"""From the patterns that a user names to streams of records."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from direct_anneal.data import lines
from direct_anneal.data.formats import (
    MAX_DOCUMENT_TOKENS,
    TOKENISED,
    TokenLayout,
    documents,
    has_header,
    main_file,
    parts,
)
from direct_anneal.data.tables import INFO_FILE, STATE_FILE, batch_records, dataset_files, read_batches
from direct_anneal.errors import InputError

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".ndjson.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".ndjson.zst": "jsonl.zst",
    ".parquet": "parquet",
    **TOKENISED,
}
_COMPRESSION = {"jsonl": None, "jsonl.gz": "gzip", "jsonl.zst": "zstd"}
_SUPPORTED = ", ".join(_FORMATS) + ", or a directory that datasets.save_to_disk wrote"


@dataclass(frozen=True)
class BadRecord:
    """What stands where a record should: kind is "bad-line", or "truncated" for the end of a damaged file."""

    reason: str
    kind: str = "bad-line"


State = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Source:
    """One file of documents, or one dataset directory.

    Attributes:
        path: relative to the working directory if below it, else absolute; `str(source)` gives it with slashes.
        format: "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow" (a dataset saved to disk), or of tokens "npy"
            (headerless), "bin" (Megatron's) or "ds" (datatrove's).
        layout: of files of tokens; None for the other formats.
    """

    path: Path
    format: str
    layout: TokenLayout | None = None

    def __str__(self) -> str:
        return self.path.as_posix()

    @property
    def stem(self) -> str:
        """The name without the extensions of its format: the domain of documents that name none."""
        name = self.path.name
        suffix = _suffix(name)
        return name if self.format == "arrow" or suffix is None else name[: -len(suffix)]

    @property
    def compression(self) -> str | None:
        """Arrow's name of a JSONL file's compression."""
        return _COMPRESSION[self.format]

    def state(self) -> State:
        """(name, bytes, mtime in ns) of every file read for this source: equal states hold equal content.

        Raises:
            InputError: a file is gone.
        """
        # Not every file in the directory: `datasets` drops its caches there when the user maps or filters.
        files = [self.path]
        if self.format == "arrow":
            files = [self.path / STATE_FILE, self.path / INFO_FILE, *dataset_files(self.path)]
        elif self.layout is not None:
            files = parts(self.path, self.format)
        try:
            stats = [(file.name, file.stat()) for file in files]
        except OSError as error:
            raise InputError(f"{self} must stay readable while it is used, but: {error}") from error
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    def records(self, columns: Collection[str] | None = None) -> Iterator[tuple[int, Mapping[str, Any] | BadRecord]]:
        """Streams (row, record); rows count lines or table rows from 0.

        A blank line is skipped but counted in the row numbers. Lists of integers in Parquet and Arrow come as numpy
        arrays.

        Args:
            columns: of Parquet and Arrow, the columns to read, where they exist; JSON records are always whole.

        Raises:
            InputError: a Parquet or Arrow file, or one of tokens, cannot be opened or is damaged.
        """
        if self.format in _COMPRESSION:
            yield from self._json_records()
            return
        if self.layout is not None:
            for row, tokens in enumerate(documents(self.path, self.format, self.layout)):
                too_long = BadRecord(f"the document is longer than {MAX_DOCUMENT_TOKENS:,} tokens")
                yield row, too_long if len(tokens) > MAX_DOCUMENT_TOKENS else {"input_ids": tokens}
            return
        for first_row, batch in read_batches(self.path, self.format, columns=columns):
            for row, record in enumerate(batch_records(batch), start=first_row):
                yield row, BadRecord(record) if isinstance(record, str) else record

    def records_at(
        self, rows: np.ndarray, columns: Collection[str]
    ) -> Iterator[tuple[int, Mapping[str, Any] | BadRecord]]:
        """Those of `records` at these rows, shape (K,), sorted; no other line is parsed.

        Raises:
            InputError: as `records`.
        """
        wanted = set(rows.tolist())
        if self.format in _COMPRESSION:
            with suppress(lines.TruncatedError):
                for row, line in lines.read_lines(self.path, self.compression):
                    if row in wanted and line is not None:
                        yield row, _parse(line)
                        wanted.remove(row)
                    if not wanted:
                        return
            return
        for first_row, batch in read_batches(self.path, self.format, columns=columns, rows=rows):
            start, stop = np.searchsorted(rows, [first_row, first_row + batch.num_rows])
            for row in rows[start:stop].tolist():
                (record,) = batch_records(batch.slice(row - first_row, 1))
                yield row, BadRecord(record) if isinstance(record, str) else record

    def _json_records(self) -> Iterator[tuple[int, Mapping[str, Any] | BadRecord]]:
        next_row = 0
        try:
            for row, line in lines.read_lines(self.path, self.compression):
                next_row = row + 1
                if line is None:
                    yield row, BadRecord(f"the line is longer than {lines.MAX_LINE_BYTES} bytes")
                elif line.strip():
                    yield row, _parse(line)
        except lines.TruncatedError as error:
            yield next_row, BadRecord(f"the rest of the file is lost: {error}", kind="truncated")


def _parse(line: bytes) -> Mapping[str, Any] | BadRecord:
    try:
        text = line.decode("utf-8")
        record = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # JSON can escape half a surrogate pair, which no tokenizer, file or table can hold.
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return BadRecord("a string holds half a surrogate pair")
    except (ValueError, RecursionError) as error:
        return BadRecord(str(error))
    return record if isinstance(record, dict) else BadRecord(f"not a JSON object but {type(record).__name__}")


def expand(patterns: Sequence[str], role: str, layout: TokenLayout | None = None) -> list[Source]:
    """The sources that the patterns name, sorted by path, each real file once however often it is named.

    A pattern is a file, a directory or a glob (`**` crosses directories). A directory that `datasets.save_to_disk`
    wrote is one source; any other stands for every supported file below it, hidden ones and other files left out. A
    file that is named, or met by a glob, must be of a supported format.

    Args:
        role: what the sources are for ("pool", "validation"), for the messages.
        layout: of files of tokens; 32-bit tokens and no end token where left out.

    Raises:
        InputError: a pattern matches nothing; a file's extension is unknown; a DatasetDict stands where one split
            should; a dataset has an indices mapping; something is unreadable or has a name that is not UTF-8.
    """
    if not patterns:
        raise InputError(f"the {role} needs at least one file, but none was named")
    sources: dict[Path, Source] = {}
    for pattern in patterns:
        found = [source for path in _matches(pattern) for source in _sources_at(path, (), layout or TokenLayout())]
        if not found:
            raise InputError(
                f"every {role} pattern must match a file, but {pattern!r} matches none in {Path.cwd()}: "
                f"check it, and quote globs; supported are {_SUPPORTED}"
            )
        for source in found:
            real = source.path.resolve()
            # The spelling that stays must not depend on the order in which the patterns were named.
            sources[real] = min(sources.get(real, source), source, key=str)
    return sorted(sources.values(), key=str)


def _matches(pattern: str) -> list[Path]:
    named = Path(pattern).expanduser()
    if named.exists():
        return [named]
    paths = [Path(match) for match in glob(str(named), recursive=True)]  # noqa: PTH207 (Path.glob's ** finds no files before Python 3.13)
    datasets = {path for path in paths if (path / STATE_FILE).is_file()}
    return sorted(path for path in paths if not datasets.intersection(path.parents))


def _sources_at(path: Path, above: tuple[Path, ...], layout: TokenLayout) -> list[Source]:
    if path.is_dir():
        return _sources_in(path, above, layout)
    path = main_file(path) or path
    suffix = _suffix(path.name)
    if suffix is None:
        raise InputError(f"{path} has no extension that says how to read it: supported are {_SUPPORTED}")
    try:
        path.open("rb").close()
        str(path).encode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions, or leave it out") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!r} is not a UTF-8 name: rename the file") from error
    format = _FORMATS[suffix]
    return [Source(_relative(path), format, layout if format in TOKENISED.values() else None)]


def _sources_in(directory: Path, above: tuple[Path, ...], layout: TokenLayout) -> list[Source]:
    if (directory / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in directory.glob(f"*/{STATE_FILE}"))
        example = directory / (splits[0] if splits else "SPLIT")
        raise InputError(
            f"{directory} must be one dataset, but is a DatasetDict of the splits {', '.join(splits)}: "
            f"name one of them, such as {example}"
        )
    if (directory / STATE_FILE).is_file():
        dataset_files(directory)
        return [Source(_relative(directory), "arrow")]
    real = directory.resolve()
    if real in above:
        return []
    try:
        entries = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"{directory} cannot be listed ({error.strerror}): check its permissions, or leave it out"
        ) from error
    usable = [entry for entry in entries if entry.is_dir() or _is_documents(entry)]
    return [source for entry in usable for source in _sources_at(entry, (*above, real), layout)]


def _is_documents(entry: Path) -> bool:
    """Whether a file that was met, not named, is meant: other arrays and binaries bear the endings of tokens, too."""
    format = _FORMATS.get(_suffix(entry.name) or "")
    if format == "npy":
        try:
            return not has_header(entry)
        except OSError:  # to be told of where it is opened
            return True
    return format is not None and (format != "bin" or entry.with_suffix(".idx").is_file())


def _suffix(name: str) -> str | None:
    return next((suffix for suffix in _FORMATS if name.lower().endswith(suffix)), None)


def _relative(path: Path) -> Path:
    absolute = path.resolve() if ".." in path.parts else path.absolute()
    here = Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
