"""The whole pipeline on one real instance: check mode, provisioning, what it leaves on the system, good and bad samples, the end.

The tests share one region and run in the order they stand in: each is a step of the pipeline.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import testinfra

import harness
from support.bad_input import CORPUS, header_of
from support.samples import Make

if TYPE_CHECKING:
    from support.region import Region

pytestmark = pytest.mark.slow

NAME = "pcgr-test"
# The consumer's own tests hold the whole corpus; on the machine one of each kind shows that the way out works.
BAD = [
    "empty object", "truncated gzip", "no VCF", "two VCFs", "other assembly by contigs", "bad TOML", "unknown TOML key",
    "member with ../", "symlink", "device file",
]  # fmt: skip


def play(region: Region, name: str, *options: str, **variables: Any) -> dict[str, int]:
    """Run a playbook; the sums of its recap over all hosts."""
    before = region.log.stat().st_size if region.log.exists() else 0
    settings = region.variables | {"aws_name": NAME, "aws_bucket": NAME, "consumer_idle_seconds": 0} | variables
    settings = {"aws_data_volume_gb": 4} | settings  # the consumer keeps 2 GiB free
    for task in harness.run_playbook(name, settings, region.environment, region.log, *options):
        print(task)
    recap = region.log.read_text()[before:].rpartition("PLAY RECAP")[2]
    sums: dict[str, int] = {}
    for word, count in re.findall(r"(\w+)=(\d+)", recap):
        sums[word] = sums.get(word, 0) + int(count)
    return sums


def eventually(look: Callable[[], Any], seconds: float) -> Any:
    """What `look` gives as soon as it is true; its last answer after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(1)
    return found


def instances(region: Region) -> list[dict[str, Any]]:
    answer = region.client("ec2").describe_instances(Filters=[{"Name": "tag:umccr.pcgr", "Values": [NAME]}])
    return [instance for reservation in answer["Reservations"] for instance in reservation["Instances"]]


def get(region: Region, key: str) -> bytes | None:
    s3 = region.client("s3")
    try:
        return bytes(s3.get_object(Bucket=NAME, Key=key)["Body"].read())
    except s3.exceptions.NoSuchKey:
        return None


@pytest.fixture(scope="module")
def host(region: Region) -> Any:
    """The machine seen from outside, as root."""
    (machine,) = [one for one in instances(region) if one["State"]["Name"] == "running"]
    return testinfra.get_host(
        f"ssh://admin@{machine['PublicIpAddress']}:{region.environment['LOCALCLOUD_SSH_PORT']}?sudo=True",
        ssh_identity_file=str(region.key),
        ssh_extra_args="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
    )


def test_check_mode_passes_on_a_machine_that_only_booted(region: Region) -> None:
    inventory = region.folder / "inventory.json"
    with harness.plain_instance(region.environment, region.key, inventory):
        recap = play(region, "site.yml", "--check", "-i", str(inventory), consumer_queue_name="pcgr")
    assert recap["failed"] == recap["unreachable"] == 0
    assert recap["changed"] > 3  # it predicts, it does not only skip


def test_aws_makes_a_machine_that_reports(region: Region) -> None:
    recap = play(region, "aws.yml")
    assert recap["failed"] == recap["unreachable"] == 0
    said = region.log.read_text()
    assert "umccr.pcgr.aws_teardown" in said  # how to end it
    (machine,) = [one for one in instances(region) if one["State"]["Name"] == "running"]
    assert machine["PublicIpAddress"] in said


def test_a_second_run_changes_nothing(region: Region) -> None:
    recap = play(region, "aws.yml")
    assert (recap["changed"], recap["failed"]) == (0, 0)


def test_units(host: Any) -> None:
    consumer = host.service("pcgr-consumer")
    assert consumer.is_enabled
    assert consumer.is_running
    assert host.service("docker").is_running
    assert host.service("pcgr-drained.path").is_running
    show = host.check_output("systemctl show pcgr-consumer -p User,NoNewPrivileges,ProtectSystem,Restart")
    assert dict(line.split("=") for line in show.splitlines()) == {
        "User": "pcgr", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "Restart": "on-failure",
    }  # fmt: skip
    assert host.check_output("systemctl --failed --no-legend --plain") == ""


def test_data_have_their_own_volume_that_the_consumer_waits_for(host: Any) -> None:
    source, kind = host.check_output("findmnt --noheadings --output SOURCE,FSTYPE /mnt/pcgr").split()
    assert (source.startswith("/dev/vd"), kind) == (True, "ext4")
    assert host.check_output("grep -o '^[^#].*/mnt/pcgr' /etc/fstab").startswith("/dev/disk/by-id/virtio-vol")
    assert "mnt-pcgr.mount" in host.check_output("systemctl show pcgr-consumer --property Requires")


def test_files(host: Any) -> None:
    user = host.user("pcgr")
    assert user.shell == "/usr/sbin/nologin"
    work = host.file("/mnt/pcgr/work")
    assert (work.user, oct(work.mode)) == ("pcgr", "0o700")
    bundle = host.file("/mnt/pcgr/bundles/20260620/data/grch38/.PCGR_BUNDLE_VERSION")
    assert "20260620" in bundle.content_string
    assert not bundle.mode & 0o022
    assert host.file("/mnt/pcgr/vep/115/homo_sapiens/115_GRCh38").is_directory
    runtime = json.loads(host.file("/etc/pcgr/runtime.json").content_string)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", runtime["image"])
    assert host.run(f"docker image inspect {runtime['image']}").rc == 0
    assert not host.file("/var/lib/pcgr/processed-samples").exists  # no sample has run yet


def test_the_tool_runs(host: Any) -> None:
    image = json.loads(host.file("/etc/pcgr/runtime.json").content_string)["image"]
    assert host.check_output(f"docker run --rm --network none --read-only {image} pcgr --version") == "pcgr 2.3.2"


def test_only_ssh_listens_to_the_outside(host: Any) -> None:
    listening = host.check_output("ss -Hltn | awk '{print $4}'").splitlines()
    outside = {where for where in listening if not where.startswith(("127.", "[::1]"))}
    assert {where.rpartition(":")[2] for where in outside} == {"22"}


def test_bad_samples_fail_in_one_line_and_good_ones_after_them_are_reported(region: Region) -> None:
    corpus, make = CORPUS, Make
    s3 = region.client("s3")
    expected = {}
    for number, case in enumerate(BAD, 101):
        build, said = corpus[case]
        expected[f"bad-{number:06}-somatic"] = said.split(" ... ")[-1].split(": ")[-1]
        s3.put_object(Bucket=NAME, Key=f"bad-{number:06}-somatic.tar.gz", Body=build(make))
    header = header_of("s.vcf", 7 << 30)
    ten_gigabytes = gzip.compress(header) + gzip.compress(bytes(64 << 20), 9) * 160
    s3.put_object(Bucket=NAME, Key="bad-000201-somatic.tar.gz", Body=ten_gigabytes)
    expected["bad-000201-somatic"] = "unpacks to more than 200 times its size"
    s3.put_object(Bucket=NAME, Key="demo-1-somatic.tar.gz", Body=b"x")
    expected["demo-1-somatic"] = "6 digits"
    for example in ("demo-000001-somatic", "demo-000002-normal"):
        s3.upload_file(str(harness.ROOT / f"examples/{example}.tar.gz"), NAME, f"{example}.tar.gz")
    for name, said in expected.items():
        raw = eventually(lambda name=name: get(region, f"{name}-failed.json"), 180)
        assert raw, f"no failure report for {name}"
        report = json.loads(raw)
        assert "\n" not in report["reason"]
        assert said in report["reason"], name
        assert report["permanent"] is True
    for example, tool in (("demo-000001-somatic", "pcgr"), ("demo-000002-normal", "cpsr")):
        raw = eventually(lambda example=example: get(region, f"{example}-output.tar.gz"), 240)
        assert raw, f"no result for {example}"
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            names = archive.getnames()
            assert f"{example}/{example}.{tool}.grch38.html" in names
            member = archive.extractfile(f"{example}/provenance.json")
            assert member
            provenance = json.load(member)
        assert provenance["command"][0] == tool
        assert provenance["release"] == "rehearsal"
        assert provenance["input"]["key"] == f"{example}.tar.gz"
    (machine,) = [one for one in instances(region) if one["State"]["Name"] == "running"]

    def notes() -> int:
        found = s3.list_objects_v2(Bucket=NAME, Prefix=f"machines/{machine['InstanceId']}/")
        return int(found["KeyCount"])

    assert eventually(lambda: notes() == 2, 30)  # hours of the two reported samples, of no other


def test_nothing_of_the_samples_is_left_on_the_machine_but_the_mark(host: Any, region: Region) -> None:
    assert host.file("/var/lib/pcgr/processed-samples").exists
    assert host.check_output("ls -A /mnt/pcgr/work") == ""
    assert host.check_output("docker ps -aq") == ""
    sqs = region.client("sqs")
    for url in sqs.list_queues()["QueueUrls"]:
        counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert counts["ApproximateNumberOfMessages"] == counts["ApproximateNumberOfMessagesNotVisible"] == "0"


def test_the_machine_ends_itself_when_nothing_is_left(host: Any, region: Region) -> None:
    host.check_output("sed -i 's/^idle_seconds = .*/idle_seconds = 5/' /etc/pcgr/consumer.toml")
    host.check_output("systemctl restart pcgr-consumer")
    (machine,) = [one for one in instances(region) if one["State"]["Name"] == "running"]

    def state() -> bool:
        ec2 = region.client("ec2").describe_instances(InstanceIds=[machine["InstanceId"]])
        return bool(ec2["Reservations"][0]["Instances"][0]["State"]["Name"] == "terminated")

    assert eventually(state, 180)


def test_teardown_leaves_the_data_and_nothing_else(region: Region) -> None:
    ec2 = region.client("ec2")
    ec2.create_key_pair(KeyName="of-someone-else")
    recap = play(region, "aws_teardown.yml")
    assert recap["failed"] == 0
    assert get(region, "demo-000001-somatic-output.tar.gz")
    assert not region.client("sqs").list_queues().get("QueueUrls")
    assert [pair["KeyName"] for pair in ec2.describe_key_pairs()["KeyPairs"]] == ["of-someone-else"]
    groups = {group["GroupName"] for group in ec2.describe_security_groups()["SecurityGroups"]}
    assert groups == {"default"}
    assert play(region, "aws_teardown.yml")["changed"] == 0
