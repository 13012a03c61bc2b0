"""Runs of `anneal` against a loop of our own, killed, resumed, and refused."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from direct_anneal.errors import InputError
from direct_anneal.io.records import write_record
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.progress import Silent
from direct_anneal.train import PackedWindows, Part
from direct_anneal.train.schedules import rate_factor
from selection.tiny import command_line, files_below, start
from train.annealing_runs import BATCH, MODEL_FILES, WINDOW, annealed, corpus_of, model_bytes, write_data

pytest.importorskip("accelerate", reason="annealing needs the extra 'anneal'")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module")
def stable(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after a short stable phase, with its optimizer's state. To be read, not changed."""
    out = tmp_path_factory.mktemp("stable") / "model"
    annealed(checkpoint, data, out, schedule="constant", seed=9, keep_optimizer_state=True)
    return out


def by_hand(model_directory: Path, windows: PackedWindows, *, schedule: Any, steps: int, kept: bool) -> dict[str, Any]:
    """AdamW on the same windows: decay on matrices alone, gradients clipped at 1, the rate by the schedule."""
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).train()
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    others = [p for name, p in model.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
    )
    if kept:
        state = torch.load(model_directory / "optimizer.pt", weights_only=True)["state"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for step in range(steps):
        ids = torch.stack([windows[step * BATCH + row]["input_ids"] for row in range(BATCH)])
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * rate_factor(schedule, step, steps)
        logits = model(input_ids=ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@pytest.mark.parametrize("schedule", ["linear", "1-sqrt", "cosine", "constant"])
@pytest.mark.parametrize("kept", [False, True])
def test_is_what_a_plain_loop_does(stable: Path, data: Path, tmp_path: Path, schedule: str, kept: bool) -> None:
    state = "kept" if kept else "fresh"
    record = annealed(stable, data, tmp_path / "out", schedule=schedule, optimizer_state=state)
    windows = PackedWindows(
        [Part(corpus_of(stable, data, tmp_path / "corpus"))],
        num_windows=12 * BATCH,
        window=WINDOW,
        separator=Checkpoint(str(stable)).separator,
        seed=0,
    )
    expected = by_hand(stable, windows, schedule=schedule, steps=record["num_steps"], kept=kept)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    for name, value in expected.items():
        # Float32 rounding of another order of sums, amplified by Adam's division over 12 steps of size 0.01.
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4)


def test_the_rate_ends_low_and_the_loss_falls(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    record = annealed(checkpoint, data, tmp_path / "out", epochs=12)
    first, last = record["losses"][0], record["losses"][-1]
    assert last[1] < first[1]
    assert last[2] < 0.1 * first[2]


@pytest.mark.parametrize(("share", "mixed"), [(0.0, 1.0), (0.5, 2.0)])
def test_epochs_count_the_chosen_documents_alone(
    checkpoint: Path, data: Path, tmp_path: Path, share: float, mixed: float
) -> None:
    options = {"mix": [write_data(tmp_path / "mix.jsonl", seed=8)], "mix_share": share} if share else {}
    record = annealed(checkpoint, data, tmp_path / "out", epochs=3, **options)
    steps = mixed * 3 * record["epoch_tokens"] / (BATCH * WINDOW)
    assert record["num_steps"] == round(steps)


def test_accumulated_steps_are_the_same_steps(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    annealed(checkpoint, data, tmp_path / "whole")
    annealed(checkpoint, data, tmp_path / "halves", micro_batch_size=BATCH // 2)
    whole, halves = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()
        for name in ("whole", "halves")
    )
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, atol=2e-5, rtol=1e-4)  # see above


def test_more_devices_in_sight_change_nothing(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = annealed(checkpoint, data, tmp_path / "alone")
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 2))
    beside = annealed(checkpoint, data, tmp_path / "beside")
    assert beside["losses"] == alone["losses"]
    assert model_bytes(tmp_path / "beside") == model_bytes(tmp_path / "alone")


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is, also where the tests were started in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class InterruptingAt(Silent):
    """Presses Ctrl-C during a step of annealing, counted from 1."""

    def __init__(self, step: int) -> None:
        self._step = step

    @contextmanager
    def stage(self, name: str, *_: Any, **__: Any) -> Iterator[Callable[[int], object]]:
        steps = itertools.count(1)
        reached = (lambda _: next(steps) == self._step) if name == "Annealing" else lambda _: False
        yield lambda tokens: os.kill(os.getpid(), signal.SIGINT) if reached(tokens) else None


class TestAgain:
    def test_the_same_run_gives_the_same_bytes(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            annealed(checkpoint, data, tmp_path / name, keep_optimizer_state=True)
        assert model_bytes(tmp_path / "one") == model_bytes(tmp_path / "two")
        assert set(model_bytes(tmp_path / "one")) == set(MODEL_FILES)

    def test_a_finished_run_is_left_as_it_is(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        record = annealed(checkpoint, data, tmp_path / "out")
        before = files_below(tmp_path / "out")
        assert annealed(checkpoint, data, tmp_path / "out") == json.loads(json.dumps(record))
        assert files_below(tmp_path / "out") == before

    def test_another_run_is_refused_or_replaces_it(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        annealed(checkpoint, data, tmp_path / "out")
        with pytest.raises(InputError, match=r"another run \(seed differs\).*overwrite"):
            annealed(checkpoint, data, tmp_path / "out", seed=1)
        annealed(checkpoint, data, tmp_path / "out", seed=1, overwrite=True)
        annealed(checkpoint, data, tmp_path / "fresh", seed=1)
        assert model_bytes(tmp_path / "out") == model_bytes(tmp_path / "fresh")

    def test_changed_documents_are_another_run(self, checkpoint: Path, tmp_path: Path) -> None:
        data = write_data(tmp_path / "own.jsonl")
        annealed(checkpoint, data, tmp_path / "out")
        write_data(data, count=41)
        with pytest.raises(InputError, match="sources differ"):
            annealed(checkpoint, data, tmp_path / "out")

    def test_killed_and_run_again_it_ends_with_the_same_bytes(
        self, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        """Killed for good after the second checkpoint, wherever it then is: in a step, or writing the next one."""
        options: dict[str, Any] = {
            "num_tokens": 400 * BATCH * WINDOW,
            "checkpoint_steps": 5,
            "keep_optimizer_state": True,
        }
        words = ["anneal", "--model", checkpoint, "--data", data, "--out", tmp_path / "killed", "--learning-rate", 0.01]
        words += ["--batch-size", BATCH, "--max-length", WINDOW, "--num-tokens", options["num_tokens"]]
        words += ["--checkpoint-steps", 5, "--keep-optimizer-state"]
        process = start(command_line, [str(word) for word in words], tmp_path / "log")
        wait_for(
            lambda: any((tmp_path / "killed").glob("unfinished/checkpoints/checkpoint-*0/whole")), process.is_alive
        )
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not (tmp_path / "killed" / "annealing.json").exists(), "it was killed too late to show anything"
        killed, unbroken = (annealed(checkpoint, data, tmp_path / name, **options) for name in ("killed", "unbroken"))
        assert model_bytes(tmp_path / "killed") == model_bytes(tmp_path / "unbroken")
        assert {**killed, "seconds": 0} == {**unbroken, "seconds": 0}
        assert not (tmp_path / "killed" / "unfinished").exists()

    @pytest.mark.usefixtures("heard")
    def test_interrupted_it_saves_its_step_and_ends_with_the_same_bytes(
        self, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        """No checkpoint would be due for long: what was done by Ctrl-C is kept nevertheless."""
        out = tmp_path / "stopped"
        with pytest.raises(KeyboardInterrupt):
            annealed(checkpoint, data, out, keep_optimizer_state=True, progress=InterruptingAt(5))
        assert [path.name for path in (out / "unfinished" / "checkpoints").iterdir()] == ["checkpoint-5"]
        for name in ("stopped", "unbroken"):
            annealed(checkpoint, data, tmp_path / name, keep_optimizer_state=True)
        assert model_bytes(out) == model_bytes(tmp_path / "unbroken")

    @pytest.mark.usefixtures("heard")
    @pytest.mark.parametrize("step", [5, 10, 11])
    def test_interrupted_between_entries_of_its_log_it_records_the_same_losses(
        self, checkpoint: Path, data: Path, tmp_path: Path, step: int
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            annealed(checkpoint, data, tmp_path / "stopped", progress=InterruptingAt(step))
        stopped, unbroken = (annealed(checkpoint, data, tmp_path / name) for name in ("stopped", "unbroken"))
        assert [step for step, *_ in unbroken["losses"]] == [10, 12]
        assert {**stopped, "seconds": 0} == {**unbroken, "seconds": 0}

    def test_what_a_kill_left_is_removed_by_the_same_command(
        self, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        """Killed right after its record, or while it wrote a file."""
        out = tmp_path / "out"
        annealed(checkpoint, data, out)
        wanted = files_below(out)
        (out / "unfinished" / "checkpoints").mkdir(parents=True)
        (out / "unfinished" / "checkpoints" / "weights").touch()
        for name in ("optimizer.pt", "annealing.json", "options.json"):
            (out / f"{name}.0123456789abcdef.tmp").touch()
        annealed(checkpoint, data, out)
        assert files_below(out) == wanted
        assert not (out / "unfinished").exists()

    def test_the_optimizers_state_is_not_there_afterwards(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        """A finished run without it is refused, or done again."""
        annealed(checkpoint, data, tmp_path / "out")
        with pytest.raises(InputError, match=r"^keep_optimizer_state must be given to the run that trains"):
            annealed(checkpoint, data, tmp_path / "out", keep_optimizer_state=True)
        assert not (tmp_path / "out" / "optimizer.pt").exists()
        annealed(checkpoint, data, tmp_path / "out", keep_optimizer_state=True, overwrite=True)
        annealed(checkpoint, data, tmp_path / "fresh", keep_optimizer_state=True)
        assert model_bytes(tmp_path / "out") == model_bytes(tmp_path / "fresh")

    def test_the_optimizers_state_of_a_replaced_run_goes(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        annealed(checkpoint, data, tmp_path / "out", keep_optimizer_state=True)
        annealed(checkpoint, data, tmp_path / "out", seed=1, overwrite=True)
        assert not (tmp_path / "out" / "optimizer.pt").exists()

    @pytest.mark.usefixtures("heard")
    def test_interrupted_in_its_last_step_it_is_finished(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        record = annealed(checkpoint, data, tmp_path / "out", progress=InterruptingAt(12))
        assert record["num_steps"] == 12
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_checkpoint_that_was_being_written_does_not_count(
        self, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped at the end, and the last checkpoint robbed of its mark and half of its weights."""
        last = stopped_at_the_end(checkpoint, data, tmp_path / "out", monkeypatch)
        (last / "whole").unlink()
        os.truncate(last / "model.safetensors", 1000)
        annealed(checkpoint, data, tmp_path / "out", checkpoint_steps=4)
        annealed(checkpoint, data, tmp_path / "unbroken")
        assert model_bytes(tmp_path / "out") == model_bytes(tmp_path / "unbroken")

    def test_a_checkpoint_with_a_flipped_bit_does_not_count(
        self, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In weights, moments, random states, the step's number or the digests themselves."""
        from direct_anneal.train.loop import _last_whole

        last = stopped_at_the_end(checkpoint, data, tmp_path / "out", monkeypatch)
        kept = {path: path.read_bytes() for path in last.iterdir()}
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "whole"} <= {path.name for path in kept}
        assert _last_whole(last.parent) == last
        for path, content in kept.items():
            shutil.copytree(last.parent, tmp_path / "copy")
            flipped = bytearray(content)
            flipped[len(content) // 2] ^= 16
            (tmp_path / "copy" / last.name / path.name).write_bytes(flipped)
            with pytest.warns(UserWarning, match="checkpoint-12 is damaged, the run goes on from before it"):
                assert _last_whole(tmp_path / "copy") == tmp_path / "copy" / "checkpoint-8"
            shutil.rmtree(tmp_path / "copy")


def stopped_at_the_end(checkpoint: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped while its record was to be written; its last checkpoint."""

    def stop(path: Path, record: dict[str, Any]) -> dict[str, Any]:
        if path.name == "annealing.json":
            raise KeyboardInterrupt
        return write_record(path, record)

    with monkeypatch.context() as patch:
        patch.setattr("direct_anneal.train.pipeline.write_record", stop)
        with pytest.raises(KeyboardInterrupt):
            annealed(checkpoint, data, out, checkpoint_steps=4)
    return out / "unfinished" / "checkpoints" / "checkpoint-12"


def wait_for(happened: Callable[[], bool], alive: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert alive(), "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


class TestRefuses:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"learning_rate": "1e-3"}, "learning_rate must be a number"),
            ({"learning_rate": 0.0}, "learning_rate must be above 0"),
            ({"epochs": 0}, "epochs must be above 0"),
            ({"epochs": 2, "num_tokens": 100}, "must be given once, by epochs or num_tokens, got both"),
            ({"micro_batch_size": 3}, "a divisor of batch_size 4"),
            ({"mix_share": 0.2}, "given together with mix"),
            ({"schedule": "step"}, "schedule must be linear, 1-sqrt"),
            ({"max_length": 100}, "the model's context of 64 tokens, got 100"),
            ({"warm_up_steps": 12}, "12 of 12 steps warm up"),
            ({"optimizer_state": "kept"}, "has none"),
            ({"device": "cuda"}, "torch sees none"),
        ],
    )
    def test_what_cannot_be(
        self, checkpoint: Path, data: Path, tmp_path: Path, options: dict[str, Any], says: str
    ) -> None:
        if options.get("device") == "cuda" and torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        with pytest.raises(InputError, match=says):
            annealed(checkpoint, data, tmp_path / "out", **options)

    def test_directories_of_others(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        mine = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
        with pytest.raises(InputError, match="holds other files"):
            annealed(checkpoint, data, mine, overwrite=True)

    def test_a_loss_that_is_no_number(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="lower learning_rate"):
            annealed(checkpoint, data, tmp_path / "out", learning_rate=9.9, clip=1e9, weight_decay=10.0, epochs=30)

    def test_a_loss_that_is_no_number_in_few_steps(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        """Fewer than there are between entries of the log."""
        model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
        weights = load_file(model / "model.safetensors")
        weights["model.norm.weight"].fill_(float("nan"))
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=r"the loss must stay finite, but was nan by step 3"):
            annealed(model, data, tmp_path / "out", num_tokens=3 * BATCH * WINDOW)
        assert not (tmp_path / "out" / "model.safetensors").exists()

    def test_a_last_step_that_goes_wrong(
        self, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its loss is finite, and the weights after it are not."""
        steps, whole = itertools.count(1), Trainer.training_step

        def broken(self: Trainer, model: torch.nn.Module, *args: Any, **options: Any) -> torch.Tensor:
            loss = whole(self, model, *args, **options)
            if next(steps) == 3:
                gradient = next(model.parameters()).grad
                assert gradient is not None
                gradient.fill_(float("nan"))
            return loss

        monkeypatch.setattr(Trainer, "training_step", broken)
        with pytest.raises(InputError, match=r"all weights must be finite, but model\.embed_tokens\.weight is NaN"):
            annealed(checkpoint, data, tmp_path / "out", num_tokens=3 * BATCH * WINDOW)
        assert not (tmp_path / "out" / "model.safetensors").exists()

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            ({"exp_avg": float("nan")}, "finite moments, but exp_avg of"),
            ({"exp_avg_sq": float("inf")}, "finite moments, but exp_avg_sq of"),
            ({"exp_avg_sq": -1.0}, "second moments of at least 0"),
            ({"exp_avg_sq": None}, "must hold exp_avg and exp_avg_sq and step"),
            ({"step": None}, "must hold exp_avg and exp_avg_sq and step"),
            ({"step": torch.tensor(float("nan"))}, "the number of steps, but .* is nan"),
            ({"exp_avg_sq": torch.ones(3)}, r"a state of shape \(3,\) where"),
        ],
    )
    def test_a_state_that_is_damaged(
        self, stable: Path, data: Path, tmp_path: Path, damage: dict[str, Any], says: str
    ) -> None:
        model = Path(shutil.copytree(stable, tmp_path / "model"))
        state = torch.load(model / "optimizer.pt", weights_only=True)
        for key, value in damage.items():
            if value is None:
                del state["state"][3][key]
            elif isinstance(value, float):
                state["state"][3][key].view(-1)[1] = value
            else:
                state["state"][3][key] = value
        torch.save(state, model / "optimizer.pt")
        with pytest.raises(InputError, match=says) as refusal:
            annealed(model, data, tmp_path / "out", optimizer_state="kept")
        assert "\n" not in str(refusal.value)
        assert "optimizer_state fresh" in str(refusal.value)

    @pytest.mark.parametrize("content", [b"junk", b"", b"\x80\x02}q\x00.", b"PK\x03\x04"])
    def test_a_file_that_is_no_state(self, checkpoint: Path, data: Path, tmp_path: Path, content: bytes) -> None:
        model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
        (model / "optimizer.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"optimizer\.pt must hold"):
            annealed(model, data, tmp_path / "out", optimizer_state="kept")

    @pytest.mark.parametrize("state", [{"state": {}, "param_groups": []}, {"model": 1}, [1]])
    def test_a_state_that_is_not_of_this_model(
        self, checkpoint: Path, data: Path, tmp_path: Path, state: object
    ) -> None:
        model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
        torch.save(state, model / "optimizer.pt")
        with pytest.raises(InputError, match=r"optimizer\.pt must"):
            annealed(model, data, tmp_path / "out", optimizer_state="kept")

    def test_a_state_with_code_in_it_without_running_it(
        self, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
        (model / "optimizer.pt").write_bytes(pickle.dumps(Harmful()))
        with pytest.raises(InputError, match="nothing else"):
            annealed(model, data, tmp_path / "out", optimizer_state="kept")
        assert not (tmp_path / "harmed").exists()
