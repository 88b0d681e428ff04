"""LOGIN: does S3 accept this worker's credentials at all? Asked at the start, beside the loading of the models.

A program of its own, because the host neither imports boto3 nor waits for a store. Only credentials that are refused
end the start: a store that is away comes back, and a worker without credentials leaves tasks that need some to others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress

from pipeq.contract import shown
from pipeq.contract.errors import SettingsError

from pipeq_worker.settings.read import Settings
from pipeq_worker.settings.sections import InputSettings, S3Settings
from pipeq_worker.stores.base import Access, StoreError

#: A worker that has loaded its models waits at most so long for the answer, in seconds.
PATIENCE_S = 5.0
#: How long one connect or read may take, in seconds.
_TIMEOUT_S = 5.0


class Login:
    """Asks. It owns its process, which ends with :meth:`check`, or with its pipe.

    Args:
        settings: of the worker; without a place on S3, nothing is asked.
    """

    def __init__(self, settings: Settings) -> None:
        places = (*settings.inputs.allow, *settings.results.allow, settings.results.store or "")
        self._place = next((one for one in places if one.startswith("s3://")), None)
        self._process: subprocess.Popen[str] | None = None
        if self._place is not None:
            command = [sys.executable, "-m", "pipeq_worker.process.login"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            with suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps([self._place, settings.s3.model_dump(mode="json")]) + "\n")
                self._process.stdin.flush()

    def check(self) -> None:
        """Waits for the answer, if it has not come yet.

        Raises:
            SettingsError: the credentials are refused.
        """
        if (process := self._process) is None:
            return
        try:
            said, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return
        if said.strip():
            raise SettingsError(f"s3: {shown.line(said)}; correct them (AWS_ACCESS_KEY_ID, a profile, a role)")


def main() -> None:
    """Prints why the credentials are refused; nothing if they are not."""
    from pipeq_worker.stores.s3 import REFUSED_CREDENTIALS, S3

    place, s3 = json.loads(sys.stdin.readline())
    store = S3(Access(_TIMEOUT_S, 1, InputSettings(), S3Settings(**s3)))
    try:
        store.look(store.prefix(place), shown.uri(place))
    except StoreError as error:
        if error.code in REFUSED_CREDENTIALS:
            print(error.sentence)
    finally:
        store.close()


if __name__ == "__main__":
    main()
