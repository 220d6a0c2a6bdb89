"""Words to subtitles that can be read as they are heard."""

import html
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asr.transcript import TimedWord

LINE_COLUMNS, LINES = 42, 2  # as broadcasters have it
LONGEST_CUE = 7.0  # seconds
SHORTEST_CUE = 1.0  # seconds that a cue stays, unless the next one comes sooner
PAUSE = 0.7  # seconds without a word, after which a cue ends


@dataclass(frozen=True)
class Cue:
    """What is shown from when to when, in seconds."""

    start: float
    end: float
    lines: Sequence[str]


def cues(words: Sequence[TimedWord], spaced: bool) -> list[Cue]:
    """Words to cues of at most two lines, which end at pauses, and in long speech where there is the longest gap."""
    groups = [group for run in _runs(words) for group in _readable(run, spaced)]
    starts = [group[0].start for group in groups] + [float("inf")]
    made = []
    for group, following in zip(groups, starts[1:], strict=True):
        end = max(group[-1].end, min(group[0].start + SHORTEST_CUE, following))
        made.append(Cue(group[0].start, end, _lines([word.text for word in group], " " if spaced else "")))
    return made


def cue_json(cue: Cue) -> dict:
    return {"start": round(cue.start, 3), "end": round(cue.end, 3), "lines": list(cue.lines)}


def as_srt(made: Sequence[Cue]) -> str:
    """SubRip."""
    blocks = []
    for number, cue in enumerate(made, start=1):
        blocks.append(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n")
    return "\n".join(blocks)


def as_vtt(made: Sequence[Cue]) -> str:
    """WebVTT (W3C), in which `<` and `&` are markup."""
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n" + html.escape("\n".join(cue.lines), quote=False) + "\n"
        for cue in made
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _runs(words: Sequence[TimedWord]) -> Iterator[list[TimedWord]]:
    """Words between which nobody pauses."""
    run = []
    for word in words:
        if run and word.start - run[-1].end >= PAUSE:
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _readable(run: list[TimedWord], spaced: bool) -> Iterator[list[TimedWord]]:
    """Part a run, where it is too long for a cue, at the longest gap of the second half of what fits."""
    while not _fits(run, spaced):
        most = next(count for count in range(1, len(run)) if not _fits(run[: count + 1], spaced))
        places = range(max(1, (most + 1) // 2), most + 1)
        part = max(places, key=lambda i: (run[i].start - run[i - 1].end, i))
        yield run[:part]
        run = run[part:]
    yield run


def _fits(words: list[TimedWord], spaced: bool) -> bool:
    if len(words) == 1:
        return True
    if words[-1].end - words[0].start > LONGEST_CUE:
        return False
    lines = _lines([word.text for word in words], " " if spaced else "")
    return len(lines) <= LINES and max(map(shown_width, lines)) <= LINE_COLUMNS


def _lines(texts: list[str], joint: str) -> list[str]:
    """One line if they fit in it, else the two that are the least uneven; more if a word alone does not fit."""
    text = joint.join(texts)
    if shown_width(text) <= LINE_COLUMNS or len(texts) == 1:
        return [text]
    halves = [(joint.join(texts[:i]), joint.join(texts[i:])) for i in range(1, len(texts))]
    return list(min(halves, key=lambda pair: max(map(shown_width, pair))))


def shown_width(text: str) -> int:
    """How wide a text is shown: East Asian characters take two columns."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
