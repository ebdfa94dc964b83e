# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Argument spec of what several modules share about a transfer; documented in the fragment `umccr.pcgr.transfer`."""

from __future__ import annotations

from typing import Any

# Each name is a section of the documentation fragment; "DOCUMENTATION" is the one that all modules have.
SECTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "DOCUMENTATION": {
        "mirror_url": {"type": "str"},
        "signed": {"type": "dict", "default": {}, "no_log": True},
        "timeout": {"type": "int", "default": 60},
        "attempts": {"type": "int", "default": 6},
        "defer": {"type": "bool", "default": False},
    },
    "CONNECTIONS": {"connections": {"type": "int", "default": 6}},
    "CHECKSUMS": {"checksums": {"type": "path", "default": "/var/lib/pcgr/checksums.json"}},
    "RUNTIME": {
        "path": {"type": "path", "default": "/opt/pcgr-runtime"},
        "record": {"type": "path", "default": "/etc/pcgr/runtime.json"},
        "prune": {"type": "bool", "default": False},
    },
}


def transfer_spec(*sections: str, **own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the argument spec of a module: the options of all transfers, those of `sections`, and its `own`."""
    shared = [SECTIONS[name] for name in ("DOCUMENTATION", *(section.upper() for section in sections))]
    return {name: dict(option) for options in (*shared, own) for name, option in options.items()}


def download_options(params: dict[str, Any]) -> dict[str, Any]:
    """Return those of a module's parameters that every `Download` takes."""
    return {name: params[name] for name in ("timeout", "attempts", "signed")}
