"""The operator `d9d_tracker::merge_scalars_`, and its reference on the CPU.

It is one step to whoever looks on: a dispatch mode around the user's forward (selective activation checkpointing) sees
one mutation that it must not replay, and not arithmetic that it would cache and hand out in wrong order; a torch.func
transform lets nothing else write to the buffers.
"""

from typing import Any

import torch

from d9d_tracker_kernels.device import DISPATCH_KEY
from d9d_tracker_kernels.lanes import COUNT, LAST, NEGATED_MIN, SUM, WEIGHT

_library = torch.library.Library("d9d_tracker", "FRAGMENT")
_library.define(
    "merge_scalars_(Tensor(a!) current, Tensor places, int[] at, Tensor[] tensors, float[] numbers, int lane, "
    "Tensor? weight_tensor, float weight) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def flat_numbers(tensor: torch.Tensor) -> Any:
    """Returns a float64 tensor on the CPU as a memoryview of its numbers, the quickest there is to read and write one.

    Args:
        tensor: Two dimensions, contiguous or transposed. The view shares its memory, and has its order.
    """
    array: Any = (tensor if tensor.is_contiguous() else tensor.t()).numpy()  # a buffer, of which its stubs know nothing
    return memoryview(array).cast("B").cast("d")


def merge_number(state: Any, strides: tuple[int, ...], slot: int, lane: int, value: float, weight: float) -> None:
    """Merges one value into one slot: the reference of the kernel, and all there is on a CPU.

    A value without weight has no say in a mean, not even a NaN: a micro-batch without tokens has a mean of NaN.

    Args:
        state: The numbers of a scalar bank's state, `flat_numbers` of [LANES, columns].
        strides: How far its lanes and its columns are apart.
        slot: Which of them.
        lane: The lane of the value: SUM, MAX, NEGATED_MIN or LAST.
        value: The value.
        weight: Its weight.
    """
    from_lane, from_slot = strides
    first = slot * from_slot
    cell = first + lane * from_lane
    if lane == SUM:
        if weight:
            state[cell] += value * weight
    elif lane == LAST:
        state[cell] = value
    else:
        extreme = -value if lane == NEGATED_MIN else value
        if extreme > state[cell] or extreme != extreme:  # a NaN, and what has become one stays one
            state[cell] = extreme
    state[first + WEIGHT * from_lane] += weight
    state[first + COUNT * from_lane] += 1.0


def _check(places, at, tensors, numbers) -> None:
    if len(at) != len(tensors) + len(numbers):
        raise ValueError(f"{len(tensors) + len(numbers)} values for {len(at)} places: pass one place for each value")
    if at and not (min(at) >= 0 and max(at) < places.shape[0]):
        raise ValueError(f"at={at}: there are places 0 to {places.shape[0] - 1}")


def _merge_cpu(current, places, at, tensors, numbers, lane, weight_tensor, weight) -> None:
    _check(places, at, tensors, numbers)
    state, strides = flat_numbers(current), current.stride()
    weight = weight if weight_tensor is None else float(weight_tensor.item())
    table = places.numpy()
    for place, value in zip(at, [*(float(tensor.item()) for tensor in tensors), *numbers], strict=True):
        slot = int(table[place])
        if slot >= 0:
            merge_number(state, strides, slot, lane, value, weight)


def _merge_cuda(current, places, at, tensors, numbers, lane, weight_tensor, weight) -> None:
    from d9d_tracker_kernels import scalar_kernels  # needs triton, which a CPU-only installation lacks

    _check(places, at, tensors, numbers)
    factor = weight if weight_tensor is None else weight_tensor
    scalar_kernels.merge(current, places, at, tensors, numbers, lane, factor)


_library.impl("merge_scalars_", _merge_cpu, "CPU")
_library.impl("merge_scalars_", _merge_cuda, DISPATCH_KEY)
_library.impl("merge_scalars_", lambda *_: None, "Meta")

merge_scalars_ = torch.ops.d9d_tracker.merge_scalars_.default
