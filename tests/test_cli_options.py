"""One declaration makes flags, names in files, Python parameters and the page in the docs; starting up loads little."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import direct_anneal
from direct_anneal.cli import COMMANDS, build_parser, main
from direct_anneal.cli.command import Command
from direct_anneal.cli.flags import from_file, values
from direct_anneal.cli.options_page import page
from direct_anneal.config.option import Declared, configuration, declared, option
from direct_anneal.config.signature import keeps, takes, takes_changes
from direct_anneal.errors import InputError

# The function that stands for a command in Python.
FUNCTIONS = {
    "select": "direct_anneal.selection.pipeline:select",
    "features": "direct_anneal.selection.features_pipeline:compute_features",
    "plan": "direct_anneal.selection.planning:plan",
    "solve": "direct_anneal.selection.pipeline:select_again",
    "export": "direct_anneal.export.pipeline:export",
    "convert": "direct_anneal.convert.pipeline:convert",
    "anneal": "direct_anneal.train.pipeline:anneal",
    "evaluate": "direct_anneal.evaluate.pipeline:evaluate",
}
HEAVY = {"torch", "transformers", "pyarrow", "scipy", "numpy", "safetensors", "matplotlib", "rich", "yaml", "jinja2"}
HEAVY |= {"multiprocessing"}


def function_of(command: str) -> Any:
    module, _, name = FUNCTIONS[command].partition(":")
    return getattr(import_module(module), name)


def subparser(command: str) -> argparse.ArgumentParser:
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found: argparse.ArgumentParser = commands.choices[command]
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
class TestEveryCommand:
    def test_has_a_flag_for_every_option_and_no_other(self, command: Command) -> None:
        own = {"help", "config", "quiet", "log_format", "dry_run"}
        assert {action.dest for action in subparser(command.name)._actions} - own == set(declared(command.config))

    def test_its_function_has_the_same_parameters(self, command: Command) -> None:
        if command.name not in FUNCTIONS:
            pytest.skip("its work is done by the command alone")
        parameters = inspect.signature(function_of(command.name)).parameters
        assert set(parameters) == set(declared(command.config))
        for name, each in declared(command.config).items():
            required = parameters[name].default is inspect.Parameter.empty
            assert required == each.required, name

    def test_a_file_has_the_same_names(self, command: Command, tmp_path: Path) -> None:
        names = [name for name, each in declared(command.config).items() if not each.meta.argument]
        path = tmp_path / "options.yaml"
        path.write_text(yaml.safe_dump(dict.fromkeys(names, 1)))
        assert set(from_file(str(path), command.config, frozenset(), command.name)) == set(names)

    def test_its_help_tells_every_default(self, command: Command) -> None:
        shown = " ".join(subparser(command.name).format_help().split())
        for each in declared(command.config).values():
            if each.required or isinstance(each.default, bool) or each.default in (None, (), {}):
                continue
            assert f"(default: {each.default_text})" in shown, each.name

    def test_every_option_says_something(self, command: Command) -> None:
        assert all(each.meta.help and not each.meta.help.endswith(".") for each in declared(command.config).values())


def test_the_page_is_what_the_declarations_make_it() -> None:
    kept = Path(__file__).parents[1] / "docs" / "options.md"
    assert kept.read_text(encoding="utf-8") == page(), "python -m direct_anneal.cli.options_page > docs/options.md"


@pytest.mark.parametrize(
    "words",
    [
        "import direct_anneal",
        "from direct_anneal.cli import main; main(['select', '--fracton', '0.2'])",
        "from direct_anneal.cli import main; main(['selct'])",
        *(
            f"from direct_anneal.cli import main\ntry: main({words})\nexcept SystemExit: pass"
            for words in (["--version"], ["--help"], ["select", "--help"], ["compare", "--help"], ["export", "--help"])
        ),
    ],
)
def test_what_needs_no_library_loads_none(words: str) -> None:
    program = f"{words}\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


def test_choosing_again_loads_no_models() -> None:
    """These take as long to load as such a choice takes itself."""
    slow = {"transformers", "torch.distributed.fsdp", "torch.distributed.tensor", "matplotlib"}
    program = f"import direct_anneal.selection.pipeline, sys; print(sorted({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_of_the_face_is_there_when_asked_for() -> None:
    assert set(direct_anneal.__all__) <= set(dir(direct_anneal))
    with pytest.raises(AttributeError, match="no attribute 'chose'"):
        _ = direct_anneal.chose  # type: ignore[attr-defined]


class TestMistypedWords:
    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["select", "--fracton", "0.2"], "select has no option --fracton: did you mean --fraction?"),
            (["anneal", "--learning-rte=1"], "did you mean --learning-rate? (direct-anneal anneal --help)"),
            (["features", "--fraction", "0.2"], "features has no option --fraction: select, plan, solve"),
            (["selct", "--fraction", "0.2"], "there is no command selct: did you mean select?"),
            (
                ["solve", "a", "--out", "b", "--gradients", "rw"],
                "--gradients must be raw or unit, got rw: did you",
            ),
            (["solve", "a", "--out", "b", "--bands", "two"], "--bands must be a whole number, got 'two'"),
            (["solve", "a", "--out", "b", "--floor", "x"], "--floor must be DOMAIN=SHARE"),
            (["solve", "a"], "solve needs --out: see direct-anneal solve --help"),
            (["export", "a", "--to", "olmo", "--out", "b"], "did you mean olmo-core?"),
        ],
    )
    def test_on_the_command_line(self, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 2
        assert told in capsys.readouterr().err

    def test_in_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "options.yaml"
        path.write_text("fracton: 0.2\n")
        assert main(["select", "--config", str(path)]) == 2
        assert "has fracton: did you mean fraction?" in capsys.readouterr().err

    def test_a_value_in_a_file_is_named_as_it_stands_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "options.yaml"
        path.write_text("bands: two\nout: b\n")
        assert main(["solve", "a", "--config", str(path)]) == 2
        assert "bands (in the file) must be a whole number, got 'two'" in capsys.readouterr().err

    @pytest.mark.parametrize("command", FUNCTIONS)
    def test_in_python(self, command: str) -> None:
        function = function_of(command)
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\) has no option 'ot': did you mean out\?"):
            function(ot="b")
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\) needs .*out"):
            function()


def spelled_as_flags(path: Path) -> list[str]:
    """Texts inside of InputErrors that spell an option as the command line alone does; commands in full are none."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    errors = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "InputError"]
    texts = [node.value for call in errors for node in ast.walk(call) if isinstance(node, ast.Constant)]
    texts = [text for text in texts if isinstance(text, str) and not text.startswith((" (zstd", "pack it again"))]
    return [text for text in texts if re.search(r"--[a-z]", text) and not re.search(r"--model-config PATH", text)]


def test_errors_of_the_library_spell_no_flags() -> None:
    source = Path(direct_anneal.__file__).parent
    paths = [path for path in source.rglob("*.py") if "cli" not in path.relative_to(source).parts]
    assert {path.name: found for path in paths if (found := spelled_as_flags(path))} == {}


@configuration
class Walk:
    """Options of a walk."""

    start: str = option(kw_only=False, help="where from")
    steps: int = option(default=3, help="how many", affects="result")
    gait: str = option(default="slow", help="how", affects="nothing")


class TestSignatures:
    def test_a_function_of_a_configuration(self) -> None:
        @takes(Walk)
        def walk(config: Walk) -> tuple[str, int]:
            """Walk.

            Returns: where from, and how far.
            """
            return config.start, config.steps

        assert walk("here", steps=5) == ("here", 5)
        assert str(inspect.signature(walk)).startswith("(start: 'str', *, steps: 'int' = 3, gait: 'str' = 'slow')")
        assert inspect.getdoc(walk) == (
            "Walk.\n\nArgs:\n    start: where from\n    steps: how many (3)\n    gait: how (slow)\n\n"
            "Returns: where from, and how far."
        )
        with pytest.raises(InputError, match="steps must be a whole number, got 'five'"):
            walk("here", steps="five")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="got 'start' twice"):
            walk("here", start="there")

    def test_a_function_of_changes_gets_what_was_given(self) -> None:
        @takes_changes(Walk)
        def again(changes: Any) -> dict[str, Any]:
            return dict(changes)

        assert again("here", steps=3) == {"start": "here", "steps": 3}

    def test_an_object_that_keeps_its_options_as_they_are_given(self) -> None:
        class Walker:
            start: Any
            steps: Any

            @keeps(Walk)
            def __init__(self) -> None: ...

        walker = Walker("here", steps="five")  # type: ignore[arg-type]
        assert (walker.start, walker.steps) == ("here", "five")
        assert list(inspect.signature(Walker).parameters) == ["start", "steps", "gait"]


def test_options_are_not_changed_after_they_are_made() -> None:
    walk = Walk(start="here")
    with pytest.raises(AttributeError):
        walk.steps = 4
    source = Path(direct_anneal.__file__).parent
    assert not [path for path in source.rglob("*.py") if "object.__setattr__" in path.read_text(encoding="utf-8")]


def test_flags_are_texts_until_their_option_says_more() -> None:
    assert isinstance(declared(Walk)["steps"], Declared)
    assert values(Walk, {"steps": "5", "gait": "5", "quiet": True}) == {"steps": 5, "gait": "5"}


class TestInit:
    @pytest.mark.parametrize("command", [each.name for each in COMMANDS if each.takes_file])
    def test_the_file_has_every_option_and_only_those_that_must_be_given_are_set(
        self, tmp_path: Path, command: str
    ) -> None:
        path = tmp_path / "run.yaml"
        assert main(["init", command, "--out", str(path)]) == 0
        text = path.read_text(encoding="utf-8")
        options = {
            name: each
            for name, each in declared(next(each for each in COMMANDS if each.name == command).config).items()
            if not each.meta.argument
        }
        given = yaml.safe_load(text)
        assert set(given) == {name for name, each in options.items() if each.required}
        assert set(re.findall(r"^#?([a-z_]+\d?):", text, flags=re.M)) == set(options)
        assert max(map(len, text.splitlines())) <= 110
        # Every default that is written is one that a file may have, and the very same.
        uncommented = yaml.safe_load(re.sub(r"^#(?=[a-z_]+\d?:)", "", text, flags=re.M))
        for name, each in options.items():
            if not each.required and each.default not in (None, (), {}):
                value = uncommented[name]
                assert value == (list(each.default) if isinstance(each.default, tuple) else each.default), name

    def test_a_file_that_is_there_stays(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("mine")
        assert main(["init", "--out", str(path)]) == 2
        assert "--out must be a new file" in capsys.readouterr().err
        assert path.read_text() == "mine"

    @pytest.mark.parametrize(
        ("out", "told"), [("none/x.yaml", "but none is not: make it"), (".", "but . is a directory: name a file in it")]
    )
    def test_a_place_where_no_file_can_be(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str, told: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["init", "--out", out]) == 2
        assert capsys.readouterr().err.endswith(f"{told}\n")
