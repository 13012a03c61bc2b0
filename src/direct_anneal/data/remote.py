"""Pools that lie elsewhere: buckets and servers through fsspec, datasets of the Hugging Face hub by revision.

What is there is listed once, with sizes and versions: these stand for the content as a local file's time does. Each
file is fetched when it is first read, tried again if the network fails, and kept below the run's directory.

    s3://bucket/pool/*.jsonl.zst    gs://bucket/pool    https://host/a.parquet
    hf://datasets/ORG/NAME@REVISION/data/*.parquet
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from direct_anneal.data.formats import FORMATS, Format, companions, format_of, main_name, suffix_of
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import short_digest, short_hash

_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HUB = "hf://datasets/"
_GLOB = re.compile(r"[*?\[]")
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "version_id", "LastModified", "mtime", "created")
_PEEK_BYTES = 2**16

TRIES = 5
FIRST_WAIT = 1.0  # seconds, and twice as many each time

RemoteState = tuple[tuple[str, int, int], ...]


def is_remote(pattern: str) -> bool:
    """Tell whether a pattern is a URL."""
    return _URL.match(pattern) is not None


@dataclass(frozen=True)
class RemoteFile:
    """One file as it was when it was listed.

    Attributes:
        name: its URL without a password or a signature.
        address: of the file, for its file system.
        size: bytes.
        version: what its server says of its content: an etag, a generation, a time; empty where it says nothing.
    """

    name: str
    address: str
    size: int
    version: str


@dataclass(frozen=True)
class Remote:
    """The files of one source, to be fetched into a directory of their own; the first is the source's."""

    files: tuple[RemoteFile, ...]
    directory: Path
    system: Any

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def path(self) -> Path:
        """The first file, once it is fetched."""
        return self._place(self.files[0])

    @property
    def is_here(self) -> bool:
        """True if every file has been fetched."""
        return all(self._place(file).is_file() for file in self.files)

    def state(self) -> RemoteState:
        """Return (URL, bytes, number made of the version) of every file, as they were listed."""
        return tuple((file.name, file.size, _number(file.version)) for file in self.files)

    def fetch(self) -> Path:
        """Fetch what is not here, and return the path of the first.

        Raises:
            InputError: it cannot be reached, or is another than was listed.
        """
        for file in self.files:
            place = self._place(file)
            if not (place.is_file() and place.stat().st_size == file.size):
                self.directory.mkdir(parents=True, exist_ok=True)
                with replacing(place) as temporary:
                    self._fetch(file, temporary)
        return self.path

    def _fetch(self, file: RemoteFile, temporary: Path) -> None:
        with _reaching(file.name) as tries:
            for attempt in tries:
                with attempt:
                    self.system.get_file(file.address, str(temporary))
                    now = _fresh(self.system, file.address)
        if temporary.stat().st_size != file.size or (file.version and _version(now) != file.version):
            raise InputError(
                subject=file.name,
                must="stay as it was when it was listed",
                got=f"but is another now (it had {file.size:,} bytes)",
                do="start again",
            )

    def _place(self, file: RemoteFile) -> Path:
        return self.directory / PurePosixPath(urlsplit(file.name).path).name


def listed(pattern: str, cache: Path) -> Iterator[tuple[Remote, Format]]:
    """List the documents that a URL names: a file, a glob, or all below a prefix.

    Args:
        cache: the directory below which files are fetched.

    Raises:
        InputError: it cannot be reached, names nothing, or is of a kind that is unknown here.
    """
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(pattern)
    except (ImportError, ValueError) as error:
        raise InputError(
            subject=str(shown(pattern)), must="be a URL that fsspec can open", got=f"but {error}"
        ) from error
    system.invalidate_cache()
    found = _found(system, root, pattern)
    named = not _GLOB.search(root) and root in found
    names = {address: PurePosixPath(urlsplit(address).path).name for address in found}
    for address in sorted(found):
        name = names[address]
        beside = str(PurePosixPath(address).parent)
        others = {names[other]: other for other in found if str(PurePosixPath(other).parent) == beside}
        if suffix_of(name) is None or main_name(name, others) is not None:
            if named:
                raise InputError(f"{shown(pattern)} has no extension that says how to read it")
            continue
        if named and not others.keys() - {name}:
            others |= _beside(system, address)
        parts = [address, *(other for one, other in sorted(others.items()) if main_name(one, {name: address}) == name)]
        files = tuple(_described(system, part, found.get(part)) for part in parts)
        key = short_hash(repr([(f.name, f.size, f.version) for f in files]))
        remote = Remote(files, cache / key, system)
        format = _format(remote, name)
        if format is not None:
            yield remote, format


def _found(system: Any, root: str, pattern: str) -> dict[str, dict[str, Any]]:
    """Return the files by address."""
    with _reaching(shown(pattern)) as tries:
        for attempt in tries:
            with attempt:
                if _GLOB.search(root):
                    entries = system.glob(root, detail=True)
                else:
                    info = system.info(root)
                    entries = {root: info} if info["type"] == "file" else system.find(root, detail=True)
    return {address: info for address, info in entries.items() if info["type"] == "file"}


def _beside(system: Any, address: str) -> dict[str, str]:
    """Return files that belong to a file of tokens that was named alone."""
    found = {}
    for name in companions(address):
        with suppress(FileNotFoundError):
            system.info(name)
            found[PurePosixPath(name).name] = name
    return found


def _described(system: Any, address: str, info: dict[str, Any] | None) -> RemoteFile:
    info = info or system.info(address)
    url = address if is_remote(address) else system.unstrip_protocol(address)
    return RemoteFile(shown(url), address, int(info["size"] or 0), _version(info))


def _fresh(system: Any, address: str) -> dict[str, Any]:
    """Ask the server for the current version of a file."""
    system.invalidate_cache()
    info: dict[str, Any] = system.info(address)
    return info


def _version(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), "")


def _number(version: str) -> int:
    return int.from_bytes(short_digest(version, 7), "big")


def _format(remote: Remote, name: str) -> Format | None:
    """Return the format of a file; one whose suffix does not tell is looked into, and passed over if it holds no
    documents.
    """
    candidates = [format for format in FORMATS.values() if suffix_of(name) in format.suffixes]
    if len(candidates) == 1:
        return candidates[0]
    with _reaching(remote.name) as tries:
        for attempt in tries:
            with attempt:
                head = remote.system.cat_file(remote.files[0].address, start=0, end=_PEEK_BYTES)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(head[:_PEEK_BYTES])
        return format_of(path, met=False)


@contextmanager
def _reaching(name: str) -> Iterator[Iterator[Any]]:
    """Yield attempts, each of them a context; each library has errors of its own for what a network does."""
    failures: list[Exception] = []

    @contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
            failures.clear()
        except (FileNotFoundError, PermissionError, InputError):
            raise
        except Exception as error:
            failures.append(error)

    def attempts() -> Iterator[Any]:
        for number in range(TRIES):
            if number:
                time.sleep(FIRST_WAIT * 2 ** (number - 1))
            yield attempt()
            if not failures:
                return
        raise failures[-1]

    try:
        yield attempts()
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            subject=name,
            must="be reachable",
            got=f"but is not ({type(error).__name__}: {reason})",
            do="check the address, the network and your credentials",
        ) from error


def hub_snapshot(pattern: str) -> tuple[Path, str, str]:
    """Bring the files that an hf:// pattern names into the hub's cache, those that are not there.

    Returns:
        the directory of the revision, what to list in it, and the URL that stands for the directory, with its commit.

    Raises:
        InputError: the pattern is no dataset's, or the dataset cannot be had.
    """
    from huggingface_hub import snapshot_download

    owner, _, rest = pattern.removeprefix(_HUB).partition("/")
    named, _, inner = rest.partition("/")
    name, _, revision = named.partition("@")
    if not pattern.startswith(_HUB) or not owner or not name:
        raise InputError(subject=str(pattern), must="be hf://datasets/ORG/NAME[@REVISION][/FILES], as the hub has them")
    allowed = [inner, f"{inner.rstrip('/')}/**"] if inner else None
    try:
        path = snapshot_download(
            f"{owner}/{name}", repo_type="dataset", revision=unquote(revision) or None, allow_patterns=allowed
        )
    except Exception as error:  # whatever the hub's library raises where there is no network, name or permission
        raise InputError(
            subject=pattern,
            must="be a dataset of the hub",
            got=f"but could not be fetched ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            do="check the name, the revision and the network",
        ) from error
    directory = Path(path)
    return directory, inner, f"{_HUB}{owner}/{name}@{directory.name}"


def shown(url: str) -> str:
    """Return a URL without what may be secret: user and password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
