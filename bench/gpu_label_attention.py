"""label_attention on a GPU, beside the forms of test_label_attention.py, at the paper's sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from gpu_clock import in_turn, peak_bytes, product_rate
from test_label_attention import AMAZON670K, EURLEX, MEDIUM, PEERS, Case, Inputs, inputs, ours

from xmplug import ops
from xmplug.ops import native


def call_of(form: Callable[[Inputs], torch.Tensor], given: Inputs) -> Callable[[], Any]:
    """What is measured: the result and, where there is a gradient for it, those of states and queries."""

    def call() -> Any:
        out = form(given)
        if given.upstream is None:
            return out
        return out, *torch.autograd.grad(out, (given.states, given.queries), given.upstream)

    return call


@contextmanager
def as_on_8_0() -> Iterator[None]:
    """Makes a GPU of compute capability 9.0 take mma.sync, in place of wgmma."""
    there = native.gpu
    native.gpu = lambda tensor: (found := there(tensor)) and replace(found, capability=(8, 0))
    try:
        yield
    finally:
        native.gpu = there


def peers(given: Inputs) -> dict[str, Callable[[], Any]]:
    """What is measured beside ours."""
    found = {peer: call_of(form, given) for peer, form in PEERS.items() if peer != MEDIUM}
    if torch.cuda.get_device_capability() == (9, 0):

        def with_mma() -> Any:
            with as_on_8_0():
                return call_of(ours, given)()

        found["xmplug with mma.sync"] = with_mma
    return found


def rows() -> list[dict[str, Any]]:
    """AttentionXML's settings: Amazon-670K in steps of 200 texts, EUR-Lex in steps of 40."""
    found = []
    rate = product_rate()
    for size in (replace(AMAZON670K, texts=200), replace(EURLEX, texts=40)):
        for backward in (False, True):
            case = Case(size, "bfloat16", backward)
            given = inputs(case, "cuda")
            width = size.candidates or size.labels
            # Two products forward and four backward, without what is made twice and without padding.
            operations = (6 if backward else 2) * 2.0 * sum(given.lengths) * width * size.dims

            call = call_of(ours, given)
            our_bytes = peak_bytes(call)
            for peer, theirs in peers(given).items():
                try:
                    their_bytes = peak_bytes(theirs)
                    our_ms, peer_ms = in_turn(call, theirs, rounds=10)
                except Exception as error:  # of the peer: the other rows are worth having
                    note = f"{type(error).__name__}: {error}".splitlines()[0][:80]
                    found.append({"operation": "label_attention", "shape": str(case), "peer": peer, "note": note})
                    torch.cuda.empty_cache()
                    continue
                share = operations / (our_ms / 1e3) / rate
                found.append(
                    {
                        "operation": "label_attention",
                        "shape": f"B={size.texts} {size.name} D={size.dims}" + (", with gradients" if backward else ""),
                        "dtype": case.dtype,
                        "peer": peer,
                        "peer_ms": peer_ms,
                        "ours_ms": our_ms,
                        "ratio": peer_ms / our_ms,
                        "note": f"{share:.0%} of the product rate; MB: ours {our_bytes / 1e6:,.0f}, "
                        f"peer {their_bytes / 1e6:,.0f}",
                    }
                )
    return found


def once() -> None:
    """Forward and backward, on small shapes."""
    random = torch.Generator("cuda").manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.randn(3, 150, 72, device="cuda", generator=random).to(dtype).requires_grad_()
        queries = torch.randn(300, 72, device="cuda", generator=random).to(dtype).requires_grad_()
        mask = torch.rand(3, 150, device="cuda", generator=random) < 0.7
        for candidates in (None, torch.randint(-1, 300, (3, 90), device="cuda", generator=random)):
            ops.label_attention(states, mask, queries, candidates).sum().backward()
