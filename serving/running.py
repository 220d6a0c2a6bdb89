"""From flags to a server that listens, in one process or several, and stops in order."""

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette

from asr.recognizer import Recognizer
from config import ServerConfig
from data.command_line import UsageError, run_script, tell
from data.processes import die_with_parent
from serving.app import create_app
from serving.batching import Fault
from serving.connections import HttpConnection, SocketConnection
from serving.metrics import SHARED_FOLDER
from serving.requests import ApiKeys
from serving.service import Service

LAST_REQUESTS = 0.5  # seconds from when no more connections are accepted until the silent ones are closed
KEEP_ALIVE = 10  # seconds
BACKLOG = 1024  # connections that wait to be accepted
MOST_MESSAGE = 2**20  # bytes of a WebSocket message
OPEN_FILES = 8192  # connections and recordings are some
GRACE_SECONDS = 5  # for a connection that is not done in time
RESTART_SECONDS = 1.0  # between the death of a worker and its heir, so that one that cannot start does not burn a core


class Server(uvicorn.Server):
    """uvicorn's, which answers also what was on its way when it was told to stop."""

    def __init__(self, app: Starlette):
        self.service: Service = app.state.service
        config = uvicorn.Config(
            app,
            http=HttpConnection,
            ws=SocketConnection,
            ws_max_size=MOST_MESSAGE,
            ws_per_message_deflate=False,  # samples do not shrink, and what does not has to be bounded
            ws_ping_interval=None,  # who is silent is closed anyway, and whose answer takes long is not
            lifespan="on",
            log_level="error",  # what clients do wrong, they are told
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=round(self.service.config.timeout) + GRACE_SECONDS,
        )
        super().__init__(config)
        self.service.connections = self.server_state.connections

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stopping.set()  # from now on answers say that the connection ends, and live ones are brought to theirs
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_REQUESTS)
        end = time.monotonic() + self.service.config.timeout
        while self.service.streams.taken and not self.force_exit and time.monotonic() < end:
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
    flags = {field.name: getattr(args, field.name) for field in dataclasses.fields(ServerConfig)}
    config = ServerConfig(**flags | {"allow_origin": tuple(args.allow_origin or ())})
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as for uvicorn's
    _allow_open_files()
    server = Server(create_app(recognizer, config, keys))
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


def _allow_open_files() -> None:
    """As many as connections may need: many systems allow a process 1024 unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
            _forget_worker(worker.pid)
            time.sleep(RESTART_SECONDS)
            workers[index] = start(index)
    listening.close()
    _stop(workers, args.timeout + 4 * GRACE_SECONDS)
    return status


def _stop(workers: Sequence[multiprocessing.Process], patience: float) -> None:
    """Let workers finish, for so many seconds."""
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGTERM)
    end = time.monotonic() + patience
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()


def _forget_worker(pid: int) -> None:
    """What a worker that was killed had under way is under way no more; what it had counted stays."""
    mark_process_dead(pid)
    for path in Path(os.environ[SHARED_FOLDER]).glob(f"*_{pid}.db"):
        if not path.stat().st_size:  # it was being made, and nobody could read it
            path.unlink()


def _worker(args: argparse.Namespace, index: int, listening: socket.socket) -> None:
    die_with_parent(multiprocessing.parent_process().pid)
    if args.cuda:  # it sees its own GPU alone; CUDA reads this when it is first used, which is later
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[index] if any(visible) else str(index)
    sys.exit(run_script(lambda: _work(args, ApiKeys(args.api_key_file), listening)))
