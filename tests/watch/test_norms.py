"""Norms of a watched model are those of plain torch, on whichever way the optimizer steps."""

import itertools
import math

import pytest
import torch
import torch._dynamo.config
from norms_by_hand import ByHand, Norms, norm, total
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from d9d_tracker import RunConfig, TrackerValueError

RELATIVE = 1e-6


def network(widths=(4, 6, 2), dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(before, after, dtype=dtype) for before, after in itertools.pairwise(widths)]
    return nn.Sequential(*layers)


def tracked(tracker) -> Norms:
    return {
        (one.name, one.step): one.value
        for one in tracker.run.records
        if one.name.startswith("norms") and not one.context
    }


def assert_norms(found: Norms, expected: Norms) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=RELATIVE), key


def loss_of(model: nn.Module, step: int = 0) -> torch.Tensor:
    first = next(model.parameters())
    torch.manual_seed(step)
    return model(torch.randn(5, first.shape[1], dtype=first.dtype)).abs().square().mean()


def train(run, model, optimizer, by_hand: ByHand, steps=4, step=None, every=1):
    for index in range(steps):
        run.set_step(index)
        optimizer.zero_grad()
        loss_of(model, index).backward()
        if index % every == 0:
            by_hand.before(index)
        (step or optimizer.step)()
        if index % every == 0:
            by_hand.after(index)


@pytest.mark.parametrize("p", [2.0, 1, math.inf, 3.0, 0.5])
def test_of_every_order(recorded, p):
    tracker, model = recorded(sync_every=3), network()
    by_hand, optimizer = ByHand(model, p), torch.optim.AdamW(model.parameters(), lr=0.01)
    with tracker.open() as run:
        run.watch(model, gradients=False, norms=True, updates=True, p=p)
        train(run, model, optimizer, by_hand)
    assert_norms(tracked(tracker), by_hand.norms)


def test_the_total_is_that_of_torch(recorded):
    tracker, model = recorded(), network()
    loss_of(model).backward()
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    expected = torch.nn.utils.get_total_norm(gradients).item()
    with tracker.open() as run:
        run.watch(model, gradients=False, norms=True)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert tracker.run.points("norms/gradients") == {0: pytest.approx(expected, rel=RELATIVE)}
    assert not any(name.startswith("norms/updates") for name, _ in tracked(tracker))


@pytest.mark.parametrize("optimizer", ["foreach", "fused", "for loop", "capturable"])
@pytest.mark.parametrize("every", [1, 3])
def test_of_every_optimizer_and_cadence(recorded, optimizer, every):
    tracker, model = recorded(sync_every=2), network()
    how = {"for loop": {"foreach": False}, "capturable": {}}.get(optimizer, {optimizer: True})
    made, by_hand = torch.optim.AdamW(model.parameters(), lr=0.01, **how), ByHand(model)
    with tracker.open() as run:
        run.watch(model, norms=True, updates=True, every=every)
        train(run, model, made, by_hand, every=every)
    assert_norms(tracked(tracker), by_hand.norms)


@pytest.mark.parametrize(("every", "updates"), [(1, False), (2, False), (1, True)])
def test_of_a_compiled_optimizer(recorded, every, updates):
    from torch._dynamo.utils import counters

    def breaks(watches: bool) -> int:
        torch._dynamo.reset()
        counters.clear()
        tracker, model = recorded(sync_every=3), network()
        by_hand, optimizer = ByHand(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with tracker.open() as run:
            if watches:
                run.watch(model, gradients=False, norms=True, updates=updates, every=every)
            step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
            train(run, model, optimizer, by_hand, step=step, every=every)
        if watches:
            kinds = ("updates", "ratios")
            expected = {key: one for key, one in by_hand.norms.items() if updates or key[0].split("/")[1] not in kinds}
            assert_norms(tracked(tracker), expected)
        return sum(counters["graph_break"].values())

    assert breaks(True) == breaks(False)


@pytest.mark.parametrize("p", [2.0, math.inf])
@torch._dynamo.config.patch(trace_autograd_ops=True)
def test_of_a_whole_step_that_is_compiled(recorded, p):
    torch._dynamo.reset()
    tracker, model = recorded(sync_every=2), network()
    by_hand, optimizer = ByHand(model, p), torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="aot_eager")
    def step(batch):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with tracker.open() as run:
        run.watch(model, gradients=False, norms=True, updates=True, p=p)
        for index in range(3):
            run.set_step(index)
            batch = torch.randn(5, 4)
            model(batch).square().mean().backward()
            by_hand.before(index)
            optimizer.zero_grad()
            step(batch)
            by_hand.after(index)
    assert_norms(tracked(tracker), by_hand.norms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
@pytest.mark.parametrize("p", [2.0, 3.0, math.inf])
def test_of_every_dtype(recorded, dtype, p):
    tracker = recorded()
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(40, 30, dtype=dtype)])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    by_hand = ByHand(model, p)
    by_hand.before(0)
    with tracker.open() as run:
        run.watch(model, norms=True, p=p)
        torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert_norms(tracked(tracker), by_hand.norms)


def test_of_sparse_and_absent_gradients_and_of_empty_parameters(recorded):
    tracker, model = recorded(), nn.Embedding(10, 3, sparse=True)
    model.unused, model.empty = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0))
    model.frozen = nn.Parameter(torch.full((4,), 3.0), requires_grad=False)
    model(torch.tensor([1, 1, 7])).sum().backward()
    for p in (2.0, math.inf):
        with tracker.open() as run:
            run.watch(model, gradients=False, norms=True, p=p)
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        found = {name: value for (name, _), value in tracked(tracker).items()}
        assert found["norms/gradients/weight"] == pytest.approx(math.sqrt(3 * 4 + 3 * 1) if p == 2 else 2.0)
        assert found["norms/gradients"] == found["norms/gradients/weight"]
        assert found["norms/parameters/empty"] == 0.0
        assert found["norms/parameters/frozen"] == (6.0 if p == 2 else 3.0)
        assert "norms/gradients/unused" not in found
        assert "norms/gradients/frozen" not in found


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_with_a_closure_they_are_of_the_gradients_that_it_computes(recorded, how):
    tracker, model = recorded(), network()
    optimizer, by_hand, evaluations = torch.optim.LBFGS(model.parameters(), max_iter=3), ByHand(model), []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        if not evaluations:
            by_hand.before(0)
        evaluations.append(loss)
        return loss

    with tracker.open() as run:
        run.watch(model, norms=True, updates=True)
        optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)
        by_hand.after(0)
    assert len(evaluations) > 1
    assert_norms(tracked(tracker), by_hand.norms)


@pytest.mark.parametrize("fused", [False, True])
def test_with_amp_they_are_unscaled(recorded, fused):
    tracker, model = recorded(sync_every=1), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler, by_hand = torch.amp.GradScaler("cpu", init_scale=2.0**8), ByHand(model)
    with tracker.open() as run:
        run.watch(model, gradients=False, norms=True, updates=True)
        for step in range(3):
            run.set_step(step)
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step) * (math.inf if step == 1 else 1.0)).backward()
            if step != 1:
                by_hand.before(step, scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
            if step != 1:
                by_hand.after(step)
    skipped = {one.name for one in tracker.run.records if one.context == {"amp": "skipped"}}
    found = tracked(tracker)
    if fused:  # skips by itself, and counts as one that stepped
        assert not skipped
        assert not math.isfinite(found["norms/gradients", 1])
        assert found["norms/updates", 1] == 0.0
        found = {key: value for key, value in found.items() if key[1] != 1}
    else:
        assert skipped == {"norms/gradients", *(f"norms/gradients/{name}" for name, _ in model.named_parameters())}
    assert_norms(found, by_hand.norms)


def test_with_optimizers_in_the_backward_the_total_is_of_all(recorded):
    tracker, model, reference = recorded(sync_every=2), network(), network()
    optimizers = {one: torch.optim.SGD([one], lr=0.1) for one in model.parameters()}
    steps = iter(range(4))

    def own_step():
        loss_of(model, next(steps)).backward()

    for parameter, optimizer in optimizers.items():

        def hook(parameter, optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(hook)
    by_hand, all_at_once = ByHand(reference), torch.optim.SGD(reference.parameters(), lr=0.1)
    with tracker.open() as run:
        run.watch(model, gradients=False, norms=True, updates=True)
        train(run, reference, all_at_once, by_hand, step=lambda: (all_at_once.step(), own_step()))
    assert_norms(tracked(tracker), by_hand.norms)


def test_several_optimizers_and_several_steps_in_a_step_of_the_run(recorded):
    for resolution in ("step", "window"):
        tracker, model = recorded(sync_every=4, scalar_resolution=resolution), network()
        optimizers = [torch.optim.SGD(layer.parameters(), lr=0.0) for layer in model]
        expected: list[float] = []
        with tracker.open() as run:
            run.watch(model, gradients=False, norms=True)
            for step in range(4):
                run.set_step(step if resolution == "window" else 0)
                model.zero_grad()
                loss_of(model, step).backward()
                expected.append(total(norm(one.grad) for one in model.parameters() if one.grad is not None))
                for optimizer in optimizers:
                    optimizer.step()
        (value,) = tracker.run.points("norms/gradients").values()
        assert value == pytest.approx(math.sqrt(sum(one**2 for one in expected) / 4), rel=RELATIVE)


def test_optimizers_that_step_in_turns(recorded):
    tracker, model = recorded(sync_every=1), network()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.0) for layer in model]
    loss_of(model).backward()
    with tracker.open() as run:
        run.watch(model, gradients=False, norms=True)
        for step in range(4):
            run.set_step(step)
            optimizers[step % 2].step()
    for step, value in tracker.run.points("norms/gradients").items():
        assert value == pytest.approx(total(norm(one.grad) for one in model[step % 2].parameters()), rel=RELATIVE)


def test_flush_in_the_midst_of_a_step_leaves_the_totals_whole(recorded):
    tracker, model = recorded(sync_every=4), network()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    by_hand = ByHand(model)
    with tracker.open() as run:
        run.watch(model, gradients=False, norms=True, updates=True)
        for step in range(3):
            run.set_step(step)
            model.zero_grad()
            loss_of(model, step).backward()
            by_hand.before(step)
            optimizers[0].step()
            run.flush()
            optimizers[1].step()
            by_hand.after(step)
    assert_norms(tracked(tracker), by_hand.norms)


def test_a_run_that_goes_on_from_a_checkpoint_in_mid_step(recorded):
    model = network()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    by_hand, first, second = ByHand(model), recorded(sync_every=4), recorded(sync_every=4)
    loss_of(model).backward()
    by_hand.before(2)
    with first.open() as run:
        run.set_step(2)
        run.watch(model, gradients=False, norms=True, updates=True)
        optimizers[0].step()
        state = first.tracker.state_dict()
    second.tracker.load_state_dict(state)
    with second.tracker.open(RunConfig(name="run")) as run:
        run.watch(model, gradients=False, norms=True, updates=True)
        optimizers[1].step()
        by_hand.after(2)
    assert_norms(tracked(second), by_hand.norms)


def test_norms_of_a_model_that_changes(recorded):
    tracker, model = recorded(sync_every=1), network()
    optimizer, by_hand = torch.optim.SGD(model.parameters(), lr=0.0), ByHand(model)
    with tracker.open() as run:
        watch = run.watch(model, gradients=False, norms=True)
        for step in range(4):
            run.set_step(step)
            if step == 2:
                model.insert(0, nn.Linear(4, 4))
                optimizer.add_param_group({"params": list(model[0].parameters())})
                model[1].requires_grad_(False)
            optimizer.zero_grad()
            loss_of(model, step).backward()
            by_hand.before(step)
            optimizer.step()
        assert "norms/parameters/2.weight" in watch.series
        assert "norms/gradients/1.weight" not in watch.series
    assert_norms(tracked(tracker), by_hand.norms)


def test_prefixes_contexts_and_histograms_beside_norms(recorded):
    tracker, models = recorded(), [network(), network()]
    with tracker.open() as run:
        for model, prefix in zip(models, ("actor", "critic"), strict=True):
            run.watch(model, norms=True, prefix=prefix)
        run.set_context({"stage": "train"})
        for model in models:
            loss_of(model).backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
    names = {one.name for one in tracker.run.records}
    assert all(one.context == {"stage": "train"} for one in tracker.run.records)
    for prefix in ("actor", "critic"):
        assert {
            f"{prefix}/norms/gradients",
            f"{prefix}/norms/parameters/0.weight",
            f"{prefix}/gradients/0.weight",
        } <= names


class Operators(TorchDispatchMode):
    """Counts what reaches the device."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operators_of_a_step(recorded, layers: int, scaled: bool = False, **settings) -> list[str]:
    model = network((3,) * (layers + 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=not scaled, fused=scaled)
    if scaled:  # as a gradient scaler leaves it to a fused optimizer
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)

    def step() -> list[str]:
        with Operators() as seen:
            optimizer.step()
        return sorted(seen.names)

    with recorded(max_scalars=4096).open() as run:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        bare = step()
        run.watch(model, gradients=False, norms=True, **settings)
        step()  # finds slots
        run.set_step(1)
        watched = step()
    for name in bare:
        watched.remove(name)
    return watched


@pytest.mark.parametrize(
    "settings", [{}, {"scaled": True}, {"p": math.inf}, {"p": 3.0}, {"every": 1, "group": "block"}]
)
def test_the_number_of_operators_does_not_hang_on_how_many_parameters_there_are(recorded, settings):
    few, many = operators_of_a_step(recorded, 2, **settings), operators_of_a_step(recorded, 50, **settings)
    cheap = ("aten.detach", "aten.empty")  # launch nothing
    few, many = ([name for name in names if not name.startswith(cheap)] for names in (few, many))
    assert few == many
    assert len(few) <= (17 if "scaled" in settings else 14)
    assert not any("_local_scalar_dense" in name or "item" in name for name in many)


def test_what_makes_no_sense_is_refused(recorded):
    model = network()
    with recorded(max_scalars=12).open() as run:
        for settings, words in (
            ({"p": 0}, "p=0 is no order"),
            ({"p": "inf"}, "p='inf' is no order"),
            ({"group": 0}, "group=0 is no depth"),
            ({"norms": False, "updates": True}, "pass norms=True"),
            ({"norms": False, "group": "block"}, "pass norms=True"),
        ):
            with pytest.raises(TrackerValueError, match=words):
                run.watch(model, **{"norms": True, **settings})
        run.watch(model, norms=True, prefix="a")
        with pytest.raises(TrackerValueError, match=r"8 series, and 4 of 12 slots are free.*max_scalars=16"):
            run.watch(network(), norms=True, prefix="b")


@pytest.mark.parametrize("name", ["norms/gradients", "norms/parameters/0.weight"])
def test_names_that_are_in_use_are_refused(recorded, name):
    with recorded().open() as run:
        run.scalar(name, 1.0)
        with pytest.raises(TrackerValueError, match=f"{name}.*logged with reduce='mean' before.*prefix"):
            run.watch(network(), norms=True)
        run.watch(network(), norms=True, prefix="a")
