"""Several runs as one, and scores as probabilities."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.sparse import csr_matrix
from sklearn.isotonic import IsotonicRegression

import xmplug
from xmplug.calibration import Calibration, Isotonic, Platt
from xmplug.cli.calibrate import command as calibrate_command
from xmplug.combination import align, highest, weighted_mean
from xmplug.data import load_dataset
from xmplug.evaluation import evaluate_run, rank_texts
from xmplug.inference import Ensemble, Tagger
from xmplug.metrics import true_places
from xmplug.refinement import fit_weights

from .conftest import PLT, QUICK

TEXTS = ["word1x1 word1x2", "", "word2x0 noise3 " * 40, "word5x1 word5x3 word9x2"]


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two flat runs and one with a tree too narrow to reach all labels, all a little trained."""
    folder = tmp_path_factory.mktemp("members")
    narrow = PLT | {"label_structure.beam": 1, "training.epochs": 6}
    for name, options in {"a": {}, "b": {"training.seed": 1}, "narrow": narrow}.items():
        xmplug.train("attentionxml", corpus, folder / name, options=QUICK | {"training.epochs": 4} | options)
    return [folder / name for name in ("a", "b", "narrow")]


@pytest.fixture
def copy(runs: list[Path], tmp_path: Path) -> Path:
    """A run to calibrate."""
    return Path(shutil.copytree(runs[0], tmp_path / "copy"))


class _Given(Tagger):
    """Gives the same lists for all texts."""

    def __init__(self, labels: list[list[int]], scores: list[list[float]], known: int = 9):
        self.lists = np.array(labels), np.array(scores, np.float32)
        self.models, self.calibration = [], None
        self.labels = SimpleNamespace(ids=[str(label) for label in range(known)], num_trained=known)  # type: ignore[assignment]

    def _plain_lists(self, texts, depth):  # type: ignore[no-untyped-def]
        return self.lists


def _mean_as_it_was(rankings: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """How ensembles were averaged row by row before there were methods to combine."""
    texts = len(rankings[0][0])
    labels, scores = np.full((texts, k), -1, np.int64), np.zeros((texts, k), np.float32)
    for row in range(texts):
        known = np.concatenate([ranking[0][row] for ranking in rankings])
        found, place = np.unique(known, return_inverse=True)
        total = np.bincount(place, np.concatenate([ranking[1][row] for ranking in rankings]).astype(np.float64))
        total[found < 0] = -1.0
        best = np.lexsort((found, -total))[:k]
        best = best[found[best] >= 0]
        labels[row, : len(best)], scores[row, : len(best)] = found[best], total[best] / len(rankings)
    return labels, scores


def _scores(tagger: Tagger, text: str, k: int = 30) -> dict[str, float]:
    return {prediction.label: prediction.score for prediction in tagger.predict([text], k)[0]}


# Combining -----------------------------------------------------------------------------------------------------------


def test_a_label_counts_0_where_it_is_not_in_a_list() -> None:
    first, second = _Given([[3, 1, -1]], [[0.9, 0.5, 0]]), _Given([[1, 2, 7]], [[0.8, 0.5, 0.1]])
    labels, scores = Ensemble([first, second]).rank(["x"], 6)
    assert labels.tolist() == [[1, 3, 2, 7, -1, -1]]
    assert scores[0] == pytest.approx([0.65, 0.45, 0.25, 0.05, 0, 0])


def test_weights_are_normalised_and_ties_go_to_the_smaller_label() -> None:
    first, second = _Given([[3, 1]], [[0.9, 0.6]]), _Given([[1, 3]], [[0.5, 0.4]])
    labels, scores = Ensemble([first, second], [3, 1]).rank(["x"], 2)
    assert labels.tolist() == [[3, 1]]
    assert scores[0] == pytest.approx([(3 * 0.9 + 0.4) / 4, (3 * 0.6 + 0.5) / 4])
    labels, scores = Ensemble([_Given([[5, 2]], [[0.5, 0.5]]), _Given([[2, 5]], [[0.5, 0.5]])]).rank(["x"], 1)
    assert (labels.tolist(), scores.tolist()) == ([[2]], [[0.5]])


def test_ranks_need_no_scores_that_compare() -> None:
    """Reciprocal rank fusion by hand: 1 / (60 + rank), times 61, in the mean over members."""
    first, second = _Given([[3, 1]], [[0.9, 0.1]]), _Given([[1, 4]], [[1e-9, 1e-12]])
    labels, scores = Ensemble([first, second], by_rank=True).rank(["x"], 3)
    assert labels.tolist() == [[1, 3, 4]]
    assert scores[0] == pytest.approx([(61 / 62 + 1) / 2, 1 / 2, 61 / 62 / 2])
    labels, scores = Ensemble([first, first], by_rank=True).rank(["x"], 2)
    assert scores[0] == pytest.approx([1, 61 / 62])


def test_the_mean_is_what_it_was() -> None:
    random = np.random.default_rng(0)
    lists = []
    for width in (50, 50, 20):
        labels = np.argsort(random.random((300, 60)), axis=1)[:, :width]
        scores = -np.sort(-random.random((300, width)).astype(np.float32).round(2))
        labels[random.random(300) < 0.1, width // 2 :] = -1
        lists.append((labels, np.where(labels >= 0, scores, 0)))
    union, scores = align(lists)
    for k in (1, 5, 60, 100):
        labels, means = highest(union, weighted_mean(scores, [1, 1, 1]), k)
        expected = _mean_as_it_was(lists, k)
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_array_equal(means, expected[1])


def test_fitted_weights_leave_out_a_member_that_guesses_and_keep_alike_ones_alike() -> None:
    random = np.random.default_rng(0)
    truth = csr_matrix(random.random((200, 20)) < 0.15)
    known = np.tile(np.arange(20), (200, 1))
    good = truth.toarray() * 0.2 + 0.1 * random.random((200, 20))
    labels, scores = align([(known, good), (known, random.random((200, 20)))])
    assert fit_weights(labels, scores, truth).tolist() == [1, 0]
    labels, scores = align([(known, good), (known, good)])
    assert fit_weights(labels, scores, truth).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("k", [1, 5, 30])
def test_an_ensemble_of_the_old_format_gives_the_same_numbers(runs: list[Path], tmp_path: Path, k: int) -> None:
    for number, run in enumerate(runs):
        shutil.copytree(run, tmp_path / f"member-{number}")
    members = [f"member-{number}" for number in range(len(runs))]
    (tmp_path / "xmplug.json").write_text(json.dumps({"format": 1, "state": "complete", "members": members}))
    expected = _mean_as_it_was([xmplug.load(run).rank(TEXTS, max(10 * k, 50)) for run in runs], k)
    found = xmplug.load(tmp_path).rank(TEXTS, k)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("method", ["mean", "weighted", "fitted", "ranks"])
def test_what_is_written_is_what_was_made(method: str, runs: list[Path], corpus: Path, tmp_path: Path) -> None:
    weights = [0.5, 0.2, 0.3] if method == "weighted" else None
    made = xmplug.ensemble(runs, tmp_path / "e", method=method, weights=weights)
    loaded = xmplug.load(tmp_path / "e")
    assert loaded.predict(TEXTS, 12) == made.predict(TEXTS, 12)
    assert sum(map(len, loaded.predict(TEXTS, 99))) == 4 * 30
    assert all(0 <= found.score <= 1 for row in loaded.predict(TEXTS, 99) for found in row)
    explained = loaded.explain("noise1 word0x1 noise2 word0x2", k=2)
    assert [item.prediction for item in explained] == loaded.predict(["noise1 word0x1 noise2 word0x2"], 2)[0]
    ours = evaluate_run(tmp_path / "e").rows["model"]["nDCG@5"]
    assert ours > min(evaluate_run(run).rows["model"]["nDCG@5"] for run in runs)


def test_fitted_weights_come_with_honest_figures(runs: list[Path], tmp_path: Path) -> None:
    xmplug.ensemble([runs[0], runs[0]], tmp_path / "e", method="fitted")
    manifest = json.loads((tmp_path / "e/xmplug.json").read_text())
    assert manifest["weights"] == [0.5, 0.5]
    first, second, equal, crossed = manifest["dev"]["rows"]
    dev = evaluate_run(runs[0], split="dev").rows["model"]
    for row in (first, second, equal, crossed):
        assert [row[name] for name in ("P@1", "P@5", "nDCG@5")] == pytest.approx(
            [dev["P@1"], dev["P@5"], dev["nDCG@5"]]
        )


def test_an_ensemble_in_an_ensemble_keeps_its_weights(runs: list[Path], tmp_path: Path) -> None:
    xmplug.ensemble(runs[:2], tmp_path / "inner", method="weighted", weights=[9, 1])
    outer = xmplug.ensemble([tmp_path / "inner", runs[1]], tmp_path / "outer")
    a, b = (_scores(xmplug.load(run), TEXTS[0]) for run in runs[:2])
    for label, score in _scores(xmplug.load(tmp_path / "outer"), TEXTS[0]).items():
        assert score == pytest.approx((0.9 * a[label] + 0.1 * b[label] + b[label]) / 2, abs=1e-6)
    assert len(outer.models) == 3
    xmplug.ensemble([tmp_path / "outer", tmp_path / "inner"], tmp_path / "fitted", method="fitted")


def test_an_ensemble_is_explained_by_its_heaviest_member(runs: list[Path], tmp_path: Path) -> None:
    together = xmplug.ensemble(runs[:2], tmp_path / "e", method="weighted", weights=[1, 9])

    def words(tagger: xmplug.Tagger, k: int) -> dict[str, dict[int, float]]:
        found = tagger.explain(TEXTS[0], k, words=50)
        return {item.prediction.label: {start: weight for _, start, _, weight in item.words or []} for item in found}

    light, heavy = (words(xmplug.load(run), 10) for run in runs[:2])
    for tagger in (together, xmplug.load(tmp_path / "e")):
        for label, weights in words(tagger, 3).items():
            assert weights == pytest.approx(heavy[label], abs=1e-5)
            assert weights != pytest.approx(light[label], abs=1e-5)


def test_an_ensemble_is_self_contained(runs: list[Path], tmp_path: Path) -> None:
    sources = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    (sources[0] / "checkpoints").mkdir()
    (sources[0] / "evaluation-test.json").write_text("{}")
    before = xmplug.ensemble(sources, tmp_path / "e").predict(TEXTS)
    weights = tmp_path / "e/member-0/model.safetensors"
    assert weights.stat().st_ino == (sources[0] / "model.safetensors").stat().st_ino
    assert not (tmp_path / "e/member-0/checkpoints").exists()
    assert not (tmp_path / "e/member-0/evaluation-test.json").exists()
    xmplug.calibrate(sources[0])
    assert not (tmp_path / "e/member-0/calibration.json").exists()
    for source in sources:
        shutil.rmtree(source)
    shutil.move(tmp_path / "e", tmp_path / "moved")
    assert xmplug.load(tmp_path / "moved").predict(TEXTS) == before


def test_without_hard_links_files_are_copied(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    xmplug.ensemble(runs, tmp_path / "e")
    weights = tmp_path / "e/member-0/model.safetensors"
    assert weights.read_bytes() == (runs[0] / "model.safetensors").read_bytes()
    assert weights.stat().st_nlink == 1


def test_a_killed_command_leaves_no_run_and_can_be_repeated(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "e"
    code = (
        "import os, signal, xmplug, xmplug.refinement as refinement\n"
        "refinement.save_ensemble = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"xmplug.ensemble({[str(run) for run in runs]!r}, {str(out)!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert not out.exists() and list(tmp_path.iterdir())
    with pytest.raises(xmplug.RunError, match="does not exist"):
        xmplug.load(out)
    xmplug.ensemble(runs, out)
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_leaves_nothing(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("xmplug.refinement.copy_run", refuse)
    with pytest.raises(xmplug.ResourceError, match="free space"):
        xmplug.ensemble(runs, tmp_path / "e")
    assert not list(tmp_path.iterdir())


def test_an_ensemble_can_stand_inside_one_of_its_runs(copy: Path, runs: list[Path]) -> None:
    xmplug.ensemble([copy, runs[1]], copy / "e")
    assert sorted(path.name for path in (copy / "e").iterdir()) == ["member-0", "member-1", "xmplug.json"]
    assert not (copy / "e/member-0/e").exists()


# Calibrating ---------------------------------------------------------------------------------------------------------


def test_isotonic_is_scikit_learns_and_platt_finds_a_sigmoid() -> None:
    random = np.random.default_rng(0)
    scores = random.random(4000)
    logits = np.log(scores / (1 - scores))
    hits = random.random(4000) < 1 / (1 + np.exp(1 - 2 * logits))
    asked = np.array([0, 1e-9, 0.2, 0.5, 0.77, 1])
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, hits).predict(asked)
    np.testing.assert_allclose(Isotonic.fit(scores, hits)(asked), theirs)
    platt = Platt.fit(scores, hits)
    assert (platt.slope, platt.intercept) == pytest.approx((2, -1), abs=0.15)


@pytest.mark.parametrize("kind", [Isotonic, Platt])
def test_maps_of_few_labels(kind: type[Isotonic] | type[Platt]) -> None:
    """All true, none true, one only, equal scores, 0 and 1, and higher scores that are less true."""
    for scores, hits in (
        ([0.2, 0.8, 1.0], [1, 1, 1]),
        ([0.0, 0.8], [0, 0]),
        ([0.7], [1]),
        ([0.5, 0.5, 0.5], [1, 0, 1]),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0]),
    ):
        values = kind.fit(np.array(scores), np.array(hits, bool))(np.linspace(0, 1, 50))
        assert np.all((values >= 0) & (values <= 1)) and np.all(np.diff(values) >= 0)


def test_each_rank_has_its_map_and_deeper_ranks_the_last() -> None:
    half, most = Platt(slope=0, intercept=0), Platt(slope=0, intercept=2)
    probable = 1 / (1 + np.exp(-2))
    scores = np.array([[0.9, 0.8, 0.7, 0.0]], np.float32)
    assert Calibration(method="platt", maps=(most, half))(scores)[0] == pytest.approx([probable, 0.5, 0.5, 0])
    assert Calibration(method="platt", maps=(half, most))(scores)[0] == pytest.approx([0.5, 0.5, 0.5, 0])
    assert Calibration(method="platt", maps=(most, half, half))(scores[:, :1])[0] == pytest.approx([probable])


@pytest.mark.parametrize("method", ["isotonic", "platt"])
@pytest.mark.parametrize("kind", ["run", "ensemble"])
def test_scores_change_and_rankings_do_not(
    method: str, kind: str, copy: Path, runs: list[Path], corpus: Path, tmp_path: Path
) -> None:
    run = copy
    if kind == "ensemble":
        run = tmp_path / "e"
        xmplug.ensemble(runs, run, method="ranks")
    plain = xmplug.load(run)
    made = xmplug.calibrate(run, method=method)
    calibrated = xmplug.load(run)
    assert calibrated.predict(TEXTS) == made.predict(TEXTS)
    for k in (1, 5, 30, 99):
        before, after = plain.rank(TEXTS, k), calibrated.rank(TEXTS, k)
        np.testing.assert_array_equal(after[0], before[0])
        assert after[1].dtype == np.float32 and np.all((after[1] >= 0) & (after[1] <= 1))
        assert np.all(np.diff(after[1]) <= 0)
    test = evaluate_run(run).rows["model"].values
    xmplug.calibrate(run, method="none")
    before = evaluate_run(run).rows["model"].values
    assert {name: value for name, value in test.items() if "F1" not in name} == pytest.approx(
        {name: value for name, value in before.items() if "F1" not in name}, nan_ok=True
    )


def test_first_labels_are_as_often_true_as_they_say(copy: Path, corpus: Path) -> None:
    """Isotonic regression keeps the mean: on dev, that of the first labels' scores is the share that is true."""
    tagger = xmplug.calibrate(copy, method="isotonic")
    dev = load_dataset(corpus).split("dev")
    top, scores = rank_texts(tagger, dev.texts(), 5)
    hits = true_places(top, dev.targets(tagger.labels))
    assert scores[:, 0].mean() == pytest.approx(hits[:, 0].mean(), abs=1e-6)


def test_calibrating_again_begins_with_plain_scores(copy: Path) -> None:
    plain = xmplug.load(copy).predict(TEXTS)
    xmplug.calibrate(copy)
    once = (copy / "calibration.json").read_bytes()
    xmplug.calibrate(copy)
    assert (copy / "calibration.json").read_bytes() == once
    (copy / "calibration.json").write_text("damaged")
    xmplug.calibrate(copy)
    assert (copy / "calibration.json").read_bytes() == once
    xmplug.calibrate(copy, method="none")
    assert not (copy / "calibration.json").exists()
    assert xmplug.load(copy).predict(TEXTS) == plain


def test_a_calibrated_member_takes_part_with_calibrated_scores(copy: Path, runs: list[Path], tmp_path: Path) -> None:
    calibrated = xmplug.calibrate(copy)
    together = xmplug.ensemble([copy, runs[1]], tmp_path / "e")
    a, b = _scores(calibrated, TEXTS[0]), _scores(xmplug.load(runs[1]), TEXTS[0])
    for label, score in _scores(xmplug.load(tmp_path / "e"), TEXTS[0]).items():
        assert score == pytest.approx((a[label] + b[label]) / 2, abs=1e-6)
    assert together.calibration is None


def test_through_the_command_line(runs: list[Path], tmp_path: Path) -> None:
    def command(*arguments: str, given: str = "") -> str:
        line = [sys.executable, "-m", "xmplug.cli", *arguments]
        done = subprocess.run(line, cwd=tmp_path, input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = command("ensemble", *map(str, runs), "--out", "e", "--method", "fitted")
    assert "cross-fitted" in said and "nDCG@5" in said
    said = command("calibrate", "e", "--method", "isotonic")
    assert "Brier" in said and "before" in said and "after" in said
    rows = [json.loads(line) for line in command("predict", "e", "--k", "3", given="word1x1 word1x2\n\n").splitlines()]
    expected = xmplug.load(tmp_path / "e").predict(["word1x1 word1x2", ""], 3)
    assert [[found["label"] for found in row["labels"]] for row in rows] == [[p.label for p in row] for row in expected]
    assert rows[0]["labels"][0]["score"] == pytest.approx(expected[0][0].score, abs=1e-4)
    assert "not calibrated" in command("calibrate", "e", "--method", "none")


@pytest.mark.parametrize(("after", "warns"), [(0.2, True), (0.05, False)])
def test_calibrate_says_when_scores_became_worse(after: float, warns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "ranks": 5,
        "documents": 60,
        "before": {"Brier": 0.1, "ECE": 0.1},
        "after": {"Brier": 0.09, "ECE": after},
    }
    made = SimpleNamespace(calibration=SimpleNamespace(figures=figures))
    monkeypatch.setattr("xmplug.refinement.calibrate", lambda *arguments, **options: made)
    result = CliRunner().invoke(calibrate_command, ["run"])
    assert result.exit_code == 0, result.output
    assert ("`xmplug calibrate run --method none`" in result.stderr) == warns
