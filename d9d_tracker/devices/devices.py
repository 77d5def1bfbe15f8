"""Which device values are on, and which bank they get."""

import torch

from d9d_tracker.errors import TrackerValueError
from d9d_tracker_kernels.device import GPU, has_kernels


def device_of(name: str) -> torch.device:
    """Return the device that ``accumulator.device`` names, with its index.

    Raises:
        TrackerValueError: If this machine, or this build of torch, has none of that name.
    """
    if name == "auto":
        name = (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    number, current = _found(device)
    index = current if device.index is None else device.index
    if index >= number:
        raise TrackerValueError(
            f"accumulator.device={name!r}: torch {torch.__version__} finds {number} devices of type {device.type!r} "
            "here; set it to 'auto', or install a torch that is built for the device"
        )
    return torch.device(device.type, index)


def _found(device: torch.device) -> tuple[int, int]:
    """Return how many devices of a type there are, and which is the current one."""
    try:
        module = torch.get_device_module(device)
        if not module.is_available():
            return 0, 0
        current = getattr(module, "current_device", int)  # torch.mps has one device and no name for it
        return module.device_count(), current()
    except (AttributeError, RuntimeError):  # it is no device of a machine, as "meta" is none
        return 0, 0


def bank_of(device: torch.device) -> str:
    """Return, in words, which bank values of a device get, and why."""
    if device.type == "cpu":
        return "on the host: torch finds no accelerator"
    if has_kernels(device):
        return f"on {device}, by kernels of Triton: training never waits"
    why = "triton is not installed" if device.type == GPU else f"there are no kernels for {device.type}"
    return f"plain, on the host, for values on {device}, because {why}: one wait a window"
