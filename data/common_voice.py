"""Mozilla Common Voice, any language: release 1 (cv-valid-train.csv) and today's (train.tsv, clips/).

    python data/common_voice.py --tar-path cv-corpus-24.0-2025-12-05-de.tar.gz --language de

converts an archive fetched from Mozilla, who hands it out after a form has been signed, and writes
commonvoice_train_manifest.csv, commonvoice_val_manifest.csv (the corpus's dev), commonvoice_test_manifest.csv and
commonvoice_report.jsonl. A mirror of your own serves as well: --base-url, with --release. Without any of these, it is
release 1, in English, that is fetched.

`--files-to-process` names other tables of the corpus. validated.tsv holds dev and test as well: from it, and from
any table that is neither train, dev nor test, whoever speaks in dev.tsv or test.tsv is left out.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a file: find `config` and `data`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.command_line import UsageError, run_script
from data.conversion import Spoken
from data.corpora import INTERRUPTED, Archive, corpus_folder, corpus_parser, inside, make_corpus, parse_corpus, unpacked

URL = "https://common-voice-data-download.s3.amazonaws.com/"
RELEASE_1 = "cv_corpus_v1"
DEFAULT_TABLES = {
    ".csv": ("cv-valid-train.csv", "cv-valid-dev.csv", "cv-valid-test.csv"),
    ".tsv": ("train.tsv", "dev.tsv", "test.tsv"),
}
PARTS = {"train": "train", "dev": "val", "test": "test", "cv-valid-train": "train", "cv-valid-dev": "val"}
PARTS["cv-valid-test"] = "test"
HELD_OUT_TABLES = ("dev.tsv", "test.tsv")
MAX_FIELD = 2**20  # characters


def main(argv: list[str] | None = None) -> int:
    parser = corpus_parser(__doc__, "CommonVoice_dataset", URL)
    parser.add_argument("--language", help="which one, where there are several; to fetch, en unless given")
    parser.add_argument("--release", default=RELEASE_1, help="what to fetch, such as cv-corpus-24.0-2025-12-05")
    tables = "tables, with commas or spaces between; unless given, train, dev and test"
    parser.add_argument("--files-to-process", nargs="+", default=[], help=tables)
    args = parse_corpus(parser, argv)
    args.files_to_process = [name for text in args.files_to_process for name in text.split(",") if name]

    def work() -> int:
        with corpus_folder(args, "commonvoice"):
            return make_corpus("commonvoice", read(download(args), args.language, args.files_to_process), args)

    return run_script(work, INTERRUPTED)


def download(args: argparse.Namespace) -> list[Path]:
    """Fetch and unpack what is missing. Returns: folders with the corpus somewhere below them.

    Raises: UsageError for what Mozilla does not hand out to programs.
    """
    fetched = not args.tar_path and not args.source_dir
    if fetched and args.base_url == URL and (args.release != RELEASE_1 or args.language not in (None, "en")):
        raise UsageError(
            f"{args.release} {args.language or 'en'}: to be fetched from commonvoice.mozilla.org by hand: "
            "give it with --tar-path, or a mirror with --base-url"
        )
    name = args.release if args.release == RELEASE_1 else f"{args.release}-{args.language or 'en'}"
    return unpacked(args, lambda: [Archive(f"{name}.tar.gz")], URL)


def read(folders: list[Path], language: str | None = None, tables: list[str] | None = None) -> list[Spoken]:
    """Every utterance in the tables, by default train, dev and test.

    Raises: ValueError if there is no corpus, none of that language, or a table is missing or not as it should be.
    """
    folder, ending = _corpus(folders, language)
    names = [Path(name).stem + ending for name in tables or DEFAULT_TABLES[ending]]
    rows = {name: list(_rows(folder / name)) for name in dict.fromkeys(names)}
    spoken = []
    for name, table in rows.items():
        part = PARTS.get(Path(name).stem, Path(name).stem)
        others = _held_out_speakers(folder, rows) if ending == ".tsv" and part not in PARTS.values() else {}
        for path, text, speaker in table:
            spoken.append(_spoken(folder, Path(name), part, path, text, others.get(speaker, "")))
    return spoken


def _corpus(folders: list[Path], language: str | None) -> tuple[Path, str]:
    """The folder of the tables, and their ending."""
    found = {}
    for folder in folders:
        for root, subfolders, files in os.walk(folder):
            subfolders[:] = sorted(set(subfolders) - {"clips"})  # millions of files, none of them a table
            found |= {Path(root): ending for ending, (train, *_) in DEFAULT_TABLES.items() if train in files}
    if not found:
        raise ValueError(f"{', '.join(map(str, folders))}: neither train.tsv nor cv-valid-train.csv: is this Common Voice?")
    modern = {folder.name: folder for folder, ending in found.items() if ending == ".tsv"}
    if language and modern and not (len(modern) == 1 and folders[0] in modern.values()):
        if language not in modern:
            raise ValueError(f"--language {language}: not there; expected one of {', '.join(sorted(modern))}")
        return modern[language], ".tsv"
    if len(found) > 1:
        raise ValueError(f"several languages: give --language, one of {', '.join(sorted(modern))}")
    return next(iter(found.items()))


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Recording, text and speaker of each line. Raises: ValueError naming the table, or the line."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table; --files-to-process names those to take")
    is_tsv = path.suffix == ".tsv"
    audio, text = ("path", "sentence") if is_tsv else ("filename", "text")
    # Today's tables are not quoted: a quotation mark in a sentence is one.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {}
    csv.field_size_limit(MAX_FIELD)
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, **dialect)
        try:
            if not {audio, text} <= set(reader.fieldnames or ()):
                raise ValueError(f"{path}:1: columns {reader.fieldnames}: expected {audio} and {text} among them")
            for row in reader:
                if row[audio] is None or row[text] is None:
                    raise ValueError(f"{path}:{reader.line_num}: fewer columns than the header has")
                yield row[audio], row[text], row.get("client_id") or ""
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: not a table ({error})") from None


def _held_out_speakers(folder: Path, rows: dict[str, list[tuple[str, str, str]]]) -> dict[str, str]:
    """Why whoever speaks in dev or test may not be trained on."""
    reasons = {}
    for name in HELD_OUT_TABLES:
        table = rows.get(name) or (_rows(folder / name) if (folder / name).is_file() else ())
        reasons |= {speaker: f"its speaker is in {name}" for _, _, speaker in table if speaker}
    return reasons


def _spoken(folder: Path, table: Path, part: str, name: str, text: str, reason: str) -> Spoken:
    path = inside(folder / "clips" if table.suffix == ".tsv" else folder, name)
    stem = Path(name).stem
    if path is None or not stem:
        return Spoken(part, stem or "nameless", "", text, drop=f"{table.name}: {name!r} leads out of the corpus")
    places = (path, path.with_name(f"{path.name}.mp3"), folder / table.stem / name)  # as other packagings have it
    audio = next((place for place in places if place.is_file()), path)
    return Spoken(part, stem, str(audio), text, drop=f"{name}: {reason}" if reason else "")


if __name__ == "__main__":
    sys.exit(main())
