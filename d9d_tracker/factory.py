"""From a configuration to a tracker."""

from collections.abc import Callable, Mapping
from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from .base import BaseTracker
from .config import TrackerConfig
from .provider.aim import AimConfig
from .provider.console import ConsoleTracker, ConsoleTrackerConfig
from .provider.d9d_adapter import D9dConfig
from .provider.entry_points import third_party
from .provider.jsonl import JsonlTracker, JsonlTrackerConfig
from .provider.mlflow import MLflowConfig
from .provider.multi import MultiConfig, MultiTracker
from .provider.null import NullTracker, NullTrackerConfig
from .provider.tensorboard import TensorBoardConfig
from .provider.trackio import TrackioConfig
from .provider.wandb import WandbConfig

if TYPE_CHECKING:
    from .pipeline.nonfinite import Callback


def _third_party_config(data: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate the configuration of an installed package's backend; leave all others to this package's union."""
    if isinstance(data, TrackerConfig):
        return data
    name = data.get("provider") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or name in _BUILT_IN:
        return handler(data)
    registered = next((config for config in _MAP if _name_of(config) == name), None)
    if registered is not None:
        return registered.model_validate(data)
    provider = third_party(name)
    return handler(data) if provider is None else provider.config.model_validate(data)


def _name_of(config: type[TrackerConfig]) -> Any:
    field = config.model_fields.get("provider")
    return None if field is None else field.default


# All that has to be known of a backend: the type of its configuration, and its tracker. One whose module imports an SDK
# is given as "module:class", so that the SDK is imported only when it is chosen.
_MAP: dict[type[TrackerConfig], type[BaseTracker[Any]] | str] = {
    NullTrackerConfig: NullTracker,
    ConsoleTrackerConfig: ConsoleTracker,
    JsonlTrackerConfig: JsonlTracker,
    MultiConfig: MultiTracker,
    AimConfig: "d9d_tracker.provider.aim.tracker:AimTracker",
    TensorBoardConfig: "d9d_tracker.provider.tensorboard.tracker:TensorBoardTracker",
    WandbConfig: "d9d_tracker.provider.wandb.tracker:WandbTracker",
    TrackioConfig: "d9d_tracker.provider.trackio.tracker:TrackioTracker",
    MLflowConfig: "d9d_tracker.provider.mlflow.tracker:MLflowTracker",
    D9dConfig: "d9d_tracker.provider.d9d_adapter.tracker:D9dTracker",
}
if TYPE_CHECKING:
    AnyTrackerConfig = TrackerConfig
else:
    AnyTrackerConfig = Annotated[
        SerializeAsAny[reduce(or_, _MAP)], Field(discriminator="provider"), WrapValidator(_third_party_config)
    ]
_BUILT_IN = {_name_of(config) for config in _MAP}
MultiConfig.model_rebuild(_types_namespace={"AnyTrackerConfig": AnyTrackerConfig})


def register_backend(config: type[TrackerConfig], tracker: type[BaseTracker[Any]] | str) -> None:
    """Make a backend available in this process, by its configuration and, in data, by its provider's name.

    A backend in a package of its own rather uses an entry point, for which nothing has to be called. Registering a name
    again replaces what it stood for.

    Args:
        config: Type of the backend's configuration, whose field ``provider`` has the backend's name as its default.
        tracker: Type of its tracker, or ``"module:class"`` to import it only when it is chosen.

    Raises:
        ValueError: If the configuration has no such name, or one of the backends that come with d9d_tracker.
    """
    name = _name_of(config)
    if not isinstance(name, str):
        raise ValueError(
            f'{config.__name__} does not name its provider: give it the field `provider: Literal["name"] = "name"`'
        )
    if name in _BUILT_IN:
        raise ValueError(f"{config.__name__}: provider {name!r} comes with d9d_tracker; choose another name")
    for known in [known for known in _MAP if _name_of(known) == name]:
        del _MAP[known]
    _MAP[config] = tracker


def tracker_from_config(
    config: TrackerConfig, group: Callable[[], Any] | None = None, on_nonfinite: "Callback | None" = None
) -> BaseTracker[Any]:
    """Create the tracker that a configuration describes.

    Args:
        config: Configuration of one of the backends; ``pydantic.TypeAdapter(AnyTrackerConfig)`` makes one from data.
        group: Returns the gloo process group of the ranks that share a run; by default, as the accumulator's
            ``distributed`` says.
        on_nonfinite: Gets each series that is not finite any more, as a list of `NonFinite`, once and within a window,
            on a thread of its own. Needs the accumulator.

    Returns:
        The backend's tracker, behind device-side accumulation unless ``config.accumulator`` is None.

    Raises:
        ImportError: If the backend's SDK is not installed; the message names the extra to install, if it is ours.
        TypeError: If no backend belongs to this type of configuration.
    """
    name = getattr(config, "provider", "")
    tracker_type = _MAP.get(type(config)) or _third_party_tracker(name, type(config))
    if tracker_type is None and isinstance(config, Mapping):
        raise TypeError("a configuration as data is validated first, by TypeAdapter(AnyTrackerConfig).validate_python")
    if tracker_type is None:
        known = ", ".join(known.__name__ for known in _MAP)
        raise TypeError(f"no backend for a configuration of type {type(config).__name__}: known are {known}")
    if isinstance(tracker_type, str):
        tracker_type = _load(tracker_type, name)
    if isinstance(config, MultiConfig):
        tracker = MultiTracker({name: tracker_from_config(child) for name, child in config.by_name().items()})
    else:
        tracker = tracker_type.from_config(config)
    tracker.config = config
    if config.accumulator is None:
        return tracker
    from .accumulator import AccumulatingTracker  # torch, which a writer's process that registers its backend spares

    return AccumulatingTracker(tracker, config.accumulator, group, on_nonfinite)


def _third_party_tracker(name: str, config: type[TrackerConfig]) -> type[BaseTracker[Any]] | str | None:
    provider = third_party(name) if name else None
    return provider.tracker if provider is not None and provider.config is config else None


def _load(name: str, extra: str) -> type[BaseTracker[Any]]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        if not module.startswith("d9d_tracker."):
            raise
        raise ImportError(
            f"provider {extra!r} needs its SDK, which cannot be imported ({error}): pip install 'd9d_tracker[{extra}]'"
        ) from error
