"""Reports: read a comparison back from MLflow and say, with its uncertainty, which strategy to choose.

The data flows one way: ``load`` (the only reader of MLflow) -> ``stats`` -> ``tables``, ``verdict`` and ``plots`` ->
``render``, and ``data_size`` and ``summary`` for several comparisons. Nothing here trains or samples anything, and
importing the package loads none of its dependencies.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.data_size import build_size_report
    from reports.load import Comparison, is_curve, list_comparisons, load_comparison, load_curve
    from reports.render import Report, build_report
    from reports.summary import ALL, build_summary
    from reports.verdict import Rule

__all__ = [
    "ALL",
    "Comparison",
    "Report",
    "Rule",
    "build_report",
    "build_size_report",
    "build_summary",
    "is_curve",
    "list_comparisons",
    "load_comparison",
    "load_curve",
]

_HOME = {
    "Comparison": "reports.load",
    "is_curve": "reports.load",
    "list_comparisons": "reports.load",
    "load_comparison": "reports.load",
    "load_curve": "reports.load",
    "build_size_report": "reports.data_size",
    "ALL": "reports.summary",
    "build_summary": "reports.summary",
    "Report": "reports.render",
    "build_report": "reports.render",
    "Rule": "reports.verdict",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): ``import reports`` alone costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'reports' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
