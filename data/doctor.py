"""What is wrong with data sets as a whole, before any GPU hour is spent: utterances compared with each other.

Errors are what cannot be trained on, or makes scores worthless; warnings are what a person should look at.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from statistics import median

import numpy as np

from config import AudioConfig
from data import examine
from data.checks import KINDS, SHORT_FOR_CTC, Problem, check_utterance, problems_of
from data.examine import Examined, examine_all
from data.labels import BLANK, Labels, frames_needed
from data.manifest import read_manifest
from data.speakers import speaker_of
from data.utterances import Utterance

TWO_TEXTS = "same audio with different transcripts"
LEAKED = "same audio in several manifests"
DUPLICATE = "same audio and transcript more than once"
SPEAKER = "same speaker in several manifests"
PACE = "unusual number of characters per second"

ERRORS = (*KINDS, examine.SILENT, TWO_TEXTS, LEAKED)
WARNINGS = (
    *(examine.QUIET, examine.CLIPPED, examine.CUT_OUT, examine.OTHER_RATE, examine.NARROW_BAND),
    *(DUPLICATE, SPEAKER, PACE),
)
DROPPED = {*ERRORS, DUPLICATE}  # by --fix

# An utterance with fewer characters per second than this is surely long enough for CTC: the default network gives twice as
# many output frames. Its own length formula, for which torch has to be loaded, is asked about the others only.
SURELY_ALIGNED = 25.0
PACE_DEVIATIONS = 5.0  # from the median, in the logarithm; a standard deviation is 1.4826 median absolute deviations
PACE_LEAST = 20  # utterances from which on there is a usual pace
SPREAD_LEAST = 0.05  # of the logarithm, for sets that all have nearly the same pace


@dataclass
class Manifest:
    """One manifest, and what was found in it."""

    path: str
    examined: list[Examined]

    def add(self, index: int, kind: str, detail: str, hint: str = "") -> None:
        utterance = self.examined[index].utterance
        self.examined[index].problems.append(Problem(kind, utterance.where, f"{utterance.audio}: {detail}", hint=hint))

    @property
    def utterances(self) -> list[Utterance]:
        return [examined.utterance for examined in self.examined]

    @property
    def problems(self) -> list[Problem]:
        return [problem for examined in self.examined for problem in examined.problems]


def listen(paths: Sequence[str], labels: Labels, audio: AudioConfig, jobs: int = 0) -> list[Manifest]:
    """Read manifests and decode all that they name, by `jobs` processes; 0: one per core."""
    lists = [read_manifest(path) for path in paths]
    examined = examine_all([utterance for utterances in lists for utterance in utterances], labels, audio, jobs)
    return [Manifest(path, list(islice(examined, len(us)))) for path, us in zip(paths, lists, strict=True)]


def dense(manifests: Sequence[Manifest]) -> list[Examined]:
    """Those with so many characters a second that CTC might not align them in the network that train.py trains."""
    return [
        examined
        for examined in everything(manifests)
        if examined.utterance.text and examined.utterance.duration is not None
        if frames_needed(examined.utterance.text) > SURELY_ALIGNED * examined.utterance.duration
    ]


def everything(manifests: Sequence[Manifest]) -> list[Examined]:
    return [examined for manifest in manifests for examined in manifest.examined]


def check_frames(
    suspected: Sequence[Examined], labels: Labels, audio: AudioConfig, output_frames: Callable[[int], int]
) -> None:
    """Add what is too short for CTC, by the length formula of a model, which only `model` knows."""
    for examined in suspected:
        _, problems = check_utterance(examined.utterance, labels, audio, output_frames)
        examined.problems += problems_of(problems, SHORT_FOR_CTC)


def compare(manifests: Sequence[Manifest], speakers: re.Pattern[str] | None) -> None:
    """Add to each manifest's problems those that show only side by side: duplicates, leaks, speakers, pace."""
    _compare_audio(manifests)
    _compare_pace(manifests)
    if speakers and len(manifests) > 1:
        _compare_speakers(manifests, speakers)


def usable(manifest: Manifest) -> list[Utterance]:
    """What a clean manifest keeps: all without an error, and of duplicates the first."""
    return [examined.utterance for examined in manifest.examined if not examined.kinds & DROPPED]


def without_errors(manifests: Sequence[Manifest]) -> list[Utterance]:
    return [examined.utterance for examined in everything(manifests) if not examined.kinds & set(ERRORS)]


def characters_of(manifests: Sequence[Manifest]) -> Counter[str]:
    """How often each character occurs in the transcripts."""
    return Counter(chain.from_iterable(text for manifest in manifests for text in _texts(manifest)))


def suggested_labels(characters: Iterable[str]) -> list[str]:
    """The blank, then letters, then what is no letter, the space last; no label can be the blank's own symbol."""
    return [BLANK, *sorted(set(characters) - {BLANK}, key=lambda c: (c == " ", not c.isalpha(), c))]


def statistics(manifest: Manifest, first: Manifest) -> dict:
    """Durations, sample rates, pace and vocabulary of a manifest, as JSON has it; later ones are compared to the first."""
    durations = [e.utterance.duration for e in manifest.examined if e.utterance.duration is not None]
    texts = _texts(manifest)
    words = Counter(word for text in texts for word in text.split())
    found = {
        "manifest": manifest.path,
        "utterances": len(manifest.examined),
        "hours": round(sum(durations) / 3600, 4),
        "seconds": _quantiles(durations),
        "sample_rates": {str(rate): n for rate, n in Counter(e.rate for e in manifest.examined if e.rate).most_common()},
        "characters_per_second": _quantiles([pace for _, pace in _paces(manifest)]),
        "words": words.total(),
        "distinct_words": len(words),
        "words_occurring_once": sum(count == 1 for count in words.values()),
        "most_frequent_words": dict(words.most_common(10)),
        "distinct_transcripts": len(set(texts)),
        "most_repeated_transcripts": {text: count for text, count in Counter(texts).most_common(5) if count > 1},
    }
    if manifest is not first:
        texts_of_first = set(_texts(first))
        known = {word for text in texts_of_first for word in text.split()}
        found["words_not_in_first"] = sum(count for word, count in words.items() if word not in known)
        found["transcripts_in_first"] = sum(text in texts_of_first for text in texts)
    return found


def _compare_audio(manifests: Sequence[Manifest]) -> None:
    same: defaultdict[bytes, list[tuple[Manifest, int]]] = defaultdict(list)
    for manifest in manifests:
        for index, examined in enumerate(manifest.examined):
            if examined.digest:
                same[examined.digest].append((manifest, index))
    for group in same.values():
        if len(group) > 1:
            _judge_same_audio(group)


def _judge_same_audio(group: Sequence[tuple[Manifest, int]]) -> None:
    """What sounds the same to the last sample. The last manifest's copy stays: that is the one that tests."""
    keeper = group[-1][0]
    kept = next(manifest.examined[index].utterance for manifest, index in group if manifest is keeper)
    for _, members in groupby(group, key=lambda member: id(member[0])):
        manifest, indices = (members := list(members))[0][0], [index for _, index in members]
        first = manifest.examined[indices[0]].utterance
        texts = {manifest.examined[index].utterance.text for index in indices} - {None}
        for index in indices:
            text = manifest.examined[index].utterance.text
            if manifest is not keeper:
                manifest.add(index, LEAKED, f"also {kept.where}" + (f", there {kept.text!r}" if text != kept.text else ""))
            if len(texts) > 1:
                manifest.add(index, TWO_TEXTS, f"{text!r}, one of {len(texts)} transcripts")
            elif index != indices[0]:
                manifest.add(index, DUPLICATE, f"first in {first.where}")


def _compare_pace(manifests: Sequence[Manifest]) -> None:
    """Robust statistics, which what they are to find does not spoil: the median, and the median deviation from it."""
    paces = [(manifest, index, np.log(pace)) for manifest in manifests for index, pace in _paces(manifest)]
    if len(paces) < PACE_LEAST:
        return
    usual = median(pace for *_, pace in paces)
    spread = max(1.4826 * median(abs(pace - usual) for *_, pace in paces), SPREAD_LEAST)
    for manifest, index, pace in paces:
        if abs(pace - usual) > PACE_DEVIATIONS * spread:
            utterance = manifest.examined[index].utterance
            manifest.add(
                index,
                PACE,
                f"{np.exp(pace):.1f}, usual are {np.exp(usual):.1f}: {len(utterance.text)} characters in "
                f"{utterance.duration:.2f} s",
                "a wrong transcript, a cut recording, or a header that names the wrong rate",
            )


def _compare_speakers(manifests: Sequence[Manifest], pattern: re.Pattern[str]) -> None:
    """One problem for each speaker and manifest but the first that has it, at that manifest's first utterance of it."""
    seen: dict[str, tuple[str, int]] = {}
    for manifest in manifests:
        voices: dict[str, list[int]] = defaultdict(list)
        for index, examined in enumerate(manifest.examined):
            voices[speaker_of(examined.utterance.audio, pattern)].append(index)
        voices.pop("", None)
        for name, indices in voices.items():
            if name in seen:
                path, count = seen[name]
                manifest.add(indices[0], SPEAKER, f"speaker {name}, {len(indices)} utterances here, {count} in {path}")
        seen |= {name: (manifest.path, len(indices)) for name, indices in voices.items() if name not in seen}


def _texts(manifest: Manifest) -> list[str]:
    return [e.utterance.text for e in manifest.examined if e.utterance.text]


def _paces(manifest: Manifest) -> Iterator[tuple[int, float]]:
    """(index, characters per second) of every utterance that has both."""
    for index, examined in enumerate(manifest.examined):
        if examined.utterance.text and examined.utterance.duration:
            yield index, len(examined.utterance.text) / examined.utterance.duration


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = {"min": 0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1}
    found = dict(zip(shares, np.quantile(values, list(shares.values())), strict=True)) | {"mean": np.mean(values)}
    return {name: round(float(value), 2) for name, value in found.items()}
