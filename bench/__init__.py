"""Benchmarks, the static audit and the demo; nothing here is installed with ladder_kernels."""

INTERRUPTED = 130  # what a shell reports for Ctrl-C
