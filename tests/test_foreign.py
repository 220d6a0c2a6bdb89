"""What PyAV reads and libsndfile does not: it is a recording like any other, and opens nothing but itself."""

import errno
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from beeps import ROOT
from loopback import serving
from shared_data import ZOO, needs_shared

from data import foreign
from data.audio import audio_blocks, audio_duration, load_audio, rate_and_channels
from data.containers import TooLong

av = pytest.importorskip("av", reason="PyAV is absent: requirements-media.txt")

RATE = 16000
BIT_RATES = {"libopencore_amrnb": 12200}


def beep(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """(S,) float32: a gliding tone, which no delay and no wrong rate leaves alike."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)


def made(container: str, codec: str, channels: list[np.ndarray], rate: int = RATE, video: bool = False) -> bytes:
    """Encode waves (S,), one a channel, with ffmpeg; video: beside a second of black pictures."""
    file = io.BytesIO()
    layout = {0: None, 1: "mono", 2: "stereo"}[len(channels)]
    with av.open(file, "w", format=container) as output:
        streams, frames = [], []
        if video:
            streams.append(output.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p"))
            frames.append([av.VideoFrame(64, 64, "yuv420p") for _ in range(25)])
        if channels:
            stream = output.add_stream(codec, rate=rate, layout=layout, bit_rate=BIT_RATES.get(codec, 64000))
            stream.codec_context.open()  # which sets the size of its frames
            streams.append(stream)
            frame = av.AudioFrame.from_ndarray(np.stack(channels), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size or 1024)
            frames.append([*resampler.resample(frame), *resampler.resample(None)])
        for stream, parts in zip(streams, frames, strict=True):
            for number, part in enumerate(parts):
                if stream.type == "video":
                    part.pts, part.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
    return file.getvalue()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the bytes counted that are written to temporary files."""
    written: list[int] = []
    monkeypatch.setattr(foreign.TemporaryFile, "append", lambda file, content: written.append(file.write(content)))
    return written


def fault(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        load_audio(io.BytesIO(data), RATE)
    message = str(caught.value)
    assert message.startswith("audio: ") and "\n" not in message
    return message


FORMATS = [
    ("mp4", "aac", 16000),
    ("ipod", "alac", 44100),
    ("mov", "pcm_s16le", 16000),
    ("adts", "aac", 44100),
    ("webm", "libopus", 48000),
    ("matroska", "flac", 16000),
    ("asf", "wmav2", 44100),
    ("amr", "libopencore_amrnb", 8000),
    ("wav", "g722", 16000),
    ("wv", "wavpack", 44100),
    ("tta", "tta", 16000),
    ("ac3", "ac3", 48000),
    ("mpegts", "aac", 48000),
    ("avi", "ac3", 48000),
    ("flv", "aac", 44100),
]


@pytest.mark.parametrize(("container", "codec", "rate"), FORMATS)
def test_every_format(container, codec, rate, capfd):
    data = made(container, codec, [beep(rate=rate)], rate)
    assert rate_and_channels(io.BytesIO(data)) == (rate, 1)
    assert audio_duration(io.BytesIO(data)) == pytest.approx(2.0, abs=0.1)
    wave, expected = load_audio(io.BytesIO(data), RATE), beep()
    alike = np.fft.irfft(np.fft.rfft(wave, 2**17) * np.fft.rfft(expected, 2**17).conj()).max() / (expected @ expected)
    assert alike == pytest.approx(1, abs=0.25 if container == "amr" else 0.1)  # which is made for voices
    blocks = np.concatenate(list(audio_blocks(io.BytesIO(data), RATE, seconds=0.3)))
    np.testing.assert_allclose(blocks, wave, atol=1e-4)
    middle = load_audio(io.BytesIO(data), RATE, offset=0.5, duration=0.5)
    np.testing.assert_allclose(middle[200:-200], wave[8200:15800], atol=2e-3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("container", "codec", "rate"), FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_cut_short(container, codec, rate, share, capfd):
    data = made(container, codec, [beep(rate=rate)], rate)
    cut = data[: int(len(data) * share)]
    if container in ("flv", "mpegts", "amr", "ac3"):  # nothing in them tells their end; they may be cut between two packets
        try:
            wave = load_audio(io.BytesIO(cut), RATE)
        except ValueError as error:
            assert str(error).startswith("audio: ")
        else:
            assert len(wave) < 2 * RATE * (share + 0.2)
    else:
        fault(cut)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("container", "codec", "rate"), FORMATS[:1] + FORMATS[4:5] + FORMATS[6:7])
def test_any_cut_within_the_headers_is_one_line(container, codec, rate, capfd):
    data = made(container, codec, [beep(0.2, rate)], rate)
    for size in range(1, 700, 13):
        fault(data[:size])
    assert capfd.readouterr() == ("", "")


def test_the_sound_of_a_video():
    data = made("mp4", "aac", [beep()], video=True)
    assert audio_duration(io.BytesIO(data)) == pytest.approx(2.0, abs=0.1)
    assert "no audio track: it holds video" in fault(made("mp4", "aac", [], video=True))


def test_channels_are_averaged():
    wave = load_audio(io.BytesIO(made("matroska", "flac", [beep(), np.zeros_like(beep())])), RATE)
    np.testing.assert_allclose(wave, beep() / 2, atol=1e-4)
    wave = load_audio(io.BytesIO(made("mov", "pcm_s16le", [beep(), -beep()])), RATE)
    assert np.abs(wave).max() < 1e-4


def test_the_rate_may_change_in_midstream():
    data = made("adts", "aac", [beep(rate=16000)], 16000) + made("adts", "aac", [beep(rate=48000)], 48000)
    wave = load_audio(io.BytesIO(data), RATE)
    assert rate_and_channels(io.BytesIO(data)) == (16000, 1)
    assert len(wave) / RATE == pytest.approx(4.0, abs=0.25)
    spectrum = np.abs(np.fft.rfft(wave[-RATE:]))
    assert 500 < spectrum.argmax() < 1200, "the tone of the last second, in Hz"


def test_damage_is_told():
    data = bytearray(made("adts", "aac", [beep(4)]))
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    assert "damaged" in fault(bytes(data))


def test_years_of_silence_in_a_small_file(monkeypatch):
    monkeypatch.setattr(foreign, "MOST_BYTES", 4 * RATE)
    assert "longer than 1 s: cut it into parts" in fault(made("matroska", "flac", [beep()]))
    monkeypatch.setattr(foreign, "MOST_BYTES", 4 * RATE * 3)
    recording = made("matroska", "flac", [beep()])
    assert len(load_audio(io.BytesIO(recording), RATE)) == 2 * RATE
    assert len(list(audio_blocks(io.BytesIO(recording), RATE, longest=2.0))) == 1
    written = counted(monkeypatch)
    with pytest.raises(TooLong, match=r"^audio: longer than 0\.5 s: cut it into parts$"):
        next(audio_blocks(io.BytesIO(recording), RATE, longest=0.5))
    assert not written, "its header says so"
    unsaid = made("adts", "aac", [beep()])
    with pytest.raises(TooLong, match=r"^audio: longer than 0\.5 s: cut it into parts$"):
        next(audio_blocks(io.BytesIO(unsaid), RATE, longest=0.5))
    assert 0 < sum(written) < 4 * RATE, "no more is decoded, nor written to the disk, than is needed to know"


def test_no_more_is_written_than_a_recognizer_hears(monkeypatch):
    written = counted(monkeypatch)
    for container, codec, rate in (("matroska", "flac", 96000), ("mov", "pcm_s16le", 384000), ("matroska", "flac", 384000)):
        data = made(container, codec, [beep(rate=rate)], rate)
        written.clear()
        assert rate_and_channels(io.BytesIO(data)) == (48000, 1)
        assert sum(written) == pytest.approx(4 * 48000 * 2, rel=0.01)
        assert audio_duration(io.BytesIO(data)) == pytest.approx(2.0, abs=0.001)
        wave = load_audio(io.BytesIO(data), RATE)
        np.testing.assert_allclose(wave[200:-200], beep()[200 : len(wave) - 200], atol=2e-3)
        middle = load_audio(io.BytesIO(data), RATE, offset=0.5, duration=0.5)
        np.testing.assert_allclose(middle[200:-200], wave[8200:15800], atol=2e-3)


@pytest.mark.parametrize("rate", [900, 800000])
def test_a_rate_no_recorder_has(rate, monkeypatch):
    written = counted(monkeypatch)
    assert f"damaged: its header says {rate} Hz" in fault(made("mov", "pcm_s16le", [beep(rate=rate)], rate))
    assert not written, "its own rate is looked at, not that of what would be written"


class Gone(Exception):
    """Nobody wants the recording any more."""


class Leaving(io.FileIO):
    """An upload whose client leaves after having been asked a few times: what that does is another's to say."""

    def __init__(self, path: Path, patience: int, leave: Callable[["Leaving"], None]) -> None:
        super().__init__(str(path), "rb")
        self.patience, self.leave = patience, leave

    def read(self, size: int = -1) -> bytes:
        self.patience -= 1
        if self.patience < 0:
            self.leave(self)
        return super().read(size)


def leave(file: Leaving) -> None:
    raise Gone


@pytest.mark.parametrize("patience", [0, 1, 2, 5, 20])
@pytest.mark.parametrize(("container", "codec", "rate"), [("matroska", "flac", 16000), ("adts", "aac", 44100)])
def test_whoever_opened_a_recording_can_stop_its_decoding(container, codec, rate, patience, tmp_path, monkeypatch, capfd):
    path = tmp_path / "upload"
    path.write_bytes(made(container, codec, [np.zeros(rate * 60, np.float32)], rate))
    descriptors = set(os.listdir("/proc/self/fd"))
    for how, error in ((leave, Gone), (io.FileIO.close, ValueError)):
        with monkeypatch.context() as patch:
            written = counted(patch)
            with Leaving(path, patience, how) as file, pytest.raises(error) as caught:
                next(audio_blocks(file, RATE))
            assert sum(written) < 4 * rate * 10, "of a minute"
        if error is ValueError:
            assert str(caught.value).startswith(f"{path}: ") and "closed file" in str(caught.value)
        del caught
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert capfd.readouterr() == ("", "")
    with open(path, "rb", buffering=0) as file:
        assert audio_duration(file) == pytest.approx(60, abs=0.1), "nothing of it stays in PyAV for the next"


@pytest.mark.parametrize(("container", "codec", "rate"), FORMATS)
def test_a_fault_of_the_disk_comes_out_of_ffmpeg(container, codec, rate, capfd):
    """Which takes it for the end of the file, or asks again."""

    class Broken(io.BytesIO):
        left = 0

        def read(self, size: int | None = -1) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, "broken", str(self.left))
            return super().read(size)

    data = made(container, codec, [beep(4.0, rate)], rate)
    for reads in (0, 1, 2, 3, 5):
        file = Broken(data)
        file.left = reads
        with foreign.TemporaryFile() as samples:
            try:
                foreign.decode(file, samples, ValueError("reason"), io.BytesIO())
            except OSError as error:
                assert error.filename == "-1", "the first of them"
            else:
                assert file.left >= 0, "a fault was lost"
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_told_by_its_folder(tmp_path):
    """And leaves nothing there, nor open."""
    path, folder = tmp_path / "long.mkv", tmp_path / "temporary"
    path.write_bytes(made("matroska", "flac", [np.zeros(RATE * 30, np.float32)]))
    folder.mkdir()
    code = (
        "import os, resource, av\n"
        "from data.audio import load_audio\n"
        "before = os.listdir('/proc/self/fd')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        f"try: load_audio({str(path)!r}, 16000)\n"
        "except OSError as error: print(error.filename)\n"
        "print(os.listdir('/proc/self/fd') == before, os.listdir(os.environ['TMPDIR']))\n"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{folder}\nTrue []\n", "")


def test_nothing_else_is_opened(tmp_path):
    """Playlists name other files and addresses, which a server must not fetch for whoever sends it one."""
    other = tmp_path / "other.ts"
    other.write_bytes(made("mpegts", "aac", [beep(rate=48000)], 48000))
    with serving({"/other.ts": other.read_bytes()}) as site:
        for place in (
            f"{site.url}/other.ts",
            str(other),
            f"file:{other}",
            "other.ts",
            f"concat:{other}",
            f"subfile,,start,0,end,0,,:{other}",
        ):
            playlists = {
                "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\n{place}\n#EXT-X-ENDLIST\n",
                "a.ffconcat": f"ffconcat version 1.0\nfile '{place}'\n",
                "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
                "a.mpd": (
                    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
                    'mediaPresentationDuration="PT2S">'
                    '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">'
                    f"<BaseURL>{place}</BaseURL></Representation></AdaptationSet></Period></MPD>"
                ),
            }
            for name, text in playlists.items():
                path = tmp_path / name
                path.write_text(text)
                with pytest.raises(ValueError, match=rf"{name}: not audio that can be read"):
                    load_audio(path, RATE)
        assert site.asked == []


def test_the_name_says_nothing_about_the_format(tmp_path):
    for name in ("a.ul", "a.raw", "a%d.png", "a.g722", "a.sln"):
        path = tmp_path / name
        path.write_bytes(np.random.default_rng(1).integers(1, 100, 4000, np.uint8).tobytes())
        with pytest.raises(ValueError, match="not audio that can be read"):
            load_audio(path, RATE)
        path.write_bytes(made("mp4", "aac", [beep()]))
        assert audio_duration(path) == pytest.approx(2.0, abs=0.1)


def test_pyav_is_imported_only_for_what_needs_it(tmp_path):
    code = (
        "import sys\n"
        "from data.audio import load_audio\n"
        "from data.wave_file import write_wave\n"
        "import numpy as np\n"
        f"write_wave({str(tmp_path / 'a.wav')!r}, np.zeros(1600), 16000, '')\n"
        f"load_audio({str(tmp_path / 'a.wav')!r}, 16000)\n"
        "assert 'av' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@needs_shared
def test_without_pyav_the_message_says_how_to_get_it():
    code = (
        "import csv, json, sys\n"
        "sys.modules['av'] = None  # so that importing it fails as if it were not there\n"
        "from data.audio import load_audio\n"
        "told = {}\n"
        "for row in csv.DictReader(open('zoo.csv', encoding='utf-8')):\n"
        "    try: told[row['file']] = len(load_audio(row['file'], 16000))\n"
        "    except ValueError as error: told[row['file']] = str(error)\n"
        "print(json.dumps(told))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=ZOO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert len(told) == 74 and done.stderr == ""
    advised = set()
    for name, result in told.items():
        try:
            assert result == len(load_audio(ZOO / name, RATE)) or result.endswith(ADVICE)
            advised |= {name} if isinstance(result, str) else set()
        except ValueError as error:
            assert result.removesuffix(ADVICE) == str(error).removeprefix(f"{ZOO}/")
    assert len(advised) == 8
    assert told["derived/aac.m4a"].startswith("derived/aac.m4a: m4a/mp4, which cannot be read; expected wav, flac, ")


ADVICE = "; or have more formats read: pip install -r requirements-media.txt"


def test_headers_of_writers_that_cannot_seek_back():
    """As browsers record: how long the file is was not known when its beginning was written."""
    webm = bytearray(made("webm", "libopus", [beep(rate=48000)], 48000))
    segment = webm.index(b"\x18\x53\x80\x67") + 4
    webm[segment : segment + 8] = b"\x01" + b"\xff" * 7
    assert audio_duration(io.BytesIO(webm)) == pytest.approx(2.0, abs=0.05)
    mp4 = bytearray(made("mp4", "aac", [beep()]))
    samples, index = mp4.index(b"mdat") - 4, mp4.index(b"moov") - 4
    assert samples < index
    assert "truncated: its index" in fault(bytes(mp4[:index]))
    mp4 += b"\x00\x00\x00\x00free"  # a box up to the end of the file
    assert audio_duration(io.BytesIO(mp4)) == pytest.approx(2.0, abs=0.1)
    assert "a box of 3 bytes" in fault(bytes(mp4[:-8]) + b"\x00\x00\x00\x03free")


@needs_shared
def test_what_a_header_promises_is_told_with_or_without_pyav():
    for name in ("aac.m4a", "speech.mp4", "opus.webm", "wma.wma", "g722_16k.wav"):
        data = (ZOO / "derived" / name).read_bytes()
        assert "truncated: " in fault(data[: len(data) * 9 // 10]), name
