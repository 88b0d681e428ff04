"""Images from images: super-resolution and the like."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from pipeq_worker.models.own.images import decoded


class ImageToImagePipeline(transformers.Pipeline):
    """An image -> an image. It takes no parameters."""

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {}, {}

    def preprocess(self, inputs: Image.Image) -> Any:
        """An image -> ``pixel_values`` ``[1, channels, height, width]``."""
        return self.image_processor(images=[decoded(inputs)], return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"reconstruction": self.model(**model_inputs).reconstruction}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> Image.Image:
        """``[1, channels, height, width]``, 0 to 1 -> an image."""
        pixels = model_outputs["reconstruction"][0].float().clamp(0, 1).numpy()
        return Image.fromarray((np.moveaxis(pixels, 0, -1) * 255.0).round().astype(np.uint8).squeeze())
