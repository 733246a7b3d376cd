"""Tiny Qwen-VL checkpoints in the hub's layout: Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_3 = (  # Qwen3-VL's on the hub, for messages whose content is a list
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
CHAT = CHAT_3.replace(  # Qwen2-VL's and Qwen2.5-VL's
    "{% for message in messages %}", "{% for message in messages %}" + DEFAULT_SYSTEM
)
SIZES = {"patch_size": 14, "min_pixels": 56 * 56, "max_pixels": 48 * 28 * 28}
SIZES_3 = {"patch_size": 16, "min_pixels": 64 * 64, "max_pixels": 48 * 32 * 32}


def qwen2_vl(folder: Path, *, context: int = 1024, seed: int = 0) -> Path:
    """Qwen2-VL: every patch of its tower sees every other one of the picture."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    config = _config(Qwen2VLConfig, vision, _decoder(context))
    return _saved(Qwen2VLForConditionalGeneration(config), folder, CHAT, SIZES, seed)


def qwen2_5_vl(folder: Path, *, context: int = 1024, seed: int = 0) -> Path:
    """Qwen2.5-VL: its tower reorders patches into windows of 2 x 2 tokens, and back."""
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "window_size": 56,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    config = _config(Qwen2_5_VLConfig, vision, _decoder(context))
    return _saved(Qwen2_5_VLForConditionalGeneration(config), folder, CHAT, SIZES, seed)


def qwen3_vl(folder: Path, *, context: int = 1024, seed: int = 0) -> Path:
    """Qwen3-VL: two layers of its tower reach the first two of its decoder by themselves."""
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**_decoder(context), "head_dim": 16}
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_interleaved": True}
    config = _config(Qwen3VLConfig, vision, text)
    return _saved(Qwen3VLForConditionalGeneration(config), folder, CHAT_3, SIZES_3, seed)


def _words() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny._bpe(SPECIALS),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=4096,
    )


def _decoder(context: int) -> dict[str, Any]:
    return {
        "vocab_size": len(_words()),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": 0,
        "eos_token_id": SPECIALS.index("<|im_end|>"),
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }


def _config(kind: Any, vision: dict[str, Any], text: dict[str, Any]) -> PreTrainedConfig:
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start"}
    ids = {
        f"{part}_token_id": SPECIALS.index(f"<|{name}|>")
        for part, name in {**tokens, "vision_end": "vision_end"}.items()
    }
    config: PreTrainedConfig = kind(vision_config=vision, text_config=text, **ids)
    return config


def _saved(model: Any, folder: Path, chat: str, sizes: dict[str, int], seed: int) -> Path:
    tiny._save(model, _words(), folder, seed)
    Qwen2VLImageProcessorPil(**sizes).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(chat)
    return folder
