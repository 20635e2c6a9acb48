"""Domain pretraining on tiny checkpoints: what it changes, what it leaves alone, and that it happens once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, T5Config

from strategies import Frozen
from sweeper.errors import ConfigError, StudyError
from sweeper.objective import Task
from sweeper.training.domain_pretrain import (
    DomainPretraining,
    _causal_loss,
    _masked_loss,
    domain_pretrain,
    is_masked,
    pretrain_language_model,
)
from tests.tasks import load_task

PRETRAINING = DomainPretraining(epochs=2, learning_rate=3e-3, batch_size=16, mask_probability=0.15, size=128)


def load(checkpoint: Path, pooling: str = "mean", head: str = "linear") -> Task:
    return load_task(checkpoint, (48, 40, 60), max_length=20, head=head, pooling=pooling)


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("decoder") / "tiny-gpt2"
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.pad_token_id = tokenizer.pad_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weights(task: Task) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in task.pretrained.model.backbone.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_backbone_changes_and_the_loss_falls(task: Task, tmp_path: Path) -> None:
    before = weights(task)
    adapted, done = domain_pretrain(task, PRETRAINING, seed=5, models_dir=tmp_path)
    assert len(done.losses) == 2
    assert done.losses[1] < done.losses[0] < 10.5, "from log(30,522) = 10.3 at the start"
    assert done.texts == 128
    assert done.seconds > 0
    after = weights(adapted)
    assert before.keys() == after.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any("layer.0." in name for name in moved) and any("word_embeddings" in name for name in moved)
    assert equal(weights(task), before), "the task it started from is left alone"
    assert adapted.pretrained.fingerprint != task.pretrained.fingerprint

    fresh = adapted.pretrained.fresh(3)
    assert equal(dict(fresh.backbone.state_dict()), after)
    torch.testing.assert_close(fresh.head.weight, task.pretrained.fresh(3).head.weight, rtol=0, atol=0)


def test_masked_words_of_texts_that_no_training_saw_are_restored_better(task: Task, tiny_checkpoint: Path) -> None:
    batch = task.pretrained.processor(
        task.dataset.test.inputs[:32], padding=True, truncation=True, max_length=20, return_tensors="pt"
    )
    labels = batch["input_ids"].where(torch.arange(batch["input_ids"].shape[1]) % 5 == 2, -100)
    labels[batch["attention_mask"] == 0] = -100
    batch["input_ids"][labels != -100] = task.pretrained.processor.mask_token_id

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(_masked_loss(model.eval()(**batch), labels))

    model, _ = pretrain_language_model(task, task.unlabelled(128, seed=0), PRETRAINING, seed=5)
    assert loss(model) < loss(AutoModelForMaskedLM.from_pretrained(tiny_checkpoint)) - 0.2
    adapted = loss(model)
    model.base_model.load_state_dict(task.pretrained.model.backbone.state_dict())
    assert adapted < loss(model) - 0.2, "the backbone learned, not its head alone"


def test_all_of_the_model_counts_as_trained(task: Task, tmp_path: Path) -> None:
    plain = task.prepare(Frozen(), 0)[1]
    trained, _ = domain_pretrain(task, PRETRAINING, seed=0, models_dir=tmp_path)
    wrapped = trained.prepare(Frozen(), 0)[1]
    assert plain["trainable_params"] == plain["trainable_params_head"] < plain["total_params"]
    assert wrapped["trainable_params"] == wrapped["total_params"] == plain["total_params"]
    assert wrapped["trainable_params_backbone"] == plain["total_params"] - plain["trainable_params_head"]
    assert wrapped["stored_bytes"] == 4 * plain["total_params"]


def test_it_is_trained_once_and_found_again(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    settings = dataclasses.replace(PRETRAINING, epochs=1, size=20, batch_size=8)
    first, done = domain_pretrain(task, settings, seed=5, models_dir=tmp_path, on_start=trained.append)
    again, recorded = domain_pretrain(task, settings, seed=5, models_dir=tmp_path, on_start=trained.append)
    assert trained == [20]
    assert recorded == done
    assert equal(weights(first), weights(again))
    (folder,) = (tmp_path / "domain_pretrain").iterdir()
    assert equal(weights(load(folder)), weights(first)), "what is saved is a plain checkpoint"

    shutil.rmtree(folder)
    anew, _ = domain_pretrain(task, settings, seed=5, models_dir=tmp_path, on_start=trained.append)
    assert trained == [20, 20]
    assert equal(weights(anew), weights(first)), "the same seed, the same weights"
    for other in (dataclasses.replace(settings, learning_rate=1e-3), dataclasses.replace(settings, size=21)):
        assert not equal(weights(domain_pretrain(task, other, seed=5, models_dir=tmp_path)[0]), weights(first))
    assert not equal(weights(domain_pretrain(task, settings, seed=6, models_dir=tmp_path)[0]), weights(first))
    assert len(list((tmp_path / "domain_pretrain").iterdir())) == 4


def test_an_interruption_leaves_nothing_that_looks_finished(task: Task, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        domain_pretrain(task, PRETRAINING, seed=5, models_dir=tmp_path, on_step=stop)
    started: list[int] = []
    domain_pretrain(
        task,
        dataclasses.replace(PRETRAINING, epochs=1, size=16),
        seed=5,
        models_dir=tmp_path,
        on_start=started.append,
    )
    assert started == [16]
    assert len(list(tmp_path.rglob("domain_pretrain.json"))) == 1


def test_a_decoder_learns_to_predict_the_next_token(decoder: Path, tmp_path: Path) -> None:
    task = load(decoder)
    assert not is_masked(task.pretrained)
    before = weights(task)
    settings = dataclasses.replace(PRETRAINING, size=48)
    adapted, done = domain_pretrain(task, settings, seed=5, models_dir=tmp_path)
    assert done.losses[1] < done.losses[0]
    assert not equal(weights(adapted), before)


def test_a_pooler_that_is_not_trained_stays(tiny_checkpoint: Path, tmp_path: Path) -> None:
    task = load(tiny_checkpoint, pooling="native")
    adapted, _ = domain_pretrain(
        task, dataclasses.replace(PRETRAINING, epochs=1, size=20, batch_size=8), seed=5, models_dir=tmp_path
    )
    before, after = weights(task), weights(adapted)
    assert torch.equal(before["pooler.dense.weight"], after["pooler.dense.weight"])
    assert not torch.equal(before["encoder.layer.0.output.dense.weight"], after["encoder.layer.0.output.dense.weight"])


def test_a_native_head_goes_on_the_new_backbone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    task = load(tiny_checkpoint, pooling="native", head="native")
    adapted, _ = domain_pretrain(
        task, dataclasses.replace(PRETRAINING, epochs=1, size=20, batch_size=8), seed=5, models_dir=tmp_path
    )
    name = "bert.encoder.layer.0.output.dense.weight"
    one, other = (each.pretrained.model.state_dict()[name] for each in (task, adapted))
    assert not torch.equal(one, other)


def test_a_model_without_a_language_model_is_refused(task: Task) -> None:
    backbone = torch.nn.Module()
    backbone.config = T5Config()  # type: ignore[assignment]
    model: Any = torch.nn.ModuleDict({"backbone": backbone})
    with pytest.raises(ConfigError, match="of type t5, and transformers has neither a masked nor a causal"):
        is_masked(dataclasses.replace(task.pretrained, model=model))


def test_a_loss_that_is_not_finite_is_an_error(task: Task) -> None:
    wild = dataclasses.replace(PRETRAINING, learning_rate=1e30)
    with pytest.raises(StudyError, match="domain pretraining diverged: its loss is nan after epoch"):
        pretrain_language_model(task, task.unlabelled(32, seed=0), wild, seed=0)


def test_the_losses_are_means_over_the_predicted_tokens() -> None:
    @dataclasses.dataclass
    class Outputs:
        logits: torch.Tensor

    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]])  # (1, 3 tokens, vocabulary of 2)
    nothing = torch.full((1, 3), -100)
    assert float(_masked_loss(Outputs(logits), nothing)) == 0
    one = torch.tensor([[0, -100, -100]])
    assert float(_masked_loss(Outputs(logits), one)) == pytest.approx(0.126928, abs=1e-5)  # log(1 + e^-2)
    labels = torch.tensor([[-100, 0, 1]])  # token 0 predicts the 0 at 1, token 1 the 1 at 2
    expected = (0.126928 + 0.313262) / 2  # log(1 + e^-2), log(1 + e^-1)
    assert float(_causal_loss(Outputs(logits), labels)) == pytest.approx(expected, abs=1e-5)
