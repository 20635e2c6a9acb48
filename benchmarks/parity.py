"""Parity with a plain `transformers.Trainer` script: same data, splits, head and hyperparameters, paired seeds.

    python -m benchmarks.parity --seeds 5 --train-size 1000

Trains each configuration twice per seed: as Thawline does (batches of similar length, blocks below the boundary in
eval mode), and as a plain script would (`AutoModel`, mean pooling, a linear layer, peft's own `get_peft_model`, the
Trainer's random batches). Both compute in the same precision. Prints the difference in test accuracy with its 95 %
interval over seeds (paired t), which should contain 0, and the ratio of the times. With `--random-batches` both sides
see the same examples in the same order, and what is left is rounding and the order of initialisation.

The plain side has its model and its groups of parameters from `benchmarks/baseline.py`, and shares no code with the
packages but the loading of the data. Full fine-tuning starts from the same head on both sides: torch's initialisation
of a linear layer from the same seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from benchmarks.baseline import CLIP, WARM_UP, WEIGHT_DECAY, TextClassifier, groups, prepare, tokenised
from sweeper.assets import fetch
from sweeper.data import Dataset, Split, load_dataset
from sweeper.objective import Task
from sweeper.search_space import parse_strategy
from sweeper.training.fit import TrainerSettings
from sweeper.training.precision import resolve_precision

EPOCHS, BATCH_SIZE, MAX_LENGTH = 2, 32, 128
RATES = {"full": 1e-4, "lora": 2e-3}
RANK, ALPHA, DROPOUT = 16, 32, 0.05


def plain(dataset: Dataset, path: Path, strategy: str, seed: int) -> tuple[float, float]:
    """Test accuracy at the epoch with the best validation accuracy, and the seconds of training."""
    tokenizer = AutoTokenizer.from_pretrained(path)

    def examples(split: Split) -> list[dict[str, Any]]:
        return tokenised(tokenizer, split.inputs, split.labels, MAX_LENGTH)

    # The head has ten times the backbone's rate in Thawline's full fine-tuning; a plain script says so by groups.
    trial = {
        "strategy": strategy,
        "rank": RANK,
        "alpha": ALPHA,
        "dropout": DROPOUT,
        "learning_rate": RATES[strategy],
        "head_lr_multiplier": 10.0 if strategy == "full" else 1.0,
    }
    model = TextClassifier(str(path), len(dataset.label_names))
    set_seed(seed)
    prepare(model, trial)
    model.head.reset_parameters()
    best: dict[str, Any] = {"accuracy": -1.0}

    class KeepBest(transformers.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
            if metrics["eval_accuracy"] > best["accuracy"]:
                weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                best.update(accuracy=metrics["eval_accuracy"], weights=weights)

    arguments = TrainingArguments(
        output_dir="unused",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=64,
        learning_rate=RATES[strategy],
        warmup_steps=WARM_UP,
        max_grad_norm=CLIP,
        eval_strategy="epoch",
        save_strategy="no",
        bf16=resolve_precision("auto") == "bf16",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples(dataset.train),
        eval_dataset=examples(dataset.validation),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        optimizers=(torch.optim.AdamW([group for group in groups(model, trial) if group["params"]]), None),
        callbacks=[KeepBest()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    model.load_state_dict(best["weights"])
    output = trainer.predict(examples(dataset.test))
    return float((np.asarray(output.predictions).argmax(-1) == output.label_ids).mean()), seconds


def ours(task: Task, strategy: str, seed: int) -> tuple[float, float]:
    """The same through the project's own path."""
    fixed: dict[str, Any] = (
        {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT} if strategy == "lora" else {"head_lr_multiplier": 10.0}
    )
    spec, problems = parse_strategy({"name": strategy, **fixed}, RATES[strategy])
    assert spec is not None, problems
    run = task.run(spec, {}, seed=seed)
    return task.score_test(run).metrics["test_accuracy"], run.fit.train_seconds


def settings(*, length_grouping: bool = True) -> TrainerSettings:
    """Ours, as the plain script's are."""
    return TrainerSettings(
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        weight_decay=WEIGHT_DECAY,
        warmup_ratio=WARM_UP,
        max_grad_norm=CLIP,
        precision=resolve_precision("auto"),
        gradient_accumulation_steps=1,
        length_grouping=length_grouping,
        early_stopping_patience=0,
        early_stopping_metric="validation_loss",
        metric="validation_accuracy",
        maximize=True,
        class_weights="none",
    )


def main() -> None:
    """Print one line per pair, then the interval of the difference for each strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=1000)
    parser.add_argument("--strategies", default="full,lora")
    parser.add_argument("--random-batches", action="store_true", help="batch at random on both sides")
    parser.add_argument("--output", type=Path, help="write the pairs as JSON")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dataset = load_dataset("review_lines", train_size=options.train_size, validation_size=500, test_size=None)
    path = fetch("minilm")
    chosen = settings(length_grouping=not options.random_batches)
    task = Task.load(
        dataset, path, head="linear", pooling="mean", revision=None, max_length=MAX_LENGTH, settings=chosen
    )
    results: dict[str, list[dict[str, float]]] = {}
    for strategy in options.strategies.split(","):
        for seed in range(options.seeds):
            theirs, their_seconds = plain(dataset, path, strategy, seed)
            mine, my_seconds = ours(task, strategy, seed)
            pair = {"plain": theirs, "ours": mine, "plain_seconds": their_seconds, "our_seconds": my_seconds}
            results.setdefault(strategy, []).append(pair)
            print(
                f"{strategy} seed {seed}: plain {theirs:.4f} in {their_seconds:.0f} s, "
                f"ours {mine:.4f} in {my_seconds:.0f} s",
                flush=True,
            )
        _summarise(strategy, results[strategy])
    if options.output:
        options.output.write_text(json.dumps(results, indent=2))


def _summarise(strategy: str, pairs: list[dict[str, float]]) -> None:
    differences = [100 * (pair["ours"] - pair["plain"]) for pair in pairs]
    mean = statistics.mean(differences)
    if len(pairs) > 1:
        error = statistics.stdev(differences) / len(pairs) ** 0.5
        half = error * float(stats.t.ppf(0.975, len(pairs) - 1))
        interval = f"[{mean - half:+.2f}, {mean + half:+.2f}], half width {half:.2f}"
    else:
        interval = "one seed gives no interval"
    ratio = statistics.median(pair["plain_seconds"] / pair["our_seconds"] for pair in pairs)
    accuracies = {side: 100 * statistics.mean(pair[side] for pair in pairs) for side in ("plain", "ours")}
    print(
        f"{strategy}: plain {accuracies['plain']:.2f} %, ours {accuracies['ours']:.2f} %, difference {mean:+.2f} "
        f"points {interval}; the plain script takes {ratio:.2f} times as long"
    )


if __name__ == "__main__":
    main()
