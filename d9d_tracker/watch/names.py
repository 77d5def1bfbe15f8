"""What the parameters of an optimizer are called in the model, as it is when they are asked for."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.optimizer import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from .modules import at, bare_names

Named = list[tuple[str, torch.Tensor]]


@dataclass
class _Plan:
    """The names of an optimizer's parameters, and where in the model each must be for them to hold.

    Attributes:
        names: The name of each parameter, None for one that is not the model's.
        owners: The path of each module that has some of them, and the key and index of those.
        foreign: The index and the identity of those that are not the model's.
        places: The reading of the model that it was made from.
    """

    names: list[str | None]
    owners: dict[tuple[str, ...], list[tuple[str, int]]]
    foreign: list[tuple[int, int]]
    places: WeakIdKeyDictionary

    def holds(self, module: nn.Module, parameters: Sequence[torch.Tensor]) -> bool:
        if len(parameters) != len(self.names):
            return False
        for path, own in self.owners.items():
            owner = at(module, path)
            if owner is None or any(owner._parameters.get(key) is not parameters[index] for key, index in own):
                return False
        return all(id(parameters[index]) == identity for index, identity in self.foreign)

    def named(self, parameters: Sequence[torch.Tensor]) -> Named:
        return [(name, one) for name, one in zip(self.names, parameters, strict=True) if name is not None]


class ParameterNames:
    """The names of a model's parameters, none of which is kept alive. What has changed is known at the next step.

    Attributes:
        trained: Whether each parameter needs a gradient, by its name, as the model was when it was last looked at.
    """

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._plans: WeakKeyDictionary[Optimizer, _Plan] = WeakKeyDictionary()
        self._step = -1
        self._read(module)

    def of(self, optimizer: Optimizer, step: int) -> Named:
        """Return the parameters of the model that an optimizer holds, with their names.

        A name is that of the place where the parameter is now. That is looked at anew in each call, for little; all of
        the model is gone through when it does not hold, and once a step for an optimizer with foreign parameters.
        """
        module = self._module()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if module is None:  # what was only made to be watched: its parameters have the names that they had in it
            return self._plan(parameters).named(parameters)
        known, is_looked_at = self._plans.get(optimizer), self._step == step
        is_complete = known is not None and (not known.foreign or (is_looked_at and known.places is self._places))
        if known is not None and is_complete and known.holds(module, parameters):
            return known.named(parameters)
        plan = self._plan(parameters)
        if (plan.foreign and (known is None or not is_looked_at)) or not plan.holds(module, parameters):
            self._step = step
            self._read(module)
            plan = self._plan(parameters)
        self._plans[optimizer] = plan
        return plan.named(parameters)

    def module(self) -> nn.Module | None:
        """Return the model; None if it is gone."""
        return self._module()

    def parameter(self, name: str) -> torch.Tensor | None:
        """Return a parameter, as the model was when it was last looked at; None if it or the model is gone."""
        if self._module() is None:
            return None
        return next((one for one, (known, _, _) in self._places.items() if known == name), None)

    def traced(self, optimizer: Optimizer) -> Named:
        """Return the same in compiled code, which is compiled again for another model."""
        module = self._module()
        if module is None:
            return []
        bare = bare_names(module)
        names = {parameter: bare(name) for name, parameter in module.named_parameters()}
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return [(names[parameter], parameter) for parameter in held if parameter in names]

    def _plan(self, parameters: Sequence[torch.Tensor]) -> _Plan:
        plan = _Plan([], {}, [], self._places)
        for index, parameter in enumerate(parameters):
            name, path, key = self._places.get(parameter) or (None, (), "")
            plan.names.append(name)
            if name is None:
                plan.foreign.append((index, id(parameter)))
            else:
                plan.owners.setdefault(path, []).append((key, index))
        return plan

    def _read(self, module: nn.Module) -> None:
        bare = bare_names(module)
        self._places = WeakIdKeyDictionary()
        self.trained: dict[str, bool] = {}
        for full, parameter in module.named_parameters():
            *path, key = full.split(".")
            self._places[parameter] = (bare(full), tuple(path), key)
            self.trained[bare(full)] = parameter.requires_grad
