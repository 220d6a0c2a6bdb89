"""What the routes of a server share: the model, the queue before it, and room for so many clients."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import anyio
import anyio.to_thread
import numpy as np
from prometheus_client import Gauge
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from asr.recognizer import Recognizer
from asr.streaming import LiveTranscriber, follows_streams
from asr.transcript import Transcript
from config import ServerConfig
from data.command_line import message, tell
from data.containers import TooLong, UnknownFormat
from decoder import SPACE
from serving.batching import Batcher, Stopping
from serving.metrics import Metrics
from serving.requests import ApiKeys, Decoders, Refused, Upload, read_upload

RETRY_AFTER = 1  # seconds
WARM_SECONDS = (1.0, 5.0)


class Room:
    """For so many at a time; a gauge tells how many there are."""

    def __init__(self, name: str, places: int, gauge: Gauge):
        self.name, self.places = name, places
        self.taken, self._gauge = 0, gauge

    def take(self, places: int) -> None:
        self.taken += places
        self._gauge.set(self.taken)


class Service:
    """A model at its clients' service."""

    def __init__(self, recognizer: Recognizer, config: ServerConfig, keys: ApiKeys):
        self.recognizer, self.config, self.keys = recognizer, config, keys
        self.metrics = Metrics()
        self.batcher = Batcher(recognizer, config, self.metrics)
        self.decoders = Decoders(recognizer)
        self.follows_streams = follows_streams(recognizer)
        self.spaced = SPACE in recognizer.labels.symbols
        self.recordings = Room("recordings", config.max_queue, self.metrics.under_way)
        self.streams = Room("streams", config.max_streams, self.metrics.active_streams)
        self.stream_threads = anyio.CapacityLimiter(max(1, config.max_streams))  # which others need not wait for
        self.connections: set = set()  # uvicorn's
        self.ready = False
        self.stopping = asyncio.Event()

    def warm(self) -> None:
        """Use everything once, so that the first client does not wait for what is loaded and compiled then.

        Raises: Fault if the model does not work.
        """
        rate = self.recognizer.audio.sample_rate
        for seconds in WARM_SECONDS:
            wave = np.random.default_rng(0).normal(0, 0.01, round(seconds * rate)).astype(np.float32)
            for decoder in (self.recognizer.decoder, self.decoders.usual_beam()):
                self.batcher.submit(self.recognizer.pieces_of([wave]), decoder).result.result()
            if self.follows_streams:
                LiveTranscriber(self.recognizer).feed(wave)
        self.ready = True

    @contextlib.contextmanager
    def admitted(self, room: Room) -> Iterator[None]:
        """A place while a client is served. Raises: Refused if there is none."""
        if not self.ready:
            raise Refused(503, "the model is being warmed up: try again", RETRY_AFTER)
        if room.taken >= room.places:
            raise Refused(503, f"full: {room.taken} {room.name} are under way; try again", RETRY_AFTER)
        room.take(1)
        try:
            yield
        finally:
            room.take(-1)

    async def answer(
        self, request: Request, check: Callable[[Upload], object], made: Callable[[Upload, Transcript, int], Response]
    ) -> Response:
        """Receive a recording, transcribe it, and make an answer of it.

        check: raises Refused, before the work, if it does not understand the form's fields.
        made: from the form, the transcript, and how many readings are wanted; in a thread, as it may take a while.
        Raises: Refused, also with what is wrong with the recording.
        """
        with self.admitted(self.recordings):
            try:
                with anyio.fail_after(self.config.timeout):
                    upload = await read_upload(request, self.config.upload_bytes)
                    with contextlib.closing(upload.file):
                        check(upload)
                        decoder, paths = await anyio.to_thread.run_sync(self.decoders.chosen, upload)
                        transcript = await self._transcript(request, upload, decoder)
                    return await anyio.to_thread.run_sync(made, upload, transcript, paths)
            except TimeoutError:
                raise Refused(504, f"not done within {self.config.timeout:g} s: send less, or try again later") from None
            except OSError as error:  # a full disk, or too many open files: recordings are files of no name
                tell(f"warning: a recording was refused: {message(error)}", error=True)
                raise Refused(503, "the server has no room to store a recording now: try again", RETRY_AFTER) from None

    async def _transcript(self, request: Request, upload: Upload, decoder: object) -> Transcript:
        pieces = self.recognizer.pieces(upload.file, longest=self.config.max_audio_seconds)
        try:
            job = self.batcher.submit(pieces, decoder)
        except Stopping:
            raise Refused(503, "the server is stopping: try again", RETRY_AFTER) from None
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
