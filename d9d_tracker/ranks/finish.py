"""Waiting for a collective, so that no thread of gloo is left that needs the interpreter while it shuts down."""

from collections import deque

import torch.distributed as dist

# Of the last collectives, because gloo's threads may be late by as many: each lets go of its work when it is done,
# and the last to let go frees the work's tensors, for which it needs the interpreter. One that shuts down meanwhile,
# as after the last window of a training, aborts the process.
_kept: deque[dist.Work] = deque(maxlen=4)


def finish(work: dist.Work | None) -> None:
    """Wait for a collective that was begun with ``async_op=True``.

    Args:
        work: The collective; None, which this process takes no part in, is done.

    Raises:
        RuntimeError: If a rank does not take part within the group's timeout.
    """
    if work is not None:
        _kept.append(work)
        work.wait()
