"""A recording read in blocks is the recording: the same samples, the same faults, and little memory however long it is."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from beeps import ROOT

from data.audio import audio_blocks, load_audio
from data.containers import TooLong

RATE = 16000


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(samples).uniform(-0.5, 0.5, (samples, channels))


def encoded(wave: np.ndarray, rate: int = RATE, container: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=container, subtype=subtype)
    return file.getvalue()


def joined(data: bytes, **options: float) -> np.ndarray:
    blocks = list(audio_blocks(io.BytesIO(data), RATE, **options))
    assert all(len(block) and block.dtype == np.float32 for block in blocks)
    return np.concatenate(blocks)


@pytest.mark.parametrize("seconds", [0.001, 0.09, 1.0, 30.0])
@pytest.mark.parametrize("rate", [1000, 8000, 11025, 16000, 22051, 44100, 192000])
def test_the_same_samples_as_at_once(rate, seconds):
    for samples in (13, 1000, rate + 7):
        data = encoded(noise(samples), rate)
        whole = load_audio(io.BytesIO(data), RATE)
        np.testing.assert_allclose(joined(data, seconds=seconds), whole, atol=1e-4)


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "GSM610"), ("FLAC", None), ("MP3", None), ("OGG", "OPUS")])
def test_segments_of_every_codec(container, subtype):
    data = encoded(noise(24000), RATE, container, subtype)
    for segment in ({}, {"offset": 0.5}, {"offset": 0.31, "duration": 0.75}):
        whole = load_audio(io.BytesIO(data), RATE, **segment)
        np.testing.assert_allclose(joined(data, seconds=0.1, **segment), whole, atol=1e-4)


def test_blocks_are_about_as_long_as_asked():
    lengths = [len(block) for block in audio_blocks(io.BytesIO(encoded(noise(40000, 2))), RATE, seconds=1.0)]
    assert lengths == [16000, 16000, 8000]


def test_what_is_read_before_a_fault_is_given_and_the_fault_is_the_same():
    wave = noise(48000).astype(np.float32)
    faults = {}
    for name, value in {"nan": np.nan, "loud": 500.0}.items():
        wave[40000] = value
        faults[name] = encoded(wave, subtype="FLOAT")
    flac = bytearray(encoded(noise(48000), container="FLAC"))
    flac[len(flac) * 3 // 4] ^= 0xFF
    faults["damaged"] = bytes(flac)
    for name, data in faults.items():
        with pytest.raises(ValueError) as at_once:
            load_audio(io.BytesIO(data), RATE)
        read = []
        with pytest.raises(ValueError, match=f"^{re.escape(str(at_once.value))}$"):
            read.extend(audio_blocks(io.BytesIO(data), RATE, seconds=0.5))
        assert sum(map(len, read)) >= 16000, name


def test_what_no_block_can_be_read_of():
    for data, why in {b"": "empty", b"hello": "not audio", encoded(noise(0)): "no samples"}.items():
        with pytest.raises(ValueError, match=f"^audio: {why}"):
            next(audio_blocks(io.BytesIO(data), RATE))
    with pytest.raises(ValueError, match="outside the file"):
        next(audio_blocks(io.BytesIO(encoded(noise(1600))), RATE, offset=2.0))


def test_what_is_too_long_is_not_read():
    for container in ("WAV", "FLAC", "OGG", "MP3"):
        data = encoded(noise(5 * RATE), container=container)
        assert sum(map(len, audio_blocks(io.BytesIO(data), RATE, longest=5.2))) >= 5 * RATE
        with pytest.raises(TooLong, match=r"^audio: longer than 4\.8 s: cut it into parts$"):
            next(audio_blocks(io.BytesIO(data), RATE, longest=4.8))


def test_reading_may_end_early(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(encoded(noise(160000)))
    blocks = audio_blocks(path, RATE, seconds=1.0)
    assert len(next(blocks)) == RATE
    blocks.close()  # an open file would be a warning, hence an error


def in_a_process(code: str, **options: object) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_long_recording_needs_little_memory(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(0), 44100)
    samples = 44100 * 1800
    header = bytearray(path.read_bytes())
    header[4:8] = (36 + 2 * samples).to_bytes(4, "little")
    header[40:44] = (2 * samples).to_bytes(4, "little")
    path.write_bytes(header)
    with open(path, "r+b") as file:
        file.truncate(44 + 2 * samples)  # half an hour of silence, of which the disk keeps nothing
    code = (
        "import resource, sys\n"
        "from data.audio import audio_blocks\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"samples = sum(map(len, audio_blocks({str(path)!r}, 16000)))\n"
        "print(samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    length, kilobytes = map(int, in_a_process(code).split())
    assert length == RATE * 1800
    assert kilobytes < 40_000  # as one wave it has 318 MB at its own rate


@pytest.mark.parametrize("small", [2**26, 1000])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3"])
def test_a_pipe_is_a_recording_like_any_other(container, small, tmp_path):
    """Of which all may be kept in memory, or most on disk."""
    path = tmp_path / "speech"
    path.write_bytes(encoded(noise(160000), 44100, container))
    code = (
        "import sys, numpy as np\n"
        "from data import audio, random_access\n"
        f"random_access.SMALL_BYTES = {small}\n"
        "wave = np.concatenate(list(audio.audio_blocks(sys.stdin.buffer, 16000, offset=1.0)))\n"
        f"print(np.array_equal(wave, audio.load_audio({str(path)!r}, 16000, offset=1.0)))\n"
    )
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        assert in_a_process(code, stdin=cat.stdout) == "True\n"
