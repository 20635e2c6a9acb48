"""What a model carries: the same function on tokens and feature maps, over architectures, copies and reloads."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import (
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

from sweeper.models.additions import BottleneckAdapter, WithAdditions
from sweeper.models.classifier import Classifier, ClassifierConfig
from sweeper.models.layout import find_layout

SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,  # large enough that attention makes a difference
}
TEXT_MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**SMALL, max_position_embeddings=40),
    "roberta": lambda: RobertaConfig(**SMALL, max_position_embeddings=42),  # two of them are never used
    "distilbert": lambda: DistilBertConfig(
        vocab_size=100,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=40,
        initializer_range=0.3,
    ),
    "electra": lambda: ElectraConfig(**SMALL, embedding_size=8, max_position_embeddings=40),
    "gpt2": lambda: GPT2Config(
        vocab_size=100,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=40,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    ),
    "llama": lambda: LlamaConfig(**SMALL, max_position_embeddings=40),
}
NUMBER = 3
Add = Callable[[Any, tuple[str, ...]], None]
ADDITIONS: dict[str, Add] = {
    "adapters": lambda model, blocks: model.add_adapters(blocks, 4),
    "prompt": lambda model, blocks: model.add_virtual_tokens(NUMBER),
    "prefix": lambda model, blocks: model.add_virtual_tokens(NUMBER, blocks),
}
#: Prints the logits of saved models, in a process that cannot import the project.
LOAD = """
import sys
sys.modules.update(sweeper=None, strategies=None, reports=None)  # importing them is an error
import torch
from transformers import AutoModelForSequenceClassification
ids, mask = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    print(*model(input_ids=ids, attention_mask=mask).logits.flatten().tolist())
"""


def classifier(name: str = "bert", pooling: str = "mean") -> Any:
    config = TEXT_MODELS[name]()
    torch.manual_seed(0)
    backbone = {**config.to_dict(), "model_type": config.model_type}
    return Classifier(ClassifierConfig(backbone=backbone, pooling=pooling, features=config.hidden_size)).eval()


def blocks_of(model: Any) -> tuple[str, ...]:
    return find_layout(model, "backbone", ("head",), model.dummy_inputs).blocks


def carrying(name: str, kind: str, pooling: str = "mean") -> Any:
    """A model with additions whose every weight is random, so that adapters are no identity."""
    model = classifier(name, pooling)
    ADDITIONS[kind](model, blocks_of(model))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".adapter." in parameter_name or parameter_name.endswith("virtual_tokens"):
                parameter.normal_()
    return model.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a text of 7 tokens and one of 4."""
    ids = torch.arange(5, 19).reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return ids, mask


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- on texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ADDITIONS)
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_padding_changes_nothing(name: str, kind: str) -> None:
    model, (ids, mask) = carrying(name, kind), batch()
    together = model(input_ids=ids, attention_mask=mask).logits
    alone = model(input_ids=ids[1:, :4]).logits
    torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together, classifier(name)(input_ids=ids, attention_mask=mask).logits, atol=1e-2)


@pytest.mark.parametrize("pooling", ["mean", "first", "max", "native"])
def test_pooling_sees_the_text_alone(pooling: str) -> None:
    model, (ids, mask) = carrying("bert", "prompt", pooling), batch()
    embedding = model.backbone.get_input_embeddings()
    outputs = model.backbone(
        inputs_embeds=torch.cat([embedding.virtual_tokens.expand(2, -1, -1), embedding(ids)], 1),
        attention_mask=torch.cat([torch.ones(2, NUMBER, dtype=torch.long), mask], 1),
    )
    states = outputs.last_hidden_state[:, NUMBER:]
    expected = {
        "mean": torch.stack([states[0].mean(0), states[1, :4].mean(0)]),
        "first": states[:, 0],
        "max": torch.stack([states[0].amax(0), states[1, :4].amax(0)]),
        "native": states[:, 0] if model.backbone.pooler is None else model.backbone.pooler(states),
    }[pooling]
    assert (model.backbone.pooler is not None) == (pooling == "native")
    logits = model(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids)).logits
    torch.testing.assert_close(logits, model.head(expected), atol=1e-5, rtol=1e-4)


def test_every_block_reads_its_own_vectors_at_the_virtual_positions() -> None:
    model, (ids, mask) = carrying("bert", "prefix"), batch()
    read: list[torch.Tensor] = []
    blocks = blocks_of(model)
    for name in blocks:
        attention = model.get_submodule(name).attention
        attention.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model(input_ids=ids, attention_mask=mask)
    for name, states in zip(blocks, read, strict=True):
        assert states.shape == (2, NUMBER + 7, 16)
        assert torch.equal(states[:, :NUMBER], model.get_parameter(f"{name}.virtual_tokens").expand(2, -1, -1))


def test_a_decoder_reads_the_virtual_tokens_before_the_text() -> None:
    model, (ids, _) = carrying("gpt2", "prompt"), batch()

    def states() -> torch.Tensor:
        return model.run_backbone({"input_ids": ids[:1]}).last_hidden_state

    before = states()
    model.backbone.get_input_embeddings().virtual_tokens[-1].normal_()
    assert not torch.allclose(states()[:, 0], before[:, 0]), "the first token of the text sees the last virtual one"


def test_given_positions_move_along() -> None:
    model, (ids, mask) = carrying("llama", "prompt"), batch()
    given = {"input_ids": ids, "attention_mask": mask}
    positions = torch.arange(7).expand(2, -1)
    expected = model.run_backbone(given).last_hidden_state
    torch.testing.assert_close(model.run_backbone({**given, "position_ids": positions}).last_hidden_state, expected)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_the_longest_text_that_is_allowed_can_be_read(name: str) -> None:
    model = carrying(name, "prompt")
    room = model.max_text_tokens()
    assert room == 40 - NUMBER
    assert model(input_ids=torch.full((1, room), 7)).logits.isfinite().all()
    if name != "llama":  # rotary positions have no end
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, room + 1), 7))


def test_models_without_virtual_tokens_set_no_limit() -> None:
    assert carrying("bert", "adapters").max_text_tokens() is None


@pytest.mark.parametrize("kind", ADDITIONS)
def test_nothing_is_added_twice(kind: str) -> None:
    model = carrying("bert", kind)
    with pytest.raises(ValueError, match="already"):
        ADDITIONS[kind](model, blocks_of(model))


# --- copies and reloads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ADDITIONS)
def test_copies_and_pickles_are_models_of_their_own(kind: str) -> None:
    model, (ids, mask) = carrying("bert", kind), batch()
    before = model(input_ids=ids, attention_mask=mask).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(input_ids=ids, attention_mask=mask).logits, before, rtol=0, atol=0)
        for name, parameter in other.named_parameters():
            if ".adapter." in name or name.endswith("virtual_tokens"):
                parameter.normal_()
        assert not torch.allclose(other(input_ids=ids, attention_mask=mask).logits, before, atol=1e-2)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before, rtol=0, atol=0)


def test_models_with_different_additions_do_not_interfere() -> None:
    ids, mask = batch()
    plain = classifier()
    expected = plain(input_ids=ids, attention_mask=mask).logits
    small, large = copy.deepcopy(plain), copy.deepcopy(plain)
    small.add_adapters(blocks_of(small)[:1], 16)
    large.add_adapters(blocks_of(large), 2)
    large.add_virtual_tokens(5)
    torch.testing.assert_close(small(input_ids=ids, attention_mask=mask).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask).logits, expected, rtol=0, atol=0)
    assert not torch.allclose(large(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-2)
    assert plain.config.adapters is None
    assert small.config.virtual_tokens is None
    assert [len(model.config.adapters["blocks"]) for model in (small, large)] == [1, 2]


def test_a_model_made_from_the_config_starts_as_the_identity() -> None:
    ids, mask = batch()
    model = classifier()
    model.add_adapters(blocks_of(model), 4)
    again = Classifier(model.config).eval()  # the backbone's initialisation must not touch the adapters
    again.load_state_dict({n: t for n, t in model.state_dict().items() if ".adapter." not in n}, strict=False)
    expected = classifier()(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(again(input_ids=ids, attention_mask=mask).logits, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_saved_models_load_where_the_project_cannot_be_imported(tmp_path: Path) -> None:
    models = [carrying("bert", "adapters"), carrying("gpt2", "prompt"), carrying("bert", "prefix", "native")]
    models[0].add_virtual_tokens(2)
    folders = [tmp_path / f"model-{index}" for index in range(len(models))]
    ids, mask = batch()
    torch.save((ids, mask), tmp_path / "batch.pt")
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
        assert {path.name for path in folder.glob("*.py")} == {"classifier.py", "additions.py"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, str(tmp_path / "batch.pt"), *map(str, folders)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "hf/modules")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    for line, model in zip(result.stdout.splitlines(), models, strict=True):
        expected = model(input_ids=ids, attention_mask=mask).logits.flatten()
        torch.testing.assert_close(torch.tensor([float(word) for word in line.split()]), expected, atol=1e-5, rtol=1e-4)


# --- on images ---------------------------------------------------------------------------------------------------


class ImageModel(WithAdditions):
    """A timm model with additions, as bare as can be."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = timm.create_model(name, pretrained=False, num_classes=0)
        self.config = SimpleNamespace(adapters=None, virtual_tokens=None)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.zeros(1, 3, *self.backbone.pretrained_cfg["input_size"][1:])}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.backbone(pixel_values)


IMAGE_BLOCKS = [
    ("test_resnet", "layer2.0", 48, True),
    ("test_resnet", "layer1", 32, True),  # a Sequential, which runs its children in turn
    ("test_efficientnet", "blocks.1", 24, True),
    ("test_convnext", "stages.1", 32, True),
    ("test_vit", "blocks.3", 64, False),
]


@pytest.mark.parametrize(("name", "block", "width", "channels_first"), IMAGE_BLOCKS)
def test_adapters_follow_blocks_of_image_models(name: str, block: str, width: int, channels_first: bool) -> None:
    model: Any = ImageModel(name).train()
    size = model.dummy_inputs["pixel_values"].shape[-1]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    model.add_adapters([f"backbone.{block}"], 8)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in statistics.items())
    assert model.training and model.backbone.training, "measuring the blocks leaves the modes as they were"
    assert model.config.adapters["blocks"] == {f"backbone.{block}": {"width": width, "channels_first": channels_first}}
    module = model.backbone.get_submodule(block)
    count = sum(parameter.numel() for parameter in module.adapter.parameters())
    assert count == 2 * width * (width // 8) + width // 8 + width

    model.eval()
    plain = ImageModel(name).eval()
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=0)
    for parameter in module.adapter.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    plain.backbone.get_submodule(block).register_forward_hook(lambda _, __, output: module.adapter(output))
    torch.testing.assert_close(model(images), plain(images))  # once, not twice


def test_swin_has_its_channels_last() -> None:
    model: Any = ImageModel("swin_tiny_patch4_window7_224")
    model.add_adapters(["backbone.layers.0.blocks.0"], 8)
    assert isinstance(model.backbone.layers[0].blocks[0].adapter.down, nn.Linear)
    assert model.backbone.layers[0].blocks[0].adapter.down.in_features == 96


def test_convolutions_and_linear_layers_compute_the_same() -> None:
    linear = BottleneckAdapter(12, 3)
    for parameter in linear.parameters():
        nn.init.normal_(parameter)
    conv = BottleneckAdapter(12, 3, channels_first=True)
    conv.load_state_dict(
        {key: value.reshape(conv.state_dict()[key].shape) for key, value in linear.state_dict().items()}
    )
    maps = torch.randn(2, 12, 5, 4)
    torch.testing.assert_close(conv(maps), linear(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    states = torch.randn(3, 12)
    by_hand = states + nn.functional.gelu(states @ linear.down.weight.T + linear.down.bias) @ linear.up.weight.T
    torch.testing.assert_close(linear(states), by_hand + linear.up.bias)


def test_blocks_that_return_tuples_keep_the_rest() -> None:
    class Block(nn.Linear):
        def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, str]:  # type: ignore[override]
            return super().forward(states), "rest"

    class Model(WithAdditions):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(8, 8)
            self.config = SimpleNamespace(adapters=None)

        @property
        def dummy_inputs(self) -> dict[str, torch.Tensor]:
            return {"states": torch.zeros(1, 2, 8)}

        def forward(self, states: torch.Tensor) -> Any:
            return self.block(states)

    model: Any = Model()
    model.add_adapters(["block"], 2)
    nn.init.ones_(model.block.adapter.up.bias)
    states = torch.randn(1, 2, 8)
    output, rest = model(states)
    torch.testing.assert_close(output, nn.functional.linear(states, model.block.weight, model.block.bias) + 1)
    assert rest == "rest"


def test_a_block_without_hidden_states_is_an_error() -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"no hidden states to adapt: head gave none"):
        model.add_adapters([*blocks_of(model), "head"], 4)
