"""The command: what people do wrong is one line and exit code 2, and Ctrl-C loses nothing."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from direct_anneal import __main__ as started
from direct_anneal import cli, doctor
from direct_anneal.cli import main
from direct_anneal.selection import SelectConfig
from selection.tiny import (
    SKETCH_SIZE,
    byte_tokenizer,
    chosen_ids,
    command_line,
    documents,
    files_below,
    manifest,
    start,
    write_jsonl,
)

pytestmark = pytest.mark.usefixtures("without_reports")

DONE, BUG, INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last line of the standard error; those before it tell of stages, to come or done."""
        assert "Traceback" not in self.err
        *stages, message = self.err.splitlines()
        assert all(": done, " in line or line.startswith("Gradients of ") for line in stages), self.err
        assert message.startswith("direct-anneal: ")
        return message


@dataclass(frozen=True)
class Desk:
    """A directory with a pool and a validation set, and the command at hand."""

    directory: Path
    model: Path
    read: Callable[[], tuple[str, str]]

    @property
    def out(self) -> Path:
        return self.directory / "out"

    def arguments(self, **options: Any) -> list[str]:
        """A select that works, but for the options given; None leaves one out."""
        given: dict[str, Any] = {
            "model": self.model,
            "pool": self.directory / "pool.jsonl",
            "validation": self.directory / "validation.jsonl",
            "out": self.out,
            "objective": "matching",
            "fraction": 0.25,
            "sketch_size": SKETCH_SIZE,
        }
        if {"num_samples", "num_tokens"} & options.keys():
            del given["fraction"]
        words = ["select"]
        for name, value in (given | options).items():
            if value is not None:
                words.append("--" + name.replace("_", "-"))
                words += [] if value is True else [str(value)]
        return words

    def __call__(self, *more: str, **options: Any) -> Outcome:
        return self.run([*self.arguments(**options), *more])

    def run(self, words: list[str]) -> Outcome:
        try:
            code: int | str | None = main(words)
        except SystemExit as leaving:  # argparse leaves by itself
            code = leaving.code
        assert isinstance(code, int)
        return Outcome(code, *self.read())

    def refused(self, **options: Any) -> str:
        outcome = self(**options)
        assert outcome.code == INPUT, outcome.err
        return outcome.message


@pytest.fixture
def desk(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    write_jsonl(tmp_path / "pool.jsonl", documents(24, seed=11))
    write_jsonl(tmp_path / "validation.jsonl", documents(8, seed=12, prefix="v"))

    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return Desk(tmp_path, checkpoint, read)


@pytest.fixture
def model(desk: Desk) -> Path:
    """A checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(desk.model, desk.directory / "model"))


class TestThatWorks:
    def num_tokens(self, desk: Desk) -> int:
        """One a byte."""
        lines = [line for name in ("pool", "validation") for line in (desk.directory / f"{name}.jsonl").open()]
        return sum(len(json.loads(line)["text"]) for line in lines)

    def test_select_prints_a_summary_and_writes_the_run(self, desk: Desk) -> None:
        outcome = desk()
        assert outcome.code == DONE
        assert "Selected 6 of 24 documents" in outcome.out
        assert f"Gradients of 24 + 8 documents, {self.num_tokens(desk):,} tokens. Features take 0.0 MB" in outcome.err
        assert "Traceback" not in outcome.err
        assert manifest(desk.out)["num_selected"] == 6
        assert str(desk.out / "selected.jsonl") in outcome.out

    @pytest.mark.parametrize("words", [["--help"], ["select", "--help"], ["demo", "--help"], ["--version"]])
    def test_help_and_version(self, desk: Desk, words: list[str]) -> None:
        outcome = desk.run(words)
        assert outcome.code == DONE
        assert outcome.out
        assert not outcome.err

    def test_as_a_module(self) -> None:
        done = subprocess.run([sys.executable, "-m", "direct_anneal", "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (DONE, "")
        assert done.stdout.startswith("direct-anneal 0.")

    def test_patterns_add_up(self, desk: Desk) -> None:
        more = write_jsonl(desk.directory / "more.jsonl", documents(6, seed=13, prefix="m"))
        assert desk("--pool", str(more), "--validation", str(more)).code == DONE
        assert manifest(desk.out)["corpora"]["pool"]["documents"] == 30
        assert manifest(desk.out)["corpora"]["validation"]["documents"] == 14

    def test_domains_that_look_like_markup_are_shown_as_they_are(self, desk: Desk) -> None:
        pool = write_jsonl(
            desk.directory / "odd.jsonl", [{**record, "domain": "[/red]"} for record in documents(9, seed=1)]
        )
        outcome = desk(pool=pool)
        assert outcome.code == DONE
        assert "[/red]" in outcome.out


class TestConfigFile:
    def write(self, desk: Desk, content: Any) -> Path:
        path = desk.directory / "run.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    def whole(self, desk: Desk, **options: Any) -> Path:
        given = {
            "model": str(desk.model),
            "pool": str(desk.directory / "pool.jsonl"),
            "validation": [str(desk.directory / "validation.jsonl")],
            "out": str(desk.out),
            "num_samples": 4,
            "sketch_size": SKETCH_SIZE,
        }
        return self.write(desk, given | options)

    def test_it_stands_for_flags(self, desk: Desk) -> None:
        assert desk.run(["select", "--config", str(self.whole(desk))]).code == DONE
        assert len(chosen_ids(desk.out)) == 4

    def test_flags_go_before_it(self, desk: Desk) -> None:
        assert desk.run(["select", "--config", str(self.whole(desk)), "--num-samples", "5"]).code == DONE
        assert len(chosen_ids(desk.out)) == 5

    def test_another_way_to_give_the_size_is_not_mixed_in(self, desk: Desk) -> None:
        outcome = desk.run(["select", "--config", str(self.whole(desk)), "--fraction", "0.5"])
        assert outcome.code == INPUT
        assert "got num_samples (in the file) and --fraction" in outcome.message

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("model: [", "YAML"),
            ("- model", "list"),
            ("", "NoneType"),
            ("nonsense: 3", "nonsense"),
            ("\x00", "YAML"),
        ],
    )
    def test_what_is_no_file_of_options(self, desk: Desk, content: str, told: str) -> None:
        outcome = desk("--config", str(self.write(desk, content)))
        assert outcome.code == INPUT
        assert told in outcome.message

    def test_one_that_is_not_there(self, desk: Desk) -> None:
        outcome = desk("--config", str(desk.directory / "none.yaml"))
        assert outcome.code == INPUT
        assert "none.yaml" in outcome.message

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("num_samples", "four"),
            ("num_samples", 4.5),
            ("sketch_size", "32"),
            ("budget_ratio", "1e-1"),  # YAML reads 1e-1 as a string unless it has a point
            ("pool", 5),
            ("device", 0),
            ("overwrite", "no"),
            ("seed", None),
        ],
    )
    def test_values_of_the_wrong_type(self, desk: Desk, option: str, value: Any) -> None:
        outcome = desk.run(["select", "--config", str(self.whole(desk, **{option: value}))])
        assert outcome.code == INPUT, outcome.err
        assert option.replace("_", "-") in outcome.message or option in outcome.message

    def test_a_finished_runs_own_options_do_it_again(self, desk: Desk) -> None:
        assert desk().code == DONE
        kept, before = desk.out / "options.json", (desk.out / "selection.parquet").read_bytes()
        assert set(json.loads(kept.read_text())) == {field.name for field in fields(SelectConfig)}
        again = desk.directory / "again"
        assert desk.run(["select", "--config", str(kept), "--out", str(again)]).code == DONE
        assert (again / "selection.parquet").read_bytes() == before
        config = self.write(desk, {"fraction": 0.5, "objective": "descent", "frontier": [0.5, 2.0]})
        solved = desk.directory / "solved"
        assert desk.run(["solve", str(desk.out), "--config", str(config), "--out", str(solved)]).code == DONE
        assert len(chosen_ids(solved)) == 12
        assert [row["ratio"] for row in manifest(solved)["frontier"]] == [0.5, 2.0]

    @pytest.mark.parametrize("command", ["anneal", "evaluate", "select"])
    def test_every_command_with_options_takes_one_and_knows_its_own(self, desk: Desk, command: str) -> None:
        path = str(self.write(desk, {"model": "m", "speed": "high", "quiet": True}))
        outcome = desk.run([command, "--config", path])
        assert outcome.code == INPUT
        assert "has quiet, speed: known are " in outcome.message


class TestForJobs:
    def test_objects_on_the_standard_error_and_the_result_at_the_end(self, desk: Desk) -> None:
        outcome = desk("--log-format", "json")
        assert outcome.code == DONE
        lines = [json.loads(line) for line in outcome.err.splitlines()]
        stages = [line for line in lines if line["event"] == "done"]
        assert all({"stage", "done", "total", "unit", "seconds", "seconds_left"} <= set(line) for line in stages)
        assert "Gradients of the pool" in {line["stage"] for line in stages}
        result = lines[-1]
        assert (result["event"], result["command"], result["num_selected"]) == ("result", "select", 6)
        assert result["out"] == str(desk.out)
        assert "Selected 6 of 24" in outcome.out

    def test_quiet_says_nothing(self, desk: Desk) -> None:
        outcome = desk("--quiet")
        assert (outcome.code, outcome.out, outcome.err) == (DONE, "", "")

    def test_quiet_does_not_hide_what_is_wrong(self, desk: Desk) -> None:
        outcome = desk("--quiet", fraction=2)
        assert outcome.code == INPUT
        assert "--fraction" in outcome.message

    def test_what_is_wrong_as_an_object(self, desk: Desk) -> None:
        outcome = desk("--log-format", "json", fraction=2)
        assert outcome.code == INPUT
        (error,) = map(json.loads, outcome.err.splitlines())
        assert (error["event"], error["code"]) == ("error", INPUT)
        assert "--fraction must be in (0, 1], got 2.0" in error["message"]

    def test_a_bug_as_objects(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object, **kwargs: object) -> NoReturn:
            warnings.warn("odd", stacklevel=1)
            raise RuntimeError("impossible")

        monkeypatch.setattr("direct_anneal.selection.known.Known.inputs", fail)
        outcome = desk("--log-format", "json")
        assert outcome.code == BUG
        *_, warning, traceback, error = map(json.loads, outcome.err.splitlines())
        assert warning == {"event": "warning", "message": "odd"}
        assert traceback["lines"][-1] == "RuntimeError: impossible"
        assert "report it" in error["message"]


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_the_script_knows_commands_and_options(self, desk: Desk, shell: str) -> None:
        pytest.importorskip("shtab", reason="completion needs the extra 'completion'")
        outcome = desk.run(["--print-completion", shell])
        assert outcome.code == DONE
        assert "--budget-ratio" in outcome.out
        assert "evaluate" in outcome.out

    def test_bash_takes_it(self, desk: Desk) -> None:
        pytest.importorskip("shtab", reason="completion needs the extra 'completion'")
        script = desk.run(["--print-completion", "bash"]).out
        asked = "COMP_WORDS=(direct-anneal select --budg); COMP_CWORD=2; _shtab_direct_anneal; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--budget-ratio", "--budget-reference"]

    def test_without_the_library_it_says_what_to_install(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "shtab", None)
        outcome = desk.run(["--print-completion", "bash"])
        assert outcome.code == INPUT
        assert "direct-anneal[completion]" in outcome.message


class TestDoctor:
    def test_a_sound_installation(self, desk: Desk) -> None:
        outcome = desk.run(["doctor", "--log-format", "json"])
        assert outcome.code == DONE
        found = {finding["name"]: finding for finding in json.loads(outcome.err.splitlines()[-1])["findings"]}
        tests = [name for name in found if name.startswith("self-test")]
        assert len(tests) >= 3
        assert all(found[name]["ok"] for name in tests)
        assert found["torch"]["value"] == torch.__version__
        assert "direct-anneal works here" in outcome.out

    def test_one_that_computes_something_else(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        finish = doctor.GradientSketcher.sketch

        def wrong(self: Any, ids: Any) -> Any:
            sketches = finish(self, ids)
            sketches.values.mul_(1.01)
            return sketches

        monkeypatch.setattr(doctor.GradientSketcher, "sketch", wrong)
        outcome = desk.run(["doctor"])
        assert outcome.code == BUG
        assert "must be within 1e-3 of autograd's, but are off by" in outcome.out
        assert "broken: self-test: gradients" in outcome.out

    def test_what_extras_lack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = [
            "torch>=2.0",
            "no-such-thing>=1; extra == 'report'",
            "direct-anneal[report]; extra == 'all'",
            "numpy>=99; extra == 'all'",
        ]
        monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: wanted)
        assert [requirement.name for requirement in doctor._requirements(None)] == ["torch"]
        named = doctor._requirements("all")
        assert [requirement.name for requirement in named] == ["no-such-thing", "numpy"]
        assert not any(doctor._version(requirement).ok for requirement in named)


class TestRequest:
    @pytest.mark.parametrize("missing", ["model", "pool", "validation", "out"])
    def test_what_must_be_given(self, desk: Desk, missing: str) -> None:
        assert f"--{missing}" in desk.refused(**{missing: None})

    def test_the_size_is_given_once(self, desk: Desk) -> None:
        assert "got none" in desk.refused(fraction=None)
        assert "--num-samples and --fraction" in desk.refused(fraction=0.5, num_samples=4)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("fraction", 0),
            ("fraction", 1.5),
            ("fraction", "nan"),
            ("num_samples", 0),
            ("num_samples", 25),
            ("num_tokens", 1),
            ("num_tokens", 10**9),
            ("budget_ratio", 0),
            ("budget_ratio", -1),
            ("budget_ratio", "nan"),
            ("budget_ratio", "inf"),
            ("elbow", 0),
            ("elbow", "nan"),
            ("sketch_size", 0),
            ("sketch_size", 10**6),
            ("max_length", 1),
            ("max_length", 65),  # the context is 64
            ("batch_tokens", 0),
            ("seed", -1),
            ("device", "tpu9"),
            ("device", "cuda:99"),
            ("device", "meta"),
            ("device", ""),
        ],
    )
    def test_values_out_of_range_are_named(self, desk: Desk, option: str, value: Any) -> None:
        assert "--" + option.replace("_", "-") in desk.refused(**{option: value})

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            ([], "COMMAND"),
            (["choose"], "no command choose"),
            (["select", "--num-samples", "many"], "--num-samples"),
            (["select", "--filter", "x"], "--filter"),
            (["compare", "recipe.yaml"], "--out"),
        ],
    )
    def test_what_argparse_refuses_is_one_line(self, desk: Desk, words: list[str], named: str) -> None:
        outcome = desk.run(words)
        assert outcome.code == INPUT
        assert named in outcome.message
        assert outcome.err.count("\n") == 1

    @pytest.mark.parametrize(("option", "value"), [("floor", "nowhere=0.1"), ("force_in", "nowhere.txt")])
    def test_what_is_asked_of_domains_and_documents_is_checked_before_the_gradients(
        self, desk: Desk, option: str, value: str
    ) -> None:
        assert "nowhere" in desk.refused(**{option: value})
        assert not (desk.out / "features").exists()

    def test_an_infeasible_budget_states_a_ratio_that_works(self, desk: Desk) -> None:
        message = desk.refused(budget_ratio=1e-4)
        suggested = message.split("pass --budget-ratio ")[1].split()[0]
        assert desk(budget_ratio=suggested, overwrite=True).code == DONE


class TestDocuments:
    def test_an_empty_validation_set(self, desk: Desk) -> None:
        (desk.directory / "empty.jsonl").write_text("")
        assert "validation" in desk.refused(validation=desk.directory / "empty.jsonl")

    def test_a_pattern_that_matches_nothing(self, desk: Desk) -> None:
        assert "*.parquet" in desk.refused(pool=desk.directory / "*.parquet")

    def test_an_unknown_format(self, desk: Desk) -> None:
        (desk.directory / "pool.docx").write_text("text\n")
        assert "pool.docx" in desk.refused(pool=desk.directory / "pool.docx")

    def test_the_wrong_field(self, desk: Desk) -> None:
        message = desk.refused(text_field="content")
        assert "'content'" in message
        assert "text" in message.split("the first record has")[1]

    def test_what_is_no_parquet(self, desk: Desk) -> None:
        (desk.directory / "pool.parquet").write_text("PAR1 not really")
        assert "pool.parquet" in desk.refused(pool=desk.directory / "pool.parquet")

    def test_the_runs_own_files_are_no_part_of_a_pool_around_it(self, desk: Desk) -> None:
        """The pool named by a directory with `--out` below it: the second run must see the first one's pool."""
        inside = desk.directory / "data"
        inside.mkdir()
        shutil.move(desk.directory / "pool.jsonl", inside / "pool.jsonl")
        for _ in range(2):
            outcome = desk(pool=inside, out=inside / "out")
            assert outcome.code == DONE, outcome.err
            assert manifest(inside / "out")["corpora"]["pool"]["documents"] == 24


class TestOut:
    def test_a_file(self, desk: Desk) -> None:
        desk.out.write_text("mine")
        assert f"{desk.out} is a file" in desk.refused()
        assert desk.out.read_text() == "mine"

    def test_below_a_file(self, desk: Desk) -> None:
        desk.out.write_text("mine")
        assert str(desk.out) in desk.refused(out=desk.out / "run")

    def test_a_directory_with_other_files(self, desk: Desk) -> None:
        desk.out.mkdir()
        (desk.out / "thesis.tex").write_text("mine")
        assert "holds other files" in desk.refused()
        assert files_below(desk.out) == {"thesis.tex": b"mine"}

    def test_one_that_holds_another_run(self, desk: Desk) -> None:
        assert desk().code == DONE
        desk.read()
        assert "fraction: there 0.25, now 0.5" in desk.refused(fraction=0.5)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_one_that_cannot_be_written(self, desk: Desk) -> None:
        desk.out.mkdir(mode=0o500)
        assert "writable" in desk.refused()

    def test_an_error_before_the_work_leaves_nothing_behind(self, desk: Desk) -> None:
        desk.refused(pool=desk.directory / "none*.jsonl")
        desk.refused(model=desk.directory)
        assert not desk.out.exists()

    def test_an_error_of_the_documents_can_be_mended_and_run_again(self, desk: Desk) -> None:
        """The first try must not claim the directory for a request that could not be."""
        desk.refused(num_samples=25)
        desk.read()
        assert desk(num_samples=20).code == DONE


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no-such-model", "no/such-model", "", "a b"])
    def test_one_that_is_not_there(self, desk: Desk, name: str) -> None:
        message = desk.refused(model=name)
        assert "--model" in message

    def test_a_directory_without_configuration(self, desk: Desk) -> None:
        assert "has no config.json" in desk.refused(model=desk.directory)

    def test_a_file(self, desk: Desk) -> None:
        assert "is a file" in desk.refused(model=desk.model / "model.safetensors")

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "{}", '{"model_type": "nonesuch"}', '{"model_type": "t5"}', '{"model_type": 3}']
    )
    def test_a_configuration_that_says_nothing_usable(self, desk: Desk, model: Path, content: str) -> None:
        (model / "config.json").write_text(content)
        assert "--model" in desk.refused(model=model)

    @pytest.mark.parametrize("keep", [0, 4, 1000, -10])
    def test_truncated_weights(self, desk: Desk, model: Path, keep: int) -> None:
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        assert "the weights of" in desk.refused(model=model)

    def test_a_corrupt_header_of_weights(self, desk: Desk, model: Path) -> None:
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:8] + b"\xff" * 64 + weights.read_bytes()[72:])
        assert "the weights of" in desk.refused(model=model)

    def test_no_weights(self, desk: Desk, model: Path) -> None:
        (model / "model.safetensors").unlink()
        assert "the weights of" in desk.refused(model=model)

    def test_some_weights_missing(self, desk: Desk, model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        message = desk.refused(model=model)
        assert "lacks 1 (model.layers.1.mlp.up_proj.weight)" in message

    def test_weights_of_another_shape(self, desk: Desk, model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
        assert "--model" in desk.refused(model=model)

    def test_text_needs_a_tokenizer_and_tokens_do_not(self, desk: Desk, model: Path) -> None:
        for path in model.glob("tokenizer*"):
            path.unlink()
        assert "must have a tokenizer" in desk.refused(model=model)
        tokenizer = byte_tokenizer()
        for name in ("pool", "validation"):
            path = desk.directory / f"{name}.jsonl"
            records = [json.loads(line) for line in path.read_text().splitlines()]
            for record in records:
                record["input_ids"] = tokenizer(record.pop("text"))["input_ids"]
            write_jsonl(path, records)
        assert desk(model=model).code == DONE

    @pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
    def test_a_corrupt_tokenizer(self, desk: Desk, model: Path, content: str) -> None:
        (model / "tokenizer.json").write_text(content)
        assert "tokenizer" in desk.refused(model=model)

    def test_weights_that_are_all_nan(self, desk: Desk, model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        weights["model.norm.weight"].fill_(float("nan"))
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        assert "gradients of the validation set must be finite" in desk.refused(model=model)


class TestForeignCode:
    def test_code_in_a_checkpoint_is_not_run_unasked(
        self, desk: Desk, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # transformers copies such code into the user's cache, and puts that on the path.
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(desk.directory / "modules"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        proof = desk.directory / "it-ran"
        (model / "modeling_own.py").write_text(
            f"from pathlib import Path\nPath({str(proof)!r}).touch()\n"
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
            "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        )
        config = json.loads((model / "config.json").read_text())
        config |= {
            "model_type": "own",
            "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"},
        }
        (model / "config.json").write_text(json.dumps(config))
        assert "--trust-remote-code" in desk.refused(model=model)
        assert not proof.exists()
        assert desk(model=model, trust_remote_code=True).code == DONE
        assert proof.exists(), "the code above would not have run in any case, and the test shows nothing"

    def test_a_pickle_is_not_executed(self, desk: Desk, model: Path) -> None:
        proof = desk.directory / "it-ran"

        class Malicious:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
                return (Path.touch, (proof,))

        (model / "model.safetensors").unlink()
        torch.save({"model.norm.weight": Malicious()}, model / "pytorch_model.bin")
        assert "the weights of" in desk.refused(model=model)
        assert not proof.exists()

    @pytest.mark.parametrize("protocol", [0, 2, 5])
    def test_nor_is_one_of_an_optimizers_state_or_of_training_arguments(
        self, desk: Desk, model: Path, protocol: int
    ) -> None:
        """The first is refused in a line; the second, which Trainer leaves beside a checkpoint, nobody opens."""
        proof = desk.directory / "it-ran"
        for name in ("training_args.bin", "optimizer.pt"):
            (model / name).write_bytes(pickle.dumps(_Touches(proof), protocol))
        assert "code in it is never run" in desk.refused(model=model, optimizer=model / "optimizer.pt")
        assert desk(model=model, out=desk.directory / "without").code == DONE
        assert not proof.exists()


class _Touches:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self._path,))


class TestInterruptions:
    def test_ctrl_c_tells_how_to_go_on_and_loses_nothing(self, desk: Desk) -> None:
        write_jsonl(desk.directory / "pool.jsonl", documents(1200, seed=11))
        words = desk.arguments(sketch_size=16, batch_tokens=64, num_samples=20)
        process = start(command_line, words, desk.directory / "log")
        # The pool's first shard of 1024 rows: work is under way, and there is work to lose.
        while process.is_alive() and not (desk.out / "features" / "pool" / "store.json").exists():
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join()
        told = (desk.directory / "log").read_text()
        assert process.exitcode == INTERRUPTED, told
        message = Outcome(INTERRUPTED, "", told).message
        assert message.startswith("direct-anneal: interrupted: what was done is kept")
        assert shlex.split(message.split("to go on: ")[1]) == ["direct-anneal", *words]
        assert not (desk.out / "manifest.json").exists()
        assert desk.run([*words, "--batch-tokens", "8192"]).code == DONE
        assert not list(desk.out.rglob("*.tmp"))

    @pytest.mark.parametrize("limit", [1_000, 3_000, 20_000])  # the log has this limit, too
    def test_a_full_disk_is_told_and_the_run_can_go_on(self, desk: Desk, limit: int) -> None:
        """From not even the configuration fits to all but the features do."""
        # Features of 24 rows in float16: 24,576 bytes, above every limit.
        words = desk.arguments(sketch_size=512)
        process = start(command_line, words, desk.directory / "log", limit)
        process.join()
        told = (desk.directory / "log").read_text()
        assert process.exitcode == INPUT, told
        assert "disk must have room" in Outcome(INPUT, "", told).message
        assert not list(desk.out.rglob("*.tmp"))
        assert desk.run(words).code == DONE


class TestBugs:
    @pytest.mark.parametrize("error", [RuntimeError("impossible"), AssertionError("never"), OSError(5, "bad disk")])
    def test_they_are_ours_and_say_how_to_report_them(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*args: object, **kwargs: object) -> NoReturn:
            raise error

        monkeypatch.setattr("direct_anneal.selection.known.Known.inputs", fail)
        outcome = desk()
        assert outcome.code == BUG
        assert "Traceback" in outcome.err
        assert str(error) in outcome.err
        assert "report it" in outcome.err.splitlines()[-1]

    def test_the_script_hands_the_code_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cli, "main", lambda _: 130)
        monkeypatch.setattr(started, "heed_sigterm", lambda: None)  # this process is the tests'
        monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # which is left alone, and put back
        with pytest.raises(SystemExit) as leaving:
            started.begin()
        assert leaving.value.code == INTERRUPTED

    @pytest.mark.parametrize("asked", [None, "ACTIVE"])
    def test_threads_wait_without_spinning_unless_asked(
        self, monkeypatch: pytest.MonkeyPatch, asked: str | None
    ) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
        monkeypatch.setenv("GOMP_SPINCOUNT", "")
        monkeypatch.delenv("GOMP_SPINCOUNT")
        if asked is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        monkeypatch.setattr(cli, "main", lambda _: DONE)
        monkeypatch.setattr(started, "heed_sigterm", lambda: None)
        with pytest.raises(SystemExit):
            started.begin()
        assert os.environ["OMP_WAIT_POLICY"] == (asked or "PASSIVE")
        assert os.environ.get("GOMP_SPINCOUNT") == (None if asked else "1000")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize(
        "module",
        [
            "argparse",  # while the command line is loaded
            "pandas",  # which pyarrow would import in C++, where it gets lost
        ],
    )
    def test_a_signal_while_a_library_is_imported(self, tmp_path: Path, module: str, number: int, code: int) -> None:
        heeded = f"signal.signal({int(signal.SIGINT)}, signal.default_int_handler)"  # a shell's background ignores it
        (tmp_path / f"{module}.py").write_text(
            f"import os, signal\n{heeded}\nos.kill(os.getpid(), {int(number)})\n", encoding="utf-8"
        )
        done = subprocess.run(
            [sys.executable, "-m", "direct_anneal", "doctor"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("direct-anneal: ")

    def test_a_signal_that_became_another_error(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """Python 3.11 makes a RuntimeError of one that comes in `__set_name__`."""

        def work(_: dict[str, Any]) -> NoReturn:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                raise RuntimeError("Error calling __set_name__") from error

        monkeypatch.setattr(cli, "COMMANDS", tuple(replace(each, run=work) for each in cli.COMMANDS))
        outcome = desk()
        assert outcome.code == INTERRUPTED
        assert outcome.message.startswith("direct-anneal: interrupted: ")


def test_every_option_of_a_selection_has_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """A field of the configuration that no flag fills would be reachable by --config alone."""
    with pytest.raises(SystemExit):
        main(["select", "--help"])
    shown = capsys.readouterr().out
    flags = {"floors": "--floor", "ceilings": "--ceiling"}
    for field in fields(SelectConfig):
        assert f"{flags.get(field.name, '--' + field.name.replace('_', '-'))} " in shown.replace("\n", " ")
