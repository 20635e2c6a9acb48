"""Secrets stay out of what is printed, logged and stored: passwords in URLs, tokens in queries and environments."""

from __future__ import annotations

import os
import re

__all__ = ["MASK", "redacted"]

#: Stands where a secret was; in a command that reproduces a study, where to put it.
MASK = "***"

# Up to the last @: a password with an unquoted one is masked whole. Without a password, http takes a user for a token.
_PASSWORD = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/@'\"]*:)\S+@")
_USER = re.compile(r"(https?://)[^\s:/@'\"]+@")
_QUERY = re.compile(
    r"([?&;][\w.-]*(?:token|passw(?:or)?d|pwd|secret|key|sig|signature|credential)=)[^&;\s'\"#]+", re.IGNORECASE
)
_VARIABLE = re.compile(r"(?:TOKEN|PASSWORD|PASSWD|SECRET|KEY)$")
_SHORTEST = 8  # a shorter value of a variable is more likely a word than a secret


def redacted(text: str) -> str:
    """The text with ``***`` in the place of every secret.

    Masked are the passwords of URLs (``postgresql://user:***@host/db``), the users of ``http`` URLs without one, values
    in queries whose name says token, password, secret, key or signature, and the values of environment variables whose
    names end so, such as ``HF_TOKEN``, ``OPENAI_API_KEY`` and ``MLFLOW_TRACKING_PASSWORD``.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLE.search(name):
            text = text.replace(value, MASK)
    text = _PASSWORD.sub(rf"\1{MASK}@", text)
    text = _USER.sub(rf"\1{MASK}@", text)
    return _QUERY.sub(rf"\1{MASK}", text)
