"""A tiny random InstructBLIP in the hub's layout: two tokenizers, a tower, a Q-Former and a Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from tokenizers import normalizers, processors
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
QUERIES = 8


def _reader() -> PreTrainedTokenizerFast:
    """The Q-Former's: lower case between [CLS] and [SEP], as BERT's."""
    bpe = tiny._bpe(BERT)
    bpe.normalizer = normalizers.Lowercase()
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def instructblip(
    folder: Path,
    *,
    side: int = 56,
    patch: int = 14,
    queries: int = QUERIES,
    layers: int = 4,
    kv_heads: int = 2,
    context: int = 400,
    flan: bool = False,
    seed: int = 0,
) -> Path:
    """An InstructBLIP of about 0.4 M parameters, `(side / patch) ** 2` patches and `queries` tokens.

    flan: its language model is an encoder and a decoder, as Flan-T5 is.
    """
    words = tiny.tokenizer(names_image=False)  # as the hub's, the decoder's has no image token by name
    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": side, "width": side}),
        words,
        _reader(),
        num_query_tokens=queries,
    )
    text: Any = tiny._text(len(words), 64, layers, 4, kv_heads, context)
    if flan:
        text = T5Config(
            vocab_size=len(words),
            d_model=32,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=4,
            pad_token_id=3,
            eos_token_id=2,
            decoder_start_token_id=3,
        )
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side,
            patch_size=patch,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
            cross_attention_frequency=2,
        ),
        text_config=text,
        num_query_tokens=queries,
        image_token_index=tiny.SPECIALS.index("<image>"),
    )
    return tiny._save(InstructBlipForConditionalGeneration(config), processor, folder, seed)
