"""Pages as a browser has them: nothing asked for, nothing complained of, nothing beyond the edge of a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from direct_anneal.selection import Run
from report.browser import PROGRAM, Browser, browser
from report.conftest import HOSTILE

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="NOT TESTED: how reports look in a browser, since no Chromium is here (apt: chromium)"
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module", params=["selection", "hostile", "comparison"])
def path(request: pytest.FixtureRequest, done: Run, hostile: Run, compared: Path) -> Path:
    found = {"selection": done.out, "hostile": hostile.out, "comparison": compared}[request.param]
    return Path(found) / "report.html"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_and_is_quiet(tab: Browser, path: Path, width: int) -> None:
    tab.open(path, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.querySelectorAll('figure svg')].filter(e => e.clientWidth > 0).length") >= 2
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in tab.requests if url.startswith("file:")]) == 1
    assert tab.complaints == []


def test_the_first_screen_of_a_laptop_has_the_answers(tab: Browser, done: Run) -> None:
    tab.open(done.out / "report.html", width=1280)
    headings = "[...document.querySelectorAll('.answers h3')]"
    assert tab.evaluate(f"{headings}.map(e => e.textContent)") == [
        *("What was chosen", "Is it safe?", "What to expect", "What next")
    ]
    assert tab.evaluate(f"Math.max(...{headings}.map(e => e.getBoundingClientRect().bottom))") <= 800
    assert tab.evaluate("Math.max(...[...document.querySelectorAll('.answers .command')].map(e => e.offsetTop))") <= 800
    tab.open(done.out / "report.html", width=390)
    assert tab.evaluate("getComputedStyle(document.querySelector('.answers')).display") == "block"


def test_one_drawing_of_each_figure_is_shown_in_letters_of_a_size_to_read(tab: Browser, path: Path) -> None:
    for width, kind in ((390, "narrow"), (1280, "wide")):
        tab.open(path, width=width)
        shown = "[...document.querySelectorAll('figure svg')].filter(e => e.getBoundingClientRect().width > 0)"
        assert tab.evaluate(f"{shown}.every(e => e.classList.contains('{kind}'))")
        letters = f"{shown}.flatMap(e => [...e.querySelectorAll('text')]).map(e => e.getBoundingClientRect())"
        assert tab.evaluate(f"Math.min(...{letters}.map(box => Math.max(box.width, box.height)))") >= 9


def test_text_of_figures_can_be_selected(tab: Browser, path: Path) -> None:
    tab.open(path, width=1280)
    tab.evaluate("getSelection().selectAllChildren(document.querySelector('figure svg.wide'))")
    words = {"selection": "means of the pool", "hostile": "means of the pool", "comparison": "minus random"}
    assert any(word in tab.evaluate("getSelection().toString()") for word in words.values())


def test_dark_where_that_is_preferred(tab: Browser, path: Path) -> None:
    light = {}
    for dark in (False, True):
        tab.open(path, width=1280, dark=dark)
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = tab.evaluate("getComputedStyle(document.querySelector('figure svg.wide text')).fill")
        light[dark] = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink)]
    assert light[False][0] > light[False][1]
    assert light[True][0] < light[True][1]


SHOWN = "[...document.querySelectorAll('#listed tbody tr')].filter(row => !row.hidden)"


def test_documents_are_sorted_searched_and_filtered_by_keyboard(tab: Browser, done: Run) -> None:
    tab.open(done.out / "report.html", width=1280)
    ranks = f"{SHOWN}.map(row => +row.cells[2].dataset.value)"
    assert tab.evaluate(ranks) == sorted(tab.evaluate(ranks))
    tab.evaluate("document.querySelectorAll('#listed th button')[2].focus()")
    for _ in range(2):  # up, then down
        tab.press("Enter", "\r")
    assert tab.evaluate(ranks) == sorted(tab.evaluate(ranks), reverse=True)
    assert tab.evaluate("document.querySelectorAll('#listed th')[2].getAttribute('aria-sort')") == "descending"
    tab.evaluate("document.querySelector('.controls input').focus()")
    (one, *_) = tab.evaluate(f"{SHOWN}.map(row => row.cells[0].dataset.value)")
    for letter in one:
        tab.press(letter, letter)
    assert one in tab.evaluate(f"{SHOWN}.map(row => row.cells[0].dataset.value)")
    assert tab.evaluate(f"{SHOWN}.every(row => row.textContent.includes({one!r}))")
    assert tab.evaluate("document.querySelector('.controls [role=status]').textContent").endswith("shown")


def test_a_domain_is_filtered_by_its_whole_name(tab: Browser, hostile: Run) -> None:
    tab.open(hostile.out / "report.html", width=1280)
    count = tab.evaluate("document.querySelector('.controls select').options.length")
    assert count > len(HOSTILE)
    for place in range(1, count):
        chosen = f"var it = document.querySelector('.controls select'); it.selectedIndex = {place};"
        tab.evaluate(chosen + "it.dispatchEvent(new Event('input')); 0")
        names = tab.evaluate(f"[...new Set({SHOWN}.map(row => row.cells[1].textContent))]")
        assert names == [tab.evaluate(f"document.querySelector('.controls select').options[{place}].textContent")]


def test_no_script_but_ours_runs(tab: Browser, hostile: Run) -> None:
    tab.open(hostile.out / "report.html", width=1280)
    assert tab.evaluate("document.scripts.length") == 1
    tab.evaluate("var s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)")
    assert tab.evaluate("window.ran") is None
    assert tab.evaluate("document.querySelectorAll('img, iframe, [onmouseover], [onerror]').length") == 0
