"""The plain bank gives what the host's gives, and the host waits for the device once a window."""

import functools

import numpy as np
import pytest
import torch
from devices import device, plugin
from devices.on_device.compared import both, close, exact, same
from torch import nn

from d9d_tracker import ExponentialBinning, Histogram, IntegerBinning, LinearBinning, RunConfig, TrackerValueError
from d9d_tracker.bank import elsewhere

BINNINGS = [
    ExponentialBinning(),
    ExponentialBinning(mantissa_bits=0),
    LinearBinning(low=-1.0, high=2.0, bins=33),
    LinearBinning(low=-3e38, high=1.0, bins=2046),
    IntegerBinning(bins=12),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DTYPES += [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, 1e-40, -1e-40, 3e38, -3e38, float("nan"), float("inf"), -float("inf"), 0.5, 11.9]


def every_way(run, name):
    tensor = lambda *numbers, **more: torch.tensor(numbers, device=name, **more)  # noqa: E731 as short as its name
    finished = Histogram.from_values(torch.tensor(SPECIAL, device="cpu"))
    handle, bins_handle = run.scalar_series("handle", reduce="last"), run.bins_series("bins handle", every=2)
    for step in range(10):
        run.set_step(step)
        run.set_context({"stage": "eval"} if step % 3 else {})
        for reduce in ("mean", "sum", "min", "max", "last"):
            run.scalar(reduce, tensor(step + 0.5)[0], reduce=reduce)
            run.scalar(reduce, 2.0 * step, reduce=reduce)
            run.scalar(reduce, tensor(step, dtype=torch.int64), reduce=reduce)
        run.scalar("weighted", tensor(1.5, dtype=torch.bfloat16)[0], weight=tensor(float(step))[0])
        run.scalars({"true": tensor(True), "large": tensor(2**53 - 1), "nan": tensor(float("nan"))}, {"part": "head"})
        run.scalar("spread", tensor(1.0), scope="spread")
        handle.scalar(tensor(float(step)))
        handle.scalar(step * 2)
        bins_handle.bins(tensor(*SPECIAL))
        run.bins("third", tensor(*range(40)), every=3)
        run.bins_many({"a": tensor(1.0, 2.0), "b": tensor(3, -4), "none": torch.empty(0, device=name)})
        run.counts("counts", tensor(1, 0, step)[::2])
        if step % 2:
            run.histogram("mixed", finished)
        else:
            run.bins("mixed", tensor(1.0, step))
            run.bins("mixed large", torch.ones(2000, device=name))
            run.counts("mixed counts", tensor(1, step))
        if step == 5:
            run.flush()


@pytest.mark.parametrize("config", [{}, {"scalar_resolution": "window"}, {"sync_every": 1}], ids=str)
def test_it_gives_what_the_host_gives(on, config):
    same(*both(on, every_way, **config))


@pytest.mark.parametrize("binning", BINNINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_populations_have_the_same_cells(on, binning, dtype):
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0), device="cpu") * 4
    special = torch.tensor(SPECIAL, device="cpu") if dtype.is_floating_point else torch.arange(-5, 20, device="cpu")
    values = torch.cat([values, special, torch.full((100,), 2.0, device="cpu")]).to(dtype)

    def log(run, name):
        run.bins("values", values.to(name), binning=binning)
        run.bins("values", torch.stack([values, values], dim=1).to(name)[:, 1], binning=binning)  # with gaps
        run.bins("small", values[:300].to(name), binning=binning)

    same(*both(on, log))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_means_and_deviations_of_large_populations_are_right(on, scale, offset):
    values = (torch.randn(20_000, generator=torch.Generator().manual_seed(1), device="cpu") + offset) * scale

    def log(run, name):
        run.bins("values", values.to(name))

    (found,), (expected,) = (list(one.values()) for one in both(on, log))
    exact = values.to(torch.float64).numpy()
    assert found.mean == pytest.approx(exact.mean(), abs=1e-6 * exact.std())
    assert found.std == pytest.approx(exact.std(), rel=1e-4)
    assert found.counts.tolist() == expected.counts.tolist()


def test_nothing_finite_among_many(on):
    same(*both(on, lambda run, name: run.bins("values", torch.full((2000,), float("nan"), device=name))))


def test_chunks_add_up(on, monkeypatch):
    monkeypatch.setattr(elsewhere, "_CHUNK", 1000)
    values = torch.arange(5500.0, device="cpu")
    same(*both(on, lambda run, name: run.bins("values", values.to(name))))


@pytest.mark.skipif(plugin.NAME != device.NAME, reason="only the simulated device counts its waits")
def test_the_host_waits_once_a_window(recorded):
    loss, large = torch.ones(()), torch.randn(5000)
    with recorded(sync_every=4).open() as run:
        run.bins("linear", large, binning=LinearBinning(low=0.0, high=1.0, bins=4))  # whose edges are brought there
        counted = []
        for step in range(1, 13):
            before = device.waits()
            run.set_step(step)
            at_step = device.waits() - before
            run.scalar("loss", loss, weight=loss)
            run.scalars({"a": loss, "b": 1.0})
            run.bins_many({"large": large, "small": large[:10]})
            run.bins("linear", large, binning=LinearBinning(low=0.0, high=1.0, bins=4))
            run.counts("counts", torch.arange(0, 3))
            counted.append((at_step, device.waits() - before - at_step))
    assert counted == [(int(step % 4 == 0), 0) for step in range(1, 13)]


def test_a_population_is_binned_at_once(recorded):
    values = torch.arange(-4.0, 3000.0)
    expected = exact(Histogram.from_values(values.cpu()))
    assert exact(Histogram.from_values(values)) == expected
    with (one := recorded()).backend.open(RunConfig(name="bare")) as run:
        run.bins("values", values)
    assert exact(one.run.records[0].value) == expected


def test_values_are_copied_and_not_kept(recorded):
    value = torch.ones(3)
    with (tracker := recorded()).open() as run:
        run.scalar("first", value[0])
        run.bins("values", value)
        value.fill_(7.0)
    found = {one.name: one.value for one in tracker.run.records}
    assert found["first"] == 1.0
    assert found["values"].max == 1.0


def test_what_is_logged_without_steps_is_merged_before_it_is_too_much(on, monkeypatch):
    monkeypatch.setattr(elsewhere, "_MOST_ENTRIES", 20)
    monkeypatch.setattr(elsewhere, "_MOST_WORDS", 3000)

    def log(run, name):
        for step in (0, 1):
            run.set_step(step)
            for number in range(50):
                run.scalar("loss", torch.tensor(float(number), device=name))
                run.scalar("last", torch.tensor(float(number), device=name), reduce="last")
                run.bins("values", torch.arange(number + 1.0, device=name))
                run.bins("large", torch.arange(number + 2000.0, device=name))
        assert len(run.buffers.elsewhere.entries) < 200

    same(*both(on, log))


def log_counts(run, weight):
    run.counts("counts", torch.arange(3, device=weight.device))


def log_norms(run, weight):
    torch.optim.SGD([weight], lr=0.1).step()


def watched_weight(run, name):
    model = nn.Linear(3, 2, bias=False).to(name)
    model.weight.grad = torch.ones_like(model.weight)
    run.watch(model, gradients=False, norms=True)
    with torch.no_grad():
        return model.weight.fill_(1.0)


@pytest.mark.parametrize("way", [log_counts, log_norms], ids=lambda way: way.__name__)
def test_each_way_is_merged_before_it_is_too_much(on, monkeypatch, way):
    monkeypatch.setattr(elsewhere, "_MOST_ENTRIES", 20)

    def log(run, name):
        weight = watched_weight(run, name)
        for _ in range(50):
            way(run, weight)
            assert len(run.buffers.elsewhere.entries) <= 20

    same(*both(on, log), rel=1e-6)


@pytest.mark.parametrize("way", [log_counts, log_norms], ids=lambda way: way.__name__)
def test_what_a_handler_logs_while_a_window_ends_is_in_the_next(on, way):
    def log(run, name):
        weight, begin = watched_weight(run, name), run.buffers._begin
        run.buffers._begin = lambda *arguments: (way(run, weight), begin(*arguments))
        for step in range(1, 5):
            run.set_step(step)

    same(*both(on, log), rel=1e-6)


def as_it_is(function):
    return function


def train(run, name, wrap=as_it_is, of_step=as_it_is, **watched):
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = nn.Sequential(nn.Linear(4, 60), nn.Tanh(), nn.Linear(60, 40)).to(torch.float32)
    model.to(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.watch(model, parameters=True, activations=True, norms=True, updates=True, **watched)

    def loss_of(inputs):
        outputs = model(inputs)
        run.bins("outputs", outputs)
        loss = outputs.square().mean()
        run.scalar("loss", loss, weight=2.0)
        run.scalars({"first": outputs[0, 0], "number": 3}, reduce="sum")
        return loss

    loss_of, take_step = wrap(loss_of), of_step(optimizer.step)
    for step in range(6):
        run.set_step(step)
        optimizer.zero_grad()
        loss_of(torch.arange(40.0, device="cpu").view(10, 4).to(name) / 40 + step).backward()
        take_step()


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, float("inf")])
def test_a_watched_training(on, p):
    close(*both(on, lambda run, name: train(run, name, p=p)))


def test_compiled_code(on):
    def compiled(function):
        return torch.compile(
            function, backend="aot_eager" if plugin.NAME == device.NAME else "inductor", fullgraph=True
        )

    found = on(plugin.NAME, lambda run, name: train(run, name, compiled))
    expected = on("cpu", train)
    assert found.keys() == expected.keys()
    close(found, expected)


@pytest.mark.parametrize(("p", "every"), [(2.0, 1), (3.0, 1), (float("inf"), 2)])
def test_norms_of_a_compiled_optimizer(on, p, every):
    """Squares are made in float64, also in compiled code; and a step that is left out is a step of the run."""

    def compiled(step):
        torch._dynamo.reset()  # or all that other tests compiled is gone through
        return torch.compile(lambda: step(), backend="aot_eager" if p == 2 else "eager")

    norms = functools.partial(train, p=p, every=every)
    close(on(plugin.NAME, functools.partial(norms, of_step=compiled)), on("cpu", norms))


def test_a_number_in_compiled_code_goes_the_same_way(on):
    def log(run, name):
        @torch.compile(backend="aot_eager", fullgraph=True)
        def step_of(value, number):
            run.scalar("last", value, reduce="last")
            run.scalar("last", number, reduce="last")
            run.counts("counts", value.to(torch.int64).view(1))
            return value + 1

        for step in range(5):
            run.set_step(step)
            step_of(torch.tensor(float(step), device=name), 0.5 * step)

    same(*both(on, log))


def test_a_gradient_hook_and_func(on):
    def log(run, name):
        weights = torch.ones(3, device=name, requires_grad=True)
        weights.register_hook(lambda gradient: run.scalar("gradient", gradient.sum()))

        def loss(inputs):
            run.scalar("inside", inputs.sum())
            return inputs.square().sum()

        loss(weights).backward()
        torch.func.grad(loss)(torch.ones(2, device=name))
        with torch.inference_mode():
            loss(torch.ones(5, device=name))

    same(*both(on, log))


def test_a_region_in_training_is_refused_in_words(recorded):
    with recorded().open() as run:

        @torch.compiler.nested_compile_region
        def block(inputs):
            run.scalar("loss", inputs.sum())
            return inputs * 2

        with pytest.raises(TrackerValueError, match=r"nested_compile_region.*log it outside"):
            torch.compile(lambda inputs: block(inputs).sum(), backend="aot_eager", fullgraph=True)(
                torch.ones(3, requires_grad=True)
            )


def test_float64_and_large_integers_are_counted_on_the_host(on):
    values = torch.tensor([2**24 + 1, 2**62, -(2**31)] * 1000, device="cpu")
    found, expected = both(on, lambda run, name: run.bins("values", values.to(name)))
    same(found, expected)


def test_a_loaded_state_goes_on(recorded):
    first = recorded(sync_every=8)
    with first.open() as run:
        for step in range(3):
            run.set_step(step)
            run.scalar("sum", torch.full((), 0.1), reduce="sum")
            run.bins("values", torch.ones(2000))
        state = first.tracker.state_dict()
    second = recorded(sync_every=8)
    second.backend.runs = first.backend.runs
    second.tracker.load_state_dict(state)
    with second.open() as run:
        run.scalar("sum", torch.full((), 0.2), reduce="sum")
        run.bins("values", torch.ones(2000))
    values = {(one.name, one.step): one.value for one in second.run.records}
    assert values["sum", 2] == np.float32(0.1) + float(np.float32(0.2))
    assert values["values", 2].count == 8000


def test_a_window_may_be_read_twice(recorded):
    with recorded().open() as run:
        run.scalar("sum", torch.ones(()), reduce="sum")
        run.bins("values", torch.ones(3000))
        run.buffers.close_window()
        (window,) = run.buffers.outbox
        first, second = window.wait(), window.wait()
    assert (first.lanes == second.lanes).all()
    assert (first.counts == second.counts).all()
    assert first.counts.sum() > 3000
