from pathlib import Path

import numpy as np
import pytest
import soundfile

from config import AudioConfig
from data import checks
from data.audio import load_audio
from data.checks import Problem, apply_policy, check_utterances, read_manifests, report
from data.labels import Labels
from data.manifest import read_manifest
from data.utterances import Utterance

RATE = 16000
AUDIO = AudioConfig(sample_rate=RATE)
LABELS = Labels("_'ABCDEFGHIJKLMNOPQRSTUVWXYZ ")


def halved(frames):
    """A model that gives one output frame for two spectrogram frames."""
    return (frames + 1) // 2


def add(folder, name, samples=RATE, text="ONE TWO", rate=RATE, encoding="utf-8"):
    """Write `name.wav` and `name.txt`; None leaves one out. Returns the manifest's line."""
    if samples is not None:
        soundfile.write(folder / f"{name}.wav", np.full(samples, 0.1, np.float32), rate)
    if text is not None:
        (folder / f"{name}.txt").write_bytes(text.encode(encoding))
    return f"{name}.wav,{name}.txt\n"


def check(folder, *lines, labels=LABELS):
    manifest = folder / "m.csv"
    manifest.write_text("".join(lines))
    return check_utterances(read_manifest(manifest), labels, AUDIO, halved)


def kinds(result):
    return [problem.kind for problem in result.problems]


def test_good_utterances_keep_their_order_and_learn_text_and_duration(tmp_path):
    lines = [add(tmp_path, f"u{i}", RATE + 160 * i, f"NUMBER\n{chr(65 + i % 26)} ") for i in range(100)]
    result = check(tmp_path, *lines)
    assert result.problems == []
    assert result.total == len(result.good) == 100
    assert [Path(utterance.audio).stem for utterance in result.good] == [f"u{i}" for i in range(100)]
    assert result.good[1].text == "NUMBER B"
    assert result.good[1].text_path == f"{tmp_path}/u1.txt"
    assert result.good[1].duration == pytest.approx(1.01)
    assert result.good[1].line == 2
    assert apply_policy(result, "fail", "m.csv") is result.good


def test_every_kind_of_problem_is_found_in_one_go(tmp_path):
    whole = add(tmp_path, "cut", text="CUT")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:1000])
    (tmp_path / "noise.wav").write_bytes(b"not audio at all")
    (tmp_path / "noise.txt").write_text("NOISE")
    lines = [
        add(tmp_path, "good"),
        add(tmp_path, "no_audio", samples=None),
        "noise.wav,noise.txt\n",
        whole,
        add(tmp_path, "click", samples=160, text="A"),
        add(tmp_path, "no_text", text=None),
        add(tmp_path, "latin", text="CAFÉ", encoding="latin-1"),
        add(tmp_path, "silent", text=" \n"),
        add(tmp_path, "lower", text="ONE two"),
        add(tmp_path, "long", samples=RATE // 10, text="ABCDEFG"),
    ]
    result = check(tmp_path, *lines)
    assert [utterance.text for utterance in result.good] == ["ONE TWO"]
    found = {problem.where.rpartition(":")[2]: problem.kind for problem in result.problems}
    assert len(result.problems) == 9
    assert found == {
        "2": checks.MISSING_AUDIO,
        "3": checks.UNREADABLE_AUDIO,
        "4": checks.UNREADABLE_AUDIO,
        "5": checks.SHORT_AUDIO,
        "6": checks.UNREADABLE_TRANSCRIPT,
        "7": checks.UNREADABLE_TRANSCRIPT,
        "8": checks.EMPTY_TRANSCRIPT,
        "9": checks.UNKNOWN_CHARACTERS,
        "10": checks.SHORT_FOR_CTC,
    }
    text = report(result.problems, result.total)
    manifest = tmp_path / "m.csv"
    assert f"missing audio: 1 of 10\n  {manifest}:2: {tmp_path}/no_audio.wav: no such file\n" in text
    assert "unreadable audio: 2 of 10\n" in text
    assert f"  {manifest}:5: {tmp_path}/click.wav: 160 samples at 16000 Hz: expected at least 161\n" in text
    assert f"  {manifest}:6: transcript {tmp_path}/no_text.txt: No such file or directory\n" in text
    assert f"  {manifest}:8: {tmp_path}/silent.txt: no words\n" in text
    assert f"  {manifest}:9: 't', 'w', 'o' in 'ONE two'\n  in all: 't' 1x, 'w' 1x, 'o' 1x\n" in text
    assert "0.10 s give 6 output frames: expected at least 7, for 7 characters and 0 repeats" in text


def test_an_utterance_may_have_several_problems(tmp_path):
    result = check(tmp_path, add(tmp_path, "a", samples=None, text=""), add(tmp_path, "b", RATE // 20, "lower"))
    assert kinds(result) == [
        checks.MISSING_AUDIO,
        checks.EMPTY_TRANSCRIPT,
        checks.UNKNOWN_CHARACTERS,
        checks.SHORT_FOR_CTC,
    ]


def test_a_folder_is_no_recording(tmp_path):
    line = add(tmp_path, "a", samples=None)
    (tmp_path / "a.wav").mkdir()
    (problem,) = check(tmp_path, line).problems
    assert problem.kind == checks.UNREADABLE_AUDIO
    assert problem.where == f"{tmp_path}/m.csv:1"
    assert problem.detail.startswith(f"{tmp_path}/a.wav: a directory")


@pytest.mark.parametrize(
    ("text", "fits"),
    [("ABCDEF", True), ("ABCDEFG", False), ("AABCD", True), ("AABBC", False), ("A A A", True), ("AAAA", False)],
)
def test_ctc_needs_a_frame_between_repeats(tmp_path, text, fits):
    result = check(tmp_path, add(tmp_path, "a", RATE // 10, text))  # 11 frames, 6 output frames
    assert kinds(result) == ([] if fits else [checks.SHORT_FOR_CTC])


def test_samples_are_counted_at_the_models_rate(tmp_path):
    result = check(tmp_path, add(tmp_path, "a", 161, "A"), add(tmp_path, "b", 80, "A", rate=8000))
    assert [utterance.line for utterance in result.good] == [1]
    assert kinds(result) == [checks.SHORT_AUDIO]


def segment_line(**entry):
    entry = {"audio_filepath": '"a.wav"', "text": '"ONE"', "duration": 0.5, "offset": 0} | entry
    return "{" + ", ".join(f'"{key}": {value}' for key, value in entry.items()) + "}\n"


def test_segments_count_by_their_own_length(tmp_path):
    add(tmp_path, "a", RATE)
    result = check(
        tmp_path,
        segment_line(),
        segment_line(offset=0.5),
        segment_line(offset="null", duration=1.01),
        segment_line(offset=0.52, duration=0.5),
        segment_line(offset="null", duration=0.7),
        segment_line(offset=0.6),
        segment_line(offset="null", duration=99),
        segment_line(duration=0.005),
        segment_line(duration=0.02),
    )
    assert [utterance.offset for utterance in result.good] == [0.0, 0.5, None, 0.52, 0.0]
    assert [utterance.duration for utterance in result.good] == pytest.approx([0.5, 0.5, 1.0, 0.48, 0.7])
    assert [load_audio(u.audio, RATE, *u.segment).size for u in result.good] == [8000, 8000, 16000, 7680, 11200]
    assert kinds(result) == [*[checks.UNREADABLE_AUDIO] * 2, checks.SHORT_AUDIO, checks.SHORT_FOR_CTC]
    assert "1.00 s long: expected 1.10 s, where the manifest lets the utterance end" in result.problems[0].detail


def test_report_shows_a_few_of_each_kind_and_counts_all():
    problems = [Problem(checks.UNKNOWN_CHARACTERS, f"m.csv:{i}", "'é'", "éé") for i in range(1, 6)]
    problems.append(Problem(checks.MISSING_AUDIO, "m.csv:1", "/1.wav: no such file"))
    assert report(problems, 10) == (
        "missing audio: 1 of 10\n"
        "  m.csv:1: /1.wav: no such file\n"
        "characters outside the labels: 5 of 10\n"
        "  m.csv:1: 'é'\n  m.csv:2: 'é'\n  m.csv:3: 'é'\n  and 2 more\n"
        "  in all: 'é' 10x"
    )
    assert report([], 10) == ""


def test_hint_on_letter_case(tmp_path):
    lower = check(tmp_path, add(tmp_path, "a", text="one"), add(tmp_path, "b", text="two"))
    assert report(lower.problems, 2).count("hint: lower-case letters, but the labels are upper case") == 1
    upper = check(tmp_path, add(tmp_path, "a", text="ONE"), labels=Labels("_abcdefghijklmnopqrstuvwxyz "))
    assert "hint: upper-case letters, but the labels are lower case" in report(upper.problems, 1)
    other = check(tmp_path, add(tmp_path, "a", text="ONE 2é_"))
    assert "hint: " not in report(other.problems, 1)


def test_policy_fail_tells_all_and_the_way_out(tmp_path):
    result = check(tmp_path, add(tmp_path, "a"), add(tmp_path, "b", text="B_"))
    with pytest.raises(ValueError) as raised:
        apply_policy(result, "fail", "m.csv")
    lines = str(raised.value).splitlines()
    assert lines[0] == "m.csv: 1 of 2 utterances cannot be used"
    assert lines[1] == "characters outside the labels: 1 of 2"
    assert lines[-1] == "fix them, or pass --on-bad-data skip to leave them out"


def test_policy_skip_says_what_it_leaves_out(tmp_path, capsys):
    result = check(tmp_path, add(tmp_path, "a"), add(tmp_path, "b", samples=None, text=""))
    assert apply_policy(result, "skip", "m.csv") == result.good
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("m.csv: 1 of 2 utterances cannot be used\nmissing audio: 1 of 2\n")
    assert err.endswith("left out: 1 utterances; 1 are used\n")


def test_policy_skip_with_nothing_left(tmp_path):
    result = check(tmp_path, add(tmp_path, "a", samples=None))
    with pytest.raises(ValueError, match=r"m\.csv: 1 of 1 utterances cannot be used\n(.*\n)+nothing is left"):
        apply_policy(result, "skip", "m.csv")


def test_policy_unknown(tmp_path):
    with pytest.raises(ValueError, match="--on-bad-data ignore: expected one of fail, skip"):
        apply_policy(checks.CheckResult([], [], 0), "ignore", "m.csv")


def test_a_path_no_file_can_have(tmp_path):
    utterance = Utterance("/a\0.wav", text_path="/a\0.txt", manifest="m", line=1)
    result = check_utterances([utterance], LABELS, AUDIO, halved)
    assert kinds(result) == [checks.UNREADABLE_AUDIO, checks.UNREADABLE_TRANSCRIPT]


def test_progress_bar_stays_out_of_files(tmp_path, capsys):
    (tmp_path / "m.csv").write_text(add(tmp_path, "a"))
    check_utterances(read_manifest(tmp_path / "m.csv"), LABELS, AUDIO, halved)
    assert capsys.readouterr() == ("", "")


def test_read_manifests_for_training(tmp_path, capsys):
    path = tmp_path / "m.csv"
    path.write_text(add(tmp_path, "a") + add(tmp_path, "b", text="two"))
    with pytest.raises(ValueError, match="--on-bad-data skip"):
        read_manifests([path], AUDIO, LABELS, halved)
    ((utterance,),) = read_manifests([path], AUDIO, LABELS, halved, "skip")
    assert (utterance.text, utterance.duration) == ("ONE TWO", 1.0)
    assert capsys.readouterr().err.startswith(f"{path}: 1 of 2 utterances cannot be used\n")


def test_read_manifests_for_evaluation_counts_every_text(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(add(tmp_path, "a", text="é 7") + add(tmp_path, "b", text="") + add(tmp_path, "c", 200, "LONG"))
    assert [utterance.text for utterance in read_manifests([path], AUDIO)[0]] == ["é 7", "", "LONG"]
    path.write_text(path.read_text() + add(tmp_path, "d", samples=None))
    with pytest.raises(ValueError, match="missing audio: 1 of 4"):
        read_manifests([path], AUDIO)


def test_what_is_wrong_with_several_manifests_is_told_at_once(tmp_path):
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text(add(tmp_path, "a") + add(tmp_path, name, text="two"))
    with pytest.raises(ValueError, match=r"(?s)train\.csv: 1 of 2.*val\.csv: 1 of 2"):
        read_manifests([str(tmp_path / "train.csv"), str(tmp_path / "val.csv")], AUDIO, LABELS, halved)
