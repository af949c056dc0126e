"""Triton's interpreter at a third of its time, with the same numbers.

A kernel here is some thousand operations on a few numbers each, between which the interpreter finds out anew which
functions are the language's, what types are called, how long a shape is. All of that is remembered.
"""

import functools
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import semantic
from triton.runtime import interpreter


def hasten() -> None:
    """From now on, in this process."""
    interpreter.InterpretedFunction.__call__ = _call
    interpreter._get_np_dtype = _numpy_dtype
    interpreter.ReduceOps.generic_reduce = _reduce
    tl.block_type.__init__ = _block_type
    tl.tensor.__init__ = _tensor
    if hasattr(semantic, "TritonSemantic"):  # since 3.4
        # A sum in 64 bits beside every one in 32, for an assertion that is made in debug mode alone.
        semantic.TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None


_patch_the_language = functools.cache(interpreter._patch_lang)


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A device function's."""
    _patch_the_language(function.fn)
    return function.rewrite()(*args, **kwargs)


_original_numpy_dtype = interpreter._get_np_dtype
_numpy_dtypes: dict[str, np.dtype] = {}


def _numpy_dtype(dtype: Any) -> np.dtype:
    if dtype.name not in _numpy_dtypes:
        _numpy_dtypes[dtype.name] = _original_numpy_dtype(dtype)
    return _numpy_dtypes[dtype.name]


_original_block_type = tl.block_type.__init__
_block_types: dict[Any, dict[str, Any]] = {}


def _block_type(self: Any, element_ty: Any, shape: Any) -> None:
    key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
    if key not in _block_types:
        _original_block_type(self, element_ty, shape)
        _block_types[key] = self.__dict__
    self.__dict__ = _block_types[key]


@functools.cache
def _shape_and_size(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    return tl.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(int(np.prod(sizes)))


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _shape_and_size(tuple(type.shape) if type.is_block() else ())


_original_reduce = interpreter.ReduceOps.generic_reduce


def _reduce(self: Any, input: Any) -> Any:
    """All of a tensor half onto half, as a GPU does it, instead of one element after the other."""
    if self.axis is not None or self.keep_dims or len(input) > 1:
        return _original_reduce(self, input)
    (tensor,) = input
    data = tensor.handle.data.ravel()
    while data.size > 1:
        data = self.combine_fn.fn(*(self.to_tensor(half, tensor.dtype) for half in np.split(data, 2))).handle.data
    return _original_reduce(self, (self.to_tensor(data, tensor.dtype),))  # of one element: its own way to return it
