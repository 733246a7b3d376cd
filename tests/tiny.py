"""Tiny random checkpoints in the hub's layout, built on the fly: real architectures, meaningless answers.

Knows how to write a folder that `from_pretrained` reads. Their weights are drawn with a wider spread
than the architectures' own, because attention that is nearly flat would let a wrong map pass for a
right one. Nothing here is downloaded.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging

from harness.pictures import Memory, Picture

torch.set_num_threads(1)  # tensors this small only wait for a second thread

CORPUS = """A person riding a brown horse on a beach near the ocean. Please describe this image.
What is the color of the bus? Write a general description of the image. USER ASSISTANT: The image
shows a red car parked next to a tall building. There are two dogs and one cat on the green grass.
Answer the question using a single word or phrase. The sign reads STOP 0 1 2 3 4 5 6 7 8 9. Is there a
white cup of coffee on the left side of the table? You are a helpful assistant. yes no
""".splitlines()

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")

CHAT = (  # LLaVA-1.5's on the hub, word for word in what it renders
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tokenizer(*, names_image: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with LLaVA's special tokens, which knows its image token by that name or not."""
    bpe = _bpe(SPECIALS)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIALS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens={"image_token": "<image>"} if names_image else {},
    )


def _bpe(specials: tuple[str, ...]) -> Tokenizer:
    """A byte-level BPE of 400 tokens, trained on a few lines."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return bpe


def llava(
    folder: Path,
    *,
    side: int = 56,
    patch: int = 14,
    squash: bool = False,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 4,
    context: int = 1024,
    chat: str | None = CHAT,
    seed: int = 0,
) -> Path:
    """A LLaVA-1.5 of about 0.3 M parameters with `(side / patch) ** 2` image tokens.

    squash: resize the whole picture to the square, as the demo model does; otherwise resize its
    shortest edge and crop the centre, as LLaVA-1.5 does.
    """
    words = tokenizer()
    config = LlavaConfig(
        vision_config=_vision(side, patch),
        text_config=_text(len(words), hidden, layers, heads, kv_heads, context),
        image_token_index=SPECIALS.index("<image>"),
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    size = {"height": side, "width": side} if squash else {"shortest_edge": side}
    pixels = CLIPImageProcessorPil(
        size=size, do_center_crop=not squash, crop_size={"height": side, "width": side}
    )
    processor = LlavaProcessor(
        pixels,
        words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )
    return _save(LlavaForConditionalGeneration(config), processor, folder, seed)


def vip_llava(folder: Path, *, side: int = 56, patch: int = 14, seed: int = 0) -> Path:
    """A ViP-LLaVA: a family whose layout the adapter does not know."""
    words = tokenizer()
    config = VipLlavaConfig(
        vision_config=_vision(side, patch),
        text_config=_text(len(words), 64, 2, 4, 4, 1024),
        image_token_index=SPECIALS.index("<image>"),
        image_seq_length=(side // patch) ** 2,
        vision_feature_layers=[-2, -1],
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return _save(VipLlavaForConditionalGeneration(config), processor, folder, seed)


def _vision(side: int, patch: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        projection_dim=32,
    )


def _text(vocabulary: int, hidden: int, layers: int, heads: int, kv_heads: int, context: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        bos_token_id=SPECIALS.index("<s>"),
        eos_token_id=SPECIALS.index("</s>"),
        pad_token_id=SPECIALS.index("<pad>"),
    )


def _save(model: Any, processor: Any, folder: Path, seed: int) -> Path:
    draw = np.random.RandomState(seed)  # numpy promises this stream: goldens were made from it
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" in name:
                continue  # ones and zeros
            fan_in = weights[0].numel() if weights.ndim > 1 else len(weights)
            spread = 0.0 if name.endswith("bias") else 1.4 / fan_in**0.5
            weights.copy_(torch.from_numpy(draw.standard_normal(weights.shape) * spread))
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return folder


@functools.cache
def photo(seed: int, width: int = 100, height: int = 80) -> Picture:
    """A PNG in memory of soft random blots, as a dataset would hold it."""
    blots = np.random.RandomState(seed).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC).save(data, "PNG")
    return Picture(Memory(data.getvalue(), f"photo-{seed}.png"))
