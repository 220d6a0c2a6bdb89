"""Write down what is said in recordings, of any number, length and format, or live from a pipe.

    python transcribe.py --model-path models/deepspeech_final.pth --audio-path speech.wav
    python transcribe.py --model-path models/deepspeech_final.pth --audio-path talks/ more.mp3 --format srt --output-dir texts
    arecord -f S16_LE -r 16000 -t raw | python transcribe.py --model-path models/live.pth --stream --audio-path -

--audio-path takes files, folders, patterns such as "talks/*.mp3", manifests (.csv, .jsonl, .tar) and - for standard input; of
folders and manifests, each recording is transcribed. What libsndfile reads is read, and what ffmpeg does where PyAV is
installed. Long recordings are cut at pauses, in bounded memory. A recording that cannot be read is named, the others are
done, and the exit status is 1.

Formats: json as the predecessor's, with a line for each of several recordings; jsonl is that with the recording's name and
duration always; text; srt and vtt subtitles; ctm and tsv with times in seconds.
"""

import argparse
import os
import sys

from asr import options
from data.command_line import UsageError, argument_parser, number, progress_bar, run_script, tell

FORMATS = ("json", "jsonl", "text", "srt", "vtt", "ctm", "tsv")
SUBTITLES = ("srt", "vtt")
PLAIN_SAMPLES = (".raw", ".pcm")  # what files are called that have no header
BATCH_SECONDS = 60.0  # more gains no speed on a CPU, and takes memory
NAMED = 10  # recordings, of those that failed, in the last line


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--audio-path", nargs="+", default=["audio.wav"], metavar="PATH", help="what to transcribe")
    parser.add_argument("--format", choices=FORMATS, help="of the results (default: json, with --stream text)")
    parser.add_argument("--output-dir", metavar="DIR", help="write a file for each recording there, as soon as it is done")
    parser.add_argument("--resume", action="store_true", help="leave out recordings whose file is in --output-dir already")
    parser.add_argument("--offsets", action="store_true", help="JSON: the output frame at which each character starts")
    parser.add_argument("--words", action="store_true", help="JSON: start and end of each word in seconds, and its confidence")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--batch-size", type=number(int, 1), metavar="N", help="pieces of recordings that are heard at once")
    size.add_argument(
        "--batch-seconds",
        type=number(float, above=0),
        metavar="S",
        help=f"instead: seconds of audio heard at once, padding included (default: {BATCH_SECONDS:g})",
    )
    live = parser.add_argument_group("live, for models trained with --no-bidirectional and --streaming-norm")
    live.add_argument(
        "--stream", action="store_true", help="transcribe 16-bit PCM or WAV as it comes; --audio-path - is a pipe"
    )
    live.add_argument("--pcm-rate", type=number(int, 1000, 768000), metavar="HZ", help="of raw PCM (default: the model's)")
    live.add_argument("--pause", type=number(float, above=0), metavar="S", help="silence that ends a line (default: 0.6)")
    live.add_argument("--partials", action="store_true", help="print what is not final yet, also where that is no terminal")
    options.add_inference_options(parser)
    args = parser.parse_args(argv)
    if args.resume and args.output_dir is None:
        parser.error("--resume: expected --output-dir DIR, where results are looked for")
    if args.stream:
        _check_stream(parser, args)
    for name in ("pcm_rate", "pause", "partials"):
        if getattr(args, name) and not args.stream:
            parser.error(f"--{name.replace('_', '-')}: expected --stream beside it")
    return args


def _check_stream(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if len(args.audio_path) != 1:
        parser.error("--stream: expected one --audio-path: a file, or - for standard input")
    if args.format not in (None, "text", "jsonl"):
        parser.error(f"--stream --format {args.format}: expected text or jsonl, which are written line by line")
    for name in ("output_dir", "offsets", "words", "batch_size", "batch_seconds"):
        if getattr(args, name):
            parser.error(f"--stream and --{name.replace('_', '-')} contradict each other: leave one of them out")
    if args.top_paths > 1:
        parser.error("--stream and --top-paths contradict each other: a stream has one reading; leave one of them out")


def transcribe(args: argparse.Namespace) -> None:
    from asr.recognizer import Recognizer
    from asr.transcribing import transcribe_recordings
    from asr.transcript_files import Folder, Page, Style, result_path
    from data.recordings import find_recordings
    from data.samplers import BatchLimit

    style = Style(args.format or "json", args.offsets, args.words)
    recordings = find_recordings(args.audio_path)
    if style.format in SUBTITLES and len(recordings) > 1 and args.output_dir is None:
        raise UsageError(
            f"--format {style.format}: {len(recordings)} recordings: expected --output-dir DIR, for a file of each"
        )
    todo = recordings
    if args.resume:
        todo = [r for r in recordings if not os.path.exists(result_path(args.output_dir, r, style.format))]
        tell(f"{len(recordings) - len(todo)} of {len(recordings)} recordings are in {args.output_dir} already", error=True)
        if not todo:
            return
    if args.output_dir:
        check_folder(args.output_dir)
    recognizer = Recognizer.from_options(args)
    results = Folder(recognizer, style, args.output_dir) if args.output_dir else Page(recognizer, style, len(recordings))
    seconds = args.batch_seconds or (None if args.batch_size else BATCH_SECONDS)
    failed = []
    with Progress(todo) as progress:
        for outcome in transcribe_recordings(recognizer, todo, BatchLimit.of(args.batch_size, seconds), progress.heard):
            progress.clear()
            if outcome.transcript is not None:
                results.add(outcome)
            elif len(recordings) == 1:
                raise ValueError(outcome.error)
            else:
                tell(f"failed: {outcome.error}", error=True)
                failed.append(outcome.recording.shown)
            progress.done()
    if args.output_dir:
        tell(f"{len(todo) - len(failed)} transcripts in {args.output_dir}; {progress.summary()}")
    if failed:
        named = ", ".join(failed[:NAMED]) + (f" and {len(failed) - NAMED} more" if len(failed) > NAMED else "")
        raise ValueError(f"{len(failed)} of {len(todo)} recordings could not be transcribed, as said above: {named}")


def check_folder(folder: str) -> None:
    """Find out before the work whether results can be written. Raises: UsageError, OSError naming the folder."""
    from data.files import check_writable, sweep

    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"--output-dir {folder}: not a folder; expected one, or a new name")
    check_writable(os.path.join(folder, "results"))
    sweep(folder)


class Progress:
    """A bar of recordings that are done, or of a single one's seconds, and how much faster than they were spoken."""

    def __init__(self, recordings: list):
        import time

        self._clock, self._began, self._seconds = time.monotonic, time.monotonic(), 0.0
        self._single = len(recordings) == 1
        total, unit = (duration_of(recordings[0]), " s of audio") if self._single else (len(recordings), "recording")
        self._bar = progress_bar(total=total, desc="transcribing", unit=unit)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def heard(self, seconds: float) -> None:
        self._seconds += seconds
        self._bar.set_postfix_str(self.summary(), refresh=False)
        self._bar.update(round(self._seconds) - self._bar.n if self._single else 0)
        self._bar.refresh()

    def clear(self) -> None:
        """Make room on the terminal for a result."""
        self._bar.clear()

    def done(self) -> None:
        self._bar.update(0 if self._single else 1)
        self._bar.refresh()

    def summary(self) -> str:
        heard = f"{self._seconds:.1f} s of audio"
        return f"{heard}, real-time factor {(self._clock() - self._began) / self._seconds:.3f}" if self._seconds else heard


def duration_of(recording: object) -> int | None:
    """Whole seconds, for a bar on a terminal; None where nobody looks, or they are not known beforehand."""
    from data.audio import audio_duration

    if not isinstance(recording.source, str) or not sys.stderr.isatty():
        return None
    try:
        return round(recording.duration or audio_duration(recording.source))
    except (OSError, ValueError):  # which is told when it is read
        return None


def stream(args: argparse.Namespace) -> None:
    from asr.live import transcribe_live
    from asr.recognizer import Recognizer
    from asr.streaming import PAUSE_SECONDS
    from data.recordings import STANDARD_INPUT, standard_input

    (path,) = args.audio_path
    recognizer = Recognizer.from_options(args)
    pause = args.pause or PAUSE_SECONDS
    live = {"rate": args.pcm_rate, "pause": pause, "as_json": args.format == "jsonl", "partials": args.partials}
    if path == STANDARD_INPUT:
        transcribe_live(recognizer, standard_input(), **live)
    elif os.path.isfile(path) and not args.pcm_rate and not path.lower().endswith(PLAIN_SAMPLES):
        transcribe_live(recognizer, path, **live, name=path)
    else:  # that, or a named pipe
        with open(path, "rb", buffering=0) as file:
            transcribe_live(recognizer, file, **live, name=path)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: stream(args) if args.stream else transcribe(args))


if __name__ == "__main__":
    raise SystemExit(main())
