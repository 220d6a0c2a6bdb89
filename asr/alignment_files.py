"""Alignments as files: JSON, the CTM of NIST's scoring tools, the TextGrid of Praat."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.alignment import Alignment, Span
from data.entries import unique_names, word
from data.files import whole_file
from data.utterances import Utterance

ENDINGS = {"json": ".json", "jsonl": ".jsonl", "ctm": ".ctm", "textgrid": ".TextGrid"}


@dataclass(frozen=True)
class Named:
    """An alignment, and what files call it."""

    audio: str
    recording: str  # the file's name without folder and ending
    name: str  # that, and for a segment its hundredths of a second: no other utterance has it
    alignment: Alignment


class Names:
    """Hands out names that no two utterances share, always the same in the same order of utterances."""

    def __init__(self) -> None:
        self._unique, self._cut = unique_names(), {}

    def named(self, utterance: Utterance, alignment: Alignment) -> Named:
        stem = word(Path(utterance.audio).stem) or "audio"
        if utterance.offset is None:
            name = self._unique(stem)
            return Named(utterance.audio, name, name, alignment)
        if utterance.audio not in self._cut:
            self._cut[utterance.audio] = self._unique(stem)
        recording, end = self._cut[utterance.audio], utterance.offset + utterance.duration
        name = self._unique(f"{recording}-{round(100 * utterance.offset):07d}-{round(100 * end):07d}")
        return Named(utterance.audio, recording, name, alignment)


def as_json(named: Named) -> str:
    """One line: the utterance, its words, their characters. Times are seconds of the recording."""
    alignment = named.alignment
    words = [
        {
            "word": each.text,
            **_numbers(each),
            "characters": [{"character": character.text, **_numbers(character)} for character in each.characters],
        }
        for each in alignment.words
    ]
    return json.dumps({"audio": named.audio, "text": alignment.text, **_numbers(alignment), "words": words}, ensure_ascii=False)


def _numbers(span: Span) -> dict[str, float]:
    return {
        "start": round(span.start, 3),
        "end": round(span.end, 3),
        "score": round(span.score, 4) + 0.0,  # not -0.0
        "confidence": round(span.confidence, 4),
    }


def as_ctm(named: Named, characters: bool = False) -> str:
    """A line for each word: recording, channel, start, duration, word, confidence (NIST sctk, doc/infmts.htm)."""
    alignment = named.alignment
    spans = [c for each in alignment.words for c in each.characters] if characters else alignment.words
    lines = []
    for span in spans:
        start, end = round(span.start, 3), round(span.end, 3)
        lines.append(f"{named.recording} 1 {start:.3f} {end - start:.3f} {span.text} {span.confidence:.4f}\n")
    return "".join(lines)


def as_textgrid(named: Named) -> str:
    """Praat's long text format, with a tier of words and one of characters, which are empty where nothing is said."""
    alignment = named.alignment
    tiers = {"words": alignment.words, "characters": [c for each in alignment.words for c in each.characters]}
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", *_domain(alignment.start, alignment.end)]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (title, spans) in enumerate(tiers.items(), 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{title}"']
        lines += _domain(alignment.start, alignment.end, 8)
        intervals = list(_intervals(spans, alignment))
        lines.append(f"        intervals: size = {len(intervals)}")
        for place, (start, end, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{place}]:", *_domain(start, end, 12), f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


def _domain(start: float, end: float, indent: int = 0) -> list[str]:
    return [f"{'':{indent}}xmin = {start:.6f}", f"{'':{indent}}xmax = {end:.6f}"]


def _intervals(spans: tuple[Span, ...] | list[Span], whole: Span) -> Iterator[tuple[float, float, str]]:
    """What is said and the gaps between, without a hole, as Praat wants it."""
    reached = whole.start
    for span in spans:
        if round(span.start - reached, 6) > 0:
            yield reached, span.start, ""
        yield span.start, span.end, span.text
        reached = span.end
    if round(whole.end - reached, 6) > 0:
        yield reached, whole.end, ""


@contextlib.contextmanager
def written_to(
    output: str | None, output_dir: str | None, format: str, characters: bool = False
) -> Iterator[Callable[[Utterance, Alignment], None]]:
    """A function that writes an utterance's alignment: to `output`, a file of its own in `output_dir`, else standard output.

    The one file gets its name when all of it is there; of a folder, each does. JSON is a list of all, in a folder each by
    itself; CTM has a line for each word, or with `characters` for each of these.
    """
    as_text = {
        "json": as_json,
        "jsonl": lambda named: as_json(named) + "\n",
        "ctm": lambda named: as_ctm(named, characters),
        "textgrid": as_textgrid,
    }[format]
    names, count = Names(), 0
    before, between, after = ("[\n", ",\n", "\n]\n") if format == "json" else ("", "", "")

    def write_own(utterance: Utterance, alignment: Alignment) -> None:
        named = names.named(utterance, alignment)
        with whole_file(os.path.join(output_dir, named.name + ENDINGS[format])) as temporary:
            temporary.write_text(as_text(named).removesuffix("\n") + "\n", encoding="utf-8", newline="\n")

    def write(utterance: Utterance, alignment: Alignment) -> None:
        nonlocal count
        file.write((between if count else before) + as_text(names.named(utterance, alignment)))
        file.flush()
        count += 1

    if output_dir is not None:
        yield write_own
    elif output is not None:
        with whole_file(output) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield write
            file.write(after if count else before + after)
    else:
        file = sys.stdout
        try:
            yield write
        finally:
            file.write(after if count else "")  # a list that is cut short is a list all the same
