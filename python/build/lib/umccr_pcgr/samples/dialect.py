"""From a sample's configuration to the command line of the installed PCGR release.

A dialect (``releases/dialects/*.yml``, part of ``/etc/pcgr/release.json`` on a target) says as data which options a
release knows, what values they take, which belong together, and what the keys of the old TOML configuration became.
This module holds no option of its own: it checks a configuration against such data and writes the argument list.
Standard library only.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal

COMMANDS = ("pcgr", "cpsr")
ASSEMBLY_KEY = "genome_assembly"
# PCGR puts names and paths unquoted into shell command lines, so only characters that a shell leaves alone may pass
SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+-]*")
# an INFO tag name as the VCF specification 4.2 and later allows it
INFO_TAG = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
COMPARE: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "lt": (operator.lt, "less than"),
    "le": (operator.le, "at most"),
    "gt": (operator.gt, "more than"),
    "ge": (operator.ge, "at least"),
}


class ConfigError(ValueError):
    """The sample's configuration cannot be used; the text is one line: which key, what was found, what is allowed."""


@dataclass(frozen=True)
class Inputs:
    """Absolute paths of a sample's files inside the container; ``configuration`` is the sample's TOML itself."""

    vcf: str | None
    cna: str | None
    fusion: str | None
    expression: str | None
    pon_vcf: str | None = None
    configuration: str | None = None


def arguments(
    dialect: Mapping[str, Any],
    command: Literal["pcgr", "cpsr"],
    config: Mapping[str, Any],
    *,
    sample_id: str,
    assembly: str,
    inputs: Inputs,
    refdata_dir: str,
    vep_dir: str,
    output_dir: str,
    pcgrr_conda: str | None = None,
) -> list[str]:
    """Return the whole argument list for one sample: executable, full option names, values as separate items.

    ``config`` is the sample's parsed TOML (empty: no TOML); paths are those inside the container; ``refdata_dir`` is
    the parent of ``data/``, ``pcgrr_conda`` the prefix of the R packages where it is not the image's own. Raises ``ConfigError`` for what
    the release would refuse, as far as it can be known here.
    """
    if command not in dialect["commands"]:
        raise ConfigError(f"command: found {command}, allowed {_or(dialect['commands'])} (dialect {dialect['name']})")
    sources = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    if sources["configuration"] is None and dialect["configuration"] == "file":
        sources["configuration"] = f"{refdata_dir}/{dialect['configuration_default']}".replace("{assembly}", assembly)
    sources |= {
        "sample_id": sample_id,
        "assembly": assembly,
        "refdata_dir": refdata_dir,
        "vep_dir": vep_dir,
        "output_dir": output_dir,
        "pcgrr_conda": pcgrr_conda,
    }
    call = _Call(dialect, command)
    call.take_from_consumer(sources, [field.name for field in fields(inputs) if field.name != "configuration"])
    call.take_from_sample(config)
    call.check()
    return call.argv()


def assembly_of(config: Mapping[str, Any], default: str, allowed: Sequence[str]) -> str:
    """Return the assembly that the sample's TOML asks for, or ``default``; ``ConfigError`` if it is not installed."""
    assembly = config.get(ASSEMBLY_KEY, default)
    if assembly not in allowed:
        raise ConfigError(f"{ASSEMBLY_KEY}: found {_short(assembly)}, allowed {_or(allowed)} (installed here)")
    return str(assembly)


class _Call:
    """A command line under construction: option name -> value, and for messages where each value came from."""

    def __init__(self, dialect: Mapping[str, Any], command: str) -> None:
        self.dialect = dialect
        self.command = command
        self.spec: Mapping[str, Any] = dialect["commands"][command]
        self.options: Mapping[str, Mapping[str, Any]] = self.spec["options"]
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    def take_from_consumer(self, sources: Mapping[str, str | None], files: Iterable[str]) -> None:
        accepted = {option.get("from") for option in self.options.values()}
        for kind in files:
            if sources[kind] is not None and kind not in accepted:
                raise ConfigError(
                    f"input {kind}: found {sources[kind]}, allowed none: "
                    f"{self.command} of dialect {self.dialect['name']} takes no such file"
                )
        for name, option in self.options.items():
            value = True if option.get("always") else sources.get(option.get("from", ""))
            if value is not None:
                self.put(name, value, name)

    def take_from_sample(self, config: Mapping[str, Any]) -> None:
        for section, table in config.items():
            if section == ASSEMBLY_KEY:
                continue
            if not isinstance(table, Mapping):
                raise ConfigError(
                    f"{_short(section)}: found {_short(table)} outside a table; "
                    f"{_near(section, [ASSEMBLY_KEY, *self.sections()])}"
                )
            if section not in self.sections():
                raise ConfigError(f"[{_short(section)}]: found an unknown section; {_near(section, self.sections())}")
            for key, value in table.items():
                if section == self.command:
                    self.take_option(key, value)
                elif self.dialect["configuration"] == "file":
                    self.known(section, key, self.dialect["configuration_keys"][section])
                else:
                    self.take_legacy(section, key, value)
        for name, option in self.options.items():
            if "preset" in option and name not in self.values:
                self.put(name, option["preset"], name)

    def sections(self) -> list[str]:
        """The tables that this command's TOML may hold; the old configuration was PCGR's alone."""
        old = self.dialect.get("legacy") or self.dialect.get("configuration_keys") or {}
        return [self.command, *(old if self.command == "pcgr" else ())]

    def known(self, section: str, key: str, allowed: Iterable[str]) -> None:
        allowed = list(allowed)
        if key not in allowed:
            raise ConfigError(f"{section}.{_short(key)}: found an unknown key; {_near(key, allowed)}")

    def take_option(self, name: str, value: Any) -> None:
        self.known(self.command, name, self.options)
        if self.options[name]["owner"] != "sample":
            raise ConfigError(
                f"{self.command}.{name}: found {_short(value)}, allowed nothing: the consumer sets this option"
            )
        self.put(name, value, f"{self.command}.{name}")

    def take_legacy(self, section: str, key: str, value: Any) -> None:
        """Translate one key of the TOML configuration of PCGR 0.9.1 and older."""
        entries = self.dialect["legacy"][section]
        self.known(section, key, entries)
        entry = entries[key]
        where = f"{section}.{key}"
        if any(_same(value, ignored) for ignored in entry.get("ignored", ())):
            return  # asks for nothing, or is what the old releases shipped: not a choice of the user's
        if "refused" in entry:
            raise ConfigError(f"{where}: found {_short(value)}, which has no equivalent: {entry['refused']}")
        if (entry.get("invert") or "value" in entry) and not isinstance(value, bool):
            raise ConfigError(f"{where}: found {_short(value)}, allowed true or false")
        if entry.get("invert"):
            value = not value
        elif "value" in entry:
            value = entry["value"]
        elif "values" in entry:
            if not isinstance(value, str) or value not in entry["values"]:
                raise ConfigError(f"{where}: found {_short(value)}; {_near(str(value), list(entry['values']))}")
            value = entry["values"][value]
        self.put(entry["option"], value, where)

    def put(self, name: str, value: Any, where: str) -> None:
        value = _checked(value, self.options[name], where, self.dialect.get("reserved_tags", ()))
        if name in self.values and not _same(self.values[name], value):
            raise ConfigError(
                f"{where}: found {_short(value)}, but {self.origin[name]} says {_short(self.values[name])}; "
                f"both mean {name}, allowed one value"
            )
        self.values[name] = value
        self.origin.setdefault(name, where)

    def check(self) -> None:
        for name, option in self.options.items():
            if option.get("required") and name not in self.values:
                raise ConfigError(f"{name}: found nothing, allowed a value: {self.command} cannot run without it")
        choice = self.spec.get("any_of", [])
        if choice and not any(name in self.values for name in choice):
            raise ConfigError(f"{self.command}: found no input file, allowed at least one of {', '.join(choice)}")
        for rule in self.spec.get("rules", ()):
            when = rule.get("when", {})
            if all(self.holds(name, condition) for name, condition in when.items()):
                for name, condition in rule["require"].items():
                    if not self.holds(name, condition):
                        raise ConfigError(self.broken(name, condition, when))

    def value(self, name: str) -> Any:
        """What the tool will use: the given value or its own default; None if it has none."""
        option = self.options[name]
        return self.values.get(name, option.get("default", False if option["type"] == "flag" else None))

    def holds(self, name: str, condition: Mapping[str, Any]) -> bool:
        return all(self.holds_one(name, kind, bound) for kind, bound in condition.items())

    def holds_one(self, name: str, kind: str, bound: Any) -> bool:
        if kind == "given":
            return (name in self.values) is bound
        value = self.value(name)
        if kind in ("in", "not_in"):
            return (value in bound) is (kind == "in")
        bound = self.value(bound) if isinstance(bound, str) else bound
        return value is None or bound is None or COMPARE[kind][0](value, bound)

    def broken(self, name: str, condition: Mapping[str, Any], when: Mapping[str, Any]) -> str:
        kind, bound = next((kind, bound) for kind, bound in condition.items() if not self.holds_one(name, kind, bound))
        found = _short(self.value(name)) if self.value(name) is not None else "nothing"
        if kind == "given":
            allowed = "a value" if bound else "nothing"
        elif kind in ("in", "not_in"):
            allowed = ("" if kind == "in" else "anything but ") + _or(bound)
        else:
            allowed = COMPARE[kind][1] + (
                f" {bound} ({_short(self.value(bound))})" if isinstance(bound, str) else f" {bound}"
            )
        because = " and ".join(f"{self.origin.get(other, other)} = {_short(self.value(other))}" for other in when)
        return f"{self.origin.get(name, f'{self.command}.{name}')}: found {found}, allowed {allowed}" + (
            f" with {because}" if because else ""
        )

    def argv(self) -> list[str]:
        positional = self.spec.get("positional", [])
        argv = [str(self.spec["executable"])]
        for name, option in self.options.items():
            if name not in self.values or name in positional:
                continue
            if option["type"] == "flag":
                argv += [f"--{name}"] if self.values[name] else []
            else:
                argv += [f"--{name}", _text(self.values[name])]
        return argv + [_text(self.values[name]) for name in positional]


def _checked(value: Any, option: Mapping[str, Any], where: str, reserved: Sequence[str]) -> Any:
    """Return ``value`` as the option takes it (a list joined by commas, say), or raise ``ConfigError``."""
    if option["type"] == "csv":
        items = value if isinstance(value, list) and value else [value]
        if all(isinstance(item, (str, int)) and not isinstance(item, bool) for item in items):
            value = ",".join(str(item) for item in items)
    if not _good(value, option, reserved):
        raise ConfigError(f"{where}: found {_short(value)}, allowed {_allowed(option)}")
    return value


def _good(value: Any, option: Mapping[str, Any], reserved: Sequence[str]) -> bool:
    kind = option["type"]
    if kind == "choice":
        return any(_same(value, choice) for choice in option["choices"])
    if isinstance(value, bool) or kind == "flag":
        return isinstance(value, bool) and kind == "flag"
    if kind in ("int", "float"):
        number = isinstance(value, int) or (kind == "float" and isinstance(value, float) and math.isfinite(value))
        return number and _in_range(value, option)
    if not isinstance(value, str):
        return False
    if "members" in option:
        return _good_list(value.split(","), option)
    pattern = {"tag": INFO_TAG, "path": SAFE_PATH}.get(kind) or re.compile(option["pattern"])
    return pattern.fullmatch(value) is not None and not (kind == "tag" and value in reserved)


def _in_range(value: float, option: Mapping[str, Any]) -> bool:
    inside = option.get("min", -math.inf) <= value <= option.get("max", math.inf)
    return bool(inside and option.get("above", -math.inf) < value < option.get("below", math.inf))


def _good_list(items: list[str], option: Mapping[str, Any]) -> bool:
    members = set(option["members"])
    complete = set(items) == members if option.get("all_members") else set(items) <= members
    return complete and len(items) == len(set(items))


def _allowed(option: Mapping[str, Any]) -> str:
    kind = option["type"]
    bounds = [
        (key, word)
        for key, word in (("min", "at least"), ("above", "more than"), ("max", "at most"), ("below", "less than"))
        if key in option
    ]
    ranged = " and ".join(f"{word} {option[key]}" for key, word in bounds)
    if kind in ("int", "float"):
        return ("a whole number" if kind == "int" else "a number") + (f", {ranged}" if ranged else "")
    if kind == "choice":
        return _or(option["choices"])
    if "members" in option:
        return (
            ("all of " if option.get("all_members") else "a list of ")
            + ",".join(option["members"])
            + ", each once, separated by commas"
        )
    return {
        "flag": "true or false",
        "tag": "the name of an INFO tag that VCF does not reserve",
        "path": "an absolute path of letters, digits and . _ + - /",
    }.get(kind) or f"text that matches {option['pattern']}"


def _same(one: Any, other: Any) -> bool:
    """Equal and of one kind: to Python True is 1, to a configuration it is not."""
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def _text(value: Any) -> str:
    # argparse takes -0.00001 for a value but -1e-05 for an unknown option
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


def _short(value: Any, limit: int = 80) -> str:
    text = (
        repr(value).lower()
        if isinstance(value, bool)
        else value
        if isinstance(value, str) and re.fullmatch(r"[\w.,/+-]+", value)
        else repr(value)
    )
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _or(values: Iterable[Any]) -> str:
    return " or ".join(_short(value) for value in values)


def _near(found: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(found, allowed, n=3)
    return f"did you mean {_or(close)}?" if close else f"allowed: {', '.join(allowed)}"
