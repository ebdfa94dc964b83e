"""Settings of the host's apt that guests need too: Debian sources, proxies, additional certificate authorities."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
SUITES = {SUITE, *(f"{SUITE}-{pocket}" for pocket in ("updates", "security", "backports"))}
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring"
# Proxies, and what a frozen mirror needs because its signatures have expired.
OPTIONS = re.compile(r'(Acquire::(?:https?::Proxy|Check-Valid-Until|Check-Date)) "([^"]+)";')


@dataclass(frozen=True)
class Settings:
    """The host's settings.

    ``sources`` maps file names to their text and is empty if the host has no Debian 12 sources. ``options`` holds lines
    for apt.conf.
    """

    sources: dict[str, str]
    options: list[str]


def read(apt: Path = Path("/etc/apt")) -> Settings:
    """Return the usable Debian 12 sources below ``apt``, and the options of the host's apt."""
    stanzas = [kept for file in _files(apt, "*.sources") for kept in _stanzas(file)]
    lines = [kept for file in _files(apt, "*.list") for kept in _lines(file)]
    sources = {}
    if stanzas:
        sources["debian.sources"] = "\n".join(stanzas)
    if lines:
        sources["debian.list"] = "".join(lines)
    return Settings(sources, _options())


def certificate_authorities(folder: Path = Path("/usr/local/share/ca-certificates")) -> dict[str, bytes]:
    """Return the authorities added to this host, which a company's proxy may need: file name -> PEM text."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.crt"))}


def _files(apt: Path, pattern: str) -> list[Path]:
    return [path for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob(pattern)))
            if path.match(pattern) and path.is_file()]  # fmt: skip


def _stanzas(path: Path) -> Iterable[str]:
    for stanza in re.split(r"\n\s*\n", path.read_text()):
        text = "\n".join(line for line in stanza.splitlines() if line.strip() and not line.startswith("#"))
        fields = {
            name.lower(): value.split() for name, value in re.findall(r"(?m)^([\w-]+):((?:.*(?:\n[ \t].*)*))", text)
        }
        if fields.get("enabled") != ["no"] and _usable(
            fields.get("uris", []), fields.get("suites", []), fields.get("signed-by", [])
        ):
            yield text + "\n"


def _lines(path: Path) -> Iterable[str]:
    for line in path.read_text().splitlines():
        if parsed := re.fullmatch(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+[^#]+(?:#.*)?", line):
            options, uri, suite = parsed.groups()
            if _usable([uri], [suite], re.findall(r"signed-by=(\S+)", options or "")):
                yield line.strip() + "\n"


def _usable(uris: list[str], suites: list[str], keys: list[str]) -> bool:
    """Whether a guest can use a source: Debian 12, over HTTP, with a key that every Debian has."""
    return (
        bool(uris and suites)
        and set(suites) <= SUITES
        and all(uri.startswith(("http://", "https://")) for uri in uris)
        and all(key.startswith(DEBIAN_KEYRING) for key in keys)
    )


def _options() -> list[str]:
    try:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no apt on this host
        return []
    return [f'{name} "{value}";' for name, value in OPTIONS.findall(dump)]
