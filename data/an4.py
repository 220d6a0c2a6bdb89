"""AN4: 1078 utterances of spelled names, numbers and dates, 50 minutes (Carnegie Mellon University).

    python data/an4.py

fetches the corpus, converts it, and writes an4_train_manifest.csv, an4_val_manifest.csv, an4_test_manifest.csv and
an4_report.jsonl. The corpus has 948 utterances to train and 130 to test, and none to choose settings with: one training
speaker in nine is held out as `val`, so that the test part is for the last figure only. `--val-speakers 0` trains on
all of them and writes the test part as `val`, which is what deepspeech.pytorch did.

The archive is raw 16-bit samples (an4_raw.bigendian.tar.gz) or, with `--sphere`, NIST files (an4_sphere.tar.gz); with
--tar-path and --source-dir, whichever is there. Neither has a published checksum. Where the university's server does not
answer: --sphere --base-url https://dldata-public.s3.us-east-2.amazonaws.com
"""

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # run as a file: find `config` and `data`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.command_line import number, run_script
from data.conversion import Spoken
from data.corpora import (
    INTERRUPTED,
    Archive,
    corpus_folder,
    corpus_parser,
    find_folder,
    inside,
    make_corpus,
    parse_corpus,
    unpacked,
)

URL = "http://www.speech.cs.cmu.edu/databases/an4/"
RAW, SPHERE = Archive("an4_raw.bigendian.tar.gz"), Archive("an4_sphere.tar.gz")
SPEAKERS_PER_HELD_OUT = 9


def main(argv: list[str] | None = None) -> int:
    parser = corpus_parser(__doc__, "an4_dataset", URL)
    parser.add_argument("--sphere", action="store_true", help="fetch the archive of NIST files")
    held_out = f"training speakers held out as val; unless given, one in {SPEAKERS_PER_HELD_OUT}"
    parser.add_argument("--val-speakers", type=number(int, 0), help=held_out)
    args = parse_corpus(parser, argv)

    def work() -> int:
        with corpus_folder(args, "an4"):
            return make_corpus("an4", read(download(args), args.val_speakers), args)

    return run_script(work, INTERRUPTED)


def download(args: argparse.Namespace) -> Path:
    """Fetch and unpack what is missing. Returns: the folder with `etc` and `wav`."""
    folders = unpacked(args, lambda: [SPHERE if args.sphere else RAW], URL)
    return find_folder(folders, lambda path: (path / "etc" / "an4_train.fileids").is_file(), "etc/an4_train.fileids")


def read(folder: Path, val_speakers: int | None = None) -> list[Spoken]:
    """Every utterance of the corpus.

    Raises: ValueError if a list is not as it should be, or more speakers are to be held out than there are.
    """
    train, test = (_listed(folder, f"an4_{part}") for part in ("train", "test"))
    held_out = _held_out({speaker for speaker, _, _ in train}, val_speakers)
    if not held_out:
        print("no speakers are held out: val is the corpus's test part")
    parts = [("val" if speaker in held_out else "train", path, text) for speaker, path, text in train]
    parts += [("test" if held_out else "val", path, text) for _, path, text in test]
    return [_spoken(part, path, text) for part, path, text in parts]


def _listed(folder: Path, name: str) -> list[tuple[str, Path, str]]:
    """Speaker, recording without its ending, and text, of each line of `NAME.fileids`."""
    texts = {}
    transcription = folder / "etc" / f"{name}.transcription"
    for line_number, line in enumerate(transcription.read_text(encoding="utf-8").splitlines(), 1):
        found = re.fullmatch(r"(?:<s>)?(.*?)(?:</s>)?\s*\(([^()\s]+)\)\s*", line.strip())
        if found:
            texts[found[2]] = found[1].strip()
        elif line.strip():
            raise ValueError(f"{transcription}:{line_number}: {line[:80]!r}: expected <s> WORDS </s> (name)")
    listed = []
    for line in (folder / "etc" / f"{name}.fileids").read_text(encoding="utf-8").split():
        path = inside(folder / "wav", line)
        if path is None:
            raise ValueError(f"{folder / 'etc' / name}.fileids: {line!r} leads out of the corpus")
        listed.append((path.parent.name, path, texts.get(path.name, "")))
    return listed


def _held_out(speakers: set[str], count: int | None) -> set[str]:
    """Speakers spread evenly over the sorted names, which begin with f or m: women and men in their proportion."""
    names = sorted(speakers)
    count = len(names) // SPEAKERS_PER_HELD_OUT if count is None else count
    if count >= max(1, len(names)):
        raise ValueError(f"--val-speakers {count} of {len(names)}: expected fewer, to leave some for training")
    return {names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)}


def _spoken(part: str, path: Path, text: str) -> Spoken:
    sphere = path.with_name(f"{path.name}.sph")
    if sphere.is_file():
        return Spoken(part, path.name, str(sphere), text)
    return Spoken(part, path.name, str(path.with_name(f"{path.name}.raw")), text, headerless=True)


if __name__ == "__main__":
    sys.exit(main())
