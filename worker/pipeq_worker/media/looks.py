"""Describes in words what bytes look like. Used in error messages only; nothing is decoded."""

from __future__ import annotations

_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a WAV, AVI or WebP file"),
    (b"fLaC", "FLAC audio"),
    (b"OggS", "Ogg audio"),
    (b"ID3", "MP3 audio"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
_TEXT_SIGNATURES = (
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ("<svg", "an SVG drawing"),
    ("<?xml", "an XML document"),
    ("{", "JSON"),
    ("#extm3u", "a playlist"),
    ("ffconcat", "a playlist"),
)


def looks_like(data: bytes) -> str:
    """Names what bytes seem to be, for an error message: ``an HTML page``."""
    if not data:
        return "nothing: it is empty"
    for signature, words in _SIGNATURES:
        if data.startswith(signature):
            return words
    if data[4:8] == b"ftyp":
        return "an MP4, HEIC or AVIF file"
    head = data[:1024]
    # A character may be cut in two at the end.
    text = head.decode("utf-8-sig", errors="ignore").strip().lower()
    if b"\0" in head or len(text.encode()) < 0.9 * len(head.strip()):
        return "binary data of an unknown kind"
    return next((words for begin, words in _TEXT_SIGNATURES if text.startswith(begin)), "plain text")
