"""Find out when each word and character of known transcripts is said.

    python align.py --model-path models/deepspeech_final.pth --manifest data/test_manifest.csv --output test.ctm --format ctm
    python align.py --model-path models/deepspeech_final.pth --audio-path speech.wav --text "SO FAR SO GOOD"

The network's best path through the transcript says where each character is about, and the sound where exactly words begin and
end. Each word has a confidence from 0 to 1, which is near 0 where something else is said.

--output names one file for all, in the order of the manifest, which is there when all is done; --output-dir a folder in which
each utterance gets a file of its own as soon as it is aligned. Without either, standard output gets them. Times are seconds of
the recording, also where an utterance is only a part of it. An utterance that cannot be aligned is named and left out, and the
exit status is then 1.
"""

import argparse
import math
import os
import time

from asr import options
from config import DecoderConfig
from data.command_line import argument_parser, number, run_script, tell
from data.files import check_writable

FORMATS = ("json", "jsonl", "ctm", "textgrid")
NAMED = 10  # utterances, of those that could not be aligned, in the last line


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", metavar="FILE", help="utterances to align")
    source.add_argument("--audio-path", metavar="FILE", help="one recording to align, with --text or --text-path")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="WORDS", help="what is said in --audio-path")
    text.add_argument("--text-path", metavar="FILE", help="file that holds what is said in --audio-path")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the results")
    parser.add_argument("--ctm-characters", action="store_true", help="CTM: a line for each character, not each word")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--output", metavar="FILE", help="write all results there")
    target.add_argument("--output-dir", metavar="DIR", help="write a file for each utterance there, named as its recording")
    parser.add_argument(
        "--spike-lead",
        type=number(float, -1, 1),
        metavar="S",
        help="seconds by which the network writes a space before the words part (default: 0.05, for unidirectional networks "
        "0.15)",
    )
    options.add_batch_options(parser)
    parser.add_argument("--num-workers", type=number(int, 0), default=4, help="data-loading processes; 0: none")
    options.add_network_options(parser)
    args = parser.parse_args(argv)
    if (args.audio_path is None) == (args.text is not None or args.text_path is not None):
        parser.error("--audio-path and --text or --text-path belong together: expected both")
    if args.format == "textgrid" and args.manifest is not None and args.output_dir is None:
        parser.error("--format textgrid: a TextGrid holds one utterance: expected --output-dir, for a file of each")
    return args


def align(args: argparse.Namespace) -> None:
    from asr.alignment import Aligner, align_utterances, check_manifest, check_recording
    from asr.alignment_files import written_to
    from asr.recognizer import Recognizer
    from data.samplers import BatchLimit

    if args.output is not None:
        check_writable(args.output)
    if args.output_dir is not None:
        check_writable(os.path.join(args.output_dir, "alignment"))
    recognizer = Recognizer.from_options(args, DecoderConfig())
    if args.manifest is not None:
        utterances, left_out = check_manifest(args.manifest, recognizer)
        workers = args.num_workers
    else:
        utterances, left_out = check_recording(args.audio_path, args.text, args.text_path, recognizer), []
        workers = 0
    aligner = Aligner(recognizer.labels, recognizer.audio, recognizer.model.config, args.spike_lead)
    limit = BatchLimit.of(args.batch_size, args.batch_seconds)
    began, done, worst = time.monotonic(), 0, (math.inf, "")
    with written_to(args.output, args.output_dir, args.format, args.ctm_characters) as write:
        for utterance, alignment in align_utterances(utterances, recognizer, aligner, limit, workers, left_out):
            write(utterance, alignment)
            done, worst = done + 1, min(worst, (alignment.confidence, utterance.where))
        if not done:
            raise lost(left_out, done)
    if args.output or args.output_dir:
        seconds = float(utterances.durations.sum())
        speed = f"real-time factor {(time.monotonic() - began) / seconds:.3f}"
        tell(f"aligned {done} utterances, {seconds:.1f} s of audio, {speed}; least confident: {worst[1]}, {worst[0]:.4f}")
    if left_out:
        raise lost(left_out, done)


def lost(left_out: list[str], done: int) -> ValueError:
    named = ", ".join(left_out[:NAMED]) + (f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else "")
    return ValueError(f"{len(left_out)} of {done + len(left_out)} utterances could not be aligned, as said above: {named}")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: align(args))


if __name__ == "__main__":
    raise SystemExit(main())
