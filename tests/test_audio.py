"""Every recording either becomes a wave of the right length and scale, or one line that says what is wrong with it."""

import csv
import io
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shared_data import ZOO, needs_shared

from data.audio import audio_duration, load_audio, rate_and_channels

RATE = 16000


def speechlike(samples: int = 24000, channels: int = 1) -> np.ndarray:
    """(S,) or (S, C) float64: a gliding tone under a slow envelope, and some noise, on the grid of 8-bit samples."""
    time = np.arange(samples) / RATE
    tone = 0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))
    wave = np.round((tone + 0.02 * np.random.default_rng(0).standard_normal(samples)) * 128) / 128
    return wave if channels == 1 else np.stack([wave / 2**channel for channel in range(channels)], axis=1)


def encoded(container: str, subtype: str | None = None, samples: int = 24000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speechlike(samples, channels), RATE, format=container, subtype=subtype)
    return file.getvalue()


def wav(samples: bytes, declared: int | None = None, tag: int = 1, channels: int = 1, rate: int = RATE) -> bytes:
    """A wav file written by hand: 16-bit PCM unless the format tag says otherwise."""
    declared = len(samples) if declared is None else declared
    form = struct.pack("<HHIIHH", tag, channels, rate, 2 * rate * channels, 2 * channels, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", declared) + samples
    return b"RIFF" + struct.pack("<I", min(len(body), 0xFFFFFFFF)) + body


def fault(data: bytes, **segment: float) -> str:
    with pytest.raises(ValueError) as caught:
        load_audio(io.BytesIO(data), RATE, **segment)
    message = str(caught.value)
    assert message.startswith("audio: ") and "\n" not in message
    return message


# The zoo: recordings in every state found in the wild. What is not named here loads, as long as zoo.csv says.
REFUSED = {
    "broken/empty.wav": "empty, 0 bytes",
    "broken/flac_corrupt_middle.flac": "damaged.*flac decoder lost sync",
    "broken/flac_header_only.flac": "truncated",
    "broken/flac_truncated.flac": "truncated",
    "broken/mp3_truncated.mp3": "truncated or damaged: 69 of the 139 frames",
    "broken/pocketsphinx_null.wav": "no samples",
    "broken/wav_header_cut.wav": "damaged.*No 'data' chunk",
    "broken/wav_nan_inf.wav": "not finite",
    "broken/wav_no_data_chunk.wav": "damaged.*No 'data' chunk",
    "broken/wav_odd_last_byte.wav": "truncated: 16001 of the 156960 bytes",
    "broken/wav_unknown_codec.wav": "unknown codec.*convert",
    "broken/wav_zero_channels.wav": "0 channels at 16000 Hz",
    "broken/wav_zero_rate.wav": "1 channels at 0 Hz",
    "derived/raw_s16be_16k.raw": "not audio that can be read.*expected wav, flac.*convert",
    "derived/raw_ulaw_8k.ul": "not audio that can be read.*expected wav, flac.*convert",
}
FOREIGN = {  # what PyAV reads: rate in Hz
    "derived/aac.m4a": 16000,
    "derived/aac_adts.aac": 16000,
    "derived/g722_16k.wav": 16000,
    "derived/opus.webm": 48000,
    "derived/speech.mp4": 16000,
    "derived/wavpack.wv": 16000,
    "derived/wma.wma": 16000,
    "native/audiomentations.m4a": 44100,
}
SEEN_WHEN_READ = {"broken/flac_corrupt_middle.flac", "broken/wav_nan_inf.wav"}  # headers cannot tell
STREAMED = {  # their headers do not say where they end, so a cut cannot be seen
    "broken/wav_data_size_zero_but_samples_follow.wav",
    "derived/wav_streamed_size_ffffffff.wav",
}
FRAMES = {"broken/wav_data_size_zero_but_samples_follow.wav": (16000, RATE)}  # where libsndfile, hence zoo.csv, is wrong


def zoo_rows() -> list[dict[str, str]]:
    if not ZOO.is_dir():
        return []
    with open(ZOO / "zoo.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_shared
def test_the_zoo_is_complete():
    names = {row["file"] for row in zoo_rows()}
    assert len(names) == 74
    assert names >= REFUSED.keys() | FOREIGN.keys() | STREAMED


@needs_shared
@pytest.mark.parametrize("row", zoo_rows(), ids=lambda row: row["file"])
def test_zoo(row, capfd):
    path = ZOO / row["file"]
    if row["file"] in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[row["file"]]) as caught:
            load_audio(path, RATE)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        if row["file"] not in SEEN_WHEN_READ:
            with pytest.raises(ValueError, match=REFUSED[row["file"]]):
                audio_duration(path)
    elif row["file"] in FOREIGN:
        pytest.importorskip("av", reason="PyAV is absent: requirements-media.txt")
        assert rate_and_channels(path) == (FOREIGN[row["file"]], 1)
        assert audio_duration(path) == pytest.approx(float(row["ffmpeg_seconds"]), abs=0.005)
        wave = load_audio(path, RATE)
        assert wave.dtype == np.float32
        assert abs(len(wave) - audio_duration(path) * RATE) <= 1
        assert np.array_equal(load_audio(io.BytesIO(path.read_bytes()), RATE), wave)
    else:
        frames, rate = FRAMES.get(row["file"]) or (int(row["frames"]), int(row["rate"]))
        wave = load_audio(path, RATE)
        assert wave.dtype == np.float32
        assert abs(len(wave) - frames * RATE / rate) <= 1
        assert np.isfinite(wave).all()
        assert audio_duration(path) == pytest.approx(frames / rate, abs=1e-9)
        if row["ffmpeg_seconds"] != "error":  # ffmpeg trusts the header of a GSM file, whose last block is partly empty
            assert audio_duration(path) == pytest.approx(float(row["ffmpeg_seconds"]), abs=0.041)
        assert np.array_equal(load_audio(io.BytesIO(path.read_bytes()), RATE), wave)
    assert capfd.readouterr() == ("", "")


@needs_shared
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("row", zoo_rows(), ids=lambda row: row["file"])
def test_zoo_cut_short(row, share, capfd):
    data = (ZOO / row["file"]).read_bytes()
    cut = data[: int(len(data) * share)]
    if row["file"] in STREAMED:
        assert len(load_audio(io.BytesIO(cut), RATE)) == (len(cut) - 44) // 2
    else:
        fault(cut)
        if row["file"] not in SEEN_WHEN_READ:
            with pytest.raises(ValueError, match=r"^audio: "):
                audio_duration(io.BytesIO(cut))
    assert capfd.readouterr() == ("", "")


@needs_shared
def test_odd_but_sound_recordings():
    assert not load_audio(ZOO / "derived/wav_digital_silence.wav", RATE).any()
    assert not load_audio(ZOO / "derived/wav_stereo_antiphase.wav", RATE).any()
    assert np.abs(load_audio(ZOO / "derived/wav_f32_over_full_scale.wav", RATE)).max() == pytest.approx(4.7437, abs=1e-4)


@needs_shared
@pytest.mark.parametrize("row", [row for row in zoo_rows() if row["text"].startswith("HE BEGAN")], ids=lambda row: row["file"])
def test_every_codec_says_the_same_as_the_source(row):
    """Scale, rate and timing are those of the source, up to the delay of codecs whose files do not tell it."""
    name = row["file"]
    if name in REFUSED:  # raw samples, which no header explains
        return
    if name in FOREIGN:
        pytest.importorskip("av", reason="PyAV is absent: requirements-media.txt")
    source = load_audio(ZOO / "derived/source_61-70968-0000.flac", RATE)
    wave = load_audio(ZOO / name, RATE)
    early, late = max(0, -DELAYS.get(name, 0)), max(0, DELAYS.get(name, 0))
    source, wave = source[early:], wave[late:]
    length = min(len(source), len(wave))
    assert length > 1.9 * RATE
    source, wave = source[:length], wave[:length]
    gain = float(wave @ source / (source @ source))
    made_at = 0.5**0.5 if "stereo" in name else 1  # ffmpeg made two channels of one at equal power
    assert gain == pytest.approx(made_at, abs=0.12)


DELAYS = {  # samples by which a codec's own delay is in the wave, or too much was taken away for it
    "derived/aac_adts.aac": 1024,
    "derived/g722_16k.wav": 22,
    "derived/opus.webm": 69,
    "derived/wma.wma": -512,
}


CONTAINERS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("WAV", "GSM610"), ("WAV", "IMA_ADPCM")]


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_scale_does_not_depend_on_the_sample_format(container, subtype):
    wave = load_audio(io.BytesIO(encoded(container, subtype)), RATE)
    np.testing.assert_allclose(wave, speechlike(), atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("container", "subtype"), CONTAINERS + LOSSY)
def test_a_file_cut_short_is_refused(container, subtype, share):
    data = encoded(container, subtype)
    assert len(load_audio(io.BytesIO(data), RATE)) >= 24000
    fault(data[: int(len(data) * share)])


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS + LOSSY)
def test_any_cut_within_the_headers_is_one_clear_error(container, subtype, capfd):
    data = encoded(container, subtype, samples=3200)
    for size in [*range(120), *range(120, 400, 7)]:
        fault(data[:size])
    assert capfd.readouterr() == ("", "")


def test_channels_are_averaged():
    stereo = load_audio(io.BytesIO(encoded("WAV", "PCM_16", channels=2)), RATE)
    np.testing.assert_allclose(stereo, speechlike() * 0.75, atol=2e-5)
    sides = np.stack([speechlike(), -speechlike()], axis=1)
    file = io.BytesIO()
    soundfile.write(file, sides, RATE, format="FLAC")
    file.seek(0)
    assert not load_audio(file, RATE).any()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates_are_resampled(rate):
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate), rate, format="WAV")
    file.seek(0)
    wave = load_audio(file, RATE)
    assert len(wave) == 2 * RATE
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    np.testing.assert_allclose(wave[400:-400], expected[400:-400], atol=1e-3)


def test_paths_and_files_agree(tmp_path):
    path = tmp_path / "eine Aufnahme ä, 1.wav"
    path.write_bytes(encoded("WAV"))
    expected = load_audio(path, RATE)
    assert np.array_equal(load_audio(str(path), RATE), expected)
    assert audio_duration(path) == 1.5
    with open(path, "rb") as file:
        assert np.array_equal(load_audio(file, RATE), expected)
    with open(path, "rb") as file:
        assert audio_duration(file) == 1.5


def test_the_name_says_nothing_about_the_format(tmp_path):
    for name in ("speech.raw", "speech.mp3", "speech"):
        path = tmp_path / name
        path.write_bytes(encoded("WAV"))
        assert len(load_audio(path, RATE)) == 24000
    for name in ("noise.raw", "noise.wav", "noise.au", "noise.vox", "noise.gsm", "noise.mp3"):
        path = tmp_path / name
        path.write_bytes(np.random.default_rng(1).integers(1, 100, 4000, np.uint8).tobytes())
        with pytest.raises(ValueError, match=f"{name}: not audio that can be read"):
            load_audio(path, RATE)


def test_a_file_object_names_itself_where_it_can(tmp_path):
    path = tmp_path / "upload.wav"
    path.write_bytes(b"hello")
    with open(path, "rb") as file, pytest.raises(ValueError, match=r"upload\.wav: not audio"):
        load_audio(file, RATE)
    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match=r"^audio: empty"):  # its name is a number
        load_audio(file, RATE)


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.wav"):
        load_audio(tmp_path / "absent.wav", RATE)
    with pytest.raises(ValueError, match="^" + str(tmp_path) + ": a directory"):
        load_audio(tmp_path, RATE)
    with pytest.raises(ValueError, match="^" + os.devnull + ": not a file"):
        audio_duration(os.devnull)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_no_permission(tmp_path):
    path = tmp_path / "secret.wav"
    path.write_bytes(encoded("WAV"))
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"secret\.wav"):
        load_audio(path, RATE)


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"audio,text\na.wav,HELLO\n",
        "a file from another world".encode("utf-16"),
        bytes(5000),
        b"\xff" * 5000,
        b"\xff\xfd\x44\x04" + bytes(2000),  # MPEG layer II
        b"ID3\x03\x00\x00\x00\x00\x7f\x14",  # a tag longer than its file
        b"ID3\x04\x00\x00\x00\x00\x00\x00" * 3000,
    ],
    ids=lambda data: repr(data[:8]),
)
def test_foreign_data_is_refused_silently(data, capfd):
    fault(data)
    assert capfd.readouterr() == ("", "")


def test_samples_that_cannot_be():
    def floats(samples: np.ndarray) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples.astype(np.float32), RATE, format="WAV", subtype="FLOAT")
        return file.getvalue()

    assert "no samples" in fault(floats(np.zeros(0)))
    with pytest.raises(ValueError, match="no samples"):
        audio_duration(io.BytesIO(floats(np.zeros(0))))
    for value in (np.nan, np.inf, -np.inf):
        assert "not finite" in fault(floats(np.array([0.0, value, 0.5])))
        assert "not finite" in fault(floats(np.array([[0.0, 0.1], [value, -value], [0.5, 0.5]])))
    assert "integers stored as floats" in fault(floats(speechlike() * 32768))
    loud = load_audio(io.BytesIO(floats(speechlike() * 4)), RATE)
    np.testing.assert_allclose(loud, speechlike() * 4, atol=1e-6)


def test_a_wav_whose_writer_could_not_go_back():
    samples = encoded("WAV", "PCM_16")[44:]
    expected = load_audio(io.BytesIO(wav(samples)), RATE)
    for declared in (0, 0x7F000000, 0x7FFFF000, 0x80000000, 0xFFFFFFFF):
        streamed = wav(samples, declared)
        assert np.array_equal(load_audio(io.BytesIO(streamed), RATE), expected), hex(declared)
        assert audio_duration(io.BytesIO(streamed)) == 1.5
    listed = wav(b"") + b"LIST" + struct.pack("<I", 4) + b"INFO"  # truly empty: what follows is another chunk
    assert "no samples" in fault(listed)
    assert "truncated: 48000 of the 48002 bytes" in fault(wav(samples, 48002))


def test_a_rate_no_recorder_has():
    for rate in (1, 999, 10**6):  # resampling a second of samples from 1 Hz would fill the memory
        assert f"{rate} Hz" in fault(wav(bytes(32000), rate=rate))


def test_segments():
    for container, subtype in [("WAV", "PCM_16"), ("WAV", "GSM610"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", None)]:
        data = encoded(container, subtype)
        whole = load_audio(io.BytesIO(data), RATE)
        middle = load_audio(io.BytesIO(data), RATE, offset=0.5, duration=0.25)
        np.testing.assert_allclose(middle, whole[8000:12000], atol=1e-3, err_msg=container)
        np.testing.assert_allclose(load_audio(io.BytesIO(data), RATE, offset=1.0), whole[16000:], atol=1e-3)


def test_a_segment_of_a_resampled_file():
    file = io.BytesIO()
    soundfile.write(file, speechlike(44100), 44100, format="WAV")
    whole = load_audio(io.BytesIO(file.getvalue()), RATE)
    middle = load_audio(io.BytesIO(file.getvalue()), RATE, offset=0.4, duration=0.2)
    assert len(middle) == 3200
    np.testing.assert_allclose(middle[200:-200], whole[6600:9400], atol=1e-3)


def test_segments_outside_the_file():
    data = encoded("WAV")
    for segment in [{"offset": 1.5}, {"offset": 2.0, "duration": 0.1}, {"offset": 1.0, "duration": 0.6}]:
        assert "outside the file, which is 1.500 s long" in fault(data, **segment)
    for segment in [{"offset": -0.1}, {"duration": 0.0}, {"duration": -1.0}, {"offset": float("nan")}]:
        assert "expected an offset >= 0 and a duration > 0" in fault(data, **segment)
    # a manifest's milliseconds may round to a little behind the end
    assert len(load_audio(io.BytesIO(data[:44] + data[44:]), RATE, offset=1.0, duration=0.5009)) == 8000


@needs_shared
def test_an_mp3_without_a_length_header_is_read_to_its_end(capfd):
    data = (ZOO / "derived/mp3_44k_stereo_vbr_id3.mp3").read_bytes()
    bare = data[data.index(b"\xff\xfb\x50") + 208 :]  # without the first frame, of 64 kbit/s: the length header
    assert audio_duration(io.BytesIO(bare)) == pytest.approx(189 * 1152 / 44100, abs=0.013)  # libsndfile: 1.7 s
    whole, wave = load_audio(io.BytesIO(data), RATE), load_audio(io.BytesIO(bare), RATE)
    peak = np.correlate(wave, whole[20000:40000], mode="valid").argmax()
    np.testing.assert_allclose(wave[peak : peak + 20000], whole[20000:40000], atol=0.05)
    assert capfd.readouterr() == ("", "")


@needs_shared
def test_mp3s_with_things_around_their_frames(capfd):
    data = (ZOO / "derived/mp3_16k_cbr.mp3").read_bytes()
    expected = load_audio(io.BytesIO(data), RATE)
    comment = b"ID3\x03\x00\x00\x00\x00\x00\x14COMM\x00\x00\x00\x0a\x00\x00\x00eng" + b"\xff" * 6  # mpg123 complains
    for odd in (comment + data, data + b"TAG" + bytes(125), data + bytes(5000), data + b"junk"):
        assert np.array_equal(load_audio(io.BytesIO(odd), RATE), expected)
    size = data.index(b"Info") + 12  # the header's own count of bytes, which mpg123 compares
    assert np.array_equal(load_audio(io.BytesIO(data[:size] + bytes(4) + data[size + 4 :]), RATE), expected)
    assert "truncated" in fault(data[:-1])
    assert "damaged" in fault(data + data)
    hole = bytearray(data)
    hole[8000:9000] = b"\x55" * 1000
    assert "damaged" in fault(bytes(hole))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_damage_inside_ogg_does_not_shorten_it_silently(subtype):
    data = encoded("OGG", subtype, samples=160000)
    middle = len(data) // 2
    flipped = bytearray(data)
    flipped[middle] ^= 0xFF
    assert "damaged" in fault(bytes(flipped))
    pages = [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]
    assert len(pages) >= 5
    assert "damaged: Ogg page 3 is missing" in fault(data[: pages[3]] + data[pages[4] :])
    assert "not marked as the end" in fault(data[: pages[-1]])


def test_a_flac_that_promises_what_it_does_not_hold():
    data = bytearray(encoded("FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4  # 2**36 - 1 samples: 256 GiB
    assert "truncated" in fault(bytes(data))
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # unknown
    assert "streamed" in fault(bytes(data))


def test_sound_files_are_not_changed(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("WAV"))
    before = path.read_bytes()
    load_audio(Path(path), RATE)
    assert path.read_bytes() == before


def test_an_open_file_is_read_without_a_copy(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 16000), 16000)
    monkeypatch.setattr("data.audio.spooled", None)
    with open(tmp_path / "a.wav", "rb", buffering=0) as file:
        np.testing.assert_array_equal(load_audio(file, 16000), load_audio(tmp_path / "a.wav", 16000))
        assert not file.closed
        file.seek(0)
        assert audio_duration(file) == 1.0
