"""What a tile kernel is compiled for, besides its tensors: one value for a kernel and all that it calls."""

from typing import Any, NamedTuple

import triton.language as tl


class Mode(NamedTuple):
    """Constants of the compilation, as a kernel's argument.

    Triton 3.3 takes no tuple for a `tl.constexpr`, but it takes one of them.
    """

    draw: Any  # of backward, what gradients flow through: "mode" where none flows through eps
    kl: Any  # the same: "none" where no KL was used
    channels_inner: Any
    aligned: Any  # rows of z start at multiples of four
    vector: Any  # columns that a thread loads at once
    masked: Any  # not all tiles are whole
    wide: Any  # offsets within a sample need 64 bits
    shared_p: Any  # backward sums over the samples the gradient of a p of batch 1
    first_axis: Any  # of the grid: which of column blocks, row blocks and samples it is
    block_rows: Any
    block_columns: Any
    compute: Any  # dtype
    fast: Any  # as in `math.py`

    @staticmethod
    def of(**values: Any) -> "Mode":
        return Mode(**{name: tl.constexpr(value) for name, value in values.items()})
