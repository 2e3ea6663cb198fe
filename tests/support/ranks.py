"""Processes that make up one group, as `torchrun` would start them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from support.ports import free_port


def run_ranks(function: Callable[..., None], *arguments: Any, size: int = 2) -> None:
    """Call a module-level function in `size` processes, under plain torch.distributed; each must end well."""
    port = free_port()
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, size, port, function, arguments)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
        assert process.exitcode == 0


def _rank(rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    function(*arguments)
    torch.distributed.destroy_process_group()
