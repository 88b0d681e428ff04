"""Transcribe a long recording in chunks: it is one task, whose chunks share batches with those of other tasks.

    pipeq worker automatic-speech-recognition=facebook/wav2vec2-large-960h-lv60-self --allow https://raw.githubusercontent.com/
    python examples/chunks.py [FILE OR URI] [SECONDS IN A CHUNK]

Chunks overlap, so that no word is cut. The worker joins their texts into one.
"""

import sys

from pipeq import Client, Ref

SAMPLE = "https://raw.githubusercontent.com/openai/whisper/main/tests/jfk.flac"

source = sys.argv[1] if len(sys.argv) > 1 else SAMPLE
# 30 seconds are usual for hours of speech; the sample lasts 11 seconds.
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 4.0

with Client() as client:
    task = client.submit(
        "automatic-speech-recognition",
        Ref.of(source),
        params={"chunk_length_s": seconds, "stride_length_s": seconds / 6, "return_timestamps": "word"},
    )
    status = client.wait(task, timeout_s=3600)
    result = client.result(task)
    for word in result["chunks"]:
        began, ended = word["timestamp"]
        print(f"{began:8.2f} to {ended:.2f}  {word['text']}")
    print(result["text"])
    if status.batch:
        print(f"({status.batch.size} chunks in the largest batch)")
