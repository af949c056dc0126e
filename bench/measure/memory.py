"""Memory of what runs: the most that tensors hold at once, and what autograd keeps for backward."""

import gc
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler import profile

from bench.report.results import rounded


def mebibytes(size: int | None) -> float | None:
    """The cell of a table for so many bytes."""
    return None if size is None else rounded(size / 2**20)


def bytes_kept(run: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes of memory that autograd keeps for the backward of `run()`, each storage once, parameters left out."""
    excluded = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    # The tensors themselves: while one is held, its address cannot be given to another.
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Detached: a saved output that its own graph node holds would never be freed.
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in excluded)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """The most that tensors on `device` held at once during `run()`, beyond what they held before it.

    None on a device whose memory torch does not count.
    """
    gc.collect()  # what is garbage already must not be freed, and subtracted, in between
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        run()
        return None
    # Not torch.profiler's: that one takes seconds to make tables of everything that ran.
    with profile(profile_memory=True) as profiler:
        run()
    results: Any = profiler.kineto_results
    changes = [event for event in results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))
