"""Windows made from known values, for tests that need no device and no second process."""

import numpy as np
import torch

from d9d_tracker import ExponentialBinning
from d9d_tracker.bank.buffers import Buffers
from d9d_tracker.bank.places import Target
from d9d_tracker.config import AccumulatorConfig
from d9d_tracker.series.series import HistogramSeries, ScalarSeries
from d9d_tracker.windows.host_window import HostWindow
from d9d_tracker_kernels.ops import histogram_

Values = dict[int, dict[str, list[float]]]  # by step and name


def window_of(
    scalars: Values,
    populations: Values | None = None,
    reduce: str = "mean",
    index: int = 0,
    steps: list[int] | None = None,
) -> HostWindow:
    """Return the window of one rank, as the buffers make it, with series in the order of first sight."""
    populations = populations or {}
    steps = sorted({*scalars, *populations}) if steps is None else steps
    buffers = Buffers(AccumulatorConfig(device="cpu", sync_every=1 + len(steps), max_scalars=32, max_histograms=8))
    # A scalar and a histogram series of one name, which a run refuses.
    buffers.scalar_series.other = buffers.histogram_series.other = None
    binning = ExponentialBinning()
    for step in steps:
        if step > buffers.clock.step:
            if step == steps[0]:
                buffers.now = buffers.clock._replace(step=step)
                buffers.device_step.fill_(step)
            else:
                buffers.advance(step)
        for name, values in scalars.get(step, {}).items():
            slot = buffers.scalar_series.slot(ScalarSeries(name, (), reduce))
            for value in values:
                buffers.scalars.write(Target([slot], buffers.scalars.places), [value], reduce, None)
        for name, values in populations.get(step, {}).items():
            slot = buffers.histogram_series.slot(HistogramSeries(name, (), binning))
            bank = buffers.histograms
            histogram_(
                torch.tensor(values, device="cpu"), bank.counts, bank.moments, bank.partials, bank.places,
                buffers.device_step, slot, 1,
                *binning.parameters(),
            )  # fmt: skip
    buffers.close_window()
    window = buffers.outbox[-1].wait()
    window.index = index
    return window


def same(one: HostWindow, other: HostWindow) -> bool:
    """Tell whether two windows hold the same states, to the last bit."""
    return (
        (one.steps, one.scalars, one.histograms) == (other.steps, other.scalars, other.histograms)
        and np.array_equal(one.lanes, other.lanes, equal_nan=True)
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.moments, other.moments)
    )
