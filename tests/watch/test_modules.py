"""Whose parameters and which outputs a watch counts, whatever happens to the model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from d9d_tracker.watch.modules import layers, structure


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


def test_structure_is_another_for_other_names_and_other_modules_alone():
    module = model()
    before = structure(module)
    module[0].weight = nn.Parameter(torch.zeros(2, 2))
    assert structure(module) == before
    module[1].append(nn.ReLU())
    after = structure(module)
    assert after != before
    del module[0]
    assert structure(module) != after


def test_the_structure_of_a_circle_ends():
    module = model()
    module[1].up = module
    assert structure(module) == structure(module)
