"""Before the first step: what a training needs, and whether it is there."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import psutil
import torch

from .components.nothing import NoContext
from .data import TokenStore
from .errors import ResourceError
from .inference import device, uses_bfloat16
from .interfaces import Batch, LabelStructure
from .model import Model


def check_resources(model: Model, store: TokenStore, out: Path) -> str:
    """What training `model` on the texts of `store` needs, as a line for the user.

    Raises ResourceError, with the option to change, when memory or the disk of `out` cannot hold it.
    """
    settings = model.config.training
    structure, module = model.structure, model.level(0)
    if module.fusion.solved:  # how many weights it will keep shows only afterwards
        nodes = " + ".join(f"{structure.level_size(level):,}" for level in range(structure.num_levels))
        return f"{module.encoder.size:,} features, {nodes} nodes, solved level by level"
    encoder = sum(parameter.numel() for parameter in module.encoder.parameters())
    fusion = sum(parameter.numel() for parameter in module.fusion.parameters())
    size = module.encoder.size
    first = sum(
        parameter.numel()
        for name, parameter in module.fusion.named_parameters()
        if name.split(".")[0] in module.fusion.per_node
    )
    rows = first // structure.level_size(0)
    sizes = [structure.level_size(level) for level in range(structure.num_levels)]
    # Of each stage: an encoder, and a fusion for each of its levels.
    parameters = [encoder + sum(fusion - first + rows * sizes[level] for level in stage) for stage in model.stages]
    tokens = max(int(store.lengths.max(initial=1)), 1)
    at_first = sizes[0] if store.candidates is None else int(np.diff(store.candidates.indptr).max(initial=1))
    widths = [at_first, *(_shortlist_width(structure, level) for level in range(1, len(sizes)))]
    widest = max(sum(widths[level] for level in stage) for stage in model.stages)
    # Weights, gradients, two moments and the average; then states and label contexts, forward and backward.
    training = max(parameters) * 4 * 5 + sum(parameters) * 4
    texts = min(settings.batch_size, settings.micro_batch or settings.batch_size)
    given = None if isinstance(model.context, NoContext) else model.config.given("label_context")
    reading = module.encoder.activations(tokens) * (2 if given and "label texts" in given else 1)
    activations = texts * 4 * (reading + 4 * widest * size + 2 * widest * tokens)
    where = device().type
    needed = training + activations
    there = psutil.virtual_memory().available if where == "cpu" else torch.cuda.mem_get_info()[0]
    steps = [math.ceil(len(store) / settings.batch_size) * settings.epochs_at(stage[0]) for stage in model.stages]
    nodes = " + ".join(f"{count:,}" for count in sizes)
    precision = "bfloat16" if uses_bfloat16(settings.precision) else "float32"
    if needed > there:
        option = (
            "training.batch_size or training.micro_batch"
            if activations > training
            else "the encoder's and the structure's size"
        )
        raise ResourceError(
            f"training needs about {needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB are free; lower {option}"
        )
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    disk, free = sum(parameters) * 4 * 6, shutil.disk_usage(existing).free
    if disk > free:
        raise ResourceError(
            f"checkpoints need about {disk / 2**30:.1f} GiB in {str(out)!r}, {free / 2**30:.1f} GiB are free; "
            "free space or choose another --out"
        )
    return (
        f"{sum(parameters):,} parameters, {nodes} nodes, {' + '.join(map(str, steps))} steps of "
        f"{settings.batch_size} texts in {precision} on {where}; "
        f"about {needed / 2**30:.1f} GiB of {there / 2**30:.1f} GiB free memory"
    )


def _shortlist_width(structure: LabelStructure, level: int) -> int:
    """Candidates of a text at `level`, which has a level above it."""
    nodes = torch.arange(min(structure.beam, structure.level_size(level - 1)))[None]
    text = Batch(
        torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    )
    shortlist = structure.shortlist(level, text, nodes, torch.ones(nodes.shape))
    return structure.level_size(level) if shortlist.nodes is None else shortlist.nodes.shape[1]
