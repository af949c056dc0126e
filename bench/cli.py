"""What the command lines of `bench` share: one-line complaints, checked numbers, devices and folders."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from bench.measure.run_info import default_path

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def run(main: Callable[[], int]) -> NoReturn:
    """Ends the program with what `main` returns; interrupted, after a line in place of a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


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


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", type=device, default=default_device(), help="default: the GPU, if any")


def check_patch(parser: Parser, patch: int, multiple: int, image_side: int) -> None:
    """Ends the program unless upstream's model can train on such patches of the image."""
    if patch % multiple:
        parser.error(f"argument --patch: must be a multiple of {multiple}, or upstream cannot train; got {patch}")
    if patch > image_side:
        parser.error(f"argument --patch: does not fit in the image, whose side is {image_side}; got {patch}")


def check_folder(parser: Parser, option: str, folder: Path) -> None:
    """Makes the folder of the results, or ends the program: before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument {option}: cannot make the folder {folder}: {error.strerror}")
    if not os.access(folder, os.W_OK):
        parser.error(f"argument {option}: cannot write to the folder {folder}")


def table_options(parser: Parser, arguments: Sequence[str] | None, kind: str, quick: str) -> argparse.Namespace:
    """The arguments of a command that fills a table of a `kind`: --quick, --results, and its own."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--results", type=Path, help=f"the CSV (bench/results/<machine>-<date>{kind}.csv)")
    options = parser.parse_args(arguments)
    where = getattr(options, "device", torch.device("cpu"))
    options.results = options.results or default_path(where, kind, quick=options.quick)
    check_folder(parser, "--results", options.results.parent)
    return options
