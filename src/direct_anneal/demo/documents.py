"""The demo's corpus: a pool in which a user's two domains are mixed with others and with damage, and a validation set.

    docs 20 %   code 20 %   comments 15 %   arithmetic, tables, logs 10 % each
    damaged: shuffled, noise, boilerplate 4 % each, duplicate 3 %

Every honest text belongs by its hash to one of two halves: the shipped model was trained on one, the corpus is drawn
from the other, on every version of Python.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from direct_anneal.demo import generated
from direct_anneal.demo.installation import is_usable, library_documents, normalised
from direct_anneal.errors import InputError
from direct_anneal.io.digests import short_digest

TARGET: tuple[str, ...] = ("docs", "code")
DAMAGED: frozenset[str] = frozenset({"shuffled", "noise", "boilerplate", "duplicate"})

_PERCENT = {
    "docs": 20,
    "code": 20,
    "comments": 15,
    "arithmetic": 10,
    "tables": 10,
    "logs": 10,
    "shuffled": 4,
    "noise": 4,
    "boilerplate": 4,
    "duplicate": 3,
}
_NUM_POOL_FILES = 4
_READ_FOR_ONE = 8  # texts of the library for one that is taken; half of them are for training


@dataclass(frozen=True)
class DemoCorpus:
    """The demo's files, and the pool's documents by domain."""

    pool: list[Path]
    validation: Path
    domains: dict[str, int]


def write_demo_corpus(
    directory: Path,
    *,
    num_documents: int = 2400,
    num_validation: int = 320,
    seed: int = 0,
    stdlib: Path | None = None,
) -> DemoCorpus:
    """Write the demo's pool and validation set as JSON lines (id, text, domain) under Zstandard.

    The validation set holds documents of the `TARGET` domains in equal parts; none of them, nor a copy, is in the pool.
    The same arguments and Python installation give the same bytes; files of an earlier call are replaced.

    Args:
        directory: is made if needed; receives `pool/` and `validation.jsonl.zst`.
        num_documents: size of the pool, 15 % of it damaged (`DAMAGED`).
        num_validation: size of the validation set.
        seed: chooses the documents, their damage and their order.
        stdlib: root of the standard library to read, by default that of the running Python.

    Raises:
        InputError: the library has too few documents for these sizes, or no source at all.
    """
    if num_documents < 100 or num_validation < len(TARGET):
        raise InputError(
            f"the demo needs a pool of at least 100 documents and {len(TARGET)} for validation, "
            f"asked were {num_documents} and {num_validation}"
        )
    counts = {domain: num_documents * percent // 100 for domain, percent in _PERCENT.items()}
    counts[TARGET[0]] += num_documents - sum(counts.values())
    num_shuffled = {"docs": counts["shuffled"] // 2, "code": counts["shuffled"] - counts["shuffled"] // 2}
    num_held_out = {"docs": num_validation // 2, "code": num_validation - num_validation // 2}

    pool: list[tuple[str, str]] = []
    validation: list[tuple[str, str]] = []
    wanted = {
        domain: (num_held_out.get(domain, 0), num_shuffled.get(domain, 0), counts[domain])
        for domain in ("docs", "code", "comments")
    }
    enough = {domain: _READ_FOR_ONE * sum(parts) for domain, parts in wanted.items()}
    for domain, texts in library_documents(stdlib or Path(sysconfig.get_path("stdlib")), enough).items():
        ours = [text for text in texts if not is_for_training(text)]
        random.Random(f"{seed} {domain}").shuffle(ours)
        parts = wanted[domain]
        if len(ours) < sum(parts):
            raise InputError(
                f"a demo of this size needs {sum(parts)} documents of the domain {domain}, this Python's standard "
                f"library has {len(ours)}: ask for fewer documents, or use a Python with its full library"
            )
        remaining = iter(ours)
        validation += [(domain, next(remaining)) for _ in range(parts[0])]
        # Words of documents that nothing else here contains: a shuffled text is no copy of anything.
        damage = random.Random(f"{seed} shuffled {domain}")
        pool += [("shuffled", generated.shuffled(next(remaining), damage)) for _ in range(parts[1])]
        pool += [(domain, next(remaining)) for _ in range(parts[2])]
    for domain in generated.GENERATORS:
        drawn = generated_documents(domain, counts[domain], seed=seed, for_training=False)
        pool += [(domain, text) for text in drawn]
    pool += _damaged([text for domain, text in pool if domain not in DAMAGED], counts, seed)

    order = random.Random(f"{seed} order")
    order.shuffle(pool)
    order.shuffle(validation)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pool").mkdir(exist_ok=True)
    paths = [directory / "pool" / f"pool-{i:05d}.jsonl.zst" for i in range(_NUM_POOL_FILES)]
    for i, path in enumerate(paths):
        _write(path, pool[i::_NUM_POOL_FILES], prefix=f"pool-{i:05d}")
    _write(directory / "validation.jsonl.zst", validation, prefix="validation")
    return DemoCorpus(pool=paths, validation=directory / "validation.jsonl.zst", domains=counts)


def is_for_training(text: str) -> bool:
    """Say if a document belongs to the half that the shipped model was trained on; copies share their half."""
    return short_digest(normalised(text), 1)[0] % 2 == 1


def generated_documents(domain: str, num_documents: int, *, seed: int, for_training: bool) -> Iterator[str]:
    """Yield distinct documents of a domain in `generated.GENERATORS`, all of one half."""
    rng = random.Random(f"{seed} {domain} {for_training}")
    seen: set[str] = set()
    while len(seen) < num_documents:
        text = generated.GENERATORS[domain](rng)
        key = normalised(text)
        if is_usable(text) and is_for_training(text) == for_training and key not in seen:
            seen.add(key)
            yield text


def _damaged(honest: list[str], counts: dict[str, int], seed: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(f"{seed} damage")
    for _ in range(counts["noise"]):
        yield "noise", generated.noise(rng)
    for _ in range(counts["boilerplate"]):
        yield "boilerplate", generated.boilerplate(rng)
    for text in rng.sample(honest, counts["duplicate"]):
        yield "duplicate", generated.near_copy(text, rng)


def _write(path: Path, documents: list[tuple[str, str]], *, prefix: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with pa.CompressedOutputStream(str(temporary), "zstd") as stream:
        for row, (domain, text) in enumerate(documents):
            record = {"id": f"{prefix}-{row:05d}", "text": text, "domain": domain}
            stream.write(json.dumps(record).encode() + b"\n")
    temporary.replace(path)
