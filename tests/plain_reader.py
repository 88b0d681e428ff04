"""The reader of records that ``docs/record.md`` shows to those who do not use the Python client."""

import re
from typing import Any

from tools.record_tables import PAGE


def read_as_the_page_says(record: dict[str, Any] | None, mark: dict[str, Any] | None, now: float) -> str:
    """The state of a task, as the program on the page reads it."""
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    return names["state"](record, mark, now)
