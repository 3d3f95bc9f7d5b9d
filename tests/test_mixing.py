"""Every shipped component with every other: what fits trains, and what does not is refused before torch is imported.

The whole matrix of encoders, label structures, label contexts, fusions and losses, of the runtime and of all plugins
that come with it; a component whose declaration depends on an option is there once for each choice of that option. Each
mix either is refused for what its components declare, or is trained for two steps in each level and predicts. To end in
minutes, what can hardly matter takes turns. A label context that the fusion takes nothing from is left out: mixes that
differ in it alone are one model, which is trained with one of these contexts. Where the fusion takes something from it,
mixes that differ in their loss alone are trained with one of these losses, so that each loss meets each component of
the other slots, and each fusion on each label structure. With `pytest -s` a table says what came of it.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

import xmplug
from xmplug import Component, ComponentConfig, ConfigError, PluginError
from xmplug.components import WordsConfig
from xmplug.config import RunConfig, merge, resolve
from xmplug.data import Dataset, load_dataset, synthetic_dataset
from xmplug.inference import Tagger
from xmplug.mixing import clashes, takes_context
from xmplug.plugins import Plugins
from xmplug.recipe import SLOTS, Slot
from xmplug.training import Listener, Progress, Trainer

SHIPPED = ["core", *(path.name.removeprefix("xmplug-") for path in Path(__file__).parents[1].glob("plugins/xmplug-*"))]
SMALL: dict[str, Any] = {
    "encoder.vectors": "random",
    "encoder.vector_size": 8,
    "encoder.hidden": 8,
    "encoder.min_count": 1,
    "encoder.max_tokens": 24,
    "label_structure.branching": 4,
    "label_structure.max_leaf": 4,
    "label_context.max_tokens": 8,
    "fusion.hidden": 8,
    "fusion.size": 8,
    "fusion.layers": "8",
    "training.epochs": 1,
    "training.batch_size": 24,
    "training.precision": "float32",
}
"""Of these each component gets the options that it has. 48 training texts: two steps."""
TEXTS = ["noise1 word0x1 noise2 word0x2 word3x3", "", "none of these words was ever seen"]
RUNS_WITHOUT_MEANING = {
    ("gudn:guided", "label_context"),
    ("maacf:co_attention", "label_context"),
    ("treaderxml:dual", "maacf:label_groups"),
}
"""What takes from which slot or component, and would run with what it does not take: with rows of labels in place of
label texts, or as if there were no label context, though one was asked for."""


@dataclass(frozen=True)
class Part:
    """A component, and the option that makes it another one for the others. name: shown in the table."""

    slot: Slot
    component: Component
    option: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return self.component.id if self.option is None else f"{self.component.id}({self.option[0]}={self.option[1]})"


Mix = tuple[Part, ...]
"""A part for each slot, in the order of `SLOTS`."""


def _parts(slot: Slot) -> list[Part]:
    """The shipped components of a slot, in all variants that declare something else."""
    parts = []
    for component in PLUGINS.components[slot]:
        if component.plugin in SHIPPED:
            plain = component.config()
            seen = [_declared(component, plain)]
            parts.append(Part(slot, component))
            for name, option in component.config.model_fields.items():
                for choice in get_args(option.annotation) if get_origin(option.annotation) is Literal else ():
                    declared = _declared(component, plain.model_copy(update={name: choice}))
                    if declared not in seen:
                        seen.append(declared)
                        parts.append(Part(slot, component, (name, choice)))
    return parts


def _declared(component: Component, options: ComponentConfig) -> tuple[Any, Any]:
    return component.given(options), component.taken(options)


PLUGINS = Plugins().load()
PARTS = {slot: _parts(slot) for slot in SLOTS}
# Encoders that fit the same fusions stand one after the other, so that with them the turn goes on by one.
PARTS["encoder"].sort(key=lambda part: "tokens" not in (part.component.gives or ()))
PLACE = {part: place for parts in PARTS.values() for place, part in enumerate(parts)}


@dataclass
class Tally:
    """What came of the mixes."""

    trained: Counter[str] = field(default_factory=Counter)
    same: Counter[str] = field(default_factory=Counter)
    """But for a label context that is left out."""
    stood_for: Counter[str] = field(default_factory=Counter)
    """By the same mix with another loss."""
    refused: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of the processor."""

    def __str__(self) -> str:
        counts = (self.trained, self.same, self.stood_for, self.seconds)
        rows = [(name, *(count[name] for count in counts)) for name in self.trained]
        rows += [("all", *(sum(count.values()) for count in counts))]
        lines = ["", f"{'fusion':<36} trained  same but for an unread context  but for the loss  seconds"]
        lines += [
            f"{name:<36} {done:>7}  {same:>30}  {loss:>16}  {time:>7.1f}" for name, done, same, loss, time in rows
        ]
        lines += ["", "refused"]
        lines += [f"{count:>7}  {reason}" for reason, count in self.refused.most_common()]
        return "\n".join([*lines, f"{sum(self.refused.values()):>7}  all", ""])


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    found = Tally()
    yield found
    print(found)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("mixing-corpus")
    synthetic_dataset(60, 12, folder=folder)
    return load_dataset(folder)


@pytest.fixture(scope="module")
def small(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """`SMALL`, a tiny transformer, and a run to take candidates from."""
    folder = tmp_path_factory.mktemp("mixing")
    xmplug.train("linear", data.spec, folder / "run")
    return {**SMALL, "encoder.model": str(_transformer(folder / "model")), "label_structure.run": str(folder / "run")}


def _transformer(folder: Path) -> Path:
    """A transformer of random weights that knows the corpus's words."""
    words = [*(f"noise{n}" for n in range(200)), *(f"word{n}x{part}" for n in range(12) for part in range(5))]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: place for place, word in enumerate([*special, *words, "label", ",", *map(str, range(12))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    signs = [(sign, vocabulary[sign]) for sign in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=signs)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def _config(mix: Mix, small: Mapping[str, Any]) -> RunConfig:
    """The mix in small, not yet held to its declarations."""
    options: dict[str, Any] = {name: value for name, value in small.items() if name.startswith("training.")}
    for part in mix:
        options[part.slot] = part.component.id
        known = {f"{part.slot}.{name}" for name in part.component.config.model_fields}
        if not issubclass(part.component.config, WordsConfig):
            known -= {"encoder.vectors"}  # a run, of others
        options |= {name: value for name, value in small.items() if name in known}
        if part.option is not None:
            options[f"{part.slot}.{part.option[0]}"] = part.option[1]
    return merge(PLUGINS, "linear", overrides=options.items())


class _Losses(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.losses: list[float] = []

    def message(self, text: str) -> None:
        self.notes.append(text)

    def step(self, progress: Progress) -> None:
        self.losses.append(progress.loss)


def _train(config: RunConfig, data: Dataset, out: Path) -> _Losses:
    """Train, and predict with what was trained."""
    said = _Losses()
    trainer = Trainer(config, PLUGINS, data, out, {}, False, said)
    trainer.run()
    fusion, levels = trainer.model.level(0).fusion, trainer.model.structure.num_levels
    assert len(said.losses) == (0 if fusion.solved else 2 * levels) and all(map(math.isfinite, said.losses))
    found = Tagger(trainer.model.eval()).predict(TEXTS, k=3)
    assert len(found) == len(TEXTS) and all(found)
    assert all(0 <= prediction.score <= 1 for row in found for prediction in row)
    return said


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written here need not outlive a power cut."""
    monkeypatch.setattr("xmplug.saving.os.fsync", lambda file: None)


def test_shipped_components_say_what_they_give_and_take() -> None:
    for slot, parts in PARTS.items():
        for part in parts:
            assert part.component.gives is not None or slot in ("label_structure", "fusion"), part.name
            assert part.component.takes is not None or slot not in ("label_context", "fusion"), part.name


@pytest.mark.parametrize("fusion", PARTS["fusion"], ids=lambda part: part.name)
@pytest.mark.parametrize("encoder", PARTS["encoder"], ids=lambda part: part.name)
@pytest.mark.usefixtures("quick_disk")
def test_each_mix_trains_or_is_refused(
    encoder: Part, fusion: Part, data: Dataset, small: Mapping[str, Any], tally: Tally, tmp_path: Path
) -> None:
    fitting = []
    for structure, context, loss in product(*(PARTS[slot] for slot in ("label_structure", "label_context", "loss"))):
        mix = (encoder, structure, context, fusion, loss)
        config = _config(mix, small)
        try:
            resolve(PLUGINS, "linear", file=config.as_dict())
        except ConfigError as error:
            _check_refusal(config, str(error))
            tally.refused[str(error).partition(";")[0]] += 1
            continue
        fitting.append((mix, takes_context(config)))
    chosen = _in_turn(fitting)
    for number, (mix, takes) in enumerate(fitting):
        if mix not in chosen:
            (tally.stood_for if takes else tally.same)[fusion.name] += 1
            continue
        config = _config(mix, small)
        begun = time.process_time()
        try:
            said = _train(config, data, tmp_path / str(number))
        except Exception as error:
            names = " x ".join(part.name for part in mix)
            raise AssertionError(f"{names} is not refused, and does not train: {error!r}") from error
        unread = any("is left out" in note for note in said.notes)
        assert unread == (not takes and mix[2].component.id != "core:none")
        tally.trained[fusion.name] += 1
        tally.seconds[fusion.name] += time.process_time() - begun


def _in_turn(fitting: list[tuple[Mix, bool]]) -> set[Mix]:
    """Those to train of the mixes that fit, each with whether its fusion takes anything from the label context: of
    mixes that are alike but for a context that is left out, or else but for the loss, one."""
    alike: defaultdict[tuple[Part, ...], list[Mix]] = defaultdict(list)
    for mix, takes in fitting:
        encoder, structure, context, fusion, loss = mix
        alike[(encoder, structure, context, fusion) if takes else (encoder, structure, fusion, loss)].append(mix)
    return {mixes[sum(PLACE[part] for part in key) % len(mixes)] for key, mixes in alike.items()}


def test_each_loss_has_its_turn_with_all_others(small: Mapping[str, Any]) -> None:
    """What `_in_turn` leaves out it trains elsewhere: each two components that fit, and each three of a label
    structure, a fusion and a loss."""
    fitting = []
    for mix in product(*PARTS.values()):
        config = _config(mix, small)
        if not clashes(config):
            fitting.append((mix, takes_context(config)))

    def met(mixes: Iterable[Mix]) -> set[tuple[Part, ...]]:
        threes = {(structure, fusion, loss) for _, structure, _, fusion, loss in mixes}
        return threes | {pair for mix in mixes for pair in combinations(mix, 2)}

    assert met(_in_turn(fitting)) == met([mix for mix, _ in fitting])


def _check_refusal(config: RunConfig, message: str) -> None:
    """It names both components with their slots, what the one takes, and what to do."""
    clash = clashes(config)[0]
    reason, _, advice = message.partition("; ")
    for slot in (clash.slot, clash.source):
        component = config.components[slot].id  # type: ignore[index]
        assert slot.replace("_", " ") in reason and component in reason, message
    assert all(word in reason for word in (*clash.taken, *clash.given)), message
    assert advice.startswith("give --"), message


@pytest.mark.usefixtures("quick_disk")
def test_nothing_is_refused_that_would_train(data: Dataset, small: Mapping[str, Any], tmp_path: Path) -> None:
    """Of each two components that are refused together, one mix in which no others are."""
    tried = set()
    for number, mix in enumerate(product(*PARTS.values())):
        config = _config(mix, small)
        found = clashes(config)
        if len(found) != 1:
            continue
        slot, source = found[0].slot, found[0].source
        taker, giver = config.components[slot].id, config.components[source].id  # type: ignore[index]
        if (taker, giver) in tried or {(taker, source), (taker, giver)} & RUNS_WITHOUT_MEANING:
            continue
        tried.add((taker, giver))
        with pytest.raises((xmplug.XmplugError, AssertionError, AttributeError)):
            _train(config, data, tmp_path / str(number))
    assert tried


# What is said --------------------------------------------------------------------------------------------------------

REFUSED = {
    "--plugin attentionxml --encoder linear:tfidf": (
        "fusion attentionxml:label_attention takes states from the encoder, and linear:tfidf gives sparse vectors; "
        "give --encoder core:words"
    ),
    "--plugin linear --loss treaderxml:softmax_logistic": (
        "fusion linear:one_vs_rest takes a margin from the loss, and treaderxml:softmax_logistic gives nothing that it "
        "can take; give --loss core:bce"
    ),
    "--plugin linear --training.levels together": (
        "fusion linear:one_vs_rest works with training.levels apart, and asked is together; "
        "give --training.levels apart"
    ),
    "--plugin gudn --fusion.label_input multi_hot": (
        "fusion gudn:guided takes label numbers from the label context, and gudn:reinforced gives label texts; "
        "give --label-context gudn:own_labels"
    ),
    "--plugin gudn --label-context gudn:own_labels": (
        "fusion gudn:guided takes label texts or nothing from the label context, and gudn:own_labels gives label "
        "numbers; give --label-context core:none"
    ),
}


@pytest.mark.parametrize("options", REFUSED)
def test_refused_on_the_command_line_before_torch_is_imported(options: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom xmplug.cli import main\ntry: main()\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    arguments = ["train", *options.split(), "--data", "debtags", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "2 []", done
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"xmplug: error: {REFUSED[options]}")


@pytest.mark.parametrize(
    ("recipe", "asked"),
    [
        ("attentionxml", {"encoder": "linear:tfidf"}),
        ("linear", {"loss": "treaderxml:softmax_logistic"}),
        ("linear", {"training.levels": "together"}),
        ("linear", {"training.levels": "together", "encoder": "attentionxml:bilstm"}),
        ("gudn", {"label_context": "gudn:own_labels"}),
    ],
)
def test_each_way_out_leads_out(recipe: str, asked: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(PLUGINS, recipe, overrides=asked.items())
    _, _, advice = str(caught.value).partition("; give ")
    ways = [way.partition(" ") for way in re.split(", or (?=--)", advice)]
    tried = [(option, value) for option, _, values in ways for value in re.split(", | or ", values)]
    assert tried
    for option, value in tried:
        resolve(PLUGINS, recipe, overrides={**asked, option[2:].replace("-", "_"): value}.items())


def test_advice_names_options_too_and_where_no_change_mends_all_what_mends_the_first() -> None:
    with pytest.raises(ConfigError, match=r"; give --label-context gudn:own_labels, .*--fusion\.label_input text"):
        resolve(PLUGINS, "gudn", overrides=[("fusion.label_input", "multi_hot")])
    asked = [("fusion", "gudn:guided"), ("label_context", "gudn:own_labels"), ("training.levels", "together")]
    with pytest.raises(ConfigError, match=r"tfidf gives sparse vectors; give --encoder .*--fusion .*one_vs_rest"):
        resolve(PLUGINS, "linear", overrides=[*asked, ("loss", "treaderxml:softmax_logistic")])


# Declarations of others ----------------------------------------------------------------------------------------------


def _with(slot: Slot, component: Component, **overrides: str) -> RunConfig:
    config = merge(PLUGINS, "treaderxml", overrides=overrides.items())
    options = {**config.options, slot: component.config()}
    return replace(config, components={**config.components, slot: component}, options=options)


class NoOptions(ComponentConfig):
    """No options."""


def test_what_says_nothing_is_not_refused() -> None:
    for slot in SLOTS:
        component = Component("mute", "mute:Mute", NoOptions, "says nothing", "mute")
        assert not clashes(_with(slot, component))
        assert takes_context(_with(slot, component))


def test_a_label_context_is_held_to_its_encoder_where_the_fusion_reads_it() -> None:
    encoder = Component("bare", "bare:Bare", NoOptions, "states alone", "bare", gives=("states",))
    (clash,) = clashes(_with("encoder", encoder))
    assert (clash.slot, clash.source, clash.taken, clash.given) == (
        "label_context",
        "encoder",
        ("word vectors",),
        ("states",),
    )
    assert not clashes(_with("encoder", encoder, fusion="attentionxml:label_attention"))


def test_a_wrong_declaration_is_met_only_by_those_who_ask_for_it(tmp_path: Path) -> None:
    path = tmp_path / "astray.py"
    path.write_text(
        "from xmplug import Component, ComponentConfig, hookimpl\n\n\n@hookimpl\ndef xmplug_fusions():\n    "
        "takes = {'encodr': ('states',)}\n    "
        "return [Component('astray', 'astray:Astray', ComponentConfig, 'wrong', takes=takes)]\n"
    )
    plugins = Plugins().load((str(path),))
    with pytest.raises(ConfigError, match="give --encoder core:words"):
        resolve(plugins, "attentionxml", overrides=[("encoder", "linear:tfidf")])
    with pytest.raises(PluginError, match=r"takes something from 'encodr': did you mean 'encoder'\?"):
        resolve(plugins, "attentionxml", overrides=[("fusion", "astray:astray")])


def test_guides_that_there_are_not_take_no_labels() -> None:
    config = resolve(PLUGINS, "gudn", overrides=[("fusion.guides", ""), ("label_context", "gudn:own_labels")])
    assert not takes_context(config)
