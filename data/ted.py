"""TED-LIUM, releases 2 and 3: talks in English, cut into utterances (openslr.org/19 and 51).

    python data/ted.py --release 2

fetches the release, cuts the talks at the times in its stm files, and writes ted_train_manifest.csv,
ted_val_manifest.csv (the corpus's dev), ted_test_manifest.csv and ted_report.jsonl. Release 3 is taken in its legacy
split, whose dev and test are those of release 2. With --tar-path and --source-dir, whichever release is there.

Segments marked ignore_time_segment_in_scoring are no utterances. <unk> stands for words that were said but not written
down: such training segments are dropped (`--unk remove` keeps them without it), while in val and test it is removed,
so that all of their references are scored. Split words are joined as they are written elsewhere: it 's is it's.
"""

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # run as a file: find `config` and `data`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.command_line import run_script
from data.conversion import Spoken
from data.corpora import INTERRUPTED, Archive, corpus_folder, corpus_parser, find_folder, make_corpus, parse_corpus, unpacked

URL = "https://www.openslr.org/resources/"
# OpenSLR publishes no checksums of these two; torchaudio does.
RELEASES = {
    "2": ("19", Archive("TEDLIUM_release2.tar.gz", "sha256:93281b5fcaaae5c88671c9d000b443cb3c7ea3499ad12010b3934ca41a7b9c58")),
    "3": ("51", Archive("TEDLIUM_release-3.tgz", "sha256:ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb")),
}
PARTS = {"train": "train", "dev": "val", "test": "test"}
IGNORED = "ignore_time_segment_in_scoring"
UNKNOWN = "<unk>"
MARKUP = re.compile(r"<sil>|\{[^{}]*\}|\[[^][]*\]|\(\d+\)", re.IGNORECASE)  # pauses, noises, numbered pronunciations
SPLIT_WORD = re.compile(r"(?<=\w) '(?=(?:s|d|ll|m|re|t|ve)\b)", re.IGNORECASE)
STM_LINE = "TALK CHANNEL SPEAKER START END <LABEL> WORDS"


def main(argv: list[str] | None = None) -> int:
    parser = corpus_parser(__doc__, "TEDLIUM_dataset", URL)
    parser.add_argument("--release", choices=tuple(RELEASES), default="2", help="which one to fetch")
    parser.add_argument("--unk", choices=("drop", "remove"), default="drop", help="what becomes of <unk> in training")
    args = parse_corpus(parser, argv)

    def work() -> int:
        with corpus_folder(args, "ted"):
            return make_corpus("ted", read(download(args), args.unk == "drop"), args)

    return run_script(work, INTERRUPTED)


def download(args: argparse.Namespace) -> Path:
    """Fetch and unpack what is missing. Returns: the folder with train, dev and test."""
    number, archive = RELEASES[args.release]
    official = URL
    if args.base_url == URL:  # OpenSLR has a folder for each release, a mirror need not
        args.base_url = official = f"{URL}{number}/"
    folders = unpacked(args, lambda: [archive], official)
    return find_folder(folders, lambda path: (path / "train" / "stm").is_dir(), "train/stm")


def read(folder: Path, drop_unknown: bool = True) -> list[Spoken]:
    """Every segment of the three parts. Raises: ValueError naming the line of an stm file that is not as it should be."""
    return [
        spoken
        for name, part in PARTS.items()
        for stm in sorted((folder / name / "stm").glob("*.stm"))
        for spoken in _talk(stm, part, drop_unknown and part == "train")
    ]


def _talk(stm: Path, part: str, drop_unknown: bool) -> list[Spoken]:
    recording = str(stm.parents[1] / "sph" / f"{stm.stem}.sph")
    segments = []
    for number, line in enumerate(stm.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith(";;") or not line.strip():
            continue
        start, end, text = _segment(line, f"{stm}:{number}")
        if text.strip().lower() == IGNORED:
            continue
        said = SPLIT_WORD.sub("'", " ".join(MARKUP.sub(" ", text).split()))
        drop = f"{stm}:{number}: {UNKNOWN}: not all that was said is written" if drop_unknown and UNKNOWN in said else ""
        said = said.replace(UNKNOWN, " ")
        name = f"{stm.stem}_{round(start * 1000):08d}_{round(end * 1000):08d}"
        segments.append(Spoken(part, name, recording, text, said, start, end, drop=drop))
    return segments


def _segment(line: str, where: str) -> tuple[float, float, str]:
    """Start and end in seconds, and the text, of a line of an stm file. Raises: ValueError."""
    fields = line.split(maxsplit=5)
    try:
        start, end = float(fields[3]), float(fields[4])
        if not 0 <= start < end < float("inf"):
            raise ValueError
    except (IndexError, ValueError):
        raise ValueError(f"{where}: {line[:80]!r}: expected {STM_LINE}, times in seconds") from None
    text = fields[5] if len(fields) > 5 else ""
    # the label is optional, and always has commas: <o,f0,male>
    return start, end, re.sub(r"^<[^<>]*,[^<>]*>\s*|^<F0_[MF]>\s*", "", text).strip()


if __name__ == "__main__":
    sys.exit(main())
