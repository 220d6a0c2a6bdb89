"""Where and how the network runs: device, precision, seeds. Whoever else uses autocast only switches it off."""

import contextlib
import random
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Runtime:
    """The device and precision of a run; CTC is computed in float32 whatever the precision."""

    device: torch.device
    precision: str = "fp32"

    @classmethod
    def choose(cls, cuda: bool, precision: str = "fp32") -> "Runtime":
        """Raises: ValueError if CUDA is asked for where there is none."""
        if cuda and not torch.cuda.is_available():
            raise ValueError(
                f"--cuda: this machine has no CUDA device that torch {torch.__version__} can use; without it, the CPU is used"
            )
        return cls(torch.device("cuda" if cuda else "cpu"), precision)

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def set_seed(seed: int) -> None:
    """Seed what still draws from global generators (weight initialisation, dropout); data draws from its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
