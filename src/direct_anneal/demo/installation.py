"""Text that every Python installation carries: its standard library's docstrings, code and comments."""

from __future__ import annotations

import ast
import os
import re
import textwrap
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from direct_anneal.errors import InputError
from direct_anneal.io.digests import short_digest

MIN_CHARACTERS, MAX_CHARACTERS = 60, 1500

# Distributions leave the first out as they please; the second differ from one user to the next.
_OPTIONAL = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "distutils", "tkinter", "turtledemo", "encodings"}
_THIRD_PARTY = {"site-packages", "dist-packages"}
_COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#[^\n]*\n?){2,}", re.MULTILINE)
_COMMENT_MARK = re.compile(r"^[ \t]*#+:? ?", re.MULTILINE)

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def library_documents(stdlib: Path, enough: Mapping[str, int] | None = None) -> dict[str, list[str]]:
    """Return documents of the domains `docs`, `code` and `comments`, each text once, in the order of the sorted files.

    Args:
        stdlib: root of a standard library; `sysconfig.get_path("stdlib")` for the running interpreter.
        enough: texts of each domain that will do: files are read in an order of hashes of their names, until there are
            so many. All files where left out, which takes seconds.

    Returns:
        For each domain its texts, of `MIN_CHARACTERS` to `MAX_CHARACTERS`. Files that cannot be read or parsed are
        skipped: a distribution may ship a library that is only partly readable.

    Raises:
        InputError: there is no Python source below `stdlib`.
    """
    texts: dict[str, list[str]] = {"docs": [], "code": [], "comments": []}
    seen: set[str] = set()
    num_read = 0
    files = sorted(_source_files(stdlib))
    if enough is not None:
        files.sort(key=lambda path: short_digest(path.relative_to(stdlib).as_posix()))
    for path in files:
        if enough is not None and all(len(texts[domain]) >= count for domain, count in enough.items()):
            break
        source, tree = _read(path)
        if tree is None:
            continue
        num_read += 1
        found = {"docs": _docs(tree), "code": _code(tree, source.split("\n")), "comments": _comments(source)}
        for domain, documents in found.items():
            for text in documents:
                key = normalised(text)
                if is_usable(text) and key not in seen:
                    seen.add(key)
                    texts[domain].append(text)
    if num_read == 0:
        raise InputError(
            f"the demo reads the standard library's source, none could be read in {stdlib}: "
            "run it with a Python that ships its library as .py files (python.org, conda, uv, a full system package)"
        )
    return texts


def normalised(text: str) -> str:
    """Return the text without what hides a copy: letter case and layout."""
    return " ".join(text.split()).casefold()


def is_usable(text: str) -> bool:
    """Say if a text is long enough, has some words, and fits UTF-8 (literals may hold lone surrogates)."""
    if re.search(r"[\ud800-\udfff\x00]", text) or len(text.split()) < 4:
        return False
    return MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS


def _source_files(stdlib: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(stdlib):
        # Pruned here and not filtered later: site-packages may hold a hundred times what the library does.
        subfolders[:] = set(subfolders) - _OPTIONAL - _THIRD_PARTY
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _read(path: Path) -> tuple[str, ast.Module | None]:
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules are not our user's concern
            source = file.read()
            return source, ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return "", None


def _docs(tree: ast.Module) -> Iterator[str]:
    for node in (tree, *_definitions(tree)):
        docstring = ast.get_docstring(node)
        if docstring:
            yield from _pieces(docstring)


def _definitions(parent: ast.Module | ast.ClassDef) -> Iterator[_Definition]:
    """Yield classes and functions down to methods; those inside function bodies belong to the function around them."""
    for node in parent.body:
        if isinstance(node, _Definition):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node)


def _code(parent: ast.Module | ast.ClassDef, lines: list[str]) -> Iterator[str]:
    """Yield functions and small classes without docstrings; a class too long for one document gives its methods."""
    for node in parent.body:
        if not isinstance(node, _Definition):
            continue
        source = _source(node, lines)
        if isinstance(node, ast.ClassDef) and len(source) > MAX_CHARACTERS:
            yield from _code(node, lines)
        else:
            yield _clipped(source)


def _source(node: _Definition, lines: list[str]) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = dict(enumerate(lines[first - 1 : node.end_lineno], start=first))
    for inner in (node, *_definitions(node)) if isinstance(node, ast.ClassDef) else (node,):
        docstring = inner.body[0]
        if ast.get_docstring(inner, clean=False) is None or len(inner.body) == 1:
            continue
        # A docstring on its header's line stays: without that line the code is broken.
        if kept[docstring.lineno][: docstring.col_offset].isspace():
            for number in range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1):
                del kept[number]
    return textwrap.dedent("\n".join(kept.values())).strip()


def _comments(source: str) -> Iterator[str]:
    for block in _COMMENT_BLOCK.findall(source):
        text = _COMMENT_MARK.sub("", block).strip()
        # Rulers, tables and code that was commented out are not remarks.
        if sum(c.isalpha() or c == " " for c in text) > 0.85 * len(text):
            yield from _pieces(text)


def _pieces(text: str) -> Iterator[str]:
    """Return a text as documents of whole paragraphs, as long as `MAX_CHARACTERS` lets them be."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + 2 + len(paragraph) > MAX_CHARACTERS:
            yield piece.strip()
            piece = ""
        piece = f"{piece}\n\n{_clipped(paragraph)}" if piece else _clipped(paragraph)
    yield piece.strip()


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS].rpartition("\n")[0].rstrip()
