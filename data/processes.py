"""What a process does that another one started and owns."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Let no process outlive the one that started it, even if that is killed without a chance to stop its children.

    A child of a dead training would hold its sockets open, and its peers would not learn of the death. Linux only.

    parent: its process number, which in a container may be 1, the one that adopts orphans.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1 != parent:  # it died before
            os._exit(1)


def leave_group() -> None:
    """Belong to the parent alone: what a terminal or a scheduler sends to the parent's process group does not come here."""
    os.setpgid(0, 0)
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    for number in held:  # to ignore a signal is to forget the one that came while it was held, and the process in the group
        signal.signal(number, signal.signal(number, signal.SIG_IGN))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


def cores() -> int:
    """How many cores this process may use, which a container or a batch system may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
