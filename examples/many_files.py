"""Transcribe many recordings at once: one task each, printed as they end, and a bad one fails alone.

    pipeq worker automatic-speech-recognition=openai/whisper-small --allow https://raw.githubusercontent.com/
    python examples/many_files.py [FILE OR URI]...

A list as the input of one task (`client.submit(..., [a, b])`) gives one list of results, when the last one is done.
With one task for each file, each file has its own status, and its result as soon as it is done.
"""

import sys

from pipeq import Client, Ref

SAMPLES = [
    "https://raw.githubusercontent.com/openai/whisper/main/tests/jfk.flac",
    "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/tests_samples/sample1.flac",
]

sources = sys.argv[1:] or SAMPLES

with Client() as client:
    # Any iterable works, generators too: it is read while the tasks are queued, 500 of them in a round trip.
    files = map(Ref.of, sources)
    ids = client.submit_many("automatic-speech-recognition", files)
    source_of = dict(zip(ids, sources, strict=True))
    for status in client.as_completed(ids, timeout_s=600):
        if status.error:
            print(f"{source_of[status.id]}: failed, {status.error.message}")
        else:
            # Not status.result: a long transcript may be in the worker's store, and result() fetches it from there.
            print(f"{source_of[status.id]}: {client.result(status.id)['text']}")
