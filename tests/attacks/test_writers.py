"""Whatever writes a file is known here, with why no secret of the user's passes it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import direct_anneal

SOURCE = Path(direct_anneal.__file__).parent
NAMES = {"write_text", "write_bytes", "writelines", "write_table", "ParquetWriter", "new_stream", "safe_dump"}
NAMES |= {"save", "save_file", "save_pretrained", "tofile", "add_text"}

# What is promised is kept by `io.redaction`; secrets in documents and in the names of their files are not looked for.
REDACTS = "it is redacted there"
RECORDED = "it is made of records, which are redacted"
DOCUMENTS = "documents and the names of their files, as they are"
NUMBERS = "numbers, and names of a model's or a trainer's own"
WRITERS = {
    "cli/__init__.py": NUMBERS,
    "cli/console.py": REDACTS,
    "cli/init.py": NUMBERS,
    "compare/evidence.py": NUMBERS,
    "compare/presets.py": RECORDED,
    "compare/report.py": RECORDED,
    "config/options.py": REDACTS,
    "convert/pipeline.py": NUMBERS,
    "curvature/storage.py": NUMBERS,
    "data/formats/datatrove.py": DOCUMENTS,
    "data/formats/json_lines.py": DOCUMENTS,
    "data/formats/megatron.py": DOCUMENTS,
    "data/formats/memmap.py": DOCUMENTS,
    "data/formats/parquet.py": DOCUMENTS,
    "data/formats/saved_dataset.py": DOCUMENTS,
    "data/formats/table_server.py": DOCUMENTS,
    "data/formats/tables.py": DOCUMENTS,
    "data/issues.py": DOCUMENTS,
    "data/remote.py": DOCUMENTS,
    "data/token_cache.py": REDACTS,
    "distill/histogram.py": DOCUMENTS,
    "distill/parts.py": DOCUMENTS,
    "distill/scorer.py": NUMBERS,
    "doctor.py": NUMBERS,
    "evaluate/benchmarks.py": DOCUMENTS,
    "evaluate/execution.py": DOCUMENTS,
    "export/formats/hugging_face.py": DOCUMENTS,
    "export/formats/mds.py": DOCUMENTS,
    "export/formats/records.py": DOCUMENTS,
    "export/formats/token_files.py": DOCUMENTS,
    "export/inputs.py": DOCUMENTS,
    "export/pipeline.py": REDACTS,
    "export/retokenised.py": DOCUMENTS,
    "export/weights.py": DOCUMENTS,
    "features/columns.py": NUMBERS,
    "features/documents.py": DOCUMENTS,
    "features/storage.py": NUMBERS,
    "features/store.py": NUMBERS,
    "io/records.py": REDACTS,
    "path/kept.py": NUMBERS,
    "path/pipeline.py": NUMBERS,
    "report/page.py": RECORDED,
    "run/run_dir.py": RECORDED,
    "tracking.py": REDACTS,
    "train/pipeline.py": NUMBERS,
}


def writers() -> Iterator[str]:
    """Yield the modules that write files by other means than `write_record`, which redacts."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _writes(node):
                yield path.relative_to(SOURCE).as_posix()
                break


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "open":
        modes = [value.value for value in call.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        return any(set(mode) & set("wax") and len(mode) <= 3 for mode in modes)
    return name in NAMES


def test_every_writer_is_known() -> None:
    found = set(writers())
    assert not found - WRITERS.keys(), "say here why no secret passes these"
    assert not WRITERS.keys() - found, "these write nothing any more"
    for module, why in WRITERS.items():
        if why == REDACTS:
            assert "redacted(" in (SOURCE / module).read_text(encoding="utf-8"), module
