"""Training and prediction as users run them; --plugin, --data, --preset and --epochs choose what is trained.

Prediction starts from the raw text. The linear label trees beside it read TF-IDF of the full text: other models, with
figures of their own (bench/results/README.md), which tell what the time of a deep model is to be weighed against.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import xmplug
from xmplug.data import LabelSet, load_dataset
from xmplug.inference import uses_bfloat16

pytestmark = pytest.mark.full
INSTALL = "pip install -r bench/requirements.txt"
BEST, BATCH, SINGLE = 5, 500, 200  # labels of a prediction, texts of the batch, rounds of a single text


@dataclass(frozen=True)
class Trained:
    run: str
    seconds: float  # of everything
    rate: float  # documents a second, in training steps
    peak: int  # bytes held at most
    metric: float  # nDCG@5 on dev


def train(kernels: str, plugin: str, data: str, preset: str, epochs: str) -> Trained:
    """A training in a process of its own."""
    run = tempfile.mkdtemp(prefix="xmplug-bench-") + "/run"
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, plugin, data, preset, epochs, run],
        env=os.environ | {"XMPLUG_KERNELS": kernels},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Trained(run=run, seconds=time.perf_counter() - begun, **json.loads(done.stdout.splitlines()[-1]))


def train_and_report(plugin: str, data: str, preset: str, epochs: str, run: str) -> None:
    from xmplug.training import Listener, Progress

    class Clock(Listener):
        """Counts steps, and the seconds between the first and the last step of each level, evaluations included."""

        steps, seconds, before, metric = 0, 0.0, 0.0, 0.0

        def step(self, progress: Progress) -> None:
            now = time.perf_counter()
            if progress.step > 1:
                self.steps, self.seconds = self.steps + 1, self.seconds + now - self.before
            self.before = now

        def evaluated(self, record: Mapping[str, Any]) -> None:
            self.metric = record["nDCG@5"]

    clock = Clock()
    tagger = xmplug.train(plugin, data, run, preset=preset, options={"training.epochs": epochs}, listener=clock)
    rate = clock.steps * tagger.models[0].config.training.batch_size / clock.seconds
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rate": rate, "peak": peak, "metric": clock.metric}))


@pytest.fixture(scope="module")
def settings(request: pytest.FixtureRequest) -> tuple[str, str, str, str]:
    names = ("--plugin", "--data", "--preset", "--epochs")
    plugin, data, preset, epochs = (request.config.getoption(name) for name in names)
    return plugin, data, preset, epochs


@pytest.fixture(scope="module")
def ours(settings: tuple[str, str, str, str]) -> Trained:
    return train("native", *settings)


@pytest.mark.parametrize("peer", ["reference"])
def test_training(benchmark: Any, settings: tuple[str, str, str, str], ours: Trained, peer: str) -> None:
    plugin, data, preset, epochs = settings
    theirs = benchmark.pedantic(train, (peer, *settings), rounds=1)
    assert ours.metric == pytest.approx(theirs.metric, abs=0.01)
    benchmark.extra_info.update(
        op=f"xmplug train {plugin}",
        shape=f"{data}, preset {preset}, epochs {epochs}",
        dtype="bfloat16" if uses_bfloat16("auto") else "float32",
        threads=torch.get_num_threads(),
        implementation=peer,
        ours=[ours.seconds],
        rate=f"{ours.rate:,.0f} documents/s (peer {theirs.rate:,.0f})",
        memory=theirs.peak,
        memory_ours=ours.peak,
        metric=theirs.metric,
        metric_ours=ours.metric,
    )


@lru_cache(maxsize=1)
def texts_of(data: str) -> list[str]:
    dataset = load_dataset(data)
    return list(itertools.islice(dataset.split("dev").texts(), BATCH))


@lru_cache(maxsize=1)
def linear_data(data: str) -> tuple[Any, csr_matrix, csr_matrix]:
    """A fitted vectorizer, the training texts' features, and their labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    dataset = load_dataset(data)
    split = dataset.split("train")
    labels = LabelSet.build(split.label_lists(), dataset.declared)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=200_000, dtype=np.float32)
    features = vectorizer.fit_transform(split.texts())
    return vectorizer, features, split.targets(labels)[:, : labels.num_trained].tocsr().astype(np.float32)


def pecos(data: str, folder: str) -> Callable[[list[str]], object]:
    xmc = pytest.importorskip("pecos.xmc", reason=INSTALL)
    model = pytest.importorskip("pecos.xmc.xlinear.model").XLinearModel
    vectorizer, features, targets = linear_data(data)
    tree = xmc.Indexer.gen(xmc.LabelEmbeddingFactory.create(targets, features, method="pifa"))
    model.train(features, targets, C=tree).save(folder)
    ready = model.load(folder, is_predict_only=True)

    def predict(texts: list[str]) -> object:
        threads = min(len(texts), torch.get_num_threads())
        return ready.predict(vectorizer.transform(texts), only_topk=BEST, beam_size=20, threads=threads)

    return predict


def omikuji(data: str, folder: str) -> Callable[[list[str]], object]:
    model = pytest.importorskip("omikuji", reason=INSTALL).Model
    vectorizer, features, targets = linear_data(data)
    with open(f"{folder}/train.txt", "w", encoding="utf-8") as file:
        print(*features.shape, targets.shape[1], file=file)
        for row, true in zip(features, targets):
            cells = (f"{column}:{value:.6g}" for column, value in zip(row.indices, row.data))
            print(",".join(map(str, true.indices)), *cells, file=file)
    trained = model.train_on_data(f"{folder}/train.txt")

    def predict(texts: list[str]) -> object:
        rows = [list(zip(row.indices.tolist(), row.data.tolist())) for row in vectorizer.transform(texts)]
        return [trained.predict(row, beam_size=20, top_k=BEST) for row in rows]

    return predict


def napkinxc(data: str, folder: str) -> Callable[[list[str]], object]:
    models = pytest.importorskip("napkinxc.models", reason=INSTALL)
    vectorizer, features, targets = linear_data(data)
    model = models.PLT(folder, seed=1)
    model.fit(features, [row.indices.tolist() for row in targets])
    model.load()
    return lambda texts: model.predict(vectorizer.transform(texts), top_k=BEST)


PEERS: dict[str, Callable[[str, str], Callable[[list[str]], object]]] = {
    "linear tree, PECOS": pecos,
    "linear tree, omikuji": omikuji,
    "linear tree, napkinxc": napkinxc,
}


@pytest.fixture(scope="module")
def predictor() -> Callable[[str, str], Callable[[list[str]], object]]:
    """The predict function of a peer, trained once."""
    made = {}

    def get(peer: str, data: str) -> Callable[[list[str]], object]:
        if peer not in made:
            made[peer] = PEERS[peer](data, tempfile.mkdtemp(prefix="xmplug-bench-"))
        return made[peer]

    return get


@pytest.mark.parametrize("peer", ["native", "reference", *PEERS])
@pytest.mark.parametrize("number", [1, BATCH])
def test_prediction(
    compare: Callable[..., None],
    settings: tuple[str, str, str, str],
    ours: Trained,
    predictor: Callable[[str, str], Callable[[list[str]], object]],
    number: int,
    peer: str,
) -> None:
    (plugin, data, preset, _), texts = settings, texts_of(settings[1])
    tagger = xmplug.load(ours.run)
    each = itertools.cycle([text] for text in texts)
    theirs = predictor(peer, data) if peer in PEERS else tagger.predict

    def batch() -> list[str]:
        return next(each) if number == 1 else texts

    compare(
        op="prediction, one text" if number == 1 else f"prediction, {len(texts):,} texts",
        shape=f"{plugin} on {data}, preset {preset}",
        dtype="bfloat16" if uses_bfloat16("auto") else "float32",
        peer=peer,
        ours=lambda: tagger.predict(batch(), BEST),
        theirs=lambda: theirs(batch()),
        check=lambda result: None,
        documents=min(number, len(texts)),
        rounds=SINGLE if number == 1 else None,
    )


if __name__ == "__main__":
    train_and_report(*sys.argv[1:])
