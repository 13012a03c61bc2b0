"""Every format of documents, one module and one record each; readers, writers and the pool's listing go by these.

format_of(Path("pool/a.jsonl.gz"))       # the record: its suffixes, records, count, write
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from direct_anneal.data.formats.datatrove import Datatrove, DatatroveWriter
from direct_anneal.data.formats.delimited import Delimited
from direct_anneal.data.formats.json_array import JsonArray
from direct_anneal.data.formats.json_lines import JsonLines
from direct_anneal.data.formats.layout import DTYPES, MAX_DOCUMENT_TOKENS, TokenLayout, smallest
from direct_anneal.data.formats.megatron import Megatron, MegatronWriter, token_dtype
from direct_anneal.data.formats.memmap import Memmap, MemmapWriter
from direct_anneal.data.formats.parquet import Parquet
from direct_anneal.data.formats.record import BadRecord, Choice, Format, Record
from direct_anneal.data.formats.saved_dataset import SavedDataset
from direct_anneal.data.formats.tokens import TokenWriter

__all__ = [
    "DTYPES",
    "FORMATS",
    "HEADERLESS",
    "MAX_DOCUMENT_TOKENS",
    "SAVED_DATASET",
    "BadRecord",
    "Choice",
    "DatatroveWriter",
    "Format",
    "MegatronWriter",
    "MemmapWriter",
    "Record",
    "TokenLayout",
    "TokenWriter",
    "companions",
    "format_of",
    "main_file",
    "main_name",
    "register",
    "smallest",
    "suffix_of",
    "supported",
    "token_dtype",
]

SAVED_DATASET = SavedDataset()
HEADERLESS = Memmap.name

# In the order in which their outputs are written. Of two with one suffix the first that recognises a file reads it.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        *(JsonArray(compression) for compression in (None, "gzip", "zstd")),
        *(JsonLines(compression) for compression in (None, "gzip", "zstd")),
        Parquet(),
        SAVED_DATASET,
        *(Delimited(kind, compression) for kind in ("csv", "tsv") for compression in (None, "gzip", "zstd")),
        Memmap(),
        Megatron(),
        Datatrove(),
    )
}


def supported() -> str:
    """Name what can be read, for messages."""
    suffixes = dict.fromkeys(suffix for format in FORMATS.values() for suffix in format.suffixes)
    return f"{', '.join(suffixes)}, or a directory that datasets.save_to_disk wrote"


def register(format: Format) -> None:
    """Add a format from outside of the package, before a pool is listed."""
    FORMATS[format.name] = format


def suffix_of(name: str) -> str | None:
    """Return the suffix of a file's name that says how to read it, the longest that fits; None if there is none."""
    known = (suffix for format in FORMATS.values() for suffix in format.suffixes)
    return max((suffix for suffix in known if name.lower().endswith(suffix)), key=len, default=None)


def format_of(path: Path, *, met: bool) -> Format | None:
    """Return the format of a file; None if no suffix fits.

    Args:
        met: in a directory, not named: None, too, where no format of that suffix recognises its content.
    """
    suffix = suffix_of(path.name)
    candidates = [format for format in FORMATS.values() if suffix in format.suffixes]
    for format in candidates:
        if format.recognises(path):
            return format
    return None if met or not candidates else candidates[-1]


# Files that belong to one of tokens, by how both end.
_BESIDE = ((".idx", ".bin"), (".ds.index", ".ds"), (".ds.metadata", ".ds"), (".csv.gz", ".npy"))


def main_name(name: str, others: Container[str]) -> str | None:
    """Name the tokens, among the other files beside it, that a file goes with: a.bin for a.idx."""
    for ending, instead in _BESIDE:
        main = name.removesuffix(ending) + instead
        if name.endswith(ending) and main in others:
            return main
    return None


def companions(name: str) -> list[str]:
    """Return names of the files that may lie beside one of tokens."""
    return [name.removesuffix(main) + ending for ending, main in _BESIDE if name.endswith(main)]


def main_file(path: Path) -> Path | None:
    """Return the tokens that a file beside them goes with, if it does."""
    mains = [path.with_name(path.name.removesuffix(end) + main) for end, main in _BESIDE if path.name.endswith(end)]
    return next(filter(Path.is_file, mains), None)
