"""Serve a model over HTTP: files at /transcribe, OpenAI's interface below /v1, live speech at /stream, and a page at /.

    python server.py --model-path models/deepspeech_final.pth --host 127.0.0.1 --port 8888
    curl -X POST http://127.0.0.1:8888/transcribe -H "Content-type: multipart/form-data" -F "file=@speech.wav"

Recordings that wait together are heard as one batch. SIGTERM and Ctrl-C let what was accepted be answered first.
"""

import argparse
import re

from asr import options
from config import ServerConfig
from data.command_line import argument_parser, number, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on; 127.0.0.1: for this machine alone")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8888, help="port to listen on; 0: any that is free")
    parser.add_argument(
        "--workers", type=number(int, 1, 256), default=1, help="processes, with --cuda each on a GPU of its own"
    )
    default = ServerConfig()
    positive = number(float, above=0)
    group = parser.add_argument_group("at a time")
    group.add_argument(
        "--max-batch-size", type=number(int, 1), default=default.max_batch_size, metavar="N", help="pieces heard"
    )
    group.add_argument(
        "--max-wait-ms", type=number(float, 0), default=default.max_wait_ms, metavar="MS", help="that a piece waits for others"
    )
    group.add_argument(
        "--max-queue", type=number(int, 1), default=default.max_queue, metavar="N", help="recordings; more get 503"
    )
    group.add_argument("--max-streams", type=number(int, 0), default=default.max_streams, metavar="N", help="live connections")
    group = parser.add_argument_group("what clients may do")
    group.add_argument("--timeout", type=positive, default=default.timeout, metavar="S", help="for one request; then 504")
    group.add_argument("--max-upload-mb", type=positive, default=default.max_upload_mb, metavar="MB", help="per recording")
    group.add_argument(
        "--max-audio-seconds", type=positive, default=default.max_audio_seconds, metavar="S", help="per recording or stream"
    )
    group.add_argument("--api-key-file", metavar="FILE", help="keys, one a line; without any, everybody is let in")
    group.add_argument(
        "--allow-origin", type=origin, action="append", metavar="URL", help="a web page's origin that may ask too"
    )
    options.add_inference_options(parser)
    return parser.parse_args(argv)


def origin(text: str) -> str:
    """An argparse type: what a browser calls the place of a page."""
    found = re.fullmatch(r"(https?://[^/?#*\s]+)/?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: expected https://NAME or http://NAME:PORT, of one place")
    return found[1].lower()


def serve(args: argparse.Namespace) -> int:
    from serving.running import run_server

    return run_server(args)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: serve(args))


if __name__ == "__main__":
    raise SystemExit(main())
