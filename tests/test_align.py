"""Forced alignment: the path against all paths, times against a click and against beeps whose times are known, the command."""

import itertools
import json
import re
import runpy
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from beeps import ROOT, make_corpus, start, train

from asr import ctc_path
from asr.alignment import Aligner, FrameTimes, Span, Word, _aligned, _batches, character_edges
from asr.alignment import Alignment as Aligned
from asr.alignment_files import Named, Names, as_textgrid, written_to
from asr.boundaries import find_pauses, place_words, speech_level
from asr.ctc_path import best_path
from config import AudioConfig, ModelConfig
from data.features import spectrogram
from data.labels import Labels
from data.samplers import BatchLimit
from data.utterances import Utterance
from model import ConvFrontEnd, output_frames

BEEP, AFTER_BEEP, SPACE, LEAD = 0.15, 0.05, 0.25, 0.1  # seconds; what tests/beeps.py writes


def random_scores(frames: int, labels: int, seed: int) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(labels), frames)).astype(np.float32)


# The path.


def collapsed(labels: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(labels) if label]


@pytest.mark.parametrize("targets", [[1], [1, 2], [1, 1], [2, 1, 1], [1, 2, 1]], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_best_of_all_paths(targets, seed):
    log_probs = random_scores(6, 3, seed)
    paths = [labels for labels in itertools.product(range(3), repeat=6) if collapsed(labels) == targets]
    best = max(sum(log_probs[t, label] for t, label in enumerate(labels)) for labels in paths)
    path = best_path(log_probs, np.array(targets))
    labels = ctc_path.state_labels(np.array(targets))[path]
    assert collapsed(tuple(labels.tolist())) == targets
    assert log_probs[np.arange(6), labels].sum() == pytest.approx(best, rel=1e-6)


def test_a_long_path_is_the_same_whether_its_moves_are_kept_or_computed_again(monkeypatch):
    log_probs, targets = random_scores(997, 29, 1), np.random.default_rng(2).integers(1, 29, 200)
    kept = best_path(log_probs, targets)
    monkeypatch.setattr(ctc_path, "KEPT_MOVES", 1000)
    assert (best_path(log_probs, targets) == kept).all()
    assert set(np.diff(kept).tolist()) <= {0, 1, 2} and set((2 * np.arange(200) + 1).tolist()) <= set(kept.tolist())


def test_what_has_no_path_is_told():
    with pytest.raises(ValueError, match="2 output frames: too few for a transcript of 2 characters"):
        best_path(random_scores(2, 3, 0), np.array([1, 1]))  # needs a blank between
    assert best_path(random_scores(3, 3, 0), np.array([1, 1])).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="empty"):
        best_path(random_scores(3, 3, 0), np.empty(0, np.int64))
    with pytest.raises(ValueError, match="cut the recording"):
        best_path(np.empty((10**6, 0)), np.ones(10**5, np.int64))


# Frames and seconds.


@pytest.mark.parametrize("release1", [False, True])
@pytest.mark.parametrize("audio", [(16000, 0.02, 0.01), (8000, 0.025, 0.0125), (16000, 0.0201, 0.01)], ids=str)
def test_the_output_frames_that_a_click_changes_are_centred_on_it(audio, release1):
    """Clicks at many samples, through the real spectrogram and convolutions: none is off, nor all of them together."""
    audio, config = AudioConfig(*audio), ModelConfig(release1=release1)
    times = FrameTimes.of_output(audio, config)
    torch.manual_seed(0)
    conv = ConvFrontEnd(config).double().eval()
    hop, errors = audio.hop_samples, []
    for sample in range(40 * hop, 42 * hop, hop // 4):  # two hops, which is the stride of the output
        wave = np.zeros(82 * hop, np.float32)
        wave[sample] = 1.0
        spect = spectrogram(wave, audio).double()
        frames = output_frames(spect.shape[1], conv.paddings)
        with torch.no_grad():
            output = conv(spect[None, None], torch.zeros(1, frames, dtype=torch.bool))[0]  # (32, F', L)
        background = output[:, :, 9:10]  # the edges hear the padding, the 9th neither that nor the click
        heard = (output - background).abs().amax((0, 1))[9 : frames - 9] > 1e-9
        first, last = 9 + torch.nonzero(heard).flatten()[[0, -1]]
        errors.append(times.first + times.period * float(first + last) / 2 - sample / audio.sample_rate)
    assert np.abs(errors).max() <= 0.5 * times.period + 1e-9
    assert abs(np.mean(errors)) <= hop / 4 / audio.sample_rate


def test_spectrogram_frames_are_centred_on_the_hops():
    assert FrameTimes.of_spectrogram(AudioConfig()) == FrameTimes(0.0, 0.01)
    assert FrameTimes.of_output(AudioConfig(), ModelConfig()) == FrameTimes(0.0, 0.02)


# The sound.


def levels(*parts: tuple[float, int]) -> np.ndarray:
    return np.concatenate([np.full(frames, level) for level, frames in parts])


def test_short_silence_and_clicks_are_no_pauses():
    level = levels((0.1, 5), (0.8, 40), (0.1, 10), (0.8, 40), (0.1, 20), (0.4, 5), (0.1, 20), (0.8, 40))
    pauses = find_pauses(level, 0.01)
    assert np.flatnonzero(pauses).tolist() == [*range(5), *range(95, 140)]
    smack = levels((0.1, 10), (0.9, 6), (0.1, 30), (0.9, 40), (0.1, 12), (0.9, 6), (0.1, 30))
    assert np.flatnonzero(~find_pauses(smack, 0.01)).tolist() == [*range(46, 104)], "the stop at a word's end is part of it"
    assert find_pauses(levels((0.1, 30), (0.9, 8), (0.1, 30)), 0.01).sum() == 60, "unless that is all there is"


def test_a_pause_draws_a_boundary_and_a_dip_moves_it():
    level = levels((0.0, 20), (0.9, 60), (0.0, 40), (0.9, 60), (0.0, 20))
    begins, ends = place_words(level, find_pauses(level, 0.01), np.array([60.0]), np.array([12, 12]), 0.01)
    assert (begins.tolist(), ends.tolist()) == ([20, 120], [80, 180])
    level = levels((0.9, 50), (0.4, 3), (0.9, 50))
    begins, ends = place_words(level, find_pauses(level, 0.01), np.array([45.0]), np.array([12, 12]), 0.01)
    assert begins[1] == ends[0] and 50 <= begins[1] <= 53


def test_boundaries_that_are_all_off_alike_are_believed_rather_than_nearer_ones_that_are_not():
    level, expected = np.full(1000, 0.9), np.arange(100.0, 1000, 100)
    for k, place in enumerate(expected.astype(int)):
        for dip in (place + 20, place + (15 if k % 2 else -15)):
            level[dip - 1 : dip + 1] = 0.1
    begins, _ = place_words(level, find_pauses(level, 0.01), expected, np.full(10, 9), 0.01)
    assert (np.abs(begins[1:] - expected - 20) <= 1).all()


@pytest.mark.parametrize("seed", range(30))
def test_words_never_overlap_and_none_is_empty_wherever_the_spikes_are(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    level = np.repeat(rng.random(40), rng.integers(1, 20, 40))
    expected = np.sort(rng.uniform(0, len(level), count - 1)) * (rng.random() < 0.7)  # or all at the beginning
    least = rng.integers(1, 40, count)
    begins, ends = place_words(level, find_pauses(level, 0.01), expected, least, 0.01)
    assert (begins < ends).all() and (ends[:-1] <= begins[1:]).all() and begins[0] >= 0 and ends[-1] <= len(level)


def test_silence_alone_is_shared_out():
    level = speech_level(np.zeros((161, 50), np.float32), 0.01)
    begins, ends = place_words(level, np.ones(50, bool), np.array([0.0, 0.0]), np.array([9, 9, 9]), 0.01)
    assert (begins < ends).all() and ends[-1] == 50


@pytest.mark.parametrize("noise", [0.0, 0.0003, 0.02])
def test_the_level_tells_speech_from_silence_in_any_noise(noise):
    rng = np.random.default_rng(0)
    wave = rng.normal(0, noise, 48000)
    t = np.arange(16000) / 16000
    wave[16000:32000] += 0.3 * np.sin(2 * np.pi * 700 * t)
    level = speech_level(spectrogram(wave.astype(np.float32), AudioConfig()).numpy(), 0.01)
    silent = np.flatnonzero(find_pauses(level, 0.01))
    expected = [*range(100), *range(201, 301)]
    assert len(set(silent.tolist()) ^ set(expected)) <= 4


def test_characters_share_their_word_by_their_spikes():
    assert character_edges(np.array([0.2, 0.4]), 0.1, 0.5) == pytest.approx([0.1, 0.3, 0.5])
    # The first two were written before the word is heard: they divide what is before the third.
    edges = character_edges(np.array([0.0, 0.02, 1.3]), 1.0, 1.4)
    assert edges[[0, -1]].tolist() == [1.0, 1.4] and (np.diff(edges) > 0.05).all()


# Files.


def an_alignment(word: str = "HI", offset: float = 0.0) -> Aligned:
    letters = tuple(Span(c, offset + 0.2 + 0.1 * i, offset + 0.3 + 0.1 * i, -0.1) for i, c in enumerate(word))
    said = Word(word, offset + 0.2, offset + 0.2 + 0.1 * len(word), -0.1, letters)
    return Aligned(word, offset, offset + 1.0, -0.1, (said,))


def named(word: str = "HI", offset: float = 0.0) -> Named:
    return Named("/a/x.wav", "x", "x", an_alignment(word, offset))


def test_a_textgrid_has_no_holes_and_doubles_its_quotes():
    text = as_textgrid(named('"A', offset=3.0))
    tiers = text.split("item [")[2:]
    assert [re.search('name = "(.*)"', tier)[1] for tier in tiers] == ["words", "characters"]
    assert 'text = """A"' in tiers[0] and 'text = """"' in tiers[1]
    for tier in tiers:
        size = int(re.search(r"intervals: size = (\d+)", tier)[1])
        times = [float(value) for value in re.findall(r"xm(?:in|ax) = ([\d.]+)", tier)]
        assert len(times) == 2 + 2 * size and times[:2] == [3.0, 4.0]
        assert [3.0, *times[3::2]] == [*times[2::2], 4.0], "each begins where the one before ends"


def test_no_two_utterances_share_a_name():
    names, segment = Names(), {"offset": 1.5, "duration": 2.0}
    utterances = [Utterance("/a/x.wav"), Utterance("/b/x.wav"), *[Utterance("/a/long talk.wav", **segment)] * 2]
    given = [names.named(utterance, an_alignment()) for utterance in utterances]
    talk = "long_talk-0000150-0000350"
    expected = [("x", "x"), ("x-2", "x-2"), ("long_talk", talk), ("long_talk", f"{talk}-2")]
    assert [(each.recording, each.name) for each in given] == expected


def test_what_fails_half_way_leaves_no_file(tmp_path):
    old = tmp_path / "all.json"
    old.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_to(str(old), None, "json") as write:
        write(Utterance("/a/x.wav"), an_alignment())
        raise KeyboardInterrupt
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_json_is_a_list_however_many_there_are(tmp_path, count):
    with written_to(str(tmp_path / "all.json"), None, "json") as write:
        for _ in range(count):
            write(Utterance("/a/x.wav"), an_alignment())
    assert len(json.loads((tmp_path / "all.json").read_text())) == count


# The command, on beeps.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = make_corpus(tmp_path_factory.mktemp("corpus"))
    done = train(corpus, "--epochs", 3, "--batch-size", 4, "--num-workers", 0)
    assert done.returncode == 0, done.stderr
    return corpus


def beep_times(text: str) -> list[tuple[float, float]]:
    """When each character of an utterance of beeps begins and ends."""
    times, at = [], LEAD
    for character in text:
        times.append((at, at + (SPACE if character == " " else BEEP)))
        at = times[-1][1] + (0 if character == " " else AFTER_BEEP)
    return times


def align(capsys, *args: object, corpus: Path) -> tuple[int, str, str]:
    """align.py in this process, with the corpus's model: status, standard output and error."""
    model = ["--model-path", corpus / "models/deepspeech_final.pth", "--num-workers", 0]
    try:
        status = runpy.run_path(str(ROOT / "align.py"), run_name="script")["main"]([str(arg) for arg in [*args, *model]])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_words_of_beeps_are_found_where_they_are(corpus, capsys):
    status, out, err = align(capsys, "--manifest", corpus / "val.csv", "--format", "jsonl", "--batch-size", 3, corpus=corpus)
    assert (status, err) == (0, "")
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["audio"] for result in results] == [str(corpus / f"u{i}.wav") for i in range(64, 72)]
    errors, outside = [], 0
    for result in results:
        times, first = beep_times(result["text"]), 0
        assert " ".join(word["word"] for word in result["words"]) == result["text"]
        for word in result["words"]:
            errors += [word["start"] - times[first][0], word["end"] - times[first + len(word["word"]) - 1][1]]
            assert [c["character"] for c in word["characters"]] == list(word["word"])
            assert [word["start"], *(c["end"] for c in word["characters"])] == [
                *(c["start"] for c in word["characters"]),
                word["end"],
            ]
            for character, (start_, end) in zip(word["characters"], times[first:], strict=False):
                outside += not start_ - 0.05 < (character["start"] + character["end"]) / 2 < end + 0.05
            first += len(word["word"]) + 1
    assert np.median(np.abs(errors)) <= 0.01 and np.max(np.abs(errors)) <= 0.03
    assert outside <= 4


def test_a_wrong_word_shows(corpus, capsys):
    recording = ["--audio-path", corpus / "u65.wav"]
    text = (corpus / "u65.txt").read_text().strip()
    status, out, _ = align(capsys, *recording, "--text-path", corpus / "u65.txt", corpus=corpus)
    right = json.loads(out)[0]
    wrong_first = text.translate(
        str.maketrans("ABC", "BCA"),
    ).split()[0]
    status, out, _ = align(capsys, *recording, "--text", f"{wrong_first} {text.split()[1]}", corpus=corpus)
    wrong = json.loads(out)[0]
    assert status == 0
    assert wrong["words"][0]["confidence"] < 0.05 * right["words"][0]["confidence"]
    assert wrong["score"] < right["score"] - 1


def test_a_segments_times_are_the_recordings(corpus, tmp_path, capsys):
    wave, rate = soundfile.read(corpus / "u64.wav")
    soundfile.write(tmp_path / "talk.wav", np.concatenate([np.zeros(2 * rate), wave, np.zeros(rate)]), rate)
    text = (corpus / "u64.txt").read_text().strip()
    entry = {"audio_filepath": "talk.wav", "offset": 2.0, "duration": len(wave) / rate, "text": text}
    (tmp_path / "m.jsonl").write_text(json.dumps(entry) + "\n")
    flags = ["--manifest", tmp_path / "m.jsonl", "--output-dir", tmp_path / "out"]
    for format in ("ctm", "textgrid"):
        status, out, err = align(capsys, *flags, "--format", format, corpus=corpus)
        assert (status, err) == (0, "") and out.startswith("aligned 1 utterances")
    name = f"talk-0000200-{round(100 * (2 + len(wave) / rate)):07d}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{name}.ctm", f"{name}.TextGrid"}
    lines = [line.split() for line in (tmp_path / "out" / f"{name}.ctm").read_text().splitlines()]
    assert [line[4] for line in lines] == text.split() and {(line[0], line[1]) for line in lines} == {("talk", "1")}
    assert float(lines[0][2]) == pytest.approx(2 + LEAD, abs=0.02)
    assert "\nxmin = 2.000000\n" in (tmp_path / "out" / f"{name}.TextGrid").read_text()


def test_long_recordings_do_not_share_a_batch():
    durations = np.array([3.0, 500, 2, 500, 4, 1000])
    batches = [batch.tolist() for batch in _batches(durations, BatchLimit(20))]
    assert batches == [[2, 0, 4], [1], [3], [5]]
    assert len(_batches(durations, BatchLimit(seconds=6000))) == 1, "unless that is asked for"


@pytest.mark.parametrize("streaming", [False, True])
def test_levels_are_heard_the_same_by_a_network_that_hears_them_as_they_come(corpus, streaming):
    audio = AudioConfig(streaming_norm=streaming)
    text = (corpus / "u64.txt").read_text().strip()
    wave, _ = soundfile.read(corpus / "u64.wav", dtype="float32")
    utterance = Utterance(str(corpus / "u64.wav"), text=text, duration=len(wave) / 16000)
    labels = Labels(["_", "A", "B", "C", " "])
    log_probs = random_scores(len(wave) // 320, 5, 0)
    aligner = Aligner(labels, audio, ModelConfig())
    found = _aligned(utterance, log_probs, spectrogram(wave, audio).numpy(), audio, aligner)
    whole = spectrogram(wave, AudioConfig()).numpy()
    assert found == aligner.align(log_probs, whole, text, len(wave) / 16000)


def test_ctm_of_characters_has_a_line_for_each(corpus, capsys):
    flags = ["--audio-path", corpus / "u64.wav", "--text-path", corpus / "u64.txt", "--format", "ctm", "--ctm-characters"]
    status, out, _ = align(capsys, *flags, corpus=corpus)
    assert status == 0
    assert "".join(line.split()[4] for line in out.splitlines()) == (corpus / "u64.txt").read_text().replace(" ", "").strip()


@pytest.fixture(scope="module")
def bad_manifest(corpus):
    content = bytearray()
    soundfile.write(corpus / "noise.flac", np.random.default_rng(0).normal(0, 0.1, 60000), 16000)
    content += (corpus / "noise.flac").read_bytes()
    content[40000:60000] = bytes(20000)  # the header and the last frame stay: found when it is read
    (corpus / "broken.flac").write_bytes(content)
    (corpus / "small.txt").write_text("abc\n")
    (corpus / "much.txt").write_text("ABC" * 100 + "\n")
    lines = ["u64.wav,u64.txt", "broken.flac,u65.txt", "nix.wav,u65.txt", "u66.wav,small.txt", "u66.wav,much.txt"]
    (corpus / "bad.csv").write_text("\n".join([*lines, "u67.wav,u67.txt"]) + "\n")
    return corpus / "bad.csv"


def test_bad_utterances_are_named_and_the_others_done(corpus, bad_manifest, tmp_path, capsys):
    flags = ["--manifest", bad_manifest, "--format", "ctm", "--output", tmp_path / "all.ctm"]
    status, out, err = align(capsys, *flags, corpus=corpus)
    assert status == 1 and "Traceback" not in err and "aligned 2 utterances" in out
    *lines, last = err.splitlines()
    assert len(lines) == 4 and all(line.startswith("left out: ") for line in lines)
    for number, name in ((2, "broken.flac"), (3, "nix.wav"), (4, "'a'"), (5, "u66.wav")):
        assert any(f"bad.csv:{number}: " in line and name in line for line in lines)
        assert f"bad.csv:{number}" in last
    assert last.startswith("error: 4 of 6 utterances")
    recordings = [line.split()[0] for line in (tmp_path / "all.ctm").read_text().splitlines()]
    assert list(dict.fromkeys(recordings)) == ["u64", "u67"]


BAD_USE = [
    (["--audio-path", "nix.wav", "--text", "A"], 1, "nix.wav: "),
    (["--audio-path", "u64.wav", "--text", "abc"], 1, "u64.wav: 'a'"),
    (["--audio-path", "u64.wav", "--text-path", "nix.txt"], 1, "nix.txt"),
    (["--audio-path", "u64.wav", "--text", " "], 1, "u64.wav: no words"),
    (["--audio-path", "u64.wav", "--text", "ABC" * 100], 1, "u64.wav: "),
    (["--audio-path", "labels.json", "--text", "A"], 1, "labels.json: "),
    (["--audio-path", "broken.flac", "--text", "A"], 1, "broken.flac"),
    (["--audio-path", "u64.wav"], 2, "--text"),
    (["--manifest", "val.csv", "--text", "A"], 2, "--audio-path"),
    (["--manifest", "val.csv", "--audio-path", "u64.wav"], 2, "--audio-path"),
    ([], 2, "--manifest"),
    (["--manifest", "nix.csv"], 1, "nix.csv"),
    (["--manifest", "val.csv", "--format", "textgrid"], 2, "--output-dir"),
    (["--manifest", "val.csv", "--output", "models"], 1, "models"),
    (["--manifest", "val.csv", "--output-dir", "labels.json"], 1, "labels.json"),
    (["--manifest", "val.csv", "--spike-lead", "9"], 2, "--spike-lead"),
]


@pytest.mark.parametrize("args, status, told", BAD_USE, ids=str)
def test_bad_use_gets_one_line_that_names_it(corpus, bad_manifest, monkeypatch, capsys, args, status, told):
    monkeypatch.chdir(corpus)
    found, out, err = align(capsys, *args, corpus=corpus)
    assert (found, out, err.count("\n")) == (status, "", 1) and told in err, err


def test_a_manifest_of_nothing_to_align_says_why(corpus, monkeypatch, capsys):
    monkeypatch.chdir(corpus)
    (corpus / "none.csv").write_text("nix.wav,u64.txt\n")
    status, out, err = align(capsys, "--manifest", "none.csv", corpus=corpus)
    assert (status, out) == (1, "") and "nothing is left to use" in err and "nix.wav" in err


def test_ctrl_c_ends_with_130_and_leaves_what_is_done(corpus):
    lines = (corpus / "train.csv").read_text()
    (corpus / "many.csv").write_text(lines * 30)
    flags = ["--manifest", "many.csv", "--output-dir", "out", "--batch-size", 1, "--num-workers", 0]
    process = start("align.py", *flags, "--format", "jsonl", cwd=corpus)
    while not (written := list((corpus / "out").glob("u*.jsonl"))) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "interrupted\n"
    assert written and all(json.loads(path.read_text())["words"] for path in (corpus / "out").glob("u*.jsonl"))
    assert not list((corpus / "out").glob(".*.tmp"))


def test_words_without_a_space_among_the_labels_are_one():
    labels = Labels(["_", "日", "本"])
    scores = np.full((50, 3), -9.0, np.float32)
    scores[:, 0] = -0.01
    for frame, label in ((10, 1), (30, 2)):
        scores[frame] = [-9, -9, -9]
        scores[frame, label] = -0.01
    spect = np.random.default_rng(0).random((161, 100), np.float32)
    alignment = Aligner(labels, AudioConfig(), ModelConfig()).align(scores, spect, "日本", 1.0)
    (word,) = alignment.words
    assert word.text == "日本" and [c.text for c in word.characters] == ["日", "本"]
    assert word.confidence == pytest.approx(np.exp(-0.21 / 2), abs=1e-3)
