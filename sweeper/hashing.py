"""Seeds and names from anything printable, the same on every platform."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["derive_seed", "digest"]


def derive_seed(*parts: object) -> int:
    """A 31-bit seed from anything printable; different parts give unrelated seeds."""
    hashed = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(hashed[:4], "big") >> 1


def digest(value: Any, length: int) -> str:
    """So many hex digits that change with the value, whose JSON is hashed."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]
