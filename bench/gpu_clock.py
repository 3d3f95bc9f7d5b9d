"""Clocks and yardsticks for kernels on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch


def in_turn(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int = 20) -> tuple[float, float]:
    """The medians of both in milliseconds: one call of ours, then one of the peer, after three of each."""
    for call in (ours, peer) * 3:
        call()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, found in zip((ours, peer), times):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end))
    return statistics.median(times[0]), statistics.median(times[1])


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory of the device that a call takes beyond what is there before, its results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def product_rate(dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """FLOP/s of a matrix product of random numbers, by the library that PyTorch calls."""
    left, right = torch.randn(2, size, size, device="cuda").to(dtype)
    seconds = in_turn(lambda: left @ right, lambda: None)[0] / 1e3
    return 2 * size**3 / seconds


def copy_rate() -> float:
    """Bytes per second of a large copy on the device, read and written."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = in_turn(lambda: target.copy_(source), lambda: None)[0] / 1e3
    return 2 * source.numel() / seconds
