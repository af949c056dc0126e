"""The partial sums between the two forward kernels: where each lies. All are in the compute dtype."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ladder_kernels.backends.triton.plan import Plan


class Partials(NamedTuple):
    """Pointers. Of the scalars each program of a sample has one; the sums of the KL lie apart for every block of
    rows or columns that they run over. The last four are there if a KL is."""

    minus_two_log_q: Any  # (batch, row_blocks * column_blocks), as `minus_two_log_density`
    largest_raw: Any  # the same
    two_kl: Any  # the same, as `twice_divergence`; so are all below
    restricted: Any  # the same
    over_rows: Any  # (row_blocks, batch, columns)
    over_columns: Any  # (column_blocks, batch, rows)


@triton.jit
def locate(partials, layout):
    """`layout` is the forward kernel's."""
    row_blocks, column_blocks = layout.row_blocks, layout.column_blocks
    batch, columns = tl.zeros([], tl.int64) + layout.sizes[0], layout.sizes[2]
    scalars = batch * row_blocks * column_blocks
    over_rows = partials + 4 * scalars
    return Partials(
        partials,
        partials + scalars,
        partials + 2 * scalars,
        partials + 3 * scalars,
        over_rows,
        over_rows + row_blocks * batch * columns,
    )


def number_of_partials(plan: Plan, *, with_kl: bool) -> int:
    batch, rows, columns = plan.sizes
    tiles = plan.forward
    scalars = batch * tiles.row_blocks * tiles.column_blocks
    if not with_kl:
        return 2 * scalars
    return 4 * scalars + batch * (tiles.row_blocks * columns + tiles.column_blocks * rows)
