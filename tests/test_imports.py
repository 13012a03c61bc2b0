"""Imports point one way (read from the source, because importing any module runs the package's face first)."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import direct_anneal

ROOT = Path(direct_anneal.__file__).parent

# From the bottom up: a module may import from its own layer and from those below.
LAYERS = (
    {"errors", "interrupts", "io", "notebook", "progress", "tracking"},
    {"config"},
    {"model", "gradients", "solver"},
    {"data", "features", "curvature"},
    {"baselines", "distributed"},
    {"train"},
    {"path"},
    {"objectives"},
    {"run"},
    {"selection", "report", "demo", "evaluate", "doctor", "distill"},
    {"compare", "export", "convert"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {part: height for height, parts in enumerate(LAYERS) for part in parts}

CORE = {"gradients", "curvature", "solver", "features", "data", "path"}
# fsspec comes with torch, huggingface_hub with transformers.
CORE_NEEDS = {"torch", "numpy", "scipy", "pyarrow", "safetensors", "transformers", "fsspec", "huggingface_hub"}
# Of what comes with transformers: where people, files for people, or the hub are dealt with.
ALSO = {
    "io": {"yaml", "scipy", "threadpoolctl"},
    "model": {"huggingface_hub"},
    "data": {"huggingface_hub"},
    "cli": {"yaml", "rich", "shtab"},
    "doctor": {"packaging"},
    "report": {"rich", "jinja2", "markupsafe", "matplotlib"},
    "progress": {"rich"},
    "demo": {"rich"},
    "distributed": {"ray"},
    "baselines": {"sklearn"},
    "evaluate": {"yaml", "lm_eval"},
    "export": {"yaml", "huggingface_hub"},
    "compare": {"yaml", "rich", "matplotlib", "markupsafe"},
}

MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def _imported(path: Path) -> set[str]:
    """Dotted names of every import in a file, inside functions too; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which layer it reaches"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _part(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _parts_imported(path: Path) -> set[str]:
    ours = {name for name in _imported(path) if name.split(".")[0] == "direct_anneal"}
    assert all("." in name for name in ours), f"{path} imports the face of the package"
    return {name.split(".")[1] for name in ours}


def _libraries(path: Path) -> set[str]:
    roots = {name.split(".")[0] for name in _imported(path)}
    return roots - set(sys.stdlib_module_names) - {"direct_anneal"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestEveryModule:
    def test_has_a_layer_and_imports_none_above_it(self, path: Path) -> None:
        assert _part(path) in LAYER_OF
        for part in _parts_imported(path):
            assert LAYER_OF[part] <= LAYER_OF[_part(path)], f"{_part(path)} imports {part}"

    def test_imports_the_libraries_of_its_place(self, path: Path) -> None:
        assert _libraries(path) <= CORE_NEEDS | ALSO.get(_part(path), set())

    def test_is_named_for_what_it_holds(self, path: Path) -> None:
        assert path.stem not in {"utils", "util", "helpers", "misc", "common"}


def test_nobody_imports_the_command_line_but_the_script() -> None:
    assert {_part(path) for path in MODULES if "cli" in _parts_imported(path)} <= {"__main__", "cli"}


def test_no_cycle_between_packages() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph.setdefault(_part(path), set()).update(_parts_imported(path) - {_part(path)})
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


@pytest.mark.parametrize(
    "place",
    [
        "solver",
        "curvature/holdout.py",
        "curvature/cutoff.py",
        "curvature/estimators.py",
        "curvature/spectrum.py",
        "curvature/storage.py",
        "data",
        "features/verification.py",
        "features/store.py",
        "features/load.py",
        "features/documents.py",
        "features/storage.py",
        "features/columns.py",
    ],
)
def test_arrays_are_enough(place: str) -> None:
    below = [path for path in MODULES if path.relative_to(ROOT).as_posix().startswith(place)]
    assert below
    for path in below:
        assert not _libraries(path) & {"torch", "transformers"}
        # Nor by way of ours: these packages have modules that do.
        assert not _parts_imported(path) & {"gradients", "model", "selection"}


def test_the_core_needs_no_more_than_a_bare_node_has() -> None:
    assert set().union(*(_libraries(path) for path in MODULES if _part(path) in CORE)) <= CORE_NEEDS


def test_the_core_draws_nothing() -> None:
    """The command line asks for reports; what computes a choice knows of none, nor of what draws."""
    for path in MODULES:
        if _part(path) not in {"cli", "compare", "demo", "report"}:
            assert "report" not in _parts_imported(path), path
            assert not _libraries(path) & {"matplotlib", "jinja2"}, path


def test_readers_of_a_run_do_not_know_how_it_was_made() -> None:
    makers = {"selection", "objectives", "gradients", "curvature", "solver", "features", "path", "model"}
    for path in MODULES:
        if _part(path) in {"report", "export"}:
            assert not _parts_imported(path) & makers, path


def test_only_the_rooms_of_a_run_read_its_files() -> None:
    """Elsewhere their names serve to see whether they are there, never to read them."""
    names = {"MANIFEST", "EVIDENCE", "FRONTIER", "COVERAGE", "OPTIONS_FILE"}
    files = {"manifest.json", "selection.parquet", "frontier.parquet", "coverage.json", "options.json"}
    readers = {"read_record", "read_sealed", "read_content", "read_table", "read_metadata", "ParquetFile", "loads"}
    readers |= {"load", "open", "read_text", "read_bytes"}
    found = []
    for path in MODULES:
        if _part(path) == "run":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in readers:
                words = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
                texts = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                if words & names or texts & files:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_what_is_not_predicted_is_marked_in_one_place() -> None:
    """Windows, padding and labels come from model/batching.py alone; files for transformers' Trainer have its mark."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.UnaryOp) and ast.unparse(node) == "-100"
    }
    assert found == {"model/batching.py", "export/formats/hugging_face.py"}


def test_the_face_offers_what_it_lists() -> None:
    for name in direct_anneal.__all__:
        assert getattr(direct_anneal, name).__module__.startswith("direct_anneal.")
