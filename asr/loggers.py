"""What a training tells while it goes: metrics.jsonl always, TensorBoard and Visdom if asked for.

metrics.jsonl, beside the checkpoints, is the truth. The graphs show the same numbers under the names kind/number: step/loss
over updates, epoch/wer over epochs. A continued training first drops what its checkpoint does not know, so that a run killed at
any moment ends with the curves of a run that never was.

TensorBoard names a run after its folder below --log-dir, so the run --id writes to LOG_DIR/ID, and runs that share a --log-dir
can be compared. Visdom gets an environment named --id. A run that begins anew leaves what an earlier one wrote as it is, but
for the name: metrics.jsonl becomes metrics.1.jsonl and LOG_DIR/ID becomes LOG_DIR/ID.1, or the next free number.
"""

import argparse
import importlib
import itertools
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from asr.event_file import EventFile
from asr.metrics import Journal, as_line, lines_until, set_aside, told_by
from asr.visdom_curves import VisdomCurves, server_address
from data.command_line import UsageError
from data.files import whole_file

METRICS = "metrics.jsonl"
INCHES_PER_FRAME, DOTS_PER_INCH = 0.02, 100


@dataclass(frozen=True)
class Example:
    """One validation utterance to show: what was said, what was heard, and where."""

    reference: str
    hypothesis: str
    spect: Tensor  # (F, T)
    labels: Sequence[str]  # (L,) greedy path: the label of each output frame, "_" for blank


class RunLog:
    """Everything a run tells while it goes. Only the main process of a distributed run has one."""

    def __init__(self, metrics: Journal, events: EventFile | None, visdom: VisdomCurves | None, log_params: bool):
        self._metrics, self._events, self._visdom, self._log_params = metrics, events, visdom, log_params

    @classmethod
    def open(
        cls,
        args: argparse.Namespace,
        folder: str | Path,
        *,
        epoch: int,
        step: int,
        history: Path | None = None,
        results: Sequence[dict[str, float]] = (),
    ) -> "RunLog":
        """Begin to tell, or go on after `epoch` finished epochs and `step` updates; 0 and 0: a run that begins anew.

        folder: where metrics.jsonl goes. history: the metrics.jsonl of the run that is continued, if it may be elsewhere
        (the checkpoint came from another folder); where there is none, the one in `folder` is continued. results: of each
        finished epoch, as the checkpoint knows them: a metrics.jsonl with others is another run's, and is renamed.
        Raises: UsageError for flags that cannot be meant; ValueError for a missing package; OSError naming the file.
        """
        name = check_flags(args)
        path, continued = Path(folder) / METRICS, bool(epoch or step)
        source = history if history and history.exists() else path
        visdom = VisdomCurves(args.visdom_server, name, path) if args.visdom else None
        lines = lines_until(source, epoch, step) if continued and told_by(source, epoch, results) else []
        if path.exists() and path.stat().st_size and not (lines and path.samefile(source)):
            set_aside(path)
        if not lines:
            known = ({"kind": "epoch", "epoch": number, "step": 0, **of} for number, of in enumerate(results, 1))
            lines = [as_line(record) for record in known]
        with whole_file(path, durable=True) as temporary:
            temporary.write_bytes(b"".join(lines))
        events, room = None, Path(args.log_dir) / name
        if args.tensorboard:
            records = [json.loads(line) for line in lines]
            events = EventFile.resume(room, records, epoch, step) if continued else EventFile.begin(room)
        if visdom:
            visdom.start()
        return cls(Journal(path), events, visdom, args.log_params)

    def step(self, record: dict[str, Any]) -> None:
        """Tell of an update: {"epoch", "step", "loss", "lr", ...}; `step` counts updates from 1 since the training began.

        Numbers that are not finite become null, and curves leave them out.
        """
        self._tell({"kind": "step", **record})

    def epoch(self, record: dict[str, Any], examples: Sequence[Example], model: nn.Module | None = None) -> None:
        """Tell of a finished epoch: {"epoch", "step", "loss", "wer", "cer"}, how it recognises, and what its weights are."""
        spoken = [{"reference": example.reference, "hypothesis": example.hypothesis} for example in examples]
        self._tell({"kind": "epoch", **record, "examples": spoken})
        images = [draw(example) for example in examples] if self._events or self._visdom else []
        if self._events:
            self._events.add_examples(record["epoch"], spoken, images)
            if self._log_params and model is not None:
                self._events.add_histograms(record["epoch"], model)
        if self._visdom:
            self._visdom.images = images

    def flush(self) -> None:
        """Bring everything told so far to the disk: called before a checkpoint is written, which then never knows more."""
        self._metrics.to_disk()
        if self._events:
            self._events.journal.to_disk()

    def close(self) -> None:
        self.flush()
        if self._visdom:
            self._visdom.close()
        if self._events:
            self._events.journal.close()
        self._metrics.close()

    def _tell(self, record: dict[str, Any]) -> None:
        line = as_line(record)
        self._metrics.add(line)
        if self._events:
            self._events.add_scalars(json.loads(line))


def run_name(name: str) -> str:
    """The run's --id as the name of a folder and of a Visdom environment. Raises: UsageError if it cannot be one."""
    cleaned = re.sub(r"[/\\\0]", "_", name).strip()
    if cleaned.strip(".") == "":
        raise UsageError(f"--id {name!r}: expected a name for the run")
    return cleaned


def check_flags(args: argparse.Namespace) -> str:
    """Find out before hours of work what stands in the way of the graphs that are asked for. Returns: the run's name.

    Raises: UsageError for flags that cannot be meant, ValueError for a missing package.
    """
    if args.log_params and not args.tensorboard:
        raise UsageError("--log-params: the histograms are shown by TensorBoard; add --tensorboard")
    if args.tensorboard:
        require("--tensorboard", "tensorboardX", "matplotlib")
    if args.visdom:
        require("--visdom", "visdom", "matplotlib")
        server_address(args.visdom_server)
    return run_name(args.id)


def require(flag: str, *packages: str) -> None:
    """Import what a flag needs. Raises: ValueError that says how to get it."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            file = "requirements-visdom.txt" if package == "visdom" else "requirements-graphs.txt"
            raise ValueError(f"{flag} needs {package} ({error}): pip install -r {file}") from None


def draw(example: Example) -> np.ndarray:
    """A spectrogram with the greedy path over it: each label above the output frames that are its own.

    Returns: (H, W, 3) uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bins, frames = example.spect.shape
    width = min(max(INCHES_PER_FRAME * frames, 6), 30)
    canvas = FigureCanvasAgg(Figure(figsize=(width, 4), dpi=DOTS_PER_INCH))
    axes = canvas.figure.add_axes((0.7 / width, 0.13, 1 - 0.9 / width, 0.62))
    spect = example.spect.detach().float().cpu().numpy()
    low, high = np.percentile(spect, (1, 99))  # a click must not leave the speech dark
    axes.imshow(spect, "magma", aspect="auto", origin="lower", extent=(0, frames, 0, bins), vmin=low, vmax=high)
    axes.set(xlabel="spectrogram frame", ylabel="frequency bin")
    scale, first, row = frames / max(len(example.labels), 1), 0, 0
    for label, run in itertools.groupby(example.labels):
        last = first + len(list(run))
        if label != "_":
            axes.axvspan(first * scale, last * scale, color="cyan", alpha=0.35, linewidth=0)
            place = ((first + last) / 2 * scale, bins * (1.02, 1.09)[row])  # neighbours in two rows, which keeps them apart
            axes.text(*place, "␣" if label == " " else label, ha="center", va="bottom", fontsize=9, parse_math=False)
            row = 1 - row
        first = last
    for height, text in ((1.28, f"reference:  {example.reference}"), (1.2, f"hypothesis: {example.hypothesis}")):
        axes.text(0, bins * height, text[: int(14 * width)], fontsize=8, family="monospace", parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for a letter it does not have
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
