"""Ctrl-C, SIGTERM and a closed terminal, held until the step at hand is finished."""

import contextlib
import os
import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """Somebody wants the run to end; `signal` is the signal that said so."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number

    @property
    def status(self) -> int:
        """The exit status a shell gives to what a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


class Interruption:
    """While this is entered, a signal to end is only remembered, for the run to look at between two steps.

    A second Ctrl-C ends at once, as an impatient person means it. A signal that was ignored before stays so (nohup).
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, aloud: bool = True) -> None:
        self.aloud = aloud
        self.signal = 0  # the first that came; 0: none
        self._impatient = False  # the next Ctrl-C is the second
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # only there can a handler be set
            for number in self.SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._impatient:
            raise KeyboardInterrupt
        self._impatient |= number == signal.SIGINT
        if self.signal:
            return
        self.signal = number
        hint = "; Ctrl-C again to stop at once, without one" if number == signal.SIGINT else ""
        begin = "\n" if os.isatty(2) else ""  # behind the terminal's ^C
        if self.aloud:
            # Not by print(), which may be at work in what was interrupted. Who would read it may have got the signal too.
            with contextlib.suppress(OSError):
                os.write(2, f"{begin}finishing the step, then writing a checkpoint{hint}\n".encode())
