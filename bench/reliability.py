"""Reliability diagrams of a calibrated run, before and after: how many labels are true among those of like score.

    pip install matplotlib
    xmplug calibrate runs/mine
    python bench/reliability.py runs/mine --split test --out reliability.svg

The first 5 labels of each text that has true ones, in 15 bins of equal mass.
"""

from __future__ import annotations

import argparse
from pathlib import PurePath

import matplotlib
import numpy as np

from xmplug import load
from xmplug.evaluation import rank_texts, split_of
from xmplug.metrics import brier_score, calibration_error, reliability, true_places

matplotlib.use("svg")
import matplotlib.pyplot as plt

RANKS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw how far scores are from probabilities.")
    parser.add_argument("run")
    parser.add_argument("--data", help="corpus; without it, the one of the training")
    parser.add_argument("--split", default="test", choices=("test", "dev", "train"))
    parser.add_argument("--out", required=True, metavar="FILE.svg")
    parser.add_argument("--plugin-file", action="append", default=[], metavar="FILE.py")
    arguments = parser.parse_args()

    tagger = load(arguments.run, arguments.plugin_file)
    documents, name = split_of(arguments.run, arguments.data, arguments.split)
    truth = documents.targets(tagger.labels)
    labelled = np.diff(truth.indptr) > 0
    texts = [text for text, chosen in zip(documents.texts(), labelled) if chosen]
    calibration, tagger.calibration = tagger.calibration, None
    top, scores = rank_texts(tagger, texts, RANKS)
    stages = {"before": scores}
    if calibration is None:
        print(f"{arguments.run} is not calibrated; drawn as it is")
    else:
        stages["after"] = calibration(scores)
    hits = true_places(top, truth[labelled])

    figure, axes = plt.subplots(
        2, len(stages), figsize=(4.2 * len(stages), 5.4), height_ratios=(3, 1), sharex=True, sharey="row", squeeze=False
    )
    for (stage, values), (diagram, histogram) in zip(stages.items(), axes.T):
        measured = values[top >= 0], hits[top >= 0]
        figures = f"ECE {calibration_error(*measured):.4f}, Brier {brier_score(*measured):.4f}"
        print(f"{stage}: {figures}")
        mean, share, _ = reliability(*measured)
        diagram.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        diagram.plot(mean, share, marker="o", markersize=4, label=figures)
        diagram.set(title=f"{stage} calibration")
        diagram.legend(loc="upper left", fontsize=8, frameon=False)
        histogram.hist(measured[0], bins=40, range=(0, 1))
        histogram.set(xlabel="score")
    axes[0, 0].set(ylabel="share of true labels", xlim=(0, 1), ylim=(0, 1))
    axes[1, 0].set(ylabel="labels")
    figure.suptitle(f"{PurePath(name).name}, {arguments.split}: first {RANKS} labels of {len(texts)} texts", fontsize=9)
    figure.tight_layout()
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()
