"""A mode in which it is an error to make the host wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

READS = {
    *{aten._local_scalar_dense, aten.item, aten.equal, aten.is_nonzero},
    *{aten.nonzero, aten.nonzero_static, aten.masked_select, aten.bincount},
    *{aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive},
}
"""Operators that return a value to the host, or whose result has a size that depends on values."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_, aten.copy}


class HostReadError(AssertionError):
    """An operator would make the host wait for a GPU."""


class NoHostReads(TorchDispatchMode):
    """Raises HostReadError at each operator that would make the host wait for a GPU.

    On a CPU these are the operators that hand a value to the host or need one for the size of their
    result, and with fake tensors on a GPU also copies between devices, other than a copy to the GPU
    that is asked not to block.
    """

    is_allowed = False

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        """Names of those that have run."""

    @classmethod
    @contextmanager
    def allowed(cls) -> Iterator[None]:
        """Let operators read values."""
        cls.is_allowed = True
        try:
            yield
        finally:
            cls.is_allowed = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator, if it waits for nothing."""
        operator = func.overloadpacket
        self.operators.add(func._schema.name)
        if not self.is_allowed:
            if operator in READS or func is aten.repeat_interleave.Tensor:
                raise HostReadError(str(func))
            if operator in INDEXING and any(map(_is_mask, args[1])):
                raise HostReadError(f"{func} with a mask")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if operator in COPIES and not self.is_allowed:
            devices = {x.device.type for x in (*args, result) if isinstance(x, Tensor)}
            is_upload = result.is_cuda and kwargs.get("non_blocking", False)
            if len(devices) > 1 and not is_upload:
                raise HostReadError(f"{func} between {sorted(devices)}")
        return result


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
