"""The best weights that search_lm_params.py found: those with the lowest WER.

    python select_lm_params.py --input-path tune_results.json
    python select_lm_params.py --input-path tune_results.json --plot tune_results.png

Of rows with the same WER it is the one with the lowest CER, then with the smallest alpha. The flags that decode so follow, but
for those that the search was given, if INPUT.partial.jsonl, which the search keeps beside its results, is still there to tell
unk penalty and beam width. --plot draws the WER of each pair of weights; it needs matplotlib (pip install -r
requirements-graphs.txt).
"""

import argparse
import statistics
from collections.abc import Sequence
from itertools import pairwise

from asr.tuning_results import best_result, decoder_flags, describe, point_of, read_results
from data.command_line import UsageError, argument_parser, run_script
from data.files import whole_file


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--input-path", default="tune_results.json", metavar="FILE", help="what search_lm_params.py wrote")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the errors of all rows there")
    return parser.parse_args(argv)


def select(args: argparse.Namespace) -> None:
    """Raises: UsageError, ValueError, OSError naming the flag or the file."""
    if args.plot is not None and not args.plot.lower().endswith(".png"):
        raise UsageError(f"--plot {args.plot}: expected a name that ends in .png")
    results = read_results(args.input_path)
    best = best_result(results)
    if args.plot is not None:
        plot(results, best, args.plot)
    print(describe(best))
    point = point_of(best, args.input_path)
    if point is not None:
        print(decoder_flags(point))


def plot(results: Sequence[Sequence[float]], best: Sequence[float], path: str) -> None:
    """A heat map of the WER over the grid; rows that are on none are dots. Raises: ValueError without matplotlib; OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"plotting needs matplotlib ({error}): pip install -r requirements-graphs.txt") from None
    most = statistics.median(result[2] for result in results)  # so that the colours tell apart what is good
    alphas, betas = (sorted({result[i] for result in results}) for i in (0, 1))
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if len(results) > 1 and len(alphas) == len(betas) == len(results):
        alpha, beta, wer, _ = zip(*results, strict=True)
        drawn = axes.scatter(alpha, beta, c=wer, vmax=most)
    else:
        wer = {tuple(result[:2]): result[2] for result in results}
        table = [[wer.get((alpha, beta), float("nan")) for alpha in alphas] for beta in betas]  # rows cut short stay white
        drawn = axes.pcolormesh(edges(alphas), edges(betas), table, vmax=most)
    axes.plot(*best[:2], marker="*", color="red", markersize=12)
    axes.set(xlabel="alpha: weight of the language model", ylabel="beta: added for each word", title=describe(best))
    figure.colorbar(drawn, label="WER, %", extend="max")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def edges(values: Sequence[float]) -> list[float]:
    """The borders of cells around ascending values: half-way between them, and as far outside as inside."""
    if len(values) == 1:
        return [values[0] - 0.5, values[0] + 0.5]
    inner = [(low + high) / 2 for low, high in pairwise(values)]
    return [2 * values[0] - inner[0], *inner, 2 * values[-1] - inner[-1]]


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: select(args))


if __name__ == "__main__":
    raise SystemExit(main())
