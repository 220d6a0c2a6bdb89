"""Files fetched over HTTP that survive a bad connection: a transfer that is cut goes on where it stopped, today or tomorrow.

While it comes in, `NAME` is `NAME.part`, with `NAME.part.json` beside it to recognise the same file on the server
again; it gets its name when its length and checksum are right. The standard library serves: a client of its own for
resuming, retrying and showing progress would still have to be written around `requests`.
"""

import hashlib
import http.client
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from data.command_line import progress_bar
from data.files import whole_file

TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing new
FIRST_PAUSE = 1.0  # seconds; doubles from attempt to attempt
BLOCK_BYTES = 2**18
TEXT_BYTES = 2**26  # of a page or list, at most
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}  # worth another attempt
PASSING = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
HEADERS = {"User-Agent": "deepspeech-toolkit", "Accept-Encoding": "identity"}


class Cut(ConnectionError):
    """The transfer ended before the file did, or the file on the server is no longer the one begun with."""


@dataclass
class Part:
    """What has come of a file so far, and what tells whether the server still has the same one."""

    path: Path
    total: int | None = None  # bytes
    validator: str = ""  # the server's ETag or date for it

    @classmethod
    def of(cls, target: Path, url: str) -> "Part":
        """Take up what an earlier run left of this file, or begin."""
        part = cls(target.with_name(f"{target.name}.part"))
        try:
            state = json.loads(part._state_path.read_text())
            known = state.get("url") == url
        except (OSError, ValueError, AttributeError):
            known = False
        if known and isinstance(state.get("total"), int | None) and isinstance(state.get("validator"), str):
            part.total, part.validator = state["total"], state["validator"]
        else:
            part.path.unlink(missing_ok=True)
        return part

    @property
    def _state_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, url: str, total: int | None, validator: str) -> None:
        """Start over with what the server says of its file."""
        self.discard()
        self.total, self.validator = total, validator
        with whole_file(self._state_path) as path:
            path.write_text(json.dumps({"url": url, **asdict(self), "path": None}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        self.path.replace(target)
        self._state_path.unlink(missing_ok=True)


def fetch(url: str, target: Path, checksum: str | None = None) -> None:
    """Fetch a file, going on with what an interrupted run left of it.

    checksum: `md5:...` or `sha256:...` in hexadecimal, as published.
    Raises: ValueError, naming the address, if what came is not what was published; OSError if it cannot be had, or has
        no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part.of(target, url)
    with progress_bar(desc=target.name, unit="B", unit_scale=True, unit_divisor=1024) as progress:
        _persist(url, part, progress)
    if checksum:
        _check(part, url, checksum)
    part.finish(target)


def fetch_text(url: str) -> str | None:
    """A page or a small text file. Returns: None if the server has none of that name. Raises: OSError, ValueError."""
    failures = 0
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=HEADERS), timeout=TIMEOUT) as response:
                content = response.read(TEXT_BYTES + 1)
                if response.length:  # http.client says no other way that a body was cut
                    raise Cut("the connection was cut")
            break
        except PASSING as fault:
            if isinstance(fault, urllib.error.HTTPError) and fault.code in (404, 410):
                return None
            failures += 1
            _pause_or_give_up(fault, url, failures, "try again later")
    if len(content) > TEXT_BYTES:
        raise ValueError(f"{url}: more than {TEXT_BYTES} bytes: expected a page or a list")
    return content.decode("utf-8", errors="replace")


def _persist(url: str, part: Part, progress: tqdm) -> None:
    """Try until the file is there, or until attempt after attempt brings nothing that was not there before."""
    failures, furthest = 0, part.size
    while True:
        try:
            return _receive(url, part, progress)
        except PASSING as fault:
            # Measured by the furthest byte ever: where a server cannot resume, starting over is no progress.
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            kept = f"{part.size} bytes are kept: the same command goes on from there"
            _pause_or_give_up(fault, url, failures, kept)


def _pause_or_give_up(fault: Exception, url: str, failures: int, advice: str) -> None:
    reason = _reason(fault)
    if isinstance(fault, urllib.error.HTTPError):
        fault.close()
        if fault.code not in PASSING_STATUS:
            raise OSError(f"{url}: {reason}: check --base-url, or fetch it by other means for --tar-path") from None
    if failures >= ATTEMPTS:
        raise OSError(f"{url}: {reason}, {failures} times in a row; {advice}") from None
    pause = FIRST_PAUSE * 2 ** (failures - 1)
    print(f"{url}: {reason}; trying again in {pause:g} s", file=sys.stderr)
    time.sleep(pause)


def _reason(fault: Exception) -> str:
    if isinstance(fault, urllib.error.HTTPError):
        return f"HTTP {fault.code} {fault.reason}"
    if isinstance(fault, urllib.error.URLError):
        fault = fault.reason
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__


def _receive(url: str, part: Part, progress: tqdm) -> None:
    """One attempt: ask for what is missing, and append it if the server still has the file that was begun.

    Raises: one of PASSING if it did not come to the end; OSError.
    """
    headers = dict(HEADERS)
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as refusal:
        if refusal.code == 416 and part.size:  # nothing lies beyond what is here already
            refusal.close()
            return _expect_whole(part)
        raise
    with response:
        if response.status == 206:
            _check_range(response.headers.get("Content-Range", ""), part)
        else:  # the whole file: the first attempt, another file than before, or a server that cannot resume
            part.begin(url, _length(response, url), _validator(response.headers))
        _check_room(part)
        progress.reset(part.total)
        progress.update(part.size)
        with open(part.path, "ab") as file:
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                progress.update(len(block))
    _expect_whole(part)


def _expect_whole(part: Part) -> None:
    if part.total is not None and part.size != part.total:
        came = part.size
        if came > part.total:
            part.discard()
        raise Cut(f"the connection was cut after {came} of {part.total} bytes")


def _check_range(content_range: str, part: Part) -> None:
    """Refuse to append what does not follow on what is here. Raises: Cut, and the next attempt starts over."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range.strip())
    total = None if found is None or found[2] == "*" else int(found[2])
    if found is None or int(found[1]) != part.size or (part.total is not None and total not in (None, part.total)):
        part.discard()
        raise Cut("the file on the server has changed: starting over")
    part.total = part.total if total is None else total


def _length(response: http.client.HTTPResponse, url: str) -> int | None:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise ValueError(f"{url}: comes with Content-Encoding {encoding}, which was not asked for: use another mirror")
    length = response.headers.get("Content-Length", "")
    if length.isdigit():
        return int(length)
    if "chunked" in response.headers.get("Transfer-Encoding", ""):
        return None  # http.client notices when chunks are missing
    raise ValueError(f"{url}: the server does not say how long the file is, so that a cut would not show: use another mirror")


def _validator(headers: http.client.HTTPMessage) -> str:
    """What If-Range may carry: a strong ETag, or a date (RFC 9110, section 13.1.5)."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _check_room(part: Part) -> None:
    missing = (part.total or 0) - part.size
    free = shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise OSError(f"{part.path}: {missing >> 20} MiB to come, {free >> 20} MiB free: make room, or another --target-dir")


def _check(part: Part, url: str, checksum: str) -> None:
    """Compare with the published checksum. Raises: ValueError, after the wrong file is thrown away."""
    algorithm, _, published = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with (
        open(part.path, "rb") as file,
        progress_bar(desc=f"checking {part.path.stem}", total=part.size, unit="B", unit_scale=True) as progress,
    ):
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            progress.update(len(block))
    if digest.hexdigest() != published:
        part.discard()
        raise ValueError(f"{url}: its {algorithm} is {digest.hexdigest()}, published is {published}: fetch it again")
