"""Write a model in a form that runs without this code.

    python export.py --model-path models/deepspeech_final.pth --format onnx --output deepspeech.onnx
    python export.py --model-path models/deepspeech_final.pth --format torch --output deepspeech.pt

Both hold the network with its softmax, labels and audio settings, and take batches of spectrograms of any length:
spects (B, 1, F, T) float32 and lens (B,) int64 become log_probs (B, L, C) float32 and out_lens (B,) int64. What was
written is run, in a padded batch and one by one, and kept only if it agrees with the model.
onnx is for onnxruntime and its like, torch (TorchScript) for torch.jit.load and the C++ library; both for a CPU.
"""

import argparse
import os

from data.command_line import argument_parser, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--model-path", default="models/deepspeech_final.pth", help="model file")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="what to write")
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write")
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> None:
    from asr.checkpoint import load_checkpoint
    from asr.export import export_model
    from data.files import check_writable

    check_writable(args.output)
    difference = export_model(load_checkpoint(args.model_path), args.format, args.output)
    print(
        f"{args.output}: {os.path.getsize(args.output) / 2**20:.1f} MiB, within {difference:.1g} of the model's probabilities"
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: export(args))


if __name__ == "__main__":
    raise SystemExit(main())
