"""Models for images or videos. Their processors work without torchvision."""

from __future__ import annotations

from pathlib import Path

import transformers as hf

from tests.tiny_models.base import SMALL, builder, save, spread

SQUARE = {"height": 32, "width": 32}
VIT = {"image_size": 32, "patch_size": 8, **SMALL}


@builder
def vit(path: Path) -> None:
    config = hf.ViTConfig(num_labels=4, **VIT)
    save(path, hf.ViTForImageClassification(config), hf.ViTImageProcessor(size=SQUARE))


@builder
def vit_encoder(path: Path) -> None:
    save(path, hf.ViTModel(hf.ViTConfig(**VIT)), hf.ViTImageProcessor(size=SQUARE))


@builder
def dinov2(path: Path) -> None:
    """Keeps the aspect ratio, so images of different shapes give different numbers of rows."""
    config = hf.Dinov2Config(**VIT)
    processor = hf.BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    save(path, hf.Dinov2Model(config), processor)


@builder
def resnet(path: Path) -> None:
    """A convolutional network; its features are maps, not rows."""
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    save(path, hf.ResNetModel(config), hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875))


def _segformer() -> tuple[hf.SegformerConfig, hf.SegformerImageProcessor]:
    config = hf.SegformerConfig(
        num_encoder_blocks=4,
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=3,
        initializer_range=0.2,
    )
    return config, hf.SegformerImageProcessor(size={"height": 64, "width": 64})


@builder
def segformer(path: Path) -> None:
    """Semantic segmentation."""
    config, processor = _segformer()
    model = hf.SegformerForSemanticSegmentation(config)
    spread(50, model.decode_head.classifier)
    save(path, model, processor)


@builder
def segformer_encoder(path: Path) -> None:
    """Has no pooled output."""
    config, processor = _segformer()
    save(path, hf.SegformerModel(config), processor)


@builder
def mask2former(path: Path) -> None:
    """Panoptic and instance segmentation. Needs scipy for a loss that is never computed."""
    backbone = hf.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = hf.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        num_labels=3,
    )
    model = hf.Mask2FormerForUniversalSegmentation(config)
    spread(20, model.class_predictor)
    spread(5, model.model.transformer_module.decoder.mask_predictor.mask_embedder)
    save(path, model, hf.Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}))


def _detr(d_model: int, **more: object) -> hf.DetrConfig:
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return hf.DetrConfig(
        backbone_config=backbone,
        d_model=d_model,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
        num_labels=4,
        **more,
    )


def _detr_processor() -> hf.DetrImageProcessor:
    """Keeps the aspect ratio, and masks the padding of the smaller images of a batch."""
    return hf.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@builder
def detr(path: Path) -> None:
    model = hf.DetrForObjectDetection(_detr(32, init_std=0.2))
    spread(5, model.model.query_position_embeddings)
    save(path, model, _detr_processor())


@builder
def detr_panoptic(path: Path) -> None:
    """Panoptic segmentation without additional packages."""
    model = hf.DetrForSegmentation(_detr(64, init_std=0.2))
    spread(5, model.detr.model.query_position_embeddings, model.mask_head.output_conv)
    spread(3, model.detr.class_labels_classifier)  # below a score of 0.5 there is no segment
    model.detr.class_labels_classifier.bias.data[-1] = -10  # the last class is: no object
    save(path, model, _detr_processor())


@builder
def yolos(path: Path) -> None:
    config = hf.YolosConfig(
        image_size=[32, 32], patch_size=8, num_detection_tokens=5, num_labels=4, initializer_range=0.1, **SMALL
    )
    processor = hf.YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    model = hf.YolosForObjectDetection(config)
    model.vit.embeddings.detection_tokens.data.normal_()  # zero at first: every box would be the same
    spread(3, model.class_labels_classifier)
    save(path, model, processor)


@builder
def dpt(path: Path) -> None:
    config = hf.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_in_index=-1,
        is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5],
        initializer_range=0.1,
    )
    save(path, hf.DPTForDepthEstimation(config), hf.DPTImageProcessor(size=SQUARE))


@builder
def glpn(path: Path) -> None:
    """Rounds the size of an image down to a multiple of 32; fails with images smaller than that."""
    config = hf.GLPNConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        initializer_range=0.2,
    )
    save(path, hf.GLPNForDepthEstimation(config), hf.GLPNImageProcessor(size_divisor=32))


def _superpoint() -> hf.SuperPointConfig:
    return hf.SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        keypoint_decoder_dim=65,
        descriptor_decoder_dim=16,
        max_keypoints=16,
        initializer_range=0.3,
    )


@builder
def superglue(path: Path) -> None:
    config = hf.SuperGlueConfig(
        keypoint_detector_config=_superpoint(),
        hidden_size=16,
        keypoint_encoder_sizes=[8, 16],
        gnn_layers_types=["self", "cross"],
        num_attention_heads=2,
        sinkhorn_iterations=10,
        matching_threshold=0.0,
        initializer_range=0.5,
    )
    model = hf.SuperGlueForKeypointMatching(config)
    spread(50, model.final_projection)
    save(path, model, hf.SuperGlueImageProcessor(size={"height": 48, "width": 64}))


@builder
def lightglue(path: Path) -> None:
    config = hf.LightGlueConfig(
        keypoint_detector_config=_superpoint(),
        descriptor_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        filter_threshold=0.0,
        initializer_range=0.5,
    )
    processor = hf.LightGlueImageProcessor(size={"height": 48, "width": 64})
    save(path, hf.LightGlueForKeypointMatching(config), processor)


@builder
def sam(path: Path) -> None:
    """Its last step, choosing among overlapping masks, is a function of torchvision."""
    vision = hf.SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_dim=32,
        window_size=4,
        global_attn_indexes=[1],
        num_pos_feats=8,
        initializer_range=0.2,
    )
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4, "input_image_size": 64}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    config = hf.SamConfig(vision_config=vision.to_dict(), prompt_encoder_config=prompt, mask_decoder_config=decoder)
    square = {"height": 64, "width": 64}
    processor = hf.SamImageProcessor(
        size={"longest_edge": 64}, pad_size=square, mask_size={"longest_edge": 64}, mask_pad_size=square
    )
    save(path, hf.SamModel(config), processor)


@builder
def videomae(path: Path) -> None:
    config = hf.VideoMAEConfig(
        num_frames=4,
        tubelet_size=2,
        num_labels=3,
        decoder_num_hidden_layers=1,
        decoder_hidden_size=32,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        **VIT,
    )
    model = hf.VideoMAEForVideoClassification(config)
    spread(20, model.classifier)
    save(path, model, hf.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE))


@builder
def timesformer(path: Path) -> None:
    config = hf.TimesformerConfig(num_frames=4, num_labels=3, initializer_range=0.2, **VIT)
    model = hf.TimesformerForVideoClassification(config)
    spread(5, model.classifier)
    save(path, model, hf.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE))
