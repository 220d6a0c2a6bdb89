"""Where and how the network runs: device, precision, processes, seeds.

The only user of torch.distributed and of autocast; whoever else mentions autocast only switches it off.
"""

import argparse
import contextlib
import importlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.command_line import UsageError

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """In which numbers the network is computed; CTC is float32 whatever this says.

    O0  float32
    O1  autocast: weights float32, products in `dtype`
    O2  weights and activations in `dtype`, batch norm and the master weights that the optimizer moves in float32
    O3  everything in `dtype`
    The levels are apex's; what it did by patching, torch.amp's autocast and a few conversions do today.
    """

    level: str = "O0"
    dtype: torch.dtype = torch.float32
    half_batch_norm: bool = False
    flag: str = field(default="", compare=False)  # that asked for it, for messages

    @classmethod
    def choose(
        cls, precision: str | None, opt_level: str | None = None, keep_batchnorm_fp32: bool | None = None
    ) -> "Precision":
        """What the flags mean together. `precision` says which numbers, `opt_level` how much of the network is in them.

        Raises: UsageError if they contradict each other.
        """
        level = opt_level or ("O0" if precision in (None, "fp32") else "O1")
        dtype = DTYPES[precision or ("fp32" if level == "O0" else "fp16")]
        if (level == "O0") != (dtype == torch.float32):
            raise UsageError(f"--opt-level {level} and --precision {precision} contradict each other; leave one of them out")
        if keep_batchnorm_fp32 is False and level in ("O0", "O1"):
            raise UsageError(f"--keep-batchnorm-fp32 False: level {level} computes batch norm in float32; use O2 or O3")
        keep = level != "O3" if keep_batchnorm_fp32 is None else keep_batchnorm_fp32
        flag = f"--opt-level {opt_level}" if opt_level else f"--precision {precision}"
        return cls(level, dtype, half_batch_norm=not keep, flag=flag)

    @property
    def name(self) -> str:
        kind = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return kind if self.level in ("O0", "O1") else f"{kind} {self.level}"

    def convert(self, model: nn.Module) -> None:
        """Give a network the weights of this precision, in place."""
        if self.level in ("O2", "O3"):
            for module in model.modules():
                is_leaf = next(module.children(), None) is None
                if is_leaf and (self.half_batch_norm or not isinstance(module, nn.modules.batchnorm._BatchNorm)):
                    module.to(self.dtype)


@dataclass(frozen=True)
class Runtime:
    """The device and precision of a run, and which of its processes this is."""

    device: torch.device
    precision: Precision = Precision()
    rank: int = 0
    world_size: int = 1

    @classmethod
    def choose(cls, cuda: bool, precision: Precision | None = None, gpu: int | None = None) -> "Runtime":
        """The runtime of a single process. Raises: ValueError if this machine has not what is asked for."""
        # oneDNN would keep a thousand kernels, and makes one for every length: gigabytes in a long run, and it is no faster.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
        precision = precision or Precision()
        if cuda and not torch.cuda.is_available():
            raise ValueError(
                f"--cuda: this machine has no CUDA device that torch {torch.__version__} can use; without it, the CPU is used"
            )
        if cuda and gpu is not None and gpu >= torch.cuda.device_count():
            raise ValueError(f"CUDA device {gpu}: this machine has {torch.cuda.device_count()}, counted from 0")
        if precision.dtype == torch.float16 and not cuda:
            raise UsageError(
                f"{precision.flag}: float16 needs --cuda; a CPU computes in float32 (--opt-level O0) or with --precision bf16"
            )
        return cls(torch.device("cuda", gpu or 0) if cuda else torch.device("cpu"), precision)

    @property
    def main(self) -> bool:
        """Whether this is the process that tells, writes and keeps."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, self.precision.dtype, enabled=self.precision.level == "O1")

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, the same numbers in each of them."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, as one message of each type of number."""
        if self.world_size == 1:
            return
        parameters = list(parameters)
        for dtype in {p.dtype: None for p in parameters}:  # a dict keeps the order, which has to be everyone's
            alike = [p for p in parameters if p.dtype == dtype]
            # A process without an utterance in this batch may have no gradients, and adds nothing.
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in alike])
            dist.all_reduce(flat)
            for p, total in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
                p.grad = torch.empty_like(p).copy_(total.view_as(p))  # in the parameter's own layout of memory

    def gather(self, value: T) -> list[T]:
        """The plain value of every process, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """The main process's plain value, in every process."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def take_from_main(self, model: nn.Module) -> None:
        """Give every process the main one's weights and running statistics."""
        if self.world_size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, 0)

    def sync_batch_norm(self, model: nn.Module) -> None:
        """Let batch norm see the batch of all processes."""
        for module in model.modules():
            if self.world_size > 1 and hasattr(module, "sum_over_processes"):
                module.sum_over_processes = _SumOverProcesses.apply

    def synchronises(self, model: nn.Module) -> bool:
        """Whether `sync_batch_norm` was called on it, so that all processes have to run it together."""
        return any(getattr(module, "sum_over_processes", None) for module in model.modules())


class _SumOverProcesses(torch.autograd.Function):
    """A sum whose gradient is the sum of the gradients: every process's loss depends on every process's summand."""

    @staticmethod
    def forward(_, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


@contextlib.contextmanager
def joined(args: argparse.Namespace, precision: Precision) -> Iterator[Runtime]:
    """The runtime of this process of a run: one of several if a launcher's environment or the flags say so.

    `python -m multiproc` and `torchrun` tell a process its place by RANK, WORLD_SIZE and LOCAL_RANK; one started by hand is
    told by --dist-url, --world-size, --rank and --gpu-rank.

    Raises: UsageError, ValueError; RuntimeError when another process is gone.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")) if launched else (args.rank, args.world_size)
    if not rank < world_size:
        raise UsageError(f"--rank {rank}: expected less than the {world_size} of --world-size")
    alone = Runtime.choose(args.cuda, precision, _gpu_of(rank, args) if args.cuda else None)
    if world_size == 1:
        yield alone
        return
    backend = args.dist_backend or ("nccl" if args.cuda else "gloo")
    if backend == "nccl" and not args.cuda:
        raise UsageError("--dist-backend nccl: it connects CUDA devices; add --cuda, or use gloo")
    _meet(backend, "env://" if launched else args.dist_url, rank, world_size, alone.device)
    try:
        yield Runtime(alone.device, precision, rank, world_size)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RuntimeError(f"rank {rank}: another process of the run has ended; its own words or log say why") from error
        raise
    dist.destroy_process_group()  # not after an error: the others may be gone, and would be waited for


def _gpu_of(rank: int, args: argparse.Namespace) -> int:
    """The CUDA device of a rank: its place on the machine as a launcher tells it, or the flag's, or as its rank has it."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    return args.gpu_rank if args.gpu_rank is not None else rank % max(torch.cuda.device_count(), 1)


def _meet(backend: str, address: str, rank: int, world_size: int, device: torch.device) -> None:
    """Bring the processes together. Raises: ValueError if they do not come."""
    # Its functions have the group of the moment as a default argument. Imported later, as by an optimizer, they would keep
    # gloo's threads alive beyond destroy_process_group, and now and then one aborts a process whose Python is gone.
    importlib.import_module("torch.distributed.nn.functional")
    on_cuda = {"device_id": device} if device.type == "cuda" else {}
    if on_cuda:
        torch.cuda.set_device(device)
    try:
        with interruptible():
            store, rank, world_size = next(dist.rendezvous(address, rank, world_size))
            # A restarted group shares its launcher's store with the dead, whose addresses are still in it.
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, **on_cuda)
    except (RuntimeError, ValueError) as error:  # among them an address nobody listens at
        where = "the launcher's address" if address == "env://" else f"--dist-url {address}"
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{where}: no group of {world_size} processes came together: {reason}") from None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once where it waits in code that Python's handlers do not reach."""
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if main and handler is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def set_seed(seed: int) -> None:
    """Seed what draws from torch's global generators: weight initialisation and dropout; data draws from its own."""
    torch.manual_seed(seed)


def set_step_seed(seed: int, update: int, rank: int) -> None:
    """Make what dropout draws in an update a function of these, so that a training continues exactly without the state of
    any generator having been kept."""
    torch.manual_seed(int(np.random.SeedSequence((seed, update, rank)).generate_state(1, np.uint64)[0] >> 1))
