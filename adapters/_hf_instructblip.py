"""The InstructBLIP layout: a Q-Former reads the prompt and looks at a picture; its queries stand for it.

Knows the Q-Former, its own tokenizer and how its attention leads from queries to patches. Must not know
requests, templates or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from adapters._hf_layout import Features, Span, View, _layers, merged, sliding_gap
from adapters._hf_prompts import PromptError
from adapters._hf_rows import Inputs, Row, Tokens, require_room
from adapters._hf_square import Square
from harness import taps
from harness.pictures import Picture
from harness.types import ImportanceMap, Json

CROSS_LAYER = 4
"""The Q-Former layer that is looked at: the third of those with cross attention, as mllms_know has it
(blip_methods.py: QFORMER_LAYER = 2 among the cross attentions)."""


@dataclass(frozen=True, eq=False)
class Instructed(Inputs):
    """A batch whose pictures are in its embeddings already.

    embeds: (B, L, hidden). cross: per picture, in prompt order, what the queries' heads see of its class
    token and patches, (pictures, heads, queries, 1 + patches); None unless the Q-Former runs eagerly.
    firsts: each row's first picture among them.
    """

    embeds: Tensor | None = None
    cross: Tensor | None = None
    firsts: tuple[int, ...] = ()

    def whole(self) -> dict[str, Any]:
        return {**super().whole(), "inputs_embeds": self.embeds}

    def rest(self) -> dict[str, Any]:
        assert self.embeds is not None
        arguments = {**super().rest(), "inputs_embeds": self.embeds[:, self.cached :]}
        del arguments["input_ids"]  # a decoder takes one or the other
        return arguments


class InstructBlip(Square):
    """InstructBLIP with a decoder such as Vicuna: 32 tokens per picture, all before the text's first token.

    The picture is squashed to 224 pixels; a tower sees 16 x 16 patches that cover all of it. Its patches
    are kept for later prompts, its tokens are not, for they depend on the prompt: the Q-Former reads it
    too (never an option), once for each picture. So no beginning is shared. The Q-Former's text is padded
    on the right; the released processor pads it on the left, which gives a prompt in a batch other
    positions than alone. A prompt of more tokens than the Q-Former has positions (512) fails.

    An attention map is s C: s, how the decoder's last token sees the first picture's 32 tokens, C how
    these see its patches in Q-Former layer 4, each a mean over heads. For a gradient map both are weighted
    by their gradients, where positive, before the mean. Default layer of s: 15 of Vicuna-7B's 32. Source:
    mllms_know, blip_methods.py, which as released takes 256 tokens for s and stops there.
    """

    attention: ClassVar[dict[str, str]] = {
        "text_config": taps.KERNEL,
        "vision_config": "sdpa",
        "qformer_config": "eager",  # it returns its weights, and is small
    }

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        super().__init__(weights, processor, context)
        self.decoder = weights.language_model
        self.decoder.generation_config = weights.generation_config
        self._marker = str(processor.image_token)
        self._queries = int(weights.config.num_query_tokens)
        tower = weights.config.vision_config
        self._side = int(tower.image_size) // int(tower.patch_size)

    def span(self, size: tuple[int, int]) -> Span:
        cells = np.arange(self._side**2).reshape(self._side, self._side)
        view = View(cells, (0.0, 0.0, float(size[0]), float(size[1])))  # of patches, not of tokens
        return Span((self.image_token,) * self._queries, (view,))

    def encode(self, pixels: Sequence[Tensor]) -> list[Features]:
        batch = torch.stack(list(pixels)).to(self.weights.device, self.weights.dtype)
        patches = self.weights.vision_model(pixel_values=batch).last_hidden_state
        return [(one,) for one in patches]

    def tokenize(self, text: str, pictures: Sequence[Picture]) -> Tokens:
        """The pictures' tokens, then the text's, which begin with its own first token."""
        words = text.removeprefix(self._marker * len(pictures))
        found = text.count(self._marker)
        if found != len(pictures) or self._marker in words:
            raise PromptError(
                f"the prompt holds {found} image placeholders ({self._marker}) for {len(pictures)} "
                "pictures, or holds them elsewhere than in front; reword the text"
            )
        ids = (self.image_token,) * (self._queries * len(pictures)) + tuple(
            self.tokenizer(words)["input_ids"]
        )
        return Tokens(ids, tuple(self._queries * place for place in range(len(pictures))))

    def prefix(self, row: Row) -> tuple[object, ...]:
        return ()  # the first picture's tokens already depend on all of the prompt

    def prepare(self, rows: Sequence[Row], layer: int | None = None) -> Instructed:
        self._require_room(rows)
        return self._from_scratch(rows, self._encoded(rows))

    def _require_room(self, rows: Sequence[Row]) -> None:
        require_room([len(row.tokens) for row in rows], self.context)
        positions = self.weights.config.qformer_config.max_position_embeddings
        require_room([len(text) if row.pictures else 0 for row, text in self._instructions(rows)], positions)

    def _instructions(self, rows: Sequence[Row]) -> list[tuple[Row, list[int]]]:
        """Rows with what the Q-Former reads of each: token ids of the prompt without its pictures."""
        texts = [row.prompt.removeprefix(self._marker * len(row.pictures)) for row in rows]
        ids = self.processor.qformer_tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return list(zip(rows, ids, strict=True))

    def _from_scratch(self, rows: Sequence[Row], features: dict[str, Features]) -> Instructed:
        ids, mask = self._padded([row.tokens for row in rows])
        embeds = self.decoder.get_input_embeddings()(ids)
        pairs = [
            (features[one.digest][0], text) for row, text in self._instructions(rows) for one in row.pictures
        ]
        cross = None
        if pairs:
            tokens, cross = self._asked(
                torch.stack([patches for patches, _ in pairs]), [text for _, text in pairs]
            )
            embeds = embeds.masked_scatter((ids == self.image_token)[..., None], tokens.to(embeds.dtype))
        counts = np.cumsum([0, *(len(row.pictures) for row in rows)])
        steered = any(row.steering is not None for row in rows)
        return Instructed(
            ids,
            mask,
            cache=DynamicCache() if steered else None,
            starts=tuple(ids.shape[1] - len(row.tokens) for row in rows),
            embeds=embeds,
            cross=cross,
            firsts=tuple(int(first) for first in counts[:-1]),
        )

    def _asked(self, patches: Tensor, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """The tokens (pairs, queries, hidden) that the Q-Former makes of pairs, and its cross attention."""
        longest = max(len(text) for text in texts)
        pad = self.processor.qformer_tokenizer.pad_token_id or 0
        ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts], device=patches.device)
        seen = torch.tensor(
            [[1] * (self._queries + len(text)) + [0] * (longest - len(text)) for text in texts],
            device=patches.device,
        )
        looked: list[Tensor | None] = []
        layer = self.weights.qformer.encoder.layer[CROSS_LAYER].crossattention.attention
        hook = layer.register_forward_hook(lambda module, given, output: looked.append(output[1]))
        try:
            states = self.weights.qformer(
                input_ids=ids,
                attention_mask=seen,
                query_embeds=self.weights.query_tokens.expand(len(texts), -1, -1),
                encoder_hidden_states=patches,
            ).last_hidden_state
        finally:
            hook.remove()
        return self.weights.language_projection(states[:, : self._queries]), looked[0]

    # ------------------------------------------------------------ maps

    def _gradients(self, rows: Sequence[Row]) -> list[tuple[ImportanceMap, ...]]:
        """One graph from the Q-Former up: its cross attention bears on every token, not the last alone."""
        layers = _layers(rows, "gradient")
        self._require_room(rows)
        encoded = self._encoded(rows)
        leaves: dict[str, Features] = {
            key: (patches.detach().requires_grad_(),) for key, (patches,) in encoded.items()
        }
        tap = taps.GradientTap(layers)
        with torch.enable_grad(), taps.active(tap):
            inputs = self._from_scratch(rows, leaves)
            assert inputs.cross is not None  # only the "fovea" kernel offers maps, and then it runs eagerly
            chances = torch.log_softmax(self.logits(inputs, keep=1)[:, -1].float(), dim=-1)
            best = chances.max(dim=-1).values.sum()  # rows do not see each other
            above, *gradients = torch.autograd.grad(
                best, [inputs.cross, *(tap.zeros[layer] for layer in layers)]
            )
        weighted = {
            layer: (tap.rows[layer] * gradient.clamp(min=0)).mean(dim=1).cpu().numpy()
            for layer, gradient in zip(layers, gradients, strict=True)
        }
        inputs = replace(inputs, cross=inputs.cross.detach() * above.clamp(min=0))
        return self.laid_out(rows, inputs, weighted, "gradient")

    def laid_out(
        self, rows: Sequence[Row], inputs: Inputs, read: dict[int, npt.NDArray[np.float32]], kind: str
    ) -> list[tuple[ImportanceMap, ...]]:
        """Maps of a kind, from values (B, L) by layer, through the Q-Former's cross attention."""
        assert isinstance(inputs, Instructed) and inputs.cross is not None
        seen = inputs.cross[list(inputs.firsts)].float().mean(dim=1)[:, :, 1:].cpu().numpy()
        return [
            tuple(
                merged(
                    self.span(row.pictures[0].size).views,
                    np.mean(
                        [read[layer][place, start : start + self._queries] for layer in want.layers], axis=0
                    )
                    @ seen[place],
                )
                for want in row.reads
                if want.kind == kind
            )
            for place, (row, start) in enumerate(zip(rows, inputs.starts, strict=True))
        ]

    def place(self, picture: Picture) -> dict[str, Json]:
        return {}  # no token shows one place


layout = InstructBlip


def gap(config: Any) -> str:
    """Why a config's image tokens stand where this file does not know; empty if they do not."""
    if not config.use_decoder_only_language_model:
        text = config.text_config.model_type
        return f"this InstructBLIP's language model is {text}, an encoder and a decoder"
    if config.image_token_id is None:
        return (
            "this InstructBLIP's config names no image token (image_token_index), as its newer revisions do"
        )
    return sliding_gap(config)
