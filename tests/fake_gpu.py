"""A GPU that is not there: for it the Triton backend's kernels are compiled, and launched into nothing."""

import contextlib
from collections.abc import Callable
from typing import Any

# Backend, architecture, lanes of a warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
KERNELS = ("forward_kernel", "reduce_kernel", "backward_kernel", "sample_kernel")
MIXTURE_KERNELS = ("forward_mixture_kernel", "backward_mixture_kernel")
# What every target has, in bytes; Triton refuses a kernel that asks for more.
SHARED_MEMORY = 1 << 16


def install(name: str) -> None:
    """From now on Triton and our backend take the GPU to be this target, whatever this machine has."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from ladder_kernels.backends.triton import settings

    target = GPUTarget(*TARGETS[name])
    # Triton caches kernels by device number: another target needs another one.
    driver.set_active(FakeDriver(target, list(TARGETS).index(name)))
    settings.WARP_SIZE, settings.NVIDIA = target.warp_size, target.backend == "cuda"
    _forget()


def compiled_launches(call: Callable[[], Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The kernels that `call` launches, compiled: each with its arguments."""
    from ladder_kernels.backends.triton import mixture, settings

    launches: list[tuple[Any, tuple[Any, ...]]] = []
    with contextlib.ExitStack() as stack:
        for module, name in [*((settings, name) for name in KERNELS), *((mixture, name) for name in MIXTURE_KERNELS)]:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, _Recorder(getattr(module, name), launches))
        _forget()
        call()
    _forget()
    return launches


def _forget() -> None:
    from ladder_kernels.backends.triton import mixture, settings

    settings.forget()
    mixture.prepared.cache_clear()


class _Recorder:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, tuple[Any, ...]]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches.append((self.kernel.warmup(*args, grid=grid, **kwargs), args))

        return launch


class FakeDriver:
    """Stands in for Triton's driver."""

    def __init__(self, target: Any, device: int) -> None:
        self.target, self.device = target, device
        self.utils = self
        self.launcher_cls = _no_launch

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY}

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        """Module, function, registers, spills, and from Triton 3.4 on threads."""
        import triton

        return (0, 0, 0, 0) if triton.__version__.startswith("3.3.") else (0, 0, 0, 0, 1024)


def _no_launch(*_: Any) -> Any:
    return lambda *_: None
