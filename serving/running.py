"""From flags to a server that listens, in one process or several, and stops in order."""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from asr.recognizer import Recognizer
from data.command_line import UsageError, run_script, tell
from data.processes import die_with_parent
from serving.app import Settings, create_app
from serving.batching import QueueLimits
from serving.requests import ApiKeys

HEADER_SECONDS = 20.0  # a client has for its request line and headers
KEEP_ALIVE = 10  # seconds
BACKLOG = 1024  # connections that wait to be accepted
CONNECTIONS = 1000  # at a time; more get 503
MOST_MESSAGE = 2**20  # bytes of a WebSocket message
RESTART_SECONDS = 1.0  # between the death of a worker and its heir, so that one that cannot start does not burn a core


class PatientOnlySoLong(H11Protocol):
    """Closes a connection that takes ages over its first request's headers, as one does that means to use them all up."""

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)
        self._headers_due = self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_due.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


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
    try:
        listening.bind((host, port))
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"--host {host} --port {port}") from None
    return listening


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _work(args: argparse.Namespace, keys: ApiKeys, listening: socket.socket) -> int:
    """One process: its model and its server."""
    recognizer = Recognizer.from_options(args)
    limits = QueueLimits(args.max_batch_size, args.max_wait_ms / 1000, args.max_queue, args.max_audio_seconds)
    upload_bytes = round(args.max_upload_mb * 2**20)
    settings = Settings(limits, upload_bytes, args.timeout, args.max_streams, keys, tuple(args.allow_origin))
    host, port = listening.getsockname()[:2]
    tell(f"{recognizer.name} at http://{f'[{host}]' if ':' in host else host}:{port}/")
    config = uvicorn.Config(
        create_app(recognizer, settings),
        http=PatientOnlySoLong,
        ws="websockets-sansio",
        ws_max_size=MOST_MESSAGE,
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(args.timeout) + 5,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    return 0


def _supervise(args: argparse.Namespace, listening: socket.socket) -> int:
    """Keep several workers running on one socket, each with a model of its own; a dead one is replaced."""
    context = multiprocessing.get_context("spawn")
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _: stopping.append(caught))

    def start(index: int) -> multiprocessing.Process:
        worker = context.Process(target=_worker, args=(args, index, listening), daemon=False)
        worker.start()
        return worker

    workers = [start(index) for index in range(args.workers)]
    failures = 0
    while not stopping and failures < args.workers:
        time.sleep(0.2)
        for index, worker in enumerate(workers):
            if not worker.is_alive() and not stopping:
                failures = failures + 1 if worker.exitcode > 0 else failures  # it said why, and would again
                tell(f"worker {index} ended with status {worker.exitcode}: starting another", error=True)
                time.sleep(RESTART_SECONDS)
                workers[index] = start(index)
    _stop(workers)
    return 1 if failures >= args.workers else 0


def _stop(workers: Sequence[multiprocessing.Process]) -> None:
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGTERM)
    for worker in workers:
        worker.join()


def _worker(args: argparse.Namespace, index: int, listening: socket.socket) -> None:
    die_with_parent()
    if args.cuda:
        torch.cuda.set_device(index)
    sys.exit(run_script(lambda: _work(args, ApiKeys(args.api_key_file), listening)))
