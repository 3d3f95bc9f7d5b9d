"""Datasets: what is found where, splits, label sets and targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xmplug.data import Document, Documents, LabelSet, load_dataset, synthetic_dataset, write_documents
from xmplug.data.dataset import problems
from xmplug.errors import DataError


def documents(count: int, start: int = 0) -> list[Document]:
    return [Document(f"d{n}", f"text {n}", (f"label{n % 10}",)) for n in range(start, start + count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 documents and 10 labels in train, 5 in test, no dev."""
    write_documents(documents(20), tmp_path / "train.jsonl")
    write_documents(documents(5, 20), tmp_path / "test.jsonl.xz")
    return tmp_path


def test_dev_is_drawn_from_train_and_test_left_alone(folder: Path) -> None:
    dataset = load_dataset(folder, seed=3)
    train, dev, test = (dataset.split(name) for name in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (18, 2, 5)
    assert sorted([*train, *dev]) == sorted(documents(20))
    assert list(test) == documents(5, 20)
    assert [d.id for d in train] == [d.id for d in documents(20) if d in set(train)]  # in the file's order
    again = load_dataset(folder, seed=3)
    assert list(again.split("dev")) == list(dev)
    assert again.split("dev").fingerprint == dev.fingerprint != train.fingerprint
    assert any(list(load_dataset(folder, seed=seed).split("dev")) != list(dev) for seed in range(4, 8))
    assert len(load_dataset(folder, dev_fraction=0.5).split("dev")) == 10
    assert len(load_dataset(folder, dev_fraction=0.001).split("dev")) == 1


def test_a_given_dev_split_is_used(folder: Path) -> None:
    write_documents(documents(3, 40), folder / "valid.jsonl")
    dataset = load_dataset(folder)
    assert list(dataset.split("dev")) == documents(3, 40)
    assert len(dataset.split("train")) == 20


def test_only_the_split_asked_for_is_read(folder: Path) -> None:
    (folder / "train.jsonl").write_text("broken")
    dataset = load_dataset(folder)
    assert list(dataset.split("test")) == documents(5, 20)
    with pytest.raises(DataError, match=r"train.jsonl, line 1"):
        len(dataset.split("train"))


def test_one_file_is_train(folder: Path) -> None:
    dataset = load_dataset(folder / "train.jsonl")
    assert len(dataset.split("train")) + len(dataset.split("dev")) == 20
    assert len(dataset.split("test")) == 0
    assert list(dataset.split("test").texts()) == []


def test_labels_of_dev_and_test_do_not_count_as_trained(tmp_path: Path) -> None:
    write_documents([Document("1", "a", ("x",)), Document("2", "b", ("x", "y"))], tmp_path / "train.jsonl")
    write_documents([Document("3", "c", ("z", "y", "w"))], tmp_path / "dev.jsonl")
    dataset = load_dataset(tmp_path)
    assert dataset.labels.ids == ["x", "y"]
    targets = dataset.split("dev").targets(dataset.labels)
    assert targets.shape == (1, 4)  # w and z behind
    assert targets.indices.tolist() == [1, 2, 3]
    assert targets.dtype == np.int8
    train = dataset.split("train").targets(dataset.labels)
    np.testing.assert_array_equal(train.toarray(), [[1, 0], [1, 1]])
    assert list(dataset.split("dev").label_lists()) == [["z", "y", "w"]]


def test_targets_count_a_repeated_label_once_and_keep_empty_rows() -> None:
    split = Documents.of([Document("1", "", ("b", "a", "b")), Document("2", "x", ())])
    targets = split.targets(LabelSet.build([["a", "b"]]))
    np.testing.assert_array_equal(targets.toarray(), [[1, 1], [0, 0]])
    assert targets.indices.tolist() == [0, 1]


def test_a_label_file_gives_names_and_order(folder: Path) -> None:
    records = [{"id": f"label{n}", "name": f"Label {n}", "broader": ["top"]} for n in reversed(range(10))]
    (folder / "labels.jsonl").write_text("\n".join(json.dumps(r) for r in [{"id": "top"}, *records]))
    labels = load_dataset(folder).labels
    assert labels.ids == [f"label{n}" for n in reversed(range(10))] + ["top"]
    assert labels.names[0] == "Label 9"
    assert labels.broader[0] == [10]
    assert labels.num_trained == 10


def test_label_file_that_lacks_a_label(folder: Path) -> None:
    (folder / "labels.tsv").write_text("".join(f"label{n}\tLabel {n}\n" for n in range(9)))
    dataset = load_dataset(folder)
    with pytest.raises(
        DataError, match=r"train.jsonl, line 10: unknown label 'label9'; did you mean 'label[0-8]'"
    ) as caught:
        len(dataset.split("train"))
    assert caught.value.line == 10
    other = folder / "elsewhere.tsv"
    other.write_text("".join(f"label{n}\tLabel {n}\n" for n in range(10)))
    assert load_dataset(folder, labels=other).labels.names[0] == "Label 0"


def test_content_decides_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    one = load_dataset(folder).split("test").fingerprint
    write_documents(documents(5, 20), folder / "copy.jsonl")
    assert Documents.of(documents(5, 20)).fingerprint == one
    changed = [*documents(4, 20), Document("d24", "text 24", ("label5",))]
    assert Documents.of(changed).fingerprint != one
    assert Documents.of([*documents(4, 20), Document("d24", "text 2", ("label4",))]).fingerprint != one


def test_a_file_that_shrinks_is_noticed(folder: Path) -> None:
    test = load_dataset(folder).split("test")
    assert len(test) == 5
    write_documents(documents(4, 20), folder / "test.jsonl.xz")
    with pytest.raises(DataError, match="shorter"):
        list(test)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({}, "has no train, dev or test file"),
        ({"notes.md": "hello"}, "notes.md"),
        ({"train.jsonl": "", "test.jsonl": ""}, "train.jsonl: holds no documents"),
        ({"train.tsv": ""}, "train.tsv: is empty"),
        ({"train.jsonl": '{"text": "a", "labels": []}\n' * 3}, "none of the 2 training documents has a label"),
        ({"train.jsonl": '{"text": "a", "labels": ["x"]}\n'}, "holds one document"),
        ({"test.jsonl": '{"text": "a", "labels": ["x"]}\n'}, "no training documents"),
        ({"train.jsonl": "", "train.tsv": ""}, "more than one train file: train.jsonl, train.tsv"),
        ({"train.jsonl": "", "labels.tsv": "", "labels.jsonl": ""}, "more than one label file"),
        ({"train.txt": "2 3 4\n0 1:1\n"}, "holds features"),
    ],
)
def test_wrong_folders(tmp_path: Path, files: dict[str, str], part: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=part):
        _ = load_dataset(tmp_path).labels


def test_names_that_are_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMPLUG_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="did you mean 'debtags'"):
        load_dataset("debtag")
    with pytest.raises(DataError, match="xmplug data fetch eurlex57k"):
        load_dataset("eurlex57k")
    with pytest.raises(DataError, match="neither does the folder"):
        load_dataset("no/such/folder")
    with pytest.raises(DataError, match="did you mean 'test'"):
        load_dataset("debtags").split("tests")
    with pytest.raises(DataError, match="between 0 and 1"):
        load_dataset("debtags", dev_fraction=1)


def test_spec_finds_the_data_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    dataset = load_dataset(folder.name)
    assert dataset.name == folder.name
    monkeypatch.chdir("/")
    assert len(load_dataset(dataset.spec).split("test")) == 5
    assert load_dataset("debtags").spec == "debtags"


@pytest.mark.parametrize("form", ["xmc", "attentionxml", "annif"])
def test_folders_of_other_formats(tmp_path: Path, form: str) -> None:
    texts = [f"text {n}" for n in range(6)]
    if form == "xmc":
        for name in ("trn", "tst"):
            lines = [json.dumps({"uid": str(n), "title": t, "target_ind": [n % 2]}) for n, t in enumerate(texts)]
            (tmp_path / f"{name}.json").write_text("\n".join(lines))
        (tmp_path / "Yf.txt").write_text("even\nodd\nnever\n")
    elif form == "attentionxml":
        for name in ("train", "test"):
            (tmp_path / f"{name}_texts.txt").write_text("\n".join(texts) + "\n")
            (tmp_path / f"{name}_labels.txt").write_text("even\nodd\n" * 3)
    else:
        for n, text in enumerate(texts):
            (tmp_path / f"{n}.txt").write_text(text)
            (tmp_path / f"{n}.key").write_text(["even", "odd"][n % 2] + "\n")
    dataset = load_dataset(tmp_path)
    assert sorted(dataset.split("train").texts()) + sorted(dataset.split("dev").texts()) != []
    assert sorted([*dataset.split("train").texts(), *dataset.split("dev").texts()]) == texts
    assert dataset.labels.names[:2] == ["even", "odd"]
    assert len(dataset.split("test")) == (0 if form == "annif" else 6)


def test_problems_are_all_found(tmp_path: Path) -> None:
    good = '{"text": "a", "labels": ["x"]}\n'
    (tmp_path / "train.jsonl").write_text(good + "{\n" + '{"text": "a", "labels": ["y", "z"]}\n' + "[]\n")
    (tmp_path / "test.jsonl").write_bytes(good.encode() + b"\xff\n")
    (tmp_path / "dev.jsonl").write_text("")
    (tmp_path / "labels.tsv").write_text("x\tX\n")
    found = [(Path(error.path or "").name, error.line) for error in problems(tmp_path)]
    assert found == [
        ("train.jsonl", 2),
        ("train.jsonl", 3),
        ("train.jsonl", 3),
        ("train.jsonl", 4),
        ("dev.jsonl", None),
        ("test.jsonl", 2),
    ]


def test_synthetic_data_are_learnable_and_repeatable(tmp_path: Path) -> None:
    dataset = synthetic_dataset(300, 12, seed=1)
    assert list(synthetic_dataset(300, 12, seed=1).split("train")) == list(dataset.split("train"))
    assert list(synthetic_dataset(300, 12, seed=2).split("train")) != list(dataset.split("train"))
    on_disk = synthetic_dataset(300, 12, seed=1, folder=tmp_path)
    for name in ("train", "dev", "test"):
        assert list(on_disk.split(name)) == list(dataset.split(name))
    assert on_disk.labels.ids == dataset.labels.ids
    assert all(dataset.labels.broader[: dataset.labels.num_trained])
    # the label whose training words a text shares most is a true one far more often than the most frequent label
    words: dict[str, set[str]] = {}
    for document in dataset.split("train"):
        for label in document.labels:
            for word in document.text.split():
                if not word.startswith("noise"):
                    words.setdefault(word, set()).add(label)
    own = {
        word: min(labels, key=lambda each: int(each[5:]) != int(word[4:].split("x")[0]))
        for word, labels in words.items()
    }
    common = dataset.labels.ids[int(dataset.labels.counts.argmax())]
    test = list(dataset.split("test"))
    guessed = sum(own[next(w for w in d.text.split() if w in own)] in d.labels for d in test) / len(test)
    popular = sum(common in d.labels for d in test) / len(test)
    assert guessed > 0.95
    assert popular < 0.6


@pytest.mark.parametrize(("count", "labels"), [(20, 10), (10, 1)])
def test_synthetic_data_may_be_small(count: int, labels: int) -> None:
    dataset = synthetic_dataset(count, labels)
    assert sum(len(dataset.split(name)) for name in ("train", "dev", "test")) == count
    assert 1 <= dataset.labels.num_trained <= labels
