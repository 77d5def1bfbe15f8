"""What differs between devices, and what all that speaks to a GPU asks it for: another kind of GPU begins here."""

import importlib.util
from typing import Any

import torch

GPU = "cuda"  # torch's name for an AMD one too
DISPATCH_KEY = GPU.upper()
gpu: Any = torch.cuda  # its streams, events and captures
# Programs that run at once on a multiprocessor: one computes while the other waits for memory.
PROGRAMS_PER_MULTIPROCESSOR = 2
IS_AMD = torch.version.hip is not None


def has_kernels(device: torch.device) -> bool:
    """Whether there are kernels for a device."""
    return device.type == GPU and importlib.util.find_spec("triton") is not None


def most_programs(device: torch.device) -> int:
    """How many programs run at once on a GPU."""
    return PROGRAMS_PER_MULTIPROCESSOR * gpu.get_device_properties(device).multi_processor_count


def warp_size(device: torch.device) -> int:
    """Threads of a warp: 32 on NVIDIA GPUs and AMD's RDNA, 64 on AMD's CDNA. 32 off a GPU, for the interpreter."""
    return gpu.get_device_properties(device).warp_size if device.type == GPU else 32


def is_rdna(device: torch.device) -> bool:
    """Whether it is one of AMD's RDNA, which have 256 registers a thread at most."""
    return IS_AMD and warp_size(device) == 32
