"""Transcripts as people need them: JSON, text, subtitles, tables, on standard output or a file for each recording."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from asr.recognizer import Recognizer
from asr.subtitles import as_srt, as_vtt, cues
from asr.transcribing import Outcome
from asr.transcript import Transcript
from data.entries import word
from data.files import whole_file
from data.recordings import Recording

TSV_HEADER = "audio\tstart\tend\tconfidence\ttext\n"


@dataclass(frozen=True)
class Style:
    """What is told of each recording."""

    format: str
    offsets: bool = False  # JSON: each character's output frame
    words: bool = False  # JSON: each word's seconds and confidence


class Page:
    """Standard output, which gets results as they come."""

    def __init__(self, recognizer: Recognizer, style: Style, recordings: int):
        self._recognizer, self._style, self._several = recognizer, style, recordings > 1
        self._header = TSV_HEADER if style.format == "tsv" else ""

    def add(self, outcome: Outcome) -> None:
        print(self._header + rendered(outcome, self._recognizer, self._style, self._several), end="", flush=True)
        self._header = ""


class Folder:
    """A file for each recording, whole or not there."""

    def __init__(self, recognizer: Recognizer, style: Style, folder: str):
        self._recognizer, self._style, self._folder = recognizer, style, folder

    def add(self, outcome: Outcome) -> None:
        header = TSV_HEADER if self._style.format == "tsv" else ""
        with whole_file(result_path(self._folder, outcome.recording, self._style.format)) as temporary:
            text = header + rendered(outcome, self._recognizer, self._style)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be UTF-8


def result_path(folder: str, recording: Recording, kind: str) -> str:
    return os.path.join(folder, f"{recording.name}.{'txt' if kind == 'text' else kind}")


def rendered(outcome: Outcome, recognizer: Recognizer, style: Style, several: bool = False) -> str:
    """A transcript in the style's format; with its recording's name if there are `several` in a row."""
    recording, transcript = outcome.recording, outcome.transcript
    if style.format in ("json", "jsonl"):
        answer = recognizer.answer(transcript, style.offsets, style.words)
        if several or style.format == "jsonl":
            answer = {"audio": recording.shown, "duration": round(transcript.duration, 3), **answer}
        return json.dumps(answer, ensure_ascii=False) + "\n"
    if style.format == "text":
        return f"{column(recording.shown)}\t{transcript.text}\n" if several else f"{transcript.text}\n"
    if style.format == "tsv":
        return as_tsv(transcript, column(recording.shown))
    if style.format == "ctm":
        return as_ctm(transcript, recording.name)
    made = cues(best_words(transcript), transcript.spaced)
    return as_srt(made) if style.format == "srt" else as_vtt(made)


def as_tsv(transcript: Transcript, shown: str) -> str:
    """A line for what was said between two pauses; times in seconds."""
    rows = ((shown, f"{s.start:.3f}", f"{s.end:.3f}", f"{s.confidence:.4f}", s.text) for s in transcript.spoken())
    return "".join("\t".join(row) + "\n" for row in rows)


def as_ctm(transcript: Transcript, name: str) -> str:
    """A line for each word: recording, channel, start, duration, word, confidence (NIST sctk, doc/infmts.htm)."""
    return "".join(
        f"{word(name)} 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} {w.confidence:.4f}\n" for w in best_words(transcript)
    )


def column(name: str) -> str:
    """A name that neither ends a column nor a line."""
    return re.sub(r"[\t\r\n]", " ", name)


def best_words(transcript: Transcript) -> Sequence:
    return transcript.words(transcript.readings(1)[0])
