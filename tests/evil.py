"""A pipeline whose inputs say what goes wrong, and at which stage; and the folder of a worker that serves it.

Models that can be made to kill or hold a process at every stage are not to be had, so a ``sitecustomize`` module puts
this one into the worker's children. An input is a text such as ``dies at prepare`` or ``sleeps 3 at forward``; for the
stages ``fetch`` and ``decode`` it is the inline bytes of a picture for the pipeline ``pictures``, and for ``place`` it
is the result, which goes to a store. The host loads the module, too: for ``receipt`` the text is in a header of the
message, which the host reads, and for ``delivery`` it is the result, or the end of an error's sentence.
"""

from __future__ import annotations

import os
from pathlib import Path

EVIL = """
import sys

def happen(value, stage):
    import ctypes, os, re, signal, time
    what, _, where = str(value).partition(" at ")
    if where.split(" ")[0] != stage:
        return
    what, _, seconds = what.partition(" ")
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "breaks":
        ctypes.string_at(0)
    if what == "fills":
        bytearray(2**30)
    if what == "sleeps":
        time.sleep(float(seconds))
    if what == "spins":  # with Python's lock held
        re.match("(a+)+$", "a" * 64 + "b")

if "pipeq_worker.children.main" in sys.orig_argv:
    import time
    from pipeq.contract.errors import PipeqError
    from pipeq_worker.models import constant_pipeline
    from pipeq_worker.models.pipeline import Prepared
    from pipeq_worker.models.task_types import find
    from pipeq_worker.stages import decode, fetch
    from pipeq_worker.stores import writer

    class Evil(constant_pipeline.ConstantPipeline):
        def __init__(self, name, settings):
            super().__init__(name, settings)
            if name == "pictures":
                self.task_type = find("image-classification")

        def prepare(self, value, call):
            happen(value, "prepare")
            if str(value).startswith("refused: "):
                raise PipeqError("invalid_input", value[9:])
            yield Prepared(value, (self.name, call.key), 1, 1)

        def prepare_together(self, values, call):
            return [one for value in values for one in self.prepare(value, call)]

        def forward(self, features, call, running=None):
            time.sleep(0.01)
            for value in features:
                happen(value, "forward")
            return features

        def postprocess(self, outputs, call):
            happen(outputs[0], "finish")
            return outputs[0]

    class EvilFetcher(fetch.Fetcher):
        def fetch(self, ref, reserve=lambda size: None):
            data = super().fetch(ref, reserve)
            happen(data.decode("latin-1"), "fetch")
            return data

    def evil_put(self, uri, data, media_type, put=writer.Writer.put):
        happen(data.decode().strip('"'), "place")
        return put(self, uri, data, media_type)

    def evil_decode(media, data, *rest):
        happen(data.decode("latin-1"), "decode")
        return data.decode("latin-1")

    constant_pipeline.ConstantPipeline = Evil
    decode.decode = evil_decode
    writer.Writer.put = evil_put
    fetch.Fetcher = EvilFetcher

def raw_happen(raw, stage):
    at = raw.find(b" at " + stage.encode())
    if at >= 0:
        happen(raw[raw.rfind(b'"', 0, at) + 1 : at].decode() + " at " + stage, stage)

if "worker" in sys.orig_argv and not any(one.startswith("--devices") for one in sys.orig_argv):
    from pipeq_worker.broker import intake, transport
    from pipeq_worker.broker import plain_message
    from pipeq_worker.delivery import deliver

    def evil_plain(one, limits, read=plain_message.read):
        raw_happen(one.raw, "receipt")
        return read(one, limits)

    def evil_read(one, limits, read=transport.read):
        raw_happen(one.raw, "receipt")
        return read(one, limits)

    def evil_store(self, backend, delivery, is_plain, store=deliver.Deliverer._store):
        said = delivery.result_json.decode() if delivery.error is None else delivery.error.message
        happen(said.strip('"').split("'")[-1], "delivery")
        return store(self, backend, delivery, is_plain)

    plain_message.read = evil_plain
    transport.read = evil_read
    deliver.Deliverer._store = evil_store
"""


def python_path(folder: Path, code: str = EVIL) -> str:
    """Puts the module into a folder. Returns a PYTHONPATH for the worker."""
    (folder / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
