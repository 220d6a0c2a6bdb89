"""Make manifests of an unpacked AN4 folder, with whole speakers held out for tuning.

    python recipes/an4_manifests.py --an4-dir ../shared/data/an4 --target-dir an4

The folder holds `train.csv` and `test.csv` (a header `audio,text`, then a recording and its words on each line) and
beside each recording its transcript, `.txt`. Recordings and transcripts stay where they are. Written, each sorted by
duration:

    train_manifest.csv       all of train.csv
    test_manifest.csv        all of test.csv
    tune_train_manifest.csv  train.csv without the held-out speakers
    tune_val_manifest.csv    the held-out speakers: choose settings on these, never on the test set

The speaker is the recording's folder; AN4 names women f... and men m....
"""

import csv
import random
import sys
from pathlib import Path

if not __package__:  # run as a script, from whatever folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.audio import audio_duration
from data.command_line import argument_parser, number, run_script
from data.labels import normalize_transcript
from data.manifest import read_transcript, sort_by_duration, write_manifest
from data.utterances import Utterance


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--an4-dir", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--target-dir", type=Path, default=Path("an4"), help="where the manifests go")
    parser.add_argument("--held-out-speakers", type=number(int, 2), default=8, help="speakers kept for tuning")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="which speakers are held out")
    args = parser.parse_args(argv)
    return run_script(lambda: make_manifests(args.an4_dir, args.target_dir, args.held_out_speakers, args.seed))


def make_manifests(an4_dir: Path, target_dir: Path, held_out_speakers: int, seed: int) -> None:
    """Write the four manifests and say what is in them. Raises: ValueError, OSError naming what stands in the way."""
    train = read_an4_list(an4_dir / "train.csv")
    test = read_an4_list(an4_dir / "test.csv")
    held_out = choose_speakers({speaker(utterance) for utterance in train}, held_out_speakers, seed)
    tune_train = [utterance for utterance in train if speaker(utterance) not in held_out]
    tune_val = [utterance for utterance in train if speaker(utterance) in held_out]
    for name, utterances in (("train", train), ("test", test), ("tune_train", tune_train), ("tune_val", tune_val)):
        target = target_dir / f"{name}_manifest.csv"
        write_manifest(target, sort_by_duration(utterances))
        print(summary(target, utterances))
    print(f"held out: {' '.join(held_out)}")


def read_an4_list(path: Path) -> list[Utterance]:
    """The utterances of `train.csv` or `test.csv`, with the transcript file beside each recording and its duration.

    Raises: ValueError naming the line if a row is not `audio,text`, its transcript file says something else, or its
        audio cannot be read; OSError if the list or a recording is missing.
    """
    utterances = []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["audio", "text"]:
            raise ValueError(f"{path}:1: header {reader.fieldnames}: expected audio,text")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}:{reader.line_num}: expected two columns, audio,text")
            audio = path.resolve().parent / row["audio"]
            utterance = Utterance(
                audio=str(audio),
                text_path=str(audio.with_suffix(".txt")),
                duration=audio_duration(audio),
                manifest=str(path),
                line=reader.line_num,
            )
            said, listed = read_transcript(utterance), normalize_transcript(row["text"])
            if said != listed:
                raise ValueError(f"{utterance.where}: {utterance.text_path} says {said!r}: expected {listed!r}")
            utterances.append(utterance)
    if not utterances:
        raise ValueError(f"{path}: no utterances: expected lines audio,text under the header")
    return utterances


def speaker(utterance: Utterance) -> str:
    return Path(utterance.audio).parent.name


def choose_speakers(speakers: set[str], count: int, seed: int) -> list[str]:
    """Draw speakers to hold out, women and men in the proportion of the set, at least one of each.

    Raises: ValueError if the set has too few speakers to hold out `count` and still train on both sexes.
    """
    women = sorted(name for name in speakers if name.startswith("f"))
    men = sorted(name for name in speakers if name.startswith("m"))
    if len(women) + len(men) < len(speakers):
        raise ValueError(f"speakers {sorted(speakers - {*women, *men})}: expected names that start with f or m")
    num_women = max(1, round(count * len(women) / max(1, len(speakers))))
    num_men = count - num_women
    if not (1 <= num_women < len(women) and 1 <= num_men < len(men)):
        raise ValueError(
            f"--held-out-speakers {count} of {len(women)} women and {len(men)} men: "
            "expected at least one of each held out and one of each left"
        )
    rng = random.Random(seed)
    return sorted(rng.sample(women, num_women) + rng.sample(men, num_men))


def summary(path: Path, utterances: list[Utterance]) -> str:
    hours = sum(utterance.duration for utterance in utterances) / 3600
    num_speakers = len({speaker(utterance) for utterance in utterances})
    return f"{path}: {len(utterances)} utterances, {hours:.3f} hours, {num_speakers} speakers"


if __name__ == "__main__":
    raise SystemExit(main())
