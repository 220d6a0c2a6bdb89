"""Visdom: a thread that shows a run's metrics.jsonl on a server, for as long as there is one."""

import html
import json
import re
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from asr.metrics import scalars
from data.command_line import UsageError

DEFAULT_PORT = 8097
MOST_POINTS = 2000  # of a curve: a browser draws more of them slowly
SHARE = 0.02  # of the time, at most, that goes into sending
PATIENCE = 5.0  # seconds, for one answer of the server
RETRY = 15.0  # seconds between attempts to reach a server that is away


class VisdomCurves(threading.Thread):
    """Reads metrics.jsonl as it grows and sends what changed about once a second; no update of a training waits for it.

    Every window is sent whole, so that a server that was away, or lost its memory, ends up showing what it would have.
    A server that cannot be reached costs one warning, and is tried again from time to time.
    """

    def __init__(self, server: str, name: str, metrics: Path):
        super().__init__(name="visdom", daemon=True)
        self.images: list[np.ndarray] = []  # (H, W, 3) uint8 each; set by the training, shown when noticed
        self._server, self._client, self._metrics = server, connect(server, name), metrics
        self._position = 0
        self._curves: dict[str, tuple[array, array]] = {}  # numbers of updates or epochs, and values
        self._text = ""
        self._changed: set[str] = set()  # curves that the server has not seen as they are
        self._shown: dict[str, object] = {}  # text and images that it has
        self._connected = self._warned = False
        self._stop_now = threading.Event()

    def run(self) -> None:
        pause = 0.0
        while not self._stop_now.wait(pause):
            started = time.monotonic()
            reached = self._update()
            pause = max(1.0, (time.monotonic() - started) / SHARE) if reached else RETRY
        self._update()

    def close(self) -> None:
        """Show the rest, unless the server hangs."""
        self._stop_now.set()
        self.join(2 * PATIENCE)

    def _update(self) -> bool:
        """Returns: whether the server now shows everything."""
        self._read()
        try:
            self._send()
        except (ConnectionError, json.JSONDecodeError):  # none answers, or none of Visdom's
            if not self._warned:
                text = f"warning: no Visdom server answers at {self._server}; training goes on, {self._metrics} has the numbers"
                tqdm.write(text, file=sys.stderr)  # beside a progress bar, not through it
            self._connected, self._warned = False, True
        return self._connected

    def _read(self) -> None:
        with open(self._metrics, "rb") as file:
            file.seek(self._position)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._position += len(new)
        for record in map(json.loads, new.splitlines()):
            for tag, value in scalars(record).items():
                numbers, values = self._curves.setdefault(tag, (array("d"), array("d")))
                numbers.append(record[record["kind"]])
                values.append(value)
                self._changed.add(tag)
            if spoken := record.get("examples"):
                lines = (f"{key + ':':<11} {example[key]}\n" for example in spoken for key in ("reference", "hypothesis"))
                self._text = f"<pre>{html.escape(''.join(lines))}</pre>"

    def _send(self) -> None:
        if not self._connected:
            if self._client.env in self._client.get_env_list():
                self._client.close(win=None)  # what an earlier run, or what was dropped of this one, left there
            self._connected, self._changed, self._shown = True, set(self._curves), {}
        for tag in sorted(self._changed):
            numbers, values = self._curves[tag]
            every = 1
            while len(values) > every * MOST_POINTS:
                every *= 2
            opts = {"title": tag, "xlabel": tag.partition("/")[0]}
            self._client.line(np.array(values[::every]), np.array(numbers[::every]), win=tag, opts=opts)
            self._changed.discard(tag)
        if self._text and self._shown.get("text") != self._text:
            self._client.text(self._text, win="examples", opts={"title": "examples"})
            self._shown["text"] = self._text
        images = self.images
        if self._shown.get("images") is not images:
            for number, image in enumerate(images, 1):
                self._client.image(image.transpose(2, 0, 1), win=f"examples/{number}", opts={"title": f"examples/{number}"})
            self._shown["images"] = images


def server_address(server: str) -> tuple[str, int, str]:
    """What --visdom-server means: host with its scheme, port, path. Raises: UsageError if it is no address."""
    try:
        address = urlsplit(server if "//" in server else f"http://{server}")
        port = DEFAULT_PORT if address.port is None else address.port
        if address.scheme not in ("http", "https") or not address.hostname or not port or re.search(r"\s", server):
            raise ValueError("no address of a server")
    except ValueError as error:
        raise UsageError(f"--visdom-server {server!r}: {error}; expected an address such as http://localhost:8097") from None
    host = re.sub(r":\d*$", "", address.netloc)
    return f"{address.scheme}://{host}", port, address.path.rstrip("/") or "/"


def connect(server: str, name: str) -> Any:
    """A client that says nothing itself, waits no longer than it must, and raises ConnectionError for whatever goes wrong.

    The server is not asked for anything yet. Raises: UsageError if `server` is no address.
    """
    import requests
    import visdom

    host, port, path = server_address(server)

    class Client(visdom.Visdom):
        """The original's requests have no time limit, and an answer that reports a failure counts as a success."""

        def _handle_post(self, url: str, data: str | None = None) -> str:
            answer = requests.post(url, data=data, timeout=PATIENCE)
            answer.raise_for_status()
            return answer.text

    quiet = {"raise_exceptions": True, "use_incoming_socket": False, "send": False}
    client = Client(host, port=port, base_url=path, env=name, **quiet)
    client.send = True  # only now: the original greets the server, and complains about the missing socket, as it is made
    return client
