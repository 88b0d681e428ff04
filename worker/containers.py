"""Opens containers of audio and video from memory, with nothing that a container could open in turn. Used by decode."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError

from producers.errors import ErrorCode, PipeqError
from worker.looks import looks_like

#: Containers that hold their own streams. Playlists (hls, dash, concat, sdp) and image sequences open other files.
_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,gif,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,"
    "mpegts,ogg,tta,voc,w64,wav,wv"
)


def open_container(data: bytes, name: str) -> InputContainer:
    """Opens a file of audio or video.

    Raises:
        PipeqError: ``input_undecodable``.
    """
    # Two whitelists: should one of these formats open other files after all, there is no protocol to do it by.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
    try:
        # Tags are often in another encoding than they say: no reason to refuse the sound.
        return av.open(io.BytesIO(data), mode="r", container_options=options, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        reason = f"{name} is no audio or video of a known format; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error


def frames(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The frames of one stream; damaged packets are left out, and so is what follows a break."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            # The end, be it a broken one. demux() has flushed the decoder if it was a proper one.
            return
        with suppress(FFmpegError):
            yield from packet.decode()
