"""Scoring with weights of 8 bits: against weights that are rounded by hand, alone and beside others, here and there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.probes import require_language_model
from direct_anneal.path import PathConfig, PathLosses
from direct_anneal.path.rounded import Rounded, round_weights
from direct_anneal.path.walk import put_tensors
from path.path_runs import corpora, descended
from selection.tiny import CONTEXT


def by_hand(weight: torch.Tensor) -> torch.Tensor:
    """Rows rounded to 255 levels, one number at a time."""
    rows = []
    for row in weight.double().tolist():
        step = max(map(abs, row)) / 127 or 1.0
        rows.append([step * round(value / step) for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=30, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def test_layers_are_rounded_row_by_row_and_a_tied_head_stays() -> None:
    """GPT-2 is the hard case: its Conv1D holds its weights the other way round."""
    model, ids = gpt2(), torch.arange(12)[None]
    exact = gpt2().double()
    with torch.no_grad():
        for layer in (*exact.transformer.h[0].attn.children(), *exact.transformer.h[0].mlp.children()):
            if hasattr(layer, "weight"):
                layer.weight.copy_(by_hand(layer.weight.T).T)
        round_weights(model)
        assert sum(isinstance(module, Rounded) for module in model.modules()) == 4
        assert model.lm_head.weight is model.transformer.wte.weight
        torch.testing.assert_close(model(ids).logits.double(), exact(ids).logits, rtol=1e-4, atol=1e-5)


def test_other_weights_can_be_put_into_it(checkpoint: Path) -> None:
    model, other = (Checkpoint(str(checkpoint)).load_model("cpu", "float32") for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    names = dict(other.named_parameters())
    round_weights(model)
    put_tensors(names.__getitem__, model)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, round_weights(other)(ids).logits)


def test_a_document_is_read_alike_alone_and_beside_others(checkpoint: Path) -> None:
    loaded = Checkpoint(str(checkpoint))
    rounded = round_weights(loaded.load_model("cpu", "float32"))
    require_language_model(rounded, vocab_size=loaded.vocab_size, window=CONTEXT, name="rounded")


def test_rows_of_zeros_stay_zeros() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.zero_()
        assert Rounded(layer)(torch.ones(1, 3)).tolist() == [layer.bias.tolist()]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    return corpora(tmp_path_factory.mktemp("corpora"))


def test_a_path_is_walked_in_float_and_scored_rounded(
    checkpoint: Path, given: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"learning_rates": (1e-2,)}
    found: dict[str, PathLosses] = {
        weights: descended(checkpoint, tmp_path / weights, *given, scored_weights=weights, **options)
        for weights in ("float", "int8")
    }
    ends = [load_file(tmp_path / weights / "work/end-whole.safetensors") for weights in found]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert (found["int8"].start != found["float"].start).any()
    np.testing.assert_allclose(found["int8"].start, found["float"].start, rtol=1e-2)
    np.testing.assert_allclose(found["int8"].drops, found["float"].drops, atol=3e-2)  # of drops of some tenths
    assert np.corrcoef(found["int8"].drops[:, 0], found["float"].drops[:, 0])[0, 1] > 0.99


def test_slopes_take_gradients_and_are_refused() -> None:
    with pytest.raises(InputError, match="scored_weights must be float with num_restrained, which takes gradients"):
        PathConfig(num_restrained=2, scored_weights="int8")
