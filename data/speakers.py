"""Who speaks, as far as the path of a recording tells."""

import argparse
import re
from collections.abc import Sequence
from pathlib import PurePath

LIBRISPEECH = re.compile(r"(?:^|/)(\d+)-\d+-\d+[^/]*$")  # speaker-chapter-utterance
FOLDER = re.compile(r"([^/]+)/[^/]+$")
# Folders that many corpora have, and that are nobody's name.
PLAIN_FOLDERS = set("audio clips data dev eval flac mp3 recordings speech sph test train val valid validation wav wavs".split())


def speaker_pattern(text: str) -> re.Pattern[str]:
    """An argparse type: a regular expression whose first group is the speaker."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    if pattern.groups < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a group, in parentheses, around the speaker")
    return pattern


def speaker_of(path: str, pattern: re.Pattern[str]) -> str:
    """The speaker's name in a path, empty if it is not there."""
    found = pattern.search(path)
    return found[1] or "" if found else ""


def guess_pattern(sets: Sequence[Sequence[str]]) -> re.Pattern[str] | None:
    """How the recordings of several sets tell their speaker: as LibriSpeech's file names do, or by the folder.

    A folder is taken for a speaker if every set has several, if not each holds one recording, and if none has a name such as
    `wav` or `train`. None: nothing can be told.
    """
    if all(LIBRISPEECH.search(path) for paths in sets for path in paths):
        return LIBRISPEECH
    folders = [[PurePath(path).parent.name for path in paths] for paths in sets]
    several = all(1 < len(set(names)) < len(names) for names in folders)
    plain = any(name.lower() in PLAIN_FOLDERS for names in folders for name in set(names))
    return FOLDER if several and not plain else None
