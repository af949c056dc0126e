"""Benchmarks, the static audit and the demo; nothing here is installed with ladder_kernels."""
