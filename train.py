"""Train a Deep Speech 2 model on the utterances of a manifest.

    python train.py --train-manifest data/train_manifest.csv --val-manifest data/val_manifest.csv

After each epoch the model is evaluated on the validation manifest, and kept in --model-path if its word error rate is the best
so far. asr/trainer.py holds the story, README.md tells the rest.
"""

import argparse
import sys

from asr import options
from data.command_line import argument_parser, number, parse_typed, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--train-manifest", default="data/train_manifest.csv", help="utterances to learn from")
    data.add_argument("--val-manifest", default="data/val_manifest.csv", help="utterances to judge each epoch by")
    data.add_argument("--labels-path", default="labels.json", help="JSON list of output labels, blank _ first")
    options.add_batch_options(data)
    data.add_argument("--num-workers", type=number(int, 0), default=4, help="data-loading processes; 0: none")
    data.add_argument("--no-shuffle", dest="shuffle", action="store_false", help="keep batches ordered by length")
    data.add_argument(
        "--no-sortaGrad",
        "--no-sorta-grad",
        dest="sorta_grad",
        action="store_false",
        help="shuffle the first epoch too, instead of running from the shortest utterance to the longest",
    )
    options.add_bad_data_option(data)
    options.add_audio_options(parser)
    options.add_model_options(parser)
    options.add_optimizer_options(parser)
    options.add_augment_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--epochs", type=number(int, 1), default=70, help="passes over the training manifest")
    run.add_argument(
        "--freeze-batch-norm",
        type=number(int, 0),
        metavar="N",
        default=0,
        help="in the last N epochs normalise by the running statistics, as evaluation does, and leave them as they are",
    )
    run.add_argument("--early-stopping", type=number(int, 0), default=0, help="stop after N epochs without a better model")
    run.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=123456, help="every random choice follows from it")
    run.add_argument("--cuda", action="store_true", help="train on CUDA")
    run.add_argument("--sync-bn", action="store_true", help="batch norm over the batch of all processes")
    run.add_argument(
        "--ctc-backend", choices=("torch", "warpctc"), default="torch", help="who computes the loss; warpctc must be installed"
    )
    run.add_argument("--cer-spaces", action="store_true", help="count spaces in the character error rate")
    options.add_training_precision_options(parser)
    files = parser.add_argument_group("checkpoints")
    files.add_argument("--checkpoint", action="store_true", help="write a checkpoint after every epoch")
    files.add_argument(
        "--checkpoint-per-batch", type=number(int, 0), metavar="N", default=0, help="also write one every N batches; 0: never"
    )
    files.add_argument("--save-folder", default="models/", help="where checkpoints and metrics.jsonl go")
    files.add_argument("--keep-checkpoints", type=number(int, 0), metavar="K", default=0, help="only the newest K; 0: all")
    files.add_argument("--model-path", default="models/deepspeech_final.pth", help="where the best model goes")
    files.add_argument(
        "--continue-from",
        metavar="FILE",
        default="",
        help="checkpoint to go on from as if nothing had happened; latest: the newest in --save-folder, if there is one",
    )
    files.add_argument("--finetune", action="store_true", help="take only the weights of --continue-from, and start afresh")
    options.add_graph_options(parser)
    options.add_process_options(parser)
    args = parse_typed(parser, argv)
    args.argv = sys.argv[1:] if argv is None else argv
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: train(args))


def train(args: argparse.Namespace) -> int:
    from asr import trainer  # torch comes with it, which --help need not wait for

    return trainer.train(args)


if __name__ == "__main__":
    raise SystemExit(main())
