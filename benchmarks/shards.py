"""Cost of a shard to whoever hands it out, writes it and checks it, beside the sketches: processor time and bytes.

Those are the constants of docs/scaling.md. 1,024 documents of 1,000 tokens, R = 2048.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from direct_anneal.features import Documents, FeatureStore, ShardRows

ROWS, TOKENS, VOCABULARY = 1024, 1000, 32_000


def processor_seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` calls, and of all threads."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return float(np.median(taken))


def main() -> None:
    """Print a line for each constant."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sketch-size", type=int, default=2048, metavar="R")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    index = pa.table(
        {
            "id": pa.array([f"<urn:uuid:{rng.bytes(16).hex()}>" for _ in range(ROWS)], pa.large_string()),
            "source": pa.array(["pool/part-00042.jsonl.zst"] * ROWS).dictionary_encode(),
            "row": pa.array(np.arange(ROWS)),
            "domain": pa.array([f"domain-{row % 7}" for row in range(ROWS)]).dictionary_encode(),
            "num_tokens": pa.array(np.full(ROWS, TOKENS)),
        }
    )
    # Words are as frequent as words are, so that compression finds what it would find in text.
    tokens = np.minimum(rng.zipf(1.2, (ROWS, TOKENS)), VOCABULARY - 1)
    documents = Documents(index, list(tokens), np.zeros(ROWS, dtype=np.int64))
    units = rng.standard_normal((ROWS, options.sketch_size))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    rows = ShardRows(features=units.astype(np.float16), samples=index, losses=rng.random(ROWS), norms=rng.random(ROWS))
    handed = bytes(documents.to_bytes())
    with tempfile.TemporaryDirectory() as directory:
        store = FeatureStore(Path(directory), num_samples=ROWS, sketch_size=options.sketch_size, fingerprint={})
        store.write(0, rows)
        sizes = {path.suffix: path.stat().st_size for path in Path(directory).glob("features-*")}
        times = {
            "hand out": processor_seconds(documents.to_bytes, options.repeats),
            "take": processor_seconds(lambda: Documents.from_bytes(handed), options.repeats),
            "write": processor_seconds(lambda: store.write(0, rows), options.repeats),
            "check": processor_seconds(store.missing, options.repeats),
        }
    print(f"{ROWS} documents of {TOKENS} tokens, R = {options.sketch_size}")
    for name, seconds in times.items():
        print(f"{name}: {1e3 * seconds:.1f} ms of a processor a shard, {1e6 * seconds / ROWS:.1f} µs a document")
    print(f"handed out: {len(handed) / (ROWS * TOKENS):.2f} bytes a token")
    print(f"features: {sizes['.npy'] / ROWS:.0f} bytes a document, sidecar {sizes['.parquet'] / ROWS:.0f}")
    print(f"index in memory: {index.nbytes / ROWS:.0f} bytes a document")


if __name__ == "__main__":
    main()
