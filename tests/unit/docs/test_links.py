"""Links between the project's pages lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import ROOT
from support.markdown import anchors, dead_links, links, pages

PAGES = pages()


def test_the_pages_of_a_project_are_there() -> None:
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    wanted = {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/index.md", "docs/design.md", "python/README.md"}
    assert wanted <= names
    assert (ROOT / "CHANGELOG.rst").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert dead_links(page) == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        names = (link.partition("#")[0] for link in links(page.read_text(encoding="utf-8")) if "://" not in link)
        waiting += [(page.parent / name).resolve() for name in names if name]
    # The page of the package index is read there.
    assert {str(page.relative_to(ROOT)) for page in set(PAGES) - seen} <= {"python/README.md"}


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `thing`, two\n\n## Same\n\n## Same\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#one-thing-two) [c](other.md#same-1) [web](https://example.org/x) [here](#title) ![p](no.png)\n"
        "[`code`](gone.md) [d](other.md#nosuch) [e](../out.md) `[f](code.md)`\n\n```sh\n[g](block.md)\n```\n\n# Title\n"
    )
    assert dead_links(page, tmp_path) == ["no.png", "gone.md", "other.md#nosuch", "../out.md"]


def test_anchors_are_those_of_github() -> None:
    text = "# A page\n\n## Settings (`/etc/pcgr/consumer.toml`)\n\n```sh\n# no heading\n```\n\n## `aws_spot: auto`\n"
    assert anchors(text) == {"a-page", "settings-etcpcgrconsumertoml", "aws_spot-auto"}
