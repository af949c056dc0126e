"""Processes that talk through gloo, for tests of what wraps a model that is trained by several.

They are copies of one process, in which CAREamics, ten seconds of a CPU, is imported once.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
START = "forkserver"
mp.set_forkserver_preload(["tests.careamics_models"])


def on_every_rank(target: Callable[[int, int, dict[Any, Any]], None]) -> dict[Any, Any]:
    """What `target(rank, world, results)` leaves in the results that all share; raises what it raises."""
    with tempfile.TemporaryDirectory() as folder, mp.get_context(START).Manager() as manager:
        results = manager.dict()
        mp.start_processes(_run, (target, folder, results), nprocs=WORLD, start_method=START)
        return dict(results)


def _run(rank: int, target: Callable[..., None], folder: str, results: dict[Any, Any]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        target(rank, WORLD, results)
    finally:
        dist.destroy_process_group()
