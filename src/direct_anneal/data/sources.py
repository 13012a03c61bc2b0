"""Sources: from the patterns that a user names to streams of records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path

import numpy as np

from direct_anneal.config.names import corpus_name
from direct_anneal.data.formats import (
    FORMATS,
    SAVED_DATASET,
    BadRecord,
    Record,
    TokenLayout,
    format_of,
    main_file,
    suffix_of,
    supported,
)
from direct_anneal.data.formats.tables import STATE_FILE, dataset_files
from direct_anneal.data.remote import Remote, hub_snapshot, is_remote, listed
from direct_anneal.errors import InputError

__all__ = ["FETCHED", "BadRecord", "Source", "State", "describe_skipped", "expand"]

State = tuple[tuple[str, int, int], ...]

FETCHED = "fetched"  # directory of files behind URLs, below a command's own

_MOST_KINDS = 8  # of files passed over that are named


@dataclass(frozen=True)
class Source:
    """One file of documents, or one dataset directory.

    Attributes:
        path: relative to the working directory if below it, else absolute; `str(source)` gives it with slashes.
        format: its name in `direct_anneal.data.formats.FORMATS`.
        layout: of files of tokens; None for the other formats.
        remote: where the file is fetched from, if not from here.
        name: in place of the path, where that is of a cache.
    """

    path: Path
    format: str
    layout: TokenLayout | None = None
    remote: Remote | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        return self.name or self.path.as_posix()

    @property
    def is_here(self) -> bool:
        """True if it can be read without a network."""
        return self.remote is None or self.remote.is_here

    def local(self) -> Path:
        """Return the path, fetched if need be.

        Raises:
            InputError: it cannot be fetched, or is another than when it was listed.
        """
        return self.path if self.remote is None else self.remote.fetch()

    @property
    def stem(self) -> str:
        """The name without the extensions of its format: the domain of documents that name none."""
        name = self.path.name
        suffix = suffix_of(name)
        return name if self.format == SAVED_DATASET.name or suffix is None else name[: -len(suffix)]

    def state(self) -> State:
        """Return (name, bytes, mtime in ns) of every file read for this source: equal states hold equal content.

        Raises:
            InputError: a file is gone.
        """
        if self.remote is not None:
            return self.remote.state()
        files = FORMATS[self.format].files(self.path)
        try:
            stats = [(file.name, file.stat()) for file in files]
        except OSError as error:
            raise InputError(subject=str(self), must="stay readable while it is used", got=f"but {error}") from error
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    def records(self, columns: Collection[str] | None = None) -> Iterator[tuple[int, Record]]:
        """Stream (row, record); rows count lines, elements or table rows from 0.

        A blank line is skipped but counted in the row numbers. Lists of integers in Parquet and Arrow come as numpy
        arrays.

        Args:
            columns: the fields wanted, dots leading into objects; JSON and CSV records are always whole.

        Raises:
            InputError: the file cannot be opened, is of another kind than its name says, or, but for lines, is damaged.
        """
        yield from FORMATS[self.format].records(self.local(), self.layout, columns)

    def records_at(self, rows: np.ndarray, columns: Collection[str]) -> Iterator[tuple[int, Record]]:
        """Read the records at these rows, shape (K,), sorted.

        Raises:
            InputError: as `records`.
        """
        yield from FORMATS[self.format].records_at(self.local(), self.layout, rows, columns)

    def count(self, max_bytes: int) -> float:
        """Count the records, estimated from about the first `max_bytes` bytes where nothing says it."""
        return FORMATS[self.format].count(self.local(), self.layout, max_bytes)


def anywhere(source: Source) -> Source:
    """Return a source with its name, to be read from whichever working directory."""
    remote = source.remote and replace(source.remote, directory=source.remote.directory.absolute())
    return replace(source, path=source.path.absolute(), name=str(source), remote=remote)


def expand(
    patterns: Sequence[str],
    role: str,
    layout: TokenLayout | None = None,
    skipped: list[Path] | None = None,
    cache: Path | None = None,
) -> list[Source]:
    """Return the sources that the patterns name, sorted by path, each real file once however often it is named.

    A pattern is a file, a directory or a glob (`**` crosses directories). A directory that `datasets.save_to_disk`
    wrote is one source; any other stands for every file of documents below it. A file that is named, or met by a glob,
    must be of a supported format.

    Args:
        role: what the sources are for ("pool", "validation"), for the messages.
        layout: of files of tokens; 32-bit tokens and no end token where left out.
        cache: where files behind URLs are fetched to, when they are first read.
        skipped: gets the files and hidden directories of directories that are not read; `describe_skipped` says so.

    Raises:
        InputError: a pattern matches nothing; a file's extension is unknown; a DatasetDict stands where one split
            should; a dataset has an indices mapping; something is unreadable or has a name that is not UTF-8.
    """
    if not patterns:
        raise InputError(f"the {corpus_name(role)} needs at least one file, but none was named")
    sources: dict[Path, Source] = {}
    listing = _Listing(layout or TokenLayout())
    for pattern in patterns:
        if is_remote(pattern):
            found = _remote(pattern, role, cache, listing)
        else:
            found = [source for path in _matches(pattern) for source in listing.at(path)]
        if not found:
            said = describe_skipped(listing.skipped)
            raise InputError(
                subject=f"every {role} pattern",
                must="match a file",
                got=f"but {pattern!r} matches none in {Path.cwd()}",
                do=f"check it, and quote globs; {(f'{said}; ' if said else '')}supported are {supported()}",
            )
        for source in found:
            real = source.path.resolve() if source.remote is None else source.path
            # The spelling that stays must not depend on the order in which the patterns were named.
            sources[real] = min(sources.get(real, source), source, key=str)
    if skipped is not None:
        # Not resolved: links may lead nowhere, or round and round.
        read = {source.path.absolute() for source in sources.values()}
        skipped += [path for path in dict.fromkeys(listing.skipped) if path.absolute() not in read]
    return sorted(sources.values(), key=str)


def _remote(pattern: str, role: str, cache: Path | None, listing: _Listing) -> list[Source]:
    """Return the sources that a URL names."""
    if pattern.startswith("hf://"):
        directory, inner, url = hub_snapshot(pattern)
        found = [source for path in _matches(str(directory / inner)) for source in listing.at(path)]
        return [replace(source, name=f"{url}/{_within(source.path, directory)}") for source in found]
    if cache is None:
        raise InputError(
            subject=f"the {corpus_name(role)}",
            must="lie on this machine or the hub for this command",
            got=f"but {pattern} does not",
        )
    return [
        Source(remote.path, format.name, listing.layout if format.tokenised else None, remote=remote, name=remote.name)
        for remote, format in listed(pattern, cache)
    ]


def _within(path: Path, directory: Path) -> str:
    return path.absolute().relative_to(directory.absolute()).as_posix()


def describe_skipped(paths: Sequence[Path]) -> str:
    """Count the files passed over, by their endings: "3 files passed over (2 .md, 1 .txt)"; empty if none.

    >>> describe_skipped([Path("a/README.md"), Path("a/LICENSE"), Path("b/README.md")])
    '3 files of the directories passed over (2 .md, 1 without an ending), first a/README.md'
    """
    if not paths:
        return ""
    counts = Counter(_kind(path) for path in paths)
    told = [f"{count:,} {kind}" for kind, count in counts.most_common(_MOST_KINDS)]
    if len(counts) > _MOST_KINDS:
        told.append(f"{len(counts) - _MOST_KINDS:,} more kinds")
    files = "1 file" if len(paths) == 1 else f"{len(paths):,} files"
    return f"{files} of the directories passed over ({', '.join(told)}), first {paths[0].as_posix()}"


def _kind(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if (suffix := suffix_of(path.name)) is not None:
        return f"{suffix} that hold no documents"
    return path.suffix.lower()[:12] or "without an ending"


def _matches(pattern: str) -> list[Path]:
    named = Path(pattern).expanduser()
    if named.exists():
        return [named]
    paths = [Path(match) for match in glob(str(named), recursive=True)]  # noqa: PTH207 (Path.glob's ** finds no files before Python 3.13)
    datasets = {path for path in paths if (path / STATE_FILE).is_file()}
    return sorted(path for path in paths if not datasets.intersection(path.parents))


class _Listing:
    """Files found in directories, and files passed over."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self.skipped: list[Path] = []

    def at(self, path: Path, above: tuple[Path, ...] = (), *, met: bool = False) -> list[Source]:
        """Return the sources of one path."""
        if path.is_dir():
            return self._in(path, above)
        path = path if met else main_file(path) or path
        if not path.is_file():
            raise InputError(
                subject=str(path), must="be a file or a directory", got="but is neither", do="leave it out"
            )
        try:
            path.open("rb").close()
            str(path).encode("utf-8")
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}): check its permissions, or leave it out"
            ) from error
        except UnicodeEncodeError as error:
            raise InputError(f"{str(path)!r} is not a UTF-8 name: rename the file") from error
        format = format_of(path, met=met)
        if format is None:
            raise InputError(f"{path} has no extension that says how to read it: supported are {supported()}")
        return [Source(_relative(path), format.name, self.layout if format.tokenised else None)]

    def _in(self, directory: Path, above: tuple[Path, ...]) -> list[Source]:
        if (directory / "dataset_dict.json").is_file():
            splits = sorted(path.parent.name for path in directory.glob(f"*/{STATE_FILE}"))
            example = directory / (splits[0] if splits else "SPLIT")
            raise InputError(
                subject=str(directory),
                must="be one dataset",
                got=f"but is a DatasetDict of the splits {', '.join(splits)}",
                do=f"name one of them, such as {example}",
            )
        if (directory / STATE_FILE).is_file():
            dataset_files(directory)
            return [Source(_relative(directory), SAVED_DATASET.name)]
        real = directory.resolve()
        if real in above:
            return []
        try:
            entries = sorted(directory.iterdir())
        except OSError as error:
            raise InputError(
                f"{directory} cannot be listed ({error.strerror}): check its permissions, or leave it out"
            ) from error
        found: list[Source] = []
        for entry in entries:
            if entry.name.startswith(".") or not (entry.is_dir() or self._is_documents(entry)):
                if main_file(entry) is None:  # else it is read with that
                    self.skipped.append(entry)
            else:
                found += self.at(entry, (*above, real), met=True)
        return found

    def _is_documents(self, entry: Path) -> bool:
        if suffix_of(entry.name) is None or main_file(entry) is not None or not entry.is_file():
            return False
        try:
            return format_of(entry, met=True) is not None
        except OSError:  # to be told of where it is opened
            return True


def _relative(path: Path) -> Path:
    absolute = path.resolve() if ".." in path.parts else path.absolute()
    here = Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
