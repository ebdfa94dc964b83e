# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: options of the modules that transfer large files."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment C(umccr.pcgr.transfer) and its sections; the argument spec is in module_utils/_transfer/options.py."""

    # Every module that transfers files.
    DOCUMENTATION = r"""
options:
  mirror_url:
    description:
      - Folder of a mirror, as C(http://), C(https://), C(file://) or C(s3://). It holds the files and the list of their checksums, C(SHA256SUMS).
      - Unset, the release's own URLs are used.
    type: str
  signed:
    description: Presigned URLs of the files of an C(s3://) mirror, as P(umccr.pcgr.s3_presigned_urls#lookup) returns them.
    type: dict
    default: {}
  timeout:
    description: Seconds of silence after which a connection counts as broken.
    type: int
    default: 60
  attempts:
    description: Attempts without progress after which the transfer fails.
    type: int
    default: 6
  defer:
    description:
      - If 1 GB or more is to be fetched, or the size is unknown, fetch nothing and return RV(deferred).
      - The action plugin sets it, and then runs the module again in the background.
    type: bool
    default: false
requirements:
  - python3-requests (for http and https)
"""

    # Modules that fetch one file by several connections.
    CONNECTIONS = r"""
options:
  connections:
    description: Connections used at once to download one file.
    type: int
    default: 6
"""

    # Modules that trust on first use what nobody publishes a checksum of.
    CHECKSUMS = r"""
options:
  checksums:
    description: File that remembers the first checksum of what nobody publishes one of. The same name must have the same checksum later.
    type: path
    default: /var/lib/pcgr/checksums.json
"""

    # Modules that install a runtime.
    RUNTIME = r"""
options:
  path:
    description: Folder below which runtimes are installed.
    type: path
    default: /opt/pcgr-runtime
  record:
    description: JSON file that names the installed runtime; samples run with it.
    type: path
    default: /etc/pcgr/runtime.json
  prune:
    description: Remove other runtimes.
    type: bool
    default: false
"""
