"""Estimates on disk: one safetensors file, whole or not there, that says what it was computed from.

{all,even,odd}.eigenvalues   float64 (r,)       all validation samples, and the halves where there are any
{all,even,odd}.eigenvectors  float64 (R, r)
{all,even,odd}.num_samples   int64 (1,)
metadata                     record: JSON of the fingerprint, and of the arrays' sha256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from direct_anneal.curvature.cutoff import energy_share
from direct_anneal.curvature.estimators import Estimate
from direct_anneal.curvature.spectrum import Spectrum
from direct_anneal.io.atomic import replacing
from direct_anneal.io.records import opened, parse

_PARTS = ("all", "even", "odd")


def save_estimate(path: Path, estimate: Estimate, fingerprint: Mapping[str, Any]) -> None:
    """Write an estimate with what it depends on, as plain JSON values; where stiff ends is not kept.

    Raises:
        OSError: the disk is full, or worse; what was at `path` stays.
    """
    arrays = {}
    for part, spectrum in zip(_PARTS, (estimate.whole, *(estimate.halves or ())), strict=False):
        arrays[f"{part}.eigenvalues"] = spectrum.eigenvalues
        arrays[f"{part}.eigenvectors"] = np.ascontiguousarray(spectrum.eigenvectors)
        arrays[f"{part}.num_samples"] = np.array([spectrum.num_validation])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(save(arrays, {"record": _record(arrays, fingerprint)}))


def load_estimate(path: Path, fingerprint: Mapping[str, Any]) -> Estimate | None:
    """Read an estimate back, to the last bit; None where there is none of this fingerprint, or it is damaged."""
    try:
        record, arrays = _read(path)
    except (OSError, ValueError):
        return None
    if record != _record(arrays, fingerprint):
        return None
    spectra = []
    for part in _PARTS:
        if f"{part}.eigenvalues" in arrays:
            eigenvalues = arrays[f"{part}.eigenvalues"]
            count = int(arrays[f"{part}.num_samples"][0])
            spectra.append(Spectrum(eigenvalues, arrays[f"{part}.eigenvectors"], energy_share()(eigenvalues), count))
    whole, *halves = spectra
    return Estimate(whole, (halves[0], halves[1]) if halves else None)


def check_estimate(path: Path) -> str | None:
    """Say what is wrong with a file of estimates, of whichever fingerprint; None where nothing is."""
    try:
        record, arrays = _read(path)
        fingerprint = parse(record)["fingerprint"]
        return None if record == _record(arrays, fingerprint) else "was changed since it was written"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"is damaged ({' '.join(str(error).split())[:120]})"


def _read(path: Path) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return the record and the arrays, which have the shapes that they must have.

    Raises:
        OSError: the file is not there, or cannot be read.
        ValueError: it is no such file.
    """
    with opened(path):  # a FIFO in its place would be waited for
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"it is no safetensors file: {error}") from error
    if "record" not in metadata:
        raise ValueError("it has no record")
    parts = _PARTS if "even.eigenvalues" in arrays else _PARTS[:1]
    if arrays.keys() != {f"{part}.{kind}" for part in parts for kind in ("eigenvalues", "eigenvectors", "num_samples")}:
        raise ValueError("it holds other arrays")
    for part in parts:
        values, vectors, count = (arrays[f"{part}.{kind}"] for kind in ("eigenvalues", "eigenvectors", "num_samples"))
        kinds = values.dtype == vectors.dtype == np.float64 and count.dtype == np.int64
        if not kinds or values.ndim != 1 or vectors.shape[1:] != values.shape or count.shape != (1,):
            raise ValueError(f"its {part} spectrum has arrays of other shapes or types")
    return metadata["record"], arrays


def _record(arrays: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(arrays[name]).tobytes())
    return json.dumps({"fingerprint": dict(fingerprint), "sha256": digest.hexdigest()}, sort_keys=True)
