"""`batv corpus run --html`: one file that a browser shows as it is, without asking anybody for anything."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Final

import pytest

from batv.corpus.classes import CLASSES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.corpus.ground import Ground

BROWSER: Final = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=900,600",
)
RED: Final = (0xFF, 0xE0, 0xE0)
GREEN: Final = (0xE3, 0xF4, 0xE6)


class Reader(HTMLParser):
    """Reads what a page refers to, and the rows of its tables."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self._in_row = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in references and the beginning of rows."""
        self.references += [value or "" for name, value in attrs if name in {"src", "href", "action"}]
        if tag in {"script", "link", "iframe", "object", "img"}:
            self.references.append(tag)
        if tag == "tr":
            self.rows.append([])
            self._in_row = True

    def handle_endtag(self, tag: str) -> None:
        """Take in the end of rows."""
        if tag == "tr":
            self._in_row = False

    def handle_data(self, data: str) -> None:
        """Take in the text of a row."""
        if self._in_row and data.strip():
            self.rows[-1].append(data.strip())


def page(ground: Ground, on_forged: str) -> Path:
    """Score a corpus made for `discard` under some policy, and return the page."""
    assert ground("generate", "--out", str(ground.folder / "corpus"), "--count", "120").status == 0
    path = ground.folder / "page.html"
    config = ground.configure("other.toml", on_forged)
    said = ground("run", str(ground.folder / "corpus"), "--html", str(path), config=config)
    assert said.status == (0 if on_forged == "discard" else 1), said.err
    return path


def test_the_page_stands_alone(ground: Ground) -> None:
    """It is mailed around and kept: nothing in it may be loaded or run, and no tag in it may be used."""
    text = page(ground, "pass").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.references == []
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"prvs=[0-9]{4}[0-9a-f]{6}(?![0-9a-f])", text)


def test_the_page_has_the_matrix_and_the_mistakes(ground: Ground) -> None:
    """As the terminal shows them."""
    reader = Reader()
    reader.feed(page(ground, "pass").read_text())
    rows = {row[0]: row[1:] for row in reader.rows if row}
    assert rows["class"] == ["delivered", "rejected", "answered", "wrong"]
    assert set(CLASSES) <= set(rows)
    storm = rows["storm"]
    assert storm[0] == storm[-1] != "0"
    mistakes = [row for row in reader.rows if len(row) == 8 and row[1] == "storm"]
    assert {(row[3], row[4]) for row in mistakes} == {("discarded (untagged)", "delivered (untagged)")}
    assert {row[6] for row in mistakes} == {"no tag"}


@pytest.mark.browser
@pytest.mark.parametrize(("on_forged", "colour", "other"), [("discard", GREEN, RED), ("pass", RED, GREEN)])
def test_a_browser_shows_at_one_look_whether_all_is_well(
    ground: Ground, on_forged: str, colour: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    """Green where it is, red where it is not, and the text fills the window."""
    if shutil.which("chromium") is None:
        pytest.fail("there is no chromium: run scripts/test, or set BATV_TEST_WITHOUT=browser", pytrace=False)
    picture = ground.folder / "page.png"
    subprocess.run(
        [*BROWSER, f"--user-data-dir={ground.folder / 'browser'}", f"--screenshot={picture}",
         page(ground, on_forged).as_uri()],
        check=True, capture_output=True, timeout=90,
    )  # fmt: skip
    pixels = pixels_of(picture.read_bytes())
    total = sum(pixels.values())
    assert pixels.get(colour, 0) > total // 200
    assert pixels.get(other, 0) == 0
    assert 0.5 < pixels.get((255, 255, 255), 0) / total < 0.99


@pytest.mark.browser
def test_a_browser_finds_the_cells_where_they_are_written(ground: Ground) -> None:
    """The page is parsed as HTML, not as text that looks like it."""
    dumped = subprocess.run(
        [*BROWSER, f"--user-data-dir={ground.folder / 'browser'}", "--dump-dom", page(ground, "pass").as_uri()],
        check=True, capture_output=True, text=True, timeout=90,
    ).stdout  # fmt: skip
    reader = Reader()
    reader.feed(dumped)
    rows = {row[0]: row[1:] for row in reader.rows if row}
    assert rows["class"][-1] == "wrong"
    assert int(rows["storm"][-1]) > 0
    assert dumped.count('<td class="wrong">') > 10


def pixels_of(png: bytes) -> dict[tuple[int, int, int], int]:
    """Return how often each colour stands in a picture of eight bits a channel. Source: the PNG specification."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (depth, kind) in {(8, 2), (8, 6)}
    channels = 3 if kind == 2 else 4
    packed, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + length]
        at += length + 12
    octets = zlib.decompress(packed)
    stride = width * channels
    before = bytes(stride)
    found: dict[tuple[int, int, int], int] = {}
    for row in range(height):
        start = row * (stride + 1)
        before = unfiltered(octets[start], octets[start + 1 : start + 1 + stride], before, channels)
        for x in range(0, stride, channels):
            colour = (before[x], before[x + 1], before[x + 2])
            found[colour] = found.get(colour, 0) + 1
    return found


def unfiltered(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    """Return a row of a picture as it was before it was filtered for packing."""
    row = bytearray(line)
    if kind == 0:
        return line
    for x, value in enumerate(line):
        left = row[x - step] if x >= step else 0
        corner = above[x - step] if x >= step else 0
        up = above[x]
        guess = (left, up, (left + up) // 2, paeth(left, up, corner))[kind - 1]
        row[x] = (value + guess) & 0xFF
    return bytes(row)


def paeth(left: int, up: int, corner: int) -> int:
    """Return whichever neighbour is nearest to left + up - corner."""
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: (abs(estimate - value), (left, up, corner).index(value)))
