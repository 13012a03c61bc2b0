"""Documents of the data directory, and which of them serves what: decided by the hash of a document's id alone.

stable 55 %    the stable phase, and the tokenizer
pool 27 %      what can be selected
validation 6 % what selection sees of the target
development 6 %, test 6 %    held out: for the search of defaults, and for the bake-off
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

Role = Literal["stable", "pool", "validation", "development", "test"]
BOUNDS: tuple[tuple[Role, int], ...] = (
    ("stable", 55),
    ("pool", 82),
    ("validation", 88),
    ("development", 94),
    ("test", 100),
)
PASSAGE_CHARACTERS = 700  # about 250 tokens of the small vocabulary: one window


def role_of(name: str) -> Role:
    """The part of the data that a document belongs to."""
    place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % 100
    return next(role for role, bound in BOUNDS if place < bound)


def domains(data: Path) -> list[str]:
    """The names of the corpus's domains."""
    found = sorted(path.name.removesuffix(".jsonl.zst") for path in (data / "corpus").glob("*.jsonl.zst"))
    if not found:
        raise SystemExit(f"{data} must hold corpus/*.jsonl.zst, but has none: name the data directory")
    return found


def documents(data: Path, domain: str, role: Role) -> Iterator[dict[str, Any]]:
    """Documents of a domain that serve a role, in the file's order: id, domain, text."""
    for name, text in _documents(data, domain).get(role, ()):
        yield {"id": name, "domain": domain, "text": text}


@cache
def _documents(data: Path, domain: str) -> dict[Role, list[tuple[str, str]]]:
    """Ids and texts of a domain by role; read once, since every scenario asks for them."""
    found: dict[Role, list[tuple[str, str]]] = {}
    with pa.input_stream(str(data / "corpus" / f"{domain}.jsonl.zst"), compression="zstd") as stream:
        for line in stream.read().splitlines():
            record = json.loads(line)
            name = f"{domain}/{record['id']}"
            found.setdefault(role_of(name), []).append((name, record["text"]))
    return found


def passages(data: Path, domain: str, role: Role, count: int, salt: str) -> list[dict[str, Any]]:
    """At most `count` passages of about one window, a random choice by hash of salt and id.

    Passages, so that every sample weighs about the same, and a pool of one size has many of them.
    """
    found = [
        {**record, "id": f"{record['id']}#{number}", "text": text}
        for record in documents(data, domain, role)
        for number, text in enumerate(_cut(record["text"]))
    ]
    return sorted(found, key=lambda record: _hash(f"{salt}:{record['id']}"))[:count]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """One JSON object a line, whole or not at all. A file that is right is left alone: runs begun with it go on."""
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    return path


def _cut(text: str) -> Iterator[str]:
    """Pieces of at most PASSAGE_CHARACTERS that end at white space; a tail shorter than a third is dropped."""
    while len(text) > PASSAGE_CHARACTERS:
        end = text.rfind(" ", PASSAGE_CHARACTERS // 2, PASSAGE_CHARACTERS)
        end = PASSAGE_CHARACTERS if end < 0 else end
        yield text[:end]
        text = text[end:].lstrip(" ")
    if len(text) > PASSAGE_CHARACTERS // 3 and text.strip():
        yield text


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
