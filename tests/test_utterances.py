"""Tables of utterances: what was put in comes out, and processes share it."""

import os
import warnings
from dataclasses import replace

import numpy as np
import pytest

from data.manifest import read_manifest
from data.utterances import StringsBuilder, Utterance, UtteranceTable

UTTERANCES = [
    Utterance("/a/1.wav", text_path="/a/1.txt", manifest="m.csv", line=1),
    Utterance("b.flac", text="ÉTÉ 日本", duration=1.25, manifest="n.jsonl", line=7),
    Utterance("/talk.wav", text="", duration=2.0, offset=0.0, manifest="n.jsonl", line=9),
    Utterance("/name\udcff.wav"),
]


def test_a_table_gives_back_what_it_was_made_of():
    table = UtteranceTable.of(utterance for utterance in UTTERANCES)
    assert len(table) == 4
    assert list(table) == UTTERANCES
    assert table == UTTERANCES and table == UTTERANCES
    assert table != UTTERANCES[:3] and table != [*UTTERANCES[:3], replace(UTTERANCES[3], line=4)]
    assert table[-1] == UTTERANCES[3]
    with pytest.raises(IndexError):
        table[4]
    assert UtteranceTable.of(table) is table
    np.testing.assert_array_equal(table.durations, [np.nan, 1.25, 2.0, np.nan])
    assert UtteranceTable.of([]) == []


def test_what_a_check_finds_out_takes_the_place_of_what_was_told():
    texts = StringsBuilder()
    texts.extend(["ONE", "THREE"])
    table = UtteranceTable.of(UTTERANCES[:3]).checked(
        np.array([0, 2]), texts.build(), np.array([3.0, 4.0]), np.array([np.nan, 0.5])
    )
    assert table == [
        replace(UTTERANCES[0], text="ONE", duration=3.0),
        replace(UTTERANCES[2], text="THREE", duration=4.0, offset=0.5),
    ]


def private_kilobytes():
    """Memory that is this process's alone."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_forked_worker_that_reads_every_utterance_copies_none_of_them(tmp_path, kind):
    lines = 100_000
    csv = "/corpora/speech/speaker{0:05d}/utterance-{0:08d}.flac,/corpora/speech/speaker{0:05d}/utterance-{0:08d}.txt\n"
    json = (
        '{{"audio_filepath": "/corpora/speech/speaker{0:05d}/utterance-{0:08d}.flac", "text": "NUMBER {0}", "duration": 1.5}}\n'
    )
    (tmp_path / "m").write_text("".join((csv if kind == "csv" else json).format(i) for i in range(lines)))
    table = read_manifest(tmp_path / "m")
    receiving, sending = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside pytest's threads
        child = os.fork()
    if child == 0:
        before = private_kilobytes()
        seen = sum(1 for utterance in table if utterance.audio)
        os.write(sending, f"{seen} {private_kilobytes() - before}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    seen, grown = map(int, os.read(receiving, 100).split())
    assert seen == lines
    assert grown < 2000, "kilobytes; as objects they were 60 000"
