"""What a watch was asked for, and the names that this gives in a model."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from d9d_tracker.compiled.slots import check_settings
from d9d_tracker.config import AccumulatorConfig, Binning
from d9d_tracker.errors import TrackerTypeError, TrackerValueError

from .norm_series import Group, NormSeries, check_order, grouping

GRADIENTS, PARAMETERS, ACTIVATIONS, UPDATES = "gradients", "parameters", "activations", "updates"


@dataclass(frozen=True)
class Settings:
    """What a watch was asked for; see ``AccumulatingRun.watch`` for what each means."""

    gradients: bool = True
    parameters: bool = False
    activations: bool = False
    evaluation: bool = False
    norms: bool = False
    updates: bool = False
    p: float = 2.0
    group: Group | None = None
    prefix: str | None = None
    every: int | None = None
    binning: Binning | None = None

    def check(self, config: AccumulatorConfig) -> None:
        """Refuse what makes no sense."""
        if self.prefix is not None and not isinstance(self.prefix, str):
            raise TrackerTypeError(f"watch: prefix={self.prefix!r} is not a str; pass 'actor', for example")
        check_settings("watch", config.binning if self.binning is None else self.binning, self.cadence(config))
        check_order(self.p)
        grouping(self.group)
        if not self.norms and (self.updates or self.group is not None or self.p != 2.0):
            raise TrackerValueError("watch: updates, p and group are of norms; pass norms=True, too")

    def cadence(self, config: AccumulatorConfig) -> int:
        """Return on every how many steps to count."""
        return config.bins_every if self.every is None else self.every

    @property
    def base(self) -> str:
        """What goes before every name."""
        return f"{self.prefix}/" if self.prefix else ""

    @functools.cached_property
    def norm_series(self) -> NormSeries:
        """What norms are called."""
        return NormSeries(f"{self.base}norms/", float(self.p), grouping(self.group), self.updates)

    def histograms(self, parameters: Mapping[str, bool], layers: Iterable[str]) -> set[str]:
        """Return the names of the histograms: of parameters, which need gradients or not, and of layers."""
        names = {f"{GRADIENTS}/{name}" for name, is_trained in parameters.items() if self.gradients and is_trained}
        names |= {f"{PARAMETERS}/{name}" for name in parameters if self.parameters}
        names |= {f"{ACTIVATIONS}/{name}" for name in layers}
        return {self.base + name for name in names}

    def norm_keys(self, parameters: Mapping[str, bool]) -> set[str]:
        """Return the keys of the norms; see ``NormSeries.make``."""
        if not self.norms:
            return set()
        trained = [name for name, is_trained in parameters.items() if is_trained]
        keys = {f"{GRADIENTS}/{name}" for name in trained} | {f"{PARAMETERS}/{name}" for name in parameters}
        return keys | {f"{UPDATES}/{name}" for name in trained if self.updates}
