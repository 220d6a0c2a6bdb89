"""The server for tests: as a process, as people run it, or as a thread of the test, with limits that no flag sets."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import soundfile
from beep_network import RATE, sound
from beeps import start

from asr.recognizer import Recognizer
from asr.runtime import Runtime
from config import DecoderConfig, ServerConfig
from serving.app import create_app
from serving.requests import ApiKeys
from serving.running import Server


@dataclass
class Served:
    url: str
    process: subprocess.Popen | None = None
    server: Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        found = httpx.URL(self.url)
        return found.host, found.port

    def ask(self, recording: Path | bytes, headers: dict | None = None, **fields: object) -> httpx.Response:
        files = {"file": recording if isinstance(recording, bytes) else recording.read_bytes()}
        return httpx.post(f"{self.url}/transcribe", files=files, data=fields, headers=headers, timeout=60)

    def metric(self, line: str) -> float:
        """The value of a metric, named with its labels."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def connected(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)


@contextmanager
def served(model: Path, *args: object) -> Iterator[Served]:
    """`python server.py` on loopback at a free port, which must stop in order at the end, unless it has ended."""
    command = ["--model-path", model, "--host", "127.0.0.1", "--port", 0, "--threads", 1, *args]
    process = start("server.py", *command, cwd=model.parent)
    try:
        line = process.stdout.readline()
        found = re.search(r"at (http://\S+)/$", line)
        assert found, line + process.stderr.read()
        yield Served(found[1], process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert "Traceback" not in errors, errors
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextmanager
def in_thread(recognizer: Recognizer, keys: ApiKeys | None = None, **config: object) -> Iterator[Served]:
    """The same in a thread."""
    server = Server(create_app(recognizer, ServerConfig(**config), keys))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", server=server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side ends it, which it must."""
    found = b""
    try:
        while block := connection.recv(65536):
            found += block
    except ConnectionResetError:
        pass
    return found


def recognizer(model: Path, **config: object) -> Recognizer:
    return Recognizer(model, DecoderConfig(**config), Runtime.choose(cuda=False))


def write_sound(folder: Path, text: str, seed: int = 0) -> Path:
    """A recording of a text (beep_network.sound)."""
    path = folder / f"{text.replace(' ', '-').replace('.', '~')}-{seed}.wav"
    soundfile.write(path, sound(text, seed)[0], RATE)
    return path


def until(what, seconds: float = 30.0) -> None:
    """Wait for something that another thread or process is about to do."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)
