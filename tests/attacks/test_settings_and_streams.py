"""Configurations that mean harm, and what reaches a terminal, a log or a record."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from direct_anneal.cli import main
from direct_anneal.config.options import keep
from direct_anneal.io.records import RecordError, write_record
from direct_anneal.io.redaction import redacted
from direct_anneal.io.sanitize import SanitizedStream, sanitized, sanitized_json
from direct_anneal.io.settings import read_yaml
from direct_anneal.progress import JsonLines, PlainLines

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
SETTINGS = {
    "aliases": BOMB,
    "a circle": "a: &a [*a]",
    "depth": "[" * 5000,
    "an empty number": '!!int ""',
    "an object": "!!python/object/apply:os.system [ls]",
    "a date": "2001-99-99",
    "NUL": "model: 'a\\0b'",
    "no mapping": "3",
    "a merge of nothing": "<<: 3",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_are_none_are_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS[name])
    for command in ("select", "compare"):
        words = (
            [command, "--config", str(path)] if command == "select" else [command, str(path), "--out", str(tmp_path)]
        )
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "bug" not in line


@pytest.mark.parametrize("path", ["/dev/zero", "/dev", "\0", "/proc/self/mem"])
def test_what_is_no_file_is_not_waited_for(path: str) -> None:
    with pytest.raises((RecordError, OSError)):
        read_yaml(Path(path))


EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202etxt.exe\u2066\x00 and words"


def test_no_control_sequence_reaches_a_terminal_or_a_log() -> None:
    for coloured in (False, True):
        stream = io.StringIO()
        with mock.patch.object(stream, "isatty", return_value=coloured):
            stream_out = SanitizedStream(stream)
        stream_out.write(f"\x1b[31mred\x1b[0m {EVIL}\n")
        written = stream.getvalue()
        assert ("\x1b[31mred\x1b[0m" in written) == coloured
        rest = written.replace("\x1b[31m", "").replace("\x1b[0m", "")
        assert not set("\x1b\x07\x9b\u202e\u2066\x00") & set(rest)
    for lines in (PlainLines, JsonLines):
        stream = io.StringIO()
        lines(stream).note(EVIL)
        assert not set("\x1b\x07\x9b\u202e\u2066\x00") & set(stream.getvalue())
    assert json.loads(sanitized_json(json.dumps(EVIL, ensure_ascii=False))) == EVIL
    assert sanitized("plain\ttext\n") == "plain\ttext\n"


SAFE = st.text("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", min_size=24, max_size=40)
FORMS = st.sampled_from(
    [
        "https://user:{}@host/path",
        "https://user:a@b/{}@host:80/path",
        "s3://{}@bucket/key",
        "https://host/x?a=1&key={}&b=2",
        "https://host/x?sig={}",
        "Authorization: Bearer {}1",
        "bearer {}.x",
        "gith" + "ub_pat_{}",
        "xo" + "xb-{}",
        "hf" + "_{}",
        "AccountKey={};EndpointSuffix=x",
        "DB_PASSWORD={}",
        "the value {} itself",
    ]
)
NAMES = st.sampled_from(["AZURE_STORAGE_KEY", "SSH_PASSPHRASE", "DB_PASS", "HF_TOKEN", "MY_SECRET", "X_API_KEY"])


@settings(max_examples=60, deadline=None)
@given(secret=SAFE, form=FORMS, name=NAMES)
def test_no_writer_lets_a_secret_through(
    tmp_path_factory: pytest.TempPathFactory, secret: str, form: str, name: str
) -> None:
    directory, text = tmp_path_factory.getbasetemp() / "secrets", form.format(secret)
    directory.mkdir(exist_ok=True)
    environment = {name: secret} if form.startswith("the value") else {}
    out, log, lines = io.StringIO(), io.StringIO(), io.StringIO()
    with mock.patch.dict("os.environ", environment):
        write_record(directory / "record.json", {"a": [text, {text: text}], "b": text})
        keep({"model": text, "pool": (text,)}, directory)
        SanitizedStream(out).write(text)
        PlainLines(log).note(text)
        JsonLines(lines).note(text)
    written = [path.read_text() for path in directory.iterdir()] + [out.getvalue(), log.getvalue(), lines.getvalue()]
    for content in written:
        assert secret not in content


@pytest.mark.parametrize("name", ["DB_PASS", "AZURE_STORAGE_KEY"])
def test_short_values_are_hidden_where_they_stand_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "hunter2")
    assert redacted("with hunter2, and hunter25") == "with ***, and hunter25"


def test_a_reader_that_leaves_ends_a_command_quietly(tmp_path: Path) -> None:
    code = (
        "import sys; from direct_anneal import cli; from direct_anneal.cli import verify as v\n"
        "import dataclasses\n"
        "def run(options):\n    [print('x' * 1000) for _ in range(10_000)]\n    return {}\n"
        "cli.COMMANDS = tuple(dataclasses.replace(c, run=run) if c.name == 'verify' else c for c in cli.COMMANDS)\n"
        "sys.exit(cli.main(['verify', '.']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 130
