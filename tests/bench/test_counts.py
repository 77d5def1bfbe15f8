"""The reads that the benchmark counts on a CPU are those that a GPU would have to serve."""

import pytest
import torch

from bench.counts import host_reads


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda x: x.sum().item(), [4]),
        (lambda x: float(x.sum()), [4]),
        (lambda x: bool((x > 0).all()), [1]),
        (lambda x: x.tolist(), [40]),
        (lambda x: x.cpu().tolist(), [40]),  # the second step is on the host already
        (lambda x: x.to("cpu").clone().sum().item(), [40]),
        (lambda x: [part.item() for part in x.unbind()], [4] * 10),
        (lambda x: (x * 2).sum(), []),
        (lambda x: torch.linspace(0, 1, 5).tolist(), []),
    ],
)
def test_a_read_is_counted_once_with_its_bytes(read, expected):
    values = torch.randn(10)
    with host_reads() as reads:
        read(values)
    assert [found.bytes for found in reads] == expected
    assert all(found.waits for found in reads)


def test_an_asynchronous_copy_is_a_read_without_a_wait():
    values = torch.randn(10)
    with host_reads() as reads:
        values.to("cpu", non_blocking=True).tolist()
    assert [(found.bytes, found.waits) for found in reads] == [(40, False)]


def test_reads_in_backward_hooks_are_counted():
    weight = torch.randn(10, requires_grad=True)

    def hook(gradient):
        gradient.detach().cpu().tolist()

    weight.register_hook(hook)
    loss = weight.square().sum()
    with host_reads() as reads:
        loss.backward()
    assert [found.bytes for found in reads] == [40]
