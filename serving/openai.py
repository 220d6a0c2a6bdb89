"""OpenAI's interface for transcriptions, so that programs written for it run on this server.

Source: platform.openai.com/docs/api-reference/audio, in November 2026. Accepted and without effect: model, language, prompt,
temperature, chunking_strategy, include[].
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from asr.subtitles import as_srt, as_vtt, cues
from asr.transcript import Transcript
from serving.requests import Refused, Upload

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("word", "segment")


def openai_routes() -> list[Route]:
    return [
        Route("/v1/audio/transcriptions", _transcriptions, methods=["POST"]),
        Route("/v1/models", _models, methods=["GET"]),
        Route("/v1/models/{name}", _model, methods=["GET"]),
    ]


def openai_error(refused: Refused) -> dict:
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {"error": {"message": refused.message, "type": kind, "param": None, "code": None}}


async def _transcriptions(request: Request) -> Response:
    return await request.app.state.service.answer(request, _check, _answer)


def _answer(upload: Upload, transcript: Transcript, _: int) -> Response:
    kind = upload.fields.get("response_format", "json")
    if kind == "json":
        return JSONResponse({"text": transcript.text})
    if kind == "verbose_json":
        return JSONResponse(_verbose(transcript, upload))
    if kind == "text":
        return PlainTextResponse(transcript.text + "\n")
    made = cues(transcript.words(transcript.readings(1)[0]), transcript.spaced)
    return PlainTextResponse(as_srt(made) if kind == "srt" else as_vtt(made))


def _check(upload: Upload) -> None:
    kind = upload.fields.get("response_format", "json")
    if kind not in FORMATS:
        raise Refused(400, f"response_format={kind[:40]!r}: expected one of {', '.join(FORMATS)}")
    if upload.flag("stream"):
        raise Refused(400, "stream: answers come whole; leave it out, or use /stream")
    for name in upload.listed.get("timestamp_granularities[]", ()):
        if name not in GRANULARITIES:
            raise Refused(400, f"timestamp_granularities[]={name[:40]!r}: expected word or segment")


def _verbose(transcript: Transcript, upload: Upload) -> dict:
    wanted = upload.listed.get("timestamp_granularities[]", ["segment"])
    answer = {
        "task": "transcribe",
        "language": upload.fields.get("language", ""),
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
    }
    spoken = transcript.spoken()
    if "word" in wanted:
        answer["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            for part in spoken
            for word in part.words
        ]
    if "segment" in wanted:
        # What of a segment Whisper alone knows has the value that says nothing.
        nothing = {"tokens": [], "temperature": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0}
        answer["segments"] = [
            {
                "id": number,
                "seek": 0,
                "start": round(part.start, 3),
                "end": round(part.end, 3),
                "text": part.text,
                "avg_logprob": round(part.ln_confidence, 4),
                **nothing,
            }
            for number, part in enumerate(spoken)
        ]
    return answer


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_described(request)]})


async def _model(request: Request) -> Response:
    described = _described(request)
    if request.path_params["name"] != described["id"]:
        raise Refused(404, f"no such model: this server has {described['id']}")
    return JSONResponse(described)


def _described(request: Request) -> dict:
    recognizer = request.app.state.service.recognizer
    return {"id": recognizer.name, "object": "model", "created": recognizer.written, "owned_by": "local"}
