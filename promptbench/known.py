"""Backbones worth naming in lists; `load_backbone` takes any architecture and tag of open_clip."""

from __future__ import annotations

BACKBONES = {
    "mini": "embedded tiny CLIP, 48 px, ships with the package",
    "ViT-B-16-quickgelu:openai": "OpenAI CLIP ViT-B/16, 224 px, the papers' default",
    "ViT-B-32-quickgelu:openai": "OpenAI CLIP ViT-B/32, 224 px",
    "ViT-L-14-quickgelu:openai": "OpenAI CLIP ViT-L/14, 224 px",
    "RN50-quickgelu:openai": "OpenAI CLIP ResNet-50, 224 px (text prompts only)",
    "RN101-quickgelu:openai": "OpenAI CLIP ResNet-101, 224 px (text prompts only)",
}
