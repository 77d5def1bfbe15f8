"""What each way of compiling costs in graphs, with the tracker and without: the table in the guide."""

from pathlib import Path

import pytest
import torch
from torch import nn

from d9d_tracker.tracing import REGIONS_WRITE_IN_TRAINING

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "compiled.md"
BLOCKS, CONTEXTS = 14, 20


class Block(nn.Module):
    def __init__(self, index, run):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.mean = None if run is None else run.scalar_series(f"layers.{index}/mean")
        self.out = None if run is None else run.bins_series(f"layers.{index}/out")

    def forward(self, inputs):
        outputs = inputs + torch.relu(self.layer(inputs))
        if self.mean is not None:
            self.mean.scalar(outputs.mean())
            self.out.bins(outputs)
        return outputs


class Region(Block):
    @torch.compiler.nested_compile_region
    def forward(self, inputs):
        return super().forward(inputs)


def blocks(run, count=BLOCKS, kind=Block):
    return nn.Sequential(*[kind(index, run) for index in range(count)])


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def inputs():
    return torch.randn(4, 8, requires_grad=True)


def whole_step(run):
    model = blocks(run)
    step = compiled(lambda values: model(values).sum())
    for _ in range(3):
        step(inputs()).backward()


def one_by_one(run):
    model = blocks(run)
    for block in model:
        block.compile(fullgraph=True, backend="aot_eager")
    for _ in range(3):
        model(inputs()).sum().backward()


def contexts(run):
    model = blocks(run, 2)
    step = compiled(lambda values: model(values).sum())
    for index in range(CONTEXTS):
        if run is not None:
            run.set_context({"fold": str(index)})
        step(inputs()).backward()


def train_and_eval(run):
    model = nn.Sequential(blocks(run, 2), nn.Dropout(0.5))
    step = compiled(lambda values: model(values).sum())
    for stage in ("train", "eval", "train", "eval"):
        if run is not None:
            run.set_context({"stage": stage})
        model.train(stage == "train")
        with torch.set_grad_enabled(stage == "train"):
            step(inputs())


def watched(run):
    model = blocks(None)
    if run is not None:
        run.watch(model, gradients=False, activations=True)
    for block in model:
        block.compile(fullgraph=True, backend="aot_eager")
    for _ in range(3):
        model(inputs()).sum().backward()


def region_once(run):
    model = blocks(run, 1, Region)
    step = compiled(lambda values: model(values).sum())
    for _ in range(3):
        step(inputs()).backward()


def region_repeated(run):
    model = blocks(run, 3, Region)
    step = compiled(lambda values: model(values).sum())
    with torch.no_grad():
        for _ in range(3):
            step(inputs())


def dynamic(run):
    model = blocks(run, 2)
    step = compiled(lambda values: model(values).sum())
    for rows in (3, 4, 5, 6):
        values = torch.randn(rows, 8, requires_grad=True)
        torch._dynamo.mark_dynamic(values, 0)
        step(values).backward()


WAYS = {
    "the whole step": whole_step,
    f"{BLOCKS} blocks one by one, each with its handles": one_by_one,
    f"{BLOCKS} blocks one by one, activations watched": watched,
    f"{CONTEXTS} contexts": contexts,
    "train, eval, train, eval": train_and_eval,
    "`mark_dynamic`": dynamic,
    "`nested_compile_region`, called once, in training": region_once,
    "`nested_compile_region`, called by 3 blocks, in inference": region_repeated,
}


def skip_what_this_torch_cannot(way):
    if WAYS[way] is region_once and not REGIONS_WRITE_IN_TRAINING:
        pytest.skip("regions of this torch cannot write to buffers in training; those of 2.13 can")


def row(way, recorded, graphs):
    WAYS[way](None)
    without = graphs()
    torch._dynamo.reset()
    tracker = recorded()
    with tracker.open() as run:
        WAYS[way](run)
    assert tracker.run.records
    return f"| {way} | {without} | {graphs() - without} |"


@pytest.mark.parametrize("way", WAYS)
def test_the_guide_says_what_each_way_costs(recorded, graphs, way):
    skip_what_this_torch_cannot(way)
    found = row(way, recorded, graphs)
    _, without, tracked = (part.strip() for part in found.strip("|").split("|"))
    assert tracked == without
    assert found in GUIDE.read_text().splitlines()
