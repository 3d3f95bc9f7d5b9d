from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import random as random_sparse
from torch import Tensor
from torch.nn import functional

from xmplug import ops
from xmplug.errors import KernelError
from xmplug.ops import bce, native, reference

pytestmark = pytest.mark.usefixtures("kernels")


def example(
    texts: int, labels: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0
) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)
    true = random_sparse(texts, labels, 0.05, "csr", random_state=np.random.default_rng(seed))
    return {
        "hidden": torch.randn(texts, size, generator=random).to(dtype),
        "weight": (torch.randn(labels, size, generator=random) * scale / max(1, size) ** 0.5).to(dtype),
        "indptr": torch.from_numpy(true.indptr.astype(np.int64)),
        "indices": torch.from_numpy(true.indices.astype(np.int64)),
        "bias": (torch.randn(labels, generator=random) * scale - 1).to(dtype),
    }


def learnt(given: dict[str, Any]) -> list[Tensor]:
    return [given[name] for name in ("hidden", "weight", "bias")]


def copy_of(given: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in given.items()}


def dense(given: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    """PyTorch's loss of all logits, and its gradients of hidden, weight and bias."""
    hidden, weight, bias = (tensor.detach().to(dtype).requires_grad_() for tensor in learnt(given))
    logits = hidden @ weight.t() + bias
    y = torch.zeros_like(logits, requires_grad=False)
    y[torch.repeat_interleave(torch.arange(len(y)), given["indptr"].diff()), given["indices"]] = 1
    loss = functional.binary_cross_entropy_with_logits(logits, y, reduction="sum") / max(1, len(y))
    return loss.detach(), list(torch.autograd.grad(loss, (hidden, weight, bias)))


def ours(given: dict[str, Any], **options: Any) -> tuple[Tensor, list[Tensor]]:
    given = copy_of(given)
    for tensor in learnt(given):
        tensor.requires_grad_()
    loss = ops.linear_bce(**given, **options)
    return loss.detach(), list(torch.autograd.grad(loss, learnt(given)))


def test_by_hand() -> None:
    hidden = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 1.0], [0.0, 0.5], [2.0, -1.0]], requires_grad=True)
    bias = torch.tensor([-3.0, 0.0, 0.0], requires_grad=True)
    loss = ops.linear_bce(hidden, weight, torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), bias)
    # z = (0, 1, 0), (-4, -0.5, 1); y = (0, 1, 0), (1, 0, 1)
    softplus = [math.log1p(math.exp(t)) for t in (0, -1, 0, 4, -0.5, -1)]
    assert loss.item() == pytest.approx(sum(softplus) / 2)
    loss.backward()
    sigmoid = [1 / (1 + math.exp(-z)) for z in (0, 1, 0, -4, -0.5, 1)]
    errors = torch.tensor(sigmoid).view(2, 3) - torch.tensor([[0.0, 1, 0], [1, 0, 1]])
    torch.testing.assert_close(bias.grad, errors.sum(0) / 2)
    torch.testing.assert_close(hidden.grad, errors @ weight.detach() / 2)
    torch.testing.assert_close(weight.grad, errors.t() @ hidden.detach() / 2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.integers(0, 5), labels=st.integers(0, 700), size=st.integers(0, 9), seed=st.integers(0, 9))
def test_is_the_dense_loss(texts: int, labels: int, size: int, seed: int) -> None:
    given = example(texts, labels, size, seed=seed, scale=6.0)
    exact, gradients = dense(given)
    for chunk in (None, 256, 512):
        loss, found = ours(given, chunk=chunk)
        torch.testing.assert_close(loss.double(), exact, rtol=2e-6, atol=1e-6)
        for a, b in zip(found, gradients, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errs_no_more_than_pytorch(dtype: torch.dtype) -> None:
    given = example(16, 3000, 40, dtype, scale=4.0)
    exact, gradients = dense(given)
    loss, found = ours(given, chunk=1024)
    theirs, their_gradients = dense(given, dtype)
    assert abs(loss.double() - exact) <= max(2 * abs(theirs.double() - exact), 2e-7 * exact)
    for a, b, c in zip(found, their_gradients, gradients, strict=True):
        assert a.dtype == dtype
        assert (a.double() - c).norm() <= 2 * (b.double() - c).norm()


def test_logits_of_any_size() -> None:
    """The gradients of tiny and of huge logits are right to the last digits, and of infinite ones too."""
    z = torch.tensor([0.0, 1e-3, -1e-3, 1, -1, 5, -5, 17, -17, 40, -40, 80, -80, 1e4, -1e4, math.inf, -math.inf] * 2)
    labels = len(z)
    true = torch.arange(labels // 2)
    weight = torch.zeros(labels, 1)
    bias = z.clone().requires_grad_()
    loss = ops.linear_bce(torch.ones(1, 1), weight, torch.tensor([0, len(true)]), true, bias)
    loss.backward()
    assert loss == math.inf and bias.grad is not None
    sign = torch.ones(labels, dtype=torch.float64).index_fill(0, true, -1)
    expected = sign * torch.sigmoid(sign * z.double())
    torch.testing.assert_close(bias.grad.double(), expected, rtol=1e-6, atol=1.2e-38)
    each = torch.stack(
        [ops.linear_bce(torch.ones(1, 1), weight[:1], torch.tensor([0, 0]), true[:0], b[None]) for b in z]
    )
    torch.testing.assert_close(each.double(), -functional.logsigmoid(-z.double()), rtol=1e-6, atol=1.2e-38)
    bias = torch.tensor([math.nan, 1.0], requires_grad=True)
    ops.linear_bce(torch.ones(1, 1), weight[:2], torch.tensor([0, 0]), true[:0], bias).backward()
    assert bias.grad is not None and bias.grad.isnan().tolist() == [True, False]


@pytest.mark.parametrize(("texts", "labels", "size"), [(0, 5, 3), (3, 0, 4), (3, 5, 0), (0, 0, 0)])
def test_nothing(texts: int, labels: int, size: int) -> None:
    given = example(texts, labels, size)
    given["indptr"].zero_()
    given["indices"] = given["indices"][:0]
    torch.empty(5, 3).fill_(math.nan)  # what a gradient that nobody writes might find in memory
    loss, gradients = ours(given)
    assert loss == (0 if texts == 0 or labels == 0 else pytest.approx(functional.softplus(given["bias"]).sum().item()))
    for gradient, tensor in zip(gradients, learnt(given), strict=True):
        assert gradient.shape == tensor.shape and gradient.isfinite().all()
    before = copy_of(given)
    loss, gradient = ops.linear_bce_step(**given, learning_rate=0.1, step=0)
    assert loss.isfinite() and gradient.shape == (texts, size)
    if texts == 0:
        assert torch.equal(before["weight"], given["weight"]) and torch.equal(before["bias"], given["bias"])


def test_texts_without_labels_and_labels_on_the_borders_of_chunks() -> None:
    given = example(5, 1030, 8)
    given["indptr"] = torch.tensor([0, 0, 5, 5, 8, 8])
    given["indices"] = torch.tensor([0, 255, 256, 1023, 1029, 511, 512, 1024])
    exact, gradients = dense(given)
    for chunk in (256, 512, 1024, 1280, None):
        loss, found = ours(given, chunk=chunk)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
        for a, b in zip(found, gradients, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_order_and_repetition_of_labels_do_not_matter() -> None:
    given = example(2, 300, 4) | {"indptr": torch.tensor([0, 2, 4]), "indices": torch.tensor([3, 280, 0, 299])}
    other = given | {"indptr": torch.tensor([0, 3, 5]), "indices": torch.tensor([280, 3, 280, 299, 0])}
    for a, b in zip((ours(given)[0], *ours(given)[1]), (ours(other)[0], *ours(other)[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", [["hidden"], ["weight"], ["bias"], ["hidden", "bias"], ["hidden", "weight", "bias"]])
def test_only_the_gradients_that_are_wanted(frozen: list[str]) -> None:
    given = example(3, 400, 6)
    loss, gradients = ours(given)
    now = copy_of(given)
    for name in ("hidden", "weight", "bias"):
        now[name].requires_grad_(name not in frozen)
    again = ops.linear_bce(**now)
    assert again == loss and again.requires_grad == (len(frozen) < 3)
    if again.requires_grad:
        again.backward()
    for name, gradient in zip(("hidden", "weight", "bias"), gradients, strict=True):
        assert now[name].grad is None if name in frozen else torch.equal(now[name].grad, gradient)
    with torch.no_grad():
        assert ops.linear_bce(**now) == loss


def test_without_bias() -> None:
    given = example(3, 400, 6)
    loss, gradients = ours(given | {"bias": torch.zeros(400)})
    given = copy_of(given)
    hidden, weight = given["hidden"].requires_grad_(), given["weight"].requires_grad_()
    found = ops.linear_bce(hidden, weight, given["indptr"], given["indices"])
    found.backward()
    assert found == loss and torch.equal(hidden.grad, gradients[0]) and torch.equal(weight.grad, gradients[1])


def test_backward_again_and_of_multiples() -> None:
    given = example(3, 400, 6)
    _, once = ours(given)
    for tensor in learnt(given):
        tensor.requires_grad_()
    loss = ops.linear_bce(**given)
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    (3 * loss).backward(retain_graph=True)
    loss.backward()
    for tensor, gradient in zip(learnt(given), once, strict=True):
        torch.testing.assert_close(tensor.grad, 6 * gradient)


def test_a_scaled_loss_keeps_small_gradients_of_float16() -> None:
    hidden = torch.ones(256, 1, dtype=torch.float16, requires_grad=True)
    indptr, indices = torch.zeros(257, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    (2.0**16 * ops.linear_bce(hidden, torch.ones(1, 1), indptr, indices, torch.tensor([-13.0]))).backward()
    expected = 2.0**16 * torch.sigmoid(torch.full((256, 1), -12.0)) / 256  # without the scale 0 in float16
    torch.testing.assert_close(hidden.grad, expected.half(), rtol=0.02, atol=0)


def test_products_in_another_type() -> None:
    given = example(8, 700, 20)
    narrow = {name: tensor.bfloat16() if name in ("hidden", "weight") else tensor for name, tensor in given.items()}
    loss, gradients = ours(given | {"hidden": narrow["hidden"]}, chunk=256)
    expected, expected_gradients = ours(narrow)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0.02, atol=1e-2)
    now = copy_of(given)
    for tensor in learnt(now):
        tensor.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops.linear_bce(**now, chunk=256)
    loss.backward()
    for tensor, gradient in zip(learnt(now), gradients, strict=True):
        torch.testing.assert_close(tensor.grad, gradient.to(tensor.dtype))


@pytest.mark.usefixtures("restore_threads")
def test_threads_do_not_matter() -> None:
    random = torch.Generator().manual_seed(0)
    z, sums = torch.randn(40, 65536, generator=random), torch.zeros(2, 40, 32, dtype=torch.float64)
    weight = torch.randn(2_000_000, generator=random).bfloat16()
    results: list[list[Tensor]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        errors, rounded = z.clone(), weight.clone()
        bce._bce_chunk(errors, None, torch.arange(41), torch.arange(40) * 1000, 0, 65536, sums[threads - 1])
        bce._add_rounded(rounded[None], z.flatten()[None, : len(weight)].contiguous(), 0, 1, 2)
        results.append([errors, sums[threads - 1], rounded])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def instruction_sets() -> list[str]:
    if native.cpu() is None:
        return []
    return list(native.INSTRUCTION_SETS[: native.instruction_set() + 1])


@pytest.mark.parametrize("which", instruction_sets())
def test_each_instruction_set(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMPLUG_INSTRUCTION_SET", which)
    given = example(4, 997, 8, scale=5.0)
    exact, gradients = dense(given)
    loss, found = ours(given, chunk=256)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    check_rounding()


def check_rounding() -> None:
    """add_rounded to the bit, for each type of the change and also at the end of a table."""
    random = torch.Generator().manual_seed(0)
    for size, position in [(1000, 0), (777, 256), (1, 512), (256, 1 << 40)]:
        weight = torch.randn(size, generator=random).bfloat16()
        weight[0] = math.nan
        change = torch.randn(size, generator=random) * 0.01
        for each in (change, change.bfloat16()):
            now, expected = weight.clone(), weight.clone()
            bce._add_rounded(now, each, position, 1 << 40 | 5, 1 << 33 | 7)
            reference.add_rounded(expected, each, position, 1 << 40 | 5, 1 << 33 | 7)
            assert torch.equal(now.view(torch.int16), expected.view(torch.int16))


def test_rounding_is_the_reference() -> None:
    check_rounding()


@pytest.mark.parametrize("place", ["hidden", "weight", "bias", "indptr", "indices"])
def test_layout_does_not_matter(place: str) -> None:
    given = example(4, 300, 6)
    strided = copy_of(given)
    whole = strided[place]
    strided[place] = whole.t().contiguous().t() if whole.ndim == 2 else whole.repeat_interleave(2)[::2]
    assert not strided[place].is_contiguous()
    for a, b in zip((ours(given)[0], *ours(given)[1]), (ours(strided)[0], *ours(strided)[1]), strict=True):
        torch.testing.assert_close(a, b)
    for dtype in (torch.float32, torch.bfloat16):
        losses = []
        for each in (given, strided):
            now = each | {"weight": each["weight"].to(dtype), "bias": each["bias"] * 1}
            loss, gradient = ops.linear_bce_step(**now, learning_rate=0.1, step=1)
            losses.append((loss, gradient, now["weight"].float(), now["bias"]))
        for a, b in zip(*losses, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


# linear_bce_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_gradient_descent(dtype: torch.dtype) -> None:
    given = example(6, 1500, 12)
    given["hidden"] = given["hidden"].to(dtype)
    now = copy_of(given)
    for step in range(3):
        exact, gradients = dense(now)
        before = copy_of(now)
        loss, grad_hidden = ops.linear_bce_step(**now, learning_rate=0.5, step=step, chunk=512)
        assert loss.dtype == torch.float32 and grad_hidden.dtype == dtype
        close = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(loss.double(), exact, rtol=close / 10, atol=0)
        # Of errors in 8 bits that cancel, a part of the size of the whole remains.
        assert (grad_hidden.double() - gradients[0]).abs().max() < close * gradients[0].abs().max()
        for name, gradient in (("weight", gradients[1]), ("bias", gradients[2])):
            expected = before[name].double() - 0.5 * gradient
            torch.testing.assert_close(now[name].double(), expected, rtol=close, atol=close)


def test_a_bfloat16_weight_moves_by_the_gradient_on_average() -> None:
    """Steps far below the last digit of a weight: rounding to the nearest would never move it."""
    given = example(4, 600, 8)
    given["weight"] = (torch.rand(600, 8, generator=torch.Generator().manual_seed(0)) + 1).bfloat16()  # ulp 2^-7
    rate, steps = 1e-3, 100
    _, gradients = dense(given)
    moved = torch.zeros(600, 8, dtype=torch.float64)
    for step in range(steps):
        now = copy_of(given)
        ops.linear_bce_step(**now, learning_rate=rate, step=step, seed=3)
        moved += now["weight"].double() - given["weight"].double()
        assert (now["weight"] != given["weight"]).double().mean() < 0.2
    expected = -rate * gradients[1]
    error = moved / steps - expected
    deviation = (expected.abs() * 2**-7 / steps).sqrt()  # of a mean of coins of size 2^-7
    assert abs(error.mean()) < 4 * deviation.square().sum().sqrt() / error.numel()
    assert (error.abs() < 6 * deviation + 2**-7 / steps).all()


def test_random_bits_are_those_of_philox() -> None:
    """The first words of Random123's known answers for philox4x32-10."""

    bits = reference.random_bits(0, 256, 0, 0, torch.device("cpu"))
    words = [int(bits[2 * word]) | int(bits[2 * word + 1]) << 16 for word in range(0, 128, 32)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    bits = reference.random_bits(5 * 256, 256, 1, 2, torch.device("cpu"))
    assert torch.equal(reference.random_bits(0, 6 * 256, 1, 2, torch.device("cpu"))[5 * 256 :], bits)
    assert bits.min() >= 0 and bits.max() < 1 << 16


def test_steps_and_seeds_round_differently_and_chunks_do_not() -> None:
    given = example(4, 1500, 8)
    given["weight"] = given["weight"].bfloat16()

    def after(**options: Any) -> Tensor:
        now = copy_of(given)
        ops.linear_bce_step(**now, learning_rate=1e-3, **options)
        return now["weight"]

    first = after(step=1, seed=2)
    assert torch.equal(first, after(step=1, seed=2, chunk=256))
    assert not torch.equal(first, after(step=2, seed=2))
    assert not torch.equal(first, after(step=1, seed=1 << 32 | 2))


def test_training_by_steps_learns() -> None:
    given = example(32, 600, 48)
    given["weight"] = torch.zeros(600, 48, dtype=torch.bfloat16)
    given["bias"] = torch.full((600,), -3.0)
    losses = [float(ops.linear_bce_step(**given, learning_rate=1.0, step=step)[0]) for step in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_a_parameter_can_be_updated() -> None:
    given = example(4, 300, 5)
    weight, hidden = torch.nn.Parameter(given["weight"].clone()), given["hidden"].requires_grad_()
    text = hidden * 2
    loss = (text @ weight.t()).sum()
    found, gradient = ops.linear_bce_step(
        text, weight, given["indptr"], given["indices"], given["bias"], learning_rate=0.1, step=1
    )
    assert not found.requires_grad and not torch.equal(weight, given["weight"])
    text.backward(gradient, retain_graph=True)
    assert torch.equal(hidden.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# As an operator of PyTorch


def test_gradients_by_differences() -> None:
    given = example(3, 270, 4, torch.float64)
    given["indptr"], given["indices"] = torch.tensor([0, 2, 2, 3]), torch.tensor([255, 256, 1])
    parameters = tuple(tensor.requires_grad_() for tensor in learnt(given))

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.linear_bce(hidden, weight, given["indptr"], given["indices"], bias, chunk=256)

    torch.autograd.gradcheck(loss, parameters, fast_mode=True)
    torch.autograd.gradcheck(lambda *tensors: 3 * loss(*tensors), parameters, fast_mode=True)


@pytest.mark.parametrize("wanted", [[True, True, True], [False, True, False]])
def test_opcheck(wanted: list[bool]) -> None:
    given = example(3, 300, 4)
    for tensor, want in zip(learnt(given), wanted, strict=True):
        tensor.requires_grad_(want)
    arguments = (*learnt(given), given["indptr"], given["indices"], 256, wanted)
    torch.library.opcheck(torch.ops.xmplug.linear_bce.default, arguments)
    arguments = (*(tensor.detach() for tensor in arguments[:5]), 256, 0.1, 1, 2)
    torch.library.opcheck(torch.ops.xmplug.linear_bce_step.default, arguments)


def test_compiles_whole() -> None:
    given = example(3, 600, 4)
    _, gradients = ours(given)

    def double(given: dict[str, Any]) -> Tensor:
        return 2 * ops.linear_bce(**given)

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    now = copy_of(given)
    for tensor in learnt(now):
        tensor.requires_grad_()
    compiled(now).backward()
    for tensor, gradient in zip(learnt(now), gradients, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * gradient)

    def update(given: dict[str, Any], step: int) -> Tensor:
        loss, gradient = ops.linear_bce_step(**given, learning_rate=0.1, step=step)
        return loss + gradient.sum() + given["weight"].sum()

    eager, whole = copy_of(given), copy_of(given)
    compiled_update = torch.compile(update, fullgraph=True, backend="aot_eager")
    for step in (1, 2, 3):
        assert torch.equal(update(eager, step), compiled_update(whole, step))
    assert torch.equal(eager["weight"], whole["weight"]) and torch.equal(eager["bias"], whole["bias"])


# What does not fit


@pytest.mark.parametrize(
    ("indptr", "indices"),
    [([0, 1, 2], [0, 5]), ([0, 1, 2], [-1, 0]), ([0, 1, 1], [0, 1]), ([0, 2, 1], [0]), ([1, 1, 2], [0, 1])],
)
def test_labels_that_cannot_be(indptr: list[int], indices: list[int]) -> None:
    arguments = (torch.ones(2, 3), torch.ones(5, 3), torch.tensor(indptr), torch.tensor(indices))
    with pytest.raises(KernelError, match="CSR matrix of 5 labels"):
        ops.linear_bce(*arguments)
    with pytest.raises(KernelError, match="CSR matrix of 5 labels"):
        ops.linear_bce_step(*arguments, learning_rate=0.1, step=0)
    assert (arguments[1] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(2, 4)}, r"\(2, 4\), \(5, 3\)"),
        ({"hidden": torch.zeros(6)}, r"\(6,\)"),
        ({"weight": torch.zeros(5, 3, 1)}, r"\(5, 3, 1\)"),
        ({"indptr": torch.zeros(2, dtype=torch.int64)}, r"\(2,\)"),
        ({"indices": torch.zeros(1, 1, dtype=torch.int64)}, r"\(1, 1\)"),
        ({"bias": torch.zeros(4)}, r"and \(4,\)"),
        ({"indices": torch.zeros(0, dtype=torch.int32)}, "torch.int32"),
        ({"indptr": torch.zeros(3, dtype=torch.int32)}, "torch.int32"),
        ({"hidden": torch.zeros(2, 3, dtype=torch.int64)}, "float hidden"),
        ({"weight": torch.zeros(5, 3, device="meta")}, "meta"),
        ({"chunk": 100}, "multiple of 256; got 100"),
        ({"chunk": 0}, "multiple of 256; got 0"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "indptr": torch.zeros(3, dtype=torch.int64),
        "indices": torch.zeros(0, dtype=torch.int64),
        **changes,
    }
    with pytest.raises(KernelError, match=message):
        ops.linear_bce(**arguments)
    with pytest.raises(KernelError):
        ops.linear_bce_step(**arguments, learning_rate=0.1, step=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(2, 3, dtype=torch.float64)}, "torch.float64, torch.float32"),
        ({"weight": torch.zeros(5, 3, dtype=torch.float16)}, "torch.float32, torch.float16"),
        ({"bias": torch.zeros(5, dtype=torch.bfloat16)}, "torch.bfloat16"),
        ({"step": -1}, "got -1 and 0"),
        ({"seed": -2}, "got 1 and -2"),
    ],
)
def test_steps_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "indptr": torch.zeros(3, dtype=torch.int64),
        "indices": torch.zeros(0, dtype=torch.int64),
        "learning_rate": 0.1,
        "step": 1,
        **changes,
    }
    with pytest.raises(KernelError, match=message):
        ops.linear_bce_step(**arguments)
