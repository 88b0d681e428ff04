"""Tiny random checkpoints, at least one for each task type, built in seconds without the Hub.

Seeded, so they never change.
"""

from tests.tiny_models import audio, multimodal, own, text, vision
from tests.tiny_models.base import BUILDERS, build

__all__ = ["BUILDERS", "audio", "build", "multimodal", "own", "text", "vision"]
