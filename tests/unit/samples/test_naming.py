"""The naming convention: round trips, refusals with one clear line, no key that is two things at once."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umccr_pcgr.samples.naming import ENDINGS, NAME_MAX, NameRefused, Sample, classify, parse

ALNUM = string.ascii_letters + string.digits
FOLDERS = st.lists(
    st.text(ALNUM + "._=+@-", min_size=1, max_size=12).filter(lambda text: text not in (".", "..")), max_size=4
)
BATCHES = st.builds(str.__add__, st.sampled_from(ALNUM), st.text(ALNUM + "._-", max_size=NAME_MAX - 16))
SAMPLES = st.builds(
    Sample,
    FOLDERS.map(lambda folders: "".join(f"{folder}/" for folder in folders)),
    BATCHES,
    st.integers(0, 999_999),
    st.sampled_from(["somatic", "normal"]),
)
UNHURRIED = settings(deadline=None)  # the host may be busy with others


@UNHURRIED
@given(SAMPLES)
def test_every_key_leads_back_to_its_sample(sample: Sample) -> None:
    assert parse(sample.input_key) == sample
    for role in ENDINGS:
        assert classify(sample.key(role)) == (sample, role)


@UNHURRIED
@given(SAMPLES)
def test_only_the_input_is_taken_for_an_input(sample: Sample) -> None:
    for key in (sample.result_key, sample.failed_key, sample.running_key):
        with pytest.raises(NameRefused):
            parse(key)


@UNHURRIED
@given(st.text(max_size=60))
def test_any_text_is_a_round_trip_or_a_refusal_of_one_line(text: str) -> None:
    try:
        sample = parse(text)
    except NameRefused as refusal:
        assert len(str(refusal).splitlines()) == 1
    else:
        assert sample.input_key == text


@UNHURRIED
@given(st.from_regex(r"(?s)[^\x00]{0,20}-[0-9]{5,7}-(somatic|normal)\.tar\.gz.?", fullmatch=True))
def test_near_misses_are_a_round_trip_or_a_refusal(text: str) -> None:
    try:
        assert parse(text).input_key == text
    except NameRefused as refusal:
        assert len(str(refusal).splitlines()) == 1


def test_keys_of_the_documented_example() -> None:
    sample = parse("inbox/demo-000001-somatic.tar.gz")
    assert sample == Sample("inbox/", "demo", 1, "somatic")
    assert sample.name == "demo-000001-somatic"
    assert sample.result_key == "inbox/demo-000001-somatic-output.tar.gz"
    assert sample.failed_key == "inbox/demo-000001-somatic-failed.json"
    assert sample.running_key == "inbox/demo-000001-somatic-running.json"
    assert sample.command == "pcgr"
    assert parse("demo-000002-normal.tar.gz").command == "cpsr"


def test_the_longest_name_fits_pcgr_and_one_more_is_refused() -> None:
    longest = f"{'b' * (NAME_MAX - 15)}-000001-somatic.tar.gz"
    assert len(parse(longest).name) == NAME_MAX
    with pytest.raises(NameRefused, match=r"found 41 characters; allowed: at most 40"):
        parse("b" + longest)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("demo-000001-somatic.tgz", "does not end with .tar.gz"),
        ("demo-000001-somatic.tar.gz\n", "does not end with .tar.gz"),
        ("demo-00001-somatic.tar.gz", "found the name 'demo-00001-somatic.tar.gz'"),
        ("demo-٠٠٠٠٠١-somatic.tar.gz", "6 digits"),
        ("demo-000001-tumor.tar.gz", "6 digits"),
        ("demo-000001-somatic-output.tar.gz", "6 digits"),
        ("-demo-000001-somatic.tar.gz", "starting with a letter or digit"),
        ("de mo-000001-somatic.tar.gz", "starting with a letter or digit"),
        ("$(id)-000001-somatic.tar.gz", "starting with a letter or digit"),
        ("000001-somatic.tar.gz", "6 digits"),
        ("/demo-000001-somatic.tar.gz", "found the folder ''"),
        ("a//demo-000001-somatic.tar.gz", "found the folder ''"),
        ("a/../demo-000001-somatic.tar.gz", "found the folder '..'"),
        ("a b/demo-000001-somatic.tar.gz", "found the folder 'a b'"),
        ("", "does not end with .tar.gz"),
    ],
)
def test_refusals_name_the_key_what_was_found_and_what_is_allowed(key: str, said: str) -> None:
    with pytest.raises(NameRefused) as refusal:
        parse(key)
    text = str(refusal.value)
    assert repr(key) in text and said in text and "; allowed: " in text
    assert len(text.splitlines()) == 1
    assert (classify(key) is None) is (key != "demo-000001-somatic-output.tar.gz")


@pytest.mark.parametrize(
    "parts",
    [("inbox", "demo", 1, "somatic"), ("", "", 1, "somatic"), ("", "demo", 1_000_000, "normal"), ("", "demo", -1, "normal"),
     ("", "demo", 1, "tumor"), ("a/" * 600, "demo", 1, "somatic")],
)  # fmt: skip
def test_a_sample_cannot_be_made_against_the_convention(parts: tuple[str, str, int, str]) -> None:
    with pytest.raises(NameRefused):
        Sample(*parts)  # type: ignore[arg-type]
