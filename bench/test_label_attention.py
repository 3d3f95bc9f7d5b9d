"""label_attention beside what PyTorch gives: 32 texts of 100 to 500 tokens at the sizes of AttentionXML's data sets.

The backward pass gets an upstream gradient that is a tensor in memory, as in training, made beforehand: it is an
input. In candidate form, every form gives the gradient of the queries as a sparse tensor, and none coalesces it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from machine import medium
from torch import Tensor
from torch.nn import functional

from xmplug import ops

full = pytest.mark.full


@dataclass(frozen=True)
class Size:
    """candidates: for each text; 0 = all labels. They are the `siblings` children of each node of a beam."""

    name: str
    labels: int
    dims: int
    candidates: int = 0
    siblings: int = 8
    texts: int = 32


@dataclass(frozen=True)
class Case:
    size: Size
    dtype: str
    backward: bool
    threads: int | None = None

    def __str__(self) -> str:
        run = "forward+backward" if self.backward else "forward"
        alone = "-1thread" if self.threads else ""
        return f"{self.size.name}-{self.dtype}-{run}{alone}"


@dataclass(frozen=True)
class Inputs:
    states: Tensor  # (B,T,D)
    mask: Tensor  # (B,T)
    lengths: list[int]  # of each text
    queries: Tensor  # (L,D)
    candidates: Tensor | None  # (B,C)
    upstream: Tensor | None  # (B,C,D), the gradient of the result


EURLEX = Size("eurlex-3956", 3_956, 512)
FEW = Size("eurlex-3956-8texts", 3_956, 512, texts=8)
AMAZON = Size("1280of100000", 100_000, 512, 1_280)
WIDE = Size("1280of100000-1024", 100_000, 1_024, 1_280)
AMAZONCAT = Size("amazoncat-13330", 13_330, 1_024, texts=8)
AMAZON670K = Size("amazon670k", 670_091, 1_024, 1_280)
AMAZON3M = Size("amazon3m", 2_812_281, 1_024, 1_280)


def cases() -> list[Any]:
    found = []
    for size in (FEW, AMAZON, EURLEX, WIDE, AMAZONCAT, AMAZON670K, AMAZON3M):
        for dtype in ("float32", "bfloat16"):
            if size is AMAZON3M and dtype == "float32":
                continue  # 11.5 GB of queries
            for backward in (False, True):
                found.append(pytest.param(Case(size, dtype, backward), marks=[] if size in (FEW, AMAZON) else full))
    found += [pytest.param(Case(size, "float32", True, 1), marks=full) for size in (EURLEX, AMAZON)]
    return found


@lru_cache(maxsize=1)
def inputs(case: Case, device: str = "cpu") -> Inputs:
    size, dtype = case.size, getattr(torch, case.dtype)
    random = torch.Generator(device).manual_seed(0)
    # 100 to 500 tokens, spread evenly, 60 % of the padded table.
    lengths = [100 + 400 * i // (size.texts - 1) for i in range(size.texts)]
    states = torch.randn(size.texts, 500, size.dims, generator=random, device=device).to(dtype)
    mask = torch.arange(500, device=device) < torch.tensor(lengths, device=device)[:, None]
    queries = torch.empty(size.labels, size.dims, dtype=dtype, device=device)
    queries.normal_(std=size.dims**-0.5, generator=random)
    candidates = upstream = None
    if size.candidates:
        parents = torch.stack(
            [
                torch.randperm(size.labels // size.siblings, generator=random, device=device)[
                    : size.candidates // size.siblings
                ]
                for _ in range(size.texts)
            ]
        )
        candidates = (parents[..., None] * size.siblings + torch.arange(size.siblings, device=device)).flatten(1)
    if case.backward:
        width = size.candidates or size.labels
        upstream = torch.randn(size.texts, width, size.dims, generator=random, device=device).to(dtype)
        states.requires_grad_()
        queries.requires_grad_()
    return Inputs(states, mask, lengths, queries, candidates, upstream)


def ours(given: Inputs) -> Tensor:
    return ops.label_attention(
        given.states, given.mask, given.queries, given.candidates, sparse_grad=given.candidates is not None
    )


def rows(given: Inputs) -> Tensor:
    if given.candidates is None:
        return given.queries
    return functional.embedding(given.candidates, given.queries, sparse=True)  # (B,C,D)


def attend(states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None) -> Tensor:
    """As AttentionXML writes it."""
    if candidates is None:
        weights = (states @ queries.T).transpose(1, 2)
    else:
        weights = functional.embedding(candidates, queries, sparse=True) @ states.transpose(1, 2)
    weights = weights.masked_fill(~mask[:, None], -torch.inf)
    weights = weights.softmax(-1)
    return weights @ states


def padded(given: Inputs) -> Tensor:
    return attend(given.states, given.mask, given.queries, given.candidates)


compiled_attend = torch.compile(attend, dynamic=False)


def compiled(given: Inputs) -> Tensor:
    return compiled_attend(given.states, given.mask, given.queries, given.candidates)


def sdpa(given: Inputs) -> Tensor:
    queries = rows(given)
    if queries.ndim == 2:
        queries = queries.expand(len(given.states), -1, -1)
    states = given.states[:, None]
    return functional.scaled_dot_product_attention(
        queries[:, None], states, states, attn_mask=given.mask[:, None, None], scale=1.0
    )[:, 0]


def per_text(given: Inputs) -> Tensor:
    """The tokens there are, text by text. Where nothing is differentiated, no row is copied but those of one text."""
    if given.upstream is None:
        labels = len(given.queries) if given.candidates is None else given.candidates.shape[1]
        out = given.states.new_empty(len(given.states), labels, given.states.shape[2])
        for b, length in enumerate(given.lengths):
            states = given.states[b, :length]
            queries = given.queries if given.candidates is None else given.queries.index_select(0, given.candidates[b])
            torch.mm(torch.softmax(queries @ states.T, -1), states, out=out[b])
        return out
    queries = rows(given)
    of_texts = [queries] * len(given.states) if queries.ndim == 2 else queries.unbind()
    texts = [states[:length] for states, length in zip(given.states.unbind(), given.lengths)]
    return torch.stack([torch.softmax(q @ s.T, -1) @ s for q, s in zip(of_texts, texts)])


MEDIUM = 'per text, "medium"'
PEERS: dict[str, Callable[[Inputs], Tensor]] = {
    "AttentionXML's form": padded,
    "SDPA": sdpa,
    "torch.compile": compiled,
    "per text": per_text,
    MEDIUM: per_text,
}
QUICK = ("AttentionXML's form", "per text", MEDIUM)


def call_of(case: Case, peer: str) -> Callable[[], tuple[Tensor, ...]]:
    """What is measured: the result, and with `case.backward` the gradients of states and queries."""
    given, form = inputs(case), PEERS.get(peer, ours)

    def call() -> tuple[Tensor, ...]:
        with medium() if peer == MEDIUM else nullcontext():
            out = form(given)
            if given.upstream is None:
                return (out,)
            return out, *torch.autograd.grad(out, (given.states, given.queries), given.upstream)

    return call


def prepare(case: str, peer: str) -> Callable[[], object]:
    """For machine.peak_memory."""
    (chosen,) = (param.values[0] for param in cases() if str(param.values[0]) == case)
    os.environ["XMPLUG_KERNELS"] = "reference" if peer == "reference" else "native"
    return call_of(chosen, peer)


@dataclass(frozen=True)
class Expected:
    """In float64: the views of some labels in every text that has them, their gradient, and that of one text."""

    labels: Tensor  # (n,)
    places: list[Tensor]  # of them in each text
    views: list[Tensor]  # (their number, D) for each text
    gradients: tuple[Tensor, Tensor] | None  # (n,D) of the queries, (T,D) of the states of the first text


@lru_cache(maxsize=1)
def expected(case: Case) -> Expected:
    given = inputs(case)

    def view(queries: Tensor, b: int) -> Tensor:
        states = given.states.detach()[b, : given.lengths[b]].double()
        return torch.softmax(queries @ states.T, -1) @ states

    everyone = torch.arange(len(given.queries))
    of_text = [everyone] * len(given.states) if given.candidates is None else list(given.candidates)
    labels = of_text[0][:: max(1, len(of_text[0]) // 24)].sort().values
    queries = given.queries.detach()[labels].double().requires_grad_(case.backward)
    places = [torch.isin(found, labels).nonzero()[:, 0] for found in of_text]
    views = [view(queries[torch.searchsorted(labels, of_text[b][at])], b) for b, at in enumerate(places)]
    if given.upstream is None:
        return Expected(labels, places, views, None)
    (grad_queries,) = torch.autograd.grad(
        views, queries, [given.upstream[b, at].double() for b, at in enumerate(places)]
    )
    states = given.states.detach()[0, : given.lengths[0]].double().requires_grad_()
    rows_of_first = given.queries.detach()[of_text[0]].double()
    out = torch.softmax(rows_of_first @ states.T, -1) @ states
    (grad_states,) = torch.autograd.grad(out, states, given.upstream[0].double())
    return Expected(labels, places, [each.detach() for each in views], (grad_queries, grad_states))


def check(case: Case, peer: str, result: tuple[Tensor, ...]) -> None:
    # "medium" may compute with bfloat16 inside.
    tolerance = 0.05 if case.dtype == "bfloat16" else 0.02 if peer == MEDIUM else 1e-4
    want, (out, *grads) = expected(case), result

    def close(found: Tensor, wanted: Tensor) -> None:
        error = (found.double() - wanted).abs().max() / wanted.abs().max()
        assert error < tolerance, f"{peer} is off by {error:.2g} of the largest value"

    close(torch.cat([out[b, at] for b, at in enumerate(want.places)]).detach(), torch.cat(want.views))
    if want.gradients is not None:
        of_queries, of_states = want.gradients
        close(grads[0][0, : len(of_states)], of_states)
        assert not grads[0][0, len(of_states) :].any()
        close(grads[1].index_select(0, want.labels).to_dense(), of_queries)


@pytest.mark.parametrize("peer", ["native", "reference", *PEERS])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_label_attention(compare: Callable[..., None], case: Case, peer: str) -> None:
    if peer == MEDIUM and case.dtype == "bfloat16":
        pytest.skip("the precision of float32 products does not concern bfloat16")
    size, given = case.size, inputs(case)
    labels = size.candidates or size.labels
    tokens = sum(given.lengths)
    seen = size.labels if given.candidates is None else len(given.candidates.unique())
    # Two products forward and four backward, of tokens and labels by D; what is padding is not counted.
    flops = (12 if case.backward else 4) * tokens * labels * size.dims
    # What is read or written once, and both once more for the gradients.
    moved = given.states.element_size() * size.dims * (tokens + seen + size.texts * labels) * (1 + case.backward)
    compare(
        op="label_attention, forward and backward" if case.backward else "label_attention, forward",
        shape=f"B={size.texts} L={size.labels:,}"
        + (f" C={size.candidates:,}" if size.candidates else "")
        + f" D={size.dims}",
        dtype=case.dtype,
        threads=case.threads,
        peer=peer,
        ours=call_of(case, "native"),
        theirs=call_of(case, peer),
        check=partial(check, case, peer),
        flops=flops,
        moved=moved,
        memory=None if size is AMAZON3M or case.threads else (__file__, str(case)),
    )
