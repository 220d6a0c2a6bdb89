"""Write down what is said in a recording.

    python transcribe.py --model-path models/deepspeech_final.pth --audio-path speech.wav

Prints JSON. Recordings of any rate, width and number of channels are read, in every container libsndfile knows.
"""

import argparse
import json

from asr import options
from data.command_line import argument_parser, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--audio-path", default="audio.wav", help="recording to transcribe")
    parser.add_argument("--offsets", action="store_true", help="add the output frame at which each character starts")
    options.add_inference_options(parser)
    return parser.parse_args(argv)


def transcribe(args: argparse.Namespace) -> None:
    from asr.recognizer import Recognizer

    recognizer = Recognizer.from_options(args)
    hypotheses = recognizer.transcribe(args.audio_path)
    print(json.dumps(recognizer.answer(hypotheses, args.offsets), ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: transcribe(args))


if __name__ == "__main__":
    raise SystemExit(main())
