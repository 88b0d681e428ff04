"""Opens audio and video containers from memory, without access to any other file or address. Used by decode."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.looks import looks_like

#: Containers that hold their own streams. Playlists (hls, dash, concat, sdp) and image sequences are left out, because
#: they open other files.
_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,gif,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,"
    "mpegts,ogg,tta,voc,w64,wav,wv"
)


#: Largest cover picture of an audio file, in pixels, and most samples of one channel in one audio frame.
_COVER_PIXELS = 2**26
_MAX_SAMPLES = 2**23


def open_container(data: bytes, name: str, max_pixels: int = _COVER_PIXELS) -> InputContainer:
    """Opens an audio or video file.

    Args:
        data: the file's bytes.
        name: the name that error messages use.
        max_pixels: largest frame of any of its streams, in pixels.

    Raises:
        PipeqError: ``input_undecodable``.
    """
    # Two whitelists: if one of these formats did open other files, it would find no protocol to open them with.
    whitelists = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
    # Opening decodes the first frames of every stream. The header may understate their size, so the decoder is bounded.
    bounds = _bounds(max_pixels)
    try:
        # Tags often have another encoding than they declare, which is no reason to refuse the sound.
        return av.open(
            io.BytesIO(data), mode="r", container_options=whitelists, options=bounds, metadata_errors="replace"
        )
    except MemoryError:
        raise
    except Exception as error:
        # Usually an FFmpegError; PyAV itself fails in other ways on malformed headers.
        reason = f"{name} is no audio or video of a known format; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error


def frames(container: InputContainer, stream: Any, max_pixels: int = _COVER_PIXELS) -> Iterator[Any]:
    """Decodes the frames of one stream. Damaged packets are skipped; a break in the file ends the stream.

    Args:
        container: a container from :func:`open_container`.
        stream: a stream whose codec is known.
        max_pixels: largest video frame; a larger one is not decoded, whatever the header declares.
    """
    stream.codec_context.options = _bounds(max_pixels)
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            # The end of the file, or the point where it is broken. At a proper end demux() has already flushed the
            # decoder.
            return
        with suppress(FFmpegError):
            yield from packet.decode()


def _bounds(max_pixels: int) -> dict[str, str]:
    # FFmpeg reads 32 bits, and with more it decodes nothing at all.
    return {"max_pixels": str(min(max_pixels, 2**31 - 1)), "max_samples": str(_MAX_SAMPLES)}


def known(streams: Any) -> list[Any]:
    """The streams for which a decoder exists."""
    return [stream for stream in streams if stream.codec_context is not None]
