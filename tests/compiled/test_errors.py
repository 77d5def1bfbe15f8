"""Bad input raises this library's exceptions, with the series and the user's line, in eager and compiled code alike."""

import re
import traceback

import numpy as np
import pytest
import torch

from d9d_tracker import TrackerError, TrackerTypeError, TrackerValueError

CALLS = [
    (lambda run, x: run.scalar("bad", x), TrackerValueError, ("'bad'", "one element", "bins")),
    (lambda run, x: run.scalar("bad", x[:0]), TrackerValueError, ("'bad'", "one element")),
    (lambda run, x: run.scalar("bad", "text"), TrackerTypeError, ("'bad'", "'text'", "str")),
    (lambda run, x: run.scalar("bad", None), TrackerTypeError, ("'bad'", "NoneType")),
    (lambda run, x: run.scalar("bad", [1.0]), TrackerTypeError, ("'bad'", "list")),
    (lambda run, x: run.scalar("bad", 1j), TrackerTypeError, ("'bad'", "complex")),
    (lambda run, x: run.scalar("bad", x.sum() * 1j), TrackerTypeError, ("'bad'", "complex64")),
    (lambda run, x: run.scalar("bad", x.sum().to("meta")), TrackerValueError, ("'bad'", "meta", "log ")),
    (lambda run, x: run.scalar("bad", np.ones(2)), TrackerValueError, ("'bad'", "one element")),
    (lambda run, x: run.scalar("", x.sum()), TrackerValueError, ("name is empty",)),
    (lambda run, x: run.scalar(3, x.sum()), TrackerTypeError, ("name", "str", "int")),
    (lambda run, x: run.scalar(["bad"], x.sum()), TrackerTypeError, ("name", "str", "list")),
    (lambda run, x: run.scalar(x.sum(), "bad"), TrackerTypeError, ("name", "str", "Tensor")),
    (lambda run, x: run.scalar("bad", x.sum(), {"fold": [1]}), TrackerTypeError, ("'bad'", "'fold'", "list")),
    (lambda run, x: run.scalar("bad", x.sum(), {"fold": x}), TrackerTypeError, ("'bad'", "'fold'", "Tensor")),
    (lambda run, x: run.scalar("bad", x.sum(), {1: "fold"}), TrackerTypeError, ("'bad'", "1", "int")),
    (lambda run, x: run.scalar("bad", x.sum(), "eval"), TrackerTypeError, ("'bad'", "context", "str")),
    (lambda run, x: run.scalar("bad", x.sum(), reduce="median"), TrackerValueError, ("'bad'", "median", "mean")),
    (lambda run, x: run.scalar("bad", x.sum(), reduce="sum", weight=2), TrackerValueError, ("'bad'", "weight", "sum")),
    (lambda run, x: run.scalar("bad", x.sum(), weight=x), TrackerValueError, ("bad (weight)", "one element")),
    (lambda run, x: run.scalars([1.0]), TrackerTypeError, ("mapping", "list")),
    (lambda run, x: run.scalars({"good": x.sum(), "bad": x}), TrackerValueError, ("'bad'", "one element")),
    (lambda run, x: run.bins("bad", 3.0), TrackerTypeError, ("'bad'", "tensor", "float")),
    (lambda run, x: run.bins("bad", x * 1j), TrackerTypeError, ("'bad'", "complex64", "abs")),
    (lambda run, x: run.bins("bad", x.to("meta")), TrackerValueError, ("'bad'", "meta", "log ")),
    (lambda run, x: run.bins("bad", x, every=0), TrackerValueError, ("'bad'", "every=0")),
    (lambda run, x: run.bins("bad", x, every=1.5), TrackerValueError, ("'bad'", "every=1.5")),
    (lambda run, x: run.bins("bad", x, binning="linear"), TrackerTypeError, ("'bad'", "LinearBinning", "str")),
    (lambda run, x: run.bins("bad", x, {"fold": None}), TrackerTypeError, ("'bad'", "'fold'", "NoneType")),
    (lambda run, x: run.bins_many({"good": x, "bad": x * 1j}), TrackerTypeError, ("'bad'", "complex64")),
    (lambda run, x: run.bins_many([x]), TrackerTypeError, ("mapping", "list")),
]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(("call", "error", "words"), CALLS)
def test_compiled_and_eager_code_refuse_alike(recorded, call, error, words, dynamic):
    tracker = recorded()

    def log(run, inputs):
        call(run, inputs)  # the user's line
        return inputs * 2

    with tracker.open() as run:
        for function in (log, torch.compile(log, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
            with pytest.raises(error) as caught:
                function(run, torch.ones(2, 3))
            assert all(word in str(caught.value) for word in words), str(caught.value)
            shown = "".join(traceback.format_exception(caught.value))
            assert "call(run, inputs)  # the user's line" in shown
        torch.compile(lambda x: run.scalar("fine", x.sum()), fullgraph=True, backend="aot_eager")(torch.ones(2))
    assert [record.name for record in tracker.run.records] == ["fine"]
    assert torch._dynamo.config.assume_static_by_default


def test_a_series_has_one_reduction_and_one_binning(recorded):
    from d9d_tracker import IntegerBinning, LinearBinning

    tracker = recorded()
    linear, integer = LinearBinning(low=0, high=1, bins=4), IntegerBinning(bins=4)
    with tracker.open() as run:
        run.scalar("loss", 1.0)
        run.bins("values", torch.ones(2), binning=linear)
        for call, words in (
            (lambda x: run.scalar("loss", x.sum(), reduce="max"), "'loss'.*'mean'.*'max'"),
            (lambda x: run.bins("values", x, binning=integer), "'values'.*Linear.*Integer"),
        ):
            for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
                with pytest.raises(TrackerValueError, match=words):
                    function(torch.ones(2))


def test_what_has_no_slot_left_is_dropped_and_said_once(recorded, caplog):
    tracker = recorded(max_scalars=2, max_histograms=1)
    with tracker.open() as run:
        scalars = torch.compile(lambda x: run.scalars(dict.fromkeys("abc", x.sum())), fullgraph=True, backend="eager")
        bins = torch.compile(lambda x: (run.bins("d", x), run.bins("e", x)), fullgraph=True, backend="eager")
        for step in range(3):
            run.set_step(step)
            scalars(torch.ones(2))
            bins(torch.ones(2))
    said = [record.getMessage() for record in caplog.records if record.name == "d9d_tracker"]
    assert len(said) == 3
    assert re.search(r"no slot left for series 'c', all 2 are taken.*accumulator\.max_scalars", said[0])
    assert re.search(r"no slot left for series 'e', all 1 are taken.*accumulator\.max_histograms", said[1])
    assert {name: tracker.run.points(name) for name in "ab"} == dict.fromkeys("ab", dict.fromkeys(range(3), 2.0))
    assert said[2].startswith("2 values")
    assert {record.name for record in tracker.run.records} == {"a", "b", "d"}


MISPLACED = {
    "set_step": lambda run: run.set_step(1),
    "flush": lambda run: run.flush(),
    "set_context": lambda run: run.set_context({"stage": "eval"}),
}


@pytest.mark.parametrize("method", MISPLACED)
def test_what_belongs_between_steps_is_refused_inside_compiled_code(recorded, method):
    tracker = recorded()
    with tracker.open() as run:

        def misplace(inputs):
            MISPLACED[method](run)
            return inputs * 2

        with pytest.raises(TrackerValueError, match=f"{method} was called inside compiled code.*between steps"):
            torch.compile(misplace, fullgraph=True, backend="eager")(torch.ones(2))


def test_an_error_of_a_call_can_be_caught_as_what_it_is(recorded):
    tracker = recorded()
    with tracker.open() as run:
        for bad, kind in ((torch.ones(2), ValueError), ("text", TypeError)):
            with pytest.raises(kind) as caught:
                run.scalar("bad", bad)
            assert isinstance(caught.value, TrackerError)


def test_an_int_that_compiled_code_cannot_hold_is_refused_by_name(recorded):
    tracker = recorded()
    with tracker.open() as run:
        log = torch.compile(lambda x, n: run.scalar("n", n, reduce="sum"), fullgraph=True, backend="aot_eager")
        log(torch.ones(2), 2**63 - 1)
        for value in (2**63, -(2**70)):
            with pytest.raises(TrackerValueError, match=r"series 'n': .* pass float"):
                log(torch.ones(2), value)
        run.scalar("n", float(2**63), reduce="sum")
    assert tracker.run.points("n") == {0: 2.0**64}
