"""What parameters are called, whatever happens to the model."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from d9d_tracker.watch.names import ParameterNames


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1), nn.ReLU()))


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def called(names: ParameterNames, optimizer: torch.optim.Optimizer, step: int = 0) -> dict:
    return dict(names.of(optimizer, step))


def is_right(names: ParameterNames, optimizer: torch.optim.Optimizer, module: nn.Module, step: int = 0) -> bool:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    right = {name: id(one) for name, one in module.named_parameters() if id(one) in held}
    return {name: id(one) for name, one in called(names, optimizer, step).items()} == right


def a_head(module):
    module[0] = nn.Linear(2, 2)


def an_assigned_state(module):
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)


def emptying(module):
    module.to_empty(device="cpu")


def a_norm(module):
    parametrizations.weight_norm(module[0])


def an_insertion(module):
    module.insert(0, nn.Linear(2, 2))


def a_deletion(module):
    del module[0]


def another_name(module):
    module[1]._modules["renamed"] = module[1]._modules.pop("0")


def another_owner(module):
    module[1][0].weight, module[0].weight = module[0].weight, module[1][0].weight


SURGERY = (a_head, an_assigned_state, emptying, a_norm, an_insertion, a_deletion, another_name, another_owner)


@pytest.mark.parametrize("surgery", SURGERY)
def test_names_are_those_of_the_model_as_it_is(surgery):
    module = model()
    old, names = optimizer_of(module), ParameterNames(module)
    assert is_right(names, old, module)
    surgery(module)
    new = optimizer_of(module)
    for _ in range(2):
        assert is_right(names, old, module)
        assert is_right(names, new, module)
    assert names.trained == {name: True for name, _ in module.named_parameters()}


def test_a_parameter_group_that_is_added_is_known():
    module = model()
    optimizer, names = torch.optim.SGD(module[0].parameters(), lr=0.1), ParameterNames(module)
    assert called(names, optimizer).keys() == {"0.weight", "0.bias"}
    optimizer.add_param_group({"params": list(module[1].parameters())})
    assert is_right(names, optimizer, module)


def test_a_parameter_that_the_model_takes_in_later_is_known_at_the_next_step():
    module, other = model(), nn.Linear(2, 2)
    both = nn.ModuleList([module, other])
    optimizer, names = optimizer_of(both), ParameterNames(module)
    second = optimizer_of(both)
    for one in (optimizer, second):
        assert called(names, one, step=1).keys() == dict(module.named_parameters()).keys()
    module.append(other)
    for one in (optimizer, second):
        assert called(names, one, step=2).keys() == dict(module.named_parameters()).keys()


def test_a_tied_parameter_has_its_first_name():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    names, optimizer = ParameterNames(module), optimizer_of(module)
    assert called(names, optimizer).keys() == {"0.weight", "0.bias", "1.bias"}
    del module[0]
    assert called(names, optimizer).keys() == {"0.weight", "0.bias"}


def test_the_model_is_gone_through_once_a_step_for_all_optimizers_with_foreign_parameters(monkeypatch):
    module, other = model(), model()
    names, looked = ParameterNames(module), []
    read = ParameterNames._read
    monkeypatch.setattr(ParameterNames, "_read", lambda self, module: (looked.append(1), read(self, module)))
    own, foreign = optimizer_of(module), [optimizer_of(other) for _ in range(3)]
    for step in range(1, 4):
        for _ in range(2):
            assert len(names.of(own, step)) == 4
            assert [names.of(one, step) for one in foreign] == [[]] * 3
        assert len(looked) == (len(foreign) if step == 1 else 1)  # and once for each that is new
        looked.clear()


def test_neither_the_model_nor_its_parameters_are_kept_alive():
    module = model()
    names, optimizer = ParameterNames(module), optimizer_of(model())
    called(names, optimizer_of(module))
    dead = [weakref.ref(module[0].weight), weakref.ref(module)]
    del module
    gc.collect()
    assert [reference() for reference in dead] == [None, None]
    assert names.of(optimizer, 0) == []
    assert names.parameter("0.weight") is None
