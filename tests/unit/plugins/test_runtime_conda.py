"""Module runtime_conda with the real linker, from a channel made here and served on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.conda_channel import PREFIX, SOURCE, lock, package
from support.module_runner import command, load, record_progress, run
from umccr_pcgr.consumer.config import read_image

UNREACHABLE = "http://127.0.0.1:9"  # the discard port; nothing listens there


class Site:
    """A folder on loopback HTTP with a channel and lock files, and a machine's folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mirror = folder / "mirror"
        self.channel = self.mirror / "forge"
        self.requests: list[str] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_unused: Any) -> None:
                site.requests.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(self.mirror)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.linker = folder / "pcgr-conda-link"
        self.linker.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(SOURCE)!r})\n"
            "from pcgr_conda_link.cli import main\nmain()\n"
        )
        self.linker.chmod(0o755)
        self.lines = {"pcgr": self.tools(), "pcgrr": [self.report()]}

    def tools(self) -> list[str]:
        """Stand-ins for Python and Perl that use what lies in their own prefix, and a package for each."""
        python = f'#!/bin/sh\nPYTHONPATH={PREFIX}/lib/python3.12/site-packages exec /usr/bin/python3 "$@"\n'
        perl = f'#!/bin/sh\nexec /usr/bin/perl -I{PREFIX}/lib/perl5 "$@"\n'
        binary = b"\x7fELF\0" + PREFIX.encode() + b"/share/db\0" + b"tail\0"
        return [
            package(
                self.channel,
                "python",
                {"bin/python3.12": python.encode()},
                version="3.12.3",
                links={"bin/python": "python3.12"},
            ),
            package(self.channel, "perl", {"bin/perl": perl.encode()}, version="5.32.1", kind="tar.bz2"),
            package(
                self.channel,
                "hello",
                {"site-packages/hello.py": b"def main():\n    print('hello from Python')\n"},
                noarch="python",
                entry_points=("hello = hello:main",),
            ),
            package(
                self.channel,
                "perl-hello",
                {
                    "bin/phello": f"#!{PREFIX}/bin/perl\nuse Hello; Hello::say();\n".encode(),
                    "lib/perl5/Hello.pm": b"package Hello;\nsub say { print qq(hello from Perl\\n) }\n1;\n",
                },
                noarch="generic",
            ),
            package(self.channel, "libdb", {"lib/libdb.so.1": binary}, links={"lib/libdb.so": "libdb.so.1"}),
        ]

    def report(self) -> str:
        description = f"Package: hello\nBuilt: in {PREFIX}\n"
        return package(
            self.channel, "r-hello", {"lib/R/library/hello/DESCRIPTION": description.encode()}, noarch="generic"
        )

    def locks(self, base: str = "https://channels.example.org") -> dict[str, Any]:
        """Write the lock files; what a release says of them. Packages are below `base` there, on the mirror here."""
        entries = {}
        for name, lines in self.lines.items():
            text = lock(base, lines)
            (self.mirror / f"{name}.lock").write_text(text)
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            entries[name] = {"file": f"{name}.lock", "url": f"{self.url}/{name}.lock", "sha256": sha256}
        return entries

    def arguments(self, **more: Any) -> dict[str, Any]:
        """The module's arguments, with locks written now unless they are given."""
        return {
            "locks": more.get("locks") or self.locks(),
            "conda_mirror_url": self.url,
            "path": str(self.folder / "opt"),
            "record": str(self.folder / "etc/runtime.json"),
            "linker": str(self.linker),
            "attempts": 1,
            **more,
        }

    def provide(self, **more: Any) -> dict[str, Any]:
        answer = run("runtime_conda", **self.arguments(**more))
        print(answer.get("msg", ""))  # pytest shows it when a test fails
        return answer

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "etc/runtime.json").read_text())
        return found

    def left(self) -> list[str]:
        """Names below the folder of runtimes."""
        path = self.folder / "opt"
        return sorted(entry.name for entry in path.iterdir()) if path.exists() else []

    def refused(self, answer: dict[str, Any], *words: str) -> None:
        """The answer is one line with `words`, and nothing looks installed."""
        assert answer.get("failed"), answer
        assert "\n" not in answer["msg"]
        for word in words:
            assert word in answer["msg"], answer["msg"]
        assert not (self.folder / "etc").exists()
        assert [name for name in self.left() if not name.startswith(".packages-")] == []


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(load("module_utils._transfer.download"), "LONGEST_PAUSE", 0)
    made = Site(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def output(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def test_environments_work_and_are_recorded(site: Site) -> None:
    answer = site.provide()
    assert answer["changed"] is True, answer
    image = Path(answer["image"])
    sums = {name: entry["sha256"] for name, entry in site.locks().items()}
    assert site.record() == {
        "kind": "conda",
        "image": str(image),
        "prefixes": {"pcgr": f"{image}/envs/pcgr", "pcgrr": f"{image}/envs/pcgrr"},
        "locks": sums,
    }
    assert read_image(site.folder / "etc/runtime.json").prefixes == site.record()["prefixes"]
    assert len(image.name) == 16
    assert site.left() == [image.name]
    prefix = image / "envs/pcgr"
    assert not (prefix / "CACHEDIR.TAG").exists()
    assert output(prefix / "bin/hello") == "hello from Python\n"
    assert output(prefix / "bin/phello") == "hello from Perl\n"
    (compiled,) = (prefix / "lib/python3.12/site-packages/__pycache__").glob("hello.*.pyc")
    assert compiled.read_bytes()[4] == 3  # compared by the source's hash (PEP 552)
    assert (image / "envs/pcgrr/lib/R/library/hello/DESCRIPTION").read_text().endswith(f"in {image}/envs/pcgrr\n")
    binary = (prefix / "lib/libdb.so").read_bytes()
    assert binary.startswith(b"\x7fELF\0" + str(prefix).encode() + b"/share/db\0\0")
    assert len(binary) == len(PREFIX) + len(b"\x7fELF\0/share/db\0tail\0")
    meta = json.loads((prefix / "conda-meta/hello-1.0-h0_7.json").read_text())
    assert meta["url"] == "https://channels.example.org/forge/noarch/hello-1.0-h0_7.conda"
    site.requests.clear()
    assert site.provide()["changed"] is False
    assert site.requests == []


def test_everyone_can_use_it_and_only_root_change_it(site: Site) -> None:
    before = os.umask(0o077)
    try:
        image = Path(site.provide()["image"])
    finally:
        os.umask(before)
    for path in [image, *image.rglob("*")]:
        if not path.is_symlink():
            assert path.stat().st_mode & 0o022 == 0, path
            assert path.stat().st_mode & 0o044 == 0o044, path
            assert not path.is_dir() or path.stat().st_mode & 0o011 == 0o011, path


def test_tree_names_no_place_but_its_own_and_can_be_copied(site: Site, tmp_path: Path) -> None:
    image = Path(site.provide()["image"])
    for path in image.rglob("*"):
        if path.is_symlink():
            assert not path.readlink().is_absolute()
        elif path.is_file():
            rest = path.read_bytes().replace(str(image).encode(), b"")
            assert str(tmp_path).encode() not in rest, path
    copy = tmp_path / "carried"
    shutil.copytree(image, copy, symlinks=True)
    shutil.rmtree(tmp_path / "opt")
    shutil.rmtree(tmp_path / "mirror")
    shutil.copytree(copy, image, symlinks=True)
    assert output(image / "envs/pcgr/bin/hello") == "hello from Python\n"
    assert output(image / "envs/pcgr/bin/phello") == "hello from Perl\n"


def test_packages_come_from_the_channel_without_a_mirror(site: Site) -> None:
    answer = site.provide(locks=site.locks(site.url), conda_mirror_url=None)
    assert answer["changed"] is True, answer
    site.refused(run_fresh(site, conda_mirror_url=UNREACHABLE), UNREACHABLE, "given up")


def run_fresh(site: Site, **more: Any) -> dict[str, Any]:
    """As on a machine that has nothing yet."""
    for name in ("opt", "etc"):
        shutil.rmtree(site.folder / name, ignore_errors=True)
    return site.provide(**more)


def test_other_locks_are_another_folder_and_the_old_one_stays_unless_asked(site: Site) -> None:
    first = Path(site.provide()["image"])
    site.lines["pcgrr"].append(package(site.channel, "r-more", {"lib/R/library/more/x": b"x"}, noarch="generic"))
    assert site.provide(check=True)["changed"] is True
    answer = site.provide()
    second = Path(answer["image"])
    assert first != second
    assert answer["removed"] == []
    assert site.record()["image"] == str(second)
    assert first.exists()
    assert site.provide(prune=True, check=True)["removed"] == [str(first)]
    assert first.exists()
    assert site.provide(prune=True)["removed"] == [str(first)]
    assert site.left() == [second.name]
    assert site.provide(prune=True)["changed"] is False


def test_wrong_md5_is_refused(site: Site) -> None:
    line = site.lines["pcgr"][2]
    (site.mirror / line.partition("#")[0]).write_bytes(b"something else")
    site.refused(site.provide(), "hello-1.0-h0_7.conda", "md5 is", f"expected {line.partition('#')[2]}")


def test_web_page_in_place_of_a_package_is_told(site: Site) -> None:
    path = site.mirror / site.lines["pcgr"][2].partition("#")[0]
    path.unlink()
    path.mkdir()  # the server then lists the folder
    site.refused(site.provide(), "hello-1.0-h0_7.conda", "text/html")


def test_damaged_package_is_told(site: Site) -> None:
    """The right MD5 of what is no package at all."""
    site.lines["pcgr"].append(f"forge/noarch/bad-1.0-0.conda#{hashlib.md5(b'bad').hexdigest()}")
    (site.channel / "noarch/bad-1.0-0.conda").write_bytes(b"bad")
    site.refused(site.provide(), "envs/pcgr")
    assert not list((site.folder / "opt").glob(".packages-*/unpacked"))


def test_lock_must_have_its_checksum(site: Site) -> None:
    locks = site.locks()
    (site.mirror / "pcgr.lock").write_text("<html>not found</html>")
    site.refused(site.provide(locks=locks), "pcgr.lock: sha256 is", locks["pcgr"]["sha256"])


def test_lock_without_checksum_needs_a_mirrors(site: Site) -> None:
    locks = site.locks()
    sums = {name: entry.pop("sha256") for name, entry in locks.items()}
    site.refused(site.provide(locks=locks), "lock pcgr (pcgr.lock)", "sha256", "pcgr_mirror_url")
    (site.mirror / "SHA256SUMS").write_text(f"{sums['pcgr']}  pcgr.lock\n")
    site.refused(site.provide(locks=locks, mirror_url=site.url), "lock pcgrr (pcgrr.lock)", "SHA256SUMS")
    (site.mirror / "SHA256SUMS").write_text("".join(f"{sums[name]}  {name}.lock\n" for name in sums))
    assert site.provide(locks=locks, mirror_url=site.url)["changed"] is True


def test_locks_from_a_bucket(site: Site) -> None:
    locks = site.locks()
    site.refused(site.provide(locks=locks, mirror_url="s3://site"), "s3://site/pcgr.lock", "signed")
    signed = {f"s3://site/{name}.lock": f"{site.url}/{name}.lock?X-Amz-Signature=secret" for name in locks}
    assert site.provide(locks=locks, mirror_url="s3://site", signed=signed)["changed"] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<html>login</html>", ["@EXPLICIT", "<html>login"]),
        ("# platform: osx-arm64\n@EXPLICIT\n", ["osx-arm64", "linux-64"]),
        ("@EXPLICIT\n", ["names no package"]),
        ("@EXPLICIT\nhttps://x/y/noarch/z-1-0.conda\n", ["line 2", "#MD5"]),
        ("@EXPLICIT\nhttps://x/y/noarch/../../../etc/passwd#" + "0" * 32 + "\n", ["line 2"]),
    ],
)
def test_what_is_no_lock_file_is_refused(site: Site, text: str, words: list[str]) -> None:
    locks = site.locks()
    (site.mirror / "pcgr.lock").write_text(text)
    locks["pcgr"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    site.refused(site.provide(locks=locks), "pcgr.lock", *words)


def test_cut_while_fetching_keeps_what_came(site: Site) -> None:
    last = site.mirror / site.lines["pcgrr"][0].partition("#")[0]
    body = last.read_bytes()
    last.unlink()
    assert "404" in site.provide()["msg"]
    last.write_bytes(body)
    site.requests.clear()
    answer = site.provide()
    assert answer.get("changed") is True, answer
    assert {Path(path).suffix for path in site.requests} == {".lock", ".conda"}
    assert {Path(path).name for path in site.requests if path.endswith(".conda")} == {last.name}


def test_folder_without_a_stamp_is_made_again(site: Site) -> None:
    image = Path(site.provide()["image"])
    (image / ".umccr.pcgr.json").unlink()
    (image / "envs/pcgr/half").write_text("of a run that was cut")
    assert site.provide(check=True)["changed"] is True
    answer = site.provide()
    assert answer.get("changed") is True, answer
    assert not (image / "envs/pcgr/half").exists()


def test_cut_while_linking_leaves_the_old_runtime_in_use(site: Site) -> None:
    first = site.provide()["image"]
    site.lines["pcgrr"].append(package(site.channel, "r-more", {"lib/R/library/more/x": b"x"}, noarch="generic"))
    good = site.linker.read_text()
    site.linker.write_text("#!/bin/sh\ncat >/dev/null\necho cut >&2\nexit 1\n")
    assert site.provide()["msg"] == "cut"
    assert site.record()["image"] == first
    assert output(Path(first) / "envs/pcgr/bin/hello") == "hello from Python\n"
    site.linker.write_text(good)
    assert site.provide()["image"] != first


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_the_old_runtime_in_use_or_the_new_one(site: Site) -> None:
    first = site.provide()["image"]
    site.lines["pcgrr"].append(package(site.channel, "r-more", {"lib/R/library/more/x": b"x"}, noarch="generic"))
    locks = site.locks()
    second = site.provide(check=True, locks=locks)["image"]
    arguments = site.arguments(locks=locks)
    seen = set()
    chance = random.Random(1)  # the moments are others on every machine all the same
    for _unused in range(20):
        shutil.rmtree(second, ignore_errors=True)
        shutil.rmtree(site.folder / "opt" / f".packages-{Path(second).name}", ignore_errors=True)
        write_record(site, first)
        process = subprocess.Popen(command("runtime_conda", **arguments), start_new_session=True)
        while process.poll() is None and not list((site.folder / "opt").glob(".packages-*")):
            time.sleep(0.005)  # what comes before this has nothing to lose
        time.sleep(chance.uniform(0, 1))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        used = site.record()["image"]
        assert used in (first, second)
        assert output(Path(used) / "envs/pcgr/bin/hello") == "hello from Python\n"
        assert (Path(used) / "envs/pcgrr/lib/R/library/more/x").exists() == (used == second)
        seen.add(used)
        assert site.provide(locks=locks)["image"] == second
        assert site.left() == sorted([Path(first).name, Path(second).name])
    assert first in seen


def write_record(site: Site, image: str) -> None:
    """Let the record name the runtime at `image`, as before a change of release."""
    (site.folder / "etc/runtime.json").write_text(json.dumps({"kind": "conda", "image": image}))


HOOK = "bin/.bioconductor-genome-post-link.sh"


def with_hook(site: Site, script: str) -> None:
    """A data package as Bioconductor's: its post-link script fetches what it installs."""
    urls = {"genome-1.0": {"fn": "genome_1.0.tar.gz", "urls": ["https://data.example.org/g"], "md5": "0"}}
    files = {HOOK: script.encode(), "share/bioconductor-data-packages/dataURLs.json": json.dumps(urls).encode()}
    site.lines["pcgrr"].append(package(site.channel, "bioconductor-genome", files, noarch="generic"))


def test_post_link_scripts_run_as_in_conda(site: Site) -> None:
    with_hook(site, '#!/bin/bash\necho "$PREFIX $PKG_NAME $PKG_VERSION $PKG_BUILDNUM $PWD ${PATH%%:*}" > $PREFIX/ran\n')
    prefix = Path(site.provide()["image"]) / "envs/pcgrr"
    assert (prefix / "ran").read_text() == f"{prefix} bioconductor-genome 1.0 7 {prefix} {prefix}/bin\n"
    entry = json.loads((prefix / "share/bioconductor-data-packages/dataURLs.json").read_text())["genome-1.0"]
    assert entry["urls"] == [f"{site.url}/bioconductor-data/genome_1.0.tar.gz", "https://data.example.org/g"]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo could not download >&2; exit 3", "could not download"),
        # as Bioconductor's data packages do
        (
            "set -ex; echo 'ERROR: unable to download any of'; echo https://data.example.org/g; exit 1",
            "ERROR: unable to",
        ),
        ("exit 3", "exit code 3"),
    ],
)
def test_post_link_script_that_fails_is_told(site: Site, script: str, told: str) -> None:
    with_hook(site, f"#!/bin/bash\n{script}\n")
    site.refused(site.provide(), "bioconductor-genome-1.0-h0_7.conda: its post-link script failed: " + told)


def test_post_link_scripts_can_be_refused(site: Site) -> None:
    with_hook(site, "#!/bin/bash\ntouch $PREFIX/../../../../ran\n")
    site.refused(site.provide(post_link="refuse"), "bioconductor-genome", "runtime_conda_post_link")
    assert not (site.folder / "ran").exists()


def test_two_runs_at_once(site: Site) -> None:
    (site.folder / "opt").mkdir()
    with load("module_utils._state").exclusive_lock(str(site.folder / "opt")):
        site.refused(site.provide(), "another run")
    answer = site.provide()
    assert answer.get("changed") is True, answer


def test_too_little_room(site: Site) -> None:
    site.refused(site.provide(space_factor=1e15), "GB free", "6 packages")


def test_check_mode_predicts_without_a_linker_or_network(site: Site) -> None:
    locks = site.locks()
    answer = site.provide(check=True, locks=locks, linker="/nowhere", conda_mirror_url=UNREACHABLE)
    assert answer["changed"] is True
    assert site.requests == []
    assert site.left() == []
    assert site.provide(locks=locks)["image"] == answer["image"]


def test_a_large_transfer_is_deferred_and_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock files tell no sizes, so conda environments are always much."""
    locks = site.locks()
    deferred = site.provide(locks=locks, defer=True)
    assert (deferred["changed"], deferred["deferred"]) == (False, f"{site.folder}/opt/.umccr.pcgr.progress")
    assert site.requests == []
    told = record_progress(monkeypatch)
    assert site.provide(locks=locks)["changed"] is True
    steps = [(one["done"], one["size"], one["unit"]) for one in told if one["part"] == "conda packages"]
    assert steps == sorted(steps)
    assert {step[0] for step in steps} >= {0, 1, 2, 3, 4}
    assert {step[1:] for step in steps} == {(6, "packages")}
    assert [part for part in dict.fromkeys(one["part"] for one in told) if part] == [
        "conda packages",
        "conda environment pcgr",
        "conda environment pcgrr",
    ]
    assert not [name for name in site.left() if "progress" in name]
    assert site.provide(locks=locks, defer=True)["changed"] is False
