"""Console output of a command: text for people, or JSON lines for a job's log."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

from direct_anneal.io.redaction import redacted
from direct_anneal.io.sanitize import SanitizedStream, sanitized, sanitized_json
from direct_anneal.progress import JsonLines, Progress, Silent, for_stream


def add_output_flags(parser: argparse.ArgumentParser, *, writes: bool) -> None:
    """Add the flags that every command has for what it prints, and `--dry-run` for those that write files."""
    group = parser.add_argument_group("output to the terminal")
    if writes:
        group.add_argument(
            "--dry-run",
            action="store_true",
            default=argparse.SUPPRESS,
            help="check the options and inputs, say what would be read and written, and write nothing",
        )
    group.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="print errors only")
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        default=argparse.SUPPRESS,
        help="json: one object a line on the standard error, for jobs: stages, then the result (text)",
    )


def size_text(num_bytes: float) -> str:
    """Spell a number of bytes in decimal units.

    >>> size_text(1234567)
    '1.2 MB'
    """
    size, unit = num_bytes / 1e3, "kB"
    for larger in ("MB", "GB", "TB"):
        if size >= 1000:
            size, unit = size / 1e3, larger
    return f"{size:,.1f} {unit}"


def progress_of(options: dict[str, Any]) -> Progress:
    """Build the progress display; the two options are taken out."""
    quiet, form = options.pop("quiet", False), options.pop("log_format", "text")
    if quiet:
        return Silent()
    return JsonLines(sys.stderr) if form == "json" else for_stream(sys.stderr)


class Output:
    """The routing of output to streams.

    Args:
        options: of the command line.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._quiet: bool = options.get("quiet", False)
        self._json: bool = options.get("log_format") == "json"

    @contextmanager
    def streams(self) -> Iterator[None]:
        """Show no standard output where that is to be quiet, and warnings as objects, while a command runs."""
        with warnings.catch_warnings():
            if self._json:
                warnings.showwarning = self._show_warning
            if not self._quiet:
                with redirect_stdout(_sanitized(sys.stdout)), redirect_stderr(_sanitized(sys.stderr)):
                    yield
                return
            with (
                Path(os.devnull).open("w", encoding="utf-8") as nowhere,
                redirect_stdout(nowhere),
                redirect_stderr(_sanitized(sys.stderr)),
            ):
                yield

    def result(self, result: Mapping[str, Any]) -> None:
        """Print the last object of a job that is done."""
        if self._json:
            self._write({"event": "result", **result})

    def failure(self, message: str, code: int) -> int:
        """Print why a command failed, and return its exit code."""
        if self._json:
            self._write({"event": "error", "code": code, "message": message})
        else:
            print(f"direct-anneal: {sanitized(redacted(message))}", file=sys.stderr)
        return code

    def trace(self) -> None:
        """Print the traceback of the exception being handled."""
        lines = traceback.format_exc()
        if self._json:
            self._write({"event": "traceback", "lines": lines.splitlines()})
        else:
            print(sanitized(redacted(lines)), file=sys.stderr, end="")

    def _show_warning(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self._write({"event": "warning", "message": " ".join(str(message).split())})

    def _write(self, content: dict[str, Any]) -> None:
        print(sanitized_json(json.dumps(redacted(content), ensure_ascii=False)), file=sys.stderr, flush=True)


def _sanitized(stream: TextIO) -> TextIO:
    """Return the stream, for text that may come from anyone's files. Bars are drawn past it, by the terminal's own
    means.
    """
    return cast(TextIO, SanitizedStream(stream))
