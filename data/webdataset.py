"""Entries into shards and out of them (data/shards.py), for convert_manifest.py."""

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from data.command_line import progress_bar
from data.entries import Contents, Entry, Target, unique_names, whole_recordings, word
from data.files import whole_file
from data.manifest import read_transcript
from data.shards import AUDIO_ENDINGS, file_bytes, file_of, read_shards, shard_paths


def read_webdataset(path: str) -> Contents:
    return Contents([Entry(utterance, Path(utterance.audio).name.partition(".")[0]) for utterance in read_shards(path)], [])


def write_webdataset(target: Target, entries: Sequence[Entry]) -> list[str]:
    """Write shards of as many utterances each, in their order. `target.path` is `corpus-{000..127}.tar`, or one tar file."""
    shards = shard_paths(target.path)
    speakers = sum(bool(entry.speaker) for entry in entries)
    entries = whole_recordings(target, entries, "shards hold whole recordings")
    if len(shards) > len(entries):
        raise ValueError(f"{target.path}: {len(shards)} shards for {len(entries)} utterances: expected at most as many")
    read = {os.path.realpath(file_of(entry.utterance.audio)) for entry in entries}
    for shard in shards:
        if os.path.realpath(shard) in read:
            raise ValueError(f"{shard}: recordings are read from it; write shards of other names")
    name, begin = unique_names(), 0
    with progress_bar(total=len(entries), desc="packing", unit="utt") as bar:
        for number, shard in enumerate(shards, 1):
            end = number * len(entries) // len(shards)
            with whole_file(shard) as temporary, tarfile.open(temporary, "w") as tar:
                for entry in entries[begin:end]:
                    key = name(word(entry.name or Path(entry.utterance.audio).stem).replace(".", "_").replace("/", "_"))
                    _add(tar, f"{key}{_ending(entry)}", file_bytes(entry.utterance.audio))
                    _add(tar, f"{key}.txt", read_transcript(entry.utterance).encode())
                    bar.update()
            begin = end
    return [f"speakers of {speakers} utterances"] if speakers else []


def _ending(entry: Entry) -> str:
    ending = Path(entry.utterance.audio).suffix.lower()
    if ending[1:] not in AUDIO_ENDINGS:
        raise ValueError(
            f"{entry.utterance.where}: {entry.utterance.audio}: a shard tells recordings by their names, which end in "
            f"{', '.join(AUDIO_ENDINGS)}; convert or rename it"
        )
    return ending


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time: the same entries make the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
