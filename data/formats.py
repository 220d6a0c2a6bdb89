"""Manifests as other toolkits keep them, read into and written from the same entries.

    csv           this toolkit's: recording,transcript file
    nemo          NVIDIA NeMo's JSON Lines, which this toolkit reads as well
    kaldi         a data directory: wav.scp, text, and where there are any segments, utt2spk
    mozilla       DeepSpeech's CSV: wav_filename,wav_filesize,transcript
    huggingface   an audiofolder's metadata.csv or metadata.jsonl beside the recordings: file_name, transcription or text
    webdataset    tar files of recordings and transcripts, which this toolkit reads as well: corpus-{000..127}.tar

No format holds all that another one does. Whoever reads or writes is told what was lost, in words and numbers.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data.entries import Contents, Entry, Target, below, decoded, lines_to, listed, settled, unique_names, whole_recordings
from data.files import whole_file
from data.kaldi import read_kaldi, write_kaldi
from data.manifest import read_manifest, read_transcript, write_manifest
from data.shards import names_shards
from data.utterances import Utterance
from data.webdataset import read_webdataset, write_webdataset

MOZILLA_COLUMNS = ["wav_filename", "wav_filesize", "transcript"]
HUGGINGFACE_FILES = ("metadata.csv", "metadata.jsonl")
HUGGINGFACE_TEXTS = ("transcription", "text")
NEMO_KEYS = {"audio_filepath", "text", "duration", "offset", "id", "speaker"}  # the last two: kept if there, written if known


def kind_of(path: str) -> str:
    """Which format lies there, told by its content. Raises: OSError, ValueError naming it if that is none of them."""
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, "wav.scp")):
            return "kaldi"
        if any(os.path.exists(os.path.join(path, name)) for name in HUGGINGFACE_FILES):
            return "huggingface"
        raise ValueError(f"{path}: a folder without wav.scp, {' or '.join(HUGGINGFACE_FILES)}: expected one of these")
    if os.path.basename(path) in HUGGINGFACE_FILES:
        return "huggingface"
    if names_shards(path):
        return "webdataset"
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        head = file.read(4096).lstrip()
    if head.startswith("{"):
        return "nemo"
    return "mozilla" if MOZILLA_COLUMNS[0] in head.partition("\n")[0].strip().split(",") else "csv"


def read_entries(path: str, kind: str) -> Contents:
    """Raises: OSError, ValueError naming the file and the line that is not what the format says, or if nothing is there."""
    contents = READERS[kind](path)
    if not contents.entries:
        raise ValueError(f"{path}: no utterances" + "".join(f"; {loss}" for loss in contents.losses))
    return contents


def write_entries(target: Target, kind: str, entries: Sequence[Entry]) -> list[str]:
    """Write entries, the list itself last and whole or not at all.

    Returns: what they held and the format does not.
    Raises: OSError; ValueError naming the utterance that the format cannot hold, and the flag that makes it fit.
    """
    return WRITERS[kind](target, entries)


def _read_csv(path: str) -> Contents:
    return Contents([Entry(utterance) for utterance in read_manifest(path)], [])


def _read_nemo(path: str) -> Contents:
    utterances = read_manifest(path)
    others: Counter[str] = Counter()
    entries = []
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        values = [json.loads(line) for line in file if line.strip()]
    for utterance, value in zip(utterances, values, strict=True):
        others.update(value.keys() - NEMO_KEYS)
        entries.append(Entry(utterance, str(value.get("id") or ""), str(value.get("speaker") or "")))
    return Contents(entries, _counted(others))


def _read_mozilla(path: str) -> Contents:
    folder = os.path.dirname(os.path.abspath(path))
    entries, others = [], Counter()
    for line, row in _csv_rows(path, ["wav_filename", "transcript"]):
        audio = _filled(row, "wav_filename", f"{path}:{line}")
        entries.append(Entry(Utterance(os.path.join(folder, audio), row["transcript"], manifest=path, line=line)))
        others.update(key for key in row.keys() - set(MOZILLA_COLUMNS) if row[key])
    return Contents(entries, _counted(others))


def _read_huggingface(path: str) -> Contents:
    if os.path.isdir(path):
        path = next(name for name in (os.path.join(path, n) for n in HUGGINGFACE_FILES) if os.path.exists(name))
    folder = os.path.dirname(os.path.abspath(path))
    rows = _json_rows(path) if path.endswith("l") else _csv_rows(path, ["file_name"])
    entries, others = [], Counter()
    for line, row in rows:
        where = f"{path}:{line}"
        audio = _filled(row, "file_name", where)
        text = next((row[key] for key in HUGGINGFACE_TEXTS if row.get(key) is not None), None)
        if not isinstance(text, str):
            raise ValueError(f'{where}: no "transcription" or "text" among {", ".join(row)}')
        utterance = Utterance(os.path.join(folder, audio), text, manifest=path, line=line)
        entries.append(Entry(utterance, str(row.get("id") or ""), str(row.get("speaker") or "")))
        others.update(key for key in row.keys() - {"file_name", *HUGGINGFACE_TEXTS, "id", "speaker"} if row[key])
    return Contents(entries, _counted(others))


def _counted(values: Counter[str]) -> list[str]:
    return [f"{count} values of {key!r}" for key, count in sorted(values.items())]


def _csv_rows(path: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(decoded(file, path), strict=True)
        line = 1  # where a row starts
        try:
            header = next(reader, [])
            if not set(needed) <= set(header):
                raise ValueError(f"{path}:1: header {','.join(header)!r}: expected the columns {', '.join(needed)}")
            line = reader.line_num + 1
            for row in reader:
                if len(row) not in (0, len(header)):
                    raise ValueError(f"{path}:{line}: {len(row)} columns: expected {len(header)}, as in the header")
                if row:
                    yield line, dict(zip(header, row, strict=True))
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}:{line}: not CSV ({error})") from error


def _json_rows(path: str) -> Iterator[tuple[int, dict]]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for line, content in enumerate(decoded(file, path), 1):
            if not content.strip():
                continue
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{line}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: a JSON {type(row).__name__}: expected an object")
            yield line, row


def _filled(row: dict, key: str, where: str) -> str:
    if not isinstance(row.get(key), str) or not row[key]:
        raise ValueError(f"{where}: no {key}: expected the name of a recording")
    return row[key]


def _write_csv(target: Target, entries: Sequence[Entry]) -> list[str]:
    path = os.path.abspath(target.path)
    losses = _unkept(entries, name=True, speaker=True)
    entries = whole_recordings(target, entries, "a CSV manifest has no place for segments")
    write_manifest(path, _with_transcript_files(path, [entry.utterance for entry in entries]))
    return losses


def _with_transcript_files(path: str, utterances: Sequence[Utterance]) -> list[Utterance]:
    """Give a text file, in a folder named after the manifest, to every utterance whose words stand in a manifest only."""
    folder = Path(os.path.splitext(path)[0] + "_txt")
    name = unique_names()
    written = []
    for utterance in utterances:
        if utterance.text is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{name(Path(utterance.audio).stem)}.txt"
            file.write_text(read_transcript(utterance) + "\n", encoding="utf-8")
            utterance = replace(utterance, text=None, text_path=str(file))
        written.append(utterance)
    return written


def _write_nemo(target: Target, entries: Sequence[Entry]) -> list[str]:
    folder = os.path.dirname(os.path.abspath(target.path))
    with lines_to(target.path) as write:
        for entry in entries:
            utterance = entry.utterance if entry.utterance.duration is not None else settled(entry.utterance)
            value = {
                "audio_filepath": listed(folder, utterance),
                "duration": round(utterance.duration, 6),
                "text": read_transcript(utterance),
                "offset": utterance.offset,
                "id": entry.name or None,
                "speaker": entry.speaker or None,
            }
            write(json.dumps({key: item for key, item in value.items() if item is not None}, ensure_ascii=False))
    return []


def _write_mozilla(target: Target, entries: Sequence[Entry]) -> list[str]:
    folder = os.path.dirname(os.path.abspath(target.path))
    losses = _unkept(entries, name=True, speaker=True)
    entries = whole_recordings(target, entries, "DeepSpeech's CSV has no place for segments")
    not_wav = sum(not entry.utterance.audio.lower().endswith(".wav") for entry in entries)
    if not_wav:
        losses.append(f"nothing, but {not_wav} recordings are not wav files, which is all that DeepSpeech reads")
    with whole_file(target.path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(MOZILLA_COLUMNS)
        for utterance in (entry.utterance for entry in entries):
            size = os.path.getsize(utterance.audio)
            writer.writerow([listed(folder, utterance), size, read_transcript(utterance)])
    return losses


def _write_huggingface(target: Target, entries: Sequence[Entry]) -> list[str]:
    path = target.path
    if os.path.basename(path) not in HUGGINGFACE_FILES:
        path = os.path.join(path, HUGGINGFACE_FILES[0])
    folder = os.path.dirname(os.path.abspath(path))
    entries = whole_recordings(target, entries, "Hugging Face metadata has no place for segments")
    entries = _copied_below(folder, target, entries)
    extra = [key for key in ("id", "speaker") if any(_extra(entry, key) for entry in entries)]
    columns = ["file_name", HUGGINGFACE_TEXTS[0], *extra]
    rows = (
        [listed(folder, entry.utterance), read_transcript(entry.utterance), *(_extra(entry, key) for key in extra)]
        for entry in entries
    )
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        if path.endswith("l"):
            file.writelines(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
        else:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return []


def _copied_below(folder: str, target: Target, entries: Sequence[Entry]) -> list[Entry]:
    """Copy into `audio_dir` what lies outside the folder, which Hugging Face does not look beyond."""
    if target.audio_dir is not None and below(folder, os.path.join(os.path.abspath(target.audio_dir), "")) is None:
        raise ValueError(f"--audio-dir {target.audio_dir}: expected a folder below {folder}, where Hugging Face looks")
    copied, name, copies = [], unique_names(), {}
    for entry in entries:
        source = entry.utterance.audio
        if below(folder, source) is None:
            if target.audio_dir is None:
                raise ValueError(
                    f"{entry.utterance.where}: {source} is not below {folder}, beyond which Hugging Face does not look: "
                    "give --audio-dir, a folder below it into which recordings are copied"
                )
            if source not in copies:
                stem, suffix = os.path.splitext(os.path.basename(source))
                copies[source] = os.path.join(os.path.abspath(target.audio_dir), name(stem) + suffix)
                with whole_file(copies[source]) as temporary:
                    temporary.write_bytes(Path(source).read_bytes())
            entry = replace(entry, utterance=replace(entry.utterance, audio=copies[source]))
        copied.append(entry)
    return copied


def _unkept(entries: Sequence[Entry], name: bool, speaker: bool) -> list[str]:
    losses = {
        "ids": name and sum(bool(entry.name) for entry in entries),
        "speakers": speaker and sum(bool(entry.speaker) for entry in entries),
    }
    return [f"{what} of {count} utterances" for what, count in losses.items() if count]


def _extra(entry: Entry, key: str) -> str:
    return entry.name if key == "id" else entry.speaker


READERS = {
    "csv": _read_csv,
    "nemo": _read_nemo,
    "kaldi": read_kaldi,
    "mozilla": _read_mozilla,
    "huggingface": _read_huggingface,
    "webdataset": read_webdataset,
}
WRITERS = {
    "csv": _write_csv,
    "nemo": _write_nemo,
    "kaldi": write_kaldi,
    "mozilla": _write_mozilla,
    "huggingface": _write_huggingface,
    "webdataset": write_webdataset,
}
FORMATS = tuple(READERS)
