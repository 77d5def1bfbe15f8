"""Which stream of a GPU worked on the buffers last: the next one waits for it."""

from typing import Any

import torch

from d9d_tracker_kernels.device import gpu


class Streams:
    """The stream of each GPU that worked on buffers last."""

    def __init__(self):
        self._last: dict[torch.device, Any] = {}

    def follow(self, device: torch.device) -> None:
        """Have this thread's stream of a GPU wait for the one before, in eager code, if it is another."""
        if gpu.is_current_stream_capturing():
            return
        current, last = gpu.current_stream(device), self._last.get(device)
        if current != last:
            if last is not None:
                current.wait_stream(last)
            self._last[device] = current
