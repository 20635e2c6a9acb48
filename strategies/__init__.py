"""How much of a pretrained model trains: one file per strategy, all of them by the contract of ``base``."""

from __future__ import annotations

from strategies.base import Layout, Strategy, boundary, count_parameters, prefix_modules, set_trainable
from strategies.frozen import Frozen
from strategies.full import Full
from strategies.lora import Lora
from strategies.partial import Partial

__all__ = [
    "STRATEGIES",
    "Frozen",
    "Full",
    "Layout",
    "Lora",
    "Partial",
    "Strategy",
    "boundary",
    "count_parameters",
    "prefix_modules",
    "set_trainable",
]

#: Every strategy by its name, from nothing trained to everything.
STRATEGIES: dict[str, type[Strategy]] = {cls.name: cls for cls in (Frozen, Lora, Partial, Full)}
