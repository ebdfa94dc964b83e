"""Find the installed collection umccr.pcgr, whose libraries the commands use."""

from __future__ import annotations

import importlib
import sys

PLUGINS = "ansible_collections.umccr.pcgr.plugins.module_utils"


def find_collection() -> None:
    """Make the collection importable from where Ansible finds it; raises ImportError with one line if it is not installed.

    A Python environment may hold it in its site-packages; else the folders of Ansible's setting `collections_path` count.
    """
    try:
        importlib.import_module(PLUGINS)
    except ImportError:
        # Ansible's own finder decides; what an unfinished import left would keep it from being asked.
        for name in [name for name in sys.modules if name.partition(".")[0] == "ansible_collections"]:
            del sys.modules[name]
    else:
        return
    try:
        from ansible.plugins.loader import init_plugin_loader

        init_plugin_loader()
        importlib.import_module(PLUGINS)
    except ImportError as error:
        raise ImportError(
            f"the collection umccr.pcgr is not found ({error}); install it: ansible-galaxy collection install umccr.pcgr"
        ) from error
