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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from direct_anneal.curvature.cutoff import energy_share
from direct_anneal.curvature.estimators import Estimate
from direct_anneal.curvature.spectrum import Spectrum
from direct_anneal.io.atomic import replacing

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
        with safe_open(path, framework="numpy") as file:
            record = (file.metadata() or {}).get("record")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (FileNotFoundError, SafetensorError):
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


def _record(arrays: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(arrays[name]).tobytes())
    return json.dumps({"fingerprint": dict(fingerprint), "sha256": digest.hexdigest()}, sort_keys=True)
