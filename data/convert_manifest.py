"""Convert a manifest from one toolkit's format to another's.

    python data/convert_manifest.py --input train_manifest.csv --output train.jsonl --to nemo
    python data/convert_manifest.py --input kaldi/data/train --output train.jsonl --to nemo
    python data/convert_manifest.py --input train_manifest.csv --output set/metadata.csv --to huggingface --audio-dir set/audio

    csv           this toolkit's: recording,transcript file
    nemo          JSON Lines, which this toolkit reads as well
    kaldi         a data directory: wav.scp, text, segments, utt2spk, spk2utt
    mozilla       DeepSpeech's CSV: wav_filename,wav_filesize,transcript
    huggingface   an audiofolder: metadata.csv or metadata.jsonl beside the recordings
    webdataset    tar files of recordings and transcripts, 'corpus-{000..127}.tar', which this toolkit reads as well

The input's format is told by what is in it. What the output cannot hold is named, with how often it was there. Relative paths
start at the manifest's folder, Kaldi's at the current one. Pipes in wav.scp are never run: those that only decode a file
(cat, flac -c -d, sph2pipe -f wav, sox F -t wav -) mean that file, all others are refused. csv, mozilla, huggingface and
webdataset cannot hold segments of recordings, and huggingface none outside its folder: --audio-dir says where such are cut or
copied to.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file, from whatever folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from dataclasses import replace

from data.command_line import UsageError, argument_parser, number, run_script
from data.entries import Target
from data.formats import FORMATS, kind_of, read_entries, write_entries
from data.speakers import speaker_of, speaker_pattern


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--input", required=True, metavar="PATH", help="manifest, or Kaldi data directory, to read")
    parser.add_argument("--output", required=True, metavar="PATH", help="manifest, or Kaldi data directory, to write")
    parser.add_argument("--from", dest="source", choices=FORMATS, help="format of the input (default: what it looks like)")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format of the output")
    parser.add_argument("--audio-dir", metavar="DIR", help="folder for recordings that the output cannot name as they are")
    parser.add_argument("--sample-rate", type=number(int, 1000), default=16000, help="Hz of segments that are cut")
    parser.add_argument(
        "--speaker-pattern",
        metavar="REGEX",
        type=speaker_pattern,
        help="how a recording's path tells its speaker, in group 1: '/([^/]+)/[^/]+$' is its folder",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: convert(args))


def convert(args: argparse.Namespace) -> None:
    """Raises: OSError, ValueError naming the file and line that cannot be read, or the utterance that cannot be written."""
    if Path(args.input).resolve() == Path(args.output).resolve():
        raise UsageError(f"--output {args.output}: is the input; expected another path")
    contents = read_entries(args.input, args.source or kind_of(args.input))
    entries, lost = contents.entries, contents.losses
    if args.speaker_pattern:
        speakers = [entry.speaker or speaker_of(entry.utterance.audio, args.speaker_pattern) for entry in entries]
        entries = [replace(entry, speaker=speaker) for entry, speaker in zip(entries, speakers, strict=True)]
    lost = lost + write_entries(Target(args.output, args.audio_dir, args.sample_rate), args.to, entries)
    print(f"{len(entries)} utterances: {args.output}")
    for loss in lost:
        print(f"lost: {loss}")


if __name__ == "__main__":
    raise SystemExit(main())
