"""Draw what trainings wrote to metrics.jsonl, also while they go on: loss, learning rate, gradient norm, WER and CER as a PNG.

    python recipes/plot_metrics.py --metrics models/metrics.jsonl --output metrics.png

Several files are drawn over each other. Needs matplotlib: pip install -r requirements-graphs.txt
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

if not __package__:  # run as a script, from whatever folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.command_line import UsageError, argument_parser, run_script
from data.files import whole_file

PANELS = (  # kind of line, what of it
    ("step", "loss"),
    ("step", "lr"),
    ("step", "grad_norm"),
    ("epoch", "loss"),
    ("epoch", "wer"),
    ("epoch", "cer"),
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--metrics", type=Path, nargs="+", default=[Path("models/metrics.jsonl")], help="metrics.jsonl of runs")
    parser.add_argument("--output", type=Path, default=Path("metrics.png"), help="PNG to write")
    args = parser.parse_args(argv)
    if args.output.suffix.lower() != ".png":
        raise UsageError(f"--output {args.output}: expected a name that ends in .png")
    return args


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; the last one may still be growing. Raises: ValueError naming the line, OSError."""
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                int(record[record["kind"]])
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f'{path}:{number}: expected a line of metrics.jsonl, such as {{"kind": "epoch", "epoch": 1, "loss": 9.5}}'
                ) from None
            records.append(record)
    if not records:
        raise ValueError(f"{path}: no line of metrics yet")
    return records


def curve(records: list[dict], kind: str, name: str) -> tuple[list[int], list[float]]:
    """The numbers of the updates or epochs, and the values; where there is none, the line is broken by a NaN."""
    chosen = [record for record in records if record["kind"] == kind]
    values = [record.get(name) for record in chosen]
    return [record[kind] for record in chosen], [v if isinstance(v, (int, float)) else math.nan for v in values]


def plot(files: list[Path], output: Path) -> None:
    """Raises: ValueError, OSError with the file that cannot be read or written."""
    runs = [read_metrics(path) for path in files]
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"plotting needs matplotlib ({error}): pip install -r requirements-graphs.txt") from None
    figure = Figure(figsize=(15, 8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, name) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for path, records in zip(files, runs, strict=True):
            style = {"linewidth": 0.8} if kind == "step" else {"marker": ".", "linewidth": 1.2}
            axes.plot(*curve(records, kind, name), label=os.fspath(path), **style)
        axes.set(title=f"{kind}/{name}", xlabel="update" if kind == "step" else "epoch")
        if name == "grad_norm":
            axes.set_yscale("log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    if len(files) > 1:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    with whole_file(output) as temporary:
        figure.savefig(temporary, format="png")
    print(f"{output}: {', '.join(f'{len(records)} lines of {path}' for path, records in zip(files, runs, strict=True))}")


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = parse_arguments(argv)
        plot(args.metrics, args.output)

    return run_script(work)


if __name__ == "__main__":
    raise SystemExit(main())
