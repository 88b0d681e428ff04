"""Transcribe a recording by reference: the worker reads it, this program never does.

    pipeq worker automatic-speech-recognition=openai/whisper-small --allow https://raw.githubusercontent.com/
    python examples/speech.py [FILE OR URI]

A file of your own must be on a disk that the worker sees, too, below what it may read: `--allow file:///data/`.
"""

import sys

from pipeq import Client, Ref

SAMPLE = "https://raw.githubusercontent.com/openai/whisper/main/tests/jfk.flac"

source = sys.argv[1] if len(sys.argv) > 1 else SAMPLE
# Audio that is a string is a URI, as in transformers; a Path becomes file:// and absolute.
audio = Ref.of(source)

with Client() as client:
    task = client.submit("automatic-speech-recognition", audio)
    print(client.result(task, timeout_s=300)["text"])
