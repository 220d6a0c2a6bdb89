"""Ranks on PyTorch's elastic launcher: what becomes of them, where they write, and how machines meet."""

import argparse
import fcntl
import logging
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from torch.distributed import DistError, PrefixStore, TCPStore
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, PContext, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from asr.runtime import interruptible
from data.command_line import STATUS_FAILED, UsageError

STOP_SECONDS = 5  # after a death, from asking the others to stop to killing them
MEET_SECONDS = 600  # how long machines wait for each other
REPORTED_LINES = 10  # of a dead rank's output
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # are handed to every rank
INTERRUPTED = [128 + number for number in HANDLED]  # how a script ends that one of them has stopped
SIOCGIFADDR = 0x8915  # linux/sockios.h


def launch(args: argparse.Namespace, arguments: list[str], processes: int, folder: Path) -> int:
    """Run Python with these arguments on every rank, and say how it ended. Returns: the exit status.

    `args` are multiproc's flags; `folder` gets the ranks' logs.
    """
    if not os.environ.get("ASR_TRACEBACK"):  # elastic logs what it does itself; what becomes of the ranks is told below
        logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())
        logging.getLogger("torch.distributed.elastic").propagate = False
    deaths = replace_close(args.grace)
    endpoint = args.rdzv_endpoint or "localhost:0"
    try:
        machines = meet(args.nnodes, args.node_rank or 0, endpoint)
        rendezvous_handler_registry.register("machines", lambda _: machines)
        config = LaunchConfig(
            min_nodes=args.nnodes,
            max_nodes=args.nnodes,
            nproc_per_node=processes,
            max_restarts=args.max_restarts,
            run_id=machines.get_run_id(),
            rdzv_backend="machines",
            logs_specs=RankLogs(folder, args.max_restarts),
            # A signal that our caller ignores, as nohup does, stays ignored.
            signals_to_handle=",".join(s.name for s in HANDLED if signal.getsignal(s) is not signal.SIG_IGN),
        )
        elastic_launch(config, sys.executable)(*(word.replace("$", "$$") for word in arguments))  # $ means something to elastic
        return 0
    except SignalException as stopped:
        machines.shutdown()  # elastic leaves the other machines waiting
        return 128 + stopped.sigval
    except ChildFailedError:
        return deaths[-1] if deaths[-1] in INTERRUPTED else STATUS_FAILED
    except (RendezvousError, DistError) as error:
        if deaths and deaths[-1] in INTERRUPTED:
            return deaths[-1]
        reason = str(error.__cause__ or error).partition("\n")[0] or "another machine has stopped"
        raise RuntimeError(f"--rdzv-endpoint {endpoint}: the machines are not together: {reason}") from error


class Machines(DynamicRendezvousHandler):
    """The place where machines meet, also after a death: PyTorch's c10d rendezvous, and what that leaves open.

    Its static rendezvous keeps to --node-rank, but restarts only the machine whose rank died. This one restarts all of them,
    ranked by address: hence the rank here. And when a machine has stopped for good, the others are told.
    """

    node_rank, address = 0, ""  # of this machine, the address as the others reach it

    def get_backend(self) -> str:
        return "machines"

    def next_rendezvous(self) -> RendezvousInfo:
        info = super().next_rendezvous()
        if info.store.add(f"node rank {self.node_rank}", 1) > 1:
            raise UsageError(f"--node-rank {self.node_rank}: another machine has it too")
        # A store of its own for each start: in that of the last one, ranks would find the addresses of the dead.
        self.scripts_store = TCPStore(self.address, 0, is_master=True, wait_for_workers=False) if self.node_rank == 0 else None
        port = self.scripts_store.port if self.scripts_store else None
        told = RendezvousStoreInfo.build(self.node_rank, PrefixStore("scripts", info.store), self.address, port)
        return RendezvousInfo(info.store, self.node_rank, info.world_size, told)

    def num_nodes_waiting(self) -> int:
        if self.is_closed():
            raise RendezvousClosedError("another machine has stopped, and shows why")
        return super().num_nodes_waiting()


def meet(nnodes: int, node_rank: int, endpoint: str) -> Machines:
    """Bring the machines together. Raises: ValueError if the endpoint is nowhere."""
    host = endpoint.rpartition(":")[0] or endpoint
    address = address_towards(host)
    interface = interface_of(address)
    if nnodes > 1 and interface:  # gloo would take that of this machine's name, often the loopback
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if node_rank == 0:
        address = host  # as the others know it
    settings = {"is_host": node_rank == 0, "read_timeout": MEET_SECONDS}
    parameters = RendezvousParameters("c10d", endpoint, "multiproc", nnodes, nnodes, address, **settings)
    with interruptible():
        backend, store = create_backend(parameters)
        if node_rank == 0:
            store.set("run", f"{time.time_ns():x}")
        run_id = store.get("run").decode()  # one for each launch, the same on every machine
    machines = Machines.from_backend(run_id, store, backend, nnodes, nnodes, address)
    machines.node_rank, machines.address = node_rank, address
    return machines


def address_towards(host: str) -> str:
    """This machine's address on its way to another, because its name may mean 127.0.0.1 to itself. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise ValueError(f"--rdzv-endpoint {host}: {error.strerror}; expected machine 0 as the others reach it") from None
        return probe.getsockname()[0]


def interface_of(address: str) -> str | None:
    """The network interface that has an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


class RankLogs(LogsSpecs):
    """Where the ranks write: rank 0 to the terminal as if there were no launcher, the others to one file each."""

    def __init__(self, folder: Path, max_restarts: int):
        super().__init__(log_dir=str(folder))
        self.folder, self.max_restarts, self.starts = folder, max_restarts, 0

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        if self.starts:
            print(f"restart {self.starts} of {self.max_restarts}", file=sys.stderr)
        suffix = f"-restart{self.starts}" if self.starts else ""
        files = {}
        for local_rank, env in envs.items():
            # elastic counts only the deaths on this machine, but all machines start together
            env["TORCHELASTIC_RESTART_COUNT"] = str(self.starts)
            files[local_rank] = "" if env["RANK"] == "0" else str(self.folder / f"rank{env['RANK']}{suffix}.log")
            env["MULTIPROC_LOG"] = files[local_rank]
        self.starts += 1
        return LogsDest(files, dict.fromkeys(envs, ""), error_files=dict.fromkeys(envs, os.devnull))


def replace_close(grace: float) -> list[int]:
    """Stop ranks our way, for elastic has no setting: soon after a death, with patience after a signal, at once after two.

    Returns: the list that will hold the statuses of ranks that died by themselves, in order.
    """
    deaths, stopping = [], set()

    def close(ranks: SubprocessContext, death_sig: signal.Signals | None = None, timeout: int = 0) -> None:
        signalled, again = isinstance(sys.exc_info()[1], SignalException), ranks in stopping
        stopping.add(ranks)
        statuses = {local: started.proc.returncode for local, started in ranks.subprocess_handlers.items()}
        running = [local for local, status in statuses.items() if status is None]
        # Those that a death leaves behind wait for the dead one, and have nothing to finish.
        died = any(status not in (None, 0, *INTERRUPTED) for status in statuses.values())
        PContext.close(ranks, signal.SIGKILL if again or died else death_sig, grace if signalled else STOP_SECONDS)
        for local, started in ranks.subprocess_handlers.items():
            status, rank = started.proc.returncode, ranks.envs[local]["RANK"]
            if signalled and not again and local in running and status == -signal.SIGKILL:
                print(f"rank {rank} did not stop within {grace} s and was killed", file=sys.stderr)
            if status and local not in running and not again:
                deaths.append(status)
                if status not in INTERRUPTED:
                    report(rank, status, ranks.stdouts[local])

    SubprocessContext.close = close
    return deaths


def report(rank: str, status: int, log: str) -> None:
    how = f"exited with status {status}" if status > 0 else f"was killed by {signal.Signals(-status).name}"
    if not log:
        print(f"error: rank {rank} {how}; all processes are stopped", file=sys.stderr)
        return
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 100_000))
        lines = file.read().decode(errors="replace").splitlines()[-REPORTED_LINES:]
    print(f"error: rank {rank} {how}; all processes are stopped. {log} ends:", *lines, sep="\n    ", file=sys.stderr)
