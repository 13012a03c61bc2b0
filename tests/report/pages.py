"""A page read strictly, and what no page of ours may hold."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from importlib import resources

VOID = {"meta", "link", "br", "img", "hr", "input"}
URLS = {"href", "src", "xlink:href", "action", "formaction", "data", "poster", "srcset", "background"}


class Page(HTMLParser):
    """Every element and text of a page whose elements are all closed, in order.

    Attributes:
        tags: names of elements.
        attributes: (element, name, value) of all of them.
        text: what can be read, style sheet and scripts aside.
        scripts: the contents of script elements.
    """

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self.text += data


def harmless(content: str) -> Page:
    """The page, if it has no script but ours and no address beyond itself, and forbids others that slipped in."""
    page = Page(content)
    ours = resources.files("direct_anneal.report").joinpath("templates", "documents.js").read_text(encoding="utf-8")
    assert page.scripts in ([], [ours])
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if page.scripts:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()}'"
    assert not [place for place in page.attributes if place[0] == "script"]
    assert page.tags.count("script") == len(page.scripts)
    assert not {"iframe", "object", "embed", "form", "base", "img", "image", "foreignobject"} & set(page.tags)
    assert not [place for place in page.attributes if place[1].startswith("on")]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for tag, name, value in page.attributes:
        if name in URLS:
            assert value == "data:," or value.removeprefix("#") in ids, (tag, name, value)
    assert ("meta", "content", policy) in page.attributes
    assert "@import" not in content
    # Clipping paths and the like are references inside the page.
    assert content.count("url(") == content.count("url(#")
    return page
