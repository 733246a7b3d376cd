"""Tiny ViT, Swin and BERT of random weights for LAPS and SEPS, and a WordPiece vocabulary, built on the fly.

Knows configurations and how to fill weights from one seed. Nothing here is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, SwinConfig, ViTConfig

from adapters.seps.model import SEPS, Config, Head

torch.set_num_threads(1)  # tensors this small only wait for a second thread

SIDE = 32

WORDS = (
    "a the is are on in and of with under near next to left right red green blue yellow white black "
    "small large circle square triangle star dog cat horse car bus tree house man woman ball cup "
    "table grass beach water image shows there two three one ##s ##ing ##ed run sit stand . , ! ? ' - [ ]"
)

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS.split(),
    *"bcdefghijklmnopqrstuvwxyz0123456789",
]


def vocabulary(folder: Path) -> Path:
    """Write `vocab.txt`, as bert-base-uncased has it: one piece a line, its number the line's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def vit(side: int = SIDE, width: int = 48) -> ViTConfig:
    """[CLS] and (side / 8)² patches of `width`."""
    return ViTConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=8,
    )


def swin(side: int = SIDE, width: int = 24) -> SwinConfig:
    """(side / 8)² patches of 2 `width`, no [CLS]: two stages, the first one's patches of 4 pixels."""
    return SwinConfig(
        image_size=side, patch_size=4, embed_dim=width, depths=[1, 1], num_heads=[2, 4], window_size=4
    )


def bert(width: int = 40, positions: int = 128) -> BertConfig:
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
    )


def plain(config: Any) -> dict[str, Any]:
    """A tower's configuration as a checkpoint keeps it."""
    return dict(config.to_dict())


def config(impl: str = "laps", backbone: str = "vit", **options: Any) -> Config:
    """Of tiny towers. 16 patches of a picture of 32 pixels; C = 32, so that both towers are projected."""
    tower = vit() if backbone == "vit" else swin()
    values: dict[str, Any] = {
        "impl": impl,
        "backbone": f"tiny-{backbone}",
        "text": "tiny-bert",
        "image_size": SIDE,
        "patches": 16,
        "has_cls": backbone == "vit",
        "sparse_ratio": 0.5 if backbone == "vit" else 0.8,
        "aggr_ratio": 0.4 if backbone == "vit" else 0.6,
        "embed_size": 32,
        "vision_config": plain(tower),
        "text_config": plain(bert()),
    }
    return Config(**{**values, **options})


def model(impl: str = "laps", backbone: str = "vit", seed: int = 0, **options: Any) -> SEPS:
    """With all weights drawn from `seed`, the head's zeros too; in evaluation mode."""
    found = SEPS(config(impl, backbone, **options))
    draw(found, seed)
    return found.eval()


def head(
    impl: str, patches: int, has_cls: bool, ratios: tuple[float, float], embed: int = 64, **options: Any
) -> Head:
    """A head for tokens that no tower made, of any size."""
    found = Head(Config(impl, "x", "y", 224, patches, has_cls, *ratios, embed, **options))  # type: ignore[arg-type]
    draw(found, 1)
    return found.eval()


def draw(module: nn.Module, seed: int) -> None:
    """Weights of a wider spread than the architectures' own: what is nearly flat hides what is wrong."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            spread = 1.4 / weight[0].numel() ** 0.5 if weight.ndim > 1 and len(weight) else 0.3
            noise = torch.from_numpy(rng.standard_normal(weight.shape) * spread)
            weight.copy_(noise + (1 if "norm" in name.lower() and name.endswith("weight") else 0))
            if name.endswith("scale"):
                weight.fill_(1.5)
