"""Corpora in tar files, as WebDataset lays them out: files of one name before the first dot are one utterance.

    corpus-000.tar:  0001.flac 0001.txt  0002.flac 0002.txt ...    or 0001.json, {"text": ...}, instead of 0001.txt

Names and transcripts of all shards are read when work begins; a recording is read when its turn comes, at its place in its
shard, and nothing is unpacked. So they are checked, batched by length, shuffled, shared between processes and continued in
mid-epoch to the utterance, like any other manifest. The webdataset library, which reads shards from front to end, can shuffle
within its buffer only, and knows no length before it has read the recording.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from braceexpand import UnbalancedBracesError, braceexpand

from data.command_line import progress_bar
from data.utterances import Utterance, UtteranceTable

AUDIO_ENDINGS = ("wav", "flac", "ogg", "opus", "mp3", "sph", "aiff", "aif", "aifc", "au", "w64", "caf", "oga", "htk", "voc")
AUDIO_ENDINGS += ("m4a", "aac", "webm", "mka", "wma", "amr", "wv")  # which PyAV reads
TEXT_ENDINGS = ("txt", "json")
MOST_TEXT_BYTES = 2**20
MEMBER = re.compile(r"(?P<shard>.+\.tar)/(?P<begin>[0-9]+)\+(?P<size>[0-9]+)/(?P<name>.+)", re.DOTALL)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LAYOUT = "expected files such as 0001.flac and 0001.txt, as WebDataset packs them"


def names_shards(path: str) -> bool:
    """Whether a manifest's name is one of shards. Raises: ValueError if they are compressed."""
    if path.endswith(COMPRESSED):
        raise ValueError(f"{path}: compressed, so that no place in it can be read alone; uncompress it to .tar")
    return path.endswith(".tar")


def shard_paths(pattern: str) -> list[str]:
    """The files that `corpus-{000..127}.tar` or `{train,more}.tar` names. Raises: ValueError if the braces do not match."""
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise ValueError(f"{pattern}: {error}: expected, for example, corpus-{{000..127}}.tar") from None


def read_shards(pattern: str) -> UtteranceTable:
    """All utterances, in the order of the shards and within these; `line` is an utterance's number within its shard.

    Raises: OSError, ValueError naming the shard that cannot be read, and what in it.
    """
    shards = progress_bar(shard_paths(pattern), "listing shards", unit="shard")
    return UtteranceTable.of(utterance for shard in shards for utterance in _utterances(shard))


def is_member(path: str) -> bool:
    return MEMBER.fullmatch(path) is not None


def file_of(path: str) -> str:
    """The file that a recording lies in: its shard's, or its own."""
    place = MEMBER.fullmatch(path)
    return place["shard"] if place else path


def file_bytes(path: str) -> bytes:
    """A file, or a file in a shard. Raises: OSError, ValueError if it is not there, or the shard ends before."""
    place = MEMBER.fullmatch(path)
    if place is None:
        return Path(path).read_bytes()
    with open(place["shard"], "rb", buffering=0) as file:
        file.seek(int(place["begin"]))
        content = file.read(int(place["size"]))
    if len(content) < int(place["size"]):
        raise ValueError(f"{place['shard']} ends before it; it has changed since it was listed")
    return content


def _utterances(shard: str) -> Iterator[Utterance]:
    if os.path.isdir(shard):
        raise ValueError(f"{shard}: a folder: expected a tar file; {LAYOUT}")
    with open(shard, "rb") as file:
        try:
            entries = _entries(shard, file)
        except tarfile.TarError as error:
            raise ValueError(f"{shard}: not a tar file, or damaged ({error}); {LAYOUT}") from None
        for number, (key, members) in enumerate(entries.items(), 1):
            yield _utterance(shard, file, number, key, members)
    if not entries:
        raise ValueError(f"{shard}: no utterances; {LAYOUT}")


def _entries(shard: str, file: BinaryIO) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of each utterance, by what their names end in.

    Raises: ValueError if the shard breaks off, or has two recordings or two transcripts of one name.
    """
    entries: dict[str, dict[str, tarfile.TarInfo]] = {}
    size, end = os.fstat(file.fileno()).st_size, 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            end = member.offset_data + member.size
            if end > size:
                raise ValueError(f"{shard}: truncated within {member.name}; copy it again")
            folder, name = os.path.split(member.name)
            key, _, ending = name.partition(".")
            kind = ending.lower().rpartition(".")[2]
            if not member.isreg() or not key or kind not in AUDIO_ENDINGS + TEXT_ENDINGS:
                continue
            if member.issparse():
                raise ValueError(f"{shard}: {member.name} is stored with holes; pack it without --sparse")
            entry = entries.setdefault(os.path.join(folder, key), {})
            slot = "audio" if kind in AUDIO_ENDINGS else kind
            if slot in entry:
                raise ValueError(f"{shard}: {entry[slot].name} and {member.name} have one name; {LAYOUT}")
            entry[slot] = member
    if size < end + 512:  # a tar file ends in zeros
        raise ValueError(f"{shard}: truncated: it has no end; copy it again")
    return entries


def _utterance(shard: str, file: BinaryIO, number: int, key: str, members: dict[str, tarfile.TarInfo]) -> Utterance:
    if "audio" not in members:
        raise ValueError(f"{shard}: {key} has no recording; {LAYOUT}")
    audio = members["audio"]
    place = f"{os.path.abspath(shard)}/{audio.offset_data}+{audio.size}/{audio.name}"
    return Utterance(place, _text(shard, file, members), manifest=shard, line=number)


def _text(shard: str, file: BinaryIO, members: dict[str, tarfile.TarInfo]) -> str | None:
    """An utterance's transcript, None if it has none: .txt comes before .json."""
    member = members.get("txt") or members.get("json")
    if member is None:
        return None
    where = f"{shard}: {member.name}"
    if member.size > MOST_TEXT_BYTES:
        raise ValueError(f"{where}: {member.size} bytes: expected a transcript")
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8-sig")
        if "txt" in members:
            return text
        entry = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError(f'{where}: no "text" that is a string: expected {{"text": "WORDS"}}')
    return entry["text"]
