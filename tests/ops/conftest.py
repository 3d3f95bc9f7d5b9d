from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from xmplug import ops


@pytest.fixture(params=["reference", "native"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with each implementation."""
    if request.param == "native" and ops.kernels()["beam_step"] != "native cpu":
        pytest.skip(ops.kernels()["beam_step"])
    monkeypatch.setenv("XMPLUG_KERNELS", request.param)
    return request.param


@pytest.fixture
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
