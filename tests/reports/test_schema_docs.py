"""``docs/mlflow_schema.md`` names everything that is logged."""

from __future__ import annotations

from pathlib import Path

from sweeper import schema

GUIDE = Path(__file__).parents[2] / "docs" / "mlflow_schema.md"


def test_every_name_of_the_schema_is_documented():
    text = GUIDE.read_text(encoding="utf-8")
    names = {
        value
        for key, value in vars(schema).items()
        if key.isupper() and isinstance(value, str) and key != "SCHEMA_VERSION"
    }
    names |= {
        name for key, value in vars(schema).items() if key.isupper() and isinstance(value, tuple) for name in value
    }
    assert len(names) > 60
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing


def test_documented_query_finds_finals(uri, monkeypatch):
    """The first example of the guide, run as it stands (with the address of the tests' store)."""
    code = GUIDE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    scope: dict[str, object] = {}
    exec(code.replace("sqlite:///outputs/mlflow.db", uri), scope)
    assert len(scope["finals"]) >= 9
    assert "metrics.test_accuracy" in scope["finals"].columns
