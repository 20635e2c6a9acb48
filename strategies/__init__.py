"""How much of a pretrained model trains: one file per strategy, all of them by the contract of ``base``."""

from __future__ import annotations

from strategies.base import (
    BackboneStrategy,
    Layout,
    NotApplicable,
    Stage,
    Strategy,
    boundary,
    count_parameters,
    enter_stage,
    prefix_modules,
    set_trainable,
)
from strategies.bitfit import BitFit
from strategies.discriminative import Discriminative
from strategies.frozen import Frozen
from strategies.full import Full
from strategies.gradual import Gradual
from strategies.lora import Lora
from strategies.lp_ft import LpFt
from strategies.partial import Partial
from strategies.scratch import Scratch
from strategies.zero_shot import ZeroShot

__all__ = [
    "STRATEGIES",
    "BackboneStrategy",
    "BitFit",
    "Discriminative",
    "Frozen",
    "Full",
    "Gradual",
    "Layout",
    "Lora",
    "LpFt",
    "NotApplicable",
    "Partial",
    "Scratch",
    "Stage",
    "Strategy",
    "ZeroShot",
    "boundary",
    "count_parameters",
    "enter_stage",
    "prefix_modules",
    "set_trainable",
]

#: Every strategy by its name, from nothing trained to everything.
STRATEGIES: dict[str, type[Strategy]] = {
    cls.name: cls for cls in (ZeroShot, Frozen, BitFit, Lora, Partial, Gradual, LpFt, Discriminative, Full, Scratch)
}
