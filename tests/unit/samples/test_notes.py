"""Notes of instances: the spot library of the plugins, which cannot import this package, reads what is written here."""

from __future__ import annotations

import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import launch
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import parse_event

from umccr_pcgr.samples.documents import as_json
from umccr_pcgr.samples.notes import FOLDER, interruption_note, is_note, note_key, sample_note

INSTANCE = "i-0123456789abcdef0"


@pytest.mark.parametrize(
    "key",
    [
        note_key(INSTANCE, "interrupted"),
        note_key(INSTANCE, "0123456789abcdef"),
        f"x{note_key(INSTANCE, 'a')}",
        note_key("i-xyz", "a"),
        note_key("", "a"),
        note_key(INSTANCE, "A"),
        note_key(INSTANCE, "a.b"),
        note_key(INSTANCE, "a/b"),
        note_key(INSTANCE, "") + ".json",
        note_key(INSTANCE, "a") + "\n",
        "demo-000001-somatic.tar.gz",
    ],
)
def test_both_readers_take_the_same_keys(key: str) -> None:
    found = launch.NOTE.fullmatch(key)
    assert bool(found) is is_note(key)
    if found:
        assert note_key(*found.groups()) == key


def test_the_spot_library_looks_where_notes_are_written() -> None:
    assert launch.NOTES == FOLDER
    assert is_note(note_key(INSTANCE, "interrupted"))


def test_the_spot_library_reads_every_note() -> None:
    for note in (sample_note(INSTANCE, "0a", 5400), interruption_note(INSTANCE)):
        body = as_json(note)
        assert len(body) < launch.NOTE_BYTES
        event = parse_event(body.decode(), "note")
        assert (event["event"], event["machine"]) == (note["event"], INSTANCE)
    assert sample_note(INSTANCE, "0a", 5400)["hours"] == 1.5
