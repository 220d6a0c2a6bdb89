"""Measure a model's word and character error rate on the utterances of a manifest.

python test.py --model-path models/deepspeech_final.pth --test-manifest data/test_manifest.csv
"""

import argparse
import sys

from asr import options
from data.command_line import argument_parser, number, progress_bar, run_script
from data.files import check_writable


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--test-manifest", default="data/test_manifest.csv", help="utterances to transcribe")
    options.add_batch_options(parser)
    parser.add_argument("--num-workers", type=number(int, 0), default=4, help="data-loading processes; 0: none")
    parser.add_argument("--verbose", action="store_true", help="reference, hypothesis, WER and CER of each utterance")
    parser.add_argument("--save-output", metavar="FILE", help="keep the network's output there (.npz) for search_lm_params.py")
    parser.add_argument("--cer-spaces", action="store_true", help="count spaces in the character error rate")
    options.add_bad_data_option(parser)
    options.add_inference_options(parser)
    return parser.parse_args(argv)


def test(args: argparse.Namespace) -> None:
    from asr.evaluation import Errors, count_errors, evaluate
    from asr.recognizer import Recognizer
    from asr.saved_output import save_output
    from data.checks import read_manifests
    from data.dataset import BatchLoader, SpectrogramDataset
    from data.samplers import BatchLimit, LengthBatchSampler

    if args.save_output:
        check_writable(args.save_output)
    recognizer = Recognizer.from_options(args)
    (utterances,) = read_manifests([args.test_manifest], recognizer.audio, policy=args.on_bad_data)
    order = LengthBatchSampler(utterances.durations, BatchLimit.of(args.batch_size, args.batch_seconds), shuffle=False)
    dataset = SpectrogramDataset(utterances, recognizer.audio)
    loader = BatchLoader(dataset, order, args.num_workers, args.on_bad_data)
    outputs = {} if args.save_output else None
    batches = progress_bar(loader, "testing", unit="batch")
    found = evaluate(recognizer.model, batches, recognizer.decoder, recognizer.runtime, keep_output=outputs)
    unknown = sorted({c for i in found for c in recognizer.labels.unknown(utterances[i].text)})
    if unknown:
        print(f"warning: references hold {''.join(unknown)!r}, which this model cannot write", file=sys.stderr)
    references = [utterances[index].text for index in found]
    hypotheses = [hypothesis.text for hypothesis in found.values()]
    if args.verbose:
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            errors = Errors.between(reference, hypothesis, args.cer_spaces)
            print(f"Ref: {reference}\nHyp: {hypothesis}\nWER: {errors.wer:.3f}\tCER: {errors.cer:.3f}\n")
    if outputs is not None:
        save_output(args.save_output, outputs, references, recognizer.labels.symbols)
    errors = count_errors(references, hypotheses, args.cer_spaces)
    print(f"Test Summary\tAverage WER {errors.wer:.3f}\tAverage CER {errors.cer:.3f}")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: test(args))


if __name__ == "__main__":
    raise SystemExit(main())
