"""The folder of a training's checkpoints: their names, which is the latest, which may go."""

import re
from pathlib import Path

from asr.checkpoint import Checkpoint, load_checkpoint
from data.command_line import message, tell


class CheckpointFolder:
    """Where a training's checkpoints go, and how many of them stay."""

    NAMES = re.compile(r"deepspeech_\d+\.pth\.tar|deepspeech_checkpoint_epoch_\d+_iter_\d+\.pth")

    def __init__(self, path: str | Path, keep: int = 0):
        """`keep` 0: all stay."""
        self.path, self.keep = Path(path), keep

    def epoch_path(self, epoch: int) -> Path:
        return self.path / f"deepspeech_{epoch}.pth.tar"

    def batch_path(self, epoch: int, batches: int) -> Path:
        return self.path / f"deepspeech_checkpoint_epoch_{epoch}_iter_{batches}.pth"

    def enter(self, path: Path, written: list[str]) -> None:
        """Note a checkpoint as the newest of those that were written."""
        if path.name in written:
            written.remove(path.name)
        written.append(path.name)

    def trim(self, written: list[str]) -> None:
        """Remove all but the newest of those that were written. Called when these are whole, and again after a kill."""
        while self.keep and len(written) > self.keep:
            (self.path / written.pop(0)).unlink(missing_ok=True)

    def latest(self, finetune: bool = False, run_id: str = "") -> Checkpoint | None:
        """The newest whole checkpoint that can be continued, of one launch if `run_id` names it; None if there is none.

        The newest file tells the run, and its name how far that is: where files were copied, another may have got further.
        """
        found = [path for path in self.path.glob("deepspeech_*") if self.NAMES.fullmatch(path.name)]
        found.sort(key=lambda path: path.lstat().st_mtime_ns, reverse=True)
        usable = (checkpoint for path in found if (checkpoint := self._usable(path, finetune, run_id)))
        newest = next(usable, None)
        if newest is not None:
            further = [path for path in found if self.place(path) > self.place(Path(newest.path))]
            for path in sorted(further, key=self.place, reverse=True):
                checkpoint = self._usable(path, finetune, run_id)
                if checkpoint is not None and is_further(newest, checkpoint):
                    return checkpoint
        return newest

    @staticmethod
    def place(path: Path) -> tuple[int, int]:
        """What a checkpoint's name says of how far its run was: finished epochs, batches of the next one."""
        numbers = [int(number) for number in re.findall(r"\d+", path.name)]
        return (numbers[0], 0) if len(numbers) == 1 else (numbers[0] - 1, numbers[1])

    def _usable(self, path: Path, finetune: bool, run_id: str) -> Checkpoint | None:
        try:
            checkpoint = load_checkpoint(path)
            if not finetune:
                checkpoint.check_continuable()
        except (ValueError, OSError) as error:
            tell(f"passed over: {message(error)}", error=True)
            return None
        return checkpoint if not run_id or (checkpoint.progress or {}).get("run_id") == run_id else None


def is_further(earlier: Checkpoint, later: Checkpoint) -> bool:
    """Whether a checkpoint is of the same run: with the same settings and data, what an epoch gives is always the same."""
    same = earlier.settings == later.settings and (earlier.progress or {}).get("data") == (later.progress or {}).get("data")
    return same and bool(earlier.settings) and later.history[: len(earlier.history)] == earlier.history
