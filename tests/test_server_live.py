"""Live speech over real WebSockets: what comes is what transcribe.py writes, and who misbehaves costs nobody else anything."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from beep_network import RATE, save_beep_network, sentence, sound
from beeps import ROOT
from served import Served, in_thread, recognizer, served, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import serving.connections
import serving.requests
from serving.requests import ApiKeys

SAID = "AB CA.BB A C.CAB"
EOF_ = json.dumps({"eof": 1})
KEY = "correct horse"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    save_beep_network(folder / "live.pth", bidirectional=False, streaming_norm=True)
    save_beep_network(folder / "beeps.pth")
    return folder


@pytest.fixture(scope="module")
def streaming(folder):
    return recognizer(folder / "live.pth")


@pytest.fixture(scope="module")
def bidirectional(folder):
    return recognizer(folder / "beeps.pth")


def pcm(text: str, pause: float = 0.0) -> bytes:
    wave = np.concatenate([sound(text)[0], np.random.default_rng(1).normal(0, 0.001, round(pause * RATE))])
    return np.round(wave * 32767).astype("<i2").tobytes()


@contextmanager
def stream(server: Served, **options) -> Iterator[ClientConnection]:
    with connect(server.url.replace("http", "ws") + "/stream", proxy=None, **options) as socket:
        yield socket


def events(socket: ClientConnection) -> list[dict]:
    """All that comes until the connection is closed."""
    found = []
    with suppress(ConnectionClosed):
        while True:
            found.append(json.loads(socket.recv(timeout=60)))
    return found


def talk(server: Served, content: bytes, size: int = 3200, **first) -> list[dict]:
    with stream(server) as socket:
        if first:
            socket.send(json.dumps(first))
        for begin in range(0, len(content), size):
            socket.send(content[begin : begin + size])
        socket.send(EOF_)
        found = events(socket)
        assert socket.close_code == 1000
        return found


def finals(found: list[dict]) -> list[str]:
    return [event["final"] for event in found if "final" in event]


def closed(socket: ClientConnection, code: int) -> str:
    """The error that comes before the connection is closed so."""
    (*_, last) = events(socket)
    assert socket.close_code == code
    assert "Traceback" not in last["error"] and "/" not in last["error"]
    return last["error"]


def test_streamed_text_is_that_of_transcribe(folder):
    (folder / "speech.raw").write_bytes(pcm(SAID))
    command = [sys.executable, str(ROOT / "transcribe.py"), "--model-path", "live.pth", "--stream", "--format", "jsonl"]
    done = subprocess.run([*command, "--audio-path", "speech.raw"], cwd=folder, capture_output=True, text=True, check=True)
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    with served(folder / "live.pth") as server:
        assert httpx.get(f"{server.url}/info").json()["streaming"]
        for size in (1000, 1601, 32000):
            found = talk(server, pcm(SAID), size)
            ends = [event for event in found if "final" in event]
            cues = [event.pop("cues") for event in ends]
            assert ends == [event for event in expected if "final" in event]
            assert [" ".join(line for cue in made for line in cue["lines"]) for made in cues] == [end["final"] for end in ends]
            assert all(made[0]["start"] == end["start"] for made, end in zip(cues, ends, strict=True))
        partials = [event["partial"] for event in found if "partial" in event]
        assert partials
        assert finals(talk(server, pcm(SAID), rate=RATE)) == finals(expected)
        assert server.metric("asr_active_streams") == 0


def test_partial_texts_grow_into_the_final_one(streaming):
    with in_thread(streaming) as server:
        found = talk(server, pcm("AB CA"))
    assert found[0] == {"partial": "A", "start": found[0]["start"]}
    assert [len(event["partial"]) for event in found[:-1]] == sorted(len(event["partial"]) for event in found[:-1])
    assert found[-1]["final"] == "AB CA" and [word["word"] for word in found[-1]["words"]] == ["AB", "CA"]


def test_another_rate_is_resampled(streaming, tmp_path):
    wave = np.repeat(np.frombuffer(pcm("AB CA"), "<i2"), 3)  # 48 kHz, badly
    with in_thread(streaming) as server:
        assert finals(talk(server, wave.tobytes(), rate=48000)) == ["AB CA"]
        soundfile.write(tmp_path / "a.wav", np.frombuffer(pcm("AB CA"), "<i2"), RATE)
        assert finals(talk(server, (tmp_path / "a.wav").read_bytes())) == ["AB CA"]


def test_a_bidirectional_model_hears_utterances(bidirectional):
    with in_thread(bidirectional) as server:
        found = talk(server, pcm("AB CA..BB A..CAB"))
        assert finals(found) == ["AB CA", "BB A", "CAB"] and len(found) == 3
        assert all(event["words"][0]["start"] == event["start"] < event["end"] for event in found)
        assert found[0]["end"] < found[1]["start"] < found[1]["end"] < found[2]["start"]
        # An utterance comes when it is over, not at the end of the stream.
        with stream(server) as socket:
            socket.send(pcm("AB CA", pause=1.0))
            assert json.loads(socket.recv(timeout=30))["final"] == "AB CA"
            socket.send(pcm("CAB"))
            socket.send(EOF_)
            (last,) = events(socket)
            assert last["final"] == "CAB" and last["start"] > 2.8


def test_streams_and_files_share_the_queue(bidirectional, folder):
    path = folder / "file.wav"
    soundfile.write(path, sound("ABC")[0], RATE)
    with in_thread(bidirectional) as server, ThreadPoolExecutor(8) as clients:
        texts = clients.map(lambda letter: finals(talk(server, pcm(letter * 3))), "ABABABAB")
        answers = [server.ask(path).json()["transcription"] for _ in range(8)]
        assert list(texts) == [["AAA"], ["BBB"]] * 4
    assert answers == [[["ABC"]]] * 8


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (["hello"], "expected JSON"),
        (["[1]"], "expected JSON"),
        ([json.dumps({"rate": "fast"})], "rate fast"),
        ([json.dumps({"rate": 3})], "rate 3"),
        ([json.dumps({"rate": True})], "rate True"),
        ([json.dumps({"rate": 10**400})], "rate 1000"),
        ([json.dumps({"rate": RATE}), json.dumps({"rate": RATE})], "samples in binary"),
        ([pcm("A"), "{}"], "samples in binary"),
        ([b"OggS" + bytes(3000)], "Ogg"),
        ([EOF_], "no samples"),
        ([json.dumps({"rate": RATE}), EOF_], "no samples"),
        (["{}", EOF_], "no samples"),
        ([b"", b"", EOF_], "no samples"),
    ],
    ids=range(13),
)
@pytest.mark.parametrize("model", ["streaming", "bidirectional"])
def test_what_makes_no_sense_is_told(running, model, messages, told):
    with stream(running[model]) as socket:
        for message in messages:
            socket.send(message)
        assert told in closed(socket, 1008)


@pytest.fixture(scope="module")
def running(streaming, bidirectional):
    with in_thread(streaming) as one, in_thread(bidirectional) as other:
        yield {"streaming": one, "bidirectional": other}
        for server in (one, other):
            until(lambda server=server: server.metric("asr_active_streams") == 0)


@pytest.mark.parametrize("model", ["streaming", "bidirectional"])
def test_who_goes_away_leaves_nothing(running, model):
    server = running[model]
    for _ in range(3):
        with stream(server) as socket:
            socket.send(pcm(SAID))
            until(lambda: server.metric("asr_active_streams") == 1)
            socket.socket.close()  # without a word
        until(lambda: server.metric("asr_active_streams") == 0)
    with stream(server) as socket:
        socket.send(pcm("A"))
        socket.close()
    until(lambda: server.metric("asr_active_streams") == 0)
    assert finals(talk(server, pcm("AB"))) == ["AB"]


def test_a_message_has_a_largest_size(running):
    with stream(running["streaming"]) as socket:
        with pytest.raises(ConnectionClosed):
            socket.send(bytes(2**20 + 2))
            socket.recv(timeout=30)
        assert socket.close_code == 1009


def test_no_more_streams_than_there_is_room_for(streaming):
    with in_thread(streaming, max_streams=2) as server, stream(server) as one, stream(server) as two:
        for socket in (one, two):
            socket.send(pcm("A")[:3200])
        until(lambda: server.metric("asr_active_streams") == 2)
        with stream(server) as three:
            three.send(pcm("A"))
            assert "full" in closed(three, 1013)
        one.send(EOF_)
        events(one)
        assert finals(talk(server, pcm("AB"))) == ["AB"]


def test_who_is_silent_is_cut_off_and_who_speaks_is_not(streaming, monkeypatch):
    monkeypatch.setattr(serving.requests, "STALLED", 0.5)
    monkeypatch.setattr(serving.connections, "HEADER_SECONDS", 0.5)
    with in_thread(streaming) as server:
        with stream(server) as silent:
            assert "0 bytes came" in closed(silent, 1008)
        with stream(server) as empty:  # messages without samples are nothing
            for _ in range(6):
                with suppress(ConnectionClosed):
                    empty.send(b"")
                time.sleep(0.1)
            assert "0 bytes came" in closed(empty, 1008)
        with stream(server) as slow:
            for i in range(0, 8 * 3200, 3200):
                slow.send(pcm("AB")[i : i + 3200])
                time.sleep(0.2)
            slow.send(pcm("AB")[8 * 3200 :])
            slow.send(EOF_)
            assert finals(events(slow)) == ["AB"]


@pytest.mark.parametrize("model", ["streaming", "bidirectional"])
def test_a_stream_has_a_longest_duration(request, model):
    with in_thread(request.getfixturevalue(model), max_audio_seconds=2.0) as server, stream(server) as socket:
        for _ in range(3):
            socket.send(pcm("AB CA"))
        *finals_, last = events(socket)
        assert "longer than 2 s" in last["error"] and socket.close_code == 1008
        assert "AB CA" in finals(finals_)[0]
        assert server.metric('asr_streams_total{code="1008"}') == 1


def test_utterances_that_come_at_once_are_one_client(bidirectional):
    """Streams have room of their own, and take none of the recordings'."""
    with in_thread(bidirectional, max_queue=1) as server:
        said = [sentence(np.random.default_rng(i), 2) for i in range(6)]
        assert " ".join(finals(talk(server, pcm(" ..".join(said))))) == " ".join(said)


def test_what_is_no_first_message(running):
    for text in ("[" * 4000, "[" * 200_000, "{", '"eof"', "\x00"):
        with stream(running["streaming"]) as socket:
            socket.send(text)
            assert "expected JSON" in closed(socket, 1008)


def test_keys(streaming, tmp_path):
    (tmp_path / "keys").write_text(KEY + "\n")
    keys = ApiKeys(str(tmp_path / "keys"))
    with in_thread(streaming, keys, max_streams=1) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        with stream(server) as one, stream(server) as two:  # who has shown no key takes no room
            one.send(pcm("A"))
            assert "needs a key" in closed(one, 1008)
            two.send(json.dumps({"key": "\ud800"}))
            assert "needs a key" in closed(two, 1008)
        for wrong in ({"key": KEY + "x"}, {"key": [KEY]}, {"rate": RATE}):
            with stream(server) as socket:
                socket.send(json.dumps(wrong))
                assert "needs a key" in closed(socket, 1008)
        assert finals(talk(server, pcm("AB"), key=KEY)) == ["AB"]
        with stream(server, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
            socket.send(pcm("AB"))
            socket.send(EOF_)
            assert finals(events(socket)) == ["AB"]


def test_pages_of_elsewhere_may_not_listen(streaming):
    with in_thread(streaming, allow_origin=("https://app.example",)) as server:
        for origin in ("https://evil.example", "null", server.url + ".evil.example", "http://["):
            with pytest.raises(InvalidStatus) as refused, stream(server, origin=origin):
                pass
            assert refused.value.response.status_code == 403
        for origin in (server.url, "https://app.example"):
            with stream(server, origin=origin) as socket:
                socket.send(pcm("AB"))
                socket.send(EOF_)
                assert finals(events(socket)) == ["AB"]


def test_a_fault_of_ours_is_told_without_detail(bidirectional, monkeypatch, capfd):
    def broken(_pieces):
        raise RuntimeError("secret of the network")

    with in_thread(bidirectional) as server:
        monkeypatch.setattr(bidirectional, "hear", broken)
        with stream(server) as socket:
            socket.send(pcm("AB"))
            socket.send(EOF_)
            assert "an error of the server" in closed(socket, 1011)
        monkeypatch.undo()
        assert finals(talk(server, pcm("AB"))) == ["AB"]
    assert "secret of the network" in capfd.readouterr().err


@pytest.mark.parametrize("model", ["streaming", "bidirectional"])
def test_a_server_that_stops_says_what_it_has_heard(request, model):
    with in_thread(request.getfixturevalue(model)) as server, stream(server) as socket:
        socket.send(pcm("AB CA"))
        until(lambda: server.metric("asr_active_streams") == 1)
        server.server.should_exit = True
        assert finals(events(socket)) == ["AB CA"]
        assert socket.close_code == 1012
