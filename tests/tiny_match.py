"""Tiny random image-text scorers in the hub's layout: BLIP for image-text matching, CLIP, SigLIP 1 and 2."""

from __future__ import annotations

import string
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from harness.checkpoints import quiet

MARKS = string.punctuation
LETTERS = string.ascii_lowercase + string.digits
WORDS = ["the", "red", "car", "dog", "cat", "two", "on", "green", "grass", "sign", "bus", "people", "is"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *MARKS, *LETTERS, *(f"##{one}" for one in LETTERS)]
VOCABULARY = [*BERT, *WORDS]
"""Of a word-piece tokenizer without [DEC] and [ENC], as the hub's; its letters spell any other word."""

TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2}


def blip_itm(folder: Path, *, side: int = 64, eps: float = 1e-6, known: tuple[str, ...] = ()) -> Path:
    """A BLIP-ITM as Salesforce/blip-itm-large-coco is laid out: patches of 16, the tower another width.

    eps: of the tower's layer norms. known: tokens that its tokenizer has been taught, such as [DEC].
    """
    config = BlipConfig(
        text_config={
            **TOWER,
            "vocab_size": len(VOCABULARY) + 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
            "bos_token_id": len(VOCABULARY),
            "sep_token_id": 3,
        },
        vision_config={
            **TOWER,
            "hidden_size": 48,
            "intermediate_size": 96,
            "image_size": side,
            "patch_size": 16,
            "layer_norm_eps": eps,
        },
        image_text_hidden_size=16,
    )
    words = BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)})
    words.add_tokens(list(known), special_tokens=True)
    pixels = BlipImageProcessorPil(size={"height": side, "width": side})
    return _save(BlipForImageTextRetrieval(config), BlipProcessor(pixels, words), folder)


def clip(folder: Path, *, context: int = 24) -> Path:
    """A CLIP as openai/clip-vit-base-patch32 is laid out, a token per letter."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    words = CLIPTokenizer(vocab=numbered, merges=[], model_max_length=context)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    tower = {**TOWER, "hidden_size": 32, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": context},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(CLIPModel(config), CLIPProcessor(pixels, words), folder)


def siglip(folder: Path, *, context: int = 16) -> Path:
    """A SigLIP as google/siglip-base-patch16-224 is laid out, but for its tokenizer's kind."""
    words = tiny.tokenizer()
    words.padding_side = "right"
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    tower = {**TOWER, "hidden_size": 32, "intermediate_size": 64}
    with quiet():  # its default ids do not fit its default vocabulary
        config = SiglipConfig(
            text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": context},
            vision_config={**tower, "image_size": 32, "patch_size": 8},
        )
    pixels = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return _save(SiglipModel(config), SiglipProcessor(pixels, words), folder)


def siglip2(folder: Path, *, context: int = 16) -> Path:
    """A SigLIP 2 of native aspect ratios, as google/siglip2-base-patch16-naflex is laid out."""
    words = tiny.tokenizer()
    words.padding_side = "right"
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    tower = {**TOWER, "hidden_size": 32, "intermediate_size": 64}
    size = {"vocab_size": len(words), "max_position_embeddings": context, "projection_size": 32}
    with quiet():  # as above
        config = Siglip2Config(
            text_config={**tower, **ends, **size},
            vision_config={**tower, "num_patches": 16, "patch_size": 8},
        )
    pixels = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    return _save(Siglip2Model(config), Siglip2Processor(pixels, words), folder)


def _save(model: Any, processor: Any, folder: Path) -> Path:
    """Weights that depend on their names alone and leave none at zero or one; written as the hub has them."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            draw = np.random.RandomState(zlib.crc32(name.encode()))  # numpy promises this stream
            noise = torch.from_numpy(draw.standard_normal(weights.shape)).float()
            if weights.ndim < 2:
                weights.copy_(0.1 * noise + ("norm" in name.lower() and name.endswith("weight")))
            else:
                weights.copy_(noise * 1.4 / weights[0].numel() ** 0.5)
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder
