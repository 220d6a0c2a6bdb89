"""transcribe.py --stream: a pipe of samples on one side, lines of text that firm up on the other."""

import json
import os
import select
import shutil
import sys
from collections.abc import Iterator
from typing import BinaryIO, TextIO

import numpy as np

from asr.interruption import Interruption
from asr.recognizer import Recognizer
from asr.streaming import PAUSE_SECONDS, Final, LiveTranscriber, Partial, event_json, follows_streams
from asr.subtitles import shown_width
from data.audio import audio_blocks
from data.command_line import UsageError
from data.pcm import PcmStream

PIPE_BYTES = 2**16  # are read at a time, at most: what a pipe holds
GLANCE_SECONDS = 0.2  # how often is looked whether somebody wants it to end, while nothing comes


def transcribe_live(
    recognizer: Recognizer,
    source: BinaryIO | str,
    rate: int | None = None,
    pause: float = PAUSE_SECONDS,
    as_json: bool = False,
    partials: bool = False,
    output: TextIO | None = None,
    name: str = "standard input",
) -> None:
    """Print what is said on a pipe of 16-bit PCM or WAV as it comes, until it ends or somebody presses Ctrl-C.

    source: a pipe, or the path of a recording of any format, which is heard in the same way. rate: Hz of plain PCM, if not the
    model's. pause: seconds without speech that make a text final. Partial texts are shown on a terminal, and with `partials`
    everywhere; a line of JSON for each event with `as_json`. Output is standard output.

    Raises: UsageError if nothing is piped; ValueError with `name` if what comes is not such samples, too few of them, or ends
        within one, once all the others are transcribed; ValueError naming the model if it cannot follow a stream.
    """
    is_file = isinstance(source, str)
    if not is_file and source.isatty():
        raise UsageError("--stream: expected samples on a pipe, as from: arecord -f S16_LE -r 16000 -t raw |")
    output = sys.stdout if output is None else output
    partials = partials or output.isatty()
    live = LiveTranscriber(recognizer, pause, partials=partials)
    if not follows_streams(recognizer):
        note = "was trained without --streaming-norm, which is how live speech is normalised: expect more errors"
        print(f"{recognizer.name}: {note}", file=sys.stderr)
    page = _JsonLines(output) if as_json else _Lines(output)
    samples = PcmStream(recognizer.audio.sample_rate, rate)
    try:
        with Interruption(aloud=False) as interruption:
            for wave in _recorded(source, recognizer, interruption) if is_file else _arriving(source, samples, interruption):
                page.show(live.feed(wave))
            page.show(live.finish())
            if samples.odd_bytes and not interruption.signal:
                raise ValueError(f"ends within a sample, {samples.odd_bytes} bytes too long: is it really 16-bit PCM?")
    except ValueError as error:
        page.leave()
        told = str(error)
        raise ValueError(told if is_file and told.startswith(f"{source}: ") else f"{name}: {told}") from None


def _recorded(path: str, recognizer: Recognizer, interruption: Interruption) -> Iterator[np.ndarray]:
    """A recording, in pieces so short that a terminal shows its text as if it were live."""
    for block in audio_blocks(path, recognizer.audio.sample_rate, seconds=GLANCE_SECONDS):
        if interruption.signal:
            return
        yield block


def _arriving(pipe: BinaryIO, samples: PcmStream, interruption: Interruption) -> Iterator[np.ndarray]:
    """What a pipe brings, as soon as it does."""
    while not interruption.signal:
        if not select.select([pipe], [], [], GLANCE_SECONDS)[0]:
            continue
        content = os.read(pipe.fileno(), PIPE_BYTES)
        if not content:
            break
        yield samples.feed(content)
    yield samples.finish()


class _Lines:
    """A line for each final text. On a terminal, the last line is what may have been said since, and is written over."""

    def __init__(self, output: TextIO):
        self._output, self._rewrites = output, output.isatty()
        self._width = 0  # columns of the line that will be written over

    def show(self, events: list[Partial | Final]) -> None:
        for event in events:
            if isinstance(event, Final):
                self._write(event.text, "\n")
                self._width = 0
            elif self._rewrites:
                self._write(_last_columns(event.text, shutil.get_terminal_size().columns - 1), "")
            else:
                self._write(f"... {event.text}", "\n")

    def leave(self) -> None:
        """Let what follows begin on a line of its own."""
        if self._width:
            self._write("", "")
            print("\r", end="", file=self._output, flush=True)

    def _write(self, text: str, end: str) -> None:
        width = shown_width(text)
        if self._rewrites:
            text = f"\r{text}{' ' * (self._width - width)}"
            self._width = width
        print(text, end=end, file=self._output, flush=True)


class _JsonLines:
    """A line of JSON for each event; times in seconds."""

    def __init__(self, output: TextIO):
        self._output = output

    def show(self, events: list[Partial | Final]) -> None:
        for event in events:
            print(json.dumps(event_json(event), ensure_ascii=False), file=self._output, flush=True)

    def leave(self) -> None:
        pass


def _last_columns(text: str, columns: int) -> str:
    """The end of a text, where something new may be, as far as there is room."""
    while shown_width(text) > columns:
        text = text[1:]
    return text
