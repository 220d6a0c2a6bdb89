"""Connections of those who do not play by the rules: each ends, none costs memory or another's place."""

import base64
import io
import json
import os
import socket
import struct
import time

import httpx
import pytest
import soundfile
from beep_network import RATE, save_beep_network, sound
from served import Served, in_thread, received, recognizer, until

import serving.connections
import serving.gate

KEY = base64.b64encode(bytes(16)).decode()
HANDSHAKE = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}"]
PING, CLOSE, TEXT, BINARY = 0x9, 0x8, 0x1, 0x2


@pytest.fixture(scope="module")
def ear(tmp_path_factory):
    return recognizer(save_beep_network(tmp_path_factory.mktemp("ear") / "beeps.pth"))


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "live.pth"
    return recognizer(save_beep_network(path, bidirectional=False, streaming_norm=True))


@pytest.fixture
def impatient(monkeypatch):
    """Half a second is a long time."""
    monkeypatch.setattr(serving.connections, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(serving.connections, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(serving.connections, "LAST_SECONDS", 0.5)
    monkeypatch.setattr(serving.connections, "HEADER_SECONDS", 0.5)


def deaf(server: Served) -> socket.socket:
    """A connection that has next to no room for what is sent to it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.settimeout(30)
    connection.connect(server.address)
    return connection


def upgrade(*more: str, method: str = "GET", path: str = "/stream", left_out: str = "-") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *(line for line in HANDSHAKE if not line.startswith(left_out)), *more]
    return "\r\n".join([*lines, "\r\n"]).encode()


def frame(kind: int, content: bytes) -> bytes:
    """As clients send them: masked, here by zeros."""
    size = len(content)
    length = struct.pack("!BB", 0x80 | kind, 0x80 | min(size, 126)) + (struct.pack("!H", size) if size > 125 else b"")
    return length + bytes(4) + content


def begin(connection: socket.socket) -> None:
    """Do a WebSocket's handshake, to its end."""
    connection.sendall(upgrade())
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(1)
    assert found.startswith(b"HTTP/1.1 101 ")


def cut_off(connection: socket.socket, block: bytes) -> None:
    """Go on sending without reading, until it cannot be done any more."""
    end = time.monotonic() + 30
    with pytest.raises((ConnectionError, BrokenPipeError)):
        while time.monotonic() < end:
            try:
                connection.settimeout(1)
                connection.sendall(block)
            except TimeoutError:  # it is read no further; whether it is open can be seen by its state
                if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\x01":
                    raise ConnectionError from None


def open_connections(server: Served) -> int:
    return len(server.server.server_state.connections)


def test_who_does_not_read_answers_is_cut_off(ear, impatient):
    with in_thread(ear) as server, deaf(server) as connection:
        connection.sendall(b"GET /page/page.js HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        until(lambda: open_connections(server) == 1)
        until(lambda: open_connections(server) == 0)
        assert httpx.get(f"{server.url}/health/live").status_code == 200


def test_who_reads_slowly_is_not(ear, impatient):
    with in_thread(ear) as server, deaf(server) as connection:
        script = httpx.get(f"{server.url}/page/page.js").content
        connection.sendall(b"GET /page/page.js HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        time.sleep(0.3)
        assert received(connection).partition(b"\r\n\r\n")[2] == script


def test_who_does_not_read_cannot_keep_a_server_from_its_end(ear, streaming, impatient):
    with in_thread(streaming) as server, deaf(server) as page, deaf(server) as live:
        page.sendall(b"GET /page/page.js HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        begin(live)
        until(lambda: open_connections(server) == 2)
        wave = (sound("AB CA")[0] * 32767).astype("<i2").tobytes()
        live.sendall(b"".join(frame(BINARY, wave[i : i + 3200]) for i in range(0, len(wave), 3200)))
    # in_thread's end waits for the server's


def test_who_has_ended_or_not_begun_keeps_nobody_from_being_answered(streaming, monkeypatch):
    """What a server does to such connections when it stops may not end its stopping."""
    monkeypatch.setattr(serving.connections, "LAST_SECONDS", 0.5)
    recording = io.BytesIO()
    soundfile.write(recording, sound("AB")[0], RATE, format="wav")
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + recording.getvalue() + b"\r\n--x--\r\n"
    lines = "POST /transcribe HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    lines += f"Content-Length: {len(part)}\r\n\r\n"
    with in_thread(streaming) as server, server.connected() as slow, deaf(server) as ended, server.connected() as silent:
        slow.sendall(lines.encode() + part[:1000])
        begin(ended)
        (there,) = (c for c in server.server.server_state.connections if isinstance(c, serving.connections.SocketConnection))

        def end_unread() -> None:
            there.transport.write(bytes(2**24))
            there.data_received(frame(CLOSE, struct.pack("!H", 1000)))

        there.loop.call_soon_threadsafe(end_unread)
        until(there.transport.is_closing)
        begin(silent)
        server.server.should_exit = True
        assert received(silent) == b"\x88\x02" + struct.pack("!H", 1012), "told that the server goes, not that it erred"
        slow.sendall(part[1000:])
        assert b'"AB"' in received(slow)


def test_who_only_pings_is_cut_off(streaming, impatient, monkeypatch):
    monkeypatch.setattr(serving.connections, "HEADER_SECONDS", 60)
    with in_thread(streaming) as server, deaf(server) as connection:
        begin(connection)
        cut_off(connection, frame(PING, bytes(125)) * 500)
        until(lambda: open_connections(server) == 0)


def test_pings_are_answered(streaming):
    with in_thread(streaming) as server, server.connected() as connection:
        begin(connection)
        connection.sendall(frame(PING, b"here") * 3 + frame(TEXT, json.dumps({"eof": 1}).encode()))
        answer = b""
        while b"no samples" not in answer:
            answer += connection.recv(4096)
        assert answer.count(b"\x8a\x04here") == 3


def test_nothing_is_compressed(streaming):
    """What is small when it comes and large in memory could not be bounded."""
    with in_thread(streaming) as server, server.connected() as connection:
        connection.sendall(upgrade("Sec-WebSocket-Extensions: permessage-deflate"))
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 101") and b"permessage" not in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (upgrade(f"X: {'y' * 9000}"), b"404"),
        (upgrade(*["X: y"] * 200), b"404"),
        (upgrade("Content-Length: 4", method="POST") + b"body", b"404"),
        (upgrade("Content-Length: 4") + b"body", b"404"),
        (upgrade("X: a\x01b"), b"404"),
        (upgrade(path=f"/stream?{'q' * 9000}"), b"404"),
        (upgrade(path="/transcribe"), b"405"),
        (upgrade(path="/page/page.js"), b"200"),
        (upgrade(path="/health/live"), b"200"),
        (upgrade(left_out="Sec-WebSocket-Key"), b"400"),
        (upgrade(left_out="Sec-WebSocket-Version"), b"400"),
    ],
    ids=["long", "many", "POST", "body", "control", "query", "transcribe", "page", "health", "no key", "no version"],
)
def test_whatever_asks_for_a_websocket_is_answered(ear, impatient, request_, status):
    with in_thread(ear) as server, server.connected() as connection:
        connection.sendall(request_)
        assert received(connection)[9:12] == status


def test_half_a_handshake_is_not_waited_for(ear, impatient):
    with in_thread(ear) as server, server.connected() as connection:
        connection.sendall(upgrade()[:-2])
        assert received(connection) == b""


@pytest.mark.parametrize("more", [b"", frame(TEXT, b"\xff"), frame(CLOSE, struct.pack("!H", 1000))], ids=["", "more", "close"])
def test_invalid_utf8_is_nothing_to_write_down(streaming, capfd, more):
    with in_thread(streaming) as server, server.connected() as connection:
        begin(connection)
        connection.sendall(frame(TEXT, b"\xff\xfe") + more)
        code = 1000 if more.startswith(b"\x88") else 1007
        assert received(connection) == b"\x88\x02" + struct.pack("!H", code)
        until(lambda: open_connections(server) == 0)
    assert capfd.readouterr().err == ""


def test_too_many_connections(ear, streaming, impatient, monkeypatch):
    monkeypatch.setattr(serving.connections, "HEADER_SECONDS", 60)
    monkeypatch.setattr(serving.connections, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(serving.gate, "MOST_CONNECTIONS", 4)
    with in_thread(streaming) as server:
        silent = [server.connected() for _ in range(4)]
        until(lambda: open_connections(server) == 4)
        full = httpx.get(f"{server.url}/info")
        assert (full.status_code, full.headers["Retry-After"], full.json()["status"]) == (503, "1", "error")
        assert full.headers["X-Content-Type-Options"] == "nosniff"
        assert httpx.get(f"{server.url}/health/live").status_code == 200, "a full server is not a dead one"
        with server.connected() as connection:
            connection.sendall(upgrade())
            assert connection.recv(12) == b"HTTP/1.1 503"
        silent += [server.connected() for _ in range(10)]
        until(lambda: open_connections(server) == 8)  # twice as many; the others are not let in
        for connection in silent:
            connection.close()
        until(lambda: open_connections(server) == 0)
        assert httpx.get(f"{server.url}/info").status_code == 200


def test_a_worker_that_was_killed_leaves_nothing_that_cannot_be_read(tmp_path, monkeypatch):
    from serving.running import SHARED_FOLDER, _forget_worker

    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    for name in (f"counter_{os.getpid()}.db", "counter_1.db", "gauge_livesum_2.db"):
        (tmp_path / name).touch()
    _forget_worker(os.getpid())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_1.db", "gauge_livesum_2.db"]


def test_samples_still_come_through(streaming):
    """That a client which pings and speaks, and reads, is heard as any other."""
    with in_thread(streaming) as server, server.connected() as connection:
        wave = (sound("AB")[0] * 32767).astype("<i2").tobytes()
        parts = [frame(BINARY, wave[i : i + 3200]) + frame(PING, b"x") for i in range(0, len(wave), 3200)]
        begin(connection)
        connection.sendall(b"".join(parts) + frame(TEXT, json.dumps({"eof": 1}).encode()))
        answer = b""
        while b'"final":"AB"' not in answer:
            answer += connection.recv(4096)
