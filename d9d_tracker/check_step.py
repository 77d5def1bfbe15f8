"""Proof on a user's own step: what the compiler makes of it, and whether tracking costs a sync."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from d9d_tracker.accumulator import AccumulatingRun

_CALLS = 4
_WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)


@dataclass
class StepReport:
    """What `check_step` found.

    Attributes:
        graphs: How many graphs the step compiles to; 1 is best.
        breaks: Why the graph broke, one reason with the user's line a break.
        recompiles: How many compilations came after the first call, over further calls with other steps.
        host_syncs: What makes the host wait for the device: operators of the graphs, and on CUDA what the CUDA sync
            debug mode reported.
        cuda_graph_skips: Why CUDA graphs were skipped; None where there is no CUDA device to try.
        cuda_graphs: How many CUDA graphs a few calls captured, and how often one was replayed; None likewise.
        kernels: How many kernels of the compiler's own the step launches, calls of operators left out; None if it did
            not compile to one graph.
        kernels_added: How many of them are there because of tracking; None likewise.
    """

    graphs: int = 0
    breaks: list[str] = field(default_factory=list)
    recompiles: int = 0
    host_syncs: list[str] = field(default_factory=list)
    cuda_graph_skips: list[str] | None = None
    cuda_graphs: tuple[int, int] | None = None
    kernels: int | None = None
    kernels_added: int | None = None

    @property
    def is_clean(self) -> bool:
        """Whether it is one graph that never recompiles, never waits and, where there is CUDA, replays as a graph."""
        return self.graphs == 1 and not (self.breaks or self.recompiles or self.host_syncs or self.cuda_graph_skips)


def check_step(function: Callable[..., Any], *args: Any, run: AccumulatingRun, **kwargs: Any) -> StepReport:
    """Compile and call a step several times, and report what tracking cost it.

    The step logs what it logs, and the run's step advances with every call: use a run of its own for the check.
    Everything that Dynamo has compiled in this process so far is compiled again afterwards.

    Args:
        function: The step; if it is compiled already, what was compiled is checked.
        *args: Its arguments.
        run: The run that it logs to, open.
        **kwargs: Its keyword arguments.

    Returns:
        What was found.
    """
    function = getattr(function, "_torchdynamo_orig_callable", function)
    report = StepReport()

    def call(step: Callable[..., Any]) -> None:
        run.set_step(run.buffers.clock.step + 1)
        step(*args, **kwargs)

    run.set_step(run.buffers.clock.step + 1)
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(function)(*args, **kwargs)
    report.graphs = explanation.graph_count
    report.breaks = [_reason(reason) for reason in explanation.break_reasons]

    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []
    step = torch.compile(function, backend=_collecting(graphs))
    call(step)
    first = len(graphs)
    for _ in range(_CALLS - 1):
        call(step)
    report.recompiles = len(graphs) - first
    report.host_syncs = sorted({name for graph in graphs for name in _waits(graph)})

    if torch.cuda.is_available():
        torch._dynamo.reset()
        report.host_syncs += _cuda_syncs(lambda: call(torch.compile(function)))
        _try_cuda_graphs(lambda: call(torch.compile(function, mode="reduce-overhead")), report)
    if report.graphs == 1:
        report.kernels = _kernels(lambda: call(torch.compile(function)))
        with mock.patch.multiple(run, _is_silent=lambda name: True, traced=None):  # the step without tracking
            report.kernels_added = report.kernels - _kernels(lambda: call(torch.compile(function)))
    torch._dynamo.reset()
    return report


def _reason(reason: Any) -> str:
    line = reason.user_stack[-1] if reason.user_stack else None
    where = "" if line is None else f" ({line.filename}:{line.lineno}: {line.line})"
    return f"{reason.reason.strip().splitlines()[0]}{where}"


def _collecting(graphs: list[torch.fx.GraphModule]) -> Callable[..., Any]:
    def compiler(graph: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return aot_autograd(fw_compiler=compiler)


def _waits(graph: torch.fx.GraphModule) -> Iterator[str]:
    for node in graph.graph.nodes:
        # An operator binds an unbacked symbol when a number or shape that it gives depends on values on the device.
        if node.op == "call_function" and (node.meta.get("unbacked_bindings") or node.target in _WAITING):
            yield str(node.target)


def _cuda_syncs(call: Callable[[], None]) -> list[str]:
    call()  # compiling waits as often as it likes
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


def _try_cuda_graphs(call: Callable[[], None], report: StepReport) -> None:
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings(record=True) as caught, _counted_graphs() as counted:
        warnings.simplefilter("always")
        for _ in range(_CALLS):
            call()
    report.cuda_graphs = counted["captures"], counted["replays"]
    skips = counters["inductor"]["cudagraph_skips"]
    # Inductor does not count as skipped what it leaves out of a graph that it has partitioned.
    if counted["replays"] and not skips:
        report.cuda_graph_skips = []
        return
    reasons = [str(w.message) for w in caught if "cudagraph" in str(w.message).lower()]
    report.cuda_graph_skips = reasons or [f"{skips or 'all'} graphs, for a reason that TORCH_LOGS=cudagraphs tells"]


@contextmanager
def _counted_graphs() -> Iterator[Counter[str]]:
    """Count how many CUDA graphs are captured, and how often one is replayed."""
    counted: Counter[str] = Counter()
    graphs: Any = torch.cuda.graphs
    with ExitStack() as stack:
        if hasattr(graphs, "register_graph_replay_start_hook"):  # torch 2.14 and later
            for what, register in (
                ("captures", graphs.register_graph_capture_start_hook),
                ("replays", graphs.register_graph_replay_start_hook),
            ):
                stack.callback(register(lambda *_, what=what: counted.update([what])).remove)
        else:
            for what, method in (("captures", "capture_begin"), ("replays", "replay")):
                original = getattr(torch.cuda.CUDAGraph, method)

                def counting(*args: Any, what: str = what, original: Any = original, **kwargs: Any) -> Any:
                    counted.update([what])
                    return original(*args, **kwargs)

                stack.enter_context(mock.patch.object(torch.cuda.CUDAGraph, method, counting))
        yield counted


def _kernels(call: Callable[[], None]) -> int:
    from torch._inductor import config, metrics

    torch._dynamo.reset()
    before = metrics.generated_kernel_count
    with config.patch(fx_graph_cache=False):
        call()
    return metrics.generated_kernel_count - before
