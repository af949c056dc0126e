"""What the command lines of `bench` share: one-line complaints, checked numbers and devices."""

import argparse
import platform
from pathlib import Path
from typing import NoReturn

import torch


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose every complaint is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def device(text: str) -> torch.device:
    """An argparse type: a torch device that computes on this machine."""
    try:
        found = torch.device(text)
        # Only a value that came back proves it: there may be no driver, no such index, or no arithmetic ("meta").
        torch.zeros(1, device=found).item()
    except Exception as error:  # each kind of device fails with an error of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise argparse.ArgumentTypeError(f"cannot compute on {text!r}: {reason}") from None
    return found


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(found: torch.device) -> str:
    """The device in words."""
    if found.type == "cuda":
        return torch.cuda.get_device_name(found)
    if found.type == "cpu":
        return f"{_cpu_model()}, {torch.get_num_threads()} threads"
    return str(found)


def _cpu_model() -> str:
    """What Linux calls it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
