"""Headers made to keep a server busy are refused after a bounded number of steps; recordings never reach those bounds."""

import io
import struct

import numpy as np
import pytest
import soundfile
from shared_data import ZOO, needs_shared

from data import containers, mp3
from data.audio import load_audio
from data.containers import MOST_BOXES, MOST_CHUNKS, checked

RATE = 16000
FORMAT = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
MP3_FRAME = b"\xff\xf3\x14\xc4" + bytes(20)  # 8 kbit/s at 24 kHz: none is smaller


class Counted(io.BytesIO):
    """Counts how often it is read, and how many bytes."""

    reads = got = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.reads, self.got = self.reads + 1, self.got + len(found)
        return found


def ogg_page(number: int, stream: int = 1, body: bytes = b"", flags: int = 0) -> bytes:
    segments = bytes((len(body),)) if body else b""
    return b"OggS\0" + struct.pack("<BQIIIB", flags, 0, stream, number, 0, len(segments)) + segments + body


def wav(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


CHAINS = {  # (what comes first, what is repeated, what there is too much of)
    "wav": (b"RIFF\xff\xff\xff\x7fWAVE" + FORMAT, b"abcd\0\0\0\0", f"{MOST_CHUNKS} chunks"),
    "wav without samples": (b"RIFF\xff\xff\xff\x7fWAVE" + FORMAT + b"data\0\0\0\0", b"abcd\0\0\0\0", f"{MOST_CHUNKS} chunks"),
    "rf64": (b"RF64\xff\xff\xff\xffWAVE", b"ds64\x10\0\0\0" + bytes(16), f"{MOST_CHUNKS} chunks"),
    "aiff": (b"FORM\x7f\0\0\0AIFF", b"abcd\0\0\0\0", f"{MOST_CHUNKS} chunks"),
    "caf": (b"caff\0\1\0\0", b"abcd" + bytes(8), f"{MOST_CHUNKS} chunks"),
    "w64": (b"riff" + bytes(36), bytes(24), f"{MOST_CHUNKS} chunks"),
    "id3": (b"", b"ID3\x04" + bytes(6), f"{MOST_CHUNKS} ID3 tags"),
    "mp4": (b"\0\0\0\x08ftyp", b"\0\0\0\x08free", f"{MOST_BOXES} boxes"),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_chains_of_empty_headers_are_not_followed_to_their_end(kind):
    first, repeated, too_many = CHAINS[kind]
    file = Counted(first + repeated * (3 * MOST_BOXES // 2))
    with pytest.raises(ValueError, match=f"^damaged: more than {too_many}; fetch it again$"):
        checked(file)
    assert file.reads <= 2 * int(too_many.split()[0]) + 2
    file.seek(0)
    with pytest.raises(ValueError, match=f"^audio: damaged: more than {too_many}; fetch it again$"):
        load_audio(file, RATE)


def test_ogg_pages_are_read_ahead_and_bounded(monkeypatch):
    pages = b"".join(ogg_page(number, body=b"x") for number in range(50000))
    file = Counted(pages)
    with pytest.raises(ValueError, match="not marked as the end"):
        checked(file)
    assert file.reads < 50 and file.got < 1.1 * len(pages)
    monkeypatch.setattr(containers, "MOST_PAGES", 40000)
    with pytest.raises(ValueError, match=r"^damaged: more than 40000 Ogg pages; fetch it again$"):
        checked(io.BytesIO(pages))


def test_ogg_streams_are_bounded():
    pages = b"".join(ogg_page(0, stream) for stream in range(MOST_CHUNKS + 1))
    with pytest.raises(ValueError, match=f"^damaged: more than {MOST_CHUNKS} Ogg streams; fetch it again$"):
        checked(io.BytesIO(pages))


def test_mp3_frames_are_read_ahead():
    file = Counted(MP3_FRAME * 200000)
    checked(file)
    assert file.reads < 20 and file.got < 2.5 * len(file.getvalue())  # once to count, once to be kept for the decoder


def test_bounds_are_far_from_what_recordings_have():
    samples = np.linspace(-0.5, 0.5, RATE)
    data = io.BytesIO()
    soundfile.write(data, samples, RATE, format="WAV", subtype="PCM_16")
    chunks = [b"LIST" + struct.pack("<I", 4) + b"INFO"] * 1000
    wave = load_audio(io.BytesIO(wav(FORMAT, *chunks, data.getvalue()[36:], *chunks)), RATE)
    np.testing.assert_allclose(wave, samples, atol=1e-4)
    hours = 12 * 3600
    assert hours / 0.02 < containers.MOST_PAGES, "a page for every packet of Opus"
    assert hours * 5 < MOST_BOXES, "fragments of a second: styp, sidx, prft, moof and mdat"


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_pages_that_lie_across_what_is_read_at_once(codec, monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE), RATE, format="OGG", subtype=codec)
    data = file.getvalue()
    pages = data.count(b"OggS")
    for read_bytes in (282, 283, 1000, 4097, 2**16):
        monkeypatch.setattr(containers, "READ_BYTES", read_bytes)
        assert checked(io.BytesIO(data)) is not None
        assert checked(io.BytesIO(data + b"TAG")) is not None
        for cut in (1, 26, 200):
            with pytest.raises(ValueError, match="truncated: its last Ogg page is cut"):
                checked(io.BytesIO(data[:-cut]))
    file = Counted(data)
    checked(file)
    assert file.reads <= pages + 2


@needs_shared
def test_frames_that_lie_across_what_is_read_at_once(monkeypatch):
    for name in ("mp3_44k_stereo_vbr_id3", "mp3_16k_cbr"):
        data = (ZOO / f"derived/{name}.mp3").read_bytes()
        if data.startswith(b"ID3"):
            data = data[mp3.id3_bytes(data) :]
        file = io.BytesIO(data)
        whole = mp3.complete_mp3(file, len(data))
        for read_bytes in (3000, 3001, 10007):
            with monkeypatch.context() as patch:
                patch.setattr(mp3, "READ_BYTES", read_bytes)
                assert mp3.complete_mp3(file, len(data)) == whole
                with pytest.raises(ValueError, match="truncated"):
                    mp3.complete_mp3(io.BytesIO(data[:-1]), len(data) - 1)


def test_what_libsndfile_never_comes_back_from():
    """Chunks that fill 100 kB: it reads them for ever, in a thread that nothing can stop."""
    for kind, called in ((b"8SVX", "amiga 8svx"), (b"16SV", "amiga 16sv")):
        data = b"FORM\x7f\0\0\0" + kind + b"abcd\0\0\0\xc8" + bytes(200)
        with pytest.raises(ValueError, match=f"^audio: {called}, which cannot be read; expected wav, flac"):
            load_audio(io.BytesIO(data + data[12:] * 3000), RATE)


def test_what_libsndfile_would_write_to_stdout_about(capfd):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(RATE), RATE, format="SDS", subtype="PCM_16")
    data = bytearray(file.getvalue())
    data[200:] = bytes(len(data) - 200)
    with pytest.raises(ValueError, match=r"^audio: midi sample dump, which cannot be read"):
        load_audio(io.BytesIO(data), RATE)
    assert capfd.readouterr() == ("", "")
