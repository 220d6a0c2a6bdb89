"""From flags to a server that listens, in one process or several, and stops in order."""

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import h11
import torch
import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from asr.recognizer import Recognizer
from data.command_line import UsageError, run_script, tell
from data.processes import die_with_parent
from serving.app import Service, Settings, create_app
from serving.batching import Fault, QueueLimits
from serving.metrics import SHARED_FOLDER
from serving.requests import ApiKeys

HEADER_SECONDS = 20.0  # a client has for its request line and headers
UNWANTED_SECONDS = 5.0  # for the rest of a body, once the answer is given: so long because who is cut off may not read it
LAST_REQUESTS = 0.5  # seconds from when no more connections are accepted until the silent ones are closed
KEEP_ALIVE = 10  # seconds
BACKLOG = 1024  # connections that wait to be accepted
CONNECTIONS = 1000  # at a time; more get 503
MOST_MESSAGE = 2**20  # bytes of a WebSocket message
RESTART_SECONDS = 1.0  # between the death of a worker and its heir, so that one that cannot start does not burn a core


class Connection(H11Protocol):
    """Closes connections of those who mean to use them all up: by headers, or by what follows a refusal, that take ages."""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # this is the answer to the request under way
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # it has been answered, and goes on with nonsense
            self.transport.close()

    def _watch(self) -> None:
        """Give a client time for its headers, and for the rest of a body that nobody wants any more, but not for ever."""
        headers = self.conn.their_state is h11.IDLE
        unwanted = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if not headers and not unwanted:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS if headers else UNWANTED_SECONDS, self.transport.close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """uvicorn's, which answers also what was on its way when it was told to stop."""

    def __init__(self, app: Starlette):
        self.service: Service = app.state.service
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="websockets-sansio",
            ws_max_size=MOST_MESSAGE,
            ws_ping_interval=None,  # who is silent is closed anyway, and whose answer takes long is not
            lifespan="on",
            log_level="error",  # what clients do wrong, they are told
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=round(self.service.settings.timeout) + 5,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stopping.set()  # from now on answers say that the connection ends, and live ones are brought to theirs
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_REQUESTS)
        while self.service.streams.taken and not self.force_exit:
            await asyncio.sleep(0.1)
        await super().shutdown(sockets)


def run_server(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; what was accepted until then is answered. Returns: the exit status.

    Raises: UsageError, OSError, ValueError about flags, the address, the keys or the model.
    """
    keys = ApiKeys(args.api_key_file)
    listening = _listen(args.host, args.port)
    if not keys.needed and not _loopback(args.host):
        tell("warning: anybody who reaches this address may use the server; --api-key-file FILE asks for a key", error=True)
    if args.workers == 1:
        return _work(args, keys, listening)
    if args.cuda and args.workers > torch.cuda.device_count():
        raise UsageError(f"--workers {args.workers} --cuda: this machine has {torch.cuda.device_count()} CUDA devices")
    return _supervise(args, listening)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _naming_address(host, port):
        listening.bind((host, port))
    return listening


@contextlib.contextmanager
def _naming_address(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"--host {host} --port {port}") from None


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _work(args: argparse.Namespace, keys: ApiKeys, listening: socket.socket) -> int:
    """One process: its model and its server."""
    recognizer = Recognizer.from_options(args)
    limits = QueueLimits(args.max_batch_size, args.max_wait_ms / 1000, args.max_queue)
    upload_bytes = round(args.max_upload_mb * 2**20)
    origins = tuple(args.allow_origin)
    settings = Settings(limits, upload_bytes, args.max_audio_seconds, args.timeout, args.max_streams, keys, origins)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as for uvicorn's
    server = Server(create_app(recognizer, settings))
    try:
        server.service.warm()
    except Fault as fault:
        raise ValueError(f"{args.model_path}: {fault}") from None
    for number in (signal.SIGTERM, signal.SIGINT):  # until uvicorn looks after them, and when it raises them again at its end
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    with _naming_address(args.host, args.port):
        listening.listen(BACKLOG)
    host, port = listening.getsockname()[:2]
    tell(f"{recognizer.name} at http://{f'[{host}]' if ':' in host else host}:{port}/")
    server.run(sockets=[listening])
    return 0


def _supervise(args: argparse.Namespace, listening: socket.socket) -> int:
    """Several workers on one socket, each with a model of its own, that count together."""
    with tempfile.TemporaryDirectory(prefix="asr-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        return _keep_running(args, listening)


def _keep_running(args: argparse.Namespace, listening: socket.socket) -> int:
    """Workers until they shall stop; one that is killed is replaced."""
    context = multiprocessing.get_context("spawn")
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _: stopping.append(caught))

    def start(index: int) -> multiprocessing.Process:
        worker = context.Process(target=_worker, args=(args, index, listening), daemon=False)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the worker inherits it: a terminal's Ctrl-C is for us
        worker.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return worker

    workers = [start(index) for index in range(args.workers)]
    status = 0
    while not stopping and not status:
        time.sleep(0.2)
        for index, worker in enumerate(workers):
            if worker.is_alive() or stopping:
                continue
            if worker.exitcode > 0:  # it has said why, and another one would say the same
                status = worker.exitcode
                break
            tell(f"worker {index} ended with status {worker.exitcode}: starting another", error=True)
            mark_process_dead(worker.pid)
            time.sleep(RESTART_SECONDS)
            workers[index] = start(index)
    listening.close()
    _stop(workers)
    return status


def _stop(workers: Sequence[multiprocessing.Process]) -> None:
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGTERM)
    for worker in workers:
        worker.join()


def _worker(args: argparse.Namespace, index: int, listening: socket.socket) -> None:
    die_with_parent(multiprocessing.parent_process().pid)
    if args.cuda:  # it sees its own GPU alone; CUDA reads this when it is first used, which is later
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[index] if any(visible) else str(index)
    sys.exit(run_script(lambda: _work(args, ApiKeys(args.api_key_file), listening)))
