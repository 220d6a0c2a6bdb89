"""TensorBoard: a run's event file, and how a continued run goes on in it without a gap or a double point."""

import itertools
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from asr.metrics import Journal, scalars, set_aside
from data.files import whole_file

HISTOGRAM_BINS = 64


class EventFile:
    """A run's TensorBoard event file, written as it comes.

    tensorboardX makes the contents; its own writer is left out because it queues events for a thread, and its flush()
    does not wait for the queue: a checkpoint would know more than the graphs.
    """

    def __init__(self, path: Path):
        self.journal = Journal(path)

    @classmethod
    def begin(cls, folder: Path) -> "EventFile":
        if event_files(folder):
            set_aside(folder)
        return cls(write_events(folder, []))

    @classmethod
    def resume(cls, folder: Path, records: list[dict], epoch: int, step: int) -> "EventFile":
        """Go on after `epoch` epochs and `step` updates, of which `records` are the lines of metrics.jsonl.

        Curves that metrics.jsonl knows and the event file does not (a part of the run went without --tensorboard) are
        completed. A folder whose numbers contradict metrics.jsonl is another run's, and set aside.
        """
        expected = {(record["kind"], record[record["kind"]]): scalars(record) for record in records}
        events = known_events(event_files(folder), expected, epoch, step)
        if events is None:
            set_aside(folder)
            events = {}
        for (_, number), points in expected.items():
            if points:
                events.setdefault((next(iter(points)), number), scalar_event(points, number))
        return cls(write_events(folder, events.values()))

    def add_scalars(self, record: dict[str, Any]) -> None:
        points = scalars(record)
        if points:
            self.journal.add(framed(scalar_event(points, record[record["kind"]])))

    def add_examples(self, epoch: int, spoken: list[dict[str, str]], images: list[np.ndarray]) -> None:
        from tensorboardX import summary

        # An indented block, so that Markdown leaves labels such as * and _ as they are.
        lines = [f"    {key + ':':<11} {example[key]}" for example in spoken for key in ("reference", "hypothesis")]
        if lines:
            self._add(epoch, summary.text("examples", "\n".join(lines)))
        for number, image in enumerate(images, 1):
            self._add(epoch, summary.image(f"examples/{number}", image, dataformats="HWC"))

    def add_histograms(self, epoch: int, model: nn.Module) -> None:
        from tensorboardX import summary

        for name, parameter in model.named_parameters():
            for kind, tensor in (("parameters", parameter), ("gradients", parameter.grad)):
                values = np.empty(0) if tensor is None else tensor.detach().float().cpu().numpy().ravel()
                values = values[np.isfinite(values)]
                if len(values):
                    self._add(epoch, summary.histogram(f"{kind}/{name}", values, HISTOGRAM_BINS))

    def _add(self, number: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.journal.add(framed(Event(wall_time=time.time(), step=number, summary=summary).SerializeToString()))


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def scalar_event(points: dict[str, float], number: int) -> bytes:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
    return Event(wall_time=time.time(), step=number, summary=Summary(value=values)).SerializeToString()


def framed(event: bytes) -> bytes:
    """An event as a TFRecord: its length, the length's checksum, the event, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", masked_crc32c(length)) + event + struct.pack("<I", masked_crc32c(event))


def read_events(path: Path) -> Iterator[tuple[Any, bytes]]:
    """The events of a file, parsed and as they are, up to the first that is cut or damaged."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    with open(path, "rb") as file:
        while len(head := file.read(12)) == 12 and struct.unpack("<I", head[8:])[0] == masked_crc32c(head[:8]):
            (length,) = struct.unpack("<Q", head[:8])
            body = file.read(length + 4)
            if len(body) < length + 4:
                return
            try:
                yield Event.FromString(body[:length]), body[:length]
            except DecodeError:
                return


def known_events(
    files: list[Path], expected: dict[tuple[str, int], dict[str, float]], epoch: int, step: int
) -> dict[tuple[str, int], bytes] | None:
    """The events that a checkpoint after `epoch` epochs and `step` updates knows, by their first tag and their number.

    expected: the points of metrics.jsonl by kind and number. Returns: None if an event contradicts them.
    """
    limits, known = {"epoch": epoch, "step": step}, {}
    for event, raw in itertools.chain.from_iterable(map(read_events, files)):
        if not event.summary.value:
            continue  # the head of the file
        tag = event.summary.value[0].tag
        kind = "step" if tag.startswith("step/") else "epoch"
        if event.step > limits[kind]:
            continue
        if tag.startswith(("step/", "epoch/")) and (points := expected.get((kind, event.step))) is not None:
            told = {value.tag: value.simple_value for value in event.summary.value}
            if told != {name: float(np.float32(value)) for name, value in points.items()}:
                return None
        known.setdefault((tag, event.step), raw)
    return known


def write_events(folder: Path, events: Iterable[bytes]) -> Path:
    """Make a folder's event file anew, so that whoever looks, at any moment, finds the old one or the new one.

    The new one gets a new name, because a TensorBoard that is running never goes back in a file it knows. Returns: the path.
    """
    from tensorboardX.proto.event_pb2 import Event

    head = Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
    new, old = folder / f"events.out.tfevents.{time.time_ns()}", event_files(folder)
    scratch = folder / "rewriting"  # a name without "tfevents": TensorBoard reads everything that has it
    with whole_file(scratch, durable=True) as temporary, open(temporary, "wb") as file:
        for event in itertools.chain([head], events):
            file.write(framed(event))
    if old:
        scratch = scratch.replace(old[-1])
        for other in old[:-1]:
            other.unlink()
    return scratch.rename(new)
