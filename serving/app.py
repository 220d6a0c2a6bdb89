"""The server's routes: from a request to its answer.

Create one by `create_app(recognizer, settings)`; server.py runs it. Answers of /transcribe are deepspeech.pytorch's, those
below /v1 are OpenAI's (serving/openai.py), /stream is for live speech (serving/live.py).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from asr.recognizer import Recognizer
from asr.streaming import LiveTranscriber, follows_streams
from asr.transcript import Transcript, word_json
from data.containers import TooLong, UnknownFormat
from serving.batching import Batcher, QueueFull, QueueLimits
from serving.live import live
from serving.metrics import Metrics
from serving.openai import openai_error, openai_routes
from serving.requests import ApiKeys, Decoders, Refused, Upload, bearer, log_fault, read_upload

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": CONTENT_SECURITY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
RETRY_AFTER = 1  # seconds
OPEN_ROUTES = {"/", "/health/live", "/health/ready", "/info"}  # with /page/, those that need no key; none tells what was said
WARM_SECONDS = (1.0, 5.0)


@dataclass(frozen=True)
class Settings:
    queue: QueueLimits = field(default_factory=QueueLimits)
    upload_bytes: int = 32 * 2**20
    audio_seconds: float = 1800.0  # of one recording
    timeout: float = 300.0  # seconds from the first byte to the answer
    streams: int = 16  # live connections at a time
    keys: ApiKeys = field(default_factory=lambda: ApiKeys(None))
    origins: tuple[str, ...] = ()  # web pages of elsewhere that may use this server


class Room:
    """For so many at a time; a gauge tells how many there are."""

    def __init__(self, name: str, places: int, gauge: Gauge):
        self.name, self.places = name, places
        self.taken, self._gauge = 0, gauge

    def take(self, places: int) -> None:
        self.taken += places
        self._gauge.set(self.taken)


class Service:
    """What all routes share."""

    def __init__(self, recognizer: Recognizer, settings: Settings):
        self.recognizer, self.settings = recognizer, settings
        self.metrics = Metrics()
        self.batcher = Batcher(recognizer, settings.queue, self.metrics)
        self.decoders = Decoders(recognizer)
        self.follows_streams = follows_streams(recognizer)
        self.recordings = Room("recordings", settings.queue.jobs, self.metrics.under_way)
        self.streams = Room("streams", settings.streams, self.metrics.active_streams)
        self.ready = False
        self.stopping = asyncio.Event()

    def warm(self) -> None:
        """Use everything once, so that the first client does not wait for what is loaded and compiled then.

        Raises: Fault if the model does not work.
        """
        rate = self.recognizer.audio.sample_rate
        for seconds in WARM_SECONDS:
            wave = np.random.default_rng(0).normal(0, 0.01, round(seconds * rate)).astype(np.float32)
            self.batcher.submit(self.recognizer.pieces_of([wave]), self.recognizer.decoder).result.result()
            if self.follows_streams:
                LiveTranscriber(self.recognizer).feed(wave)
        self.ready = True

    @contextlib.contextmanager
    def admitted(self, room: Room) -> Iterator[None]:
        """A place from a request's first byte to its answer's last. Raises: Refused if there is none."""
        if not self.ready:
            raise Refused(503, "the model is being warmed up: try again", RETRY_AFTER)
        if room.taken >= room.places:
            raise Refused(503, f"full: {room.taken} {room.name} are under way; try again", RETRY_AFTER)
        room.take(1)
        try:
            yield
        finally:
            room.take(-1)

    async def transcribe(self, request: Request, check: Callable[[Upload], object]) -> tuple[Upload, Transcript, int]:
        """Receive a recording and transcribe it.

        check: raises Refused, before the work, if it does not understand the form's fields.
        Returns: the request's form, the transcript, and how many readings are wanted.
        Raises: Refused, also with what is wrong with the recording.
        """
        with self.admitted(self.recordings):
            try:
                with anyio.fail_after(self.settings.timeout):
                    upload = await read_upload(request, self.settings.upload_bytes)
                    with contextlib.closing(upload.file):
                        check(upload)
                        decoder, paths = await anyio.to_thread.run_sync(self.decoders.chosen, upload)
                        return upload, await self._result(request, upload, decoder), paths
            except TimeoutError:
                raise Refused(504, f"not done within {self.settings.timeout:g} s: send less, or try again later") from None

    async def _result(self, request: Request, upload: Upload, decoder: object) -> Transcript:
        try:
            job = self.batcher.submit(self.recognizer.pieces(upload.file, longest=self.settings.audio_seconds), decoder)
        except QueueFull:
            raise Refused(503, "the server is stopping, or full: try again", RETRY_AFTER) from None
        done = asyncio.wrap_future(job.result)
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientDisconnect
            return await done
        except TooLong as error:
            raise Refused(413, str(error)) from None
        except UnknownFormat as error:
            raise Refused(415, str(error)) from None
        except ValueError as error:
            raise Refused(422, str(error)) from None
        finally:
            gone.cancel()
            done.cancel()  # and with it the job


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(recognizer: Recognizer, settings: Settings) -> Starlette:
    """An ASGI application around a model."""
    service = Service(recognizer, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if not service.ready:
            await anyio.to_thread.run_sync(service.warm)
        yield
        await anyio.to_thread.run_sync(service.batcher.close)

    routes = [
        Route("/", _page, methods=["GET"]),
        Route("/page/{name}", _page, methods=["GET"]),
        Route("/info", _info, methods=["GET"]),
        Route("/transcribe", _transcribe, methods=["POST"]),
        *openai_routes(),
        Route("/health/live", _live, methods=["GET"]),
        Route("/health/ready", _ready, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        WebSocketRoute("/stream", live),
    ]
    handlers = {Refused: _refused, HTTPException: _http_error, ClientDisconnect: _gone}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False  # to an address that the client's Host header makes up
    app.state.service = service
    app.add_middleware(Gate, service=service)
    return app


class Gate:
    """What every request passes: its key is looked at, its answer gets the headers that protect, and both are counted."""

    def __init__(self, app: Callable, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request = time.monotonic(), Request(scope)  # whose `url` a client's Host header has a say in: not used here
        answer: dict[str, int] = {}

        async def guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                self._add_headers(request, message)
            await send(message)

        refusal = self._refusal(request)
        try:
            await (refusal or self._app)(scope, receive, guarded)
        except Exception as error:  # a fault of ours: whoever runs the server is told, clients are not
            log_fault(error)
            if not answer:
                internal = error_response(request, Refused(500, "an error of the server, which has logged it"))
                await internal(scope, receive, guarded)
        finally:
            route = getattr(scope.get("route"), "path", "other") if refusal is None else "refused"
            metrics = self._service.metrics
            metrics.requests.labels(route, str(answer.get("status", 500))).inc()
            metrics.latency.labels(route).observe(time.monotonic() - began)

    def _refusal(self, request: Request) -> Response | None:
        settings = self._service.settings
        if request.method == "OPTIONS" and request.headers.get("origin") in settings.origins:
            return Response(status_code=204)
        path = request.scope["path"]
        if (
            path in OPEN_ROUTES
            or path.startswith("/page/")
            or settings.keys.admit(bearer(request.headers.get("authorization")))
        ):
            return None
        refused = Refused(401, "this server needs a key: send it as Authorization: Bearer KEY")
        return error_response(request, refused)

    def _add_headers(self, request: Request, message: dict) -> None:
        extra = dict(SECURITY_HEADERS)
        # The page's files may be kept if they are asked for anew each time: those of another release would not fit together.
        extra["Cache-Control"] = "no-cache" if request.scope["path"].startswith("/page/") else "no-store"
        if self._service.stopping.is_set():
            extra["Connection"] = "close"
        origin = request.headers.get("origin")
        if origin in self._service.settings.origins:
            extra |= {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Headers": "authorization",
                "Cross-Origin-Resource-Policy": "cross-origin",
                "Vary": "Origin",
            }
        message["headers"] = [*message["headers"], *((k.lower().encode(), v.encode()) for k, v in extra.items())]


async def _transcribe(request: Request) -> Response:
    service: Service = request.app.state.service
    upload, transcript, paths = await service.transcribe(request, lambda form: (form.flag("offsets"), form.flag("words")))
    readings = transcript.readings(paths)
    answer = {"status": "OK", "transcription": [[reading.text for reading in readings]]}
    if upload.flag("offsets"):
        answer["offsets"] = [[list(reading.offsets) for reading in readings]]
    if upload.flag("words"):
        answer["duration"] = round(transcript.duration, 3)
        answer["words"] = [word_json(word) for word in transcript.words(readings[0])]
        answer["segments"] = [
            {"start": round(spoken.start, 3), "end": round(spoken.end, 3), "text": spoken.text}
            for spoken in transcript.spoken()
        ]
    return JSONResponse(answer)


async def _info(request: Request) -> Response:
    service: Service = request.app.state.service
    settings = service.settings
    return JSONResponse(
        {
            "model": service.recognizer.name,
            "streaming": service.follows_streams,
            "sample_rate": service.recognizer.audio.sample_rate,
            "language_model": service.recognizer.decoder.model is not None,
            "decoder": service.recognizer.config.decoder,
            "max_upload_mb": settings.upload_bytes / 2**20,
            "max_audio_seconds": settings.audio_seconds,
            "key_needed": settings.keys.needed,
        }
    )


async def _live(request: Request) -> Response:
    alive = request.app.state.service.batcher.alive
    return JSONResponse({"status": "live" if alive else "dead"}, 200 if alive else 503)


async def _ready(request: Request) -> Response:
    service: Service = request.app.state.service
    status = "stopping" if service.stopping.is_set() else "ready" if service.ready else "warming up"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.service.metrics.text(), media_type="text/plain; version=0.0.4")


async def _page(request: Request) -> Response:
    """The page's files, which are listed here and now: nothing that a client names is opened."""
    name = request.path_params.get("name", "index.html")
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in PAGE_TYPES} if PAGE.is_dir() else {}
    if name not in files:
        raise HTTPException(404)
    return FileResponse(files[name], media_type=PAGE_TYPES[files[name].suffix])


def error_response(request: Request, refused: Refused) -> Response:
    headers = {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if request.scope["path"].startswith("/v1/"):
        return JSONResponse(openai_error(refused), refused.status, headers)
    return JSONResponse({"status": "error", "message": refused.message}, refused.status, headers)


async def _refused(request: Request, refused: Refused) -> Response:
    return error_response(request, refused)


async def _http_error(request: Request, error: HTTPException) -> Response:
    told = {404: "no such page", 405: f"{request.method} is not for this address"}.get(error.status_code, error.detail)
    answer = error_response(request, Refused(error.status_code, told))
    answer.headers.update(error.headers or {})
    return answer


async def _gone(_: Request, __: ClientDisconnect) -> Response:
    return PlainTextResponse("", 499)  # for the log and the metrics: nobody reads it
