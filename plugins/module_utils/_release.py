# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Release files: the only place that knows a version, an address or a checksum.

``load_release("2.3.2")`` gives one file of the folder ``releases/``, checked against its JSON schema, with the parsed
dialect (how that release's command line reads) in the place of the dialect's name. Works inside Ansible, as
``ansible_collections.umccr.pcgr.plugins.module_utils._release``, and imported by path from a checkout.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import re
from pathlib import Path
from typing import Any

try:
    import jsonschema
    import yaml
except ImportError as missing:
    IMPORT_ERROR: ImportError | None = missing
else:
    IMPORT_ERROR = None

RELEASES = Path(__file__).resolve().parents[2] / "releases"
NEWEST = "newest"


class ReleaseError(ValueError):
    """A release cannot be used; the text is one line: which file, which field, what was found and what is allowed."""


def load_release(name: str, directory: Path | None = None) -> dict[str, Any]:
    """Return the release called ``name`` (``"newest"``: the newest supported one) as a dict shaped like its file.

    ``dialect`` is the whole dialect; ``dialect["name"]`` keeps its name. Raises ``ReleaseError`` for an unknown name
    (with near matches), a file that breaks the schema, and a release that is refused (with the reason).
    """
    folder = RELEASES if directory is None else Path(directory)
    release = _read_release(newest_supported(folder) if name == NEWEST else name, folder)
    if release["status"] == "refused":
        raise ReleaseError(
            f"{folder / release['release']}.yml: release {release['release']} is refused: {release['refused_because']}"
        )
    return {**release, "dialect": load_dialect(release["dialect"], folder)}


def list_releases(directory: Path | None = None) -> list[str]:
    """Return the names of all release files, oldest version first, those that are no version (``rehearsal``) last."""
    folder = RELEASES if directory is None else Path(directory)
    return sorted((path.stem for path in folder.glob("*.yml")), key=_age)


def newest_supported(directory: Path | None = None) -> str:
    """Return the name of the newest release whose status is ``supported``; raises ``ReleaseError`` if there is none."""
    folder = RELEASES if directory is None else Path(directory)
    for name in reversed(list_releases(folder)):
        if _read_release(name, folder)["status"] == "supported":
            return name
    raise ReleaseError(f"{folder}: no release file has status: found none, allowed at least one 'supported'")


def load_dialect(name: str, directory: Path | None = None) -> dict[str, Any]:
    """Return a dialect, complete and checked: what it extends is merged in (JSON merge patch, RFC 7386)."""
    folder = (RELEASES if directory is None else Path(directory)) / "dialects"
    path = folder / f"{name}.yml"
    chain = _chain(name, folder)
    dialect: dict[str, Any] = functools.reduce(_merge, reversed(list(chain.values())))
    try:
        _check(dialect, folder / "schema.json", path)
        _check_names(dialect, path)
    except ReleaseError:
        for base in list(chain)[1:2]:
            load_dialect(base, directory)  # the fault may lie there: then that file is the one to name
        raise
    return dialect


def _read_release(name: str, folder: Path) -> dict[str, Any]:
    path = folder / f"{name}.yml"
    names = list_releases(folder)
    if name not in names:
        raise ReleaseError(f"{path}: release: found {name!r}, no such file; {_near(name, names)}")
    release = _parse(path)
    _check(release, folder / "schema.json", path)
    if release["release"] != name:
        raise ReleaseError(f"{path}: release: found {release['release']!r}, allowed {name!r}, the name of the file")
    for part in ("bundle", "vep"):
        archives = release[part]["archives"]
        if archives and set(archives) != set(release["assemblies"]):
            raise ReleaseError(
                f"{path}: {part}.archives: found {sorted(archives)}, "
                f"allowed {sorted(release['assemblies'])}, as in assemblies"
            )
    _check_pairs(release, path)
    return release


def _check_pairs(release: dict[str, Any], path: Path) -> None:
    """PCGR refuses a bundle of another date and a cache of another VEP: what the file names must belong together."""
    bundle, vep = release["bundle"], release["vep"]
    pairs = [("bundle", str(bundle["date"]), r"\.(\d{8})\."), ("vep", str(vep["release"]), r"_vep_(\d+)_")]
    for part, wanted, pattern in pairs:
        for assembly, archive in release[part]["archives"].items():
            for field in ("file", "url"):
                found = re.search(pattern, archive.get(field) or "")
                if found and found[1] != wanted:
                    raise ReleaseError(
                        f"{path}: {part}.archives.{assembly}.{field}: found {found[1]} in {archive[field]!r}, "
                        f"allowed {wanted}, as {part}.{'date' if part == 'bundle' else 'release'} says"
                    )
    packaged = vep["packaged"]
    if packaged and packaged.partition(".")[0] != str(vep["release"]):
        raise ReleaseError(
            f"{path}: vep.packaged: found {packaged}, allowed {vep['release']}.x: "
            f"VEP {packaged} cannot read a cache of release {vep['release']}"
        )


def _chain(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The dialect's own file and those that it extends, one after the other."""
    chain: dict[str, dict[str, Any]] = {}
    following: Any = name
    while following is not None:
        path = folder / f"{following}.yml"
        if following in chain:
            raise ReleaseError(f"{path}: extends: found the circle {' > '.join([*chain, following])}, allowed an end")
        if not path.is_file():
            raise ReleaseError(
                f"{path}: dialect: found {following!r}, no such file; {_near(name, list_releases(folder))}"
            )
        chain[following] = content = _parse(path)
        if content.get("name") != following:
            raise ReleaseError(
                f"{path}: name: found {content.get('name')!r}, allowed {following!r}, the name of the file"
            )
        following = content.pop("extends", None)
    return chain


def _check_names(dialect: dict[str, Any], path: Path) -> None:
    """Every option that a dialect speaks of elsewhere must be one of the command's options."""
    for command, spec in dialect["commands"].items():
        options = spec["options"]
        used = [("positional", name) for name in spec.get("positional", [])] + [
            ("any_of", name) for name in spec.get("any_of", [])
        ]
        for rule in spec.get("rules", []):
            for part in ("when", "require"):
                for name, condition in rule.get(part, {}).items():
                    used += [("rules", other) for other in (name, *condition.values()) if isinstance(other, str)]
        if command == "pcgr":
            for section, keys in dialect.get("legacy", {}).items():
                used += [
                    (f"legacy.{section}.{key}", entry["option"]) for key, entry in keys.items() if "option" in entry
                ]
        for field, name in used:
            if name not in options:
                raise ReleaseError(
                    f"{path}: {field}: found {name!r}, no option of {command}; {_near(name, list(options))}"
                )


def _parse(path: Path) -> dict[str, Any]:
    if IMPORT_ERROR is not None:
        raise ReleaseError(
            f"{path}: cannot be read: the Python library {IMPORT_ERROR.name} is missing (needed: PyYAML and jsonschema)"
        )
    stat = path.stat()
    return copy.deepcopy(_parsed(path, stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    del mtime_ns, size  # parts of the cache's key: an edited file is read anew
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506  # a safe loader either way
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReleaseError(f"{path}: is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{path}: found {_short(content)}, allowed a mapping of fields")
    return content


def _check(content: dict[str, Any], schema: Path, path: Path) -> None:
    error = jsonschema.exceptions.best_match(_validator(schema).iter_errors(content))
    if error is None:
        return
    field = ".".join(str(part) for part in error.absolute_path) or "(top level)"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        extra = sorted(set(error.instance) - set(known), key=str)
        raise ReleaseError(f"{path}: {field}: found the unknown field {extra[0]!r}; {_near(str(extra[0]), known)}")
    if error.validator == "required":
        raise ReleaseError(f"{path}: {field}: {error.message}")
    if error.schema is False or error.validator is None:
        raise ReleaseError(f"{path}: {field}: found {_short(error.instance)}, allowed nothing here")
    raise ReleaseError(
        f"{path}: {field}: found {_short(error.instance)}, allowed {error.validator} {_short(error.validator_value)}"
    )


@functools.lru_cache(maxsize=8)
def _validator(schema: Path) -> Any:
    try:
        return jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{schema}: is not a readable JSON schema: {error}") from error


def _merge(base: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386): mappings merge, null takes a key away, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _age(name: str) -> tuple[int, list[int], int, str]:
    """Sort key: versions by number, a release candidate before its release, names without a number last."""
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return (0 if numbers else 1, numbers, 0 if "rc" in name else 1, name)


def _near(found: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(found, allowed, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(allowed)}"


def _short(value: Any, limit: int = 120) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value, default=str)
    return repr(text) if isinstance(value, str) else text if len(text) <= limit else text[: limit - 3] + "..."
