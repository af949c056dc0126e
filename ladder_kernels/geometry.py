"""Shapes: layouts, crops and the restricted window. Index arithmetic: only `dense` and `copy_first` copy.

Sizes may be symbolic, so that one compilation serves them all.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


def is_channels_last(packed: Tensor) -> bool:
    """Whether channels are the contiguous dimension of a (B, C, *S), in any number of dims."""
    return packed.stride(1) == 1 and math.prod(packed.shape[2:]) > 1


def device_type(tensor: Tensor) -> str:
    """`tensor.device.type`, a string that torch makes anew every time: 4 us of a small step."""
    return "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else tensor.device.type


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def latent_shape(packed: _Shaped) -> tuple[int, ...]:
    """(B, C, *S) of the latent that a packed (B, 2C, *S) describes."""
    return (packed.shape[0], packed.shape[1] // 2, *packed.shape[2:])


def in_memory_order(flat: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """A flat vector, one value per element, as a tensor of `shape` (B, C, *S) whose memory has that order."""
    if channels_last:
        batch, channels, *spatial = shape
        return flat.view(batch, *spatial, channels).movedim(-1, 1)
    return flat.view(shape)


def dense(tensor: Tensor, channels_last: bool) -> Tensor:
    """A (B, C, *S) dense in that memory order; copied only if it is not so already."""
    if channels_last:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    return tensor.contiguous()


def restricted_window(spatial: Sequence[int], side: int | None) -> tuple[int, int, int, int] | None:
    """The centred window of the last two dims whose KL counts: rows [start, stop), columns [start, stop).

    Each dim loses `max(0, (size - side) // 2)` on both sides. None if nothing is cut off.
    A single spatial dim counts as columns of one row.
    """
    if side is None or not spatial:
        return None
    rows, columns = spatial[-2:] if len(spatial) > 1 else (1, *spatial)
    pad_rows = max(0, (rows - side) // 2)
    pad_columns = max(0, (columns - side) // 2)
    if pad_rows == 0 and pad_columns == 0:
        return None
    return pad_rows, rows - pad_rows, pad_columns, columns - pad_columns


def windowed(latent: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """That window of a latent (B, C, *S), as a view."""
    row, row_end, column, column_end = window
    latent = latent[..., column:column_end]
    return latent[..., row:row_end, :] if latent.dim() > 3 else latent


def inside_window(spatial: Sequence[int], window: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """Which positions lie in that window: booleans that broadcast to (*S,)."""
    row, row_end, column, column_end = window
    columns = torch.arange(spatial[-1], device=device)
    inside = (columns >= column) & (columns < column_end)
    if len(spatial) == 1:
        return inside
    rows = torch.arange(spatial[-2], device=device).unsqueeze(1)
    return inside & (rows >= row) & (rows < row_end)


def even_spatial(spatial: Sequence[int], each: bool) -> tuple[int, ...]:
    """The sizes after upstream's odd-size crop, which makes the last two dims even. Size 1 is kept.

    `each` of them by itself, or both where the last is odd.
    """
    if not each and (spatial[-1] % 2 == 0 or spatial[-1] == 1):
        return tuple(spatial)
    kept, cropped = spatial[:-2], spatial[-2:]
    return (*kept, *(size - size % 2 if size > 1 else size for size in cropped))


def crop(tensor: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """A view of the spatial box that begins at `starts` and spans `sizes`; `tensor` itself if that is all of it."""
    for dim, (start, size) in enumerate(zip(starts, sizes, strict=True), start=2):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, start, size)
    return tensor


def center_crop(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """The centred box of spatial `sizes`, as a view. Raises ValueError if the tensor is smaller."""
    spatial = tensor.shape[2:]
    if len(sizes) != len(spatial) or any(have < want for have, want in zip(spatial, sizes, strict=True)):
        raise ValueError(f"cannot crop spatial sizes {tuple(spatial)} to {tuple(sizes)}")
    starts = [(have - want) // 2 for have, want in zip(spatial, sizes, strict=True)]
    return crop(tensor, starts, sizes)


def crop_to_q(p: Tensor, q: Tensor) -> Tensor:
    """The centre of p's packed parameters under q's, as a view. Raises ValueError where p does not cover q."""
    if p.shape == q.shape or p.shape[2:] == q.shape[2:]:  # the first alone is usual, and cheap
        return p
    if p.dim() != q.dim() or any(have < want for have, want in zip(p.shape[2:], q.shape[2:], strict=True)):
        raise ValueError(f"p's parameters {tuple(p.shape)} do not cover q's {tuple(q.shape)}")
    return center_crop(p, q.shape[2:])


def copy_first(tensor: Tensor) -> Tensor:
    """The first sample of a batch in every place of it."""
    return tensor[:1].expand_as(tensor).clone()
