"""Passages in S3, embedded by reference through the queue; questions find their answers."""

from __future__ import annotations

from pipeq import Ref

from tests.acceptance.conftest import Service
from tests.acceptance.corpus import PASSAGES, QUESTIONS
from tests.acceptance.test_stock_celery import embedding_pipeline
from tests.parity import assert_same, plain


def test_the_expected_passage_is_among_the_three_nearest(service: Service) -> None:
    s3 = service.s3.client()
    refs = []
    for at, passage in enumerate(PASSAGES):
        s3.put_object(Bucket="inputs", Key=f"corpus/{at:02}.txt", Body=passage.encode())
        refs.append(Ref(f"s3://inputs/corpus/{at:02}.txt"))
    client = service.client
    passages = [client.result(task, 60) for task in client.submit_many("text-embedding", refs)]
    questions = [client.result(task, 60) for task in client.submit_many("text-embedding", list(QUESTIONS))]
    for question, (text, expected) in zip(questions, QUESTIONS.items(), strict=True):
        scores = [sum(a * b for a, b in zip(question, passage, strict=True)) for passage in passages]
        nearest = sorted(range(len(scores)), key=lambda at: -scores[at])[:3]
        assert expected in nearest, text


def test_the_vectors_equal_a_direct_call(service: Service) -> None:
    pipe = embedding_pipeline(service.minilm)
    client = service.client
    got = [client.result(task, 60) for task in client.submit_many("text-embedding", PASSAGES)]
    for passage, vector in zip(PASSAGES, got, strict=True):
        assert_same(vector, plain(pipe(passage)))
        assert abs(sum(x * x for x in vector) - 1) < 1e-5
