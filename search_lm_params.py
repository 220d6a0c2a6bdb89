"""Search for the weights with which the beam decoder makes the fewest word errors: of the language model, and of each word.

    python test.py --test-manifest val.csv --save-output val.npz
    python search_lm_params.py --saved-output val.npz --lm-path lm.arpa.gz
    python select_lm_params.py --input-path tune_results.json

Search on a validation set, never on the test set: weights chosen on that make its error rate look better than it is. What
test.py --save-output of deepspeech.pytorch 2.x wrote is read too; it has no labels, so --model-path must name the model.

--method grid tries --lm-num-alphas x --lm-num-betas pairs, with --unk-penalty and --beam-width as they are given. --method
optuna makes --trials trials between the same bounds, and tries unk penalties of 0 to 20 and beam widths of 8 to 128 as well,
unless the flags of these fix them; of one seed, the same trials. (It needs: pip install -r requirements-tuning.txt)

--output-path gets a JSON list of [alpha, beta, WER, CER] at the end, whole or not at all. Each row, as it is finished, goes to
OUTPUT.partial.jsonl, with unk penalty and beam width, and stays there: the same command, or one with another grid, goes on from
it, and another search can share the file. --prune saves time on rows that cannot win: each is decoded until it has more word
errors than the best one before it, and then is in OUTPUT.partial.jsonl only, without a WER.
"""

import argparse
import math
import os
import shlex
from contextlib import closing
from dataclasses import replace

from asr import options
from asr.tuning_results import Row, RowFile, best_result, decoder_flags, describe, row_file_of, write_results
from config import DECODER_BOUNDS, DecoderConfig
from data.command_line import UsageError, argument_parser, number, parse_typed, progress_bar, run_script
from data.files import check_writable
from data.labels import Labels
from data.processes import cores

BOUNDS = {name: (least, most) for name, least, most in DECODER_BOUNDS}
OF_OTHER_METHOD = {"grid": ("trials",), "optuna": ("lm_num_alphas", "lm_num_betas")}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--saved-output", required=True, metavar="FILE", help="what test.py --save-output wrote for a validation set"
    )
    parser.add_argument(
        "--model-path", default="models/deepspeech_final.pth", help="model file, for its labels if the saved output has none"
    )
    parser.add_argument("--labels-path", metavar="FILE", help="JSON list of the labels, instead of a model file")
    parser.add_argument("--output-path", default="tune_results.json", help="where the results go")
    parser.add_argument("--num-workers", type=number(int, 1), default=16, help="threads, not more than there are cores")
    parser.add_argument("--cer-spaces", action="store_true", help="count spaces in the character error rate")
    _add_search_options(parser)
    options.add_decoder_options(parser)
    parser.set_defaults(decoder="beam")
    return parse_typed(parser, argv)


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument("--method", choices=("grid", "optuna"), default="grid", help="try all, or where it looks promising")
    for name, first, last, count in (("alpha", 0.0, 3.0, 45), ("beta", 0.0, 0.5, 8)):
        weight = number(float, *BOUNDS[name])
        group.add_argument(f"--lm-{name}-from", type=weight, default=first, help=f"lowest {name}")
        group.add_argument(f"--lm-{name}-to", type=weight, default=last, help=f"highest {name}")
        group.add_argument(f"--lm-num-{name}s", type=number(int, 1), default=count, help=f"how many values of {name}")
    group.add_argument("--trials", type=number(int, 1), default=100, help="of optuna")
    group.add_argument("--prune", action="store_true", help="cut short the rows that cannot win; the list is without them")
    seed = number(int, 0, 2**32 - 1)
    group.add_argument("--seed", type=seed, default=123456, help="of optuna's trials, and of the order of utterances")


def check(args: argparse.Namespace) -> None:
    """Raises: UsageError for flags that cannot be meant."""
    if args.decoder != "beam":
        raise UsageError(f"--decoder {args.decoder}: has no weights to search for; leave the flag out")
    if args.lm_path is None:
        raise UsageError("--lm-path: expected a language model, whose weight is searched for")
    for name in ("alpha", "beta"):
        lowest, highest = getattr(args, f"lm_{name}_from"), getattr(args, f"lm_{name}_to")
        if lowest > highest:
            raise UsageError(f"--lm-{name}-from {lowest:g}: expected at most the {highest:g} of --lm-{name}-to")
        if name in args.typed:
            raise UsageError(f"--{name}: is searched for; --lm-{name}-from and --lm-{name}-to say where")
    for name in OF_OTHER_METHOD[args.method]:
        if name in args.typed:
            raise UsageError(f"--{name.replace('_', '-')}: has no meaning with --method {args.method}")


def search(args: argparse.Namespace) -> None:
    check(args)
    config = replace(options.decoder_config(args), top_paths=1, lm_workers=1)
    check_writable(args.output_path)
    from asr.saved_output import read_saved_output
    from asr.tuning import Scorer, import_optuna, search_key
    from decoder import build_decoder

    if args.method == "optuna":
        import_optuna()
    output = read_saved_output(args.saved_output)
    symbols = find_labels(args, output.labels, output.log_probs[0].shape[1]).symbols
    decoder = build_decoder(config, symbols)
    key, threads = search_key(output, symbols, config, args.cer_spaces), min(args.num_workers, cores())
    with (
        closing(RowFile(row_file_of(args.output_path), key)) as known,
        Scorer(output, decoder, known, threads, args.seed, args.prune, args.cer_spaces) as scorer,
    ):
        rows = run(args, scorer, config)
    write_results(args.output_path, rows)
    complete = [row for row in rows if row.complete]
    counts = [f"{len(rows)} rows"]
    counts += [f"{len(rows) - scorer.decoded} of them known before"] if scorer.decoded < len(rows) else []
    counts += [f"{len(rows) - len(complete)} cut short"] if len(complete) < len(rows) else []
    print(f"{args.output_path}: {', '.join(counts)}")
    best = best_result(row.result for row in complete)
    print(describe(best))
    print(decoder_flags(next(row.point for row in complete if row.result == best)), *typed_flags(args))


def typed_flags(args: argparse.Namespace) -> list[str]:
    """The decoder's flags that are not searched for, as they were typed."""
    names = ("lm_path", "hotwords", "cutoff_top_n", "cutoff_prob", "token_min_logp", "beam_prune_logp")
    return [f"--{name.replace('_', '-')}={shlex.quote(str(getattr(args, name)))}" for name in names if name in args.typed]


def run(args: argparse.Namespace, scorer: object, config: DecoderConfig) -> list[Row]:
    """All rows, of a grid by alpha and then beta, of optuna by trial."""
    from asr import tuning

    alphas, betas = (args.lm_alpha_from, args.lm_alpha_to), (args.lm_beta_from, args.lm_beta_to)
    if args.method == "grid":
        points = tuning.grid((*alphas, args.lm_num_alphas), (*betas, args.lm_num_betas), config)
        count, search = len(points), tuning.search_grid(scorer, points, args.seed)
    else:
        unk_penalties = (config.unk_penalty,) * 2 if "unk_penalty" in args.typed else tuning.UNK_PENALTIES
        beam_widths = (config.beam_width,) * 2 if "beam_width" in args.typed else tuning.BEAM_WIDTHS
        bounds = (alphas, betas, unk_penalties, beam_widths)
        count, search = args.trials, tuning.search_optuna(scorer, *bounds, args.trials, args.seed)
    rows: dict[int, Row] = {}
    lowest = math.inf
    with progress_bar(total=count, desc="tuning", unit="row") as bar:
        for place, row in search:
            rows[place] = row
            lowest = min(lowest, row.wer) if row.complete else lowest
            bar.set_postfix_str(f"best WER {lowest:.3f}", refresh=False)
            bar.update()
    return [rows[place] for place in sorted(rows)]


def find_labels(args: argparse.Namespace, stored: Labels | None, count: int) -> Labels:
    """The labels of the saved output: its own, or of a model file, or of a list; all that are given must be the same.

    Raises: ValueError naming the file whose labels are no such, others, or not as many as the output has columns; OSError.
    """
    told: dict[str, Labels] = {}
    if stored is not None:
        told[args.saved_output] = stored
    if args.labels_path:
        told[args.labels_path] = Labels.read(args.labels_path)
    if "model_path" in args.typed or (not told and os.path.exists(args.model_path)):
        from asr.checkpoint import load_checkpoint

        told[args.model_path] = load_checkpoint(args.model_path).labels
    if not told:
        raise ValueError(f"{args.saved_output}: does not tell its labels; --model-path or --labels-path must")
    (first, labels), *others = told.items()
    for path, other in others:
        if other != labels:
            raise ValueError(f"{path}: its labels are {''.join(other.symbols)!r}, those of {first} {''.join(labels.symbols)!r}")
    if len(labels) != count:
        raise ValueError(f"{first}: {len(labels)} labels, and {args.saved_output} has output for {count}")
    return labels


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    rows = row_file_of(args.output_path)
    return run_script(lambda: search(args), f"interrupted; the same command goes on from the finished rows in {rows}")


if __name__ == "__main__":
    raise SystemExit(main())
