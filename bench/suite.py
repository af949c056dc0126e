"""One case of the benchmark: every provider is checked, those that are right take turns, and figures are counted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from bench import gpu_timing
from bench.cases import GPU, Case, Inputs, make_inputs
from bench.check import fault
from bench.figures import Figures, bytes_moved, count, instructions_per_latent, quantile
from bench.providers import PROVIDERS, Provider
from bench.timing import Clock, Copying, Effort, HostClock, Stages, Times, take_turns

EFFORT = Effort(seconds=8, least=5, most=100)
QUICK_EFFORT = Effort(seconds=2, least=5, most=50)
EAGER, GRAPH = "eager", "graph"


class Result(NamedTuple):
    """One row of the table: a pass of a provider, or why there is none."""

    provider: str
    pass_name: str
    mode: str
    status: str
    """ok; wrong: its results are; failed: it raised; skipped: it cannot run here."""
    reason: str = ""
    seconds: tuple[float, ...] = ()
    bytes: int = 0
    copy_bytes_per_second: float = 0.0
    figures: Figures = Figures()
    instructions_per_latent: float | None = None


class Entry(NamedTuple):
    """A provider whose results are right."""

    provider: Provider
    stages: Stages
    figures: dict[str, Figures]
    """By pass."""


def measure(
    case: Case,
    device: torch.device,
    effort: Effort,
    providers: Sequence[Provider] = PROVIDERS,
    report: Callable[[str], None] = lambda _: None,
    clock: Clock | None = None,
) -> list[Result]:
    """All rows of a case. `report` is told what is being done."""
    torch.compiler.reset()  # or after a few shapes it stops compiling, and runs eagerly without a word
    gpu, sets = device.type == GPU, 1
    if gpu:
        torch.cuda.empty_cache()  # what the case before left lies in pieces
        sets = gpu_timing.input_sets(case, torch.cuda.get_device_properties(device).L2_cache_size)
    inputs = [make_inputs(case, device, seed) for seed in range(sets)]
    entries, results = [], []
    for provider in providers:
        report(f"checking {provider.name}")
        entry = _enter(provider, case, inputs[0])
        if isinstance(entry, Entry):
            entries.append(entry)
        else:
            results.append(entry)
    clock = clock or (gpu_timing.EventClock() if gpu else HostClock())
    report("timing")
    results += _timed(case, entries, inputs, clock, effort, EAGER)
    if gpu and case.latents <= gpu_timing.LAUNCH_BOUND:
        report("timing graphs")
        results += _timed_graphs(case, entries, inputs, clock, effort)
    return results


def _enter(provider: Provider, case: Case, inputs: Inputs) -> Entry | Result:
    """The provider with everything that is no time, or the row that says why there will be none."""
    reason = provider.unavailable(case, inputs.q.device)
    if reason is not None:
        return _without_times(provider, case, EAGER, "skipped", reason)
    try:
        # Made once: another one of a compiled function would be compiled again.
        stages = provider.stages(case)
        reason = fault(provider, stages, case, inputs)
        if reason is not None:
            return _without_times(provider, case, EAGER, "wrong", reason)
        return Entry(provider, stages, count(provider, stages, inputs))
    except Exception as error:  # a provider may raise anything, a compiler most of all
        return _without_times(provider, case, EAGER, "failed", _one_line(error))


def _without_times(provider: Provider, case: Case, mode: str, status: str, reason: str) -> Result:
    return Result(provider.name, case.passes[-1], mode, status, reason)


def _timed(
    case: Case, entries: list[Entry], inputs: list[Inputs], clock: Clock, effort: Effort, mode: str
) -> list[Result]:
    """The rows of providers that are right. Copies of as many bytes as each pass moves take turns with them."""
    device = inputs[0].q.device
    sizes = {bytes_moved(case, entry.provider, name) for entry in entries for name in case.passes}
    copying = Copying(max(sizes, default=0), device, len(inputs))
    copies = {f"copy {size}": copying.of(size) for size in sizes}
    if mode == GRAPH:
        copies = {name: gpu_timing.capture(run, inputs) for name, run in copies.items()}
    times = take_turns({entry.provider.name: entry.stages for entry in entries} | copies, inputs, clock, effort)
    results = []
    for provider, _, figures in entries:
        found = times[provider.name]
        if isinstance(found, Exception):
            results.append(_without_times(provider, case, mode, "failed", _one_line(found)))
            continue
        for name in case.passes:
            size = bytes_moved(case, provider, name)
            results.append(
                Result(
                    provider.name,
                    name,
                    mode,
                    "ok",
                    seconds=tuple(_seconds(found, name)),
                    bytes=size,
                    copy_bytes_per_second=_bandwidth(times[f"copy {size}"], size),
                    figures=figures[name],
                    instructions_per_latent=instructions_per_latent(case, provider, name, _target(device)),
                )
            )
    return results


def _timed_graphs(case: Case, entries: list[Entry], inputs: list[Inputs], clock: Clock, effort: Effort) -> list[Result]:
    """The rows of graph replays, of those that can be captured."""
    results, captured = [], []
    # Compiled code last: least is known of what it does in a capture.
    for entry in sorted(entries, key=lambda entry: entry.provider.compiled):
        waits = entry.figures[case.passes[-1]].synchronisations
        if waits:
            reason = f"waits for the device {waits} times, which no graph can"
            results.append(_without_times(entry.provider, case, GRAPH, "skipped", reason))
            continue
        # The allocator's peak says nothing about a graph, which has its memory for good.
        figures = {name: found._replace(peak_bytes=None) for name, found in entry.figures.items()}
        try:
            captured.append(Entry(entry.provider, gpu_timing.capture(entry.stages, inputs), figures))
        except Exception as error:  # what cannot be captured raises many things
            results.append(_without_times(entry.provider, case, GRAPH, "failed", _one_line(error)))
    return results + _timed(case, captured, inputs, clock, effort, GRAPH)


def _seconds(times: Times, name: str) -> list[float]:
    if name == "step":
        return times.step
    return times.backward if name == "backward" else times.forward


def _bandwidth(copy: Times | Exception, size: int) -> float:
    if isinstance(copy, Exception):
        raise copy
    return size / quantile(copy.forward, 0.5)


def _target(device: torch.device) -> str | None:
    """The architecture by the audit's name."""
    if device.type != GPU:
        return None
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
