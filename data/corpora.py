"""What the corpus scripts share: their flags, where their archives come from, and the way from what a corpus holds to
recordings, transcripts, manifests and a report.

Each script tells what is its own, in three parts: `download` (its archives, unpacked), `read` (a `Spoken` for every
utterance) and the manifests it writes, which `make_corpus` does for all of them. In the target folder:

    downloads/      the archives, as they came
    unpacked/       what was in them
    PART/wav, txt   a recording and a transcript per utterance; PART is train, val, test and the like
    corpus.json     the settings these follow from

A recording that is at the corpus's rate and mono already becomes a hard link to what was unpacked.
"""

import argparse
import fcntl
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import quote

from config import AudioConfig
from data.archives import ENDINGS, archive_stem, extract
from data.command_line import STATUS_FAILED, argument_parser, number
from data.conversion import FORMATS, Outcome, Plan, Spoken, convert_all
from data.download import fetch, fetch_text
from data.files import whole_file
from data.manifest import sort_by_duration, write_manifest
from data.utterances import Utterance

SETTINGS = "corpus.json"
POLICIES = ("fail", "skip")
INTERRUPTED = "interrupted: the same command goes on from here"
HELD_OUT_PARTS = ("val", "test")  # and test_clean and the like: everything else is for training
LISTED = 3  # lines of each kind shown; the report has them all


@dataclass(frozen=True)
class Archive:
    """A file of a corpus on its server."""

    name: str
    checksum: str | None = None  # as fetch takes it; None where none is published


def corpus_parser(doc: str, target_dir: str, base_url: str | None) -> argparse.ArgumentParser:
    """The flags that every corpus script has. base_url: where the archives are, None if nobody hands them out freely."""
    parser = argument_parser(doc)
    parser.add_argument("--target-dir", type=Path, default=Path(target_dir), help="folder of the corpus")
    parser.add_argument("--manifest-dir", type=Path, default=Path("."), help="where manifests and report go")
    parser.add_argument("--base-url", type=_base_url, default=base_url, help="where the archives are fetched from")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--tar-path", type=Path, nargs="+", help="archives that are there already, or a folder of them")
    there.add_argument("--source-dir", type=Path, help="the corpus, unpacked already; nothing in it is changed")
    parser.add_argument("--sample-rate", type=number(int, 1000, 768000), default=AudioConfig.sample_rate, help="Hz")
    parser.add_argument("--format", choices=FORMATS, help="of all recordings; unless given, only what has to be converted")
    seconds = number(float, 0)
    parser.add_argument("--min-duration", type=seconds, default=1, help="prune shorter training samples (s); 0: no bound")
    parser.add_argument("--max-duration", type=seconds, default=15, help="prune longer training samples (s); 0: no bound")
    parser.add_argument("--keep-case", action="store_true", help="keep transcripts in the case they have")
    parser.add_argument("--digits", choices=("drop", "keep"), default="drop", help="transcripts with digits, $, %% or &")
    parser.add_argument("--on-bad-data", choices=POLICIES, default="fail", help="exit status if recordings are broken: 1, 0")
    parser.add_argument("--num-workers", type=number(int, 1), default=os.cpu_count() or 1, help="converting processes")
    return parser


def parse_corpus(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse, and refuse what contradicts itself."""
    args = parser.parse_args(argv)
    if 0 < args.max_duration < args.min_duration:
        parser.error(f"--max-duration {args.max_duration:g} is less than --min-duration {args.min_duration:g}")
    return args


def _base_url(text: str) -> str:
    if not re.match(r"https?://[^/]", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an address that starts with http:// or https://")
    return text


# Download.


@contextmanager
def corpus_folder(args: argparse.Namespace, corpus: str) -> Iterator[None]:
    """Make or take up the target folder, for one process at a time.

    Raises: ValueError, naming the file, if another corpus, or this one made otherwise, is there; OSError.
    """
    args.target_dir.mkdir(parents=True, exist_ok=True)
    settings, path = _settings(args, corpus), args.target_dir / SETTINGS
    with open(args.target_dir / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of by the system, however this process ends
        except BlockingIOError:
            raise ValueError(f"{args.target_dir}: another process is making the corpus there: wait for it") from None
        try:
            found = json.loads(path.read_text()) if path.exists() else settings
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}): delete it, or give another --target-dir") from None
        if found != settings:
            raise ValueError(f"{path}: says {found}, and this would be {settings}: give another --target-dir")
        yield


def _settings(args: argparse.Namespace, corpus: str) -> dict[str, object]:
    """What every recording in the target folder follows from."""
    return {"corpus": corpus, "sample_rate": args.sample_rate, "format": args.format}


def unpacked(args: argparse.Namespace, archives: Callable[[], Sequence[Archive]], official_url: str | None) -> list[Path]:
    """The folders that hold the corpus: those given, or its archives, fetched where needed and unpacked, each once.

    archives: which ones to fetch, asked only if none is given.
    """
    if args.source_dir:
        if not args.source_dir.is_dir():
            raise FileNotFoundError(f"--source-dir {args.source_dir}: no such folder")
        return [args.source_dir]
    if args.tar_path:
        return [_unpack(args, path) for path in given_archives(args.tar_path)]
    checksum_of = _official_checksum if args.base_url == official_url else _Mirror(args.base_url).checksum
    return [_fetch_and_unpack(args, archive, checksum_of) for archive in archives()]


def given_archives(paths: Sequence[Path]) -> list[Path]:
    """The archives of --tar-path, a folder standing for those in it. Raises: FileNotFoundError."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
            if not inside:
                raise FileNotFoundError(f"--tar-path {path}: no archive in it: expected files such as NAME.tar.gz")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"--tar-path {path}: no such file")
    return found


def _official_checksum(archive: Archive) -> str | None:
    return archive.checksum


class _Mirror:
    """Another place than the official one: its archives may be of another day, so its own md5sum.txt counts, if any."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    @cached_property
    def _listed(self) -> dict[str, str]:
        listed = fetch_text(archive_url(self._base_url, "md5sum.txt")) or ""
        found = re.findall(r"^([0-9a-f]{32}) [ *](?:.*/)?(\S+)$", listed, re.MULTILINE)
        return {name: f"md5:{digest}" for digest, name in found}

    def checksum(self, archive: Archive) -> str | None:
        return self._listed.get(archive.name)


def archive_url(base_url: str, name: str) -> str:
    return f"{base_url.rstrip('/')}/{quote(name)}"


def _fetch_and_unpack(args: argparse.Namespace, archive: Archive, checksum_of: Callable[[Archive], str | None]) -> Path:
    path = args.target_dir / "downloads" / archive.name
    folder = args.target_dir / "unpacked" / archive_stem(path)
    if folder.exists() and not path.exists():
        return folder  # its archive has been deleted to save room
    if not path.exists():
        checksum = checksum_of(archive)
        fetch(archive_url(args.base_url, archive.name), path, checksum)
        how = f"{checksum.partition(':')[0].upper()} as published" if checksum else "length as announced, no checksum published"
        print(f"fetched {path}, {path.stat().st_size} bytes: {how}")
    return _unpack(args, path)


def _unpack(args: argparse.Namespace, archive: Path) -> Path:
    """Unpack an archive unless that is done. Raises: ValueError if another one of that name was; as extract."""
    folder = args.target_dir / "unpacked" / archive_stem(archive)
    origin = folder.with_name(f"{folder.name}.json")
    state = {"archive": archive.name, "bytes": archive.stat().st_size}
    if folder.exists():
        if not origin.exists() or json.loads(origin.read_text()) != state:
            raise ValueError(f"{folder}: unpacked from another {archive.name}: delete it, or give another --target-dir")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(origin) as temporary:
        temporary.write_text(json.dumps(state) + "\n")
    extract(archive, folder)
    return folder


def find_folder(folders: Iterable[Path], wanted: Callable[[Path], bool], what: str) -> Path:
    """The folder that a corpus's own layout starts from, wherever below those unpacked it lies; the first by name.

    Raises: ValueError saying what was looked for.
    """
    folders = list(folders)
    for folder in folders:
        for path, subfolders, _ in os.walk(folder):
            subfolders.sort()
            if wanted(Path(path)):
                return Path(path)
    raise ValueError(f"{', '.join(map(str, folders))}: {what} is not there: is this the right corpus, and all of it?")


def inside(folder: Path, name: str) -> Path | None:
    """The file of a name that a corpus's own table gives; None if that leads out of the corpus."""
    path = Path(name)
    return None if path.is_absolute() or ".." in path.parts or "\0" in name else folder / path


# Preparation and manifests.


def make_corpus(corpus: str, spoken: Sequence[Spoken], args: argparse.Namespace) -> int:
    """Convert what is said, write manifests and report, and say what became of it all.

    corpus: what the names of manifests begin with.
    Returns: the exit status: 1 if recordings are broken and `--on-bad-data skip` does not accept that.
    Raises: ValueError if nothing is left; OSError.
    """
    settings_path = args.target_dir / SETTINGS
    if not settings_path.exists():
        with whole_file(settings_path) as path:
            path.write_text(json.dumps(_settings(args, corpus), indent=2) + "\n")
    spoken = _named_once(spoken)
    plan = Plan(args.target_dir, args.sample_rate, args.format, args.keep_case, args.digits == "keep")
    outcomes = convert_all(spoken, plan, args.num_workers)
    is_pruned = partial(_is_pruned, min_duration=args.min_duration, max_duration=args.max_duration)
    parts: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        parts[outcome.spoken.part] += [outcome] if outcome.audio else []
    for part, usable in parts.items():
        _write_part(args.manifest_dir / f"{corpus}_{part}_manifest.csv", usable, is_pruned)
    status = _write_report(args, corpus, outcomes, [outcome for outcome in outcomes if outcome.audio and is_pruned(outcome)])
    if not any(parts.values()):
        reasons = [outcome.broken or outcome.dropped for outcome in outcomes]
        raise ValueError(f"{corpus}: none of {len(outcomes)} utterances can be used{_examples(reasons)}")
    return status


def _named_once(spoken: Sequence[Spoken]) -> list[Spoken]:
    """Drop what is named like an utterance before it, whose files it would overwrite, or as no manifest can say."""
    seen, named = set(), []
    for utterance in spoken:
        name = (utterance.part, utterance.name.casefold())
        if name in seen and not utterance.drop:
            utterance = replace(utterance, drop=f"{utterance.name}: the name comes twice")
        if not utterance.name.isprintable():
            utterance = replace(utterance, drop=f"{utterance.name!a}: the name has characters that cannot be printed")
        seen.add(name)
        named.append(utterance)
    return named


def _is_pruned(outcome: Outcome, min_duration: float, max_duration: float) -> bool:
    """Only training samples are pruned: what is evaluated stays as it was published."""
    if outcome.spoken.part.partition("_")[0] in HELD_OUT_PARTS:
        return False
    return outcome.duration < min_duration or 0 < max_duration < outcome.duration


def _write_part(path: Path, outcomes: Sequence[Outcome], is_pruned: Callable[[Outcome], bool]) -> None:
    kept = [
        Utterance(outcome.audio, text_path=outcome.text_path, duration=outcome.duration)
        for outcome in outcomes
        if not is_pruned(outcome)
    ]
    hours = sum(utterance.duration for utterance in kept) / 3600
    if kept:
        write_manifest(path, sort_by_duration(kept))
        print(f"{path}: {len(kept)} utterances, {hours:.2f} hours, {len(outcomes) - len(kept)} pruned")
    else:
        path.unlink(missing_ok=True)  # of an earlier run
        print(f"{path}: not written: no utterance is left, {len(outcomes)} are pruned (--min-duration, --max-duration)")


def _write_report(args: argparse.Namespace, corpus: str, outcomes: Sequence[Outcome], pruned: Sequence[Outcome]) -> int:
    """Write what became of every utterance that is not simply there, and count it on the terminal."""
    path = args.manifest_dir / f"{corpus}_report.jsonl"
    entries = [entry for outcome in outcomes for entry in _entries(outcome)]
    entries += [{"what": "pruned", **_name(outcome), "seconds": round(outcome.duration, 3)} for outcome in pruned]
    counts = Counter(entry["what"] for entry in entries)
    summary = {"corpus": corpus, "utterances": len(outcomes), **{what: counts[what] for what in KINDS}}
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        for entry in (summary, *entries):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    told = ", ".join(f"{counts[what]} {meaning}" for what, meaning in KINDS.items())
    print(f"{path}: of {len(outcomes)} utterances {told}")
    broken = [outcome.broken for outcome in outcomes if outcome.broken]
    if not broken:
        return 0
    advice = "" if args.on_bad_data == "skip" else "; fetch them again, or accept that with --on-bad-data skip"
    print(f"{len(broken)} broken recordings are left out{advice}{_examples(broken)}", file=sys.stderr)
    return 0 if args.on_bad_data == "skip" else STATUS_FAILED


KINDS = {
    "changed": "transcripts changed beyond case",
    "dropped": "transcripts dropped",
    "broken": "recordings broken",
    "pruned": "pruned by duration",
}


def _name(outcome: Outcome) -> dict[str, str]:
    return {"utterance": f"{outcome.spoken.part}/{outcome.spoken.name}"}


def _entries(outcome: Outcome) -> Iterator[dict[str, str]]:
    before = {"before": outcome.spoken.text}
    if outcome.broken:
        yield {"what": "broken", **_name(outcome), "reason": outcome.broken}
    elif outcome.dropped:
        yield {"what": "dropped", **_name(outcome), "reason": outcome.dropped, **before}
    elif outcome.changed:
        yield {"what": "changed", **_name(outcome), **before, "after": outcome.text}


def _examples(reasons: Sequence[str]) -> str:
    more = [f"and {len(reasons) - LISTED} more"] if len(reasons) > LISTED else []
    return "".join(f"\n  {line}" for line in [*reasons[:LISTED], *more])
