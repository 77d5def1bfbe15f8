"""What numbers tensors and outputs are counted as."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from d9d_tracker.watch.values import named_tensors, numbers

DENSE = torch.tensor([[0.0, 2.0], [3.0, 0.0]])


@pytest.mark.parametrize(
    ("tensor", "values"),
    [
        (DENSE, [0, 2, 3, 0]),
        (DENSE.to_sparse(), [2, 3]),
        (DENSE.to_sparse_csr(), [2, 3]),
        (DENSE.to_sparse_csc(), [3, 2]),
        (torch.complex(DENSE, -DENSE), [0, 0, 2, -2, 3, -3, 0, 0]),
        (torch.complex(DENSE, DENSE).conj(), [0, 0, 2, -2, 3, -3, 0, 0]),
        (DENSE.to(torch.float8_e4m3fn), [0, 2, 3, 0]),
        (torch.quantize_per_tensor(DENSE, 0.5, 0, torch.qint8), [0, 2, 3, 0]),
        (torch.nested.nested_tensor([torch.tensor([1.0, 2.0]), torch.tensor([3.0])]), [1, 2, 3]),
        (torch.nested.nested_tensor([torch.tensor([1.0]), torch.tensor([2.0])], layout=torch.jagged), [1, 2]),
    ],
    ids=["dense", "coo", "csr", "csc", "complex", "conjugated", "float8", "quantized", "nested", "jagged"],
)
def test_numbers(tensor, values):
    assert numbers(tensor).detach().flatten().tolist() == values


@dataclass
class Output:
    logits: torch.Tensor
    cache: Any


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


X, Y, Z, INDICES = torch.ones(1), torch.ones(2), torch.ones(3), torch.arange(4)


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (INDICES, {"": INDICES}),
        ((X, (Y, Z)), {"": X, "/1": Y, "/1/1": Z}),
        ([X, None, INDICES, Y], {"": X, "/3": Y}),
        ({"loss": X, "hidden": [Y, Z]}, {"/loss": X, "/hidden": Y, "/hidden/1": Z}),
        (OrderedDict(a=X), {"/a": X}),
        (Output(X, {"key": Y, "text": "no"}), {"/logits": X, "/cache/key": Y}),
        (Pair(X, Y), {"/left": X, "/right": Y}),
        (None, {}),
        ("text", {}),
    ],
)
def test_named_tensors(output, named):
    found = dict(named_tensors(output))
    assert found.keys() == named.keys()
    assert all(found[name] is named[name] for name in named)


def test_a_packed_sequence_is_its_values():
    packed = pack_sequence([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    (name, values) = next(named_tensors(packed))
    assert name == ""
    assert sorted(values.tolist()) == [1, 2, 3]
    assert len(list(named_tensors(packed))) == 1
