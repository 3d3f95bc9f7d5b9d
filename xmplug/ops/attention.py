"""Multi-label attention."""

from __future__ import annotations

from torch import Tensor

from xmplug.errors import KernelError
from xmplug.ops import reference


def label_attention(
    states: Tensor,
    mask: Tensor,
    queries: Tensor,
    candidates: Tensor | None = None,
    *,
    sparse_grad: bool = False,
) -> Tensor:
    """One view of each text per label, (B,C,D) (AttentionXML, equation 2).

    states (B,T,D) float; mask (B,T) bool, True = token; queries (L,D), a row per label; candidates (B,C)
    int64, the labels to look at for each text, negative = padding; None stands for all L.

    out[b,c] = sum over t of softmax_t(states[b,t] . queries[c] | mask) states[b,t]. Padded candidates and
    texts without a token give exactly 0, with gradient 0; what states hold where there is no token does not
    matter. With `sparse_grad` and candidates, the gradient of `queries` is a sparse tensor with rows for the
    candidates only.

    Raises KernelError for shapes that do not fit together.
    """
    if states.ndim != 3 or mask.shape != states.shape[:2] or queries.ndim != 2:
        raise KernelError(
            f"label_attention needs states (B,T,D), mask (B,T) and queries (L,D); "
            f"got {tuple(states.shape)}, {tuple(mask.shape)} and {tuple(queries.shape)}"
        )
    if queries.shape[1] != states.shape[2]:
        raise KernelError(f"label_attention: queries of {queries.shape[1]}, states of {states.shape[2]} dimensions")
    if candidates is not None and (candidates.ndim != 2 or len(candidates) != len(states)):
        raise KernelError(f"label_attention: candidates must be ({len(states)},C); got {tuple(candidates.shape)}")
    return reference.label_attention(states, mask, queries, candidates, sparse_grad)
