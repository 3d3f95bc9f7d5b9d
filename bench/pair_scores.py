"""MAACF+: texts per second and memory of prediction, by the number of labels.

python bench/pair_scores.py [--labels 1000,4000,20000,500000] [--words 200] [--texts 256]

The weights are random: nothing here depends on what they are. Up to 20,000 labels all are scored; beyond, the 500
candidates of a shortlist for each text. Each size has a process of its own. `printed` multiplies the matrices of
eq. 8 and 9 for each pair, as the paper writes them, in float32 as ours; its scores are compared with ours.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import torch
from torch import Tensor
from xmplug_maacf import AttentionBiLSTMConfig, CoAttentionConfig
from xmplug_maacf.encoder import AttentionBiLSTM
from xmplug_maacf.network import CoAttention

from xmplug.data import Tokenizer
from xmplug.inference import autocast
from xmplug.interfaces import Batch, Shortlist
from xmplug.ops import beam_step

ALL_UP_TO, CANDIDATES, BATCH, VOCABULARY = 20_000, 500, 32, 50_000


def printed(fusion: CoAttention, aspects: Tensor, nodes: Tensor) -> Tensor:
    """(B,C) logits, the label and text side of each pair as vectors of D numbers, then the predictor."""
    groups = fusion.label_groups
    assert groups is not None
    h, members = fusion.labels(nodes), fusion.labels(groups[nodes])  # (B,C,D), (B,C,k,D)
    alpha = torch.einsum("bckd,bnd->bcnk", members, aspects).softmax(dim=-1)
    of_aspects = alpha @ members  # (B,C,n,D), eq. 5
    beta = (of_aspects * fusion.of_aspects.weight).sum(dim=-1) + fusion.of_aspects.bias
    group = (beta.softmax(dim=-1)[:, :, :, None] * of_aspects).sum(dim=2)  # eq. 7
    label = fusion.fuse(torch.cat([h, group], dim=-1))  # eq. 8
    text = torch.einsum("bcd,bnd->bcn", h, aspects).softmax(dim=-1) @ aspects
    hidden = torch.relu(fusion.first(torch.cat([text, label], dim=-1)))
    product = (fusion.product * text * label).sum(dim=-1)  # type: ignore[operator]
    return fusion.layers[-1](hidden).squeeze(-1) + product


def measure(labels: int, words: int, texts: int) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.words(iter([" ".join(f"w{word}" for word in range(VOCABULARY))]), VOCABULARY, 1)
    config = AttentionBiLSTMConfig(vector_size=200)
    encoder = AttentionBiLSTM(config, tokenizer, torch.randn(len(tokenizer), 200)).eval()
    like = SimpleNamespace(size=encoder.size, num_pooled=encoder.num_pooled)
    fusion = CoAttention(CoAttentionConfig(), like, labels, 5 / labels).eval()  # type: ignore[arg-type]
    fusion.label_groups = torch.randint(labels, (labels, 2))
    nodes = None if labels <= ALL_UP_TO else torch.stack([torch.randperm(labels)[:CANDIDATES] for _ in range(texts)])
    tokens = torch.randint(2, VOCABULARY, (texts, words))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def predict(size: int, count: int) -> float:
        begun = time.perf_counter()
        for at in range(0, count, size):
            rows = slice(at, at + size)
            batch = Batch(torch.arange(size), tokens[rows], torch.full((size,), words))
            shortlist = Shortlist() if nodes is None else Shortlist(nodes[rows])
            with torch.no_grad(), autocast("auto"):
                logits = fusion(encoder(batch), shortlist).logits
            names = torch.arange(labels).expand(size, -1) if nodes is None else nodes[rows]
            beam_step(logits, names, torch.ones_like(logits), 5)
        return (time.perf_counter() - begun) / count

    def scoring(form: str) -> float:
        asked = torch.arange(labels).expand(4, -1) if nodes is None else nodes[:4]
        encoded = encoder(Batch(torch.arange(4), tokens[:4], torch.full((4,), words)))
        begun = time.perf_counter()
        if form == "ours":
            fusion(encoded, Shortlist(None if nodes is None else asked))
        else:
            aspects = fusion.aspects(encoded)
            for at in range(0, asked.shape[1], 1000):
                printed(fusion, aspects, asked[:, at : at + 1000])
        return (time.perf_counter() - begun) / 4

    predict(BATCH, BATCH)
    many = statistics.median(predict(BATCH, texts) for _ in range(3))
    one = statistics.median(predict(1, 1) for _ in range(20))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        asked = torch.randint(labels, (4, 50))
        encoded = encoder(Batch(torch.arange(4), tokens[:4], torch.full((4,), words)))
        torch.testing.assert_close(
            fusion(encoded, Shortlist(asked)).logits,
            printed(fusion, fusion.aspects(encoded), asked),
            rtol=1e-3,
            atol=1e-3,
        )
        rounds = [(scoring("ours"), scoring("printed")) for _ in range(4)][1:]
    ours, theirs = (statistics.median(times) for times in zip(*rounds))
    weights = sum(parameter.numel() * 4 for parameter in fusion.parameters()) / 2**20
    print(
        f"| {labels:,} | {CANDIDATES if labels > ALL_UP_TO else 'all'} | {1 / many:.0f} | {1000 * one:.1f} | "
        f"{weights:.0f} | {(peak - before) / 1024:.0f} | {1000 * ours:.2f} | {1000 * theirs:.2f} | "
        f"{theirs / ours:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="1000,4000,20000,500000")
    parser.add_argument("--words", type=int, default=200)
    parser.add_argument("--texts", type=int, default=256)
    asked = parser.parse_args()
    sizes = [int(number) for number in asked.labels.split(",")]
    if len(sizes) == 1:
        measure(sizes[0], asked.words, asked.texts)
        return
    print(
        f"{torch.get_num_threads()} threads, texts of {asked.words} words, batches of {BATCH}\n\n"
        "| labels | candidates | texts/s | ms for one text | MiB of weights | MiB at the peak above them | "
        "scoring, ms a text | as printed | ratio |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for labels in sizes:
        options = ["--labels", str(labels), "--words", str(asked.words), "--texts", str(asked.texts)]
        subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
