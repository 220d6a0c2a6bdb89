"""What a manifest of millions of lines costs: the time to open it, and the memory of a training's processes together.

    python benchmarks/manifests.py [--lines 2000000] [--workers 4]

The memory is the proportional set size (Linux) of the main process and its data-loading workers, once these have asked for
utterances from all over the manifest, less what the same processes take with a manifest of one line: torch alone.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from data.manifest import read_manifest  # noqa: E402

NAME = "/corpora/librivox/train/speaker{0:05d}/utterance-{0:08d}"
TEXT = "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES AND WE ARE GLAD TO WELCOME HIS GOSPEL"
LINES = {
    "csv": f"{NAME}.flac,{NAME}.txt\n",
    "jsonl": f'{{{{"audio_filepath": "{NAME}.flac", "text": "{TEXT}", "duration": 12.5}}}}\n',
}


class Touched(torch.utils.data.Dataset):
    """Utterances that are looked at, not read: there are no recordings."""

    def __init__(self, utterances):
        self.utterances = utterances

    def __len__(self):
        return len(self.utterances)

    def __getitem__(self, index):
        return len(self.utterances[index].audio)


def megabytes(pids):
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def measure(path, workers, sending):
    began = time.perf_counter()
    utterances = read_manifest(path)
    opened = time.perf_counter() - began
    touched = Touched(utterances)
    order = torch.randperm(len(touched))[:200_000].tolist() if len(touched) > 1 else [0] * 10_000
    # As a training does; a spawned process would spawn its own.
    how = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "fork"}
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    loader = torch.utils.data.DataLoader(touched, batch_size=100, sampler=order, **how)
    for _ in loader:
        pass
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    sending.send((opened, len(utterances), len(pids) - 1, megabytes(pids)))


def in_a_fresh_process(path, workers):
    receiving, sending = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(path, workers, sending))
    process.start()
    result = receiving.recv()
    process.join()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}, torch {torch.__version__}"
    print(f"{date.today()}, {machine}")
    with tempfile.TemporaryDirectory() as folder:
        for kind, line in LINES.items():
            path = Path(folder, f"one.{kind}")
            path.write_text(line.format(1))
            *_, alone = in_a_fresh_process(path, args.workers)
            path = Path(folder, f"many.{kind}")
            with path.open("w") as file:
                file.writelines(line.format(i) for i in range(args.lines))
            opened, lines, workers, together = in_a_fresh_process(path, args.workers)
            print(
                f"{kind}: {lines} lines, {path.stat().st_size / 1e6:.0f} MB: opened in {opened:.2f} s; {together - alone:.0f} "
                f"MB in the main process and {workers} workers together, beside the {alone:.0f} MB of python and torch"
            )
            path.unlink()


if __name__ == "__main__":
    main()
