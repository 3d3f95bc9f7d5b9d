"""`xmplug info`."""

from __future__ import annotations

import platform

import click


@click.command("info")
def command() -> None:
    """Print versions, devices, and the kernels in use with the reason where one is not."""
    import numpy
    import psutil
    import scipy
    import torch

    from .. import __version__
    from ..inference import device, uses_bfloat16
    from ..ops import kernels, native
    from ..plugins import Plugins

    rows = [
        ("xmplug", __version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("numpy, scipy", f"{numpy.__version__}, {scipy.__version__}"),
        ("processor", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"),
        ("memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB free"),
        ("device", torch.cuda.get_device_name() if device().type == "cuda" else "cpu (torch sees no GPU)"),
        ("precision", "bfloat16" if uses_bfloat16("auto") else "float32 (no native bfloat16)"),
        ("plugins", ", ".join(p.name + (" (broken)" if p.error else "") for p in Plugins().load().found)),
        ("vector code", native.INSTRUCTION_SETS[native.instruction_set()] if native.cpu() else "PyTorch's"),
        *((f"kernel {name}", state) for name, state in kernels().items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")
