"""scripts/spot_price as a program: the old script's form, ranking from files, what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from support.spot import NOW, ZONES, advisor, change, demand, history, refused, shown, spot_price


def ranked(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown("--now", NOW, "--format", "json", *arguments))
    return found


__all__ = ["advisor", "demand", "history"]  # fixtures

# ---- the old script's form


def legacy(path: Path, bids: str, *more: str) -> str:
    return shown("--mode", "legacy", "--history", path, "--now", NOW, "-p", "Linux/UNIX", "-b", bids, *more)


@pytest.fixture
def wrong_cases(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.json"
    found = [
        change(ZONES[0], "c4.large", 0.10, "2026-11-14T16:00:00.000Z"),  # above since 200 h ago
        change(ZONES[1], "c4.large", 0.05, "2026-11-01T00:00:00+00:00"),
        change(ZONES[1], "c4.large", 0.10, "2026-11-18T20:00:00.000Z"),  # rose 100 h ago
        change(ZONES[1], "c4.large", 0.05, "2026-11-22T23:00:00.000Z"),  # fell 1 h ago
        change(ZONES[2], "c4.large", 0.05, "2026-11-01T00:00:00Z"),
        change(ZONES[2], "c4.large", 0.10, "2026-11-18T20:00:00.000Z"),  # rose 100 h ago, still above
        change(ZONES[2], "c4.large", 0.01, "2026-11-18T20:00:00.000Z", "Windows"),
    ]
    path.write_text(json.dumps({"SpotPriceHistory": found[::-1]}))
    return path


def test_legacy_answers_the_three_cases(wrong_cases: Path) -> None:
    assert legacy(wrong_cases, "c4.large:0.06") == (
        "Duration\tInstance Type\tAvailability Zone\n"
        "0.0\tc4.large\tap-southeast-2a\n0.0\tc4.large\tap-southeast-2c\n1.0\tc4.large\tap-southeast-2b\n"
    )


def test_legacy_exact_answers_as_the_old_script_in_its_order(wrong_cases: Path) -> None:
    assert legacy(wrong_cases, "c4.large:0.06", "--exact") == (
        "Duration\tInstance Type\tAvailability Zone\n"
        "168.0\tc4.large\tap-southeast-2a\n100.0\tc4.large\tap-southeast-2b\n100.0\tc4.large\tap-southeast-2c\n"
    )


def test_legacy_window_and_equal_price(wrong_cases: Path) -> None:
    rows = legacy(wrong_cases, "c4.large:0.10", "--hours", "24").splitlines()[1:]
    assert [row.split("\t")[0] for row in rows] == ["24.0"] * 3


def test_legacy_shows_both_bids_of_a_type(wrong_cases: Path) -> None:
    done = spot_price(
        "--mode",
        "legacy",
        "--history",
        wrong_cases,
        "--now",
        NOW,
        "-p",
        "Linux/UNIX (Amazon VPC)",
        "-b",
        "c4.large:0.06,c4.large:0.2",
    )
    assert [row.split("\t")[0] for row in done.stdout.splitlines()[1:]] == [
        "0.0",
        "0.0",
        "1.0",
        "168.0",
        "168.0",
        "168.0",
    ]
    assert "c4.large: 2 bids" in done.stderr


def test_legacy_tells_zones_without_price_and_what_the_figure_is(history: Path) -> None:
    content = json.loads(history.read_text())
    content["SpotPriceHistory"] = [
        one
        for one in content["SpotPriceHistory"]
        if (one["InstanceType"], one["AvailabilityZone"]) != ("m5.xlarge", ZONES[1])
    ]
    history.write_text(json.dumps(content))
    done = spot_price(
        "--mode", "legacy", "--history", history, "--now", NOW, "-p", "Linux/UNIX", "-b", "m5.xlarge:0.1,x1.large:1"
    )
    assert f"m5.xlarge: no price known in {ZONES[1]}" in done.stderr
    assert f"x1.large: no price known in {', '.join(ZONES)}" in done.stderr
    assert "nothing about capacity" in done.stderr


# ---- ranking


def test_ranking_says_what_it_rests_on(history: Path, advisor: Path, demand: Path) -> None:
    bare = ranked("--history", history)
    assert [row["type"] for row in bare["rows"]][:3] == ["c5.xlarge"] * 3
    assert all(row["uninterrupted"] is row["hazard"] is row["feasible"] is row["share"] is None for row in bare["rows"])
    assert any(note.startswith("price only") for note in bare["notes"])
    full = ranked("--history", history, "--advisor", advisor, "--advisor-date", "2026-11-01", "--on-demand", demand)
    row = full["rows"][0]
    assert row["rests_on"] == ["price 90 d", "class 10-15%"]
    assert 0 < row["uninterrupted"]["low"] < row["uninterrupted"]["mean"] < row["uninterrupted"]["high"] <= 1
    assert row["share"] == pytest.approx(0.07 / 0.22)
    assert full["sources"]["interruption class"] == "advisor.json of 2026-11-01"
    assert not any(note.startswith("price only") for note in full["notes"])
    assert full["maximum_price"] is None


def test_machines_of_another_processor_are_no_choice(history: Path) -> None:
    assert "m6g.xlarge" not in {row["type"] for row in ranked("--history", history)["rows"]}


def test_the_set_is_diversified(history: Path) -> None:
    pools = ranked("--history", history)["set"]
    assert {pool["zone"] for pool in pools} == set(ZONES)
    assert {pool["type"].split(".")[0] for pool in pools} == {"m5", "m6i", "c5", "r5"}
    narrow = ranked("--history", history, "-t", "m5.xlarge,m6i.xlarge")
    assert any("2 of at least 3 instance families" in note for note in narrow["notes"])


def test_pools_dearer_than_on_demand_are_not_in_the_set(history: Path, demand: Path) -> None:
    demand.write_text(json.dumps({"m5.xlarge": 0.0815, "r5.xlarge": 0.5}))
    found = ranked("--history", history, "--on-demand", demand)["set"]
    assert {pool["type"] for pool in found} == {"c5.xlarge", "m5.xlarge"}
    assert {pool["zone"] for pool in found if pool["type"] == "m5.xlarge"} == {ZONES[0], ZONES[1]}


def test_requirements_in_place_of_types(history: Path, advisor: Path, tmp_path: Path) -> None:
    found = ranked("--history", history, "--advisor", advisor, "--vcpus", "4", "--memory-gib", "16")
    assert {row["type"] for row in found["rows"]} == {"m5.xlarge", "m6i.xlarge", "r5.xlarge"}
    for more in (("--disk-gb", "100"), ("--vcpus", "8")):
        assert "of local disk" in refused("--history", history, "--advisor", advisor, "--now", NOW, *more)
    types = tmp_path / "types.json"
    size = {"VCpuInfo": {"DefaultVCpus": 4}, "MemoryInfo": {"SizeInMiB": 16384}}
    arm = {"InstanceType": "m5.xlarge", "ProcessorInfo": {"SupportedArchitectures": ["arm64"]}, **size}
    types.write_text(json.dumps({"InstanceTypes": [arm, {"InstanceType": "m6i.xlarge", **size}]}))
    found = ranked("--history", history, "--types-file", types, "--vcpus", "4")
    assert {row["type"] for row in found["rows"]} == {"m6i.xlarge"}


def test_own_log_changes_the_odds(history: Path, advisor: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    events = []
    for number in range(12):
        machine = {"machine": f"i-{number}"}
        events.append(
            {
                "time": f"2026-11-{number + 1:02}T00:00:00Z",
                "event": "launched",
                "type": "c5.xlarge",
                "zone": ZONES[0],
                "market": "spot",
                **machine,
            }
        )
        events.append({"time": f"2026-11-{number + 1:02}T0{number % 4 + 1}:00:00Z", "event": "interrupted", **machine})
        events.append({"time": f"2026-11-{number + 1:02}T00:30:00Z", "event": "sample", "hours": 2.0, **machine})
    log.write_text("\n".join(map(json.dumps, events)))
    found = ranked("--history", history, "--advisor", advisor, "--log", log)
    assert found["work"]["hours"] == 2.0
    rows = {(row["type"], row["zone"]): row for row in found["rows"]}
    lost = rows["c5.xlarge", ZONES[0]]
    assert (lost["own_hours"], lost["own_interruptions"]) == (30.0, 12)
    # Kaplan-Meier: of 12 machines 3 are taken after 1 h and 3 after 2 h.
    assert lost["uninterrupted"]["mean"] == pytest.approx(0.5)
    assert lost["feasible"] is False
    assert found["rows"][-1] == {"rank": 12, **{key: value for key, value in lost.items() if key != "rank"}}
    assert rows["c5.xlarge", ZONES[1]]["feasible"] is True


def test_deadline_and_cap(history: Path, advisor: Path, demand: Path) -> None:
    arguments = (
        "--history",
        history,
        "--advisor",
        advisor,
        "--on-demand",
        demand,
        "--sample-hours",
        "2",
        "--samples",
        "10",
    )
    soon, late = (ranked(*arguments, "--deadline", hours)["rows"][0]["by_deadline"]["mean"] for hours in ("20.1", "60"))
    assert soon < 0.01 < 0.99 < late
    capped = ranked(*arguments, "--max-price", "0.08")
    below = {row["type"]: row["below_cap"] for row in capped["rows"] if row["zone"] == ZONES[0]}
    assert below["c5.xlarge"]["mean"] == 1.0
    assert below["c5.xlarge"]["low"] < 1.0
    assert below["r5.xlarge"] is None  # it was never below
    assert {pool["type"] for pool in capped["set"]} == {"c5.xlarge", "m5.xlarge"}


def test_formats_hold_the_same_rows(history: Path, advisor: Path) -> None:
    arguments = ("--history", history, "--advisor", advisor, "--now", NOW, "--top", "5")
    rows = json.loads(shown(*arguments, "--format", "json"))["rows"]
    for form, delimiter in (("csv", ","), ("tsv", "\t")):
        found = list(csv.DictReader(io.StringIO(shown(*arguments, "--format", form)), delimiter=delimiter))
        assert [(one["type"], one["zone"], float(one["cost"])) for one in found] == [
            (one["type"], one["zone"], one["cost"]["mean"]) for one in rows
        ]
    table = shown(*arguments, "--explain")
    assert all(one["type"] in table and one["zone"] in table for one in rows)
    assert "… and 7 more" in table
    assert "How to read this" in table


@pytest.mark.parametrize("width", ["80", "120"])
def test_tables_fit_the_terminal(history: Path, advisor: Path, demand: Path, width: str) -> None:
    done = spot_price(
        "--history",
        history,
        "--now",
        NOW,
        "--advisor",
        advisor,
        "--on-demand",
        demand,
        "--deadline",
        "30",
        COLUMNS=width,
    )
    assert max(map(len, done.stdout.splitlines())) <= int(width)
    assert "…" not in done.stdout


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mode", "legacy", "-p", "Linux/UNIX", "-b", "m5.large"], "--bids: found 'm5.large'"),
        (["--mode", "legacy", "-b", "m5.large:1"], "--product-description is missing; allowed: Linux/UNIX"),
        (["--mode", "legacy", "-p", "BeOS", "-b", "m5.large:1"], "found 'BeOS'"),
        (["--mode", "legacy", "-p", "Linux/UNIX", "-b", "m5.large:1", "--hours", "0"], "allowed a whole number above 0"),
        (["--mode", "legacy", "-p", "Linux/UNIX", "-b", "m5.large:1"], "takes one --region"),
        (["--now", "yesterday"], "found 'yesterday'"),
        (["-b", "m5.large:1"], "go with --mode legacy"),
        ([], "--region is missing"),
        (["-r", "ap-southeast-99"], "found 'ap-southeast-99', no such region; did you mean"),
        (["--history", "/nowhere/h.json"], "/nowhere/h.json: No such file"),
        (["-r", "ap-southeast-2", "--profile", "nobody"], "--profile: found 'nobody'"),
        (["-r", "ap-southeast-2", "-t", "m5.large"], "no AWS credentials"),
        (["record", "/nowhere/h.json"], "--region is missing"),
        (["--format", "xml"], "invalid choice: 'xml'"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(arguments: list[str], told: str) -> None:
    assert told in refused(*arguments)


def test_a_wish_that_nothing_meets_is_told(history: Path) -> None:
    assert "no price of type x9.large; the history has c5.xlarge" in refused("--history", history, "-t", "x9.large")
    assert "no price of product Windows" in refused("--history", history, "-p", "Windows")
    assert "no price of region eu-west-1" in refused("--history", history, "-r", "eu-west-1")


def test_broken_files_are_told(history: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    for option, content in (
        ("--on-demand", '{"m5.xlarge": "dear"}'),
        ("--on-demand", "[]"),
        ("--advisor", '{"spot_advisor": {"r": {"Linux": {"m5.large": {"r": 9}}}}}'),
        ("--scores", "{}"),
        ("--types-file", '{"InstanceTypes": [{}]}'),
        ("--log", '{"time": "2026-11-23T00:00:00Z", "event": "launched"}'),
        ("--log", "not json"),
    ):
        path.write_text(content)
        assert str(path) in refused("--history", history, option, path)
