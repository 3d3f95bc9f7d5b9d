"""A tiny transformer of random weights that knows the words of a planted corpus, in files as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_model(folder: Path, kind: str = "bert", **settings: Any) -> Path:
    """A model of `kind` and its tokenizer. Words are whole, but those of labels: "word3", "##x1"."""
    words = [f"noise{number}" for number in range(200)] + [f"word{label}" for label in range(30)]
    words += [f"##x{number}" for number in range(5)] + ["label", ",", *map(str, range(30))]
    special = list(_SPECIAL) if kind != "roberta" else ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: place for place, word in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    signs = [(sign, vocabulary[sign]) for sign in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=signs)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"vocab_size": len(vocabulary), "pad_token_id": vocabulary["[PAD]"]}
    config = AutoConfig.for_model(kind, **(_SIZES | ids | {"max_position_embeddings": 64} | settings))
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
