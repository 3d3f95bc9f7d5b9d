"""Linear label trees side by side on one corpus: ours, PECOS XR-Linear, omikuji and napkinXC.

    pip install -r bench/requirements.txt -e . -e plugins/xmplug-linear
    python bench/linear.py debtags --threads 1,2 --seeds 3 --out linear.json
    python bench/linear.py --synthetic 1000000,500000,300000      # ours alone, on made texts: labels, texts, words

What someone would use who does not want to train a deep model: how good it is, and what it costs. Each training and
each prediction has a process of its own, one after the other, in turn forwards and backwards from one seed to the next.

- All are trained on the train split and measured on test, or on dev where there is no test. Ours reads dev too, as
  every method of xmplug does; the peers leave it alone. With --with-dev train and dev together are trained on.
- The peers read TF-IDF of the words of the full text (scikit-learn, one thread); ours makes its features itself. A
  total is what takes a corpus to a saved model: reading, features, training, saving; imports are apart. Reading is one
  pass for labels and the split. Texts are read in a second one, within "features".
- Peak memory is the high-water mark (VmHWM) of the process, Python and libraries included. The size of a model includes
  what makes the features. Latency is that of one raw text with the model loaded, features included.
- The scores of PECOS are products of squashed margins rather than probabilities, which matters to F1, and many of them
  are exactly 1: P@1 moves by some tenths of a point with the order of such ties.

The settings of the peers are their own defaults, or what their makers publish figures of; METHODS has them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

KS = (1, 3, 5)
WARM_UP, SINGLE = 30, 500  # texts predicted one by one: before the clock starts, and with it
SHOWN = ("P@1", "P@3", "P@5", "nDCG@3", "nDCG@5", "RP@5", "PSP@1", "PSP@3", "PSP@5")
STAGES = ("reading", "features", "training", "saving")
OWN_LIBRARIES = ("OMP", "MKL", "OPENBLAS", "RAYON")  # whose number of threads the environment gives

Ranking = tuple[np.ndarray, np.ndarray]  # labels (N,k), -1 = none, and scores (N,k), best first
Rank = Callable[[list[str], int], Ranking]


class Clock:
    """Seconds of each stage, by the clock and of the processor."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.processor: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun, used = time.perf_counter(), time.process_time()
        yield
        self.wall[stage] = self.wall.get(stage, 0.0) + time.perf_counter() - begun
        self.processor[stage] = self.processor.get(stage, 0.0) + time.process_time() - used


# ---- methods: each trains into a folder and loads from it


@dataclass(frozen=True)
class Peer:
    """A tree on TF-IDF. `fit` trains on features and targets and saves; `load` gives what ranks rows of features."""

    module: str
    fit: Callable[[csr_matrix, csr_matrix, Path, int, int, Clock], None]
    load: Callable[[Path, int], Callable[[csr_matrix, int], Ranking]]

    def train(self, job: Mapping[str, Any], folder: Path, clock: Clock) -> dict[str, Any]:
        with clock("imports"):
            from sklearn.feature_extraction.text import TfidfVectorizer

            from xmplug.data import load_dataset

            import_module(self.module)
        with clock("reading"):
            dataset = load_dataset(job["data"])
            split, labels = dataset.split("train"), dataset.labels
            targets = split.targets(labels)[:, : labels.num_trained].tocsr().astype(np.float32)
        with clock("features"):
            vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=200_000, dtype=np.float32)
            features = vectorizer.fit_transform(split.texts())
        (folder / "model").mkdir()
        self.fit(features, targets, folder / "model", job["threads"], job["seed"], clock)
        with clock("saving"), open(folder / "features.pickle", "wb") as file:
            pickle.dump(vectorizer, file, pickle.HIGHEST_PROTOCOL)
        return {"features": features.shape[1]}

    def open(self, folder: Path, threads: int, clock: Clock) -> tuple[Rank, None]:
        with clock("imports"):
            import_module("sklearn.feature_extraction.text")
            import_module(self.module)
        with clock("loading"):
            with open(folder / "features.pickle", "rb") as file:
                vectorizer = pickle.load(file)
            rank = self.load(folder / "model", threads)
        return lambda texts, k: rank(vectorizer.transform(texts), k), None


class Ours:
    """The plugin, as a user calls it."""

    def train(self, job: Mapping[str, Any], folder: Path, clock: Clock) -> dict[str, Any]:
        with clock("imports"):
            import xmplug.api
            from xmplug.training import Listener, Progress

        begun = time.perf_counter()
        events: list[tuple[float, str]] = []
        steps = 0

        class Timeline(Listener):
            def message(self, text: str) -> None:
                events.append((time.perf_counter() - begun, text))

            def step(self, progress: Progress) -> None:
                nonlocal steps
                steps += 1
                if steps == 1:
                    self.message("first step")

            def evaluated(self, record: Mapping[str, Any]) -> None:
                self.message(f"evaluated on dev: nDCG@5 {100 * record.get('nDCG@5', math.nan):.2f}")

        options = {"training.seed": job["seed"]} | job["options"]
        with clock("all"):
            xmplug.train("linear", job["data"], folder / "run", options=options, listener=Timeline())
        return {"events": events, "steps": steps}

    def open(self, folder: Path, threads: int, clock: Clock) -> tuple[Rank, list[str]]:
        with clock("imports"):
            import xmplug.api
        with clock("loading"):
            tagger = xmplug.load(folder / "run")
        return tagger.rank, tagger.labels.ids


def fit_pecos(features: csr_matrix, targets: csr_matrix, folder: Path, threads: int, seed: int, clock: Clock) -> None:
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    with clock("training"):
        label_features = LabelEmbeddingFactory.create(targets, features, method="pifa")
        tree = Indexer.gen(
            label_features,
            indexer_type="hierarchicalkmeans",
            nr_splits=16,
            max_leaf_size=100,
            seed=seed,
            threads=threads,
        )
        model = XLinearModel.train(features, targets, C=tree, threads=threads)
    with clock("saving"):
        model.save(str(folder))


def load_pecos(folder: Path, threads: int) -> Callable[[csr_matrix, int], Ranking]:
    from pecos.xmc.xlinear.model import XLinearModel

    model = XLinearModel.load(str(folder), is_predict_only=True)

    def rank(features: csr_matrix, k: int) -> Ranking:
        used = min(features.shape[0], threads)
        scores = model.predict(features, only_topk=k, beam_size=20, threads=used)
        rows = zip(scores.indptr[:-1], scores.indptr[1:])
        return best([(scores.indices[start:end], scores.data[start:end]) for start, end in rows], k)

    return rank


def omikuji(**settings: Any) -> Peer:
    def fit(features: csr_matrix, targets: csr_matrix, folder: Path, threads: int, seed: int, clock: Clock) -> None:
        from omikuji import Model
        from sklearn.datasets import dump_svmlight_file

        parameters = Model.default_hyper_param()
        for name, value in settings.items():
            setattr(parameters, name, value)
        with tempfile.NamedTemporaryFile(dir=folder.parent) as file:
            with clock("features"):  # it trains on files only
                file.write(f"{features.shape[0]} {features.shape[1]} {targets.shape[1]}\n".encode())
                dump_svmlight_file(features, targets, file, multilabel=True)
                file.flush()
            with clock("training"):
                model = Model.train_on_data(file.name, parameters, threads)
        with clock("saving"):
            model.save(str(folder))

    def load(folder: Path, threads: int) -> Callable[[csr_matrix, int], Ranking]:
        from omikuji import Model

        model = Model.load(str(folder))
        model.init_prediction_thread_pool(threads)

        def rank(features: csr_matrix, k: int) -> Ranking:
            rows = []
            for start, end in zip(features.indptr[:-1], features.indptr[1:]):
                cells = zip(features.indices[start:end].tolist(), features.data[start:end].tolist())
                rows.append(pairs(model.predict(cells, top_k=k)))
            return best(rows, k)

        return rank

    return Peer("omikuji", fit, load)


def napkinxc(**settings: Any) -> Peer:
    def fit(features: csr_matrix, targets: csr_matrix, folder: Path, threads: int, seed: int, clock: Clock) -> None:
        from napkinxc.models import PLT

        with clock("training"):  # and saving: it writes what it has. Its seeds 0 and 1 are the same
            PLT(str(folder), seed=seed + 1, threads=threads, **settings).fit(features, targets)

    def load(folder: Path, threads: int) -> Callable[[csr_matrix, int], Ranking]:
        from napkinxc.models import PLT

        model = PLT(str(folder), threads=threads, **settings)
        model.load()
        return lambda features, k: best([pairs(row) for row in model.predict_proba(features, top_k=k)], k)

    return Peer("napkinxc.models", fit, load)


def pairs(found: list[tuple[int, float]]) -> Ranking:
    labels, scores = zip(*found) if found else ((), ())
    return np.array(labels, dtype=np.int64), np.array(scores, dtype=np.float32)


def best(rows: list[Ranking], k: int) -> Ranking:
    """The k highest scores of each row, best first: labels (N,k), -1 = none, and scores (N,k)."""
    labels = np.full((len(rows), k), -1, dtype=np.int64)
    values = np.zeros((len(rows), k), dtype=np.float32)
    for row, (found, scores) in enumerate(rows):
        order = np.argsort(-scores, kind="stable")[:k]
        labels[row, : len(order)] = found[order]
        values[row, : len(order)] = scores[order]
    return labels, values


@dataclass(frozen=True)
class Method:
    package: str
    module: str
    settings: str
    does: Ours | Peer


# The part of a name before the comma is what --only takes.
METHODS = {
    "xmplug": Method("xmplug-linear", "xmplug", "--plugin linear", Ours()),
    # The defaults of its trainer, but a beam of 20 instead of 10: the linear tree of results/README.md.
    "pecos": Method(
        "libpecos",
        "pecos",
        "PIFA tree, 16-way splits, leaves of 100 labels, squared hinge, C 1; beam 20",
        Peer("pecos.xmc.xlinear.model", fit_pecos, load_pecos),
    ),
    # Its own defaults, which are Parabel's.
    "omikuji, Parabel": Method(
        "omikuji",
        "omikuji",
        "3 trees, balanced 2-means, leaves of 100 labels, squared hinge, C 1; beam 10; text by text; no seed",
        omikuji(),
    ),
    # What its README measures beside Bonsai.
    "omikuji, Bonsai": Method(
        "omikuji",
        "omikuji",
        "3 trees, 100-means, not balanced, depth 3, squared hinge, C 1; beam 10; text by text; no seed",
        omikuji(cluster_k=100, cluster_balanced=False, max_depth=3),
    ),
    # Its own defaults.
    "napkinxc, logistic": Method(
        "napkinxc",
        "napkinxc",
        "PLT, balanced 2-means, leaves of 100 labels, logistic loss, C 10; exact search",
        napkinxc(tree_type="hierarchicalKmeans", loss="log", liblinear_c=10.0),
    ),
    # The other loss that its makers publish figures of, with their C.
    "napkinxc, hinge": Method(
        "napkinxc",
        "napkinxc",
        "PLT, balanced 2-means, leaves of 100 labels, squared hinge, C 1; exact search",
        napkinxc(tree_type="hierarchicalKmeans", loss="l2", liblinear_c=1.0),
    ),
}


# ---- what runs in a process of its own


def high_water_mark() -> int:
    """Bytes that this process has held at most. (ru_maxrss would begin with what the parent held.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def train(job: Mapping[str, Any]) -> dict[str, Any]:
    clock, folder = Clock(), Path(job["folder"])
    more = METHODS[job["method"]].does.train(job, folder, clock)
    peak = high_water_mark()
    stages = [stage for stage in clock.wall if stage != "imports"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "seconds": clock.wall | {"total": sum(clock.wall[stage] for stage in stages)},
        "processor seconds": sum(clock.processor[stage] for stage in stages),
        "peak bytes": peak,
        "model bytes": sum(path.stat().st_size for path in files),
        **more,
    }


def predict(job: Mapping[str, Any]) -> dict[str, Any]:
    from xmplug.data import load_dataset

    clock, folder = Clock(), Path(job["folder"])
    texts = list(load_dataset(job["data"]).split(job["split"]).texts())
    rank, ids = METHODS[job["method"]].does.open(folder, job["threads"], clock)
    single = []
    for at in range(WARM_UP + SINGLE):
        text = [texts[at % len(texts)]]
        begun = time.perf_counter()
        rank(text, KS[-1])
        single.append(time.perf_counter() - begun)
    with clock("prediction"):
        labels, scores = rank(texts, KS[-1])
    peak = high_water_mark()
    np.savez(folder / "ranking.npz", labels=labels, scores=scores)
    if ids is not None:
        (folder / "ids.json").write_text(json.dumps({int(at): ids[at] for at in np.unique(labels[labels >= 0])}))
    return {
        "seconds": clock.wall,
        "texts per second": len(texts) / clock.wall["prediction"],
        "p50 ms": 1e3 * float(np.percentile(single[WARM_UP:], 50)),
        "p99 ms": 1e3 * float(np.percentile(single[WARM_UP:], 99)),
        "peak bytes": peak,
    }


def apart(stage: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """`train` or `predict` in a process of its own, with as many threads as the job says."""
    environment = os.environ | {f"{library}_NUM_THREADS": str(job["threads"]) for library in OWN_LIBRARIES}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, stage, json.dumps(job)],
        env=environment | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError(f"{stage} failed with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    result: dict[str, Any] = json.loads((Path(job["folder"]) / f"{stage}.json").read_text())
    return result | {"process seconds": time.perf_counter() - begun}


# ---- corpora


def with_dev(spec: str, folder: Path) -> str:
    """The corpus with dev as part of train. Of dev one document is left, which is in train as well: without any, a
    tenth of train would be drawn."""
    from xmplug.data import load_dataset, write_documents, write_labels

    dataset = load_dataset(spec)
    folder.mkdir()
    write_documents(chain(dataset.split("train"), dataset.split("dev")), folder / "train.jsonl")
    write_documents(islice(dataset.split("dev"), 1), folder / "dev.jsonl")
    write_documents(dataset.split("test"), folder / "test.jsonl")
    if dataset.declared is not None:
        write_labels(dataset.declared, folder / "labels.jsonl")
    return str(folder)


def synthesize(labels: int, texts: int, words: int, folder: Path) -> str:
    """A corpus of made texts, with about 5 labels and 100 distinct words each, written as it is made.

    Labels stand in topics of 100. A text has a few labels beside each other, so that each label is in train if there
    are at most 4 times as many labels as texts; others of the same topic; and some from anywhere, few of them often
    (Zipf). A label brings 6 of its own 8 words and 3 of the 20 of its topic; the rest are Zipf's. Always the same.
    """
    folder.mkdir()
    vocabulary = [spelled(place) for place in range(words)]
    word_shares = np.cumsum(1.0 / np.arange(10, 10 + words))
    label_shares = np.cumsum(np.arange(10, 10 + labels) ** -0.8)
    beside = min(4, -(-labels // texts))
    groups = -(-labels // beside)
    for number, (split, size) in enumerate(
        {"train": texts, "dev": min(1_000, max(texts // 10, 1)), "test": min(10_000, max(texts // 10, 1))}.items()
    ):
        rng = np.random.default_rng([0, number])
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for start in range(0, size, 5_000):
                count = min(5_000, size - start)
                group = np.arange(start, start + count) if split == "train" else rng.integers(0, groups, count)
                first = group % groups * coprime(groups) % groups * beside  # (N,)
                near = first[:, None] // 100 * 100 + rng.integers(0, 100, (count, 10))
                drawn = np.searchsorted(label_shares, rng.random((count, 10)) * label_shares[-1])
                far = drawn * coprime(labels) % labels
                more = np.where(rng.random((count, 10)) < 0.5, near, far)
                has = np.arange(10) < rng.poisson(5.1 - beside, count)[:, None]
                own = np.concatenate([first[:, None] + np.arange(beside), np.where(has, more, -1)], axis=1)  # (N,C)
                own = np.where(own < labels, own, -1)

                of_label = scattered(own[:, :, None] * 8 + rng.integers(0, 8, (*own.shape, 6)), 1, words)
                of_topic = scattered(own[:, :, None] // 100 * 20 + rng.integers(0, 20, (*own.shape, 3)), 2, words)
                brought = np.where(own[:, :, None] >= 0, np.concatenate([of_label, of_topic], axis=2), -1)
                common = np.searchsorted(word_shares, rng.random((count, 120)) * word_shares[-1])
                common = np.where(np.arange(120) < rng.integers(30, 121, count)[:, None], common, -1)
                mixed = rng.permuted(np.concatenate([brought.reshape(count, -1), common], axis=1), axis=1)  # (N,W)
                for row, true in zip(mixed, own.tolist()):
                    text = " ".join([vocabulary[place] for place in row[row >= 0].tolist()])
                    names = [f"label{label}" for label in dict.fromkeys(true) if label >= 0]
                    file.write(json.dumps({"text": text, "labels": names}) + "\n")
    return str(folder)


def spelled(number: int) -> str:
    """A word of letters for each number: aa, ba, ..."""
    letters = ""
    number += 26
    while number >= 0:
        number, letter = divmod(number, 26)
        letters, number = letters + chr(97 + letter), number - 1
    return letters


def coprime(number: int) -> int:
    """A factor that scatters 0 to number - 1, each to a place of its own."""
    factor = int(0.618 * number) | 1
    while math.gcd(factor, number) > 1:
        factor += 2
    return factor


def scattered(numbers: np.ndarray, salt: int, below: int) -> np.ndarray:
    """A number from 0 to below - 1 for each number, always the same (the finalizer of splitmix64)."""
    mixed = (numbers.astype(np.uint64) + np.uint64(salt << 40)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(below)).astype(np.int64)


# ---- the whole


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure linear label trees on a corpus, side by side.")
    parser.add_argument("data", nargs="?", help="name of a corpus, or a folder")
    parser.add_argument(
        "--synthetic", metavar="LABELS,TEXTS,WORDS", help="a made corpus instead; ours alone, if --only says no more"
    )
    parser.add_argument("--only", help="methods, of xmplug,pecos,omikuji,napkinxc (all)")
    parser.add_argument("--threads", default="1", help="numbers of threads, e.g. 1,2 (1)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="repetitions, each with another seed (1)")
    parser.add_argument("--with-dev", action="store_true", help="train on dev as well: nothing is chosen on it here")
    parser.add_argument("--split", choices=("test", "dev"), help="what to measure on (test, where there is one)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of ours")
    parser.add_argument("--scratch", metavar="DIR", help="where models and made corpora go until the end")
    parser.add_argument("--out", metavar="FILE", help="where to write the figures as JSON")
    given = parser.parse_args()
    if (given.data is None) == (given.synthetic is None):
        parser.error("give a corpus or --synthetic")
    known = {name.partition(",")[0] for name in METHODS}
    wanted = set((given.only or ("xmplug" if given.synthetic else ",".join(known))).split(","))
    if wanted - known:
        parser.error(f"--only: {', '.join(sorted(wanted - known))}; there are {', '.join(sorted(known))}")
    if any("=" not in option for option in given.set):
        parser.error("--set takes NAME=VALUE")
    scratch = Path(tempfile.mkdtemp(prefix="xmplug-linear-", dir=given.scratch))
    try:
        compare(parser, given, wanted, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def compare(parser: argparse.ArgumentParser, given: argparse.Namespace, wanted: set[str], scratch: Path) -> None:
    from rich.console import Console

    from xmplug.data import load_dataset
    from xmplug.metrics import evaluate, popularity, propensity_constants

    console = Console()
    if not console.is_terminal:
        console.width = 190
    record: dict[str, Any] = {"data": given.data or f"synthetic {given.synthetic}"}
    data = given.data
    if given.synthetic:
        begun = time.perf_counter()
        data = synthesize(*map(int, given.synthetic.split(",")), scratch / "synthetic")
        record["seconds to make"] = time.perf_counter() - begun
        console.print(f"made {record['data']} in {record['seconds to make']:.1f} s", highlight=False)
    tested = given.split or ("test" if len(load_dataset(data).split("test")) else "dev")
    constants = propensity_constants(data)
    if given.with_dev:
        if tested == "dev":
            parser.error("--with-dev: dev is what is measured on")
        data = with_dev(data, scratch / "with-dev")
    dataset = load_dataset(data)
    labels, documents = dataset.labels, dataset.split(tested)
    if not len(documents):
        parser.error(f"{given.data} has no {tested} split")
    truth = documents.targets(labels)

    def quality(ranking: Ranking) -> dict[str, Any]:
        report = evaluate(ranking, truth, labels.counts, labels.num_documents, ks=KS, propensity=constants)
        return report.as_dict()

    common, share = popularity(labels.counts, labels.num_documents, KS[-1])
    methods = {name: method for name, method in METHODS.items() if name.partition(",")[0] in wanted}
    for name, method in list(methods.items()):
        if find_spec(method.module) is None:
            console.print(f"{name}: {method.package} is not installed; pip install -r bench/requirements.txt")
            del methods[name]
    record |= {
        "split": tested,
        "with dev": given.with_dev,
        "documents": len(documents),
        "training documents": labels.num_documents,
        "labels": labels.num_trained,
        "machine": machine(),
        "commit": commit(),
        "methods": {name: f"{package(method)}: {method.settings}" for name, method in methods.items()},
        "options": given.set,
        "popularity": quality((np.tile(common, (len(documents), 1)), np.tile(share, (len(documents), 1)))),
        "runs": [],
    }
    for seed in range(given.seeds):
        for threads in map(int, given.threads.split(",")):
            for name in list(methods) if seed % 2 == 0 else reversed(list(methods)):
                folder = scratch / "model"
                folder.mkdir()
                job = {"method": name, "data": data, "split": tested, "threads": threads, "seed": seed}
                job |= {"folder": str(folder), "options": dict(option.split("=", 1) for option in given.set)}
                run: dict[str, Any] = {"method": name, "threads": threads, "seed": seed, "load": os.getloadavg()[0]}
                try:
                    run["train"] = apart("train", job)
                    run["predict"] = apart("predict", job)
                    run["quality"] = quality(found(folder, labels.places))
                except RuntimeError as error:
                    run["error"] = str(error)
                shutil.rmtree(folder)
                record["runs"].append(run)
                console.print(line(run), highlight=False, markup=False)
                if given.out:  # at once: later runs can take hours
                    Path(given.out).write_text(json.dumps(record, indent=1), encoding="utf-8")
    show(console, record)
    if any("error" in run for run in record["runs"]):
        sys.exit(1)


def found(folder: Path, places: Mapping[str, int]) -> Ranking:
    """The ranking that a process left, with the labels' places in the corpus."""
    with np.load(folder / "ranking.npz") as file:
        labels, scores = file["labels"].astype(np.int64), file["scores"]
    if (folder / "ids.json").exists():
        ids = json.loads((folder / "ids.json").read_text())
        place = np.full(max(map(int, ids), default=-1) + 2, -1, dtype=np.int64)  # the last one is for -1
        for at, id in ids.items():
            place[int(at)] = places[id]
        labels = place[labels]
    return labels, scores


def machine() -> dict[str, Any]:
    """Processor, memory and versions, asked in a process of its own: it imports torch."""
    sys.path.insert(0, str(Path(__file__).parent))
    from machine import describe

    return describe() | {"load average": os.getloadavg()}


def commit() -> str | None:
    """The commit that runs, with a + where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def package(method: Method) -> str:
    try:
        return f"{method.package} {version(method.package)}"
    except PackageNotFoundError:
        return method.package


def line(run: Mapping[str, Any]) -> str:
    """One run, as soon as it is over."""
    start = f"{run['method']}, threads {run['threads']}, seed {run['seed']}: "
    if "error" in run:
        return start + run["error"].strip().splitlines()[-1]  # the rest is in the JSON
    return start + (
        f"trained in {run['train']['seconds']['total']:.1f} s, {run['predict']['texts per second']:,.0f} texts/s, "
        f"nDCG@5 {100 * run['quality']['values']['nDCG@5']:.2f}"
    )


def show(console: Any, record: Mapping[str, Any]) -> None:
    from rich.table import Table

    rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for run in record["runs"]:
        if "error" not in run:
            rows.setdefault((run["method"], run["threads"]), []).append(run)

    good = Table(title=f"{record['data']}, {record['split']}: quality, %", title_justify="left")
    cost = Table(title="from the corpus to a saved model, seconds", title_justify="left")
    use = Table(title="prediction from raw text", title_justify="left")
    names = [*STAGES, "total", "processor", "peak GiB", "model MB"]
    for table, columns in ((good, SHOWN), (cost, names), (use, ("load s", "texts/s", "p50 ms", "p99 ms", "peak GiB"))):
        table.add_column("method", no_wrap=True)
        table.add_column("threads", justify="right")
        for name in columns:
            table.add_column(name, justify="right")
    values = record["popularity"]["values"]
    good.add_row("most frequent labels", "", *(percent([values[name]]) for name in SHOWN))
    for (name, threads), runs in rows.items():
        start = (name, str(threads))
        good.add_row(*start, *(percent([run["quality"]["values"][figure] for run in runs]) for figure in SHOWN))

        trained = [run["train"] for run in runs]
        cost.add_row(
            *start,
            *(middle([each["seconds"].get(stage) for each in trained], ".2f") for stage in (*STAGES, "total")),
            middle([each["processor seconds"] for each in trained], ".2f"),
            middle([each["peak bytes"] / 2**30 for each in trained], ".2f"),
            middle([each["model bytes"] / 1e6 for each in trained], ",.1f"),
        )
        predicted = [run["predict"] for run in runs]
        use.add_row(
            *start,
            middle([each["seconds"]["loading"] for each in predicted], ".2f"),
            middle([each["texts per second"] for each in predicted], ",.0f"),
            middle([each["p50 ms"] for each in predicted], ".2f"),
            middle([each["p99 ms"] for each in predicted], ".2f"),
            middle([each["peak bytes"] / 2**30 for each in predicted], ".2f"),
        )
    for table in (good, cost, use) if rows else (good,):
        console.print(table)
    numbers = "documents", "training documents", "labels"
    console.print("; ".join(f"{record[name]:,} {name}" for name in numbers), highlight=False)
    console.print("quality: mean over the seeds (± standard deviation); all else: median", highlight=False)
    for name, settings in record["methods"].items():
        console.print(f"{name}: {settings}", highlight=False, markup=False)
    for (name, _), runs in rows.items():
        events = "; ".join(f"{seconds:.1f} s {text}" for seconds, text in runs[0]["train"].get("events", []))
        if events:
            console.print(f"{name}, threads {runs[0]['threads']}: {events}", highlight=False, markup=False)


def percent(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def middle(values: list[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(statistics.median(known), form) if known else ""


if __name__ == "__main__":
    if sys.argv[1:2] in (["train"], ["predict"]) and len(sys.argv) == 3:
        asked = json.loads(sys.argv[2])
        outcome = (train if sys.argv[1] == "train" else predict)(asked)
        (Path(asked["folder"]) / f"{sys.argv[1]}.json").write_text(json.dumps(outcome))
    else:
        main()
