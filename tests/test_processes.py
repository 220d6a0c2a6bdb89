"""Processes that others own."""

import subprocess
import sys

from beeps import ROOT

LEAVES = """
import os, signal
from data.processes import leave_group
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.read(reading, 1)
    leave_group()
    os._exit(7)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    os.kill(child, number)
os.write(writing, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_signal_to_the_group_that_came_before_leaving_it_is_forgotten():
    done = subprocess.run([sys.executable, "-c", LEAVES], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("7\n", "")
