"""Tiny random checkpoints of families without a layout here, whose processors take videos too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")


def internvl(folder: Path, *, seed: int = 0) -> Path:
    """An InternVL of 2 x 2 image tokens and two marks; the processor's own default would be 256."""
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    marks = dict(zip(names, ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"), strict=True))
    words = _words(marks)
    config = InternVLConfig(
        vision_config=_tower() | {"image_size": [56, 56], "patch_size": [14, 14]},
        text_config=_decoder(len(words)) | {"model_type": "qwen2"},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    pixels = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=False)
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    return _save(folder, model, words, pixels, settings, "<IMG_CONTEXT>", seed)


def gemma4(folder: Path, *, seed: int = 0) -> Path:
    """A Gemma 4 without audio: its processor wants a feature extractor all the same."""
    names = ("boi_token", "eoi_token", "image_token", "boa_token", "eoa_token", "audio_token")
    marks = dict(zip(names, ("<boi>", "<eoi>", "<image>", "<boa>", "<eoa>", "<audio>"), strict=True))
    words = _words(marks)
    words.add_special_tokens({"additional_special_tokens": ["<|video|>"]})
    token = words.convert_tokens_to_ids
    config = Gemma4Config(
        vision_config=_tower()
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        text_config=_decoder(len(words))
        | {
            "head_dim": 16,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": len(words),
            "hidden_size_per_layer_input": 8,
        },
        audio_config=None,
        boi_token_id=token("<boi>"),
        eoi_token_id=token("<eoi>"),
        image_token_id=token("<image>"),
        video_token_id=token("<|video|>"),
        boa_token_id=token("<boa>"),
        eoa_token_index=token("<eoa>"),
        audio_token_id=token("<audio>"),
    )
    model = Gemma4ForConditionalGeneration(config)
    pixels = Gemma4ImageProcessorPil(patch_size=8, pooling_kernel_size=2, max_soft_tokens=70)
    settings = {
        "processor_class": "Gemma4Processor",
        "image_seq_length": 70,
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
    }
    return _save(folder, model, words, pixels, settings, "<image>", seed)


def _words(marks: dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny._bpe((*SPECIALS, *marks.values())),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens=marks,
    )


def _tower() -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _decoder(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": SPECIALS.index("<pad>"),
        "eos_token_id": SPECIALS.index("<eos>"),
        "bos_token_id": SPECIALS.index("<bos>"),
        "tie_word_embeddings": False,
    }


def _save(
    folder: Path, model: Any, words: Any, pixels: Any, settings: dict[str, Any], image: str, seed: int
) -> Path:
    tiny._save(model, words, folder, seed)
    pixels.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    chat = tiny.CHAT.replace("<image>", image)
    (folder / "chat_template.jinja").write_text(chat)
    return folder
