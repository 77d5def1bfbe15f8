"""What of a tensor, or of a module's output, are numbers that can be counted."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from d9d_tracker_kernels.ops import SUPPORTED_DTYPES

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor as they can be binned.

    Complex numbers are their real and imaginary parts; a sparse or nested tensor is its values, a quantized one what
    they stand for; floats of 8 bits are widened.
    """
    if not torch.compiler.is_compiling():  # where none of these can be
        tensor = _dense(tensor)
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.dtype not in SUPPORTED_DTYPES:
        return tensor.to(torch.float32)
    return tensor


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.layout == torch.sparse_coo:
        return tensor.coalesce().values()
    if tensor.layout in _COMPRESSED:
        return tensor.values()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def named_tensors(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module's output, each with what its name adds to that of the module.

    A tensor adds nothing, nor does the first of a tuple; the others add their place, key or field: ``/1/0``,
    ``/logits``. In such structures, only floating and complex tensors count: the rest are indices and lengths.
    """
    if isinstance(output, torch.Tensor):
        yield "", output
        return
    for suffix, part in _parts(output):
        for rest, tensor in named_tensors(part):
            if tensor.is_floating_point() or tensor.is_complex():
                yield suffix + rest, tensor


def _parts(output: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(output, PackedSequence):
        yield "", output.data
    elif isinstance(output, Mapping):
        yield from ((f"/{key}", part) for key, part in output.items())
    elif isinstance(output, tuple) and (fields := getattr(output, "_fields", None)):
        yield from ((f"/{field}", part) for field, part in zip(fields, output, strict=True))
    elif isinstance(output, tuple | list):
        yield from ((f"/{place}" if place else "", part) for place, part in enumerate(output))
    elif output is not None and dataclasses.is_dataclass(output):  # nor may Dynamo of torch 2.11 ask it of None
        yield from ((f"/{field.name}", getattr(output, field.name)) for field in dataclasses.fields(output))
