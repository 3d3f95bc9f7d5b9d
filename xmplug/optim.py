"""Adam for dense and for row-sparse gradients, clipping that is right for both, and the average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .ops import sparse_adam_step


class Optimizer:
    """Adam. Weights of `nn.Embedding(sparse=True)` get lazy Adam: only the rows of a step's gradient are touched.

    factors: the learning rates of some parameters, as multiples of that of the others.
    """

    def __init__(self, module: nn.Module, config: TrainingConfig, factors: Mapping[nn.Parameter, float] | None = None):
        lazy = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding) and part.sparse}
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # Parameters of one learning rate form a group; the states of a checkpoint follow the order of the groups.
        dense: dict[float, list[nn.Parameter]] = {}
        sparse: dict[float, list[nn.Parameter]] = {}
        for parameter in module.parameters():
            if parameter.requires_grad:
                groups = sparse if id(parameter) in lazy else dense
                groups.setdefault((factors or {}).get(parameter, 1.0), []).append(parameter)
        self.parts: list[torch.optim.Optimizer] = []
        if dense:
            self.parts.append(torch.optim.Adam(_groups(dense), lr=config.learning_rate, fused=True))
        if sparse:
            self.parts.append(LazyAdam(_groups(sparse), config.learning_rate))
        self.clip_norm = config.clip_norm

    def step(self, learning_rate: float) -> None:
        """Clip, update, and drop the gradients."""
        if self.clip_norm is not None:
            clip_gradients(self.parameters, self.clip_norm)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate * group["factor"]
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts, flat, for a checkpoint."""
        return {
            f"{number}.{place}.{name}": value
            for number, part in enumerate(self.parts)
            for place, moments in part.state_dict()["state"].items()
            for name, value in moments.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.parts]
        for key, value in tensors.items():
            number, place, name = key.split(".")
            states[int(number)].setdefault(int(place), {})[name] = value
        for part, state in zip(self.parts, states):
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _groups(parameters: Mapping[float, list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{"params": members, "factor": factor} for factor, members in parameters.items()]


class LazyAdam(torch.optim.Optimizer):
    """Adam for row-sparse gradients, which touches their rows only; torch.optim.SparseAdam, several times faster."""

    def __init__(self, parameters: Iterable[Any], learning_rate: float):
        super().__init__(parameters, {"lr": learning_rate})

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.tensor(0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
                grad = weight.grad.coalesce()
                moments = state["exp_avg"], state["exp_avg_sq"]
                rows, step = grad.indices()[0], int(state["step"])
                sparse_adam_step(weight, rows, grad.values(), *moments, step, learning_rate=group["lr"])


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float) -> float:
    """Scale all gradients so that their common L2 norm is at most `clip_norm`; returns the norm before.

    Row-sparse gradients are coalesced first: one row may stand in them many times, and the norm of the parts is not
    the norm of their sum.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                values.append(parameter.grad.values())
            else:
                values.append(parameter.grad)
    if not values:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values))))
    if norm > clip_norm:
        torch._foreach_mul_(values, clip_norm / norm)
    return norm


def learning_rate(config: TrainingConfig, step: float, steps: int) -> float:
    """Learning rate of step `step` of `steps`: rises over the warm-up, then stays or falls to 0 in a line.

    step: of a training that the clock ends, the one that stands for the time, which is no whole number.
    """
    warmup = config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (steps - step) / max(1.0, steps - warmup)


class WeightAverage:
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights at many steps."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Let the present weights enter the mean."""
        self.count += 1
        for name, weight in self._moving():
            if name in self.mean:
                self.mean[name].lerp_(weight, 1 / self.count)
            else:
                self.mean[name] = weight.clone()

    def _moving(self) -> Iterator[tuple[str, Tensor]]:
        """Weights that learn, and running means, which go with them."""
        yield from ((name, weight) for name, weight in self.module.named_parameters() if weight.requires_grad)
        yield from ((name, buffer) for name, buffer in self.module.named_buffers() if buffer.is_floating_point())

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights with the mean, where there is one. A second call undoes the first."""
        for name, weight in self._moving():
            if name in self.mean:
                kept = weight.clone()
                weight.copy_(self.mean[name])
                self.mean[name] = kept
