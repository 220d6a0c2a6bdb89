"""Make a spoken corpus without downloading one: numbers and spelled letters, said by the eSpeak NG synthesizer.

    python data/synthetic.py --target-dir demo/corpus --utterances 2000 --seed 1

writes `train/` and `val/` with a recording and a transcript per utterance, `train_manifest.csv` and `val_manifest.csv`,
shortest utterance first, and `corpus.json`, which says how they were made. Validation has speakers that training
never hears. The same arguments give the same bytes on the same machine, in any folder and with any `--jobs`; run again,
they find the corpus there, or finish the one that an interruption left behind.

The synthesizer comes from `pip install espeakng-loader`, which is under the GPL-3 and needed by nothing else here.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Before numpy comes in: its linear algebra would start threads, and a process that forks must have one only.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if not __package__:
        sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run as a file: find `config` and `data`

import argparse
import ctypes
import json
import math
import multiprocessing
import random
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from multiprocessing.connection import Connection

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from config import AudioConfig
from data.command_line import argument_parser, number, run_script
from data.files import whole_file
from data.manifest import sort_by_duration, write_manifest
from data.utterances import Utterance

FORMATS = ("wav", "flac")
RECIPE = 1  # raise it when the same arguments no longer give the same corpus

# A speaker is one of eSpeak's variants, and speaks in every accent; accent+speaker is a voice. Chosen by
# measurement: no two have the same pitch and spectrum, none distorts, and a network that never heard them understands
# them (variants such as david, steph and marcelo, of which it misses more than half the words, are left out).
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan")
TRAIN_SPEAKERS = ("m1", "m2", "m3", "m5", "m7", "f1", "f2", "f4", "f5", "Alex", "Annie", "belinda", "michel", "robert")
VAL_SPEAKERS = ("m4", "m6", "f3", "linda")

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
TEENS = (
    *("TEN", "ELEVEN", "TWELVE", "THIRTEEN", "FOURTEEN"),
    *("FIFTEEN", "SIXTEEN", "SEVENTEEN", "EIGHTEEN", "NINETEEN"),
)
TENS = ("TWENTY", "THIRTY", "FORTY", "FIFTY", "SIXTY", "SEVENTY", "EIGHTY", "NINETY")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
# Between other words eSpeak takes these two for the article and the pronoun, and hardly says them.
SPELLINGS = {"A": "eh", "I": "eye"}


@dataclass(frozen=True)
class Line:
    """What is said in one utterance, by whom and how: everything that its recording follows from."""

    name: str  # folder and file, without the ending
    text: str
    voice: str
    speed: int  # words per minute
    pitch: int  # 0 to 100; 50 is the voice's own
    word_gap: int  # units of 10 ms at the default speed
    seed: int  # of the synthesizer's breath noise
    lead: float  # seconds of silence before the first sound
    tail: float  # seconds of silence after the last
    peak: float  # of the recording, as a share of full scale


# What is said.


def plan(utterances: int, seed: int, val_share: float) -> list[Line]:
    """Decide every utterance of a corpus; each follows from seed and number only, so a longer corpus starts the same.

    Returns: `utterances` lines, of which ceil(utterances * val_share) are for validation, spread evenly.
    """
    share = Fraction(str(val_share))  # exact: as a float, 0.1 * 30 is more than 3
    lines = []
    for index in range(utterances):
        is_val = math.ceil((index + 1) * share) > math.ceil(index * share)
        lines.append(_line(index, random.Random(f"{seed}/{index}"), is_val))
    return lines


def _line(number: int, rng: random.Random, is_val: bool) -> Line:
    accent = rng.choice(ACCENTS)
    speaker = rng.choice(VAL_SPEAKERS if is_val else TRAIN_SPEAKERS)
    return Line(
        name=f"{'val' if is_val else 'train'}/{number:06d}_{accent}_{speaker}",
        text=" ".join(rng.choice((_digits, _number, _letters, _mixture))(rng)),
        voice=f"{accent}+{speaker}",
        speed=rng.randint(150, 190),
        pitch=rng.randint(40, 60),
        word_gap=rng.randint(1, 4),
        seed=rng.getrandbits(31),
        lead=rng.uniform(0.05, 0.15),
        tail=rng.uniform(0.05, 0.15),
        peak=rng.uniform(0.3, 0.9),
    )


def _digits(rng: random.Random) -> list[str]:
    # ZERO is never OH, which nobody can tell from the letter
    return [rng.choice(DIGITS) for _ in range(rng.randint(1, 7))]


def _number(rng: random.Random) -> list[str]:
    # as many from 10 to 19 as of each other size, or their names would be too rare to be learned
    first, beyond = rng.choice(((10, 20), (20, 100), (100, 1000), (1000, 10000)))
    return number_words(rng.randrange(first, beyond))


def _letters(rng: random.Random) -> list[str]:
    return [rng.choice(LETTERS) for _ in range(rng.randint(1, 6))]


def _mixture(rng: random.Random) -> list[str]:
    letters = [rng.choice(LETTERS) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        number = number_words(rng.randrange(*rng.choice(((10, 20), (20, 100), (100, 1000)))))
    else:
        number = [rng.choice(DIGITS) for _ in range(rng.randint(1, 3))]
    return letters + number if rng.random() < 0.7 else number + letters


def number_words(number: int) -> list[str]:
    """A number from 0 to 9999 in words, without "and": 916 is NINE HUNDRED SIXTEEN."""
    words = []
    for size, name in ((1000, "THOUSAND"), (100, "HUNDRED")):
        if number >= size:
            words += [DIGITS[number // size], name]
            number %= size
            if number == 0:
                return words
    if number >= 20:
        words.append(TENS[number // 10 - 2])
        number %= 10
        if number == 0:
            return words
    return [*words, (DIGITS + TEENS)[number]]


def spoken_text(text: str) -> str:
    """A transcript as eSpeak has to read it to say each word of it clearly."""
    return " ".join(SPELLINGS.get(word, word if len(word) == 1 else word.lower()) for word in text.split())


# Speech.


class Espeak:
    """The eSpeak NG library, as far as it is needed: text to 16-bit samples at its own rate."""

    SYNCHRONOUS = 2  # no playback, and no thread of its own: it can be forked
    DONT_EXIT = 0x8000
    CHARS_UTF8 = 1
    BY_CHARACTER = 1
    SPEED, VOLUME, PITCH, WORD_GAP = 1, 2, 3, 7  # its numbers for these settings
    HALF_VOLUME = 50  # some voices distort at 100

    def __init__(self) -> None:
        """Raises: ValueError if the library is not installed or does not start, with what to do."""
        try:
            import espeakng_loader  # optional: only who makes speech needs it
        except ImportError as error:
            raise ValueError("the speech synthesizer is missing: pip install espeakng-loader") from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._declare()
        data_path = espeakng_loader.get_data_path()
        self.sample_rate: int = self._library.espeak_Initialize(self.SYNCHRONOUS, 0, os.fsencode(data_path), self.DONT_EXIT)
        if self.sample_rate <= 0:
            raise ValueError(
                f"{data_path}: eSpeak NG does not start with this data: pip install --force-reinstall espeakng-loader"
            )
        self._library.espeak_ListVoices(None)  # read them all now, else each forked process would
        self._pcm = bytearray()
        self._callback = self._callback_type(self._collect)  # kept: the library calls it later
        self._library.espeak_SetSynthCallback(self._callback)

    def _declare(self) -> None:
        c_int, c_char_p, c_void_p, c_uint = ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint
        self._callback_type = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_void_p)
        self._library.espeak_Initialize.argtypes = [c_int, c_int, c_char_p, c_int]
        self._library.espeak_SetSynthCallback.argtypes = [self._callback_type]
        self._library.espeak_ListVoices.argtypes = [c_void_p]
        self._library.espeak_SetVoiceByName.argtypes = [c_char_p]
        self._library.espeak_SetParameter.argtypes = [c_int, c_int, c_int]
        self._library.espeak_Synth.argtypes = [
            *(c_char_p, ctypes.c_size_t, c_uint, c_int, c_uint, c_uint),
            *(c_void_p, c_void_p),
        ]
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]

    def _collect(self, samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._pcm += ctypes.string_at(samples, 2 * count)
        return 0  # go on

    def speak(self, line: Line) -> bytes:
        """Say a line, once per process: what the library said before would change what it says next.

        Returns: native 16-bit samples at `sample_rate`; none if the voice does not exist or nothing was said.
        """
        self._library.espeak_ng_SetRandSeed(line.seed)
        if self._library.espeak_SetVoiceByName(line.voice.encode()) != 0:
            return b""
        for setting, value in (
            (self.SPEED, line.speed),
            (self.VOLUME, self.HALF_VOLUME),
            (self.PITCH, line.pitch),
            (self.WORD_GAP, line.word_gap),
        ):
            self._library.espeak_SetParameter(setting, value, 0)
        text = spoken_text(line.text).encode() + b"\0"
        self._pcm.clear()
        self._library.espeak_Synth(text, len(text), 0, self.BY_CHARACTER, 0, self.CHARS_UTF8, None, None)
        return bytes(self._pcm)


class Saying:
    """A forked process that says one line, because only a fresh copy of the library says it the same every time."""

    def __init__(self, espeak: Espeak, line: Line) -> None:
        self._line = line
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_say, args=(espeak, line, sender), daemon=True)
        # The child inherits the blocked Ctrl-C and so never sees it: it is for the parent to act on.
        blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        sender.close()  # so that the receiver sees the end when the child dies

    def result(self) -> bytes:
        """Wait for the samples. Raises: ValueError if there are none."""
        try:
            pcm = self._receiver.recv_bytes()
        except EOFError:  # it died
            pcm = b""
        self._process.join()
        if not pcm:
            raise ValueError(
                f"eSpeak NG said nothing for {self._line.text!r} in the voice {self._line.voice} (its process ended "
                f"with status {self._process.exitcode}): pip install --force-reinstall espeakng-loader"
            )
        return pcm

    def close(self) -> None:
        """End the process if it still runs, and give back what it took."""
        self._process.terminate()
        self._process.join()
        self._process.close()
        self._receiver.close()


def _say(espeak: Espeak, line: Line, sender: Connection) -> None:
    sender.send_bytes(espeak.speak(line))


def say_all(espeak: Espeak, lines: Iterable[Line], jobs: int) -> Iterator[tuple[Line, bytes]]:
    """Say lines in `jobs` processes at a time. Close the generator to end those that run.

    Returns: each line with its samples (`Espeak.speak`), in the order of the lines.
    """
    running: deque[tuple[Line, Saying]] = deque()

    def next_result() -> tuple[Line, bytes]:
        line, saying = running[0]
        pcm = saying.result()
        running.popleft()
        saying.close()
        return line, pcm

    try:
        for line in lines:
            if len(running) == jobs:
                yield next_result()
            running.append((line, Saying(espeak, line)))
        while running:
            yield next_result()
    finally:
        for _, saying in running:
            saying.close()


def recording(pcm: bytes, pcm_rate: int, line: Line, sample_rate: int) -> np.ndarray:
    """Make a recording of what the synthesizer said: the line's silence around it, the line's level, the corpus's rate.

    Returns: (S,) int16, S samples at `sample_rate` Hz.
    Raises: ValueError if it is silent.
    """
    wave_S = np.frombuffer(pcm, dtype=np.int16).astype(np.float32)
    sounding = np.flatnonzero(np.abs(wave_S) >= 1)  # eSpeak's silence is all zeros
    if len(sounding) == 0:
        raise ValueError(f"{line.name}: the voice {line.voice} is silent on {line.text!r}: leave it out of the speakers")
    wave_S = wave_S[sounding[0] : sounding[-1] + 1]
    wave_S = np.pad(wave_S, (round(line.lead * pcm_rate), round(line.tail * pcm_rate)))
    wave_S = soxr.resample(wave_S, pcm_rate, sample_rate)
    wave_S *= line.peak * 32767 / np.abs(wave_S).max()
    return np.rint(wave_S).astype(np.int16)


# Files.


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies, and the settings that every byte of it follows from."""

    target_dir: Path
    utterances: int
    seed: int
    val_share: float
    sample_rate: int
    format: str

    def settings(self) -> dict[str, object]:
        """What `corpus.json` says, and what has to be the same for a corpus to be taken up again."""
        settings = {name: value for name, value in asdict(self).items() if name != "target_dir"}
        speakers = {"train_speakers": list(TRAIN_SPEAKERS), "val_speakers": list(VAL_SPEAKERS)}
        return {"made_by": "data/synthetic.py", "recipe": RECIPE, **settings, "accents": list(ACCENTS), **speakers}

    @property
    def settings_path(self) -> Path:
        return self.target_dir / "corpus.json"

    @property
    def manifest_paths(self) -> dict[str, Path]:
        return {split: self.target_dir / f"{split}_manifest.csv" for split in ("train", "val")}

    def audio_path(self, line: Line) -> Path:
        return self.target_dir / f"{line.name}.{self.format}"

    def text_path(self, line: Line) -> Path:
        return self.target_dir / f"{line.name}.txt"

    def has(self, line: Line) -> bool:
        """Whether an utterance is there; both its files were renamed to their names when they were whole."""
        try:
            return self.audio_path(line).is_file() and self.text_path(line).read_text() == line.text + "\n"
        except FileNotFoundError:
            return False

    def open(self) -> None:
        """Make or take up the folder. Raises: ValueError, naming the file, if it belongs to something else; OSError."""
        self.target_dir.mkdir(parents=True, exist_ok=True)
        if self.settings_path.exists():
            found = _read_settings(self.settings_path)
            for name, wanted in self.settings().items():
                if found.get(name) != wanted:
                    raise ValueError(
                        f"{self.settings_path}: the corpus there has {name} {found.get(name)!r}, not {wanted!r}: give "
                        "the arguments it was made with, or another --target-dir, or delete the folder"
                    )
            return
        for path in self.manifest_paths.values():
            if path.exists():
                raise ValueError(f"{path}: a manifest of another corpus is in the way: give another --target-dir")
        with whole_file(self.settings_path) as path:
            path.write_text(json.dumps(self.settings(), indent=2) + "\n")

    def add(self, line: Line, samples: np.ndarray) -> None:
        """Write one utterance; samples (S,) int16."""
        self.audio_path(line).parent.mkdir(exist_ok=True)
        with whole_file(self.text_path(line)) as path:
            path.write_text(line.text + "\n")
        with whole_file(self.audio_path(line)) as path:
            soundfile.write(path, samples, self.sample_rate, format=self.format.upper(), subtype="PCM_16")

    def finish(self, lines: Iterable[Line]) -> float:
        """Write the manifests, once every utterance is there. Returns: hours of speech. Raises: ValueError, OSError."""
        splits: dict[str, list[Utterance]] = {split: [] for split in self.manifest_paths}
        for line in lines:
            audio_path = self.audio_path(line)
            utterance = Utterance(str(audio_path), text_path=str(self.text_path(line)), duration=_duration(audio_path))
            splits[line.name.partition("/")[0]].append(utterance)
        for split, path in self.manifest_paths.items():
            if not path.exists():
                write_manifest(path, sort_by_duration(splits[split]))
        return sum(utterance.duration for utterances in splits.values() for utterance in utterances) / 3600


def _read_settings(path: Path) -> dict[str, object]:
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): delete it, or give another --target-dir") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not the settings of a corpus: delete it, or give another --target-dir")
    return settings


def _duration(path: Path) -> float:
    """Seconds, by the file's header."""
    try:
        return soundfile.info(path).duration
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a recording ({error}): delete it and run the command again") from error


# The command.


class Progress(tqdm):
    """tqdm without its watching thread: a process that forks must not have a second thread."""

    monitor_interval = 0


def make_corpus(corpus: Corpus, jobs: int) -> str:
    """Make what is missing of a corpus in `jobs` processes at a time. Returns: one line that says what is there.

    Raises: ValueError, OSError with what stands in the way.
    """
    corpus.open()
    lines = plan(corpus.utterances, corpus.seed, corpus.val_share)
    missing = [line for line in lines if not corpus.has(line)]
    is_new = bool(missing) or not all(path.exists() for path in corpus.manifest_paths.values())
    if missing:
        for path in corpus.manifest_paths.values():
            path.unlink(missing_ok=True)  # it names what is missing
        _add_missing(corpus, missing, len(lines), jobs)
    hours = corpus.finish(lines)
    return _summary(corpus, lines, hours, "made" if is_new else "reusing")


def _add_missing(corpus: Corpus, missing: list[Line], total: int, jobs: int) -> None:
    if not hasattr(os, "fork"):
        raise ValueError("this system cannot fork, without which no speech is made twice the same: use Linux or macOS")
    espeak = Espeak()
    # Ctrl-C is acted on between two utterances: anywhere else it could leave a process or a file half-way.
    interrupted: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):  # a shell's background job ignores it
        signal.signal(signal.SIGINT, lambda number, _frame: interrupted.append(number))
    try:
        with (
            Progress(total=total, initial=total - len(missing), unit=" utterances", disable=None) as progress,
            closing(say_all(espeak, missing, jobs)) as sayings,
        ):
            for line, pcm in sayings:
                corpus.add(line, recording(pcm, espeak.sample_rate, line, corpus.sample_rate))
                progress.update()
                if interrupted:
                    raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, handler)


def _summary(corpus: Corpus, lines: list[Line], hours: float, verb: str) -> str:
    voices = {split: {line.voice for line in lines if line.name.startswith(split)} for split in corpus.manifest_paths}
    return (
        f"{verb} {len(lines)} utterances, {hours:.2f} hours, {len(voices['train'])} voices to train and "
        f"{len(voices['val'])} others to validate: {' '.join(str(path) for path in corpus.manifest_paths.values())}"
    )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the options; a bad one ends with status 2 and one line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--target-dir", type=Path, default=Path("demo/corpus"), help="folder of the corpus")
    parser.add_argument("--utterances", type=number(int, 2), default=2000, help="how many, training and validation")
    parser.add_argument("--seed", type=number(int, 0), default=1, help="every random choice follows from it")
    parser.add_argument("--val-share", type=number(float, above=0), default=0.1, help="share of them for validation")
    sample_rate = AudioConfig.sample_rate
    parser.add_argument("--sample-rate", type=number(int, 8000, 48000), default=sample_rate, help="Hz of the recordings")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the recordings")
    parser.add_argument("--jobs", type=number(int, 1), default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args(argv)
    if math.ceil(args.utterances * Fraction(str(args.val_share))) >= args.utterances:
        parser.error(f"--val-share {args.val_share}: leaves none of {args.utterances} utterances to train: make it smaller")
    return args


def main(argv: list[str] | None = None) -> int:
    """Make the corpus. Returns: the exit status; 0, 1 if it failed, 130 if it was interrupted (2, usage, is raised)."""
    args = parse_args(argv)
    corpus = Corpus(args.target_dir, args.utterances, args.seed, args.val_share, args.sample_rate, args.format)
    return run_script(
        lambda: print(make_corpus(corpus, args.jobs)), interrupted="interrupted: the same command goes on from here"
    )


if __name__ == "__main__":
    sys.exit(main())
