"""Agreement of GPU and processor: sketches, a whole selection, annealing, evaluation.

B samples, R sketch size.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from direct_anneal.evaluate import evaluate
from direct_anneal.features.batching import Window, found_batch_tokens, sketched
from direct_anneal.gradients import GradientSketcher, ProjectionName
from direct_anneal.selection import select
from gradients.tiny_models import FAMILIES, V, gap, padded, samples
from selection.tiny import SKETCH_SIZE, documents, evidence, manifest, write_jsonl
from train.annealing_runs import annealed, write_data

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible to torch")

R = 48
# Both compute in float32 and add up in another order; a wrong formula shows at 1e-2.
ROUNDING = 1e-4


@pytest.mark.parametrize("projection", ["two-sided", "gaussian"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sketches_are_those_of_the_processor(family: str, projection: ProjectionName) -> None:
    model, batch = FAMILIES[family](), padded(samples(12, 7, 2, 9))
    here = GradientSketcher(copy.deepcopy(model), R, projection).sketch(*batch)
    there = GradientSketcher(model.cuda(), R, projection).sketch(*batch)
    assert gap(there.values.cpu(), here.values) < ROUNDING
    torch.testing.assert_close(there.losses.cpu(), here.losses, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(there.norms.cpu(), here.norms, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16_is_close(family: str) -> None:
    model, batch = FAMILIES[family]().bfloat16(), padded(samples(12, 7, 2, 9))
    here = GradientSketcher(copy.deepcopy(model).float(), R).sketch(*batch)
    there = GradientSketcher(model.cuda(), R).sketch(*batch)
    # As on the processor: each of some ten operations in a row rounds to 2⁻⁹.
    assert gap(there.values.cpu(), here.values) < 0.1


def test_of_the_batch_that_is_found_65536_tokens_fit() -> None:
    sketcher = GradientSketcher(FAMILIES["llama"]().cuda(), R)
    longest = np.arange(32, dtype=np.int64) % V
    tokens = found_batch_tokens(sketcher, longest)
    assert tokens & (tokens - 1) == 0
    count = min(tokens, 1 << 16) // 32
    assert sketched(sketcher, [Window(0, longest)] * count).values.shape == (count, R)


def _selected(checkpoint: Path, directory: Path, **options: Any) -> Path:
    """A run of `select` over sixty documents below `directory`."""
    directory.mkdir(exist_ok=True)
    pool = write_jsonl(directory / "pool.jsonl", documents(60, seed=2, prefix="p"))
    validation = write_jsonl(directory / "validation.jsonl", documents(24, seed=3, domains=("prose", "code")))
    given = {"model": checkpoint, "pool": [pool], "validation": [validation], "num_samples": 20, "report": False}
    name = "-".join(str(value) for value in options.values())
    out = directory / name
    select(**given, out=out, sketch_size=SKETCH_SIZE, **options)
    return out


@pytest.mark.parametrize("curvature", ["empirical-fisher", "mc-fisher", "ggn", "hessian"])
def test_a_selection_is_the_processors(checkpoint: Path, tmp_path: Path, curvature: str) -> None:
    runs = [_selected(checkpoint, tmp_path, curvature=curvature, device=device) for device in ("cpu", "cuda")]
    here, there = (evidence(run).to_pandas().set_index("id") for run in runs)
    np.testing.assert_allclose(there["loss"], here["loss"], rtol=ROUNDING)
    # Two documents of nearly the same worth may change places.
    assert (here["selected"] != there["selected"]).sum() <= 2
    assert manifest(runs[0])["spectrum"]["num_stiff"] == manifest(runs[1])["spectrum"]["num_stiff"]


def test_a_selection_in_bfloat16_comes_to_an_end(checkpoint: Path, tmp_path: Path) -> None:
    run = _selected(checkpoint, tmp_path, device="cuda", dtype="bfloat16")
    assert sum(evidence(run)["selected"].to_pylist()) == 20


def test_annealing_goes_as_on_the_processor(checkpoint: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.jsonl")
    options: dict[str, Any] = {"keep_optimizer_state": True}
    here = annealed(checkpoint, data, tmp_path / "cpu", **options)
    there = annealed(checkpoint, data, tmp_path / "cuda", device="cuda", **options)
    half = annealed(checkpoint, data, tmp_path / "half", device="cuda", dtype="bfloat16", **options)
    losses = [np.array([loss for _, loss, _ in record["losses"]]) for record in (here, there, half)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[0], rtol=0.02)
    # Adam's moments, saved on the GPU, are read on either.
    again = annealed(tmp_path / "half", data, tmp_path / "again", device="cuda", optimizer_state="kept")
    assert again["losses"][0][1] < here["losses"][0][1]
    annealed(tmp_path / "half", data, tmp_path / "back", optimizer_state="kept")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", ROUNDING), ("bfloat16", 0.02)])
def test_bits_per_byte_are_the_processors(checkpoint: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    data = write_data(tmp_path / "data.jsonl")
    here = evaluate(model=checkpoint, data=data, out=tmp_path / "cpu")
    there = evaluate(model=checkpoint, data=data, out=tmp_path / "cuda", device="cuda", dtype=dtype)
    assert there["mean_bits_per_byte"] == pytest.approx(here["mean_bits_per_byte"], rel=tolerance)
