"""Single training steps, with torch, transformers, peft and timm alone, so that it runs on any machine with a GPU.

    python3 -m benchmarks.step                         # BERT-base and ViT-base sizes, random weights
    python3 -m benchmarks.step --size small --steps 3  # a laptop

For each model and strategy, the seconds of a step (forward, backward, AdamW) as three sides take it: ``A`` in float32,
``B`` in bf16 by autocast, ``ours`` in bf16 with frozen weights held in it and with the states below the boundary given
instead of computed; they are on the device already, where real training copies them. Prints the device, the medians,
their ratios and the peak memory on CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import BertConfig, BertModel

CLASSES = 4
STRATEGIES = ("frozen", "partial", "lora", "full")
SIZES = {
    "base": {"width": 768, "blocks": 12, "heads": 12, "vit": "vit_base_patch16_224"},
    "small": {"width": 384, "blocks": 6, "heads": 12, "vit": "vit_tiny_patch16_224"},
}


class Text(nn.Module):
    """A BERT of random weights, the mean of its tokens, a linear layer."""

    targets = ("query", "value")

    def __init__(self, size: dict[str, Any], tokens: int) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=size["width"],
            num_hidden_layers=size["blocks"],
            num_attention_heads=size["heads"],
            intermediate_size=4 * size["width"],
        )
        self.body = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(size["width"], CLASSES)
        self.tokens = tokens

    def batch(self, size: int) -> torch.Tensor:
        """Token ids."""
        return torch.randint(1000, 20000, (size, self.tokens))

    def blocks(self) -> Any:
        """In order from the input."""
        return self.body.encoder.layer

    def stem(self, inputs: torch.Tensor) -> torch.Tensor:
        """What enters the first block."""
        return self.body.embeddings(inputs)

    def top(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of what the last block puts out."""
        return self.head(states.mean(1))


class Image(nn.Module):
    """A vision transformer of random weights with a linear layer."""

    targets = ("qkv",)

    def __init__(self, size: dict[str, Any], tokens: int) -> None:
        super().__init__()
        self.body = timm.create_model(size["vit"], pretrained=False, num_classes=0)
        self.head = nn.Linear(self.body.num_features, CLASSES)

    def batch(self, size: int) -> torch.Tensor:
        """Pixels."""
        return torch.randn(size, 3, 224, 224)

    def blocks(self) -> Any:
        """In order from the input."""
        return self.body.blocks

    def stem(self, inputs: torch.Tensor) -> torch.Tensor:
        """What enters the first block."""
        body: Any = self.body
        return body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(inputs))))

    def top(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of what the last block puts out."""
        return self.head(self.body.norm(states)[:, 0])


def prepare(model: Any, strategy: str, kept: int) -> int:
    """Freeze what the strategy does not train; the number of leading blocks that are not trained through."""
    blocks = list(model.blocks())
    if strategy == "full":
        return 0
    model.body.requires_grad_(False)
    if strategy == "lora":
        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=list(model.targets)), model.body)
        return 0
    if strategy == "partial":
        for block in blocks[-kept:]:
            block.requires_grad_(True)
        return len(blocks) - kept
    return len(blocks)


def run(model: Any, states: torch.Tensor, first: int) -> torch.Tensor:
    """Logits, from the states that enter a block."""
    for block in list(model.blocks())[first:]:
        output = block(states)
        states = output[0] if isinstance(output, tuple) else output
    return model.top(states)


def measure(kind: type[Any], strategy: str, side: str, arguments: argparse.Namespace, device: torch.device) -> Any:
    """Median seconds of a step, and the peak memory in MB on CUDA."""
    torch.manual_seed(0)
    model = kind(SIZES[arguments.size], arguments.tokens)
    boundary = prepare(model, strategy, arguments.blocks)
    model.to(device).train()
    for block in list(model.blocks())[:boundary]:
        block.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    inputs = model.batch(arguments.batch).to(device)
    labels = torch.randint(CLASSES, (arguments.batch,), device=device)
    low: Callable[[], Any] = contextlib.nullcontext
    if side != "A":
        low = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    states, first = None, 0
    if side == "ours":
        for module in model.modules():
            if type(module) is nn.Linear and not module.weight.requires_grad:
                module.weight.data = module.weight.data.to(torch.bfloat16)
        if boundary:
            with torch.no_grad(), low():
                states = model.stem(inputs)
                for block in list(model.blocks())[:boundary]:
                    output = block(states)
                    states = output[0] if isinstance(output, tuple) else output
            first = boundary
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(arguments.steps + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        with low():
            logits = run(model, model.stem(inputs) if states is None else states, first)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else None
    return statistics.median(seconds[2:]), peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=2, help="that partial trains")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"{device.type}: {name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{'model':6} {'strategy':9} {'A ms':>9} {'B ms':>9} {'ours ms':>9} {'vs A':>6} {'vs B':>6}  peak MB A/B/ours"
    )
    for kind in (Text, Image):
        for strategy in STRATEGIES:
            found = {side: measure(kind, strategy, side, arguments, device) for side in ("A", "B", "ours")}
            a, b, ours = (found[side][0] * 1e3 for side in ("A", "B", "ours"))
            peaks = "/".join("-" if peak is None else f"{peak:.0f}" for _, peak in found.values())
            print(
                f"{kind.__name__.lower():6} {strategy:9} {a:9.1f} {b:9.1f} {ours:9.1f} "
                f"{a / ours:5.1f}x {b / ours:5.1f}x  {peaks}",
                flush=True,
            )


if __name__ == "__main__":
    main()
