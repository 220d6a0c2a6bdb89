"""Kaldi's data directories: tables with an id and what belongs to it on each line.

wav.scp     recording, its path, or a command whose output it is
segments    utterance, recording, begin and end in seconds; without it, each recording is an utterance
text        utterance, words
utt2spk     utterance, speaker; spk2utt the other way round
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data.command_line import progress_bar
from data.entries import Contents, Entry, Target, decoded, lines_to, settled, unique_names, word
from data.manifest import read_transcript
from data.utterances import Utterance

# Commands that decode one file to wav and do nothing else to it, as Kaldi recipes write them; no pipe is ever run.
PLAIN_DECODERS = {
    "cat": (),
    "flac": ("-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "--stdout", "--decode", "--silent"),
    "sph2pipe": ("-f", "wav", "-p"),
    "sox": ("-t", "wav", "-"),
}
PIPES = {".wav": "{}", ".flac": "flac -c -d -s {} |", ".sph": "sph2pipe -f wav {} |"}
OTHER_PIPE = "sox {} -t wav - |"


def read_kaldi(path: str) -> Contents:
    recordings = {name: _file(value, where) for name, value, where in _table(path, "wav.scp")}
    texts = {name: (text, where) for name, text, where in _table(path, "text")}
    speakers = {name: speaker for name, speaker, _ in _table(path, "utt2spk", optional=True)}
    if os.path.exists(os.path.join(path, "segments")):
        parts = {name: _segment(value, where) for name, value, where in _table(path, "segments")}
    else:
        parts = {name: (name, None, None) for name in recordings}
    entries, no_recording = [], 0
    for name, (text, where) in texts.items():
        recording, offset, duration = parts.get(name, (None, None, None))
        if recording not in recordings:
            no_recording += 1
            continue
        manifest, _, line = where.rpartition(":")
        utterance = Utterance(recordings[recording], text, None, duration, offset, manifest, int(line))
        speaker = speakers.get(name, name)  # whose speaker nobody knows is its own
        entries.append(
            Entry(
                utterance=settled(utterance) if offset and duration is None else utterance,
                name=name,
                speaker="" if speaker == name else speaker,
            )
        )
    losses = {
        f"{no_recording} transcripts of utterances without a recording": no_recording,
        f"{len(parts.keys() - texts)} utterances without a transcript": len(parts.keys() - texts),
    }
    return Contents(entries, [loss for loss, count in losses.items() if count])


def _table(path: str, name: str, optional: bool = False) -> Iterator[tuple[str, str, str]]:
    """(id, what follows it, file:line) of each line."""
    file_path = os.path.join(path, name)
    if optional and not os.path.exists(file_path):
        return
    seen = set()
    with open(file_path, encoding="utf-8-sig", newline="\n") as file:
        for line, content in enumerate(decoded(file, file_path), 1):
            where = f"{file_path}:{line}"
            if not content.strip():
                raise ValueError(f"{where}: an empty line: expected an id and what belongs to it")
            key, value = [*content.strip().split(maxsplit=1), ""][:2]
            if key in seen:
                raise ValueError(f"{where}: {key} comes twice: expected each id once")
            seen.add(key)
            yield key, value, where


def _file(value: str, where: str) -> str:
    """The recording that an entry of wav.scp names. Relative ones start at the current folder, as Kaldi has it."""
    if not value or value == "-":
        raise ValueError(f"{where}: {value or 'nothing'} behind the id: expected the path of a recording")
    if re.search(r"\.ark:\d+$", value):
        raise ValueError(f"{where}: {value}: a place in an archive: copy it out first, with Kaldi's wav-copy")
    return os.path.abspath(_decoded_file(value, where) if value.endswith("|") else value)


def _decoded_file(command: str, where: str) -> str:
    """The file behind a pipe that only decodes it, which is then read directly: no pipe is run."""
    advice = "pipes are not run: expected a path, `flac -c -d -s F |`, `sph2pipe -f wav F |`, `cat F |` or `sox F -t wav - |`"
    lexer = shlex.shlex(command[:-1], posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        program, *words = lexer
    except ValueError:
        program, words = "", []
    options = PLAIN_DECODERS.get(os.path.basename(program))
    if options is None or re.search("[$`]", command):
        raise ValueError(f"{where}: {command}: {advice}")
    files = [word for word in words if word not in options]
    if len(files) != 1 or files[0].startswith("-") or (program == "sox" and words[0] != files[0]):
        raise ValueError(f"{where}: {command}: does more than decode one file; {advice}")
    return files[0]


def _segment(value: str, where: str) -> tuple[str, float, float | None]:
    """Recording, offset and duration in seconds; a duration of None goes to the end, which Kaldi writes as -1."""
    words = value.split()
    if len(words) == 4:
        raise ValueError(f"{where}: channel {words[3]} of its recording: write each channel to a file of its own first")
    try:
        recording, (begin, end) = words[0], map(float, words[1:])
    except (ValueError, IndexError):
        raise ValueError(f"{where}: {value!r} behind the id: expected a recording, its begin and end in seconds") from None
    if end == -1:
        return recording, begin, None
    if not 0 <= begin < end < float("inf"):
        raise ValueError(f"{where}: {begin:g} s to {end:g} s: expected a begin of at least 0 and an end behind it")
    return recording, begin, round(end - begin, 6)


def write_kaldi(target: Target, entries: Sequence[Entry]) -> list[str]:
    """Tables sorted as Kaldi wants them, by the bytes of the id; an utterance without a speaker is its own."""
    os.makedirs(target.path, exist_ok=True)
    entries = [replace(entry, utterance=settled(entry.utterance)) for entry in progress_bar(entries, "reading", unit="utt")]
    names = _names(entries)
    tables: dict[str, dict[str, str]] = {table: {} for table in ("wav.scp", "segments", "text", "utt2spk", "spk2utt")}
    segmented = any(entry.utterance.offset is not None for entry in entries)
    unique, recordings = unique_names(), {}
    for name, entry in zip(names, entries, strict=True):
        utterance = entry.utterance
        recording = name
        if segmented:
            if utterance.audio not in recordings:
                recordings[utterance.audio] = unique(word(Path(utterance.audio).stem))
            recording = recordings[utterance.audio]
            begin = utterance.offset or 0.0
            tables["segments"][name] = f"{recording} {begin:.6f} {begin + utterance.duration:.6f}"
        tables["wav.scp"][recording] = _source(utterance)
        tables["text"][name] = read_transcript(utterance)
        tables["utt2spk"][name] = word(entry.speaker) or name
    for name, speaker in sorted(tables["utt2spk"].items(), key=lambda item: item[0].encode()):
        tables["spk2utt"][speaker] = f"{tables['spk2utt'].get(speaker, '')} {name}".strip()
    for table in reversed(tables):  # wav.scp, by which the folder is known, last
        file = os.path.join(target.path, table)
        if table == "segments" and not segmented:
            Path(file).unlink(missing_ok=True)
            continue
        with lines_to(file) as write:
            for name in sorted(tables[table], key=str.encode):
                write(f"{name} {tables[table][name]}".rstrip())
    renamed = sum(bool(entry.name) and entry.name != name for entry, name in zip(entries, names, strict=True))
    return [f"{renamed} ids, which came twice or held blanks, and were changed"] if renamed else []


def _names(entries: Sequence[Entry]) -> list[str]:
    """An id for each: its own, or speaker-recording, because utterances and speakers must sort alike."""
    unique, names = unique_names(), []
    for entry in entries:
        name, speaker = word(entry.name or Path(entry.utterance.audio).stem), word(entry.speaker)
        if not entry.name and speaker and not name.startswith(speaker):
            name = f"{speaker}-{name}"
        names.append(unique(name))
    return names


def _source(utterance: Utterance) -> str:
    path = os.path.abspath(utterance.audio)
    pipe = PIPES.get(os.path.splitext(path)[1].lower(), OTHER_PIPE)
    if "\n" in path or "\r" in path or (pipe == "{}" and (path != path.strip() or path.endswith("|"))):
        raise ValueError(f"{utterance.where}: path {path!r}: wav.scp cannot hold it; rename the file")
    return pipe.format(path if pipe == "{}" else shlex.quote(path))
