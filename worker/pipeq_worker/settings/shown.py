"""Prints the settings for ``pipeq worker --check``: all of them, without passwords and tokens."""

from __future__ import annotations

import json
import re
from typing import Any

from pipeq.contract import shown

from pipeq_worker.settings.read import Settings

#: Names of model arguments whose values are secret: ``token``, ``use_auth_token``, ``api_key``, ...
_SECRET = re.compile(
    r"(?:^|[_-])(?:token|password|passwd|secret|auth|credentials?|api_?key|access_?key)$", re.IGNORECASE
)


def as_json(settings: Settings) -> str:
    """All settings with their values, as indented JSON; URLs have no user and password, secrets read ``***``."""
    return json.dumps(_without_secrets(settings.model_dump(mode="json")), indent=2, ensure_ascii=False)


def _without_secrets(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_secrets(one, name) for one in value]
    if isinstance(value, str):
        return "***" if _SECRET.search(name) else shown.uri(value) if "://" in value else value
    return value
