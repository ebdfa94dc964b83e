# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Query a registry of container images without an account."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any
from urllib.parse import urlencode

from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import Download, DownloadError

try:
    import requests
except ImportError:
    requests = None  # type: ignore[assignment]

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_BYTES = 4 << 20  # the most that registries have to accept
# A token without a stated life lasts 60 s (the registries' token specification).
TOKEN_SECONDS = 60


class Registry:
    """Requests about `repository` at `base` (host, perhaps with scheme, port and path). Raises DownloadError.

    `tag` may also be a digest.
    """

    def __init__(self, base: str, repository: str, tag: str, timeout: float) -> None:
        scheme, _unused, rest = (
            (base if re.match("https?://", base) else f"https://{base}").rstrip("/").partition("://")
        )
        # A mirror below a path has that path between /v2/ and the repository.
        host, _unused, folder = rest.partition("/")
        self.base, self.repository = f"{scheme}://{host}", f"{folder}/{repository}".lstrip("/")
        self.tag, self.timeout = tag, timeout
        self._challenge: dict[str, str] | None = None
        self._token, self._until = "", 0.0
        self._lock = threading.Lock()

    def url(self, kind: str, name: str) -> str:
        """Address of a manifest or blob."""
        return f"{self.base}/v2/{self.repository}/{kind}/{name}"

    def headers(self) -> dict[str, str]:
        """Headers of the next request; tokens last minutes, so that a long download needs several."""
        with self._lock:
            if self._challenge is None:
                self._challenge = self._ask()
            if self._challenge and time.monotonic() >= self._until:
                self._new_token(self._challenge)
            return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _ask(self) -> dict[str, str]:
        """The registry's challenge for a token; empty if it needs none."""
        url = self.url("manifests", self.tag)
        answer = requests.head(url, headers={"Accept": ", ".join(MANIFESTS)}, timeout=self.timeout)
        if answer.status_code >= 500:
            answer.raise_for_status()  # an OSError, which is tried again
        if answer.status_code != 401:
            return {}
        offered = answer.headers.get("WWW-Authenticate", "")
        challenge = dict(re.findall(r'(\w+)="([^"]*)"', offered))
        if not offered.lower().startswith("bearer ") or "realm" not in challenge:
            raise DownloadError(
                f"{url}: the registry wants a login ({offered.split(' ')[0] or 'of no kind'}); only public images can be had"
            )
        return challenge

    def _new_token(self, challenge: dict[str, str]) -> None:
        query = {"service": challenge.get("service", ""), "scope": f"repository:{self.repository}:pull"}
        url = f"{challenge['realm']}?{urlencode(query)}"
        answer = requests.get(url, timeout=self.timeout)
        try:
            given = answer.json()
            self._token = given.get("token") or given["access_token"]
            life = float(given.get("expires_in") or TOKEN_SECONDS)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DownloadError(
                f"{url}: the registry gives no token without an account ({answer.status_code} {answer.reason})"
            ) from error
        self._until = time.monotonic() + life / 2

    def manifest(self, options: dict[str, Any], architecture: str = "") -> dict[str, Any]:
        """The manifest of the image; of an index, the one for `architecture` (as Go names it)."""
        found = self._manifest(self.tag, options)
        for entry in found.get("manifests", []):
            platform = entry.get("platform", {})
            if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
                return self._manifest(entry["digest"], options)
        return found

    def _manifest(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        url, text = self.url("manifests", name), b""
        accept = {"Accept": ", ".join(MANIFESTS)}
        for block in Download(url, headers=lambda: accept | self.headers(), **options).blocks():
            text += block
            if len(text) > MANIFEST_BYTES:
                break
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise DownloadError(f"{url}: found no image manifest but {bytes(text[:40])!r}") from error
