"""The rehearsal image as it is shipped: built, unpacked, its commands run inside, in docker where a daemon answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._release import load_release

from rehearsal import build

pytestmark = pytest.mark.slow
VCF = (
    "##fileformat=VCFv4.2\n##contig=<ID=1,length=248956422>\n"
    '##INFO=<ID=TDP,Number=1,Type=Integer,Description="x">\n##INFO=<ID=TVAF,Number=1,Type=Float,Description="x">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n1\t100\t.\tA\tG\t.\tPASS\tTDP=100;TVAF=0.5\n"
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def unpack(folder: Path, *, archive: Path | None = None, layer: Any = None) -> None:
    """Unpack a file or a stream with the system's tar: links are kept, and every Python does."""
    folder.mkdir(exist_ok=True)
    if archive is None:
        archive = folder.with_suffix(".layer")
        archive.write_bytes(layer.read())
    command = ["tar", "--extract", "--no-same-owner", f"--directory={folder}", f"--file={archive}"]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("mirror")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umccr.pcgr"
    return out, build.build(out, home)


@pytest.fixture(scope="module")
def inside(
    archives: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Run, Path]]:
    """A function that runs a command in the image, and the folder that is /mnt there."""
    out, record = archives
    mount = tmp_path_factory.mktemp("mnt")
    mount.chmod(0o755)
    for name in ("bundle", "vep", "out"):
        (mount / name).mkdir()
    (mount / "out").chmod(0o777)
    (mount / "in.vcf").write_text(VCF)
    for archive, folder in ((build.BUNDLE, "bundle"), (build.VEP, "vep")):
        unpack(mount / folder, archive=out / archive)
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        subprocess.run(["docker", "load", "-q", "-i", str(out / build.IMAGE)], check=True)
        flags = [
            "--rm",
            "--network",
            "none",
            "--user",
            "4321:4321",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--cap-drop",
            "ALL",
            "-e",
            "HOME=/tmp",
        ]
        command = ["docker", "run", *flags, "-v", f"{mount}:/mnt", record["image_id"]]
    else:
        root = tmp_path_factory.mktemp("root")
        with tarfile.open(out / build.IMAGE) as stream:
            layer = stream.extractfile(json.load(stream.extractfile("manifest.json"))[0]["Layers"][0])  # type: ignore[arg-type]
            unpack(root, layer=layer)
        script = 'mount --bind "$1" "$2/mnt" && shift && root=$1 && shift && exec chroot "$root" "$@"'
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(mount), str(root)]
        command += ["/usr/bin/python3", "-c"]
        command += [
            "import os, sys; os.environ['PATH'] = '/opt/mambaforge/envs/pcgr/bin'; os.execvp(sys.argv[1], sys.argv[1:])"
        ]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

    yield run, mount
    if command[0] == "docker":
        subprocess.run(["docker", "rmi", "-f", record["reference"]], capture_output=True, check=False)


def test_the_archive_is_what_the_record_says(archives: tuple[Path, dict[str, Any]]) -> None:
    out, record = archives
    with tarfile.open(out / build.IMAGE) as stream:
        manifest = json.load(stream.extractfile("manifest.json"))  # type: ignore[arg-type]
        config_text = stream.extractfile(manifest[0]["Config"]).read()  # type: ignore[union-attr]
    assert [tag.removeprefix("docker.io/") for tag in manifest[0]["RepoTags"]] == [record["reference"]]
    assert len(manifest[0]["Layers"]) == 1
    assert record["image_id"] == "sha256:" + hashlib.sha256(config_text).hexdigest()
    config = json.loads(config_text)
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    assert not {"Entrypoint", "User"} & config["config"].keys()
    assert "PATH=/opt/mambaforge/envs/pcgr/bin:/usr/bin:/bin" in config["config"]["Env"]
    assert record["unpacked_bytes"] < 150e6


def test_a_second_build_gives_the_same_bytes(archives: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umccr.pcgr"
    assert build.build(tmp_path, home) == archives[1]


def test_versions(inside: tuple[Run, Path]) -> None:
    run, _unused = inside
    assert run("pcgr", "--version").stdout == "pcgr 2.3.2\n"
    assert run("cpsr", "--version").stdout == "cpsr 2.3.0\n"


def test_a_run_and_a_refusal(inside: tuple[Run, Path]) -> None:
    run, mount = inside
    common = [
        "--refdata_dir",
        "/mnt/bundle",
        "--vep_dir",
        "/mnt/vep",
        "--output_dir",
        "/mnt/out",
        "--genome_assembly",
        "grch38",
    ]
    tags = ["--tumor_dp_tag", "TDP", "--tumor_af_tag", "TVAF"]
    good = run("pcgr", "--input_vcf", "/mnt/in.vcf", "--sample_id", "demo", *common, *tags)
    assert good.returncode == 0, good.stderr
    assert "Finished PCGR!" in good.stdout
    assert {"demo.pcgr.grch38.html", "demo.pcgr.grch38.xlsx", "demo.pcgr.grch38.conf.yaml"} <= {
        p.name for p in (mount / "out").iterdir()
    }
    again = run("pcgr", "--input_vcf", "/mnt/in.vcf", "--sample_id", "demo", *common)
    assert (again.returncode, "already exist" in again.stdout) == (1, True)
    germline = run("cpsr", "--input_vcf", "/mnt/in.vcf", "--panel_id", "0", "--sample_id", "demo", *common)
    assert (germline.returncode, "Finished CPSR!" in germline.stdout) == (0, True)


def test_the_consumers_smoke_test_is_content_with_it(archives: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Its commands as a conda environment, under the real bubblewrap; they are written in Python and use this machine's."""
    out, _unused = archives
    runtime = tmp_path / "runtime"
    prefix = runtime / "envs" / "pcgr"
    (runtime / "envs" / "pcgrr").mkdir(parents=True)
    with tarfile.open(out / build.IMAGE) as stream:
        layer = stream.extractfile(json.load(stream.extractfile("manifest.json"))[0]["Layers"][0])  # type: ignore[arg-type]
        unpack(tmp_path / "root", layer=layer)
    made = tmp_path / "root/opt/mambaforge/envs/pcgr"
    made.rename(prefix)
    for command in (prefix / "bin").iterdir():
        command.write_text(command.read_text().replace("/opt/mambaforge/envs/pcgr", str(prefix)))
    for archive, folder in ((build.BUNDLE, "bundle"), (build.VEP, "vep")):
        unpack(tmp_path / folder, archive=out / archive)
    prefixes = {name: f"{runtime}/envs/{name}" for name in ("pcgr", "pcgrr")}
    record = {"kind": "conda", "image": str(runtime), "prefixes": prefixes, "locks": dict.fromkeys(prefixes, "0" * 64)}
    (tmp_path / "runtime.json").write_text(json.dumps(record))
    (tmp_path / "release.json").write_text(json.dumps(load_release("rehearsal")))
    places = {"release_file": "release.json", "runtime_file": "runtime.json", "refdata_dir": "bundle", "vep_dir": "vep"}
    places |= {name: name for name in ("work_dir", "log_dir", "state_dir", "drained_file")}
    for name in ("work_dir", "log_dir", "state_dir"):
        (tmp_path / name).mkdir()
    settings = [f'{key} = "{tmp_path / name}"\n' for key, name in places.items()]
    queue = f'assemblies = ["grch38", "grch37"]\n[queue]\nkind = "spool"\nspool_dir = "{tmp_path}/spool"\n'
    (tmp_path / "consumer.toml").write_text("".join([*settings, queue]))
    command = [Path(sys.executable).with_name("pcgr-consumer"), "--config", tmp_path / "consumer.toml", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line[:8] for line in done.stdout.splitlines()} == {"ok      "}
    assert len(done.stdout.splitlines()) == 14
    (tmp_path / "bundle/data/grch37/.PCGR_BUNDLE_VERSION").write_text("20250314\n")  # another release's data
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert [line.partition(":")[0] for line in failed] == [
        "failed  pcgr starts with the data of grch37",
        "failed  cpsr starts with the data of grch37",
    ]
    assert all("not compliant" in line for line in failed)
