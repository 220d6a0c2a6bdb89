"""What clients send, within limits: bodies, fields, and the decoders they ask for."""

import hmac
import io
import os
import re
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from asr.recognizer import Recognizer
from config import DECODERS, DecoderConfig
from decoder import BeamDecoder, GreedyDecoder

FIELD_BYTES = 2**16
MOST_FIELDS = 32
MOST_BEAM_WIDTH, MOST_READINGS, MOST_HOT_WORDS = 512, 20, 200
DECODERS_KEPT = 16
MOST_TOLD = 200  # characters of what a client may have written itself
STALLED = 30.0  # seconds in which a client sends nothing
LEAST_RATE = 1000.0  # bytes a second, from then on


class Refused(Exception):
    """A request that is answered by an error: the HTTP status, and one line that says why."""

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


class ApiKeys:
    """The keys of a file, one a line, but for lines that begin with #; without a file, everybody is let in."""

    def __init__(self, path: str | None):
        """Raises: OSError; ValueError naming a file without keys."""
        self._keys: list[bytes] = []
        if path is None:
            return
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not text in UTF-8: expected keys, one a line") from None
        self._keys = [line.strip().encode() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not self._keys:
            raise ValueError(f"{path}: no keys: expected one a line")
        if not all(key.isascii() for key in self._keys):
            raise ValueError(f"{path}: a key with characters beyond ASCII, which a header cannot carry")

    @property
    def needed(self) -> bool:
        return bool(self._keys)

    def admit(self, given: str) -> bool:
        """Compare with every key, in a time that tells nothing of how much of one was right."""
        found = [hmac.compare_digest(given.encode(errors="replace"), key) for key in self._keys]
        return any(found) or not found


def bearer(header: str | None) -> str:
    kind, _, key = (header or "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


@dataclass(frozen=True)
class Upload:
    """A request's file and its other fields; the last one counts of those with the same name."""

    file: BinaryIO
    fields: Mapping[str, str]
    listed: Mapping[str, Sequence[str]]  # all of them

    def flag(self, name: str) -> bool:
        value = self.fields.get(name, "false").strip().lower()
        if value not in ("true", "false", "1", "0", ""):
            raise Refused(400, f"{name}={value[:40]!r}: expected true or false")
        return value in ("true", "1")

    def number(self, name: str, most: int) -> int | None:
        value = self.fields.get(name, "").strip()
        if not value:
            return None
        if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= most:
            raise Refused(400, f"{name}={value[:40]!r}: expected a whole number from 1 to {most}")
        return int(value)


async def read_upload(request: Request, most_bytes: int) -> Upload:
    """Receive a form with a file, which goes to the disk if it is large, under no name.

    Raises: Refused if there is none, or too much, or the client stalls.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise Refused(
            400, f"no file: expected multipart/form-data with a field file, not {kind[:80] or 'a body without a type'}"
        )
    if parse_options_header(kind)[1].get(b"charset", b"utf-8").lower() != b"utf-8":
        raise Refused(400, "not a form in UTF-8: expected no other charset")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, f"Content-Encoding {request.headers['content-encoding'][:40]}: expected the form as it is")
    if request.headers.get("content-length", "").isdigit() and int(request.headers["content-length"]) > most_bytes:
        raise Refused(413, _too_large(most_bytes))
    try:
        parser = MultiPartParser(
            request.headers, _limited(request, most_bytes), max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES
        )
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        raise Refused(400, f"not a form that can be read: {str(error)[:MOST_TOLD]}") from None
    file = form.get("file")
    if not isinstance(file, UploadFile):
        await form.close()
        raise Refused(400, "no file: expected a form field file with a recording, as curl -F file=@speech.wav sends it")
    listed: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            listed.setdefault(name, []).append(value)
    return Upload(_on_disk(file), {name: values[-1] for name, values in listed.items()}, listed)


def _on_disk(file: UploadFile) -> io.FileIO:
    """A nameless file of an upload's own, which is read without another copy in memory."""
    with file.file as spooled:
        number = os.dup(spooled.fileno())  # which puts on the disk what was small enough for memory
        spooled.flush()
    plain = io.FileIO(number, "rb")
    plain.seek(0)
    return plain


class Patience:
    """With a client that sends bytes: not without any for long, nor with a few now and then."""

    def __init__(self) -> None:
        self.total, self._began = 0, time.monotonic()

    async def wait(self, receive: Awaitable) -> object:
        """What is received next. Raises: Refused."""
        waited = time.monotonic() - self._began
        patience = min(STALLED, STALLED + self.total / LEAST_RATE - waited)
        try:
            with anyio.fail_after(max(0.0, patience)):
                return await receive
        except TimeoutError:
            waited = time.monotonic() - self._began
            raise Refused(408, f"{self.total} bytes came in {waited:.0f} s: send them faster, or again") from None


async def _limited(request: Request, most_bytes: int) -> AsyncIterator[bytes]:
    """A body as it comes, also one that does not say how long it is."""
    patience, chunks = Patience(), request.stream()
    while True:
        try:
            chunk = await patience.wait(anext(chunks))
        except StopAsyncIteration:
            return
        patience.total += len(chunk)
        if patience.total > most_bytes:
            raise Refused(413, _too_large(most_bytes))
        yield chunk


def _too_large(most_bytes: int) -> str:
    return f"larger than {most_bytes / 2**20:g} MiB, which is the most here: compress it, or send it in parts"


class Decoders:
    """Decoders as requests want them, made from the server's own and kept for a while."""

    def __init__(self, recognizer: Recognizer):
        self._recognizer = recognizer
        self._kept: OrderedDict[tuple, GreedyDecoder | BeamDecoder] = OrderedDict()
        self._lock = threading.Lock()

    def chosen(self, upload: Upload) -> tuple[GreedyDecoder | BeamDecoder, int]:
        """The decoder that a request's fields mean, and how many readings it gives. Raises: Refused."""
        config = self._recognizer.config
        kind = upload.fields.get("decoder", "").strip() or config.decoder
        if kind not in DECODERS:
            raise Refused(400, f"decoder={kind[:40]!r}: expected {' or '.join(DECODERS)}")
        paths = upload.number("top_paths", max(MOST_READINGS, config.top_paths))
        width = upload.number("beam_width", MOST_BEAM_WIDTH)
        words = upload.fields.get("hotwords", "").strip()
        if kind == "greedy":
            if words or (paths or 1) > 1:
                raise Refused(400, f"{'hotwords' if words else 'top_paths'}: greedy decoding cannot use it; decoder=beam can")
            return (GreedyDecoder(self._recognizer.labels.symbols) if config.decoder == "beam" else self._recognizer.decoder), 1
        paths = paths or (config.top_paths if config.decoder == "beam" else 1)
        width = max(width or config.beam_width, paths)
        key = (width, paths, words)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._made(width, paths, words)
                while len(self._kept) > DECODERS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key], paths

    def usual_beam(self) -> BeamDecoder:
        """What a request gets that asks for beam search and says no more."""
        return self.chosen(Upload(io.BytesIO(), {"decoder": "beam"}, {}))[0]

    def _made(self, width: int, paths: int, words: str) -> BeamDecoder:
        from decoding.hotwords import parse_hot_words

        own = self._recognizer.decoder
        if not isinstance(own, BeamDecoder):
            config = DecoderConfig(decoder="beam", beam_width=width, top_paths=paths)
            own = BeamDecoder(self._recognizer.labels.symbols, config)
        try:
            decoder = own.with_weights(beam_width=width, top_paths=paths)
            if words:
                entries = words.split(",")
                if len(entries) > MOST_HOT_WORDS:
                    raise ValueError(f"hotwords: {len(entries)}: expected up to {MOST_HOT_WORDS}")
                decoder = decoder.with_hot_words(parse_hot_words(entries, "hotwords"))
        except ValueError as error:
            raise Refused(400, str(error)[:MOST_TOLD]) from None
        return decoder


def log_fault(error: Exception) -> None:
    """Tell whoever runs the server of a fault of its own, in full: clients are told nothing of it."""
    traceback.print_exception(error, file=sys.stderr)
