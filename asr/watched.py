"""Work in a process of its own, watched for its memory: what is too large for a machine is an answer, not a dead shell.

Only the standard library is used here, so that the process that watches takes next to nothing from the one that works.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from data.command_line import UsageError, message

POLL_SECONDS = 0.05
RESERVE = 2**28  # bytes that the machine keeps: more than a process can fill between two looks
PAGE = os.sysconf("SC_PAGE_SIZE")
# How allocators say it in errors that have no type of their own: torch on a CPU, CUDA itself, cuDNN and cuBLAS.
SIGNS_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


class TooLarge(Exception):
    """The work needs more than `held` bytes (None: than whatever there was); `how` that was found, in words."""

    def __init__(self, held: int | None, how: str = "") -> None:
        super().__init__(held, how)  # what pickling hands back to this function
        self.held, self.how = held, how


def watched(work: Callable[[Callable, object], None], argument: object, limit: int | None = None) -> Iterator[object]:
    """Run `work(tell, argument)` in a new process, and yield what it tells. Closing the iterator ends the process.

    `limit`: bytes of memory the process may have, besides what the machine or its control group can give.
    Raises: TooLarge; UsageError or RuntimeError with the message of what the work raised.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, argument, sending), daemon=True)
    with _ignored_by_children(signal.SIGINT):
        process.start()
    sending.close()
    held = 0
    try:
        while True:
            if wait([receiving], POLL_SECONDS):
                try:
                    told = receiving.recv()
                except EOFError:
                    break
                if isinstance(told, Exception):
                    raise told
                yield told
            held = resident_memory(process.pid) or held
            if limit is not None and held > limit:
                raise TooLarge(limit, "--memory-limit")
            room = available_memory()
            if room is not None and room < RESERVE:
                raise TooLarge(held, "there is no more")
        process.join()
    finally:
        process.kill()
        process.join()
        receiving.close()
    if process.exitcode == -signal.SIGKILL:
        raise TooLarge(held, "the system ended it")
    if process.exitcode:
        raise RuntimeError(f"the process that trains ended with status {process.exitcode}")


def _run(work: Callable[[Callable, object], None], argument: object, sending: Connection) -> None:
    """What the new process does: the work, whatever comes of it told to its parent, and never alive without one."""
    with contextlib.suppress(OSError):  # if the system must end a process for its memory, then this one
        Path("/proc/self/oom_score_adj").write_text("1000")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(sending.send, argument)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:  # what run_script turns into one line
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS_OF_MEMORY):
            sending.send(TooLarge(None))
            return
        if os.environ.get("ASR_TRACEBACK"):
            traceback.print_exc()
        sending.send(UsageError(str(error)) if isinstance(error, UsageError) else RuntimeError(message(error)))


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextlib.contextmanager
def _ignored_by_children(number: signal.Signals) -> Iterator[None]:
    """Let processes started meanwhile ignore a signal from their first moment on: Ctrl-C is the parent's to act on."""
    handler = signal.getsignal(number)
    signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, handler)


def resident_memory(pid: int) -> int | None:
    """Bytes of memory a process has now; None where the system does not tell, or the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return None


def peak_resident_memory() -> int:
    """The most bytes of memory this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts in what the process was before it became Python
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that processes here can still take: what the machine has left, or a control group (container), if that is less.

    None where the system does not tell, which is anything but Linux.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([machine, *_room_in_groups(proc, cgroups)])


def _room_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group of this process, from the innermost to the outermost, has left: version 2, or 1."""
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, names = cgroups, ("memory.max", "memory.current", "inactive_file ")
            elif "memory" in controllers.split(","):
                root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            else:
                continue
            folder = root / path.lstrip("/")
            for group in [folder, *folder.parents]:
                yield from _room_in_group(group, *names)
                if group == root:
                    break


def _room_in_group(group: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    """Nothing if the group has no limit, or its folder is not to be seen from within the container."""
    try:
        limit = (group / limit_name).read_text().strip()
        if limit == "max":
            return
        used = int((group / usage_name).read_text())
        statistics = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return
    # Files read long ago are given up before anything runs out.
    used -= sum(int(line.split()[1]) for line in statistics if line.startswith(cache_name))
    yield int(limit) - used
