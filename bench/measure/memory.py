"""The most memory that tensors hold at once while something runs."""

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.profiler import profile


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
