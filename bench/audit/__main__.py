"""`python -m bench.audit`: what the GPU kernels cost, read from their machine code on a machine without a GPU.

The Triton kernels are compiled here, the CUDA C++ kernels are taken out of the built extension (`make cuda`). Of every
kernel: registers, stack, spills, shared memory, and of its main loop the width of the global accesses, the instructions
per latent, and which bound an H200 meets first there. What a block does once is not in these: a small latent has a tile
or two a block, and pays as much again. `--check` fails where a kernel breaks a budget, or got worse than in the stored
table.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile

from bench.audit import cuda as audit_cuda
from bench.audit import triton as audit_triton
from bench.audit.table import faults, print_table, read_table, write_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored table instead of writing it")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        cubins = audit_cuda.extract_cubins(folder)
        rows = pool.map(audit_triton.audit, audit_triton.variants(), chunksize=1)
        cuda = itertools.chain.from_iterable(pool.map(audit_cuda.audit, cubins, chunksize=1))
        rows += sorted(cuda, key=lambda row: list(row.values())[:5])
    print_table(rows)
    if check:
        found = faults(rows, read_table())
        print("\n".join(found) or f"{len(rows)} kernels: no stack, no spills, wide accesses, in budget, no growth")
        return int(bool(found))
    write_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
