"""Find what is wrong with data sets before any GPU hour is spent on them.

    python data/verify_manifest.py --manifest train.csv val.csv test.csv
    python data/verify_manifest.py --manifest train.csv --fix clean.csv --json > report.json
    python data/verify_manifest.py --manifest train.csv --model-path models/deepspeech_final.pth

Every recording is decoded, on all cores. Errors cannot be trained on, or make scores worthless: recordings that are missing,
unreadable, truncated, silent or too short, transcripts that are missing, empty, outside the labels or too long for CTC, one
recording with different transcripts, or in several manifests. Warnings are for a person to look at: clipped, nearly silent,
partly silent or narrow-band recordings, other sample rates, duplicates, a speaker in several manifests, and a number of
characters per second far from the usual. Several manifests are compared with each other, and their statistics shown.

Speakers are known by their folder, or as in LibriSpeech's file names, where that is how the recordings are laid out;
--speaker-pattern says how otherwise. --fix writes what is left without errors and duplicates; of a recording that several
manifests have, the last one keeps it. With --model-path a trained model ranks the utterances by CTC loss per character: wrong
transcripts come first.

The exit status is 1 if there is an error, with --strict also if there is a warning.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the processes share the cores; a thread in each is enough
    if not __package__:  # run as a file, from whatever folder
        sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections.abc import Sequence
from types import ModuleType

from config import AudioConfig
from data.command_line import UsageError, argument_parser, number, run_script
from data.files import check_writable
from data.labels import Labels
from data.speakers import guess_pattern, speaker_pattern

ROOT = Path(__file__).resolve().parents[1]
LINES_SHOWN = 3  # of each kind


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--manifest", nargs="+", required=True, metavar="FILE", help="manifests, the test set last")
    parser.add_argument("--labels-path", metavar="FILE", help="labels of the model to be trained (default: labels.json)")
    parser.add_argument("--sample-rate", type=number(int, 1000), help="Hz of the model to be trained (default: 16000)")
    parser.add_argument("--jobs", type=number(int, 0), default=0, help="processes; 0: one per core")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--show", type=number(int, 0), default=LINES_SHOWN, help="lines shown of each kind of problem")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 for warnings as well")
    parser.add_argument("--fix", metavar="OUT", help="write a clean manifest there (.csv or .jsonl); a folder for several")
    parser.add_argument(
        "--speaker-pattern",
        metavar="REGEX",
        type=speaker_pattern,
        help="how a recording's path tells its speaker, in group 1: '/([^/]+)/[^/]+$' is its folder",
    )
    model = parser.add_argument_group("wrong transcripts")
    model.add_argument("--model-path", metavar="FILE", help="model that ranks utterances; labels and sample rate are its own")
    model.add_argument("--suspects", type=number(int, 1), default=20, help="utterances shown of that ranking")
    model.add_argument("--batch-size", type=number(int, 1), default=20, help="utterances per batch")
    model.add_argument("--num-workers", type=number(int, 0), default=0, help="data-loading processes; 0: none")
    model.add_argument("--cuda", action="store_true", help="run the model on CUDA")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: verify(args))


def verify(args: argparse.Namespace) -> int:
    """Returns: the exit status. Raises: OSError, ValueError naming what is no manifest, or cannot be written."""
    # Not at the top, so that --help need not wait for torch, which the features bring with them.
    from data import doctor, doctor_report

    outputs = clean_paths(args.manifest, args.fix)
    ranker = model_side().Ranker(args.model_path, args.cuda) if args.model_path else None
    labels, audio = settings(args, ranker)
    manifests = doctor.listen(args.manifest, labels, audio, args.jobs)
    suspected = doctor.everything(manifests) if ranker else doctor.dense(manifests)
    if suspected:
        formula = ranker.output_frames if ranker else model_side().output_frames
        doctor.check_frames(suspected, labels, audio, formula)
    speakers = args.speaker_pattern or guess_pattern([[u.audio for u in manifest.utterances] for manifest in manifests])
    doctor.compare(manifests, speakers)
    report = doctor_report.make_report(manifests, labels, speakers.pattern if speakers else None)
    if ranker is not None:
        utterances = doctor.without_errors(manifests)
        ranked = ranker.rank(utterances, args.batch_size, args.num_workers) if utterances else []
        report["suspects"] = doctor_report.suspect_rows(ranked, utterances)
    if outputs:
        report["fixed"] = [doctor_report.write_clean(*pair) for pair in zip(manifests, outputs, strict=True)]
    lines = doctor_report.report_lines(report, args.show, args.suspects)
    print(json.dumps(report, ensure_ascii=False, indent=1) if args.json else "\n".join(lines))
    return int(bool(report["errors"] or (args.strict and report["warnings"])))


def clean_paths(manifests: Sequence[str], fix: str | None) -> list[str]:
    """Where the clean manifests go. Raises: UsageError, OSError if that cannot be."""
    if fix is None:
        return []
    paths = [fix] if len(manifests) == 1 else [os.path.join(fix, os.path.basename(manifest)) for manifest in manifests]
    if len(set(paths)) < len(paths):
        raise UsageError(f"--fix {fix}: two manifests have the same file name; clean them one by one")
    for path in paths:
        if any(os.path.realpath(path) == os.path.realpath(manifest) for manifest in manifests):
            raise UsageError(f"--fix {fix}: is a manifest that is read; expected another name")
        check_writable(path)
    return paths


def settings(args: argparse.Namespace, ranker: object | None) -> tuple[Labels, AudioConfig]:
    """The model's own, or what the flags say of a model to come. Raises: UsageError if both speak, and differ."""
    if ranker is None:
        rate = args.sample_rate or AudioConfig.sample_rate
        return Labels.read(args.labels_path or ROOT / "labels.json"), AudioConfig(sample_rate=rate)
    if args.labels_path and Labels.read(args.labels_path) != ranker.labels:
        raise UsageError(f"--labels-path {args.labels_path}: not the labels of {args.model_path}; leave one of the flags out")
    if args.sample_rate not in (None, ranker.audio.sample_rate):
        raise UsageError(f"--sample-rate {args.sample_rate}: {args.model_path} has {ranker.audio.sample_rate} Hz")
    return ranker.labels, ranker.audio


def model_side() -> ModuleType:
    """What needs torch and the network; the only place in data/ that reaches up to asr, and only when it is needed."""
    from asr import suspects

    return suspects


if __name__ == "__main__":
    raise SystemExit(main())
