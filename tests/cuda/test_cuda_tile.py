"""Products of tiles, alone: what tensor cores read in shared memory is what was put there."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

SHAPES = {
    "mma_bfloat16": [(64, 256), (128, 128)],
    "mma_float16": [(64, 256)],
    "wgmma_bfloat16": [(128, 256), (128, 128)],
    "wgmma_float16": [(128, 256), (128, 128)],
}


@pytest.mark.parametrize("depth", [8, 40, 200, 61])
@pytest.mark.parametrize("right", ["across", "down"])
@pytest.mark.parametrize("left", ["across", "down", "held"])
@pytest.mark.parametrize("engine", SHAPES)
def test_products_are_exact(
    tile_products: tuple[ModuleType, torch.device], engine: str, left: str, right: str, depth: int
) -> None:
    module, device = tile_products
    if device.type == "cuda" and engine.startswith("wgmma") and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is for compute capability 9.0")
    dtype = torch.bfloat16 if engine.endswith("bfloat16") else torch.float16
    generator = torch.Generator().manual_seed(depth)
    for rows, columns in SHAPES[engine]:
        # Integers, whose products and sums are exact in every type.
        a = torch.randint(-8, 9, (rows, depth), generator=generator)
        b = torch.randint(-8, 9, (depth, columns), generator=generator)
        in_memory = [
            (a.t() if left == "down" else a).to(device, dtype).contiguous(),
            (b if right == "down" else b.t()).to(device, dtype).contiguous(),
        ]
        product = torch.full((rows, columns), float("nan"), device=device)
        function = getattr(module, f"{engine}_{rows}_{columns}_{left}_{right}")
        stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
        function(*(each.data_ptr() for each in in_memory), product.data_ptr(), depth, stream)
        assert torch.equal(product.cpu().long(), a @ b)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (1, "fence.proxy.async and barrier"),  # the fence after the barrier
        (2, "fence.proxy.async and barrier"),  # without it
        (3, "wgmma.fence"),
        (4, "not all threads reach"),
        (5, "changed before"),
        (6, "were written to"),
        (7, "not waited for"),
    ],
)
def test_the_emulation_notices_what_wgmma_does_not_allow(tiles_on_host: ModuleType, rule: int, message: str) -> None:
    tiles_on_host.break_a_rule(0)
    with pytest.raises(RuntimeError, match=message):
        tiles_on_host.break_a_rule(rule)
