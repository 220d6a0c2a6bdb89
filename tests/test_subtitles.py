"""Transcripts put together from pieces, and the formats that people read them in."""

import itertools
import json
import re
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from asr.frame_times import FrameTimes
from asr.recognizer import Reader
from asr.subtitles import LINE_COLUMNS, LINES, LONGEST_CUE, PAUSE, SHORTEST_CUE, Cue, as_srt, as_vtt, cues
from asr.transcribing import Outcome
from asr.transcript import TimedWord, Transcript, shifted
from asr.transcript_files import Style, rendered
from data.pieces import Piece
from data.recordings import Recording
from decoder import GreedyDecoder, Hypothesis, Word

TIMES = FrameTimes(0.0, 0.02)


def timed(text: str, start: float = 0.0, length: float = 0.3, gap: float = 0.1) -> list[TimedWord]:
    """Words said evenly."""
    return [
        TimedWord(word, start + i * (length + gap), start + i * (length + gap) + length, 0.5)
        for i, word in enumerate(text.split())
    ]


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def check(words: list[TimedWord], spaced: bool) -> list[Cue]:
    """Every word once, in order; cues readable, as long as they are heard, and one at a time."""
    made, rest = cues(words, spaced), iter(words)
    for cue, following in itertools.zip_longest(made, made[1:]):
        text = (" " if spaced else "").join(cue.lines)
        shown = text.split() if spaced else list(text)
        heard = list(itertools.islice(rest, len(shown)))
        assert [word.text for word in heard] == shown
        assert cue.start == heard[0].start and cue.end >= heard[-1].end
        assert following is None or cue.end <= following.start
        assert cue.end == heard[-1].end or cue.end <= cue.start + SHORTEST_CUE
        assert 1 <= len(cue.lines) <= LINES
        if len(heard) > 1:
            assert heard[-1].end - cue.start <= LONGEST_CUE
            assert max(map(columns, cue.lines)) <= LINE_COLUMNS
        gaps = [b.start - a.end for a, b in itertools.pairwise(heard)]
        assert all(gap < PAUSE for gap in gaps)
    assert next(rest, None) is None
    return made


def test_a_cue_ends_at_pauses_and_stays_to_be_read():
    words = timed("ONE TWO") + timed("THREE", 2.0) + timed("FOUR", 9.0)
    assert check(words, True) == [
        Cue(0.0, 1.0, ["ONE TWO"]),
        Cue(2.0, 3.0, ["THREE"]),
        Cue(9.0, 10.0, ["FOUR"]),
    ]
    soon = timed("YES", 0.0, 0.1) + timed("NO", 0.1 + PAUSE, 0.1)
    assert [cue.end for cue in check(soon, True)] == pytest.approx([0.1 + PAUSE, 0.1 + PAUSE + SHORTEST_CUE])
    assert cues([], True) == []


def test_lines_are_two_and_even():
    (cue,) = check(timed("A SENTENCE THAT IS TOO LONG FOR ONE LINE BUT NOT FOR TWO", length=0.2, gap=0.1), True)
    assert cue.lines == ["A SENTENCE THAT IS TOO LONG", "FOR ONE LINE BUT NOT FOR TWO"]


def test_long_speech_is_parted_where_it_is_quietest():
    words = timed("SOME WORDS ARE SAID HERE SLOWLY AND THEN", length=0.35)
    words += timed("OTHERS COME A LITTLE LATER WITHOUT AN END", words[-1].end + 0.5, length=0.35)
    made = check(words, True)
    assert made[0].lines[-1].endswith("THEN") and made[1].lines[0].startswith("OTHERS")


def test_a_word_may_be_wider_than_a_line():
    words = timed(f"SO {'X' * 60} THEN {'Y' * 42} {'Z' * 43}")
    assert [cue.lines for cue in check(words, True)] == [["SO"], ["X" * 60], ["THEN"], ["Y" * 42], ["Z" * 43]]


def test_wide_characters_take_two_columns():
    words = timed(" ".join("東京都に住んでいます" * 9), length=0.1, gap=0.02)
    made = check(words, False)
    assert max(columns(line) for cue in made for line in cue.lines) in (LINE_COLUMNS, LINE_COLUMNS - 2)


@pytest.mark.parametrize("seed", range(20))
def test_any_words(seed):
    rng = np.random.default_rng(seed)
    now, words = 0.0, []
    for _ in range(rng.integers(1, 300)):
        now += rng.exponential(0.2) * rng.integers(0, 3)
        end = now + rng.exponential(0.3)
        words.append(TimedWord("".join(rng.choice(list("ABあ"), rng.choice([1, 4, 9, 45]))), now, end, 1.0))
        now = end
    check(words, True)
    check([TimedWord(word.text[0], word.start, word.end, 1.0) for word in words], False)


def test_srt_and_vtt_as_they_are_written():
    made = [Cue(0.0, 1.9996, ["A <B> & C", "D"]), Cue(3661.5, 36000.0, ["E-->F"])]
    assert as_srt(made) == ("1\n00:00:00,000 --> 00:00:02,000\nA <B> & C\nD\n\n2\n01:01:01,500 --> 10:00:00,000\nE-->F\n")
    assert as_vtt(made) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nA &lt;B&gt; &amp; C\nD\n\n01:01:01.500 --> 10:00:00.000\nE--&gt;F\n"
    )
    assert as_srt([]) == "" and as_vtt([]) == "WEBVTT\n"


def hypothesis(text: str, score: float = -1.0, first: int = 0, spaced: bool = True) -> Hypothesis:
    """A character each five frames, heard for two."""
    offsets = tuple(first + 5 * i for i in range(len(text)))
    marks = [(m.start(), m.end()) for m in re.finditer(r"[^ ]+" if spaced else ".", text)]
    words = tuple(Word(text[a:b], offsets[a], offsets[b - 1] + 2, 0.5) for a, b in marks)
    return Hypothesis(text, offsets, score, score / 2, score / 4, words)


def transcript(*segments: list[Hypothesis], spaced: bool = True) -> Transcript:
    return Transcript(segments, float(len(segments)), TIMES, spaced)


def test_segments_are_joined_by_single_spaces():
    made = transcript(
        [hypothesis(" AB C ", first=2)], [hypothesis("")], [hypothesis(" ", first=40)], [hypothesis("D  E", first=60)]
    )
    (reading,) = made.readings(1)
    assert reading.text == made.text == "AB C D  E"
    assert len(reading.offsets) == len(reading.text)
    assert list(reading.offsets) == sorted(reading.offsets)
    assert [word.text for word in reading.words] == ["AB", "C", "D", "E"]
    for word in reading.words:
        assert word.start in [offset for offset, c in zip(reading.offsets, reading.text, strict=True) if c == word.text[0]]
    assert (reading.score, reading.acoustic_score, reading.lm_score) == (-4, -2, -1), "of silence too"
    assert [spoken.text for spoken in made.spoken()] == ["AB C", "D  E"]
    assert made.spoken()[0].confidence == pytest.approx(0.5)


def test_labels_without_a_space_are_joined_by_nothing():
    made = transcript([hypothesis("東京", spaced=False)], [hypothesis("都", first=60, spaced=False)], spaced=False)
    assert made.text == "東京都" and made.readings(1)[0].offsets == (0, 5, 60)
    assert [word.text for word in made.words(made.readings(1)[0])] == ["東", "京", "都"]


def test_a_recording_heard_whole_is_as_the_decoder_gave_it():
    whole = hypothesis(" A ")
    assert transcript([whole]).readings(3) == [whole]


def test_nothing_said():
    for made in (transcript([hypothesis("")]), transcript([hypothesis("")], [hypothesis("  ")]), transcript()):
        assert made.text == "" and made.spoken() == [] and made.words(made.readings(1)[0]) == []


@pytest.mark.parametrize("seed", range(10))
def test_readings_are_the_best_of_all_there_are(seed):
    rng = np.random.default_rng(seed)
    segments = []
    for i in range(rng.integers(1, 5)):
        texts = rng.permutation(["", "A", "B", "C A", "B B"])[: rng.integers(1, 6)]
        segments.append(sorted((hypothesis(str(t), -rng.exponential(), 50 * i) for t in texts), key=lambda h: -h.score))
    made = transcript(*segments)
    best: dict[tuple[str, ...], float] = {}
    for way in itertools.product(*segments):
        said = tuple(h.text for h in way if h.text)
        best[said] = max(best.get(said, -np.inf), sum(h.score for h in way))
    wanted = sorted(best.items(), key=lambda item: -item[1])
    for count in (1, 3, 7, 1000):
        found = made.readings(count)
        assert [reading.text for reading in found] == [" ".join(said) for said, _ in wanted[:count]]
        np.testing.assert_allclose([reading.score for reading in found], [score for _, score in wanted[:count]])


def test_times_are_within_the_recording():
    made = Transcript([[hypothesis("AB C")]], 0.3, FrameTimes(0.0, 0.02), True)
    words = made.words(made.readings(1)[0])
    times = [seconds for word in words for seconds in (word.start, word.end)]
    assert times == sorted(times) and times[0] == 0.0 and times[2] == pytest.approx(0.29) and times[3] == 0.3
    assert shifted(hypothesis("A B"), 7) == hypothesis("A B", first=7)


def one_hot(text: str) -> np.ndarray:
    """Log probabilities of a label in each frame: _ is blank."""
    symbols = ["_", "A", "B", " "]
    log_probs = np.full((len(text), 4), -20.0, np.float32)
    log_probs[np.arange(len(text)), [symbols.index(character) for character in text]] = 0.0
    return log_probs


def test_pieces_are_read_up_to_pauses():
    recognizer = SimpleNamespace(times=TIMES, labels=SimpleNamespace(symbols=["_", "A", "B", " "]))
    reader = Reader(recognizer, GreedyDecoder(["_", "A", "B", " "]))
    frame = 0
    for text, pauses in (("_AA_", True), ("_B_A", False), ("A_", False), ("_B", True), ("__", True), ("A", True)):
        reader.add(Piece(frame, 0, len(text), pauses, 0.02 * len(text)), one_hot(text))
        frame += len(text)
    made = reader.transcript()
    assert [segment[0].text for segment in made.segments] == ["A", "BAB", "", "A"], "A over a cut is one"
    assert [segment[0].offsets[:1] for segment in made.segments] == [(1,), (5,), (), (14,)]
    assert made.text == "A BAB A" and made.duration == pytest.approx(0.3)
    assert made.readings(1)[0].offsets == (1, 3, 5, 7, 11, 12, 14)


def test_who_never_pauses_is_read_after_a_minute():
    recognizer = SimpleNamespace(times=TIMES, labels=SimpleNamespace(symbols=["_", "A", "B", " "]))
    reader = Reader(recognizer, GreedyDecoder(["_", "A", "B", " "]))
    for i in range(10):
        reader.add(Piece(2 * i, 0, 2, i == 9, 20.0), one_hot("A_"))
    made = reader.transcript()
    assert len(made.segments) == 3 and made.text == "AAAA AAAA AA"
    assert [segment[0].offsets[0] for segment in made.segments] == [0, 8, 16]


ANSWERER = SimpleNamespace(answer=lambda transcript, offsets, words: {"output": [{"transcription": transcript.text}]})
SAID = transcript([hypothesis("AB C", first=3)], [hypothesis("")], [hypothesis("B", first=110)])


def as_text(kind: str, name: str = "x", shown: str = "x.wav", several: bool = False) -> str:
    return rendered(Outcome(Recording(shown, shown, name), SAID), ANSWERER, Style(kind), several)


def test_rows_and_lines_of_each_format():
    assert as_text("text") == "AB C B\n" and as_text("text", several=True) == "x.wav\tAB C B\n"
    assert json.loads(as_text("json")) == {"output": [{"transcription": "AB C B"}]}
    named = {"audio": "x.wav", "duration": 3.0, "output": [{"transcription": "AB C B"}]}
    assert json.loads(as_text("jsonl")) == json.loads(as_text("json", several=True)) == named
    assert as_text("jsonl").count("\n") == 1
    words = SAID.words(SAID.readings(1)[0])
    assert as_text("ctm") == "".join(f"x 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} 0.5000\n" for w in words)
    ends = words[1].end, words[2].end
    assert as_text("tsv") == f"x.wav\t0.050\t{ends[0]:.3f}\t0.5000\tAB C\nx.wav\t2.190\t{ends[1]:.3f}\t0.5000\tB\n"
    assert as_text("srt").startswith("1\n00:00:00,050 --> 00:00:01,050\nAB C\n\n2\n")
    assert as_text("vtt").startswith("WEBVTT\n\n00:00:00.050 --> ")


def test_hostile_names_break_no_row():
    name = "my talk\n1 2\t3"
    for kind, fields in (("tsv", 5), ("text", 2)):
        for line in as_text(kind, name, name, several=True).splitlines():
            assert len(line.split("\t")) == fields
    assert all(len(line.split()) == 6 for line in as_text("ctm", name, name).splitlines())
    assert json.loads(as_text("jsonl", name, name))["audio"] == name
