"""How fast the operations are, native and reference side by side. `make bench` runs this."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from xmplug import ops

both = pytest.mark.parametrize("kernels", ["native", "reference"])


@pytest.fixture(autouse=True)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "kernels" in request.fixturenames:
        monkeypatch.setenv("XMPLUG_KERNELS", request.getfixturevalue("kernels"))


@both
@pytest.mark.parametrize("size", [(128, 160), (128, 1600)], ids=str)
def test_beam_step(benchmark: Any, kernels: str, size: tuple[int, int]) -> None:
    logits, parents = torch.randn(size), torch.rand(size)
    nodes = torch.arange(size[1]).repeat(size[0], 1)
    benchmark(ops.beam_step, logits, nodes, parents, 100)


@both
@pytest.mark.parametrize("size", [100_000], ids=str)
def test_ranking_metrics(benchmark: Any, kernels: str, size: int) -> None:
    rng = np.random.default_rng(0)
    top = rng.integers(0, 4000, (size, 5))
    indptr = np.arange(size + 1) * 5
    benchmark(ops.ranking_metrics, top, indptr, rng.integers(0, 4000, size * 5), 1 + rng.random(4000))


@both
@pytest.mark.parametrize("size", [2_000], ids=str)
def test_build_label_tree(benchmark: Any, kernels: str, size: int) -> None:
    features = sparse.csr_matrix(label_features(size))
    benchmark.pedantic(ops.build_label_tree, (features, 16, 100, 0), rounds=3)


@pytest.mark.parametrize("size", [100_000], ids=str)
def test_build_a_large_label_tree(benchmark: Any, size: int) -> None:
    benchmark.pedantic(ops.build_label_tree, (label_features(size), 16, 100, 0), rounds=1)


def label_features(labels: int) -> sparse.csr_matrix:
    """50 non-zeros for each label, most of them shared by a group of a hundred labels."""
    rng = np.random.default_rng(0)
    columns = (rng.permutation(labels)[:, None] // 100 * 100 + rng.integers(0, 400, (labels, 50))) % labels
    values = rng.random(labels * 50, dtype=np.float32)
    return sparse.csr_matrix((values, columns.ravel(), np.arange(labels + 1) * 50), shape=(labels, labels))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("candidates", [None, 160], ids=["all", "candidates"])
@pytest.mark.parametrize("size", [(40, 128, 256, 600)], ids=str)
def test_label_attention(
    benchmark: Any, size: tuple[int, int, int, int], candidates: int | None, precision: str
) -> None:
    b, t, d, labels = size
    states, queries = torch.randn(b, t, d, requires_grad=True), torch.randn(labels, d, requires_grad=True)
    mask = torch.arange(t) < torch.randint(1, t + 1, (b, 1))
    chosen = None if candidates is None else torch.randint(0, labels, (b, candidates))

    def forward_and_backward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            out = ops.label_attention(states, mask, queries, chosen)
        torch.autograd.grad(out, (states, queries), torch.ones_like(out))

    benchmark.pedantic(forward_and_backward, rounds=5, warmup_rounds=1)
