"""The EC2 metadata service (IMDSv2 only): the id of this instance, and the notice that it will be interrupted."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

log = logging.getLogger(__name__)
ADDRESS = "http://169.254.169.254"
POLL_SECONDS = 5.0  # AWS's advice for polling the notice, which appears two minutes before
TOKEN_SECONDS = 21600  # the most that the service allows
ANSWER_SECONDS = 2.0
FIRST_TRIES = 3  # the service may answer slowly just after boot


class InterruptionWatch:
    """Calls `notify` once with the interruption notice, in one line. Ends where no EC2 metadata service answers.

    ``instance`` is the instance id as soon as it is known, else "".
    """

    instance = ""

    def __init__(
        self, notify: Callable[[str], None], *, address: str | None = None, poll: float = POLL_SECONDS
    ) -> None:
        parts = urlsplit(address or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ADDRESS)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._notify = notify
        self._poll = poll
        self._token = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spot-watch", daemon=True)

    def start(self) -> None:
        """Start the thread, unless the environment switches the metadata service off (as for boto3)."""
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(65536)
        finally:
            connection.close()

    def _renew(self) -> bool:
        """Fetch a session token; only EC2 and compatible services return one."""
        try:
            status, body = self._request(
                "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            )
        except (OSError, http.client.HTTPException):
            return False
        self._token = body.decode("ascii", "replace").strip() if status == http.HTTPStatus.OK else ""
        return bool(self._token)

    def _get(self, path: str) -> bytes:
        """Return one item of metadata; empty when there is none now."""
        try:
            status, body = self._request("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except (OSError, http.client.HTTPException):
            return b""
        if status == http.HTTPStatus.UNAUTHORIZED:
            self._renew()
        return body if status == http.HTTPStatus.OK else b""

    def _identify(self) -> None:
        found = self._get("instance-id").decode("ascii", "replace").strip()
        if re.fullmatch("i-[0-9a-f]+", found):
            self.instance = found

    def _notice(self) -> str | None:
        body = self._get("spot/instance-action")
        try:
            found = json.loads(body)
            return f"EC2 will {found['action']} this instance at {found['time']}"
        except (ValueError, KeyError, TypeError):
            return None

    def _run(self) -> None:
        for _unused in range(FIRST_TRIES):
            if self._renew():
                break
            if self._over.wait(self._poll):
                return
        else:
            log.info("no EC2 metadata service here: not watching for interruption notices")
            return
        while True:
            if not self.instance:
                self._identify()
            if notice := self._notice():
                self._notify(notice)
                return
            if self._over.wait(self._poll):
                return
