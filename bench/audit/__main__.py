"""`python -m bench.audit`: what the GPU kernels cost, read from their machine code on a machine without a GPU.

The Triton kernels are compiled here, the CUDA C++ kernels are taken out of the built library (`make cuda`). Of every
kernel: registers, stack, spills, shared memory, and of its main loop the instructions per latent and the width of the
global accesses. What a block does once is not in these: a small latent has a tile or two a block, and pays as much
again. Any two options meet in a row; of the CUDA kernels all are read. Fails where a kernel breaks a budget, and with
`--check` where the stored table is not that of these kernels.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile

from tqdm import tqdm

from bench.audit import cuda as audit_cuda
from bench.audit import triton as audit_triton
from bench.audit.table import BUDGETS_TARGET, TABLE, differences, faults, name, print_table, write_table
from bench.report.results import read_rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored table instead of writing it")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        cubins, variants = audit_cuda.extract_cubins(folder), audit_triton.variants()
        triton = list(tqdm(pool.imap(audit_triton.audit, variants), "Triton kernels", len(variants), mininterval=5))
        files = list(tqdm(pool.imap(audit_cuda.audit, cubins), "files of CUDA kernels", len(cubins), mininterval=5))
    cuda = sorted(itertools.chain(*files), key=lambda row: list(row.values())[:5])
    found = [fault for row in triton + cuda for fault in faults(row)]
    if check:
        # Of the architectures that are built: CI builds one.
        built = {row["target"] for row in cuda}
        stored = [row for row in read_rows(TABLE) if row["backend"] != "cuda" or row["target"] in built]
        names = set(map(name, stored))
        if stale := list(differences(triton + [row for row in cuda if name(row) in names], stored)):
            found += [*stale, f"{TABLE.name} is not the table of these kernels; run `make audit`"]
    else:
        rows = triton + audit_cuda.covering(cuda)
        print_table(rows)
        write_table(rows)
    print(
        "\n".join(found)
        or f"{len(triton + cuda)} kernels: on {BUDGETS_TARGET} no stack, no spills, wide accesses, in budget"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
