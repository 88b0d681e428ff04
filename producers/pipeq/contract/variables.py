"""CONTRACT: the environment variables that begin with ``PIPEQ_``. One that nobody reads is a typing error.

Client and worker read one environment, perhaps of one file, so each knows the names of both: a worker's from its
settings, a client from the table here, which a test compares with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from pipeq.contract import shown

PREFIX = "PIPEQ_"
#: Variables that are no settings of a worker: of a client, of the worker's cache, and of a supervisor's children.
OTHERS = ("PIPEQ_CLIENT_ALLOW", "PIPEQ_CLIENT_UPLOAD", "PIPEQ_CACHE", "PIPEQ_SUPERVISOR")
#: The settings of a worker that may be given by a variable: PIPEQ_REDIS_URL, and PIPEQ_INPUTS__ALLOW for those of a
#: section.
SETTINGS = (
    "redis_url s3 inputs results param_limits metrics pipelines include celery_queues device max_message_bytes "
    "prefetch prefetch_s prefetch_bytes fetch_threads max_items prepare_threads prepare_processes process_max_bytes "
    "idle_unload_s max_loaded_bytes torch_threads strict max_attempts retry_backoff_s retry_backoff_max_s "
    "max_retry_age_s max_own_faults own_fault_pause_s max_deaths lease_s sweep_s hard_timeout_s step_timeout_s "
    "load_timeout_s drain_s log_level log_format"
).split()
#: Variables that Kubernetes and Docker's links set for every service: for a service called `pipeq-redis`,
#: PIPEQ_REDIS_PORT_6379_TCP.
_OF_SERVICES = re.compile(r"PIPEQ_\w*(_SERVICE_(HOST|PORT(_\w+)?)|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
#: How alike two names are that somebody may have confused: 1 for equal ones.
_ALIKE = 0.7


def unknown(environ: Mapping[str, str], settings: Iterable[str] = SETTINGS, nested: Iterable[str] = ()) -> list[str]:
    """Returns a sentence for each environment variable that begins with our prefix and is not known.

    Args:
        environ: all variables.
        settings: the names of a worker's settings.
        nested: names of settings in sections, such as ``INPUTS__ALLOW``, for those who wrote one underscore.
    """
    found = []
    known = [f"{PREFIX}{name.upper()}" for name in settings]
    for variable, value in environ.items():
        name = variable.upper()
        if not name.startswith(PREFIX) or name.partition("__")[0] in known or name in OTHERS:
            continue
        # PIPEQ_METRICS_PORT=9090 is a setting with an underscore too few; that of a service is tcp://10.0.0.1:9090.
        if _OF_SERVICES.fullmatch(name) and not (name.endswith("_PORT") and "://" not in value):
            continue
        # All names share the prefix, so it is left out when they are compared.
        names = [one.removeprefix(PREFIX) for one in (*known, *nested, *OTHERS)]
        written = name.removeprefix(PREFIX)[:200]
        meant = get_close_matches(written, names, 1, _ALIKE)
        nearest = get_close_matches(written, names, 1, 0.0)
        hint = f"did you mean {PREFIX}{meant[0]}?" if meant else f"unset it; the nearest is {PREFIX}{nearest[0]}"
        found.append(f"no setting is called {shown.line(variable, 100)}; {hint}")
    return found
