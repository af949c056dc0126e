"""`python -m tests.launch_triton`: what the Triton backend launches again is what Triton itself would launch.

The GPU is not there: its launches are written down. Not with TRITON_INTERPRET=1, which launches nothing.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from ladder_kernels.backends import triton as backend
from ladder_kernels.backends.step import Step, StepGrads
from ladder_kernels.backends.triton import launch, settings
from tests.fake_gpu import TARGETS, FakeDriver, install

Call = Callable[[], Any]
STEP = Step("seed", window=(0, 1, 0, 1))
# What this thread has launched.
local = threading.local()


class Driver(FakeDriver):
    """Every kernel that it loads is another number, and every launch is written down."""

    loaded = 0

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        super().__init__(GPUTarget(*TARGETS["sm_90"]), 0)
        self.launcher_cls = lambda *_: self.launch

    def load_binary(self, *arguments: Any) -> tuple[int, ...]:
        self.loaded += 1
        module, _, *rest = super().load_binary(*arguments)
        return module, self.loaded, *rest

    def launch(self, *arguments: Any) -> None:
        """Grid, stream, kernel, metadata, metadata for hooks, hooks, and what the kernel takes."""
        x, y, z, stream, kernel, metadata, for_hooks, *rest = arguments
        local.launches.append((x, y, z, stream, kernel, metadata, for_hooks is None, described(rest)))


def described(argument: Any) -> Any:
    """A tensor by how it looks and, of one that was given, by where it lies: outputs lie elsewhere every time."""
    if isinstance(argument, torch.Tensor):
        where = argument.data_ptr() if argument.data_ptr() in local.given else argument.data_ptr() % 16
        return argument.dtype, argument.shape, argument.stride(), where
    return tuple(map(described, argument)) if isinstance(argument, (list, tuple)) else argument


def cases() -> dict[str, tuple[list[torch.Tensor], Call]]:
    """Tensors and the call that is given them. Neighbours differ in one thing that kernels are compiled for."""
    found: dict[str, tuple[list[torch.Tensor], Call]] = {}
    z, ones, one = tensor(2, 16, 4, 4), tensor(2), tensor(1).expand(2)

    def add(name: str, q: torch.Tensor, p: torch.Tensor | None = None, grads: StepGrads | None = None) -> None:
        seed = torch.tensor(1)
        last = q.stride(1) == 1 and q.shape[2] > 1
        step = STEP._replace(channels_last=last, kl="none" if p is None else "monte_carlo")
        given = [one for one in (q, p, seed, *(grads or ())) if one is not None]
        if p is None:
            found[name] = given, lambda: backend.sample(q, seed, step)
        elif grads is None:
            found[name] = given, lambda: backend.forward(q, p, seed, step)
        else:
            found[name] = given, lambda: backend.backward(q, p, seed, step, grads, (True, True, False))

    like = (2, 32, 4, 4)
    add("sample", tensor(*like))
    add("sample, 16 bit", tensor(*like).half())
    add("sample, not at a multiple of 16", unaligned(*like))
    add("sample, channels_last", tensor(*like).contiguous(memory_format=torch.channels_last))
    add("sample, all sizes 1", tensor(1, 2, 1, 1))
    add("sample, sizes that 16 does not divide", tensor(3, 10, 3, 5))
    add("forward", tensor(*like), tensor(*like))
    add("forward, p not at a multiple of 16", tensor(*like), unaligned(*like))
    add("forward, one p for all", tensor(*like), tensor(1, *like[1:]))
    add("backward", tensor(*like), tensor(*like), StepGrads(z=z, kl_samplewise=ones))
    add("backward, a gradient of stride 0", tensor(*like), tensor(*like), StepGrads(z=z, kl_samplewise=one))
    add("backward, a gradient of 16 bit", tensor(*like), tensor(*like), StepGrads(z=z.half(), kl_samplewise=one))
    add(
        "backward, a gradient not at a multiple of 16",
        tensor(*like),
        tensor(*like),
        StepGrads(z=unaligned(2, 16, 4, 4), kl_samplewise=one),
    )
    add("backward, no gradient of z", tensor(*like), tensor(*like), StepGrads(kl_samplewise=one))
    return found


def tensor(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def unaligned(*shape: int) -> torch.Tensor:
    return torch.zeros(torch.Size(shape).numel() + 1)[1:].view(shape)


def launched(given: list[torch.Tensor], call: Call) -> list[Any]:
    local.given, local.launches = {tensor.data_ptr() for tensor in given}, []
    call()
    return local.launches


@contextmanager
def counted() -> Iterator[list[int]]:
    """How often Triton was asked which kernel it is."""
    from triton import JITFunction

    asked, run = [0], JITFunction.run

    def counting(*args: Any, **kwargs: Any) -> Any:
        asked[0] += 1
        return run(*args, **kwargs)

    with patch.object(JITFunction, "run", counting):
        yield asked


def check_the_same() -> None:
    """Every case launched by Triton, then directly if known how, then, forgotten, by Triton again: always the same."""
    found = cases()
    first = {name: launched(*case) for name, case in found.items()}
    with counted() as asked:
        again = {name: launched(*case) for name, case in found.items()}
        expected = 0 if launch.DIRECT else sum(map(len, first.values()))
        assert asked == [expected], f"Triton was asked {asked[0]} times, not {expected}"
    for name, case in found.items():
        settings.forget()
        assert again[name] == first[name] == launched(*case), name
    kernels = [each[4] for name in found for each in first[name] if len(first[name]) == 1]
    assert len(set(kernels)) == len(kernels), "the cases do not tell one kernel from another"


def check_without() -> None:
    """Where this Triton is not known, every launch is its own."""
    found = cases()
    directly = {name: (launched(*case), launched(*case))[1] for name, case in found.items()}
    settings.forget()
    with patch.object(launch, "DIRECT", False), counted() as asked:
        for name, case in found.items():
            assert launched(*case) == launched(*case) == directly[name], name
        assert asked[0] == 2 * sum(map(len, directly.values()))


def check_threads() -> None:
    """Threads that meet new tensors at the same time launch what one alone launches."""
    found = cases()
    alone = {name: launched(*case) for name, case in found.items()}
    orders = (list(found), list(found), list(reversed(found)))
    together = threading.Barrier(len(orders))

    def work(names: list[str]) -> list[str]:
        together.wait()
        return [name for name in names for _ in range(3) if launched(*found[name]) != alone[name]]

    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(len(orders)) as pool:
        for _ in range(20):
            settings.forget()
            assert not any(pool.map(work, orders))


def main() -> None:
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver

    install("sm_90")
    driver.set_active(Driver())
    # PTX is enough: nothing runs.
    CUDABackend.make_cubin = lambda *_: b""
    for check in (check_the_same, check_without, check_threads):
        settings.forget()
        check()


if __name__ == "__main__":
    main()
