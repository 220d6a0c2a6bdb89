"""Live text: however speech is cut, it gives the same to the bit, and what the whole recording gives."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from beep_network import fit_network
from beeps import ROOT, TONES, hear_signals

from asr.checkpoint import Checkpoint, save_checkpoint
from asr.live import transcribe_live
from asr.network_stream import NetworkStream, frames_ahead
from asr.quantization import quantized
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from asr.streaming import Final, LiveTranscriber, Partial, follows_streams
from asr.transcript import AFTER_SPIKE
from config import RNN_TYPES, AudioConfig, DecoderConfig, ModelConfig
from data.audio import load_audio
from data.feature_stream import SpectrogramStream
from data.features import spectrogram
from data.labels import Labels
from data.pcm import PcmStream
from decoder import GreedyDecoder
from model import DeepSpeech

RUNTIME = Runtime.choose(cuda=False)
GEOMETRIES = [
    AudioConfig(),
    AudioConfig(sample_rate=22050),  # a window of 441 samples: odd
    AudioConfig(window_size=0.032, window_stride=0.0125),
    AudioConfig(window_size=0.01, window_stride=0.0125),  # samples between the windows
]


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


def cuts(length: int) -> list[list[slice]]:
    """Ways to cut so many samples or bytes: at once, into pieces of any size with empty ones, one by one at both ends."""
    rng = np.random.default_rng(length)
    edges = np.sort(rng.integers(0, length + 1, 20))
    single = sorted({*range(min(300, length)), *range(max(0, length - 300), length)})
    ways = ([], edges.tolist(), single, list(range(0, length, 1600)))
    return [[slice(a, b) for a, b in zip([0, *way], [*way, length], strict=True)] for way in ways]


@pytest.mark.parametrize("config", GEOMETRIES, ids=str)
def test_frames_are_those_of_the_whole_wave(config):
    half = config.window_samples // 2
    for samples in (half + 1, half + 2, 1601, 16007):
        wave = noise(samples)
        expected = spectrogram(wave, replace(config, streaming_norm=True))
        ways = []
        for way in cuts(samples):
            stream = SpectrogramStream(config)
            blocks = [block for piece in way for block in stream.feed(wave[piece])]
            ways.append(torch.cat([*blocks, stream.finish()], dim=1))
            assert torch.equal(ways[-1], ways[0])
        torch.testing.assert_close(ways[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("samples", [0, 1, 160])
def test_too_short_is_told_as_of_a_whole_recording(samples):
    stream = SpectrogramStream(AudioConfig())
    stream.feed(noise(samples))
    with pytest.raises(ValueError) as live:
        stream.finish()
    with pytest.raises(ValueError) as whole:
        spectrogram(noise(samples), AudioConfig())
    assert str(live.value) == str(whole.value)


def network(**kwargs) -> DeepSpeech:
    """Random weights, with batch norms that do something."""
    torch.manual_seed(3)
    model = DeepSpeech(ModelConfig(num_labels=7, hidden_size=24, hidden_layers=3, bidirectional=False, **kwargs))
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 1, 161, 60) * 2, torch.tensor([60, 47, 33, 20]))
    return model.eval()


def streamed(model: DeepSpeech, spect: torch.Tensor, step: int) -> torch.Tensor:
    stream = NetworkStream(model, RUNTIME)
    whole = spect.shape[1] // step * step
    parts = [stream.feed(spect[:, i : i + step]) for i in range(0, whole, step)]
    return torch.cat([*parts, stream.feed(spect[:, whole:], last=True)])


@pytest.mark.parametrize("release1", [False, True])
@pytest.mark.parametrize("lookahead", [1, 20])
@pytest.mark.parametrize("rnn_type", RNN_TYPES)
def test_the_network_goes_on_where_it_stood(rnn_type, lookahead, release1):
    model = network(rnn_type=rnn_type, lookahead_context=lookahead, release1=release1)
    small = quantized(model)
    for frames in (1, 2, 9, 10, 11, 20, 21, 50, 203):
        spect = torch.randn(161, frames)
        with torch.inference_mode():
            logits, lens = model(spect[None, None], torch.tensor([frames]))
        expected = logits[0].log_softmax(-1)
        for step in (10, 7, 64):
            found = streamed(model, spect, step)
            assert len(found) == lens.item()
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert (streamed(small, spect, 10).exp() - expected.exp()).abs().max() < 0.05


@pytest.mark.parametrize("release1", [False, True])
def test_the_delay_is_as_stated(release1):
    model = network(rnn_type="gru", release1=release1)
    stream, ahead = NetworkStream(model, RUNTIME), frames_ahead(model.config)
    assert sum(len(stream.feed(torch.zeros(161, 1))) for _ in range(ahead)) == 0
    assert len(stream.feed(torch.zeros(161, 1))) == 1
    assert len(stream.feed(torch.zeros(161, 40))) == 20


def test_a_bidirectional_network_cannot_follow():
    with pytest.raises(ValueError, match="--no-bidirectional"):
        NetworkStream(DeepSpeech(ModelConfig(hidden_size=8, hidden_layers=1)), RUNTIME)


def test_a_diverged_network_is_told():
    model = network(rnn_type="gru")
    with torch.no_grad():
        model.head.weight[2, 3] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        streamed(model, torch.randn(161, 90), 10)


SYMBOLS = ["_", "A", "B", "C", " "]
NOTES = {**TONES, " ": 2800}  # Hz; a dot is a second's pause
AUDIO = AudioConfig(streaming_norm=True)
SPEECH = "AB CA.BB A C.CAB A BC..B CA AC"


def sound(text: str) -> tuple[np.ndarray, np.ndarray]:
    """A wave, and the label of each of its samples."""
    parts, labels = [np.zeros(3200)], [np.zeros(3200, dtype=int)]
    for character in text:
        beep = 0.3 * np.sin(2 * np.pi * NOTES.get(character, 0) * np.arange(3200) / 16000)
        silence = np.zeros(1600 if character in NOTES else 16000)
        label = SYMBOLS.index(character) if character in NOTES else 0
        parts += [beep, silence]
        labels += [np.full(len(beep), label), np.zeros(len(silence), dtype=int)]
    wave = np.concatenate([*parts, np.zeros(16000)])
    wave += np.random.default_rng(len(text)).normal(0, 0.001, len(wave))
    return wave.astype(np.float32), np.concatenate([*labels, np.zeros(16000, dtype=int)])


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    rng = np.random.default_rng(0)
    texts = [*("".join(rng.choice(list("AABBCC  ."), 20)) for _ in range(8)), "...", *"ABC ."]
    path = tmp_path_factory.mktemp("live") / "beeps.pth"
    return fit_network(path, [sound(text) for text in texts], bidirectional=False, streaming_norm=True)


@pytest.fixture(scope="module")
def recognizer(model_path):
    return Recognizer(model_path, DecoderConfig(), RUNTIME)


def offline_text(recognizer: Recognizer, wave: np.ndarray) -> str:
    """Of the whole recording in one pass of the network."""
    spect = spectrogram(wave, recognizer.audio)
    with torch.inference_mode():
        logits, lens = recognizer.model(spect[None, None], torch.tensor([spect.shape[1]]))
    return GreedyDecoder(SYMBOLS).decode(logits.log_softmax(-1), lens)[0][0].text


def transcribed(recognizer: Recognizer, wave: np.ndarray, way: list[slice], **kwargs) -> list[Partial | Final]:
    live = LiveTranscriber(recognizer, **kwargs)
    return [event for piece in way for event in live.feed(wave[piece])] + live.finish()


def finals(events: list[Partial | Final]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


@pytest.mark.parametrize("config", [DecoderConfig(), DecoderConfig(decoder="beam", top_paths=3)], ids=["greedy", "beam"])
@pytest.mark.parametrize("int8", [False, True])
def test_events_do_not_depend_on_the_pieces(model_path, config, int8):
    recognizer = Recognizer(model_path, config, RUNTIME, int8)
    wave, _ = sound("AB CA.C")
    ways = [transcribed(recognizer, wave, way) for way in cuts(len(wave))]
    assert all(events == ways[0] for events in ways), "to the bit, scores and times included"
    assert len(finals(ways[0])[0].hypotheses) == config.top_paths
    unseen = transcribed(recognizer, wave, [slice(None)], partials=False)
    assert unseen == finals(ways[0])


def test_finals_come_at_pauses_with_their_times(recognizer):
    wave, labels = sound(SPEECH)
    events = transcribed(recognizer, wave, [slice(None)])
    found, times = finals(events), recognizer.times
    assert [final.text for final in found] == ["AB CA", "BB A C", "CAB A BC", "B CA AC"]
    spoken = np.flatnonzero(labels) / 16000
    parts = np.split(spoken, np.flatnonzero(np.diff(spoken) > 0.5) + 1)
    for final, part in zip(found, parts, strict=True):
        assert final.start == pytest.approx(part[0], abs=0.1)
        best = final.hypotheses[0]
        assert best.words[-1].end * times.period == pytest.approx(part[-1], abs=0.1)
        assert final.end == pytest.approx(times.begin(best.words[-1].end) + AFTER_SPIKE), "as words of files end"
        assert len(best.offsets) == len(best.text)
        assert [word.text for word in best.words] == final.text.split()
        assert best.offsets[0] == best.words[0].start
        assert final.start == max(0.0, times.begin(best.offsets[0]))
    assert len(finals(transcribed(recognizer, wave, [slice(None)], pause=1.6))) == 2, "one pause is two seconds long"


def test_partials_grow_to_the_final(recognizer):
    wave, _ = sound(SPEECH)
    events = transcribed(recognizer, wave, [slice(None)])
    shown = ""
    for event in events:
        if isinstance(event, Final):
            assert event.text == shown
            shown = ""
        else:
            assert event.text != shown and event.text.startswith(shown)
            shown = event.text
    assert sum(isinstance(event, Partial) for event in events) > 15


def test_the_joined_text_is_that_of_the_whole(recognizer):
    wave, _ = sound("AB CA .BB A C .CAB A BC ..B CA AC")  # the network hears a space before each pause
    for seconds in (0.0101, 0.1, 1, 4.32, 7.5, len(wave) / 16000):
        piece = wave[: int(seconds * 16000)]
        texts = [final.text for final in finals(transcribed(recognizer, piece, [slice(None)]))]
        assert " ".join(texts) == " ".join(offline_text(recognizer, piece).split())
    assert len(texts) == 4


def test_who_does_not_pause_is_cut_between_words(recognizer):
    text = "ABA CAB BC CBA BB ACA AB CAB " * 2
    wave, _ = sound(text)
    found = finals(transcribed(recognizer, wave, [slice(None)], longest=4.0))
    assert len(found) > len(wave) / 16000 / 4
    assert " ".join(final.text for final in found) == text.strip()
    assert all(final.end - final.start <= 4 for final in found)
    live = LiveTranscriber(recognizer, longest=4.0)
    for piece in cuts(len(wave))[3]:
        live.feed(wave[piece])
        assert sum(map(len, live._kept)) <= 200, "frames are not kept for ever"


def test_silence_is_no_text_and_is_not_kept(recognizer):
    live = LiveTranscriber(recognizer)
    events = [event for _ in range(10) for event in live.feed(np.zeros(16000, dtype=np.float32))]
    assert finals(events + live.finish()) == []
    assert sum(map(len, live._kept)) < 100


def test_which_models_follow_streams(recognizer, tmp_path):
    assert follows_streams(recognizer)
    config = ModelConfig(num_labels=5, hidden_size=8, hidden_layers=1)
    save_checkpoint(Checkpoint(config, AUDIO, Labels(SYMBOLS), DeepSpeech(config).state_dict()), tmp_path / "both.pth")
    both = Recognizer(tmp_path / "both.pth", DecoderConfig(), RUNTIME)
    assert not follows_streams(both)
    with pytest.raises(ValueError, match=r"both\.pth: a bidirectional network.*--no-bidirectional"):
        LiveTranscriber(both)


def pcm(wave: np.ndarray) -> bytes:
    return np.round(wave * 32767).astype("<i2").tobytes()


def wav(content: bytes, rate: int = 16000, channels: int = 1, bits: int = 16, promised: int | None = None, more: bytes = b""):
    """A WAV as recorders write it to pipes; chunks of `more` come before the samples."""
    promised = len(content) if promised is None else promised
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    head = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + more + b"data" + struct.pack("<I", promised)
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + head + content


def heard(content: bytes, way: list[slice], rate: int | None = None) -> np.ndarray:
    stream = PcmStream(16000, rate)
    return np.concatenate([*(stream.feed(content[piece]) for piece in way), stream.finish()])


@pytest.mark.parametrize("rate", [16000, 8000, 44100])
@pytest.mark.parametrize(
    ("channels", "header"),
    [(1, None), *((channels, header) for channels in (1, 2) for header in (0, 0xFFFFFFFF, 0x7FFFF000, "exact"))],
)
def test_samples_are_those_of_a_file(tmp_path, rate, channels, header):
    samples = np.round(noise(9001 * channels) * 32767).astype("<i2").reshape(-1, channels)
    soundfile.write(tmp_path / "a.wav", samples, rate)
    content, trailer = samples.tobytes(), b"LIST" + struct.pack("<I", 4) + b"abcd"
    if header is not None:
        promised = None if header == "exact" else header
        content = wav(content, rate, channels, promised=promised, more=trailer) + (trailer if header == "exact" else b"")
    ways = [heard(content, way, rate if header is None else 12345) for way in cuts(len(content))]
    assert all(np.array_equal(wave, ways[0]) for wave in ways)
    expected = load_audio(tmp_path / "a.wav", 16000)
    assert len(ways[0]) == len(expected)
    np.testing.assert_allclose(ways[0], expected, atol=0 if rate == 16000 else 1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no samples"),
        (b"x", "no samples"),
        (b"RIFF", "ends before its samples"),
        (wav(b""), "no samples"),
        (wav(b"abcdef", bits=24), "24-bit whole numbers.*ffmpeg"),
        (wav(b"abcd", channels=0), "0 channels"),
        (wav(b"abcd", rate=7), "7 Hz"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "no format"),
        (b"RIFF\0\0\0\0WAVEfmt \2\0\0\0abdata\0\0\0\0", "cut off"),
        (b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\x7f", "no samples in its first"),
        (b"OggS" + bytes(99), "Ogg, expected 16-bit"),
        (b"fLaC" + bytes(99), "FLAC, expected 16-bit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_pcm_is_told(content, message):
    for way in cuts(len(content)):
        with pytest.raises(ValueError, match=message):
            heard(content, way)


def test_an_impossible_rate_is_told():
    with pytest.raises(ValueError, match="5 Hz"):
        PcmStream(16000, 5)


LIVE = """
import sys
from asr.live import transcribe_live
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from config import DecoderConfig
from data.command_line import run_script

def work():
    recognizer = Recognizer(sys.argv[1], DecoderConfig(), Runtime.choose(cuda=False))
    transcribe_live(recognizer, sys.stdin.buffer, as_json="json" in sys.argv, partials="partials" in sys.argv)

sys.exit(run_script(work))
"""


@contextmanager
def listening(*args: object) -> Iterator[subprocess.Popen]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", LIVE, *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=hear_signals, env=environment, bufsize=0, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_line_comes_while_the_pipe_is_open_and_ctrl_c_gives_the_last(model_path):
    with listening(model_path) as process:
        process.stdin.write(wav(pcm(sound("AB CA.")[0]), promised=0))
        assert process.stdout.readline() == b"AB CA\n", "no need to wait for the end"
        wave, _ = sound("CAB")
        process.stdin.write(pcm(wave[:-14000]))
        time.sleep(1)  # for it to be read; there is no way to see that it was
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == (b"CAB\n", b"", 0)


def test_events_as_json_and_a_byte_too_many(model_path):
    with listening(model_path, "json", "partials") as process:
        out, errors = process.communicate(pcm(sound("AB CA.C")[0]) + b"x", timeout=60)
    events = [json.loads(line) for line in out.decode().splitlines()]
    assert [event["final"] for event in events if "final" in event] == ["AB CA", "C"]
    first = next(event for event in events if "final" in event)
    assert [word["word"] for word in first["words"]] == ["AB", "CA"]
    assert first["start"] == first["words"][0]["start"] < first["words"][1]["end"] == first["end"] < 2
    assert events[0]["partial"] == "A" and events[0]["start"] == first["start"]
    assert process.returncode == 1 and errors.count(b"\n") == 1 and b"16-bit" in errors


def test_nothing_on_the_pipe(model_path):
    with listening(model_path) as process:
        _, errors = process.communicate(b"", timeout=60)
    assert (process.returncode, errors) == (1, b"error: standard input: no samples\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminals_line_is_written_over(recognizer):
    read, write = os.pipe()
    content, screen = pcm(sound("AB CA.C")[0]), Terminal()
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=write)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        writer = threading.Thread(target=process.communicate, args=(content,))
        writer.start()
        transcribe_live(recognizer, pipe, output=screen)
        writer.join()
    lines = screen.getvalue().split("\n")
    assert [line.split("\r")[-1] for line in lines] == ["AB CA", "C", ""]
    assert lines[0].split("\r")[1:4] == ["A", "AB", "AB C"]
