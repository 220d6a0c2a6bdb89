"""Live speech over a WebSocket: samples one way, text the other.

A client may first send text, {"rate": 48000, "key": "..."}; then 16-bit little-endian PCM, one channel, in binary messages of
any size; at last {"eof": 1}. It gets {"partial": ...} and {"final": ...} with times in seconds, {"error": ...} if something is
wrong, and the connection is closed. Models that do not follow streams hear utterance by utterance, and have no partial texts.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import anyio.to_thread
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from asr.streaming import LiveTranscriber, Partial, event_json
from asr.subtitles import cue_json, cues
from asr.transcript import Spoken
from config import RATES
from data.pcm import PcmStream
from data.utterance_cutter import UtteranceCutter
from model import TIME_STRIDE
from serving.batching import Stopping
from serving.requests import Patience, Refused, bearer, log_fault
from serving.service import Service

# RFC 6455, section 7.4.1, and IANA's list
NORMAL, GONE, POLICY, INTERNAL, RESTART, TRY_LATER = 1000, 1001, 1008, 1011, 1012, 1013
END = '{"eof": 1}'
SAMPLE_BYTES = 2
MOST_TEXT = 4096  # characters of a message


async def live(socket: WebSocket) -> None:
    """The route /stream."""
    service: Service = socket.app.state.service
    if not _same_origin(socket, service.config.allow_origin):
        await socket.close(POLICY)  # before it is accepted: HTTP 403
        return
    await socket.accept()
    try:
        code = await _converse(socket, service)
        await socket.close(code)
    except WebSocketDisconnect:
        code = GONE
    except Stopping:
        await socket.close(code := RESTART)
    except Refused as refused:
        code = await _refuse(socket, TRY_LATER if refused.status == 503 else POLICY, refused.message)
    except ValueError as error:
        code = await _refuse(socket, POLICY, str(error))
    except Exception as error:  # a fault of ours: whoever runs the server is told, clients are not
        log_fault(error)
        code = await _refuse(socket, INTERNAL, "an error of the server, which has logged it")
    service.metrics.streams.labels(str(code)).inc()


async def _converse(socket: WebSocket, service: Service) -> int:
    """From the first message to the last. Returns: why it ended."""
    patience = Patience()
    message = await _received(socket, service.stopping, patience)
    settings = _settings(message) if isinstance(message, str) else {}
    key = settings.get("key") or bearer(socket.headers.get("authorization"))
    if not service.keys.admit(str(key)):
        raise Refused(401, 'this server needs a key: send it in the first message, as {"key": ...}')
    rate = settings.get("rate", service.recognizer.audio.sample_rate)
    if type(rate) is not int or rate not in RATES:
        raise Refused(400, f"rate {str(rate)[:40]}: expected a whole number of Hz from {RATES.start} to {RATES.stop - 1}")
    with service.admitted(service.streams):
        hearing = (_Streamed if service.follows_streams else _ByUtterance)(service, rate)
        if isinstance(message, str) and not settings.get("eof"):
            message = await _received(socket, service.stopping, patience)
        while isinstance(message, bytes):
            if patience.total > service.config.max_audio_seconds * rate * SAMPLE_BYTES:
                await _send(socket, service, hearing.finish)
                raise Refused(413, f"longer than {service.config.max_audio_seconds:g} s, which is the most here: connect anew")
            await _send(socket, service, hearing.feed, message)
            message = await _received(socket, service.stopping, patience)
        if not _settings(message).get("eof"):
            raise Refused(400, 'expected samples in binary messages, and {"eof": 1} behind the last')
        await _send(socket, service, hearing.finish)
    return RESTART if service.stopping.is_set() else NORMAL


async def _received(socket: WebSocket, stopping: asyncio.Event, patience: Patience) -> str | bytes:
    """The next message with something in it; of a server that stops, as if this had been the client's last one.

    Raises: Stopping if it stops before there was any sound.
    """
    while True:
        receiving, stops = asyncio.create_task(socket.receive()), asyncio.create_task(stopping.wait())
        try:
            await patience.wait(asyncio.wait({receiving, stops}, return_when=asyncio.FIRST_COMPLETED))
            if not receiving.done():
                if not patience.total:
                    raise Stopping
                return END
        finally:
            receiving.cancel()
            stops.cancel()
        message = receiving.result()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", NORMAL))
        content = message.get("bytes") or message.get("text")
        if content:
            patience.total += len(content) if isinstance(content, bytes) else 0
            return content


def _settings(text: str | bytes) -> dict:
    try:
        settings = json.loads(text) if len(text) <= MOST_TEXT else None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise Refused(400, 'expected JSON such as {"rate": 16000} or {"eof": 1}, and samples in binary messages')
    return settings


async def _send(socket: WebSocket, service: Service, hear: Callable[..., list[Partial | Spoken]], *samples: bytes) -> None:
    """What comes of more samples, or of their end, as soon as it does."""
    for event in await anyio.to_thread.run_sync(hear, *samples, limiter=service.stream_threads):
        told = event_json(event)
        if not isinstance(event, Partial):
            told["cues"] = [cue_json(cue) for cue in cues(event.words, service.spaced)]
        await socket.send_json(told)


async def _refuse(socket: WebSocket, code: int, message: str) -> int:
    try:
        await socket.send_json({"error": message})
        await socket.close(code)
    except (RuntimeError, WebSocketDisconnect):  # it is closed already
        pass
    return code


def _same_origin(socket: WebSocket, origins: tuple[str, ...]) -> bool:
    """Browsers let any page open a WebSocket anywhere, and say in `Origin` which page it is."""
    origin, host = socket.headers.get("origin"), socket.headers.get("host")
    return origin is None or origin in origins or origin in (f"http://{host}", f"https://{host}")


class _Streamed:
    """For models that follow streams."""

    def __init__(self, service: Service, rate: int):
        self._samples = PcmStream(service.recognizer.audio.sample_rate, rate)
        self._live = LiveTranscriber(service.recognizer)

    def feed(self, content: bytes) -> list[Partial | Spoken]:
        return self._live.feed(self._samples.feed(content))

    def finish(self) -> list[Partial | Spoken]:
        return [*self._live.feed(self._samples.finish()), *self._live.finish()]


class _ByUtterance:
    """For bidirectional models, which must hear an utterance to its end; it joins the queue of the files."""

    def __init__(self, service: Service, rate: int):
        self._recognizer, self._batcher = service.recognizer, service.batcher
        audio = self._recognizer.audio
        self._samples = PcmStream(audio.sample_rate, rate)
        self._cutter = UtteranceCutter(audio.sample_rate, TIME_STRIDE * audio.hop_samples)

    def feed(self, content: bytes) -> list[Spoken]:
        return self._texts(self._cutter.feed(self._samples.feed(content)))

    def finish(self) -> list[Spoken]:
        return self._texts(self._cutter.feed(self._samples.finish()) + self._cutter.finish())

    def _texts(self, utterances: list[tuple[float, np.ndarray]]) -> list[Spoken]:
        found = []
        for start, wave in utterances:
            job = self._batcher.submit(self._recognizer.pieces_of([wave]), self._recognizer.decoder)
            for spoken in job.result.result().spoken():
                words = [replace(word, start=start + word.start, end=start + word.end) for word in spoken.words]
                found.append(Spoken(spoken.text, words))
        return found
