"""One case of the benchmark: every provider is checked, those that are right take turns, and figures are counted."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from bench import figures, gpu_timing
from bench.cases import GPU, Case, Inputs, make_inputs
from bench.check import fault
from bench.figures import Figures, bytes_moved, instructions_per_latent
from bench.providers import PROVIDERS, Provider
from bench.timing import Clock, Effort, HostClock, Stages, Times, copying, take_turns

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


def measure(
    case: Case,
    device: torch.device,
    effort: Effort,
    providers: tuple[Provider, ...] = PROVIDERS,
    report: Callable[[str], None] = lambda _: None,
    clock: Clock | None = None,
) -> list[Result]:
    """All rows of a case. `report` is told what is being done."""
    torch.compiler.reset()  # or after a few shapes it stops compiling, and runs eagerly without a word
    gpu = device.type == GPU
    sets = gpu_timing.input_sets(case, torch.cuda.get_device_properties(device).L2_cache_size) if gpu else 1
    inputs = [make_inputs(case, device, seed) for seed in range(sets)]
    results: list[Result] = []
    good: list[Provider] = []
    runs: dict[str, Stages] = {}
    counted: dict[str, dict[str, Figures]] = {}
    for provider in providers:
        report(f"checking {provider.name}")
        status, reason = "skipped", provider.unavailable(case, device)
        if reason is None:
            try:
                # Made once: another one of a compiled function would be compiled again.
                runs[provider.name] = stages = provider.stages(case)
                status, reason = "wrong", fault(provider, stages, case, inputs[0])
                if reason is None:
                    counted[provider.name] = figures.count(provider, stages, inputs[0])
                    good.append(provider)
                    continue
            except Exception as error:  # a provider may raise anything, a compiler most of all
                status, reason = "failed", _one_line(error)
        results.append(Result(provider.name, case.passes[-1], EAGER, status, reason))
    clock = clock or (gpu_timing.EventClock() if gpu else HostClock())
    report("timing")
    results += _timed(case, good, runs, inputs, clock, effort, EAGER, counted)
    if gpu and case.latents <= gpu_timing.LAUNCH_BOUND:
        report("timing graphs")
        results += _timed_graphs(case, good, runs, inputs, clock, effort, counted)
    return results


def _timed(
    case: Case,
    providers: list[Provider],
    runs: dict[str, Stages],
    inputs: list[Inputs],
    clock: Clock,
    effort: Effort,
    mode: str,
    counted: dict[str, dict[str, Figures]],
) -> list[Result]:
    """The rows of providers that are right. Copies of as many bytes as each pass moves take turns with them."""
    sizes = {bytes_moved(case, provider, name) for provider in providers for name in case.passes}
    device = inputs[0].q.device
    copies: dict[str, Stages] = {f"copy {size}": copying(size, device, len(inputs)) for size in sizes}
    if mode == GRAPH:
        copies = {name: gpu_timing.capture(run, inputs) for name, run in copies.items()}
    times = take_turns({provider.name: runs[provider.name] for provider in providers} | copies, inputs, clock, effort)
    results = []
    for provider in providers:
        found = times[provider.name]
        if isinstance(found, Exception):
            results.append(Result(provider.name, case.passes[-1], mode, "failed", _one_line(found)))
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
                    figures=counted[provider.name][name],
                    instructions_per_latent=instructions_per_latent(case, provider, name, _target(device)),
                )
            )
    return results


def _timed_graphs(
    case: Case,
    providers: list[Provider],
    runs: dict[str, Stages],
    inputs: list[Inputs],
    clock: Clock,
    effort: Effort,
    counted: dict[str, dict[str, Figures]],
) -> list[Result]:
    """The rows of graph replays, of those that can be captured."""
    results, captured = [], {}
    for provider in providers:
        step = counted[provider.name][case.passes[-1]]
        if step.synchronisations:
            # Not tried: a capture that breaks off leaves torch's generator unusable.
            reason = f"waits for the device {step.synchronisations} times, which no graph can"
            results.append(Result(provider.name, case.passes[-1], GRAPH, "skipped", reason))
            continue
        try:
            captured[provider.name] = gpu_timing.capture(runs[provider.name], inputs)
        except Exception as error:  # what cannot be captured raises many things
            results.append(Result(provider.name, case.passes[-1], GRAPH, "failed", _one_line(error)))
    able = [provider for provider in providers if provider.name in captured]
    # The caching allocator's peak says nothing about a graph's own pool.
    without_peak = {
        name: {key: value._replace(peak_bytes=None) for key, value in passes.items()}
        for name, passes in counted.items()
    }
    return results + _timed(case, able, captured, inputs, clock, effort, GRAPH, without_peak)


def _seconds(times: Times, name: str) -> list[float]:
    if name == "step":
        return times.step
    return times.backward if name == "backward" else times.forward


def _bandwidth(copy: Times | Exception, size: int) -> float:
    if isinstance(copy, Exception):
        raise copy
    return size / figures.quantile(copy.forward, 0.5)


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
