"""Tiny Idefics3 and SmolVLM checkpoints in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from tokenizers import processors
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
CHAT = (  # Idefics3-8B-Llama3's on the hub
    "<|begin_of_text|>{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def idefics3(folder: Path, *, seed: int = 0) -> Path:
    """Tiles of 16 tokens and 64 x 64 pixels, four along the longer side."""
    words = _tokenizer()
    model = Idefics3ForConditionalGeneration(Idefics3Config(**_config(words)))
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 256}, max_image_size={"longest_edge": 64})
    processor = Idefics3Processor(pixels, words, image_seq_len=16, chat_template=CHAT)
    return tiny._save(model, processor, folder, seed)


def smolvlm(folder: Path, *, seed: int = 0) -> Path:
    """The same as a SmolVLM2, whose processor prepares videos too."""
    words = _tokenizer()
    tiny._save(SmolVLMForConditionalGeneration(SmolVLMConfig(**_config(words))), words, folder, seed)
    pixels = SmolVLMImageProcessorPil(size={"longest_edge": 256}, max_image_size={"longest_edge": 64})
    pixels.save_pretrained(folder)
    settings = {"processor_class": "SmolVLMProcessor", "image_seq_len": 16}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = tiny._bpe(SPECIALS)
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token="<end_of_utterance>",
        pad_token="<|finetune_right_pad_id|>",
        padding_side="left",
        model_max_length=4096,
    )


def _config(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        },
        "text_config": LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        ),
        "image_token_id": SPECIALS.index("<image>"),
        "scale_factor": 2,
    }
