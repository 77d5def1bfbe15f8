"""Which device values are on, and which bank they get."""

import importlib.util
from unittest import mock

import pytest
import torch
from pydantic import ValidationError

from d9d_tracker import AccumulatorConfig, TrackerValueError
from d9d_tracker.devices.devices import bank_of, device_of
from d9d_tracker_kernels.device import has_kernels


def accelerator(kind, count=1, current=0):
    """As if torch had devices of a type."""
    module = mock.Mock(spec=["is_available", "device_count", "current_device"])
    module.is_available.return_value, module.device_count.return_value = count > 0, count
    module.current_device.return_value = current
    return mock.patch.multiple(
        torch,
        get_device_module=mock.Mock(return_value=module),
        accelerator=mock.Mock(current_accelerator=mock.Mock(return_value=torch.device(kind) if count else None)),
    )


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_takes_the_accelerator_of_torch(kind):
    with accelerator(kind, count=2, current=1):
        assert device_of("auto") == torch.device(kind, 1)
        assert device_of(kind) == torch.device(kind, 1)
        assert device_of(f"{kind}:0") == torch.device(kind, 0)
    with accelerator(kind, count=0):
        assert device_of("auto") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_when_the_run_is_opened(recorded):
    with accelerator("cuda", count=2), pytest.raises(TrackerValueError, match=r"'cuda:2'.*finds 2 devices.*'auto'"):
        recorded(device="cuda:2").open().__enter__()
    with accelerator("xpu", count=0), pytest.raises(TrackerValueError, match=r"'xpu'.*finds 0.*built for"):
        device_of("xpu")


def test_a_device_without_values_is_refused_in_the_configuration():
    with pytest.raises(ValidationError, match="on 'meta' no values are"):
        AccumulatorConfig(device="meta")
    with pytest.raises(TrackerValueError, match="finds 0 devices of type 'meta'"):
        device_of("meta")


def test_the_bank_is_told_with_its_reason(monkeypatch):
    assert "no accelerator" in bank_of(torch.device("cpu"))
    assert "by kernels of Triton" in bank_of(torch.device("cuda", 0))
    assert "plain, on the host, for values on mps:0, because there are no kernels for mps" in bank_of(
        torch.device("mps", 0)
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not has_kernels(torch.device("cuda", 0))
    assert "because triton is not installed: one wait a window" in bank_of(torch.device("cuda", 0))
