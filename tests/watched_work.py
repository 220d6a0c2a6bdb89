"""Work for a watched process to do. Without torch, which would take longer to import than the work takes."""

import os
import signal
import time

from data.command_line import UsageError


def tells_and_fails(tell, argument):
    tell(argument)
    if argument == "usage":
        raise UsageError("--flag: wrong")
    if argument == "out of memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if argument == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if argument == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if argument == "grows":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(2**22)))
    if argument == "stays":
        tell(os.getpid())
        time.sleep(600)
