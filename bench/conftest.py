"""What all benchmarks share: `compare` checks an implementation and measures it in turn with ours."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import machine

# Seconds for the rounds of one row, and how many rounds there are at least.
QUICK, FULL = (2.0, 2), (10.0, 3)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xmplug")
    group.addoption("--full", action="store_true", help="all shapes and peers, memory, training and prediction")
    group.addoption("--plugin", default="attentionxml", help="method of the benchmarks of training and prediction")
    group.addoption("--data", default="debtags", help="corpus that they train on")
    group.addoption("--preset", default="demo", help="preset of the method")
    group.addoption("--epochs", default="1", help="epochs that they train")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: a shape that is measured with --full only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --full: the shapes that are not marked full, beside the peers that the file lists as QUICK."""

    def quick(item: Any) -> bool:
        return item.get_closest_marker("full") is None and item.callspec.params["peer"] in item.module.QUICK

    if not config.getoption("--full"):
        config.hook.pytest_deselected(items=[item for item in items if not quick(item)])
        items[:] = filter(quick, items)


peaks: dict[str, dict[str, float]] = {}
load_before = os.getloadavg()[0]


def measure_peaks() -> None:
    """The best so far: a machine that is busy now may have been free before."""
    for threads, found in machine.peaks().items():
        best = peaks.setdefault(threads, found)
        best.update({name: max(value, best[name]) for name, value in found.items()})


@pytest.fixture(scope="session", autouse=True)
def _peaks() -> Iterator[None]:
    """Measured before the benchmarks and after them."""
    measure_peaks()
    yield
    measure_peaks()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.update(machine.describe(), peaks=peaks, load=load_before)


def with_kernels(which: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with XMPLUG_KERNELS as given."""

    def chosen() -> Any:
        os.environ["XMPLUG_KERNELS"] = which
        return call()

    return chosen


checked: dict[tuple[str, str], float] = {}
memory_of = lru_cache(maxsize=None)(machine.peak_memory)


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setenv("XMPLUG_KERNELS", "native")  # and put back what was there
    full = request.config.getoption("--full")

    def measure(
        *,
        op: str,
        shape: str,
        peer: str,
        ours: Callable[[], Any],
        theirs: Callable[[], Any] | None = None,
        check: Callable[[Any], None],
        dtype: str = "float32",
        threads: int | None = None,
        flops: float = 0,
        moved: float = 0,
        documents: int = 0,
        rounds: int | None = None,
        memory: tuple[str, str] | None = None,
        **extra: Any,
    ) -> None:
        """One row: `theirs` beside `ours`, one call of each in turn, so that what else the machine does meets both.

        peer: the name of `theirs`; "native" measures ours alone, "reference" ours with XMPLUG_KERNELS=reference.
        check raises for a result that is wrong. flops, moved, documents: what one call computes, the bytes that it has
        to move, or the documents that it works through. memory: the file and case of `machine.peak_memory`.
        """
        run_ours = with_kernels("native", ours)
        run = {"native": run_ours, "reference": with_kernels("reference", ours)}.get(peer, theirs)
        assert run is not None
        number = threads or torch.get_num_threads()
        group = f"{op} {shape} {dtype} {number} threads"
        seconds, least = FULL if full else QUICK

        def first_calls(name: str, call: Callable[[], Any]) -> float:
            """About what a call takes. The first one of each implementation is checked, and warms it up."""
            if (group, name) not in checked:
                begun = time.perf_counter()
                result = call()
                lasted = time.perf_counter() - begun
                check(result)
                if lasted < seconds:
                    begun = time.perf_counter()
                    call()
                    lasted = time.perf_counter() - begun
                checked[group, name] = lasted
            return checked[group, name]

        with machine.threads(number):
            lasted = first_calls(peer, run) + (0 if run is run_ours else first_calls("native", run_ours))
            if rounds is None:
                rounds = 1 if lasted > 3 * seconds else int(min(max(seconds / lasted, least), 200))
            our_times = []

            def ours_in_turn() -> None:
                begun = time.perf_counter()
                run_ours()
                our_times.append(time.perf_counter() - begun)

            benchmark.pedantic(run, rounds=rounds, setup=None if peer == "native" else ours_in_turn)
        benchmark.group = group
        benchmark.extra_info.update(
            op=op,
            shape=shape,
            dtype=dtype,
            threads=number,
            implementation=peer,
            torch=torch.__version__,
            flops=flops,
            bytes=moved,
            documents=documents,
            ours=our_times,
            **extra,
        )
        if memory is not None and full:
            benchmark.extra_info["memory"] = memory_of(*memory, peer)
            benchmark.extra_info["memory_ours"] = memory_of(*memory, "native")

    return measure
