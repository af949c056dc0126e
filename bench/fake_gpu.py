"""A GPU that is not there, as far as Triton needs one to compile and to go through a launch."""

from typing import Any


class FakeDriver:
    """Stands in for Triton's driver: kernels are compiled for `target`, and launched into nothing."""

    def __init__(self, target: Any, device: int = 0) -> None:
        self.target = target
        # Triton caches kernels by device number: another target needs another one.
        self.device = device
        self.utils = self
        self.launcher_cls = _no_launch

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 1 << 30}

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, threads."""
        return 0, 0, 0, 0, 1024


def _no_launch(*_: Any) -> Any:
    return lambda *_: None
