"""Checks of an installation: its libraries, its devices, and a computation with a known answer.

B sequences, R sketch size, N samples.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from packaging.requirements import Requirement

from direct_anneal.curvature import Spectrum
from direct_anneal.demo import demo_model_path
from direct_anneal.features import FeatureStore, verify
from direct_anneal.features.store import ShardRows
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.solver import Objective, SelectionProblem, solve

_NAME = "direct-anneal"
_LEAST_FREE_BYTES = 2**30
_SKETCH_SIZE = 256


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        value: what was found, for people.
        ok: it does its part.
        needed: without it nothing works.
    """

    name: str
    value: str
    ok: bool = True
    needed: bool = True


def examine(directory: Path) -> Iterator[Finding]:
    """Return versions, devices, free disk below `directory`, extras, and a self-test of some seconds, as they are
    found.
    """
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for requirement in _requirements(None):
        yield _version(requirement)
    yield Finding("processor", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    yield from _devices()
    free = shutil.disk_usage(directory).free
    enough = free >= _LEAST_FREE_BYTES
    yield Finding("disk", f"{free / 2**30:,.1f} GiB free" + ("" if enough else ", which is little"), enough, False)
    for extra in sorted(set(importlib.metadata.metadata(_NAME).get_all("Provides-Extra") or ()) - {"dev"}):
        missing = [requirement.name for requirement in _requirements(extra) if not _version(requirement).ok]
        remedy = f"lacks {', '.join(missing)}: pip install '{_NAME}[{extra}]'"
        yield Finding(f"extra {extra}", remedy if missing else "complete", not missing, False)
    yield from self_test()


def self_test() -> Iterator[Finding]:
    """Return gradients against autograd, a selection against its promises, a store against its own check; on a small
    model.
    """
    yield _tried("gradients", lambda: _gradients("cpu"))
    if torch.cuda.is_available():
        yield _tried("gradients on cuda", lambda: _gradients("cuda"))
    yield _tried("selection", _selection)
    yield _tried("feature store", _store)


def _tried(name: str, test: Callable[[], str]) -> Finding:
    try:
        return Finding(f"self-test: {name}", test())
    except Exception as error:  # whatever it is that an installation does wrong, the others are told as well
        return Finding(f"self-test: {name}", f"{type(error).__name__}: {' '.join(str(error).split())}", ok=False)


def _gradients(device: str) -> str:
    """Compare fast sketches of two sequences with the same projection of autograd's gradients."""
    checkpoint = Checkpoint(str(demo_model_path()))
    model = checkpoint.load_model(device, "float32")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(checkpoint.vocab_size, (2, 48), generator=generator).to(device)  # (B, T)
    sketcher = GradientSketcher(model, _SKETCH_SIZE)
    fast = sketcher.sketch(ids).values
    projection = sketcher.projection
    projection.begin(len(ids))
    for row, sequence in enumerate(ids):
        model.zero_grad()
        model(input_ids=sequence[None], labels=sequence[None]).loss.backward()
        for name, parameter in sketcher.parameters.items():
            gradient = parameter.grad
            assert gradient is not None
            projection.full(name, gradient[None], row)
    exact = projection.finish()
    error = float((fast - exact).norm() / exact.norm())
    # Of float32 sums in another order; a wrong formula is off by 1e-2 and more.
    assert error < 1e-3, f"sketches must be within 1e-3 of autograd's, but are off by {error:.1e}"
    return f"within {error:.0e} of autograd's"


def _selection() -> str:
    """Return every objective on drawn gradients: size, budget and bound are kept."""
    rng = np.random.default_rng(0)
    pool, validation = rng.normal(size=(200, 32)), rng.normal(size=(40, 32)) * np.geomspace(4, 0.1, 32)
    spectrum = Spectrum.from_sketches(validation)
    cost = spectrum.stiff_cost(pool)
    mean = validation.mean(axis=0)
    cases: tuple[tuple[Objective, Any], ...] = (("energy", None), ("descent", mean), ("matching", 40 * mean))
    for objective, target in cases:
        selection = solve(
            SelectionProblem(
                pool, cost, num_selected=40, budget=0.7 * cost.mean() * 40, objective=objective, target=target
            )
        )
        assert len(set(selection.indices.tolist())) == 40, "a selection must hold as many samples as are asked for"
        assert selection.budget_used <= selection.budget * (1 + 1e-12), "a selection must keep its budget"
        assert selection.objective <= selection.bound * (1 + 1e-9), "a bound must bound"
    return "size, budget and bound are kept"


def _store() -> str:
    """Write, read and verify a store; find a flipped bit."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(32, 16))
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    samples = pa.table(
        {
            "id": [str(row) for row in range(32)],
            "source": ["none"] * 32,
            "row": pa.array(range(32), pa.int64()),
            "domain": ["none"] * 32,
            "num_tokens": pa.array([8] * 32, pa.int64()),
        }
    )
    with TemporaryDirectory(prefix="direct-anneal-") as place:
        directory = Path(place) / "store"
        store = FeatureStore(directory, num_samples=32, sketch_size=16, fingerprint={"test": "self"})
        store.write(0, ShardRows(features=units, samples=samples, losses=np.ones(32), norms=np.ones(32)))
        assert not list(verify(directory)), "a store as it was written must be whole"
        assert np.array_equal(np.concatenate(store.features()), units), "what is read must be what was written"
        array = directory / "features-00000.npy"
        content = bytearray(array.read_bytes())
        content[-1] ^= 1
        array.write_bytes(content)
        assert list(verify(directory)), "a flipped bit must be found"
    return "written, read, verified; a flipped bit is found"


def _devices() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield Finding(f"cuda:{number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("cuda", "no device: everything runs on the processor", ok=False, needed=False)


def _requirements(extra: str | None) -> list[Requirement]:
    """List the requirements of the core or of an extra, following extras that name others."""
    found = []
    for text in importlib.metadata.requires(_NAME) or ():
        requirement = Requirement(text)
        of = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        if (of[1] if of else None) != extra:
            continue
        if requirement.name == _NAME:
            found += [each for name in sorted(requirement.extras) for each in _requirements(name)]
        else:
            found.append(requirement)
    return found


def _version(requirement: Requirement) -> Finding:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, f"is not installed, {requirement.specifier} is needed", ok=False)
    fits = requirement.specifier.contains(version, prereleases=True)
    return Finding(requirement.name, version if fits else f"{version}, but {requirement.specifier} is needed", fits)
