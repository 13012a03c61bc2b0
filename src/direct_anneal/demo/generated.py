"""Documents the demo makes itself: honest ones of little interest, and ones damaged in ways that real crawls are."""

from __future__ import annotations

import builtins
import errno
import keyword
import os
import random
import re
import string
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from html.entities import name2codepoint
from http import HTTPStatus

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_SMALL = _ONES + _TEENS
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NAMES = ("Ada", "Boris", "Chen", "Dalia", "Edwin", "Farah", "Grace", "Hugo", "Imani", "Jonas", "Keiko", "Noor", "Olga")
_THINGS = ("apples", "books", "candles", "marbles", "pencils", "plates", "shells", "stamps", "stones", "tickets")


def arithmetic(rng: random.Random) -> str:
    """Make small sums: in digits, in words, or as a story of two people."""
    form = rng.choice((_sum_in_digits, _sum_in_words, _sum_as_story))
    return "\n".join(form(rng) for _ in range(rng.randint(3, 8)))


def number_in_words(number: int) -> str:
    """Return a number below 1,000 in British English.

    >>> number_in_words(342)
    'three hundred and forty-two'
    """
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_SMALL[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_SMALL[hundreds]} hundred" + (f" and {number_in_words(rest)}" if rest else "")


def _sum_in_digits(rng: random.Random) -> str:
    a, b = rng.randint(0, 499), rng.randint(0, 499)
    return rng.choice((f"{a} + {b} = {a + b}", f"{a + b} - {b} = {a}", f"{a % 30} * {b % 30} = {(a % 30) * (b % 30)}"))


def _sum_in_words(rng: random.Random) -> str:
    a, b = rng.randint(0, 499), rng.randint(0, 499)
    return f"What is {number_in_words(a)} plus {number_in_words(b)}? It is {number_in_words(a + b)}."


def _sum_as_story(rng: random.Random) -> str:
    (giver, taker), things = rng.sample(_NAMES, 2), rng.choice(_THINGS)
    has, gives = rng.randint(20, 90), rng.randint(2, 19)
    return f"{giver} has {has} {things} and gives {gives} to {taker}. {giver} now has {has - gives} {things}."


def tables(rng: random.Random) -> str:
    """Return some rows of a table that Python knows: characters, entities, statuses, error numbers, names."""
    if rng.random() < 0.7:
        start = rng.randrange(0xA0, 0x2C00)
        named = ((chr(c), unicodedata.name(chr(c), "")) for c in range(start, start + 40))
        title, rows = "Unicode characters", [f"U+{ord(c):04X} {c} {name}" for c, name in named if name]
    else:
        title, rows = rng.choice(_small_tables())
    num_rows = rng.randint(4, 14)
    start = rng.randrange(max(1, len(rows) - num_rows))
    return "\n".join([title, *rows[start : start + num_rows]])


@cache
def _small_tables() -> list[tuple[str, list[str]]]:
    names = [name for name in dir(builtins) if not name.startswith("_")]
    return [
        ("HTTP status codes", [f"{s.value} {s.phrase}: {s.description or 'no description'}" for s in HTTPStatus]),
        ("Error numbers", [f"{n} {name}: {os.strerror(n)}" for n, name in sorted(errno.errorcode.items())]),
        ("Entities of HTML", [f"&{name}; U+{c:04X} {chr(c)}" for name, c in sorted(name2codepoint.items())]),
        ("Keywords of Python", [f"{word} has {len(word)} letters" for word in keyword.kwlist]),
        ("Built-in names of Python", [f"{name} is of type {type(getattr(builtins, name)).__name__}" for name in names]),
    ]


def logs(rng: random.Random) -> str:
    """Make web server logs: regular text that teaches a model next to nothing."""
    moment = datetime(2024, 1, 1) + timedelta(seconds=rng.randrange(365 * 86_400))
    lines = []
    for _ in range(rng.randint(3, 9)):
        moment += timedelta(milliseconds=rng.randint(1, 4000))
        verb, thing = rng.choice(("GET", "GET", "POST", "PUT", "DELETE")), rng.choice(_THINGS)
        status = rng.choice((200, 200, 200, 201, 304, 404, 500))
        lines.append(
            f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03d} worker-{rng.randint(1, 8)} "
            f"{verb} /api/v1/{thing}/{rng.randint(1, 9999)} {status} {rng.randint(1, 900)}ms"
        )
    return "\n".join(lines)


GENERATORS: dict[str, Callable[[random.Random], str]] = {"arithmetic": arithmetic, "tables": tables, "logs": logs}


def noise(rng: random.Random) -> str:
    """Make characters, or made-up words, without any order: a broken decoder's output."""
    if rng.random() < 0.5:
        return "".join(rng.choices(string.printable[:95] + "éßøñ§±µ¿", k=rng.randint(150, 900)))
    alphabet = string.ascii_letters + string.digits
    return " ".join("".join(rng.choices(alphabet, k=rng.randint(2, 12))) for _ in range(rng.randint(20, 100)))


def shuffled(text: str, rng: random.Random) -> str:
    """Return the words of a text in random order: its unigrams without its language."""
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def near_copy(text: str, rng: random.Random) -> str:
    """Return a text again, with one word doubled and one lost: enough to escape an exact deduplication."""
    words = list(re.finditer(r"\S+", text))
    lost, doubled = rng.sample(words, 2)
    edits = [(lost, ""), (doubled, f"{doubled[0]} {doubled[0]}")]
    for word, replacement in sorted(edits, key=lambda edit: edit[0].start(), reverse=True):
        text = text[: word.start()] + replacement + text[word.end() :]
    return text.strip()


_COMPANIES = ("Acorn", "Birch", "Cedar", "Dogwood", "Elder", "Fir", "Gorse", "Hazel", "Ivy", "Juniper")
_BOILERPLATE = (
    "We value your privacy. {company} and its {number} partners store cookies on your device to personalise content "
    "and to measure our audience. Choose Accept to agree, or Manage settings to decide what you share.",
    "Copyright {year} {company} Ltd. All rights reserved. No part of this page may be reproduced without written "
    "permission. Use of this site means that you accept our terms and conditions and our cookie policy.",
    "Like what you read? Join {number} thousand readers who get the {company} newsletter every morning. No spam, "
    "unsubscribe at any time. By signing up you agree to the terms of service of {company}.",
    "This program is distributed by {company} as it is, in the hope that somebody finds it useful, without any "
    "warranty, stated or implied. See the licence of {year} that came with it for details.",
    "Home | About | Careers | Press | Contact | Help | Site map | {company} {year}. Share this page: mail, print, "
    "copy link. You must enable scripts to view this content. Log in or create an account to continue.",
)


def boilerplate(rng: random.Random) -> str:
    """Make banners and notices that stand on every page, with another company or year in them."""
    paragraphs = rng.choices(_BOILERPLATE, k=rng.randint(1, 3))
    words = {"company": rng.choice(_COMPANIES), "year": rng.randint(1998, 2025), "number": rng.randint(2, 900)}
    return "\n\n".join(paragraph.format(**words) for paragraph in paragraphs)
