"""The scripts that the sweep is timed against: what a tutorial writes (A), and what an expert makes of it (B).

    python -m benchmarks.baseline job.json results.json [--tuned]

Both train the trials of a job one after the other with ``transformers.Trainer`` and share no code with Thawline. A has
the Trainer's defaults and loads everything anew for each trial. ``--tuned`` is B: bf16 where the CPU computes in it,
but not where a whole CNN trains, which is slower so; batches of similar length, channels-last for CNNs, the data
prepared and the model loaded once, evaluation in order of length, no checkpoints. On both sides frozen blocks run in
eval mode.

A job is a JSON object with ``model`` (a checkpoint folder), ``modality``, ``data`` (a folder with ``train.csv`` and
``validation.csv``, of ``input,label``), ``classes``, ``epochs``, ``batch_size``, ``max_length`` and ``trials``. Writes
the strategy, the seconds and the best validation accuracy of each trial as JSON.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

WEIGHT_DECAY, WARM_UP, CLIP = 0.01, 0.1, 1.0
Examples = Any


class TextClassifier(nn.Module):
    """A pretrained encoder, the mean of its tokens, a linear layer."""

    def __init__(self, path: str, classes: int) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(path, add_pooling_layer=False)
        self.head = nn.Linear(self.backbone.config.hidden_size, classes)

    @property
    def blocks(self) -> Any:
        """The encoder layers."""
        return self.backbone.encoder.layer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: Any = None) -> dict[str, Any]:
        """Loss and logits."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        logits = self.head((states * mask).sum(1) / mask.sum(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class ImageClassifier(nn.Module):
    """A network of timm with a linear layer."""

    def __init__(self, path: str, classes: int) -> None:
        super().__init__()
        import timm
        from safetensors.torch import load_file

        config = json.loads((Path(path) / "config.json").read_text())
        self.backbone = timm.create_model(config["architecture"], pretrained=False, num_classes=0)
        weights = load_file(Path(path) / "model.safetensors")
        weights = {name.removeprefix("timm_model."): tensor for name, tensor in weights.items()}
        self.backbone.load_state_dict(weights, strict=False)
        self.transform = timm.data.create_transform(
            **timm.data.resolve_model_data_config(self.backbone), is_training=False
        )
        self.head = nn.Linear(self.backbone.num_features, classes)

    def forward(self, pixel_values: torch.Tensor, labels: Any = None) -> dict[str, Any]:
        """Loss and logits."""
        logits = self.head(self.backbone(pixel_values))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class ImageFiles(torch.utils.data.Dataset):
    """Images that are opened and transformed each time they are asked for."""

    def __init__(self, rows: list[dict[str, str]], transform: Any) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image

        row = self.rows[index]
        return {"pixel_values": self.transform(Image.open(row["input"]).convert("RGB")), "labels": int(row["label"])}


def prepare(model: Any, trial: dict[str, Any]) -> list[nn.Module]:
    """Freeze what the trial does not train; return what is to stay in eval mode."""
    strategy = trial["strategy"]
    if strategy == "full":
        return []
    model.backbone.requires_grad_(False)
    if strategy == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=trial["rank"],
            lora_alpha=trial["alpha"],
            lora_dropout=trial["dropout"],
            target_modules=["query", "value"],
        )
        model.backbone = get_peft_model(model.backbone, settings)
        return []
    if strategy == "partial":
        blocks = list(model.blocks)
        for block in blocks[-trial["num_blocks"] :]:
            block.requires_grad_(True)
        return [model.backbone.embeddings, *blocks[: -trial["num_blocks"]]]
    return [model.backbone]  # frozen


def groups(model: nn.Module, trial: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's rate is a multiple of the backbone's; vectors do not decay."""
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return [
        {
            "params": [v for name, v in trained if name.startswith("head") == head and (v.ndim > 1) == decays],
            "lr": trial["learning_rate"] * (trial["head_lr_multiplier"] if head else 1.0),
            "weight_decay": WEIGHT_DECAY if decays else 0.0,
        }
        for head in (False, True)
        for decays in (True, False)
    ]


def tokenised(tokenizer: Any, inputs: Sequence[Any], labels: Iterable[Any], max_length: int) -> list[dict[str, Any]]:
    """Examples for the Trainer."""
    encoded = tokenizer(inputs, truncation=True, max_length=max_length)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]


def texts(folder: Path, split: str, tokenizer: Any, max_length: int, *, by_length: bool) -> list[dict[str, Any]]:
    """Tokenised examples of a split."""
    rows = read(folder, split)
    examples = tokenised(tokenizer, [row["input"] for row in rows], [row["label"] for row in rows], max_length)
    return sorted(examples, key=lambda example: len(example["input_ids"])) if by_length else examples


def read(folder: Path, split: str) -> list[dict[str, str]]:
    """The rows of a split."""
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Best(TrainerCallback):
    """Keeps the best validation accuracy."""

    accuracy = 0.0

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Compare."""
        self.accuracy = max(self.accuracy, metrics["eval_accuracy"])


class GroupTrainer(Trainer):
    """The Trainer, with rates of their own for head and backbone."""

    trial: dict[str, Any]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                groups(self.model, self.trial), lr=self.trial["learning_rate"], fused=True
            )
        return self.optimizer


class Script:
    """The trials of a job; what ``tuned`` changes is marked by its name."""

    def __init__(self, job: dict[str, Any], tuned: bool) -> None:
        self.job, self.tuned = job, tuned
        self.folder = Path(job["data"])
        self.kept: Any = None

    def load(self) -> tuple[Any, Examples, Examples, Any]:
        """The model, the examples of train and validation, and what makes a batch of them."""
        if self.tuned and self.kept is not None:
            model, *rest = self.kept
            return copy.deepcopy(model), *rest
        job = self.job
        if job["modality"] == "text":
            tokenizer = AutoTokenizer.from_pretrained(job["model"])
            model: Any = TextClassifier(job["model"], job["classes"])
            length = job["max_length"]
            train = texts(self.folder, "train", tokenizer, length, by_length=False)
            validation = texts(self.folder, "validation", tokenizer, length, by_length=self.tuned)
            collate: Any = DataCollatorWithPadding(tokenizer)
        else:
            model = ImageClassifier(job["model"], job["classes"])
            train, validation = (
                ImageFiles(read(self.folder, split), model.transform) for split in ("train", "validation")
            )
            if self.tuned:
                train, validation = ([split[row] for row in range(len(split))] for split in (train, validation))
                model = model.to(memory_format=torch.channels_last)
            collate = None
        if self.tuned:
            self.kept = (model, train, validation, collate)
            model = copy.deepcopy(model)
        return model, train, validation, collate

    def run(self, trial: dict[str, Any]) -> float:
        """Train one trial; its best validation accuracy."""
        torch.manual_seed(trial["seed"])
        model, train, validation, collate = self.load()
        still = prepare(model, trial)
        torch.manual_seed(trial["seed"])
        model.head.reset_parameters()

        def undo_train(*_: object) -> None:
            for module in still:
                module.eval()

        model.register_forward_pre_hook(undo_train)
        best = Best()
        tuned: dict[str, Any] = {}
        if self.tuned:
            backwards = self.job["modality"] == "image" and trial["strategy"] == "full"
            tuned["bf16"] = bool(torch.cpu.get_capabilities().get("avx512_bf16")) and not backwards
            tuned["save_strategy"] = "no"
            if self.job["modality"] == "text":
                tuned["train_sampling_strategy"] = "group_by_length"
            else:
                collate = _channels_last
        with tempfile.TemporaryDirectory() as folder:
            trainer = GroupTrainer(
                model,
                TrainingArguments(
                    output_dir=folder,
                    num_train_epochs=self.job["epochs"],
                    per_device_train_batch_size=self.job["batch_size"],
                    per_device_eval_batch_size=64,
                    learning_rate=trial["learning_rate"],
                    warmup_steps=WARM_UP,
                    max_grad_norm=CLIP,
                    eval_strategy="epoch",
                    seed=trial["seed"],
                    use_cpu=True,
                    report_to=[],
                    disable_tqdm=True,
                    **tuned,
                ),
                train_dataset=train,
                eval_dataset=validation,
                data_collator=collate,
                compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
                callbacks=[best],
            )
            trainer.trial = trial
            trainer.train()
        return best.accuracy


def _channels_last(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {
        "pixel_values": pixels.contiguous(memory_format=torch.channels_last),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def main() -> None:
    """Run a job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tuned", action="store_true")
    arguments = parser.parse_args()
    job = json.loads(arguments.job.read_text())
    script = Script(job, arguments.tuned)
    results = []
    for trial in job["trials"]:
        started = time.perf_counter()
        accuracy = script.run(trial)
        seconds = time.perf_counter() - started
        results.append({"strategy": trial["strategy"], "seconds": seconds, "accuracy": accuracy})
    arguments.results.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
