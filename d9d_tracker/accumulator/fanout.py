"""Handing records to several backends at once: a queue, a thread and a backlog for each."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol, TypeVar, runtime_checkable

from d9d_tracker.base import BaseTrackerRun
from d9d_tracker.record import Record

from .delivery import Delivery, DeliveryReport
from .distributed.elsewhere import DeliveryElsewhere

T = TypeVar("T")


@runtime_checkable
class HasParts(Protocol):
    """A run that stands for several backends, each to be delivered to on its own."""

    def parts(self) -> Mapping[str, BaseTrackerRun]:
        """Return the backends' runs by name."""
        ...


logger = logging.getLogger("d9d_tracker")


class FanoutReport(DeliveryReport):
    """What became of the records in all backends together: sums, in which a record counts once for each backend.

    Args:
        parts: The reports of the backends by their name.

    Attributes:
        parts: The same.
        unread: Windows that never reached the host, because of an error on the device. They are lost.
    """

    def __init__(self, parts: Mapping[str, DeliveryReport]):
        self.parts = parts
        self.unread = 0

    def __getattribute__(self, name: str) -> Any:
        """Return a sum for every number that each backend has of its own."""
        if name not in _SUMMED:
            return super().__getattribute__(name)
        return sum((getattr(part, name) for part in self.parts.values()), Counter() if name == "refused" else 0)


_SUMMED = {field.name for field in fields(DeliveryReport)} - {"unread"}


class Fanout:
    """Several deliveries behind the methods of one. A backend that is down, slow or raising holds up no other.

    Args:
        deliveries: The deliveries by the name of their backend, at least one.

    Attributes:
        report: What became of the records.
    """

    def __init__(self, deliveries: Mapping[str, Delivery]):
        self._deliveries = dict(deliveries)
        self.report = FanoutReport({name: delivery.report for name, delivery in deliveries.items()})

    def put(self, window: int, records: list[Record], first: int) -> None:
        """Queue the records of a window for every backend; see `Delivery.put`."""
        for delivery in self._deliveries.values():
            # A delivery reorders its list, and drops from it what its backend refuses.
            delivery.put(window, list(records), first)

    def flush(self, timeout: float) -> bool:
        """Wait until every backend has accepted everything, within one timeout; see `Delivery.flush`."""
        return all(self._each(lambda delivery, seconds: delivery.flush(seconds), timeout).values())

    def settle(self, timeout: float) -> list[int]:
        """Wait until everything is safe for every backend, within one timeout; see `Delivery.settle`.

        Returns:
            The windows that are in the backlog of any backend.
        """
        kept = self._each(lambda delivery, seconds: delivery.settle(seconds), timeout)
        return sorted({window for windows in kept.values() for window in windows})

    def kept(self) -> list[int]:
        """Return the windows that are in the backlog of any backend, oldest first."""
        return sorted({window for delivery in self._deliveries.values() for window in delivery.kept()})

    def close(self, timeout: float) -> bool:
        """Deliver what is left and end the threads, within one timeout; see `Delivery.close`.

        Returns:
            True: whoever closes the backends must close each for itself, one that hangs in a thread of its own.
        """
        for name, ended in self._each(lambda delivery, seconds: delivery.close(seconds), timeout).items():
            if not ended:
                logger.error("%s hangs", name)
        return True

    def join(self) -> None:
        """Wait until the threads have ended, however long a backend hangs."""
        for delivery in self._deliveries.values():
            delivery.join()

    def _each(self, method: Callable[[Delivery, float], T], timeout: float) -> dict[str, T]:
        deadline = time.monotonic() + timeout
        return {
            name: method(delivery, max(0.0, deadline - time.monotonic())) for name, delivery in self._deliveries.items()
        }


AnyDelivery = Delivery | DeliveryElsewhere | Fanout
