"""Write the tables of options in the roles' READMEs from their argument specs.

    cd tests && ../.venv/bin/python -m support.role_readme            write what differs
    cd tests && ../.venv/bin/python -m support.role_readme --check    write nothing; exit code 1 when something differs

A README holds the tables between the two lines `BEGIN` and `END`; everything outside them is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from support import ROOT

BEGIN = "<!-- begin: options, written by `make docs` from meta/argument_specs.yml -->"
END = "<!-- end: options -->"
EXPRESSION_MAX = 75  # characters of a computed default that a table shows
NONE = "–"

# Ansible's semantic markup, whose macros are documented in "Ansible markup" of its developer guide.
_MACRO = re.compile(r"\b([BCEILMOPUV]|RV)\(((?:[^()\\]|\\.|\([^()]*\))*)\)")


class ReadmeError(Exception):
    """A README that cannot hold its tables; the text is one line."""


def plain(text: str) -> str:
    """Return a description with Ansible's markup as Markdown."""

    def replace(match: re.Match[str]) -> str:
        macro, content = match[1], re.sub(r"\\(.)", r"\1", match[2])
        if macro == "U":
            return f"<{content}>"
        if macro == "L":
            label, _unused, address = content.partition(",")
            return f"[{label.strip()}]({address.strip()})"
        if macro in ("B", "I"):
            mark = "**" if macro == "B" else "*"
            return f"{mark}{content}{mark}"
        if macro in ("O", "RV"):  # umccr.pcgr.base#role:base_root: the name of the option is unambiguous
            content = content.rpartition(":")[2] if "#" in content else content
        if macro == "P":
            content = content.partition("#")[0]
        return f"`{content}`"

    return _MACRO.sub(replace, text)


def cell(text: str) -> str:
    """Return text that may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def shown_type(option: dict[str, Any]) -> str:
    """Return the type of an option, with that of its elements."""
    return f"list of {option['elements']}" if option["type"] == "list" else str(option["type"])


def shown_default(option: dict[str, Any], default: Any) -> str:
    """Return what is in force when nobody sets the option; `default` is the value of defaults/main.yml."""
    value = option.get("default", default)
    if value is None:
        return NONE
    if isinstance(value, str) and "{{" in value:
        inner = re.fullmatch(r"\{\{ (.*) \}\}", value, re.DOTALL)
        expression = inner[1] if inner and "{{" not in inner[1] else value
        return f"`{expression}`" if len(expression) <= EXPRESSION_MAX else "computed"
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > EXPRESSION_MAX and isinstance(value, dict):
        return "see `defaults/main.yml`"
    return f"`{text}`"


def table(options: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Return the lines of a table of options, in the order of the argument spec."""
    lines = ["| option | type | default | description |", "|---|---|---|---|"]
    for name, option in options.items():
        described = option["description"]
        text = plain(described if isinstance(described, str) else " ".join(described))
        if choices := option.get("choices"):
            text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
        if option.get("required"):
            text += " Required."
        cells = (f"`{name}`", shown_type(option), shown_default(option, defaults.get(name)), text)
        lines.append("| " + " | ".join(cell(each) for each in cells) + " |")
    return lines


def section(specs: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return the tables of all entry points of a role, `main` first."""
    lines = table(specs["main"].get("options", {}), defaults)
    for name, entry in specs.items():
        if name == "main":
            continue
        lines += ["", f"Entry point `{name}`: {plain(entry['short_description']).rstrip('.')}."]
        new = {key: option for key, option in entry.get("options", {}).items() if key not in specs["main"]["options"]}
        if new:
            lines += ["", *table(new, defaults)]
        elif entry.get("options"):
            lines[-1] += f" It uses {', '.join(f'`{key}`' for key in entry['options'])}."
    return "\n".join(lines)


def rewritten(text: str, tables: str, name: str) -> str:
    """Return a README with its tables replaced; ReadmeError when its markers are not as they must be."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ReadmeError(f"{name}: markers: found none or several, allowed one line {BEGIN!r} before one line {END!r}")
    head, _unused, rest = text.partition(BEGIN)
    _unused, _unused, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}"


def current(role: Path) -> tuple[str, str]:
    """Return the README of a role, as it is and as it should be."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8")) or {}
    text = (role / "README.md").read_text(encoding="utf-8")
    return text, rewritten(text, section(specs, defaults), f"roles/{role.name}/README.md")


def main() -> int:
    """Write or check the READMEs of all roles; returns the exit code."""
    parser = argparse.ArgumentParser(prog="role_readme", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a README differs")
    check = parser.parse_args().check
    code = 0
    for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        role = path.parents[1]
        try:
            text, wanted = current(role)
        except ReadmeError as error:
            print(f"role_readme: {error}", file=sys.stderr)
            return 2
        if text == wanted:
            continue
        if check:
            print(f"roles/{role.name}/README.md: differs from meta/argument_specs.yml; run make docs", file=sys.stderr)
            code = 1
        else:
            (role / "README.md").write_text(wanted, encoding="utf-8")
            print(f"roles/{role.name}/README.md: written")
    return code


if __name__ == "__main__":
    sys.exit(main())
