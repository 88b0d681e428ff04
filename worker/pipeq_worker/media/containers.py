"""Opens containers of audio and video from memory, with nothing that a container could open in turn. Used by decode."""

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

#: Containers that hold their own streams. Playlists (hls, dash, concat, sdp) and image sequences open other files.
_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,gif,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,"
    "mpegts,ogg,tta,voc,w64,wav,wv"
)


#: Largest picture that an audio file may bring, and most samples of one channel in one frame of audio.
_COVER_PIXELS = 2**26
_MAX_SAMPLES = 2**23


def open_container(data: bytes, name: str, max_pixels: int = _COVER_PIXELS) -> InputContainer:
    """Opens a file of audio or video.

    Args:
        data: the file.
        name: what errors call it.
        max_pixels: largest frame of any of its streams.

    Raises:
        PipeqError: ``input_undecodable``.
    """
    # Two whitelists: should one of these formats open other files after all, there is no protocol to do it by.
    whitelists = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
    # Opening decodes the first frames of every stream: a bound on them, where the header promises less.
    bounds = {"max_pixels": str(max_pixels), "max_samples": str(_MAX_SAMPLES)}
    try:
        # Tags are often in another encoding than they say: no reason to refuse the sound.
        return av.open(
            io.BytesIO(data), mode="r", container_options=whitelists, options=bounds, metadata_errors="replace"
        )
    except MemoryError:
        raise
    except Exception as error:
        # FFmpegError as a rule; PyAV itself stumbles over headers that no writer makes.
        reason = f"{name} is no audio or video of a known format; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error


def frames(container: InputContainer, stream: Any, max_pixels: int = _COVER_PIXELS) -> Iterator[Any]:
    """The frames of one stream; damaged packets are left out, and so is what follows a break.

    Args:
        container: what :func:`open_container` opened.
        stream: one whose codec is known.
        max_pixels: largest frame of video; it is not decoded if it is larger, whatever the header said.
    """
    stream.codec_context.options = {"max_pixels": str(max_pixels), "max_samples": str(_MAX_SAMPLES)}
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            # The end, be it a broken one. demux() has flushed the decoder if it was a proper one.
            return
        with suppress(FFmpegError):
            yield from packet.decode()


def known(streams: Any) -> list[Any]:
    """The streams whose codec there is a decoder for."""
    return [stream for stream in streams if stream.codec_context is not None]
