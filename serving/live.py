"""Live speech over a WebSocket: samples one way, text the other.

A client may first send text, {"rate": 48000, "key": "..."}; then 16-bit little-endian PCM, one channel, in binary messages of
any size; at last {"eof": 1}. It gets {"partial": ...} and {"final": ...} with times in seconds, {"error": ...} if something is
wrong, and the connection is closed. Models that do not follow streams hear utterance by utterance, and have no partial texts.
"""

import asyncio
import json
from dataclasses import replace
from urllib.parse import urlsplit

import anyio.to_thread
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from asr.recognizer import Recognizer
from asr.streaming import LiveTranscriber, event_json
from asr.transcript import Spoken
from config import RATES
from data.pcm import PcmStream
from data.utterance_cutter import UtteranceCutter
from model import TIME_STRIDE
from serving.batching import Batcher, QueueFull
from serving.requests import STALLED, Refused, bearer, log_fault

NORMAL, POLICY, INTERNAL, RESTART, TRY_LATER = 1000, 1008, 1011, 1012, 1013  # RFC 6455, section 7.4.1, and IANA's list
END = '{"eof": 1}'


async def live(socket: WebSocket) -> None:
    """The route /stream."""
    service = socket.app.state.service
    if not _same_origin(socket, service.settings.origins):
        await socket.close(POLICY)  # before it is accepted: HTTP 403
        return
    await socket.accept()
    try:
        await _converse(socket, service)
    except WebSocketDisconnect:
        pass
    except Refused as refused:
        await _refuse(socket, TRY_LATER if refused.status == 503 else POLICY, refused.message)
    except ValueError as error:
        await _refuse(socket, POLICY, str(error))
    except Exception as error:  # a fault of ours: whoever runs the server is told, clients are not
        log_fault(error)
        await _refuse(socket, INTERNAL, "an error of the server, which has logged it")


async def _converse(socket: WebSocket, service: object) -> None:
    """From the first message to the last."""
    recognizer: Recognizer = service.recognizer
    message = await _received(socket, service.stopping)
    settings = _settings(message) if isinstance(message, str) else {}
    key = settings.get("key") or bearer(socket.headers.get("authorization"))
    if not service.settings.keys.admit(str(key)):
        raise Refused(401, 'this server needs a key: send it in the first message, as {"key": ...}')
    rate = settings.get("rate", recognizer.audio.sample_rate)
    if type(rate) is not int or rate not in RATES:
        raise Refused(400, f"rate {str(rate)[:40]}: expected a whole number of Hz from {RATES.start} to {RATES.stop - 1}")
    with service.admitted(service.streams):
        hearing = _Streamed(recognizer, rate) if service.follows_streams else _ByUtterance(recognizer, service.batcher, rate)
        if isinstance(message, str) and not settings.get("eof"):
            message = await _received(socket, service.stopping)
        while isinstance(message, bytes):
            await _send(socket, await anyio.to_thread.run_sync(hearing.feed, message))
            message = await _received(socket, service.stopping)
        if not _settings(message).get("eof"):
            raise Refused(400, 'expected samples in binary messages, and {"eof": 1} behind the last')
        await _send(socket, await anyio.to_thread.run_sync(hearing.finish))
    await socket.close(RESTART if service.stopping.is_set() else NORMAL)


async def _received(socket: WebSocket, stopping: asyncio.Event) -> str | bytes:
    """The next message; of a server that stops, as if this had been the client's last one."""
    receiving, stops = asyncio.create_task(socket.receive()), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({receiving, stops}, timeout=STALLED, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done():
            message = receiving.result()
        elif stops.done():
            return END
        else:
            raise Refused(408, f"nothing came for {STALLED:g} s")
    finally:
        receiving.cancel()
        stops.cancel()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL))
    return message["bytes"] if message.get("bytes") is not None else message.get("text") or ""


def _settings(text: str | bytes) -> dict:
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise Refused(400, 'expected JSON such as {"rate": 16000} or {"eof": 1}, and samples in binary messages')
    return settings


async def _send(socket: WebSocket, events: list[dict]) -> None:
    for event in events:
        await socket.send_json(event)


async def _refuse(socket: WebSocket, code: int, message: str) -> None:
    try:
        await socket.send_json({"error": message})
        await socket.close(code)
    except (RuntimeError, WebSocketDisconnect):  # it is closed already
        pass


def _same_origin(socket: WebSocket, origins: tuple[str, ...]) -> bool:
    """Browsers let any page open a WebSocket anywhere, and say in `Origin` which page it is."""
    origin = socket.headers.get("origin")
    return origin is None or origin in origins or urlsplit(origin).netloc == socket.headers.get("host")


class _Streamed:
    """For models that follow streams."""

    def __init__(self, recognizer: Recognizer, rate: int):
        self._samples = PcmStream(recognizer.audio.sample_rate, rate)
        self._live = LiveTranscriber(recognizer)

    def feed(self, content: bytes) -> list[dict]:
        return [event_json(event) for event in self._live.feed(self._samples.feed(content))]

    def finish(self) -> list[dict]:
        events = self._live.feed(self._samples.finish())
        return [event_json(event) for event in [*events, *self._live.finish()]]


class _ByUtterance:
    """For bidirectional models, which must hear an utterance to its end; it joins the queue of the files."""

    def __init__(self, recognizer: Recognizer, batcher: Batcher, rate: int):
        self._recognizer, self._batcher = recognizer, batcher
        self._samples = PcmStream(recognizer.audio.sample_rate, rate)
        self._cutter = UtteranceCutter(recognizer.audio.sample_rate, TIME_STRIDE * recognizer.audio.hop_samples)

    def feed(self, content: bytes) -> list[dict]:
        return self._texts(self._cutter.feed(self._samples.feed(content)))

    def finish(self) -> list[dict]:
        return self._texts(self._cutter.feed(self._samples.finish()) + self._cutter.finish())

    def _texts(self, utterances: list[tuple[float, np.ndarray]]) -> list[dict]:
        jobs, events = [], []
        for start, wave in utterances:
            try:
                jobs.append((start, self._batcher.submit(self._recognizer.pieces_of([wave]), self._recognizer.decoder)))
            except QueueFull:
                raise Refused(503, "the server is stopping, or full: try again") from None
        for start, job in jobs:
            for spoken in job.result.result().spoken():
                words = [replace(word, start=start + word.start, end=start + word.end) for word in spoken.words]
                events.append(event_json(Spoken(spoken.text, words)))
        return events
