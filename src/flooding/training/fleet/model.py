"""Many copies of a module as one: every parameter and buffer has a leading axis of runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flooding.data import Inputs
from flooding.training.fleet.linear import GradientBuffer, stacked_linear

__all__ = ["StackedModel", "Tensors", "take_rows"]

# Stacked tensors by name, each with a leading axis of runs.
Tensors: TypeAlias = dict[str, Tensor]

# Modules without parameters that act on each element, so that a leading axis changes nothing.
_ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Dropout,
)
_Layer: TypeAlias = Callable[[Tensors, Tensor], Tensor]
_LARGE = 1 << 14  # elements of a tensor of one run


def take_rows(tensors: Mapping[str, Tensor], rows: Tensor) -> Tensors:
    """Take some runs of stacked tensors.

    Args:
        tensors: Tensors ``[runs, ...]`` by name.
        rows: Which runs, int64.

    Returns:
        New tensors.
    """
    return {name: tensor.index_select(0, rows) for name, tensor in tensors.items()}


class StackedModel:
    """The modules of several runs, with stacked parameters ``[runs, ...]``.

    A plain sequence of linear and element-wise layers is computed by batched products, see
    :mod:`flooding.training.fleet.linear`. Any other module goes through :func:`torch.func.vmap`.

    Args:
        models: A module for each run, all of one architecture.

    Attributes:
        template: A module of that architecture, whose own weights are never read.
        parameters: Parameters by name, leaves of autograd where they are trained.
        buffers: Buffers by name; batch norm writes its statistics into them.
        is_batched: Whether batched products are used in place of ``vmap``.

    Raises:
        ValueError: If the modules have state that is no tensor, or differ in their shapes, or lie
            on several devices.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.template = copy.deepcopy(models[0])
        self._check(models)
        self.parameters: Tensors = {}
        for name, parameter in self.template.named_parameters():
            tensors = [dict(model.named_parameters())[name].detach() for model in models]
            self.parameters[name] = torch.stack(tensors).requires_grad_(parameter.requires_grad)
        self.buffers: Tensors = {}
        for name, _ in self.template.named_buffers():
            tensors = [dict(model.named_buffers())[name] for model in models]
            self.buffers[name] = torch.stack(tensors)
        # A tied weight has several names in a state dict, and one among the parameters.
        names = {}
        tensors = (*self.template.named_parameters(), *self.template.named_buffers())
        for name, tensor in tensors:
            names[id(tensor)] = name
        self._names: dict[str, str] = {}
        for name, tensor in self.template.state_dict(keep_vars=True).items():
            self._names[name] = names[id(tensor)]
        # Where a pass reads them: once in each module, which itself may stand at several places.
        self._reads: dict[str, str] = {}
        for prefix, module in self.template.named_modules():
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._reads[f"{prefix}.{key}".removeprefix(".")] = names[id(tensor)]
        self._layers = _batched_layers(self.template)

    @staticmethod
    def _check(models: Sequence[nn.Module]) -> None:
        for model in models:
            for name, value in model.state_dict(keep_vars=True).items():
                if not isinstance(value, Tensor):
                    raise ValueError(
                        f"a fleet stacks tensors, but {name} of {type(model).__name__} is no "
                        "tensor. Train such Runs one by one: fleet=False."
                    )
        devices = set()
        for model in models:
            devices |= {str(tensor.device) for tensor in model.state_dict().values()}
        if len(devices) > 1:
            raise ValueError(
                "the Runs of a fleet must have models on one device, got "
                f"{' and '.join(sorted(devices))}. Move them: model.to(device)."
            )
        shapes = set()
        for model in models:
            shapes.add(tuple((n, p.shape, p.requires_grad) for n, p in model.named_parameters()))
        if len(shapes) > 1:
            raise ValueError(
                "the Runs of a fleet must have models of one architecture, got different "
                "parameters. Put each architecture into a fleet of its own."
            )

    @property
    def is_batched(self) -> bool:
        """Whether batched products are used in place of ``vmap``."""
        return self._layers is not None

    @property
    def trained(self) -> list[Tensor]:
        """The parameters that are trained, in the order of the module's."""
        return [p for p in self.parameters.values() if p.requires_grad]

    def __call__(self, x: Inputs, *, training: bool, parameters: Tensors | None = None) -> Any:
        """Pass a batch of each run through its own weights.

        Args:
            x: Inputs ``[runs, batch, ...]``.
            training: Whether in training mode: dropout drops, batch norm uses the batch.
            parameters: Other parameters ``[runs, ...]`` in place of the model's own.

        Returns:
            Outputs ``[runs, batch, ...]``.
        """
        parameters = self.parameters if parameters is None else parameters
        self.template.train(training)
        if self._layers is not None and isinstance(x, Tensor) and x.dim() >= 3:
            for layer in self._layers:
                x = layer(parameters, x)
            return x
        template, reads = self.template, self._reads

        def forward(weights: Tensors, buffers: Tensors, inputs: Inputs) -> Any:
            # By these names and not by tie_weights, which leaves a tensor of vmap behind in a
            # module that stands at two places.
            own = {**weights, **buffers}
            tensors = {name: own[canonical] for name, canonical in reads.items()}
            return functional_call(template, tensors, (inputs,), tie_weights=False)

        of_each_run = vmap(forward, randomness="different")
        if torch.compiler.is_compiling():  # it cannot trace the switch below
            return of_each_run(parameters, self.buffers, x)
        # The fast path of attention has no rule for vmap.
        mha, before = torch.backends.mha, torch.backends.mha.get_fastpath_enabled()
        mha.set_fastpath_enabled(False)
        try:
            return of_each_run(parameters, self.buffers, x)
        finally:
            mha.set_fastpath_enabled(before)

    def state_dict(self, row: int, parameters: Tensors | None = None) -> Tensors:
        """Copy the state dict of one run.

        Args:
            row: Which run.
            parameters: Other parameters in place of the model's own.

        Returns:
            Tensors by the names of the module's own state dict.
        """
        tensors = {**(self.parameters if parameters is None else parameters), **self.buffers}
        weights = {}
        for name, canonical in self._names.items():
            weights[name] = tensors[canonical][row].detach().clone()
        return weights

    def copy_all(self, parameters: Tensors | None = None) -> Tensors:
        """Copy all tensors that a state dict has, of every run.

        Args:
            parameters: Other parameters in place of the model's own.

        Returns:
            Tensors ``[runs, ...]`` by the names of the module's own state dict.
        """
        tensors = {**(self.parameters if parameters is None else parameters), **self.buffers}
        return {name: tensors[c].detach().clone() for name, c in self._names.items()}

    def write_rows(
        self, kept: Tensors, rows: Sequence[int], parameters: Tensors | None = None
    ) -> None:
        """Overwrite some runs of what :meth:`copy_all` gave by their current weights.

        Args:
            kept: Tensors ``[runs, ...]`` by name; changed in place.
            rows: Which runs.
            parameters: Other parameters in place of the model's own.
        """
        tensors = {**(self.parameters if parameters is None else parameters), **self.buffers}
        index = None
        for name, canonical in self._names.items():
            current = tensors[canonical].detach()
            if len(rows) == len(current):
                kept[name].copy_(current)
            elif current.device.type == "cpu" and current[0].numel() > _LARGE:
                # Without a temporary: new memory costs as much as the copy.
                for row in rows:
                    kept[name][row].copy_(current[row])
            else:
                if index is None:
                    index = torch.tensor(rows, device=current.device)
                kept[name].index_copy_(0, index, current.index_select(0, index))

    def load_into(self, model: nn.Module, row: int, parameters: Tensors | None = None) -> None:
        """Put the weights and buffers of one run into a module.

        Args:
            model: A module of the same architecture; changed in place.
            row: Which run.
            parameters: Other parameters in place of the model's own.
        """
        tensors = {**(self.parameters if parameters is None else parameters), **self.buffers}
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(tensors[name][row])

    def keep(self, rows: Tensor) -> None:
        """Keep some runs and forget the others.

        Args:
            rows: Which runs, int64.
        """
        for name, parameter in self.parameters.items():
            kept = parameter.detach().index_select(0, rows)
            self.parameters[name] = kept.requires_grad_(parameter.requires_grad)
        self.buffers = take_rows(self.buffers, rows)


def _batched_layers(model: nn.Module) -> list[_Layer] | None:
    """Give the layers of a plain sequence as batched products; None for any other module."""
    if type(model) is not nn.Sequential:
        return None
    layers: list[_Layer] = []
    # Not named_children, which leaves out a layer that stands in the sequence again.
    for name, module in model._modules.items():
        kind = type(module)
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            layers.append(_flatten)
        elif kind is nn.Linear:
            layers.append(_linear(name, has_bias=module.bias is not None))
        elif kind in _ELEMENTWISE and not getattr(module, "inplace", False):
            layers.append(_elementwise(module))
        else:
            return None
    # A weight that two layers share has one name among the parameters.
    if len(dict(model.named_parameters())) != len(model.state_dict()):
        return None
    return layers


def _flatten(parameters: Tensors, x: Tensor) -> Tensor:  # ruff: ignore[unused-function-argument]
    return x.flatten(2)


def _elementwise(module: nn.Module) -> _Layer:
    return lambda _, x: module(x)


def _linear(name: str, *, has_bias: bool) -> _Layer:
    gradient = GradientBuffer()

    def layer(parameters: Tensors, x: Tensor) -> Tensor:
        bias = parameters[f"{name}.bias"] if has_bias else None
        return stacked_linear(x, parameters[f"{name}.weight"], bias, gradient)

    return layer
