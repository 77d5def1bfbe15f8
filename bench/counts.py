"""What logging does besides taking time: waits of the host, bytes it reads, kernels, and graphs when compiled."""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d9d_tracker.bank.staging import Staging

from .contenders import EVERY, Contender, Nothing, others, ours, start
from .models import Batch, Mlp
from .plan import Plan
from .report import Result, Row
from .training import Training, forward_of, own_code

_SCALARS = 10
_FORMATS = {"waits": ".2f", "copies": ".2f", "bytes": ",.0f", "kernels": ".1f"}
_ROOM = 4 * EVERY  # steps of one count and what runs before it: steps never go back


def run(plan: Plan) -> Result:
    """Count what ten scalars, and histograms of every gradient, do to a step."""
    figures = ("waits", "copies", "bytes", *(("kernels",) if plan.device == "cuda" else ()))
    columns = {figure: _FORMATS[figure] for figure in figures}
    columns |= {f"{figure} (h)": _FORMATS[figure] for figure in figures} | {"graphs": "d", "breaks": "d"}
    result = Result("counts", f"Counted per step: {_SCALARS} scalars of a small MLP", columns)
    model = Mlp(_SCALARS).to(plan.device)
    batch = model.batch(plan.device, 32)
    wanted = {Nothing.name: Nothing, **others(plan.folder, plan.device)}
    wanted |= ours(plan.folder, plan.device, ("null", "jsonl"))
    for name, begin in wanted.items():
        with start({name: begin}) as (contenders, missing):
            result.missing |= missing
            for contender in contenders:
                result.rows.append(_count(plan, contender, model, batch))
    result.remarks = [
        f"Averages over a window of {EVERY} steps, less what the untracked step does: how often the host waits for the "
        "device, copies from the device to the host and their bytes. (h): with a histogram of each of "
        f"{len(list(model.parameters()))} gradients as well.",
        "graphs and breaks: of a step that logs from inside the code under torch.compile, over five steps; one "
        "graph and no break is what fullgraph asks for.",
    ]
    if plan.device == "cpu":
        result.remarks.append(
            "On a CPU the waits are those that the same calls cause on a GPU: .item(), .cpu(), .tolist() and others of "
            "tensors that live on the device, counted while the step runs eagerly. Kernels are counted on a GPU only."
        )
    return result


def _count(plan: Plan, contender: Contender, model: torch.nn.Module, batch: Batch) -> Row:
    count = _count_cuda if plan.device == "cuda" else _count_cpu
    cells: dict[str, Any] = {}
    for gradients in (False, True):
        if gradients and not _has_histograms(contender):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = count(_eager(Nothing(), model, batch, gradients=False), EVERY)
            training = _eager(contender, model, batch, gradients=gradients)
            training.steps = _ROOM * gradients
            training.before()
            mine = count(training, EVERY)
            contender.settle()
        for figure in mine:
            cells[figure + " (h)" * gradients] = (mine[figure] - alone[figure]) / EVERY
    note = ""
    if contender.tracks:
        graphs, breaks, note = _graphs(contender, model, batch, 2 * _ROOM)
        cells |= {"graphs": graphs, "breaks": breaks}
    return Row(contender.name, contender.kind, cells, note)


def _eager(contender: Contender, model: torch.nn.Module, batch: Batch, *, gradients: bool) -> Training:
    return Training(contender, model, batch, forward_of(model, contender, backend=None), gradients=gradients)


def _has_histograms(contender: Contender) -> bool:
    overridden = (type(contender).gradients, type(contender).watch)
    return overridden != (Contender.gradients, Contender.watch)


def _graphs(
    contender: Contender, model: torch.nn.Module, batch: Batch, first_step: int
) -> tuple[int | None, int | None, str]:
    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss, values = model(inputs, targets)
        contender.scalars(values)
        return loss

    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(own_code(forward), backend=counter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in range(first_step + 1, first_step + 6):
                contender.set_step(step)
                compiled(*batch)
                contender.end_step()
    except Exception as error:  # logging inside compiled code fails altogether
        return None, None, f"inside compiled code: {type(error).__name__}"
    finally:
        contender.settle()
    return counter.frame_count, sum(counters["graph_break"].values()), ""


def _count_cpu(training: Training, steps: int) -> dict[str, float]:
    training.run(1)
    packed: list[int] = []
    original = Staging.copy

    def copy(staging: Staging, parts: Any) -> Any:
        packed.append(sum(part.nbytes for part in parts))  # the host buffer is as long as it can get
        return original(staging, parts)

    with mock.patch.object(Staging, "copy", copy), host_reads() as reads:
        training.run(steps)
    return {
        "waits": sum(read.waits for read in reads),
        "copies": len(reads) + len(packed),
        "bytes": sum(read.bytes for read in reads) + sum(packed),
    }


def _count_cuda(training: Training, steps: int) -> dict[str, float]:
    training.run(1)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.run(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
            training.run(steps)
            torch.cuda.synchronize()
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    kernels = sum(event.get("cat") == "kernel" for event in events)
    if not kernels:
        raise RuntimeError("the profiler saw no kernel on the GPU: is CUPTI permitted here?")
    copies = [event for event in events if event.get("cat") == "gpu_memcpy" and "DtoH" in event["name"]]
    moved = sum(event["args"]["bytes"] for event in copies)
    return {"waits": waits, "copies": len(copies), "bytes": moved, "kernels": kernels}


@dataclass(frozen=True)
class Read:
    """One time that the host took a tensor from the device.

    Attributes:
        bytes: Size of the tensor.
        waits: Whether the host waits for it.
    """

    bytes: int
    waits: bool = True


@contextmanager
def host_reads() -> Iterator[list[Read]]:
    """Record, on the CPU, what would be taken from a GPU.

    Yields:
        The reads, as they happen.
    """
    reads: list[Read] = []
    with _Functions(reads), _Dispatched(reads):
        yield reads


class _Functions(TorchFunctionMode):
    """Counts ``.cpu()`` and ``.tolist()`` of tensors on the device, and follows what is on the host after that."""

    def __init__(self, reads: list[Read]):
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.backward:
            with self:  # a mode is off inside what it intercepts, and hooks of the backward read as well
                return _engine_run_backward(
                    args[:1],
                    (torch.ones_like(args[0]),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_host = all(map(_is_on_host, tensors))
        to_host = func is torch.Tensor.cpu or (
            func is torch.Tensor.to and "cpu" in map(str, (*args[1:], *kwargs.values()))
        )
        if (to_host or func is torch.Tensor.tolist) and not on_host:
            self._reads.append(Read(tensors[0].nbytes, waits=not kwargs.get("non_blocking")))
        output = func(*args, **kwargs)
        if to_host:
            output = output.clone()
        if to_host or on_host:
            for leaf in tree_leaves(output):
                if isinstance(leaf, torch.Tensor):
                    leaf.is_on_host = True  # pyright: ignore[reportAttributeAccessIssue] our own mark
        return output


class _Dispatched(TorchDispatchMode):
    """Counts ``.item()``, ``float()``, ``bool()`` and ``if`` of tensors on the device."""

    def __init__(self, reads: list[Read]):
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not _is_on_host(args[0]):
            self._reads.append(Read(args[0].element_size()))
        return func(*args, **(kwargs or {}))


def _is_on_host(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "is_on_host", False)
