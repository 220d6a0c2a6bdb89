"""Merge the manifests of a folder into one, sorted by duration.

    python data/merge_manifests.py --merge-dir manifests/ --output-path merged_manifest.csv --min-duration 1 --max-duration 15

Every .csv, .json and .jsonl file right in the folder is read, CSV or JSON Lines, its relative paths from where it lies; of an
utterance that comes twice, with the same words, one is kept. The output is JSON Lines if its name ends in .json or .jsonl,
otherwise CSV, and works from where it lies. CSV names a transcript file for each utterance: words that stood in a JSON Lines
manifest are written to files in a folder beside it (merged_manifest_txt/). Segments of longer recordings only JSON Lines can
hold; with them, CSV is refused.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file, from whatever folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.command_line import UsageError, argument_parser, number, progress_bar, run_script
from data.entries import Entry, Target, settled
from data.files import check_writable
from data.formats import kind_of, read_entries, write_entries
from data.manifest import read_transcript
from data.utterances import Utterance

SUFFIXES = {".csv": "csv", ".json": "nemo", ".jsonl": "nemo"}


@dataclass(frozen=True)
class Merged:
    entries: list[Entry]  # shortest first
    duplicates: int
    pruned: int
    retold: int  # recordings or segments that are kept with different words


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--merge-dir", default="manifests/", help="folder of the manifests to merge")
    parser.add_argument("--output-path", default="merged_manifest.csv", help="manifest to write")
    parser.add_argument("--min-duration", type=number(float, 0), default=1, help="seconds an utterance has at least; 0: any")
    parser.add_argument("--max-duration", type=number(float, 0), default=15, help="seconds an utterance has at most; 0: any")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: merge_manifests(args.merge_dir, args.output_path, args.min_duration, args.max_duration))


def merge_manifests(merge_dir: str, output_path: str, min_duration: float, max_duration: float) -> None:
    """Raises: UsageError; OSError, ValueError naming the manifest and the line of what cannot be read or written."""
    if max_duration and min_duration > max_duration:
        raise UsageError(f"--min-duration {min_duration:g} is more than --max-duration {max_duration:g}")
    check_writable(output_path)
    entries = []
    for path in find_manifests(merge_dir, output_path):
        contents = read_entries(str(path), kind_of(str(path)))
        entries += contents.entries
        for loss in contents.losses:
            print(f"{path}: not kept: {loss}", file=sys.stderr)
    entries = [_with_duration(entry) for entry in progress_bar(entries, "reading", unit="utt")]
    merged = merge(entries, min_duration, max_duration)
    if not merged.entries:
        raise ValueError(f"{merge_dir}: none of {len(entries)} utterances is {_bounds(min_duration, max_duration)} long")
    lost = write_entries(Target(output_path), SUFFIXES.get(Path(output_path).suffix.lower(), "csv"), merged.entries)
    for loss in lost:
        print(f"{output_path}: not kept: {loss}", file=sys.stderr)
    if merged.retold:
        print(f"{merged.retold} recordings come more than once with different words: all kept", file=sys.stderr)
    print(f"in:  {len(entries)} utterances, {hours(entries):.3f} hours")
    print(f"left out: {merged.duplicates} duplicates, {merged.pruned} not {_bounds(min_duration, max_duration)} long")
    print(f"out: {len(merged.entries)} utterances, {hours(merged.entries):.3f} hours: {output_path}")


def find_manifests(merge_dir: str, output_path: str) -> list[Path]:
    """The manifests right in a folder, by name, without the output of an earlier merge. Raises: OSError, ValueError."""
    output = os.path.realpath(output_path)
    names = sorted(name for name in os.listdir(merge_dir) if Path(name).suffix.lower() in SUFFIXES and name[0] != ".")
    paths = [Path(merge_dir) / name for name in names]
    paths = [path for path in paths if path.is_file() and os.path.realpath(path) != output]
    if not paths:
        raise ValueError(f"{merge_dir}: no manifests: expected files named {', '.join('*' + s for s in SUFFIXES)}")
    return paths


def merge(entries: Sequence[Entry], min_duration: float, max_duration: float) -> Merged:
    """Drop what comes twice and what is too short or too long, and sort; durations are in seconds, and 0 is no bound."""
    same_sound = defaultdict(list)
    for entry in entries:
        same_sound[_sound(entry.utterance)].append(entry)
    unique, retold = [], 0
    for group in same_sound.values():
        by_words: dict[str, Entry] = {}
        for entry in group:
            by_words.setdefault(read_transcript(entry.utterance) if len(group) > 1 else "", entry)
        unique += by_words.values()
        retold += len(by_words) > 1
    fitting = [e for e in unique if min_duration <= e.utterance.duration <= (max_duration or float("inf"))]
    fitting.sort(key=lambda entry: entry.utterance.duration)
    return Merged(fitting, len(entries) - len(unique), len(unique) - len(fitting), retold)


def hours(entries: Sequence[Entry]) -> float:
    return sum(entry.utterance.duration for entry in entries) / 3600


def _with_duration(entry: Entry) -> Entry:
    """What a manifest says is believed: only recordings of unknown duration are opened."""
    return entry if entry.utterance.duration is not None else replace(entry, utterance=settled(entry.utterance))


def _sound(utterance: Utterance) -> tuple[str, float, float]:
    """Which part of which recording, by name and to a hundredth of a second, for manifests round what they say."""
    return os.path.normpath(utterance.audio), round(utterance.offset or 0.0, 2), round(utterance.duration, 2)


def _bounds(min_duration: float, max_duration: float) -> str:
    return f"{min_duration:g} to {max_duration:g} s" if max_duration else f"{min_duration:g} s or more"


if __name__ == "__main__":
    raise SystemExit(main())
