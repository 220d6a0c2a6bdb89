"""The server's routes: from a request to its answer.

Create one by `create_app(recognizer)`; server.py runs it. Answers of /transcribe are deepspeech.pytorch's, those below /v1 are
OpenAI's (serving/openai.py), /stream is for live speech (serving/live.py), / is a page to try it on (serving/page).
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from asr.recognizer import Recognizer
from asr.subtitles import cue_json, cues
from asr.transcript import Transcript, word_json
from config import ServerConfig
from serving.gate import Gate, error_response
from serving.live import live
from serving.openai import openai_routes
from serving.requests import ApiKeys, Refused, Upload, bearer
from serving.service import Service

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def create_app(recognizer: Recognizer, config: ServerConfig | None = None, keys: ApiKeys | None = None) -> Starlette:
    """An ASGI application around a model."""
    service = Service(recognizer, config or ServerConfig(), keys or ApiKeys(None))

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


async def _transcribe(request: Request) -> Response:
    service: Service = request.app.state.service
    return await service.answer(request, lambda form: (form.flag("offsets"), form.flag("words")), _answer)


def _answer(upload: Upload, transcript: Transcript, paths: int) -> Response:
    readings = transcript.readings(paths)
    answer = {"status": "OK", "transcription": [[reading.text for reading in readings]]}
    if upload.flag("offsets"):
        answer["offsets"] = [[list(reading.offsets) for reading in readings]]
    if upload.flag("words"):
        words = transcript.words(readings[0])
        answer["duration"] = round(transcript.duration, 3)
        answer["words"] = [word_json(word) for word in words]
        answer["segments"] = [
            {"start": round(spoken.start, 3), "end": round(spoken.end, 3), "text": spoken.text}
            for spoken in transcript.spoken()
        ]
        answer["cues"] = [cue_json(cue) for cue in cues(words, transcript.spaced)]
    return JSONResponse(answer)


async def _info(request: Request) -> Response:
    """What the page asks first; of one who has no key, whether it takes one."""
    service: Service = request.app.state.service
    known = {"key_needed": service.keys.needed}
    if service.keys.admit(bearer(request.headers.get("authorization"))):
        recognizer, config = service.recognizer, service.config
        known |= {
            "model": recognizer.name,
            "streaming": service.follows_streams,
            "sample_rate": recognizer.audio.sample_rate,
            "spaced": service.spaced,
            "language_model": recognizer.decoder.model is not None,
            "decoder": recognizer.config.decoder,
            "beam_width": recognizer.config.beam_width,
            "top_paths": recognizer.config.top_paths,
            "max_upload_mb": config.max_upload_mb,
            "max_audio_seconds": config.max_audio_seconds,
        }
    return JSONResponse(known)


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


async def _refused(request: Request, refused: Refused) -> Response:
    return error_response(request, refused)


async def _http_error(request: Request, error: HTTPException) -> Response:
    told = {404: "no such page", 405: f"{request.method} is not for this address"}.get(error.status_code, error.detail)
    answer = error_response(request, Refused(error.status_code, told))
    answer.headers.update(error.headers or {})
    return answer


async def _gone(_: Request, __: ClientDisconnect) -> Response:
    return PlainTextResponse("", 499)  # for the log and the metrics: nobody reads it
