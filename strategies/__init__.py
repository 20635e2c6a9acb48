"""How much of a pretrained model trains: one file per strategy, all of them by the contract of ``base``."""

from __future__ import annotations

from strategies.adapter import Adapter
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
    trainable_names,
)
from strategies.bitfit import BitFit
from strategies.discriminative import Discriminative
from strategies.dora import Dora
from strategies.frozen import Frozen
from strategies.full import Full
from strategies.gradual import Gradual
from strategies.ia3 import Ia3
from strategies.lora import Lora
from strategies.lp_ft import LpFt
from strategies.partial import Partial
from strategies.pissa import Pissa
from strategies.prefix import Prefix
from strategies.prompt import Prompt
from strategies.qlora import QLora
from strategies.rslora import RsLora
from strategies.scratch import Scratch
from strategies.vera import Vera
from strategies.zero_shot import ZeroShot

__all__ = [
    "STRATEGIES",
    "Adapter",
    "BackboneStrategy",
    "BitFit",
    "Discriminative",
    "Dora",
    "Frozen",
    "Full",
    "Gradual",
    "Ia3",
    "Layout",
    "Lora",
    "LpFt",
    "NotApplicable",
    "Partial",
    "Pissa",
    "Prefix",
    "Prompt",
    "QLora",
    "RsLora",
    "Scratch",
    "Stage",
    "Strategy",
    "Vera",
    "ZeroShot",
    "boundary",
    "count_parameters",
    "enter_stage",
    "prefix_modules",
    "set_trainable",
    "trainable_names",
]

#: Every strategy by its name, from nothing trained to everything.
STRATEGIES: dict[str, type[Strategy]] = {
    cls.name: cls
    for cls in (
        ZeroShot,
        Frozen,
        Prompt,
        Ia3,
        Vera,
        BitFit,
        Prefix,
        Lora,
        Dora,
        RsLora,
        Pissa,
        QLora,
        Adapter,
        Partial,
        Gradual,
        LpFt,
        Discriminative,
        Full,
        Scratch,
    )
}
