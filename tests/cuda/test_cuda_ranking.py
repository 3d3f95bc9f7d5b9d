"""The CUDA kernels of ranking_metrics beside the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmplug import ops
from xmplug.errors import KernelError
from xmplug.ops import native

Run = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_run(seed: int, num_true: Sequence[int], width: int, labels: int) -> Run:
    """Predictions, some of them none and some there twice, and true labels in any order; many weights are equal."""
    rng = np.random.default_rng(seed)
    truth = [rng.permutation(labels)[:n] for n in num_true]
    indptr = np.cumsum([0, *num_true])
    top = rng.integers(-1, labels, (len(truth), width))
    return top, indptr, np.concatenate([*truth, []]).astype(np.int64), rng.integers(1, 5, labels) / 3


def check(on_gpu: native.Gpu, run: Run, ks: Sequence[int], label_type: torch.dtype = torch.int64) -> None:
    top, indptr, indices, weights = (torch.from_numpy(each).to(on_gpu.device) for each in run)
    for given_weights in (None, weights):
        values = ops.ranking_metrics(top.to(label_type), indptr, indices.to(label_type), given_weights, ks)
        expected = ops.ranking_metrics(run[0], *run[1:3], None if given_weights is None else run[3], ks)  # not on a GPU
        assert list(values) == list(expected)
        for name, value in expected.items():
            assert values[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    num_true=st.lists(st.one_of(st.integers(0, 8), st.integers(0, 100)), max_size=12),
    width=st.integers(0, 150),
    ks=st.lists(st.integers(1, 160), min_size=1, max_size=4),
    label_type=st.sampled_from([torch.int32, torch.int64]),
)
def test_is_the_reference(
    on_gpu: native.Gpu, seed: int, num_true: list[int], width: int, ks: list[int], label_type: torch.dtype
) -> None:
    check(on_gpu, random_run(seed, num_true, width, 180), ks, label_type)


def test_of_many_documents_and_cutoffs(on_gpu: native.Gpu) -> None:
    rng = np.random.default_rng(0)
    check(on_gpu, random_run(0, rng.integers(0, 7, 300).tolist(), 40, 60), range(1, 41))


def test_is_the_same_again(on_gpu: native.Gpu) -> None:
    run = [torch.from_numpy(each).to(on_gpu.device) for each in random_run(0, [5] * 200, 10, 30)]
    assert ops.ranking_metrics(*run) == ops.ranking_metrics(*run)


@pytest.mark.parametrize("top_type", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("label_type", [np.uint8, np.int32, np.int64])
def test_takes_any_integers_layout_and_place(on_gpu: native.Gpu, top_type: torch.dtype, label_type: type) -> None:
    top, indptr, indices, weights = random_run(0, [3, 0, 5], 6, 20)
    wide = torch.from_numpy(np.repeat(top, 2, axis=1)).to(on_gpu.device, top_type)[:, ::2]
    values = ops.ranking_metrics(wide, indptr.astype(np.int32), indices.astype(label_type), weights.astype(np.float32))
    expected = ops.ranking_metrics(top, indptr, indices, weights.astype(np.float32))
    assert values == pytest.approx(expected, rel=1e-9)


def test_labels_beyond_32_bits(on_gpu: native.Gpu) -> None:
    far = 2**40
    top = torch.tensor([[far, 3]], device=on_gpu.device)
    values = ops.ranking_metrics(top, np.array([0, 2]), np.array([3 + far, far]), ks=(1, 2))
    assert (values["P@1"], values["P@2"]) == (1.0, 0.5)


@pytest.mark.parametrize("rows", [0, 3])
def test_without_true_labels_there_is_no_value(on_gpu: native.Gpu, rows: int) -> None:
    top = torch.zeros(rows, 5, dtype=torch.int64, device=on_gpu.device)
    values = ops.ranking_metrics(top, np.zeros(rows + 1, np.int64), np.zeros(0, np.int64), np.ones(4))
    assert len(values) == 18
    assert all(math.isnan(value) for value in values.values())


def test_arguments_that_do_not_fit(on_gpu: native.Gpu) -> None:
    top, far = torch.tensor([[1, 2]], device=on_gpu.device), np.iinfo(np.int64).max
    two = top.repeat(2, 1)
    for arguments in [
        (top, [0, 1, 1], [1]),
        (top, [0, 2], [1]),
        (top, [1, 1], [1]),
        (two, [0, 2, 1], [1]),
        (two, [0, far, 1], [1]),
        (two, [0, -far, 1], [1]),
        (top, [0, 1], [-1]),
        (top, [0, 1], [1], [1.0]),
        (top, [0, 1], [far], [1.0]),
        (top[0], [0, 1], [1]),
        (top, [0, 1], [1], [[1.0, 2.0]]),
    ]:
        with pytest.raises(KernelError):
            ops.ranking_metrics(arguments[0], *(np.array(each) for each in arguments[1:]))
