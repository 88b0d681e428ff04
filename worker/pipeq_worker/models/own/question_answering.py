"""Extractive question answering: the span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pipeq.contract.errors import ErrorCode, PipeqError
from transformers.pipelines.base import ChunkPipeline

#: Logit of a token that cannot be in an answer.
_EXCLUDED = -10000.0
#: Longest chunk, in tokens, and overlap of neighbouring chunks, unless the call sets them.
_MAX_SEQ_LEN = 384
_DOC_STRIDE = 128


class QuestionAnsweringPipeline(ChunkPipeline):
    """``{"question", "context"}`` -> ``{"score", "start", "end", "answer"}``, or a list of them for ``top_k`` > 1.

    ``start`` and ``end`` count characters of the context. A context too long for the model is read in overlapping
    chunks. Parameters of a call, as in transformers 4: ``top_k`` (1), ``doc_stride`` (tokens by which chunks overlap),
    ``max_seq_len`` (of a chunk, question included), ``max_answer_len`` (15 tokens), ``handle_impossible_answer``
    (whether "no answer" is one), ``align_to_words`` (true), ``padding``. ``max_question_len`` has no effect, as it had
    none with a fast tokenizer. A slow tokenizer is refused, because it does not know the positions of its tokens in the
    text.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"question-answering needs a fast tokenizer, which {type(self.tokenizer).__name__} is not: it must "
                "tell the position of each token in the text"
            )

    def _sanitize_parameters(
        self,
        padding: bool | str | None = None,
        top_k: int | None = None,
        doc_stride: int | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        max_question_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        align_to_words: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, not 1 or more")
        preprocess = {"padding": padding, "doc_stride": doc_stride, "max_seq_len": max_seq_len}
        postprocess = {
            "top_k": top_k,
            "max_answer_len": max_answer_len,
            "handle_impossible_answer": handle_impossible_answer,
            "align_to_words": align_to_words,
        }
        return _given(preprocess), {}, _given(postprocess)

    def preprocess(
        self,
        inputs: dict[str, str],
        padding: bool | str = "do_not_pad",
        doc_stride: int | None = None,
        max_seq_len: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the chunks of one question and context.

        Each has the tokenizer's features and ``p_mask``, ``[1, tokens]`` each, where ``p_mask`` is 1 for a token that
        cannot be part of an answer; the ``encoding``, which maps tokens to characters; and the ``context``.
        """
        question, context = inputs["question"], inputs["context"]
        for name, text in (("question", question), ("context", context)):
            if not text:
                raise PipeqError(ErrorCode.INVALID_INPUT, f"{name} is empty")
        max_seq_len, doc_stride = self.chunk_sizes(max_seq_len, doc_stride)
        if doc_stride > max_seq_len:
            raise ValueError(f"doc_stride is {doc_stride}, beyond max_seq_len, {max_seq_len}")
        self._check_room(question, context, max_seq_len, doc_stride)
        first = self._question_first
        encoded = self.tokenizer(
            question if first else context,
            context if first else question,
            padding=padding,
            truncation="only_second" if first else "only_first",
            max_length=max_seq_len,
            stride=doc_stride,
            return_token_type_ids=True,
            return_overflowing_tokens=True,
        )
        features = [name for name in self.tokenizer.model_input_names if name in encoded]
        chunks = len(encoded["input_ids"])
        for at in range(chunks):
            tokens = torch.tensor(encoded["input_ids"][at])
            in_context = torch.tensor([own == int(first) for own in encoded.sequence_ids(at)])
            # The class token stays allowed, because models point at it to say "no answer".
            allowed = in_context | (tokens == self.tokenizer.cls_token_id)
            yield {
                **{name: torch.tensor(encoded[name][at])[None] for name in features},
                "p_mask": (~allowed).long()[None],
                "encoding": encoded.encodings[at],
                "context": context,
                "is_last": at == chunks - 1,
            }

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        """Features ``[batch, tokens]`` -> logits of an answer's first and last token, ``[batch, tokens]`` each."""
        features = {name: model_inputs[name] for name in self.tokenizer.model_input_names if name in model_inputs}
        output = self.model(**features)
        kept = ("p_mask", "attention_mask", "encoding", "context", "is_last")
        return {
            "start": output["start_logits"],
            "end": output["end_logits"],
            **{name: model_inputs[name] for name in kept if name in model_inputs},
        }

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        top_k: int = 1,
        handle_impossible_answer: bool = False,
        max_answer_len: int = 15,
        align_to_words: bool = True,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The chunks of one context -> its best answers, best first."""
        answers: dict[str, dict[str, Any]] = {}
        null_score = float("inf")
        # Spans that give the same words are merged and their scores added up, so more spans are examined than are asked
        # for.
        candidates = top_k * 2 + 10 if align_to_words else top_k
        for chunk in model_outputs:
            encoding, context = chunk["encoding"], chunk["context"]
            starts, ends, scores, null = self._spans(chunk, candidates, max_answer_len)
            null_score = min(null_score, null)
            for start, end, score in zip(starts, ends, scores, strict=True):
                first, last = _characters(encoding, start, end, int(self._question_first), align_to_words)
                answer = context[first:last]
                known = answers.setdefault(
                    answer.lower(), {"score": 0.0, "start": first, "end": last, "answer": answer}
                )
                known["score"] += score.item()
        found = list(answers.values())
        if handle_impossible_answer:
            found.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        best = sorted(found, key=lambda answer: answer["score"], reverse=True)[:top_k]
        return best[0] if len(best) == 1 else best

    def chunk_sizes(self, max_seq_len: int | None, doc_stride: int | None) -> tuple[int, int]:
        """Tokens of a chunk, and tokens by which two chunks overlap, with the defaults for what is not given."""
        if max_seq_len is None:
            max_seq_len = min(self.tokenizer.model_max_length, _MAX_SEQ_LEN)
        return max_seq_len, min(max_seq_len // 2, _DOC_STRIDE) if doc_stride is None else doc_stride

    def _check_room(self, question: str, context: str, max_seq_len: int, doc_stride: int) -> None:
        """Raises if the question leaves too little room for a chunk of the context, at which the tokenizer panics."""

        def tokens(text: str) -> int:
            return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        room = max_seq_len - self.tokenizer.num_special_tokens_to_add(pair=True) - tokens(question)
        if doc_stride >= room and tokens(context) > room:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"the question leaves {max(room, 0)} of max_seq_len={max_seq_len} tokens to the context, which is "
                f"longer and cut into chunks that overlap by doc_stride={doc_stride}: shorten the question, or set "
                "another max_seq_len or doc_stride",
            )

    @property
    def _question_first(self) -> bool:
        # XLNet and its like read the context first, and pad on the left.
        return self.tokenizer.padding_side == "right"

    def _spans(
        self, chunk: dict[str, Any], candidates: int, max_answer_len: int
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
        """The most probable spans of a chunk: first tokens, last tokens, scores; and the score of "no answer"."""
        # Cut off the batch's padding, on whichever side it is, so that a token's index is its index in the encoding.
        length = len(chunk["encoding"].ids)
        own = slice(0, length) if self._question_first else slice(-length, None)
        excluded = chunk["p_mask"][0, own] == 1
        if (mask := chunk.get("attention_mask")) is not None:
            excluded |= mask[0, own] == 0
        start, end = (
            torch.where(excluded, _EXCLUDED, chunk[name][0, own].float()).softmax(-1).numpy()
            for name in ("start", "end")
        )
        null = float(start[0] * end[0])
        start[0] = end[0] = 0.0
        # Probability of each span that ends at or after its start and has at most max_answer_len tokens.
        spans = np.tril(np.triu(np.outer(start, end)), max_answer_len - 1)
        flat = spans.ravel()
        if candidates == 1:
            order = np.array([flat.argmax()])
        elif flat.size <= candidates:
            order = np.argsort(-flat)
        else:
            order = np.argpartition(-flat, candidates)[:candidates]
            order = order[np.argsort(-flat[order])]
        starts, ends = np.unravel_index(order, spans.shape)
        possible = ~excluded.numpy()
        possible[0] = True  # as in transformers 4, for any token; its probability is 0 here
        kept = possible[starts] & possible[ends]
        starts, ends = starts[kept], ends[kept]
        return starts, ends, spans[starts, ends], null


def _characters(encoding: Any, start: int, end: int, sequence: int, align_to_words: bool) -> tuple[int, int]:
    """The characters that tokens ``start`` to ``end`` cover; with ``align_to_words``, those of their whole words."""
    if align_to_words:
        words = encoding.token_to_word(int(start)), encoding.token_to_word(int(end))
        if None not in words:
            spans = [encoding.word_to_chars(word, sequence) for word in words]
            if None not in spans:
                return spans[0][0], spans[1][1]
    return encoding.offsets[start][0], encoding.offsets[end][1]


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
