"""LibriSpeech: up to 960 hours of read English, in seven parts (openslr.org/12).

    python data/librispeech.py --files-to-use dev-clean.tar.gz,test-clean.tar.gz

fetches the parts named, checks them against their published MD5, and writes libri_train_manifest.csv (the three train
parts), libri_val_manifest.csv (dev-clean, dev-other), libri_test_clean_manifest.csv, libri_test_other_manifest.csv and
libri_report.jsonl, each if it has anything to hold. The recordings are 16 kHz mono flac and stay so, unless
`--format wav` wants them larger and faster to read.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:  # run as a file: find `config` and `data`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.archives import archive_stem
from data.command_line import run_script
from data.conversion import Spoken
from data.corpora import INTERRUPTED, Archive, corpus_folder, corpus_parser, given_archives, make_corpus, parse_corpus, unpacked

URL = "https://www.openslr.org/resources/12/"
# Part of ours, and the MD5 in openslr.org/resources/12/md5sum.txt.
SUBSETS = {
    "train-clean-100": ("train", "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": ("train", "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": ("train", "d1a0fd59409feb2c614ce4d30c387708"),
    "dev-clean": ("val", "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": ("val", "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": ("test_clean", "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": ("test_other", "fb5a50374b501bb3bac4815ee91d3135"),
}


def main(argv: list[str] | None = None) -> int:
    parser = corpus_parser(__doc__, "LibriSpeech_dataset", URL)
    everything = ",".join(f"{subset}.tar.gz" for subset in SUBSETS)
    parser.add_argument("--files-to-use", type=_subsets, default=everything, help="parts, with commas between them")
    args = parse_corpus(parser, argv)

    def work() -> int:
        with corpus_folder(args, "libri"):
            return make_corpus("libri", read(download(args), args.files_to_use), args)

    return run_script(work, INTERRUPTED)


def _subsets(text: str) -> list[str]:
    subsets = [name.removesuffix(".tar.gz") for name in text.replace(",", " ").split()]
    for subset in subsets:
        if subset not in SUBSETS:
            raise argparse.ArgumentTypeError(f"{subset!r}: expected some of {', '.join(SUBSETS)}")
    if not subsets:
        raise argparse.ArgumentTypeError(f"nothing named: expected some of {', '.join(SUBSETS)}")
    return list(dict.fromkeys(subsets))


def download(args: argparse.Namespace) -> list[Path]:
    """Fetch and unpack what is missing. Returns: folders with parts of the corpus somewhere below them."""
    if args.tar_path:
        unwanted = SUBSETS.keys() - set(args.files_to_use)
        args.tar_path = [path for path in given_archives(args.tar_path) if archive_stem(path) not in unwanted]
    archives = [Archive(f"{subset}.tar.gz", f"md5:{SUBSETS[subset][1]}") for subset in args.files_to_use]
    return unpacked(args, lambda: archives, URL)


def read(folders: list[Path], subsets: list[str]) -> list[Spoken]:
    """Every utterance of the chosen parts: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, recordings beside it.

    Raises: ValueError if there is none of them, or a transcript's line is not as it should be.
    """
    spoken = []
    for folder in folders:
        for root, subfolders, files in os.walk(folder):
            subfolders.sort()
            chapter = Path(root)
            subset = chapter.parents[1].name if len(chapter.parents) > 1 else ""
            if subset in subsets:
                for file in sorted(files):
                    if file.endswith(".trans.txt"):
                        spoken += _chapter(chapter / file, SUBSETS[subset][0])
    if not spoken:
        where = ", ".join(map(str, folders)) or "--tar-path"
        raise ValueError(f"{where}: nothing of {', '.join(subsets)}: expected folders such as dev-clean/84/121123")
    return spoken


def _chapter(path: Path, part: str) -> list[Spoken]:
    spoken = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, text = line.strip().partition(" ")
        if "/" in name:
            raise ValueError(f"{path}:{number}: {line[:80]!r}: expected SPEAKER-CHAPTER-NUMBER WORDS")
        if name:
            spoken.append(Spoken(part, name, str(path.with_name(f"{name}.flac")), text))
    return spoken


if __name__ == "__main__":
    sys.exit(main())
