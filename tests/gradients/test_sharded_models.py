"""A model spread over two processes (FSDP) has the sketches that it has in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed as dist

from direct_anneal.gradients import GradientSketcher
from gradients.sharded_runs import NUM_PROCESSES, SKETCH_SIZE, Odd, batch, sketched_in_parts
from gradients.tiny_models import FAMILIES
from selection.tiny import start

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch came without gloo: no model is sharded")

WAIT_SECONDS = 300


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of every process."""
    directory = tmp_path_factory.mktemp("sharded")
    processes = [start(sketched_in_parts, rank, directory) for rank in range(NUM_PROCESSES)]
    for process in processes:
        process.join(WAIT_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(NUM_PROCESSES)]


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gpt2"])
def test_sketches_are_those_of_one_process(results: list[dict[str, Any]], family: str) -> None:
    """To the bit: gathered weights are the same numbers, and nothing else passes between processes."""
    sketcher = GradientSketcher(FAMILIES[family](), SKETCH_SIZE, seed=3)
    for rank, result in enumerate(results):
        for name, seed in (("own", rank), ("same", 7)):
            expected, found = sketcher.sketch(*batch(seed)), result[family][name]
            assert torch.equal(found.values, expected.values)
            assert torch.equal(found.losses, expected.losses)
            assert torch.equal(found.num_tokens, expected.num_tokens)
        assert result[family]["share"] < 0.6, "each must hold a part alone"
        assert result[family]["slow"] == ()
        assert result[family]["as it came"]


def test_the_check_sees_the_gradients_that_one_process_sees(results: list[dict[str, Any]]) -> None:
    sketcher = GradientSketcher(FAMILIES["llama"](), SKETCH_SIZE, seed=3)
    sketcher.sketch(*batch(0))
    expected = {way.name: way.squared_norm for way in sketcher.describe().ways}
    for result in results:
        # The mean over processes of the same number, in float32.
        assert {way.name: way.squared_norm for way in result["llama"]["coverage"].ways} == pytest.approx(
            expected, rel=1e-5
        )


def test_what_has_no_fast_path_is_refused_and_can_be_left_out(results: list[dict[str, Any]]) -> None:
    expected = GradientSketcher(Odd(FAMILIES["llama"]()), SKETCH_SIZE, parameters=["model.*"]).sketch(*batch(0)).values
    for result in results:
        assert "needs a fast path, but 1 have none (scale): leave them out" in result["refused"]
        assert torch.equal(result["some"], expected)
