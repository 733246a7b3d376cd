"""Tiny LLaVA-NeXT checkpoints in the hub's layout: with a Vicuna's decoder, and with a Mistral's."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

MISTRAL_CHAT = (  # llava-v1.6-mistral-7b-hf's, for system and user messages
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}{% endif %}{% endfor %}"
)


def llava_next(
    folder: Path,
    *,
    mistral: bool = False,
    side: int = 56,
    patch: int = 14,
    context: int = 2048,
    seed: int = 0,
) -> Path:
    """Tiles of `(side / patch) ** 2` tokens, on canvases of 2 to 4 tiles like the real one's.

    mistral: a Mistral decoder whose queries share keys, and its template.
    """
    words = tiny.tokenizer()
    text: PreTrainedConfig = tiny._text(len(words), 64, 4, 4, 4, 2048)
    if mistral:
        text = MistralConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            sliding_window=None,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    pins = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    config = LlavaNextConfig(
        vision_config=tiny._vision(side, patch),
        text_config=text,
        image_token_index=tiny.SPECIALS.index("<image>"),
        image_grid_pinpoints=pins,
        image_seq_length=(side // patch) ** 2,
    )
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pins,
    )
    processor = LlavaNextProcessor(
        pixels,
        words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MISTRAL_CHAT if mistral else tiny.CHAT,
    )
    return tiny._save(LlavaNextForConditionalGeneration(config), processor, folder, seed)
