"""VoxForge: some 130 hours of read English in thousands of small submissions (voxforge.org).

    python data/voxforge.py

fetches every submission listed at --base-url, and writes voxforge_train_manifest.csv, voxforge_val_manifest.csv,
voxforge_test_manifest.csv and voxforge_report.jsonl. Other languages are at other addresses, such as
http://www.repository.voxforge1.org/downloads/de/Trunk/Audio/Main/16kHz_16bit/.

The corpus has no parts. A speaker is the name before a submission's first dash; whose name hashes to the first or second
`--held-out` share of all is for val or test with everything ever submitted, so that a corpus fetched later is divided the
same. `anonymous` is many people, and is for training. No checksums are published.
"""

import argparse
import hashlib
import html
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote

if not __package__:  # run as a file: find `config` and `data`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.command_line import number, run_script
from data.conversion import Spoken
from data.corpora import INTERRUPTED, Archive, archive_url, corpus_folder, corpus_parser, make_corpus, parse_corpus, unpacked
from data.download import fetch_text

URL = "http://www.repository.voxforge1.org/downloads/SpeechCorpus/Trunk/Audio/Main/16kHz_16bit/"
AUDIO_FOLDERS = ("wav", "flac")
PROMPTS = ("PROMPTS", "prompts", "prompts-original")
ANONYMOUS = "anonymous"


def main(argv: list[str] | None = None) -> int:
    parser = corpus_parser(__doc__, "voxforge_dataset", URL)
    share = number(float, 0, 0.4)
    parser.add_argument("--held-out", type=share, default=0.05, help="share of the speakers for val, and as many for test")
    args = parse_corpus(parser, argv)

    def work() -> int:
        with corpus_folder(args, "voxforge"):
            return make_corpus("voxforge", read(download(args), args.held_out), args)

    return run_script(work, INTERRUPTED)


def download(args: argparse.Namespace) -> list[Path]:
    """Fetch and unpack what is missing. Returns: folders with submissions somewhere below them."""
    return unpacked(args, lambda: listed_archives(args.base_url), URL)


def listed_archives(base_url: str) -> list[Archive]:
    """The submissions that a folder's page links to. Raises: ValueError if it links to none; OSError."""
    page = fetch_text(archive_url(base_url, ""))
    if page is None:
        raise FileNotFoundError(f"{base_url}: no such page: expected a list of submissions; check --base-url")
    links = (unquote(html.unescape(link)) for link in re.findall(r'href="([^"?#]+\.tgz)"', page, re.IGNORECASE))
    names = sorted({name for link in links if not (name := link.rpartition("/")[2]).startswith(".")})
    if not names:
        raise ValueError(f"{base_url}: links to no .tgz: expected a list of submissions; check --base-url")
    return [Archive(name) for name in names]


def read(folders: list[Path], held_out: float = 0.05) -> list[Spoken]:
    """Every prompt of every submission: a folder with `etc` and, for its recordings, `wav` or `flac`.

    Raises: ValueError if there is no submission.
    """
    spoken = []
    for folder in folders:
        for root, subfolders, _ in os.walk(folder):
            subfolders.sort()
            if "etc" in subfolders and any(name in subfolders for name in AUDIO_FOLDERS):
                spoken += _submission(Path(root), held_out)
    if not spoken:
        where = ", ".join(map(str, folders[:3]))
        raise ValueError(f"{where}: no submission: expected folders with etc/PROMPTS and wav or flac")
    return spoken


def part_of(submission: str, held_out: float) -> str:
    """Which part a submission belongs to, by its speaker's name alone."""
    speaker = submission.partition("-")[0].lower()
    place = int(hashlib.sha256(speaker.encode()).hexdigest()[:8], 16) / 2**32
    if speaker == ANONYMOUS or place >= 2 * held_out:
        return "train"
    return "val" if place < held_out else "test"


def _submission(folder: Path, held_out: float) -> list[Spoken]:
    part = part_of(folder.name, held_out)
    prompts = _prompts(folder / "etc")
    recordings = {}
    for name in reversed(AUDIO_FOLDERS):  # where both are there, they hold the same
        for path in (folder / name).glob(f"*.{name}"):
            recordings[path.stem] = path
    spoken = []
    for name in sorted(prompts.keys() | recordings.keys()):
        path, text = recordings.get(name), prompts.get(name)
        drop = ""
        if path is None:
            drop = f"{folder}: no recording of {name}"
        elif text is None:
            drop = f"{path}: no prompt"
        spoken.append(Spoken(part, f"{folder.name}_{name}", str(path), text or "", drop=drop))
    return spoken


def _prompts(folder: Path) -> dict[str, str]:
    """Texts by the recording's name: lines are `NAME WORDS`, `*/mfc/NAME WORDS` or `SUBMISSION/mfc/NAME WORDS`."""
    for name in PROMPTS:
        path = folder / name
        if path.is_file():
            content = path.read_bytes()
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = content.decode("latin-1")  # as submissions from before about 2009 are
            fields = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
            return {words[0].rpartition("/")[2]: words[1] if len(words) > 1 else "" for words in fields}
    return {}


if __name__ == "__main__":
    sys.exit(main())
