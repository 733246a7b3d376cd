"""Tiny random PaliGemma and Gemma 3 checkpoints in the hub's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from tokenizers import processors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
MARKS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")

CHAT = (  # Gemma 3's on the hub, for messages whose content is a list
    "{{ bos_token }}{% set prefix = '' %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set prefix = messages[0]['content'][0]['text'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ prefix if loop.first }}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<start_of_image>{% else %}{{ item['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def _words(specials: tuple[str, ...], **more: Any) -> PreTrainedTokenizerFast:
    words = PreTrainedTokenizerFast(
        tokenizer_object=tiny._bpe(specials),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens=more,
    )
    words.add_tokens(["\n\n", "\n\n\n", "\n\n\n\n"])  # Gemma's vocabulary has runs of newlines
    return words


def _tower(side: int, patch: int) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,  # a second one would smear a random tower's features over the picture
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
        "vision_use_head": False,
    }


def _decoder(vocabulary: int, layers: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": context,
        "pad_token_id": SPECIALS.index("<pad>"),
        "eos_token_id": SPECIALS.index("<eos>"),
        "bos_token_id": SPECIALS.index("<bos>"),
        "tie_word_embeddings": False,  # as the hub's are, a random model would repeat its last token
    }


def paligemma(
    folder: Path, *, second: bool = False, cap: float | None = None, context: int = 512, seed: int = 0
) -> Path:
    """A PaliGemma of 4 x 4 image tokens.

    second: PaliGemma 2, whose decoder has sliding layers (24 tokens); cap: of its attention logits.
    """
    words = _words((*SPECIALS, "<image>"), image_token="<image>")
    pixels = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    pixels.image_seq_length = 16
    processor = PaliGemmaProcessor(pixels, words)
    decoder = _decoder(len(words), 4, context)
    decoder["model_type"] = "gemma2" if second else "gemma"
    if second:
        decoder |= {"attn_logit_softcapping": cap, "sliding_window": 24, "query_pre_attn_scalar": 24}
    config = PaliGemmaConfig(
        vision_config=_tower(56, 14),
        text_config=decoder,
        image_token_index=words.image_token_id,
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )
    return tiny._save(PaliGemmaForConditionalGeneration(config), processor, folder, seed)


def gemma3(
    folder: Path, *, window: int = 512, context: int = 512, pan_and_scan: bool = False, seed: int = 0
) -> Path:
    """A Gemma 3 of 8 x 8 patches, pooled to 4 x 4 image tokens; layer 2 of 6 and layer 5 see everything."""
    marks = ("boi_token", "eoi_token", "image_token")
    words = _words((*SPECIALS, *MARKS), **dict(zip(marks, MARKS[2:], strict=True)))
    bpe = words.backend_tokenizer
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIALS.index("<bos>"))]
    )
    pixels = Gemma3ImageProcessorPil(size={"height": 64, "width": 64}, do_pan_and_scan=pan_and_scan)
    processor = Gemma3Processor(pixels, words, chat_template=CHAT, image_seq_length=16)
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(6)]
    decoder = _decoder(len(words), 6, context)
    decoder |= {"sliding_window": window, "layer_types": kinds, "query_pre_attn_scalar": 24}
    config = Gemma3Config(
        vision_config=_tower(64, 8),
        text_config=decoder,
        mm_tokens_per_image=16,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        tie_word_embeddings=False,
    )
    return tiny._save(Gemma3ForConditionalGeneration(config), processor, folder, seed)
