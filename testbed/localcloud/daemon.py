"""The process of a region: its servers, the images it registers, and its shutdown."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# moto reads these on import. The first hides hundreds of images that cannot boot here; the others make it refuse what AWS
# refuses.
os.environ |= {
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
}

from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.security import safe_join
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response

from localcloud import moto_hooks
from localcloud.accelerator import accelerator
from localcloud.clients import write_config
from localcloud.lifecycle import HOST, PORT, clean, exclusive_lock
from localcloud.proxy import ConnectMixin
from localcloud.region import Region
from localcloud.settings import ACCOUNT, DEBIAN_ACCOUNT, GIB, Settings

ROOT_GIB = 8  # size of the root volume, as in Debian's images on AWS
ROOT_DEVICE = "/dev/xvda"  # as in Debian's images on AWS
BASE_IMAGE = "debian-12-localcloud"
DEBIAN_NAMED_IMAGE = "debian-12-amd64-localcloud"  # matches the filters that find Debian's own images

log = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve(settings: Settings, base: Path, port: int | None, directory: Path | None) -> None:
    """Serve the region until SIGTERM, SIGINT or SIGHUP; raises AlreadyRunning.

    ``base`` is the raw disk of the base image, ``port`` that of the API (None: the preferred one if it is free), and
    ``directory`` the folder to serve to the instances, if any.
    """
    with exclusive_lock(settings):
        clean(settings)
        sockets = Path(tempfile.mkdtemp(prefix="localcloud-"))  # the path of a Unix socket must be short
        # Recorded first, so that the next region can clean up whatever happens to this one.
        _write_record(settings.record, {"pid": os.getpid(), "sockets": str(sockets)})
        network, network_lock = _reserve_network()
        region = Region(settings, sockets, network, accelerator())
        moto_hooks.install(region)
        image_id = _register_base_image(settings, region, base)
        handler = type("Handler", (ConnectMixin, MotoRequestHandler), {})
        api = _server(port if port is not None else PORT, _api_server(region), handler, fixed=port is not None)
        mirror = _server(0, _file_server(directory), WSGIRequestHandler) if directory else None
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_unused: ended.set())
        reconciler = threading.Thread(target=region.run, name="reconciler")
        reconciler.start()
        for server in filter(None, (api, mirror)):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        write_config(settings, api.port)
        ports = {"port": api.port, "mirror_port": mirror.port if mirror else None, "directory": str(directory or "")}
        names = {"image": image_id, "region": settings.region}
        _write_record(settings.record, {"pid": os.getpid(), "sockets": str(sockets), **ports, **names})
        log.info("region %s at http://%s:%s", settings.region, HOST, api.port)
        ended.wait()
        region.stop()
        reconciler.join()
        network_lock.close()
        clean(settings)


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record))
    new.replace(path)


def _reserve_network() -> tuple[int, socket.socket]:
    """Reserve a network of public addresses; return its number, the n of 127.100.n.x, and the socket that reserves it."""
    for network in range(256):
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0localcloud-network-{network}")  # abstract: the kernel frees it with the process
        except OSError:
            lock.close()
        else:
            return network, lock
    raise OSError("127.100.0.0/16: found all 256 networks taken by other regions")


def _register_base_image(settings: Settings, region: Region, base: Path) -> str:
    """Register the base image under both names; return the id of the first."""
    backend = ec2_backends[ACCOUNT][settings.region]
    if not isinstance(backend, moto_hooks.EC2Backend):
        raise TypeError("moto was used before its hooks were installed")
    ids = []
    for name in (BASE_IMAGE, DEBIAN_NAMED_IMAGE):
        snapshot = backend.add_snapshot(-(-base.stat().st_size // GIB), name)
        region.disks.import_snapshot(snapshot.id, base)
        snapshot.status, snapshot.owner_id = "completed", DEBIAN_ACCOUNT
        ebs = {"SnapshotId": snapshot.id, "VolumeSize": ROOT_GIB, "VolumeType": "gp3", "DeleteOnTermination": True}
        devices = [{"DeviceName": ROOT_DEVICE, "Ebs": ebs | {"Encrypted": False}}]
        # The id is the same in every region, because users write it into settings files.
        ids.append(f"ami-{hashlib.sha256(name.encode()).hexdigest()[:17]}")
        backend.add_image(
            name, name, devices, ROOT_DEVICE, image_id=ids[-1], owner_id=DEBIAN_ACCOUNT, public=True
        )  # fmt: skip
    return ids[0]


class _NoRequestLog:
    def log_request(self, *_unused: Any) -> None:
        """Log nothing: a line per request would hide the rest."""


def _server(
    port: int, application: Application, handler: type[WSGIRequestHandler], *, fixed: bool = True
) -> BaseWSGIServer:
    quiet = type("Handler", (_NoRequestLog, handler), {})
    try:
        return make_server(HOST, port, application, threaded=True, request_handler=quiet)
    except (OSError, SystemExit):  # werkzeug exits when the port is taken
        if fixed:
            raise OSError(
                f"--port: found {port}, which is in use or reserved for root; allowed is a free one"
            ) from None
        return make_server(HOST, 0, application, threaded=True, request_handler=quiet)


def _api_server(region: Region) -> Application:
    """Return moto's API with events that AWS itself triggers below /_localcloud/, which cannot be the name of a bucket."""
    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/_localcloud/"):
            return _answer_control(region, Request(environ))(environ, start_response)
        return moto(environ, start_response)  # type: ignore[no-any-return]

    return application


def _answer_control(region: Region, request: Request) -> Response:
    try:
        call = json.loads(request.get_data() or b"{}")
        with region.lock:
            if request.path == "/_localcloud/interrupt":
                return Response(region.interrupt(call["instance_id"], float(call["seconds"])))
            if request.path == "/_localcloud/rebalance":
                return Response(region.rebalance(call["instance_id"]))
    except ValueError as error:
        return Response(str(error), 400)
    return Response("no such call", 404)


def _file_server(directory: Path) -> Application:
    """Serve the files below ``directory``, with ranges; for a folder, serve its index.html."""

    @Request.application
    def application(request: Request) -> Response:
        try:
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(["GET", "HEAD"])
            found = safe_join(str(directory), request.path.strip("/"))
            path = Path(found or "")
            path = path / "index.html" if path.is_dir() else path
            if not found or not path.is_file():
                raise NotFound(f"{request.path}: no such file")
            return send_file(path, request.environ, conditional=True)
        except HTTPException as error:
            return error.get_response(request.environ)

    return application
