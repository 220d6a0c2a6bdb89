"""Find every utterance that could not be trained on before training starts, instead of at hour ten.

Audio is judged by its header alone: a recording that breaks off or holds rubbish further in shows when it is read.
"""

import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from config import AudioConfig
from data.audio import SEGMENT_TOLERANCE, audio_duration
from data.command_line import progress_bar
from data.labels import Labels, frames_needed
from data.lengths import frame_count
from data.manifest import read_manifest, read_transcript
from data.utterances import StringsBuilder, Utterance, UtteranceTable

MISSING_AUDIO = "missing audio"
UNREADABLE_AUDIO = "unreadable audio"
SHORT_AUDIO = "audio shorter than one window"
UNREADABLE_TRANSCRIPT = "missing or unreadable transcript"
EMPTY_TRANSCRIPT = "empty transcript"
UNKNOWN_CHARACTERS = "characters outside the labels"
SHORT_FOR_CTC = "too short for its transcript"
KINDS = (
    MISSING_AUDIO,
    UNREADABLE_AUDIO,
    SHORT_AUDIO,
    UNREADABLE_TRANSCRIPT,
    EMPTY_TRANSCRIPT,
    UNKNOWN_CHARACTERS,
    SHORT_FOR_CTC,
)

POLICIES = ("fail", "skip")
LINES_SHOWN = 3  # of each kind


@dataclass(frozen=True)
class Problem:
    """One reason why one utterance cannot be used."""

    kind: str  # one of KINDS
    where: str  # manifest:line
    detail: str
    unknown: str = ""  # the characters outside the labels, each as often as it occurs
    hint: str = ""  # what may be wrong with all of its kind


@dataclass(frozen=True)
class CheckResult:
    """What a check found: usable utterances in the manifest's order, with text and duration; and what is wrong."""

    good: UtteranceTable
    problems: list[Problem]
    total: int


def read_manifests(
    paths: Sequence[str],
    audio: AudioConfig,
    labels: Labels | None = None,
    output_frames: Callable[[int], int] | None = None,
    policy: str = "fail",
) -> list[UtteranceTable]:
    """Read manifests and check them (`check_utterances`): what training and evaluation start from.

    Returns: of each, the utterances to use, in the manifest's order, with text and duration.
    Raises: as `read_manifest` and `apply_policy`; what is wrong with several manifests is told at once.
    """
    results = [check_utterances(read_manifest(path), labels, audio, output_frames) for path in paths]
    usable, faults = [], []
    for path, result in zip(paths, results, strict=True):
        try:
            usable.append(apply_policy(result, policy, path))
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError("\n".join(faults))
    return usable


def check_utterances(
    utterances: Sequence[Utterance],
    labels: Labels | None,
    audio: AudioConfig,
    output_frames: Callable[[int], int] | None,
) -> CheckResult:
    """Check all utterances, so that all that is wrong is told at once.

    Without `labels` a transcript may hold any characters or none, because an evaluation can count every one of them.
    `output_frames` is the model's length formula, spectrogram frames to output frames; without it, no utterance is too
    short for its transcript.
    """
    table, problems = UtteranceTable.of(utterances), []
    good, texts, durations, offsets = array("q"), StringsBuilder(), array("d"), array("d")
    # One after the other: threads gained nothing (948 recordings in the cache take 0.07 s with 1, 2, 4 or 8).
    for index, utterance in enumerate(progress_bar(table, "checking", unit="utt")):
        checked, found = check_utterance(utterance, labels, audio, output_frames)
        problems += found
        if not found:
            good.append(index)
            texts.add(checked.text)
            durations.append(checked.duration)
            offsets.append(math.nan if checked.offset is None else checked.offset)
    usable = table.checked(np.array(good), texts.build(), np.array(durations), np.array(offsets))
    return CheckResult(usable, problems, len(table))


def check_utterance(
    utterance: Utterance, labels: Labels | None, audio: AudioConfig, output_frames: Callable[[int], int] | None
) -> tuple[Utterance, list[Problem]]:
    """Check one utterance against every kind of problem, or those that `check_utterances` says.

    Returns: the utterance with as much of text and duration as could be read, and its problems, at most one of a kind.
    """
    utterance, duration, problems = _check_audio(utterance, audio)
    text, text_problems = _check_transcript(utterance, labels)
    problems += text_problems
    # a recording that is no window long has its problem already
    if output_frames and text and duration is not None and not problems_of(problems, SHORT_AUDIO):
        frames = output_frames(frame_count(_samples(duration, audio), audio))
        needed = frames_needed(text)
        if frames < needed:
            detail = (
                f"{utterance.audio}: {duration:.2f} s give {frames} output frames: "
                f"expected at least {needed}, for {len(text)} characters and {needed - len(text)} repeats"
            )
            hint = "a wrong transcript, a cut recording, or a model with too long a window stride"
            problems.append(Problem(SHORT_FOR_CTC, utterance.where, detail, hint=hint))
    return replace(utterance, text=text, duration=duration), problems


def problems_of(problems: Sequence[Problem], kind: str) -> list[Problem]:
    return [problem for problem in problems if problem.kind == kind]


def report(problems: Sequence[Problem], total: int) -> str:
    """All problems, kind by kind: how many of the `total` utterances, and the first few of them."""
    return "\n".join(line for kind in KINDS for line in _kind_lines(kind, problems_of(problems, kind), total))


def apply_policy(result: CheckResult, policy: str, name: str) -> UtteranceTable:
    """Decide what becomes of bad utterances: `fail` refuses the run, `skip` goes on without them and says so on stderr.

    `name` is the manifest, for the messages.

    Returns: the utterances to use.
    Raises: ValueError with the report if there are problems and the policy is `fail`, or if nothing is left.
    """
    if policy not in POLICIES:
        raise ValueError(f"--on-bad-data {policy}: expected one of {', '.join(POLICIES)}")
    num_bad = result.total - len(result.good)
    if not num_bad:
        return result.good
    found = f"{name}: {num_bad} of {result.total} utterances cannot be used\n{report(result.problems, result.total)}"
    if not result.good:
        raise ValueError(f"{found}\nnothing is left to use: fix the manifest or the files it names")
    if policy == "fail":
        raise ValueError(f"{found}\nfix them, or pass --on-bad-data skip to leave them out")
    print(f"{found}\nleft out: {num_bad} utterances; {len(result.good)} are used", file=sys.stderr)
    return result.good


def _samples(duration: float, audio: AudioConfig) -> int:
    return round(duration * audio.sample_rate)


def _check_audio(utterance: Utterance, audio: AudioConfig) -> tuple[Utterance, float | None, list[Problem]]:
    """Returns: the utterance, its duration in seconds, None if it cannot be told, and what is wrong with its audio.

    A manifest that says less than the whole file means its beginning, as NeMo reads it: the utterance becomes a segment.
    """
    where, path = utterance.where, utterance.audio
    try:
        duration = audio_duration(path)
    except (FileNotFoundError, NotADirectoryError):
        return utterance, None, [Problem(MISSING_AUDIO, where, f"{path}: no such file")]
    except OSError as error:
        return utterance, None, [Problem(UNREADABLE_AUDIO, where, f"{path}: {error.strerror}")]
    except ValueError as error:
        return utterance, None, [Problem(UNREADABLE_AUDIO, where, str(error))]
    if utterance.duration is not None:
        offset = utterance.offset or 0.0
        end = offset + utterance.duration
        if end > duration + SEGMENT_TOLERANCE:
            detail = f"{path}: {duration:.2f} s long: expected {end:.2f} s, where the manifest lets the utterance end"
            return utterance, None, [Problem(UNREADABLE_AUDIO, where, detail)]
        if utterance.offset is not None or end < duration - SEGMENT_TOLERANCE:
            utterance = replace(utterance, offset=offset)
            duration = min(utterance.duration, duration - offset)
    shortest = audio.window_samples // 2 + 1  # else reflection has nothing to pad with
    if _samples(duration, audio) < shortest:
        detail = f"{path}: {_samples(duration, audio)} samples at {audio.sample_rate} Hz: expected at least {shortest}"
        return utterance, duration, [Problem(SHORT_AUDIO, where, detail)]
    return utterance, duration, []


def _check_transcript(utterance: Utterance, labels: Labels | None) -> tuple[str | None, list[Problem]]:
    """Returns: the normalised text, None if it cannot be read, and what is wrong with it."""
    where = utterance.where
    try:
        text = read_transcript(utterance)
    except ValueError as error:
        return None, [Problem(UNREADABLE_TRANSCRIPT, where, str(error).removeprefix(f"{where}: "))]
    if labels is None:
        return text, []
    if not text:
        source = utterance.audio if utterance.text_path is None else utterance.text_path
        return text, [Problem(EMPTY_TRANSCRIPT, where, f"{source}: no words")]
    unknown = "".join(labels.unknown(text))
    if unknown:
        detail = f"{', '.join(map(repr, dict.fromkeys(unknown)))} in {_shortened(text)!r}"
        return text, [Problem(UNKNOWN_CHARACTERS, where, detail, unknown, _case_hint(unknown, labels))]
    return text, []


def _case_hint(unknown: str, labels: Labels) -> str:
    if any(character.islower() and not labels.unknown(character.upper()) for character in unknown):
        return "lower-case letters, but the labels are upper case: write the transcripts in upper case"
    if any(character.isupper() and not labels.unknown(character.lower()) for character in unknown):
        return "upper-case letters, but the labels are lower case: write the transcripts in lower case"
    return ""


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _kind_lines(kind: str, problems: Sequence[Problem], total: int) -> Iterator[str]:
    if not problems:
        return
    yield f"{kind}: {len(problems)} of {total}"
    for problem in problems[:LINES_SHOWN]:
        yield f"  {problem.where}: {problem.detail}"
    if len(problems) > LINES_SHOWN:
        yield f"  and {len(problems) - LINES_SHOWN} more"
    characters = Counter(character for problem in problems for character in problem.unknown)
    if characters:
        yield "  in all: " + ", ".join(f"{character!r} {count}x" for character, count in characters.most_common())
    for hint in dict.fromkeys(problem.hint for problem in problems if problem.hint):
        yield f"  hint: {hint}"
