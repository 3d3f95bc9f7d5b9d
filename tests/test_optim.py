"""Adam over dense and row-sparse gradients, clipping, schedules and the average of weights."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from xmplug.config import TrainingConfig
from xmplug.optim import Optimizer, WeightAverage, clip_gradients, learning_rate


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, sparse=True)
        self.linear = nn.Linear(3, 1)

    def loss(self, rows: list[int]) -> torch.Tensor:
        return self.linear(self.table(torch.tensor(rows))).square().sum()


def test_lazy_adam_touches_only_the_rows_of_a_step() -> None:
    torch.manual_seed(0)
    net = _Net()
    optimizer = Optimizer(net, TrainingConfig())
    before = net.table.weight.detach().clone()
    for _ in range(3):
        net.loss([1, 4, 4]).backward()
        optimizer.step(0.1)
    changed = (net.table.weight != before).any(dim=1)
    assert changed.tolist() == [False, True, False, False, True, False]


def test_adam_follows_its_equations() -> None:
    """Kingma & Ba 2014, algorithm 1, in float64 by hand."""
    torch.manual_seed(0)
    net = nn.Linear(2, 1, bias=False)
    weight = net.weight.detach().double().clone()
    optimizer = Optimizer(net, TrainingConfig(clip_norm=None))
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 6):
        inputs = torch.tensor([[1.0, -2.0 * step]])
        net(inputs).square().sum().backward()
        optimizer.step(0.01)
        gradient = 2 * (weight @ inputs.double().T) @ inputs.double()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight -= 0.01 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(net.weight.detach().double(), weight, rtol=1e-5, atol=1e-7)


def test_parameters_may_learn_at_rates_of_their_own() -> None:
    """Adam's first step is the learning rate, whatever the gradient; and a checkpoint keeps what belongs to whom."""
    torch.manual_seed(0)
    net = _Net()
    factors = {net.linear.bias: 0.1, net.table.weight: 0.5}
    optimizer = Optimizer(net, TrainingConfig(), factors)
    before = [weight.detach().clone() for weight in (net.linear.weight, net.linear.bias, net.table.weight[2:3])]
    net.loss([2]).backward()
    optimizer.step(0.01)
    for weight, old, step in zip((net.linear.weight, net.linear.bias, net.table.weight[2:3]), before, (1, 0.1, 0.5)):
        torch.testing.assert_close((weight - old).abs(), torch.full_like(old, 0.01 * step), rtol=1e-3, atol=0)
    copy = _Net()
    copy.load_state_dict(net.state_dict())
    again = Optimizer(copy, TrainingConfig(), {copy.linear.bias: 0.1, copy.table.weight: 0.5})
    again.load_state({name: value.clone() for name, value in optimizer.state().items()})
    for one, steps in ((net, optimizer), (copy, again)):
        one.loss([1, 2]).backward()
        steps.step(0.01)
    for name, weight in net.named_parameters():
        assert torch.equal(weight, copy.get_parameter(name)), name


def test_the_norm_of_a_sparse_gradient_counts_repeated_rows_once_summed() -> None:
    sparse, dense = _Net(), _Net()
    dense.load_state_dict(sparse.state_dict())
    dense.table.sparse = False
    for net in (sparse, dense):
        net.loss([2, 2, 2, 5]).backward()
    norms = [clip_gradients(net.parameters(), 0.01) for net in (sparse, dense)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    torch.testing.assert_close(sparse.table.weight.grad.to_dense(), dense.table.weight.grad)
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in dense.parameters() if p.grad is not None))
    assert total == pytest.approx(0.01, rel=1e-5)


def test_state_restored_continues_to_the_same_weights() -> None:
    torch.manual_seed(0)
    one, two = _Net(), _Net()
    first = Optimizer(one, TrainingConfig())
    for rows in ([0, 1], [1, 2]):
        one.loss(rows).backward()
        first.step(0.05)
    two.load_state_dict(one.state_dict())
    second = Optimizer(two, TrainingConfig())
    second.load_state({name: value.clone() for name, value in first.state().items()})
    for net, optimizer in ((one, first), (two, second)):
        net.loss([2, 3]).backward()
        optimizer.step(0.05)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_the_average_is_the_mean_and_swapping_twice_changes_nothing() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("running", torch.zeros(2))
    net.register_buffer("count", torch.tensor(7))
    average = WeightAverage(net)
    for value in (1.0, 2.0, 6.0):
        nn.init.constant_(net.weight, value)
        net.running.fill_(10 * value)
        average.add()
    average.swap()
    torch.testing.assert_close(net.weight.detach(), torch.full((2, 2), 3.0))
    torch.testing.assert_close(net.running, torch.full((2,), 30.0))
    assert net.count == 7
    average.swap()
    torch.testing.assert_close(net.weight.detach(), torch.full((2, 2), 6.0))
    torch.testing.assert_close(net.running, torch.full((2,), 60.0))


def test_learning_rates() -> None:
    linear = TrainingConfig(learning_rate=1.0, schedule="linear", warmup=0.1)
    rates = [learning_rate(linear, step, 100) for step in range(100)]
    assert rates[0] < 0.2 and max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == 10
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.02
    constant = TrainingConfig(learning_rate=0.5)
    assert {learning_rate(constant, step, 100) for step in range(100)} == {0.5}
