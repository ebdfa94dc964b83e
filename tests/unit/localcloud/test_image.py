"""Building the base disk: progress, failures that leave nothing behind, boot loader, settings of the host's apt."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcloud import buildlock, hostapt, image

needs_grub = pytest.mark.skipif(not (image.GRUB_FOLDER / "boot.img").exists(), reason="grub-pc-bin not installed")


def fake(folder: Path, name: str, script: str) -> None:
    """Put a shell script in place of a program."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs take precedence over the host's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_progress_never_decreases_and_reaches_the_end(programs: Path) -> None:
    lines = ["0 upgraded, 2 newly installed, 0 to remove", "Get:1 a", "Get:2 b", "Setting up a", "Setting up b"]
    lines += ["0 upgraded, 40 newly installed, 0 to remove"]
    lines += [f"{verb} {name}" for verb in ("Get:1", "Unpacking", "Setting up") for name in range(40)]
    fake(programs, "mmdebstrap", "\n".join(f"echo '{line}' >&2" for line in lines))
    reported: list[str] = []
    image._follow(["mmdebstrap"], reported.append, os.environ)
    numbers = [int(line.split()[1]) for line in reported]
    assert all(later >= earlier + 5 for earlier, later in itertools.pairwise(numbers))
    # The first round counts as a quarter, so that progress continues during the second, longer one.
    assert sum(number > 25 for number in numbers) >= 14
    assert numbers[-1] == 100


@needs_grub
def test_failed_build_names_the_reason_and_leaves_nothing(programs: Path, tmp_path: Path) -> None:
    fake(programs, "mmdebstrap", "echo 'I: start' >&2; echo 'E: no such suite' >&2; exit 25")
    cache = tmp_path / "cache"
    with pytest.raises(image.ImageError, match=r"^base image: mmdebstrap ended with 25: E: no such suite$"):
        image.build_base_image(cache, lambda line: None)
    assert [path.name for path in cache.iterdir()] == ["base-image.lock"]


@needs_grub
def test_interrupted_build_kills_its_child_and_leaves_nothing(programs: Path, tmp_path: Path) -> None:
    fake(
        programs,
        "mmdebstrap",
        f"echo '1 newly installed' >&2; echo $$ > {tmp_path}/pid; echo 'Get:1' >&2; exec sleep 60",
    )

    def cut(line: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        image.build_base_image(tmp_path / "cache", cut)
    assert time.monotonic() - started < 50  # the child was killed, not waited for
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["base-image.lock"]


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "NEEDED", {"nonesuch-bootstrap": "mmdebstrap", "sh": "dash"})
    monkeypatch.setattr(image, "GRUB_FOLDER", tmp_path)
    with pytest.raises(image.ImageError, match=r"^base image: not installed on this host: mmdebstrap, grub-pc-bin"):
        image.build_base_image(tmp_path / "cache", lambda line: None)


def test_second_build_waits_for_the_first(tmp_path: Path) -> None:
    reported: list[str] = []
    order: list[str] = []

    def second() -> None:
        with buildlock.exclusive_lock(tmp_path / "lock", reported.append, "the base image"):
            order.append("second")

    with buildlock.exclusive_lock(tmp_path / "lock", reported.append, "the base image"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert reported == ["waiting for another build of the base image"]


@needs_grub
def test_boot_loader_leaves_the_file_system_alone(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as raw:
        raw.truncate(image.DISK_BYTES)
        raw.seek(image.PARTITION_START)
        raw.write(b"file system")
    image._write_boot_loader(disk, tmp_path)
    with disk.open("rb") as raw:
        first = raw.read(image.SECTOR)
        raw.seek(image.PARTITION_START)
        assert raw.read(11) == b"file system"
    assert first[510:] == b"\x55\xaa"
    active, kind, start, count = struct.unpack("<B3xB3xII", first[446:462])
    assert (active, kind, start * 512) == (0x80, 0x83, image.PARTITION_START)
    assert (start + count) * 512 == disk.stat().st_size == image.DISK_BYTES


def test_archive_holds_files_links_and_folders_of_root(tmp_path: Path) -> None:
    image._write_tar(tmp_path / "t.tar", {"etc/a/b": "text", "etc/link": Path("../run/x")})
    listing = subprocess.run(
        ["tar", "--numeric-owner", "-tvf", str(tmp_path / "t.tar")], capture_output=True, text=True, check=True
    ).stdout
    rows = [(line.split()[0], line.split()[1], line.split(maxsplit=5)[5]) for line in listing.splitlines()]
    assert rows == [
        ("drwxr-xr-x", "0/0", "etc/"),
        ("drwxr-xr-x", "0/0", "etc/a/"),
        ("-rw-r--r--", "0/0", "etc/a/b"),
        ("lrwxrwxrwx", "0/0", "etc/link -> ../run/x"),
    ]


# The host's apt

KEY = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"
GOOD = f"# a comment\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n{KEY}"


@pytest.mark.parametrize(
    "change",
    [
        ("bookworm-updates", "trixie"),
        ("http://mirror.example/debian", "file:/srv/debian"),
        ("http://mirror.example/debian", "mirror+file:/etc/apt/mirrors.list"),
        (KEY, "Signed-By: /etc/apt/keyrings/vendor.asc"),
        ("Types: deb", "Types: deb\nEnabled: no"),
        ("Suites: bookworm bookworm-updates\n", ""),
    ],
)
def test_only_sources_that_a_guest_can_use_are_kept(tmp_path: Path, change: tuple[str, str]) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "debian.sources").write_text(f"{GOOD}\n\n{GOOD.replace(*change)}\n")
    kept = hostapt.read(tmp_path).sources
    assert kept == {"debian.sources": GOOD.removeprefix("# a comment\n") + "\n"}


def test_one_line_sources(tmp_path: Path) -> None:
    good = [
        "deb http://mirror.example/debian bookworm main contrib",
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m.example bookworm-security main",
    ]
    bad = [
        "# deb http://mirror.example/debian bookworm main",
        "deb-src http://mirror.example/debian bookworm main",
        "deb cdrom:[Debian 12]/ bookworm main",
        "deb [signed-by=/etc/apt/keyrings/docker.asc] https://download.example bookworm stable",
        "deb http://mirror.example/ubuntu jammy main",
    ]
    (tmp_path / "sources.list").write_text("\n".join(good + bad) + "\n")
    assert hostapt.read(tmp_path).sources == {"debian.list": "\n".join(good) + "\n"}


def test_host_without_debian_sources_leaves_them_to_mmdebstrap(tmp_path: Path) -> None:
    assert hostapt.read(tmp_path).sources == {}


def test_options_of_proxies_and_frozen_mirrors_are_kept(programs: Path, tmp_path: Path) -> None:
    dump = (
        'Acquire::http::Proxy "http://proxy:3128";\nAcquire::Check-Date "false";\nAcquire::http::Timeout "3";\nAPT "";'
    )
    fake(programs, "apt-config", f"echo '{dump}'")
    wanted = ['Acquire::http::Proxy "http://proxy:3128";', 'Acquire::Check-Date "false";']
    assert hostapt.read(tmp_path).options == wanted


def test_certificate_authorities_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "company.crt").write_text("PEM")
    (tmp_path / "readme.txt").write_text("no")
    assert hostapt.certificate_authorities(tmp_path) == {"company.crt": b"PEM"}
    assert hostapt.certificate_authorities(tmp_path / "none") == {}


@pytest.fixture
def leftover(tmp_path: Path) -> Iterator[Path]:
    """The folder of a killed build, in which a folder of the host with the file ``kept`` is mounted."""
    folder, outside = tmp_path / "build-x", tmp_path / "of the host"
    (folder / "dev/shm").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept").touch()
    mount = ["mount", "--bind", str(outside), str(folder / "dev/shm")]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", folder / "dev/shm"], check=False, capture_output=True)
    assert (outside / "kept").exists()


def test_mounted_folder_of_a_killed_build_keeps_its_files(leftover: Path) -> None:
    image._remove(leftover)
    assert not leftover.exists()


def test_remaining_mount_stops_the_removal(leftover: Path) -> None:
    with (leftover / "dev/shm/kept").open(), pytest.raises(image.ImageError, match=r"left .*shm mounted"):
        image._remove(leftover)
    assert leftover.exists()
