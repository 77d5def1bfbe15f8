"""Whose parameters and which outputs a watch counts, whatever happens to the model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from d9d_tracker.accumulator.watch.modules import ParameterNames, layers


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1), nn.ReLU()))


@pytest.mark.parametrize("wrap", [lambda module: module, torch.compile, nn.DataParallel])
def test_layers_have_the_names_of_the_bare_model(wrap):
    assert list(layers(wrap(model()))) == ["0", "1.0", "1.1"]


def test_a_single_layer_is_called_by_its_class():
    assert list(layers(nn.Linear(2, 2))) == ["Linear"]


def test_attention_is_one_layer():
    assert list(layers(nn.TransformerEncoderLayer(4, 2, 8))) == [
        "self_attn",
        *("linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2"),
    ]


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrized_layer_is_itself(normed):
    assert list(layers(nn.Sequential(normed(nn.Linear(2, 2)), nn.ReLU()))) == ["0", "1"]


def replaced_by_a_head(module):
    module[0] = nn.Linear(2, 2)


def replaced_by_assignment(module):
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)


def replaced_by_emptying(module):
    module.to_empty(device="cpu")


def replaced_by_a_norm(module):
    parametrizations.weight_norm(module[0])


@pytest.mark.parametrize(
    "replace", [replaced_by_a_head, replaced_by_assignment, replaced_by_emptying, replaced_by_a_norm]
)
def test_parameters_that_come_later_have_names(replace):
    module = model()
    names = ParameterNames(module)
    replace(module)
    assert {names.of(parameter) for parameter in module.parameters()} == dict(module.named_parameters()).keys()


def test_what_is_not_of_the_model_is_looked_for_once(monkeypatch):
    module, other = model(), model()
    names = ParameterNames(module)
    looked = []
    read = ParameterNames._read
    monkeypatch.setattr(ParameterNames, "_read", lambda self: (looked.append(1), read(self)))
    for _ in range(3):
        assert [names.of(parameter) for parameter in other.parameters()] == [None] * 4
    assert len(looked) == 4


def test_neither_the_model_nor_its_parameters_are_kept_alive():
    module = model()
    names = ParameterNames(module)
    old = module[0].weight
    import weakref

    dead = [weakref.ref(old), weakref.ref(module)]
    del module, old
    import gc

    gc.collect()
    assert [reference() for reference in dead] == [None, None]
    assert names.of(torch.ones(1)) is None
