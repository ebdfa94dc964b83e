"""READMEs of roles hold the tables that their argument specs give, and the same parts in the same order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import ROOT
from support.role_readme import BEGIN, END, ReadmeError, current, plain, rewritten, section, shown_default

ROLES = sorted(path.parents[1] for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"))
PARTS = [
    r"\*\*Requirements\.\*\*|requirements",
    "```yaml",
    "## Options",
    r"## What it (changes|creates)",
    r"\*\*To undo it:\*\*",
]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_tables_are_those_of_the_argument_spec(role: Path) -> None:
    text, wanted = current(role)
    assert text == wanted, "run make docs"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_readme_has_all_parts_in_order(role: Path) -> None:
    text = (role / "README.md").read_text(encoding="utf-8")
    title, purpose = re.findall(r"\A# (.+)\n\n(.+)", text)[0]
    assert title == f"umccr.pcgr.{role.name}"
    assert re.fullmatch(r"[A-Z][a-z]+s\b.*", purpose), "the first sentence says what the role does"
    places = [match.start() if (match := re.search(part, text)) else -1 for part in PARTS]
    assert -1 not in places, PARTS[places.index(-1)]
    assert places == sorted(places)


SPECS = {
    "main": {
        "options": {
            "x_kind": {"type": "str", "choices": ["a", "b"], "default": "a", "description": "Kind, a | b."},
            "x_list": {"type": "list", "elements": "path", "description": ["One.", "See O(x_kind=a)."]},
            "x_name": {"type": "str", "required": True, "description": "Name."},
        }
    },
    "stop": {"short_description": "Stop it", "options": {"x_name": {}}},
    "more": {
        "short_description": "More.",
        "options": {"x_new": {"type": "bool", "default": True, "description": "New."}},
    },
}


def test_tables_show_types_defaults_choices_and_entry_points() -> None:
    defaults = {"x_kind": "a", "x_list": "{{ y | default([]) }}", "x_name": None}
    assert section(SPECS, defaults).splitlines() == [
        "| option | type | default | description |",
        "|---|---|---|---|",
        "| `x_kind` | str | `a` | Kind, a \\| b. One of `a`, `b`. |",
        "| `x_list` | list of path | `y \\| default([])` | One. See `x_kind=a`. |",
        "| `x_name` | str | – | Name. Required. |",
        "",
        "Entry point `stop`: Stop it. It uses `x_name`.",
        "",
        "Entry point `more`: More.",
        "",
        "| option | type | default | description |",
        "|---|---|---|---|",
        "| `x_new` | bool | `true` | New. |",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("V(absent) removes C(a b), see E(AWS_REGION)", "`absent` removes `a b`, see `AWS_REGION`"),
        ("the lookup P(umccr.pcgr.release#lookup)", "the lookup `umccr.pcgr.release`"),
        ("O(umccr.pcgr.base#role:base_root)", "`base_root`"),
        ("M(umccr.pcgr.data_volume), B(never), I(now)", "`umccr.pcgr.data_volume`, **never**, *now*"),
        ("L(docs,https://example.org), U(https://example.org)", "[docs](https://example.org), <https://example.org>"),
        ("V(a\\)b\\)), f(x), PCGR(1)", "`a)b)`, f(x), PCGR(1)"),
    ],
)
def test_markup_becomes_markdown(text: str, wanted: str) -> None:
    assert plain(text) == wanted


def test_long_computed_defaults_are_not_shown() -> None:
    assert shown_default({}, "{{ " + "x" * 100 + " }}") == "computed"
    assert shown_default({}, "{{ a }}-dead") == "`{{ a }}-dead`"


@pytest.mark.parametrize("text", ["no markers", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_readme_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ReadmeError, match=r"^README.md: markers: found .*, allowed "):
        rewritten(text, "table", "README.md")


def test_text_outside_the_markers_stays() -> None:
    assert rewritten(f"head\n{BEGIN}\nold\n{END}\ntail\n", "new", "x") == f"head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"
