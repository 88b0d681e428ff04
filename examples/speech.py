"""Transcribe a recording by reference: the worker reads the file, and this program does not.

    pipeq worker automatic-speech-recognition=openai/whisper-small --allow https://raw.githubusercontent.com/
    python examples/speech.py [FILE OR URI]

A file of your own must be on a disk that the worker can read, below a prefix that it is allowed to: `--allow
file:///data/`.
"""

import sys

from pipeq import Client, Ref

SAMPLE = "https://raw.githubusercontent.com/openai/whisper/main/tests/jfk.flac"

source = sys.argv[1] if len(sys.argv) > 1 else SAMPLE
# A string for audio is a URI, as in transformers; a Path becomes an absolute file:// URI.
audio = Ref.of(source)

with Client() as client:
    task = client.submit("automatic-speech-recognition", audio)
    print(client.result(task, timeout_s=300)["text"])
