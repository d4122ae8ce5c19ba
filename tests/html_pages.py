"""Pages as tests read them: whole HTML, nothing from elsewhere, colours of both themes, a browser if there is one."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

EVIL = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page with")
VISIONS = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""How linear RGB is seen: Machado, Oliveira, Fernandes (2009), severity 1."""
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Balanced(HTMLParser):
    """Checks that what is opened is closed, that ids are there once, and that links lead somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.ids += [known["id"] or ""] if "id" in known else []
        self.links += [known[name] or "" for name in ("href", "src", "srcset", "action") if name in known]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


def read(page: str) -> Balanced:
    """The parsed page, of which all that must always hold has been checked."""
    found = Balanced()
    found.feed(page)
    found.close()
    assert page.startswith("<!doctype html>")
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    for link in found.links:
        assert link == "data:," or (link.startswith("#") and link[1:] in found.ids)
    assert not re.search(r"https?:|//\w|url\((?!#)|@import", page), "nothing from elsewhere"
    assert "None" not in " ".join(found.words)
    assert "nan" not in " ".join(found.words).lower().split()
    return found


def themes(page: str) -> list[dict[str, str]]:
    style = page[page.index("<style>") : page.index("</style>")]
    return [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]


def contrast(first: str, second: str) -> float:
    """Of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def seen_apart(first: str, second: str, vision: str) -> float:
    """CIE76 distance of two colours as an eye sees them; 2.3 is just noticeable."""

    def lab(colour: str) -> np.ndarray:
        parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        white = _XYZ.sum(1)
        x, y, z = np.cbrt(_XYZ @ np.clip(np.array(VISIONS[vision]) @ linear, 0, 1) / white)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    return float(np.linalg.norm(lab(first) - lab(second)))


def opened(page: str, folder: Path, width: int = 1400) -> str:
    """The document as it is once a browser has run it, which has not complained."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"),
            *(f"--window-size={width},1000", "--enable-logging=stderr", "--dump-dom", (folder / "page.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
