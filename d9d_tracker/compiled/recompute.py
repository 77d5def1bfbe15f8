"""Code that runs in another way than it is written: again in a backward, or transformed by torch.func."""

from d9d_tracker.errors import TrackerValueError
from d9d_tracker.lazy_torch import assume_constant_result
from d9d_tracker.tracing import body_around, is_checkpointed, is_vmapped


def check_place(name: str) -> None:
    """Refuse to log inside ``torch.vmap``, where one value stands for many."""
    if is_vmapped():
        raise TrackerValueError(
            f"series {name!r} was logged inside torch.vmap, where one value stands for many; return the value and "
            "log it outside, reduced or with bins"
        )


@assume_constant_result
def check_traced_place(name: str) -> None:
    """Refuse, while tracing, what ``check_place`` refuses, and a forward that eager checkpointing will run again."""
    check_place(name)
    if (body := body_around()) is not None:
        raise TrackerValueError(
            f"series {name!r} was logged inside the body of {body}, which torch does not let write to buffers; return "
            "the value from there, and log it outside"
        )
    if is_checkpointed():
        raise TrackerValueError(
            f"series {name!r} is logged by a compiled function inside activation checkpointing, which runs it twice, "
            "and compiled code cannot tell the second run: compile the function that calls the checkpoint instead, or "
            "log outside of the checkpointed function"
        )


@assume_constant_result
def is_refused_place() -> bool:
    """Tell, while tracing, whether ``check_traced_place`` would refuse: without a name, which would be a guard."""
    return is_vmapped() or is_checkpointed() or body_around() is not None
