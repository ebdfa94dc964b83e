"""Read the project's Markdown pages: links, headings, code."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

_FENCE = re.compile(r"^(`{3,})([\w-]*)[^\n]*\n(.*?)^\1`*$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")


def pages() -> list[Path]:
    """Return the Markdown files of the project, those that git ignores aside."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for line in answer.stdout.splitlines() if (path := ROOT / line).is_file()]


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", text)


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of code in a language, such as sh."""
    return [match[3] for match in _FENCE.finditer(text) if match[2] == language]


def inline(text: str) -> list[str]:
    """Return what stands between backticks in the prose."""
    return [" ".join(match[2].split()) for match in _INLINE.finditer(prose(text))]


def links(text: str) -> list[str]:
    """Return the targets of the links and pictures in the prose; code that looks like a link is none."""
    return _LINK.findall(
        _INLINE.sub("", re.sub(r"\[([^\]]*)\]", lambda match: f"[{match[1].replace('`', '')}]", prose(text)))
    )


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(unique)
    return found


def targets(path: Path) -> set[str]:
    """Return the anchors of a file; other files than pages have none."""
    return anchors(path.read_text(encoding="utf-8")) if path.suffix == ".md" else set()


def dead_links(page: Path, root: Path = ROOT) -> list[str]:
    """Return the relative links of a page that lead nowhere, or out of the project."""
    dead = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue  # an address of the web; tests stay on this machine
        name, _unused, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if (
            not target.is_relative_to(root.resolve())
            or not target.exists()
            or (anchor and anchor not in targets(target))
        ):
            dead.append(link)
    return dead


@dataclass(frozen=True)
class Shown:
    """A command that a page shows."""

    page: str
    words: tuple[str, ...]


def commands(page: Path, root: Path = ROOT) -> Iterator[Shown]:
    """Yield the commands in a page's sh blocks, without comments, variables and joins (`&&`, `;`, `|`)."""
    name = str(page.relative_to(root))
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            text = re.sub(r'^eval "\$\((.*)\)"', r"\1", line)
            lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set(";&|"):
                    words.append(word)
                    continue
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield Shown(name, tuple(words))
                words = []
