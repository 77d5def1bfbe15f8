"""Configuration shared by every backend: the accumulator and the binnings."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from d9d_tracker_kernels.binning import EXPONENTIAL, INTEGER, LINEAR, validate


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExponentialBinning(_Frozen):
    """Range-free bins: sign, exponent and the leading mantissa bits of the float32 pattern.

    Attributes:
        kind: Discriminator, always ``"exponential"``.
        mantissa_bits: How many bins divide each power of two: ``2 ** mantissa_bits``. At most 2.
    """

    kind: Literal["exponential"] = "exponential"
    mantissa_bits: int = Field(default=2, ge=0, le=2)

    def parameters(self) -> tuple[int, int, float, float]:
        """Return ``(kind, bins, low, high)`` as the kernels take them."""
        return EXPONENTIAL, 512 << self.mantissa_bits, 0.0, 0.0


class LinearBinning(_Frozen):
    """Equal bins over a known range; values outside are counted in an under and an over bin.

    Attributes:
        kind: Discriminator, always ``"linear"``.
        low: Lower edge of the first bin, rounded to float32.
        high: Upper edge of the last bin, rounded to float32; a value equal to it is in the last bin.
        bins: Number of bins between ``low`` and ``high``, at most 2046.
    """

    kind: Literal["linear"] = "linear"
    low: float
    high: float
    bins: PositiveInt

    @model_validator(mode="after")
    def _sensible(self) -> "LinearBinning":
        validate(*self.parameters())
        return self

    def parameters(self) -> tuple[int, int, float, float]:
        """Return ``(kind, bins, low, high)`` as the kernels take them."""
        return LINEAR, self.bins, self.low, self.high


class IntegerBinning(_Frozen):
    """One bin per integer from 0 to ``bins - 1`` (expert ids, token ids); others go under and over.

    Attributes:
        kind: Discriminator, always ``"integer"``.
        bins: Number of bins, at most 2046.
    """

    kind: Literal["integer"] = "integer"
    bins: PositiveInt

    @model_validator(mode="after")
    def _sensible(self) -> "IntegerBinning":
        validate(*self.parameters())
        return self

    def parameters(self) -> tuple[int, int, float, float]:
        """Return ``(kind, bins, low, high)`` as the kernels take them."""
        return INTEGER, self.bins, 0.0, float(self.bins)


Binning = ExponentialBinning | LinearBinning | IntegerBinning


class AccumulatorConfig(_Frozen):
    """How values accumulate on the device before they travel to the backend.

    Attributes:
        sync_every: N, the number of steps in a window: values travel to the host once per window.
        device: Where the training runs: ``"auto"`` (torch's current accelerator if there is one, else the CPU) or a
            torch device such as ``"cuda:1"``, ``"mps"`` or ``"cpu"``. Values on others are taken too.
        max_scalars: Number of scalar series the buffers have room for.
        max_histograms: Number of histogram series the buffers have room for.
        scalar_resolution: One scalar point per ``"step"`` or per ``"window"``.
        binning: Binning of histogram series that name none.
        bins_every: Cadence of histogram series that name none: count on steps divisible by this.
        flush_timeout: Seconds that ``flush``, ``state_dict`` and the end of a run wait for the backend, at most.
        distributed: Which processes share a run. ``"auto"``: all ranks of an initialised torch.distributed job, over a
            gloo group of their own; ``"off"``: none, every process has a run of its own; ``"rank0"``: rank 0 alone, no
            other process is waited for, and what the others log goes nowhere. Rank 0 writes to the backend. Other
            groups are an argument of the tracker.
        distributed_timeout: Seconds that ``open``, each window, and the end of rank 0's run wait for other ranks, at
            most. Training itself never waits. Half an hour by default, as NCCL does.
        backlog_dir: Folder for what a backend has not accepted yet; created when it is first needed.
        backlog_bytes: Size of that backlog, per run; the oldest windows are dropped, and reported, beyond it.
        writer: Where the backend runs: on a ``"thread"`` of the training, or in a ``"process"`` of its own, which does
            not hold the training's interpreter, and finishes what it was given when the training is killed. That costs
            an import of the SDK on opening, and its memory. ``"auto"``: in a process those whose SDK computes in Python
            (Aim, MLflow, Trackio), until ``run.backend`` is given what no other process could do; the others on a
            thread.
        summary: Whether the end of a run prints where it is, and what became of it; on a terminal only.
    """

    sync_every: PositiveInt = 50
    device: str = "auto"
    max_scalars: PositiveInt = 1024
    max_histograms: PositiveInt = 512
    scalar_resolution: Literal["step", "window"] = "step"
    binning: Annotated[Binning, Field(discriminator="kind")] = ExponentialBinning()
    bins_every: PositiveInt = 1
    flush_timeout: float = Field(default=30.0, gt=0, le=1e9)  # no lock waits for longer
    distributed: Literal["auto", "off", "rank0"] = "auto"
    distributed_timeout: float = Field(default=1800.0, gt=0, le=1e9)
    backlog_dir: Path = Path(".d9d_tracker")
    backlog_bytes: PositiveInt = 256 * 2**20
    writer: Literal["auto", "thread", "process"] = "auto"
    summary: bool = True

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            import torch  # which knows the others

            try:
                is_real = torch.device(device).type != "meta"
            except RuntimeError as error:
                raise ValueError(
                    f"{device!r} is no torch device; use 'auto', 'cpu' or 'cuda:0', for example"
                ) from error
            if not is_real:
                raise ValueError("on 'meta' no values are; use 'auto', or the device that the training runs on")
        return device

    @field_validator("distributed", mode="before")
    @classmethod
    def _off(cls, distributed: Any) -> Any:
        return "off" if distributed is False else distributed  # which is how YAML reads the bare word


class TrackerConfig(BaseModel):
    """Base of every backend's configuration; a backend adds ``provider: Literal["name"]`` and its own fields.

    Attributes:
        accumulator: Device-side accumulation in front of the backend, or None for the bare backend.
    """

    model_config = ConfigDict(extra="forbid")

    accumulator: AccumulatorConfig | None = Field(default_factory=AccumulatorConfig)
