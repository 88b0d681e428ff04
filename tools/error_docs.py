"""Writes ``docs/errors.md`` from :mod:`pipeq.contract.errors`: each code with its status in HTTP, each class of error.

Used by :mod:`tools.docs`.
"""

from __future__ import annotations

import re
from inspect import getdoc
from pathlib import Path

import pipeq
from pipeq.contract import errors
from pipeq.contract.errors import HTTP_STATUS, RETRYABLE, ErrorCode, PipeqError

#: Codes that no task ends with: their sentence says so at its end.
_NEVER = " Never the outcome of a task."
_HEAD = """# Errors

Made by `make docs` from [contract/errors.py](../producers/pipeq/contract/errors.py).

Whatever a call of `pipeq` raises is a `PipeqError`: `code` is one of the table, `message` a sentence that names the
offending thing and what to do, `retryable` whether the same call may succeed later, and `http_status` what an HTTP
server answers with. The status of a failed task (`client.status(id).error`, `pipeq status ID --json`) has the same
`code`, `message` and `retryable`.

```python
from pipeq import Client, PipeqError, SubmitError, TaskFailedError

client = Client()
try:
    ids = client.submit_many("text-classification", texts)
    first = client.result(ids[0], timeout_s=60)
except SubmitError as error:
    print(error.code, len(error.submitted), "tasks were queued before it")
except TaskFailedError as error:
    print(error.code, error.status.attempts, error.status.timing_ms)
except PipeqError as error:
    print(error.code, error.message, error.http_status)
```

Errors can be pickled, and a Celery task that fails with one passes it on whole.

"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD + "## Codes", "", *_codes(), "", "## Classes", "", *_classes()]) + "\n"


def _codes() -> list[str]:
    source = Path(errors.__file__).read_text(encoding="utf-8")
    meanings = {code: meaning for meaning, code in re.findall(r'#: ([^\n]+)\n    [A-Z_]+ = "(\w+)"', source)}
    lines = ["| code | what it means | HTTP | of a task | retried |", "| --- | --- | ---: | --- | --- |"]
    for code in ErrorCode:
        meaning = meanings[code]
        cells = [
            f"`{code}`",
            meaning.removesuffix(_NEVER).removesuffix(" Retried with backoff."),
            str(HTTP_STATUS[code]),
            "" if meaning.endswith(_NEVER) else "yes",
            "with backoff" if code in RETRYABLE else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _classes() -> list[str]:
    lines = ["| class | below | what it says |", "| --- | --- | --- |"]
    for name in pipeq.__all__:
        value = getattr(pipeq, name)
        if isinstance(value, type) and issubclass(value, PipeqError):
            above = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
            said = (getdoc(value) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "`")
            said = re.sub(r":\w+:`([^`]+)`", r"`\1`", said)
            lines.append(f"| `{name}` | {above} | {said} |")
    return lines
