"""Curves on a real Visdom server, and trainings that go on when it is not there."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from test_loggers import flags

from asr import visdom_curves
from asr.loggers import Example, RunLog
from data.command_line import UsageError

pytest.importorskip("visdom", reason="visdom is not installed (requirements-visdom.txt): nothing of --visdom is tested")

RUN = "Deepspeech training"
SERVER = """
import sys
from visdom.server import run_server
run_server.download_scripts = lambda: None  # what browsers need from the net
run_server.download_scripts_and_run()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A Visdom server on loopback that forgets everything when it stops."""

    def __init__(self, folder: Path, port: int):
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", SERVER, "-port", port, "-env_path", folder, "-bind_local", "--hostname", "127.0.0.1"]
        with open(folder / "server.log", "w") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=folder)
        while True:
            assert self.process.poll() is None, (folder / "server.log").read_text()
            try:
                self.ask("env_state")
                return
            except OSError:
                time.sleep(0.05)

    def ask(self, what: str, **message: object) -> object:
        request = urllib.request.Request(f"{self.url}/{what}", json.dumps(message).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def windows(self, name: str = RUN) -> dict[str, dict]:
        return self.ask("win_data", eid=name, win=None)

    def curve(self, tag: str, name: str = RUN) -> dict[float, float]:
        (line,) = self.windows(name)[tag]["content"]["data"]
        assert len(set(line["x"])) == len(line["x"]) == len(line["y"]), "a double point"
        return dict(zip(line["x"], line["y"], strict=True))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("visdom"), free_port())
    yield running
    running.stop()


def tell(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.step({"epoch": 1, "step": step, "loss": float("nan") if step == 2 else 1.0 / step, "lr": 3e-4})


def end_epoch(log: RunLog, epoch: int, step: int) -> None:
    shown = Example("A <B>", f"A {epoch}", torch.rand(81, 60), ["_"] * 30)
    log.epoch({"epoch": epoch, "step": step, "loss": 2.0, "wer": 90.0 / epoch, "cer": 40.0}, [shown])


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_server_shows_the_run_while_it_goes(server, tmp_path, capfd):
    log = RunLog.open(flags("--visdom", "--visdom-server", server.url), tmp_path, epoch=0, step=0)
    tell(log, 1, 3)
    wait_for(lambda: RUN in server.ask("env_state") and "step/loss" in server.windows())
    tell(log, 4, 6)
    end_epoch(log, 1, 6)
    wait_for(lambda: "examples/1" in server.windows())
    end_epoch(log, 2, 12)
    log.close()
    assert server.curve("step/loss") == pytest.approx({step: 1 / step for step in (1, 3, 4, 5, 6)})
    assert server.curve("step/lr") == dict.fromkeys(range(1, 7), 3e-4)
    assert server.curve("epoch/wer") == {1: 90.0, 2: 45.0}
    windows = server.windows()
    assert set(windows) == {
        *("step/loss", "step/lr", "epoch/loss", "epoch/wer", "epoch/cer", "examples", "examples/1"),
    }
    assert "A &lt;B&gt;" in windows["examples"]["content"] and "A 2" in windows["examples"]["content"]
    assert windows["examples/1"]["content"]["src"].startswith("data:image/png")
    assert capfd.readouterr() == ("", "")


def test_a_continued_run_restores_its_curves(server, tmp_path):
    args = flags("--visdom", "--visdom-server", server.url, "--id", "continued")
    log = RunLog.open(args, tmp_path, epoch=0, step=0)
    tell(log, 1, 9)
    end_epoch(log, 1, 9)
    log.close()
    assert list(server.curve("step/lr", "continued")) == list(range(1, 10))
    log = RunLog.open(args, tmp_path, epoch=0, step=5)
    tell(log, 6, 7)
    log.close()
    assert list(server.curve("step/lr", "continued")) == list(range(1, 8))
    assert set(server.windows("continued")) == {"step/loss", "step/lr"}, "what was dropped of the run is gone"


def test_a_fresh_run_does_not_show_an_earlier_ones_curves(server, tmp_path):
    args = flags("--visdom", "--visdom-server", server.url.removeprefix("http://"), "--id", "a/b")
    for last in (5, 2):
        log = RunLog.open(args, tmp_path, epoch=0, step=0)
        tell(log, 1, last)
        log.close()
    assert list(server.curve("step/lr", "a_b")) == [1, 2]


def test_a_long_curve_is_thinned(server, tmp_path):
    log = RunLog.open(flags("--visdom", "--visdom-server", server.url, "--id", "long"), tmp_path, epoch=0, step=0)
    tell(log, 1, 2 * visdom_curves.MOST_POINTS + 1)
    log.close()
    steps = list(server.curve("step/lr", "long"))
    assert steps == list(range(1, 2 * visdom_curves.MOST_POINTS + 2, 4))


def test_a_server_that_is_down_costs_one_warning(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(visdom_curves, "RETRY", 0.01)
    log = RunLog.open(flags("--visdom", "--visdom-server", f"localhost:{free_port()}"), tmp_path, epoch=0, step=0)
    tell(log, 1, 3)
    end_epoch(log, 1, 3)
    time.sleep(0.2)  # several attempts
    log.close()
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("warning: no Visdom server answers at localhost:")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_server_that_goes_away_and_comes_back_shows_everything(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(visdom_curves, "RETRY", 0.1)
    port = free_port()
    first = Server(tmp_path, port)
    log = RunLog.open(flags("--visdom", "--visdom-server", first.url), tmp_path, epoch=0, step=0)
    tell(log, 1, 3)
    wait_for(lambda: RUN in first.ask("env_state") and "step/loss" in first.windows())
    first.stop()
    tell(log, 4, 6)
    err = ""
    while "warning" not in err:
        err += capfd.readouterr().err
        time.sleep(0.05)
    second = Server(tmp_path, port)
    try:
        tell(log, 7, 8)
        wait_for(lambda: RUN in second.ask("env_state") and "step/lr" in second.windows())
        log.close()
        assert list(second.curve("step/lr")) == list(range(1, 9))
    finally:
        second.stop()
    assert len((err + capfd.readouterr().err).splitlines()) == 1


def test_a_server_that_never_answers_is_not_waited_for(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(visdom_curves, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        log = RunLog.open(flags("--visdom", "--visdom-server", f"http://127.0.0.1:{port}"), tmp_path, epoch=0, step=0)
        tell(log, 1, 100)
        wait_for(lambda: "no Visdom server answers" in capfd.readouterr().err)
        log.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 100


@pytest.mark.parametrize(
    "server",
    ["", " ", "localhost:x", "localhost:0", "localhost:70000", "http://", "http://:8097", "ftp://localhost", "a b", "[::1"],
)
def test_an_address_that_is_none(tmp_path, server):
    with pytest.raises(UsageError, match=r"--visdom-server '.*': .*; expected an address such as"):
        RunLog.open(flags("--visdom", "--visdom-server", server), tmp_path, epoch=0, step=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("localhost", ("http://localhost", 8097, "/")),
        ("localhost:", ("http://localhost", 8097, "/")),
        ("localhost:08080", ("http://localhost", 8080, "/")),
        ("https://a.example/graphs/", ("https://a.example", 8097, "/graphs")),
        ("http://me:secret@[::1]:80", ("http://me:secret@[::1]", 80, "/")),
    ],
)
def test_what_an_address_means(server, address):
    assert visdom_curves.server_address(server) == address
