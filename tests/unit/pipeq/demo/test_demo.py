"""The demo's own parts: passages, ranking, numbers, and the worker's command. Without server and worker."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from pipeq.contract.errors import WaitTimeoutError
from pipeq.contract.status import BatchInfo, ErrorInfo, State, TaskStatus
from pipeq.demo import demo
from pipeq.demo import passages as demo_passages
from pipeq.demo.embedded import S3Server
from pipeq.demo.guarded import Child
from pipeq.demo.passages import Document, Passage, collect, cut, docstrings, documents, nearest
from rich.console import Console


def texts(markdown: str) -> list[str]:
    return [passage.text for passage in cut(Document("a.md", markdown))]


def sentence(words: int, name: str = "w") -> str:
    return " ".join(f"{name}{n}" for n in range(words - 1)) + " end."


# -- cutting ----------------------------------------------------------------------------------------------------------


def test_a_passage_begins_with_its_heading():
    assert texts("# Leases\n\nA worker's right.\n") == ["Leases: A worker's right."]


def test_a_passage_never_crosses_a_heading():
    assert texts("intro\n# A\none\n## B\ntwo\n# Empty\n") == ["intro", "A: one", "B: two"]


def test_short_paragraphs_are_joined_up_to_sixty_words():
    found = texts("\n\n".join(sentence(20, f"p{n}_") for n in range(7)))
    assert [len(text.split()) for text in found] == [60, 60, 20]


def test_a_long_paragraph_is_cut_at_the_ends_of_sentences():
    found = texts(" ".join(sentence(25, f"s{n}_") for n in range(8)))
    assert [len(text.split()) for text in found] == [75, 75, 50]
    assert all(text.endswith("end.") for text in found)


def test_a_paragraph_a_little_too_long_stays_whole():
    assert len(texts(sentence(demo_passages.MOST_WORDS))) == 1


def test_a_sentence_without_an_end_is_broken():
    found = texts(" ".join(["word"] * 200))
    assert [len(text.split()) for text in found] == [60, 60, 60, 20]


def test_no_word_is_lost():
    paragraphs = [sentence(n, f"p{n}_") for n in (5, 130, 61, 90, 3, 300)]
    assert " ".join(texts("\n\n".join(paragraphs))) == " ".join(paragraphs)


def test_code_is_one_paragraph_and_its_comments_are_no_headings():
    assert texts("# Start\n```sh\n# first\n\npipeq demo\n```\nThen wait.\n") == ["Start: # first pipeq demo Then wait."]


def test_markup_goes_and_words_stay():
    markdown = (
        '**Bold** `code` [a link](https://example.org) ![badge](b.svg) <img src="x"> <!-- no --> TASK[=MODEL] <id>'
    )
    assert texts(markdown) == ["Bold code a link badge TASK[=MODEL] <id>"]


def test_rows_of_a_table_and_items_of_a_list_are_kept_apart_from_markup():
    assert texts("| word | meaning |\n| --- | :-: |\n| task | unit |\n") == ["word | meaning task | unit"]
    long_items = "\n".join(f"- {sentence(50)}" for _ in range(2))
    assert len(texts(long_items)) == 2


def test_nothing_gives_nothing():
    assert texts("") == texts("# Only a heading\n\n---\n") == []


# -- documents --------------------------------------------------------------------------------------------------------


def test_documents_of_a_checkout(tmp_path):
    (tmp_path / "docs" / "decisions").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "docs/b.md", "docs/decisions/a.md", "docs/schema.json"):
        (tmp_path / name).write_text(f"text of {name}")
    assert [document.source for document in documents(tmp_path)] == ["README.md", "docs/b.md", "docs/decisions/a.md"]


def test_documents_without_a_checkout_are_those_of_the_package(tmp_path, monkeypatch):
    class Packaged:
        def get_payload(self) -> str:
            return "# pipeq\n\nA queue.\n"

    monkeypatch.setattr(demo_passages.metadata, "metadata", lambda name: Packaged())
    assert documents(tmp_path) == [Document("README.md", "# pipeq\n\nA queue.\n")]


def test_docstrings_are_read_without_an_import():
    script = """
import sys
from pipeq.demo.passages import docstrings
sources = {document.source for document in docstrings()}
assert {"pipeq/client.py", "pipeq_worker/settings/read.py"} <= sources, sources
assert not {"pipeq_worker", "torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_docstrings_name_what_they_describe():
    documents = {document.source: document for document in docstrings()}
    passages = [passage.text for name in ("client", "bulk_calls") for passage in cut(documents[f"pipeq/{name}.py"])]
    assert any(text.startswith("Client: ") for text in passages)
    assert any("submit_many(): Queues one task for each item" in text for text in passages)


def test_there_are_always_enough_passages(monkeypatch):
    monkeypatch.setattr(demo_passages, "documents", list)
    assert 100 <= len(collect()) <= demo_passages.AT_MOST
    monkeypatch.setattr(
        demo_passages, "documents", lambda: [Document("a.md", f"# {n}\n\ntext") for n in range(5)] * 999
    )
    assert len(collect()) == demo_passages.AT_MOST


# -- ranking ----------------------------------------------------------------------------------------------------------


def test_nearest_are_the_best_first():
    vectors = {"same": [1.0, 0.0], "close": [0.8, 0.6], "apart": [0.0, 1.0], "opposite": [-1.0, 0.0]}
    index = [(Passage("a.md", name), vector) for name, vector in vectors.items()]
    matches = nearest([1.0, 0.0], reversed(index), 3)
    assert [(match.passage.text, match.score) for match in matches] == [("same", 1.0), ("close", 0.8), ("apart", 0.0)]
    assert len(nearest([1.0, 0.0], index, 9)) == 4


def test_embeddings_of_two_models_do_not_mix():
    with pytest.raises(ValueError, match="shorter"):
        nearest([1.0, 0.0], [(Passage("a.md", "text"), [1.0])], 1)


# -- numbers ----------------------------------------------------------------------------------------------------------


def done(size: int, submitted_at: float = 100.0, finished_at: float = 104.0, **fields) -> TaskStatus:
    batch = BatchInfo(size=size, padding=0.0)
    state = fields.pop("state", State.SUCCEEDED)
    return TaskStatus(
        id="an-id", state=state, submitted_at=submitted_at, finished_at=finished_at, batch=batch, **fields
    )


def test_batches_are_counted_once_each():
    stats = demo.BatchStats.of([done(4)] * 8 + [done(3)] * 3 + [done(1, finished_at=106.0)])
    assert (stats.tasks, stats.batches, stats.mean, stats.largest, stats.rate) == (12, 4, 3.0, 4, 2.0)


def test_no_batches_no_numbers():
    assert demo.BatchStats.of([TaskStatus(id="an-id", state=State.FAILED)]) is None


def test_a_status_is_shown_with_little_of_its_embedding():
    assert demo.shortened(done(1, result=[0.5] * 384))["result"] == [0.5, 0.5, 0.5, "... 381 more"]
    assert demo.shortened(done(1, result=None))["result"] is None


def test_tasks_that_did_not_succeed_are_counted_and_one_is_explained():
    console = Console(record=True, width=200)
    error = ErrorInfo(code="input_not_found", message="no s3://passages/0001.txt", retryable=False)
    assert demo._report(console, [done(1), done(1, state=State.FAILED, error=error)], None) == 1
    assert "input_not_found: no s3://passages/0001.txt" in console.export_text()


# -- the worker -------------------------------------------------------------------------------------------------------


def test_the_worker_is_a_process_that_may_read_the_passages_only():
    command = demo.worker_command(None)
    assert command[:3] == [sys.executable, "-m", "pipeq"]
    assert command[3:] == ["worker", f"text-embedding={demo.MODEL}", "--allow", "s3://passages/"]
    assert demo.worker_command(Path("/models/a"))[4] == "text-embedding=/models/a"


def test_the_worker_gets_our_servers_and_none_of_the_caller():
    environ = {
        "PATH": "/bin",
        "PIPEQ_INPUTS__MAX_BYTES": "1",
        "AWS_SESSION_TOKEN": "theirs",
        "AWS_ACCESS_KEY_ID": "theirs",
    }
    store = S3Server("http://127.0.0.1:1", "key", "secret")
    env = demo.worker_env(environ, "redis://127.0.0.1:2/0", store, Path("/models/a"))
    assert env["PATH"] == "/bin"
    assert env["PIPEQ_REDIS_URL"] == "redis://127.0.0.1:2/0"
    assert (env["AWS_ACCESS_KEY_ID"], env["AWS_SESSION_TOKEN"], env["AWS_ENDPOINT_URL"]) == (
        "key",
        "",
        store.endpoint_url,
    )
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "PIPEQ_INPUTS__MAX_BYTES" not in env
    assert "HF_HUB_OFFLINE" not in demo.worker_env({}, "redis://127.0.0.1:2/0", store, None)


class NoWorkers:
    """A client that never finds a worker."""

    def queues(self) -> list:
        return []

    def status_many(self, ids) -> list[TaskStatus]:
        return [TaskStatus(id=task_id, state=State.QUEUED) for task_id in ids]


def child(tmp_path, command: str):
    with (tmp_path / "log").open("wb") as log:
        return Child(subprocess.Popen(["/bin/sh", "-c", command], stdout=log), tmp_path / "log")


def test_a_worker_that_ends_by_itself_is_noticed(tmp_path):
    ended = child(tmp_path, "echo 'no model here'; exit 3")
    with pytest.raises(demo.WorkerEndedError, match="no model here"):
        demo._wait_for_worker(Console(quiet=True), NoWorkers(), ended)
    with pytest.raises(demo.WorkerEndedError, match="no model here"):
        demo._follow(None, NoWorkers(), ended, ["an-id"])


def test_nothing_waits_for_ever(tmp_path, monkeypatch):
    idle = child(tmp_path, "exec sleep 60")
    monkeypatch.setattr(demo, "WORKER_WITHIN_S", -math.inf)
    try:
        with pytest.raises(WaitTimeoutError, match="not ready"):
            demo._wait_for_worker(Console(quiet=True), NoWorkers(), idle)
    finally:
        idle.process.kill()
        idle.process.wait()


def test_progress_in_a_pipe_is_lines_without_control_codes(capsys):
    console = Console(width=80)
    with demo._display(console, 3) as show:
        show(3, 0, 0)
        show(2, 1, 0)  # too soon for a line of its own
        show(0, 0, 3)
    assert capsys.readouterr().out == "Tasks      queued 3  running 0  done 0\nTasks      queued 0  running 0  done 3\n"
