"""What may be given as a step."""

import operator
from typing import Any

from .errors import TrackerTypeError, TrackerValueError
from .lazy_torch import is_tensor


def as_step(method: str, step: Any) -> int:
    """Return a step, whatever is an index, as an int that is not negative and fits into int64."""
    try:
        if isinstance(step, bool) or is_tensor(step):  # which could be asked too, and a GPU would be waited for
            raise TypeError
        index = operator.index(step)
    except TypeError:
        words = f"{method}({step!r}): a step is an int, not {type(step).__name__}; pass int(step)"
        raise TrackerTypeError(words) from None
    if not 0 <= index < 2**63:
        raise TrackerValueError(f"{method}({index}): a step is between 0 and 2**63 - 1; count steps from the start")
    return index
