"""How a server begins and ends, as processes: refusals in one line, SIGTERM under load, workers that are killed."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import httpx
import pytest
from beep_network import save_beep_network, sentence
from beeps import start
from numpy.random import default_rng
from served import Served, served, until, write_sound

from asr.checkpoint import load_checkpoint, save_checkpoint

SAID = [sentence(default_rng(i), 1 + i % 3) for i in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    save_beep_network(folder / "beeps.pth")
    return folder


@pytest.fixture(scope="module")
def recordings(folder) -> dict[str, bytes]:
    return {said: write_sound(folder, said).read_bytes() for said in SAID}


class Clients:
    """Who ask one after another, on connections that they keep, and write down what came of it."""

    def __init__(self, server: Served, recordings: dict[str, bytes], count: int):
        self.answered, self.refused, self.lost, self.wrong = 0, 0, 0, 0
        self.server, self.stop = server, threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=[recordings]) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _ask(self, recordings: dict[str, bytes]) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.stop.is_set():
                for said, content in recordings.items():
                    try:
                        answer = client.post(f"{self.server.url}/transcribe", files={"file": content})
                    except httpx.ConnectError:
                        self.refused += 1
                        return
                    except httpx.TransportError:
                        self.lost += 1
                        return
                    self.answered += 1
                    self.wrong += answer.status_code != 200 or answer.json()["transcription"] != [[said]]

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self.threads)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """Workers: the children that serve, not multiprocessing's helper."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_what_was_asked_is_answered_before_the_end(folder, recordings):
    with served(folder / "beeps.pth") as server, server.connected() as idle, server.connected() as slow:
        idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(1000).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /health/li")
        clients = Clients(server, recordings, 12)
        until(lambda: clients.answered > 30)
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=30)
        clients.join()
        assert server.process.returncode == 0, errors
        assert (clients.lost, clients.wrong, clients.refused) == (0, 0, 12)
        assert errors == ""


def test_ctrl_c_right_after_the_address_is_heard(folder):
    with served(folder / "beeps.pth") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.communicate(timeout=30)[1] == ""
        assert server.process.returncode == 0


def test_what_cannot_begin_is_told_in_one_line(folder):
    (folder / "none.txt").write_text("# no keys\n")
    (folder / "latin.txt").write_bytes("Schl\xfcssel\n".encode("latin-1"))
    (folder / "text.pth").write_text("no model\n")
    checkpoint = load_checkpoint(folder / "beeps.pth")
    checkpoint.weights["head.weight"][0, 0] = float("nan")
    save_checkpoint(checkpoint, folder / "nan.pth")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = {  # what is typed, what is said, and the exit status
            ("--port", port): (f"--host 127.0.0.1 --port {port}: Address already in use", 1),
            ("--model-path", "missing.pth"): ("missing.pth: No such file", 1),
            ("--model-path", "text.pth"): ("text.pth", 1),
            ("--model-path", "text.pth", "--workers", "2"): ("text.pth", 1),
            ("--model-path", "nan.pth"): ("nan.pth: the network failed: the network's output is not a number", 1),
            ("--api-key-file", "none.txt"): ("none.txt: no keys", 1),
            ("--host", "256.0.0.1"): ("--host 256.0.0.1 --port 0", 1),
            ("--port", "70000"): ("--port", 2),
            ("--allow-origin", "*"): ("--allow-origin: *: expected https://NAME", 2),
            ("--allow-origin", "https://a.example/page"): ("expected https://NAME", 2),
            ("--api-key-file", "latin.txt"): ("latin.txt: not text in UTF-8", 1),
            ("--host", "0.0.0.0", "--model-path", "missing.pth"): ("missing.pth", 1),
            ("--host", "0.0.0.0", "--model-path", "missing.pth", "--api-key-file", "beeps.txt"): ("beeps.txt: No such file", 1),
        }
        common = ["--host", "127.0.0.1", "--port", "0", "--model-path", "beeps.pth"]
        running = {typed: start("server.py", *common, *typed, cwd=folder) for typed in cases}
        for typed, process in running.items():
            said, status = cases[typed]
            output, errors = process.communicate(timeout=60)
            assert process.returncode == status, (typed, errors)
            lines = [line for line in errors.splitlines() if not line.startswith("warning: anybody")]
            assert (len(lines) < len(errors.splitlines())) == (len(typed) == 4 and "0.0.0.0" in typed)
            assert all(said in line for line in lines) and output == "", errors
            assert len(lines) == 1 or "--workers" in typed


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers(folder, recordings):
    with served(folder / "beeps.pth", "--workers", 2) as server:
        pid = server.process.pid
        until(lambda: len(children(pid)) == 2)
        server.process.stdout.readline()  # the other's address: both listen
        clients = Clients(server, recordings, 6)
        until(lambda: clients.answered > 20)
        clients.stop.set()
        clients.join()
        assert (clients.lost, clients.wrong) == (0, 0)
        asked, before = 'asr_requests_total{code="200",route="/transcribe"}', clients.answered
        until(lambda: {server.metric(asked) for _ in range(8)} == {before})  # whichever of them tells it
        assert server.metric("asr_requests_under_way") == 0
        first, second = children(pid)
        os.kill(first, signal.SIGKILL)
        until(lambda: server.ask(next(iter(recordings.values()))).status_code == 200)
        until(lambda: len(children(pid)) == 2 and first not in children(pid))
        server.process.stdout.readline()
        third = [child for child in children(pid) if child != second]
        os.kill(second, signal.SIGKILL)  # so that it is the new one that answers
        assert server.ask(recordings[SAID[0]]).json()["transcription"] == [[SAID[0]]]
        until(lambda: len(children(pid)) == 2 and second not in children(pid))
        server.process.stdout.readline()
        clients = Clients(server, recordings, 6)
        until(lambda: clients.answered > 20)
        workers = children(pid)
        assert third[0] in workers
        until(lambda: server.metric(asked) > before + 20)  # what was counted by those who were killed is not forgotten
        os.killpg(pid, signal.SIGINT)  # as a terminal's Ctrl-C, which all of them get
        _, errors = server.process.communicate(timeout=30)
        clients.join()
        assert server.process.returncode == 0
        assert (clients.lost, clients.wrong) == (0, 0)
        assert [line.partition(":")[0] for line in errors.splitlines()] == [
            f"worker {i} ended with status -9" for i in (0, 1)
        ], errors
        assert not any(alive(worker) for worker in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed parent tells nobody")
def test_workers_do_not_outlive_their_parent(folder):
    with served(folder / "beeps.pth", "--workers", 2) as server:
        server.process.stdout.readline()
        workers = children(server.process.pid)
        assert len(workers) == 2
        server.process.kill()
        server.process.communicate(timeout=30)
        until(lambda: not any(alive(worker) for worker in workers))
