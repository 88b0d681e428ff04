"""The demo's material: pipeq's own documents, cut into passages, and the ranking of passages against a question."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from importlib import metadata
from pathlib import Path

#: Target length of a passage in words. MiniLM reads 256 tokens, about 190 words, and ignores the rest.
WORDS = 60
#: A paragraph of at most this many words stays whole.
MOST_WORDS = 90
#: With fewer passages than this the batches would be small, so docstrings are added.
ENOUGH = 200
#: Most passages; more would only make the demo longer.
AT_MOST = 300

_HEADING = re.compile(r"#{1,6}\s+(.*)")
_FENCE = re.compile(r"\s*(```|~~~)")
_ROW_OR_ITEM = re.compile(r"\s*(\||[-*+]\s|\d+\.\s)")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")
_MARKUP = (
    # Links and images are replaced by their text.
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"<!--.*?-->|</?(?:img|a|p|br|div|picture|source|details|summary)\b[^>]*>", re.DOTALL), ""),
    # The line below a table's header, then the separators of its cells.
    (re.compile(r"^[\s|:-]+$", re.MULTILINE), ""),
    (re.compile(r"^\s*\||\|\s*$", re.MULTILINE), ""),
    (re.compile(r"``|\*\*|`"), ""),
)


@dataclass(frozen=True)
class Document:
    """A text in Markdown."""

    #: A path below the repository, or a package's name.
    source: str
    text: str


@dataclass(frozen=True)
class Passage:
    """A piece of a document, small enough for one embedding."""

    source: str
    text: str


@dataclass(frozen=True)
class Match:
    """A passage, and its similarity to a question."""

    passage: Passage
    #: Cosine similarity, -1 to 1.
    score: float


def collect() -> list[Passage]:
    """The passages of pipeq's documents, and those of its docstrings if the documents are few; at most 300."""
    passages = [passage for document in documents() for passage in cut(document)]
    if len(passages) < ENOUGH:
        passages += [passage for document in docstrings() for passage in cut(document)]
    # Of too many, some of each part: the last documents answer questions, too.
    most = min(len(passages), AT_MOST)
    return [passages[at * len(passages) // most] for at in range(most)]


def nearest(question: Sequence[float], passages: Iterable[tuple[Passage, Sequence[float]]], count: int) -> list[Match]:
    """Returns the ``count`` best matches, best first.

    Args:
        question: the question's embedding, of length 1, so that a dot product is the cosine.
        passages: each passage with its embedding, also of length 1.
        count: number of matches.

    Raises:
        ValueError: an embedding has another number of dimensions than the question's.
    """
    matches = (
        Match(passage, sum(a * b for a, b in zip(question, vector, strict=True))) for passage, vector in passages
    )
    return nlargest(count, matches, key=lambda match: match.score)


# -- where the documents come from ------------------------------------------------------------------------------------


def documents(root: Path | None = None) -> list[Document]:
    """README, changelog and docs of the checkout that pipeq runs from, else the README of the installed package."""
    root = root or Path(__file__).resolve().parents[3]
    if (root / "pyproject.toml").is_file():
        paths = [root / "README.md", root / "CHANGELOG.md", *sorted((root / "docs").glob("**/*.md"))]
        return [
            Document(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
            for path in paths
            if path.is_file()
        ]
    try:
        readme = metadata.metadata("pipeq").get_payload()  # type: ignore[attr-defined] # an email.message.Message
    except metadata.PackageNotFoundError:
        return []
    return [Document("README.md", readme)] if isinstance(readme, str) and readme.strip() else []


def docstrings() -> Iterator[Document]:
    """Yields a document with the docstrings of each source file of pipeq. The files are parsed, not imported."""
    for package in ("pipeq", "pipeq_worker"):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(place).rglob("*.py")):
                yield Document(f"{package}/{path.relative_to(place).as_posix()}", _describe(path))


def _describe(path: Path) -> str:
    """The docstrings of a file as Markdown: a heading for the module and each class, a paragraph for each function."""
    parts = _parts(path.stem, ast.parse(path.read_text(encoding="utf-8")))
    return "\n\n".join(parts)


def _parts(name: str, node: ast.Module | ast.ClassDef) -> Iterator[str]:
    yield f"# {name}"
    yield ast.get_docstring(node) or ""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            text = ast.get_docstring(child)
            yield f"{child.name}(): {text}" if text else ""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _parts(child.name, child)


# -- cutting ----------------------------------------------------------------------------------------------------------


def cut(document: Document) -> list[Passage]:
    """Cuts a document into passages of about 60 words.

    A passage never crosses a heading, and begins with its heading, which often says what the paragraphs are about.
    Short paragraphs are joined, and long ones are cut at the ends of sentences.
    """
    return [
        Passage(document.source, f"{heading}: {text}" if heading else text)
        for heading, paragraphs in _sections(document.text)
        for text in _fill(piece for paragraph in paragraphs for piece in _pieces(paragraph))
    ]


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each heading with its paragraphs. Blocks of code, list items and table rows count as paragraphs."""
    heading, in_code = "", False
    paragraphs: list[str] = []
    lines: list[str] = []

    def end_paragraph() -> None:
        joined = _plain("\n".join(lines))
        if joined:
            paragraphs.append(joined)
        lines.clear()

    for line in text.splitlines():
        found = None if in_code else _HEADING.match(line)
        if _FENCE.match(line):
            in_code = not in_code
            end_paragraph()
        elif found or (not in_code and not line.strip()):
            end_paragraph()
        else:
            if not in_code and _ROW_OR_ITEM.match(line):
                end_paragraph()
            lines.append(line)
        if found:
            yield heading, paragraphs
            heading, paragraphs = _plain(found[1]), []
    end_paragraph()
    yield heading, paragraphs


def _plain(text: str) -> str:
    """Removes markup and line breaks. Code keeps its words."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def _pieces(paragraph: str) -> list[str]:
    """A paragraph; if it is long, its sentences, joined up to about 60 words; a longer sentence is broken."""
    if _words(paragraph) <= MOST_WORDS:
        return [paragraph]
    sentences = (words for sentence in _SENTENCE_END.split(paragraph) for words in _broken(sentence))
    return list(_fill(sentences))


def _broken(sentence: str) -> list[str]:
    words = sentence.split()
    if len(words) <= MOST_WORDS:
        return [sentence]
    return [" ".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]


def _fill(pieces: Iterable[str]) -> Iterator[str]:
    """Joins pieces until they have 60 words, unless that would make more than 90."""
    joined = ""
    for piece in pieces:
        if joined and _words(joined) + _words(piece) > MOST_WORDS:
            yield joined
            joined = ""
        joined = f"{joined} {piece}".strip()
        if _words(joined) >= WORDS:
            yield joined
            joined = ""
    if joined:
        yield joined


def _words(text: str) -> int:
    return len(text.split())
