"""The process group that a training step runs in: Ray Train workers, `torchrun`, or this one process alone."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from joblib import cpu_count  # of this container, not of the node
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Item = TypeVar("Item")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def backend(gpu: bool) -> str:
    """What processes talk through. Beside GPUs also gloo, for tensors that are kept in the node's memory."""
    return "cpu:gloo,cuda:nccl" if gpu else "gloo"


def never() -> bool:
    """Nobody asks this process to stop."""
    return False


def told_to_end() -> Callable[[], bool]:
    """From here on SIGTERM does not end this process; the function that comes back says whether one has come."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    return told.is_set


def keep_freed_memory() -> None:
    """From here on the C library keeps up to 1 GiB that this process frees. Handed back and fetched again in every layer, as glibc does
    from 32 MiB on, its pages cost a tenth of a training step on the CPU. Nothing where the library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank, size: number of this process, and how many there are.
        device: where tensors live.
        interrupted: whether the group is to save a checkpoint and stop, such as before its node goes. Asked at every
            step, so it must not block; it is enough that one rank hears it. Under `torchrun`: SIGTERM, which it passes on.
    """

    rank: int
    size: int
    device: torch.device
    interrupted: Callable[[], bool] = never

    @classmethod
    def current(cls) -> World:
        """The group that Ray Train or `torchrun` has set up; without either, a world of one."""
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend(torch.cuda.is_available()))
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
            local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
            torch.set_num_threads(max(1, cpu_count() // local))
            keep_freed_memory()
        return cls(rank, size, device, told_to_end() if dist.is_torchelastic_launched() else never)

    def mesh(self) -> DeviceMesh:
        """All processes in one row, for FSDP2. A process alone makes a group of its own."""
        if not dist.is_initialized():
            dist.init_process_group(backend(self.device.type == "cuda"), store=dist.HashStore(), rank=0, world_size=1)
        return init_device_mesh(self.device.type, (self.size,))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def totals(self, *values: float) -> list[float]:
        """Sum of each value over all processes."""
        return self.sum(torch.tensor(values, device=self.device, dtype=torch.float64)).tolist()

    def maximum(self, value: int) -> int:
        """Largest of the processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def from_first(self, value: int) -> int:
        """The value of rank 0."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())

    def gather(self, item: Item) -> list[Item]:
        """What every process has given, in the order of their ranks. For small things: they travel pickled."""
        if self.size == 1:
            return [item]
        gathered: list[Item] = [item] * self.size
        dist.all_gather_object(gathered, item)
        return gathered
