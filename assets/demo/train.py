"""Train the bundled demo model from nothing, on one CPU core in about 45 minutes.

    python -m assets.demo.train --seed 0 --out assets/demo --work build/demo

(from the repository root). A LLaVA of 1.25 M parameters learns to answer questions about the scenes
of ``tasks/_scenes.py``. Three stages, each saved in ``--work`` when it ends and skipped when it is
there already (``--restart`` forgets those of the seed):

A. the vision tower, with a throw-away head that names colour, shape and digit of each patch;
B. projector and language model, on cached features of the frozen tower;
C. everything, on fresh scenes, from pixels.

Then the checkpoint (half precision, 2.5 MB), its processor, tokenizer and chat template are written
to ``--out``, read back as anybody would, examined on scenes that neither training nor testing uses,
and ``training.json`` records losses, times, versions and that examination. All data come from the
seed. Attention is never supervised.

Knows: scenes, and how to build and train this one model. Must not know: tasks, methods, metrics; it
is a script that nothing imports.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tasks import _scenes as scenes
from tasks._scenes import Box, Question, Scene, Thing

# The model ----------------------------------------------------------------------------------------

RESOLUTION = 96
PATCH = 8
GRID = RESOLUTION // PATCH
PATCHES = GRID * GRID
WIDTH = 128

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, IMAGE)

SHORT = "Answer the question using a single word or phrase."
DESCRIBE = (
    "Describe the image.",
    "Please describe this image in detail.",
    "Write a general description of the image.",
)

# Images first, then the words, as the reference of ViCrop orders them.
CHAT_TEMPLATE = (
    "{%- macro words(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{{ content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
    "{%- endif -%}{%- endmacro -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}"
    "{%- if message.content is not string -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<image>{%- endif -%}{%- endfor -%}{%- endif -%}"
    "user : {{ words(message.content) }}"
    "{%- elif message.role == 'assistant' -%} assistant : {{ words(message.content) }}</s>"
    "{%- else -%}{{ words(message.content) }} {% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %} assistant :{% endif -%}"
)


def vocabulary() -> dict[str, int]:
    """Every word of the questions, answers and prompts, after the five special tokens."""
    prompts = " ".join((SHORT, *DESCRIBE))
    questions = (
        "what digit is on the ? is there a an in the image ? what color is the ? "
        "what shape is the object ? how many objects are there ? yes no nothing . , and "
        "user assistant :"
    )
    digits = "0 1 2 3 4 5 6 7 8 9"
    text = f"{prompts} {questions} {digits}".lower().replace(".", " . ")
    words = {*text.split(), *scenes.COLORS, *scenes.SHAPES, *map(scenes.plural, scenes.SHAPES)}
    return {word: index for index, word in enumerate((*SPECIAL, *sorted(words)))}


def build_processor() -> LlavaProcessor:
    """Whole words in lower case; pixels squeezed to 96 x 96 without a crop, mapped to [-2, 2]."""
    vocab = vocabulary()
    backend = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    square = {"height": RESOLUTION, "width": RESOLUTION}
    pixels = CLIPImageProcessorPil(
        do_resize=True,
        size=square,
        resample=Image.Resampling.BICUBIC,
        do_center_crop=False,
        crop_size=square,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )
    return LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model() -> LlavaForConditionalGeneration:
    """An untrained model. Its position embeddings start as 2-D sines and cosines."""
    vocab = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=RESOLUTION,
        patch_size=PATCH,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=vocab[PAD],
        bos_token_id=vocab[BOS],
        eos_token_id=vocab[EOS],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocab[IMAGE],
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        pad_token_id=vocab[PAD],
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    # measured on a CPU: the short vision sequences are faster without sdpa's kernel
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id = vocab[PAD], vocab[BOS]
    generation.eos_token_id = vocab[EOS]
    with torch.no_grad():
        positions = model.model.vision_tower.embeddings.position_embedding.weight
        positions[1:] = torch.from_numpy(_sines()) * 0.3
    return model


def _sines() -> NDArray[np.float32]:
    """One row per patch: sines and cosines of its row and of its column, PATCHES x WIDTH."""
    waves = 2 * np.pi * np.geomspace(0.5, GRID / 2, WIDTH // 4)
    phase = np.arange(GRID)[:, None] / GRID * waves
    table = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    rows, columns = np.divmod(np.arange(PATCHES), GRID)
    return np.concatenate([table[rows], table[columns]], axis=1).astype(np.float32)


# Data ---------------------------------------------------------------------------------------------

# First word of every generator of this script: training shares no stream with a test scene.
TRAINING = 0x7EAC4
POOL = 5000  # scenes of a pool; the last HELD_OUT are never trained on
HELD_OUT = 100
DENSE = 6000  # crowded views of stage A

FULL, CROP, ZOOM = 0, 1, 2  # the three views of a scene


@dataclass(frozen=True)
class Pool:
    """Views (N x 96 x 96 x 3) with the labels of their patches, and where they come from.

    ``labels`` is N x 144 x 3: colour, shape and digit of the object in a patch, 0 for none.
    ``inked`` is N x 144: patches that show enough of a digit to read it. A pool of scenes has three
    views per scene (rows 3 k + view) with rectangles ``boxes``; crowded views have no scenes.
    """

    views: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    inked: NDArray[np.bool_]
    scenes: tuple[Scene, ...] = ()
    boxes: tuple[tuple[Box, Box, Box], ...] = ()


def generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([TRAINING, seed, purpose])


@cache
def scene_pool(seed: int, number: int) -> Pool:
    """Pool 0 serves stages A and B, pool 1 stage C."""
    rng = generator(seed, number)
    drawn, boxes, views = [], [], []
    for _ in range(POOL):
        scene = scenes.draw(rng)
        digits = [thing for thing in scene.things if thing.digit is not None]
        whole = (0, 0, scene.canvas, scene.canvas)
        crop = random_box(rng, _some(rng, digits, 0.85), 96, 200)  # what ViCrop may cut out
        zoom = random_box(rng, _some(rng, digits, 0.9), 96, 300)
        drawn.append(scene)
        boxes.append((whole, crop, zoom))
        views += list(labelled_views(scene, boxes[-1]))
    return Pool(*_stacked(views), tuple(drawn), tuple(boxes))


@cache
def dense_pool(seed: int) -> Pool:
    """Crowded canvases: many more labels per view, hence per second of stage A."""
    rng = generator(seed, 2)
    counts = {180: (2, 3), 240: (3, 5), 300: (5, 7), 400: (8, 12)}
    views: list[View] = []
    for _ in range(DENSE):
        canvas = (180, 240, 300, 400)[rng.integers(4)]
        scene = scenes.draw(
            rng,
            n_big=counts[canvas],
            n_small=(0, 0),
            glyph=(18, 46),
            big=(60, 104),
            digit_chance=0.95,
            canvas=canvas,
        )
        views += labelled_views(scene, [(0, 0, canvas, canvas)])
    return Pool(*_stacked(views))


class View(NamedTuple):
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    inked: NDArray[np.bool_]


def _stacked(views: Sequence[View]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    pixels, labels, inked = (np.stack(column) for column in zip(*views, strict=True))
    return pixels, labels, inked


def _some(rng: np.random.Generator, things: Sequence[Thing], chance: float) -> Thing | None:
    return things[int(rng.integers(len(things)))] if things and rng.random() < chance else None


def random_box(rng: np.random.Generator, thing: Thing | None, low: int, high: int) -> Box:
    """A random square of the canvas; with a thing, one that holds its digit and a margin."""
    side = int(rng.integers(low, high + 1))
    if thing is None or thing.glyph_box is None:
        x, y = (int(value) for value in rng.integers(0, scenes.CANVAS - side + 1, 2))
    else:
        margin = max(thing.glyph, 16) * 6 // 10 + 4
        left, top, right, bottom = thing.glyph_box
        offsets = rng.integers(margin, side - margin + 1, 2)
        corner = np.array([(left + right) // 2, (top + bottom) // 2]) - offsets
        x, y = (int(value) for value in np.clip(corner, 0, scenes.CANVAS - side))
    return (x, y, x + side, y + side)


def labelled_views(scene: Scene, boxes: Iterable[Box]) -> Iterator[View]:
    pixels, ids = scenes.render(scene)
    for box in boxes:
        yield View(look(pixels, box), patch_labels(scene, ids, box), inked_patches(scene, box))


def look(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """A rectangle of the picture as the image processor would squeeze it."""
    crop = Image.fromarray(pixels).crop(box)
    squeezed = crop.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC)
    return np.asarray(squeezed, np.uint8)


def patch_labels(scene: Scene, ids: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Colour, shape and digit of the object that fills most of each patch (a fifth at least)."""
    points = 4  # looked at per patch and direction
    steps = np.arange(GRID * points) * 2 + 1
    across = box[0] + steps * (box[2] - box[0]) // (2 * GRID * points)
    down = box[1] + steps * (box[3] - box[1]) // (2 * GRID * points)
    seen = ids[down][:, across].reshape(GRID, points, GRID, points)
    numbers = np.arange(1, len(scene.things) + 1)[:, None, None, None, None]
    cover = (seen == numbers).mean(axis=(2, 4))  # things x GRID x GRID
    table = np.array(
        [
            (
                list(scenes.COLORS).index(thing.color) + 1,
                scenes.SHAPES.index(thing.shape) + 1,
                0 if thing.digit is None else thing.digit + 1,
            )
            for thing in scene.things
        ],
        np.uint8,
    )
    labels: NDArray[np.uint8] = table[cover.argmax(axis=0)]
    labels[cover.max(axis=0) < 0.2] = 0
    return labels.reshape(PATCHES, 3)


def inked_patches(scene: Scene, box: Box) -> NDArray[np.bool_]:
    """Patches that overlap a digit by 16 square pixels of the view, or by a quarter of it."""
    edges = np.arange(GRID) * PATCH
    scale = RESOLUTION / (box[2] - box[0])
    inked = np.zeros((GRID, GRID), bool)
    for thing in scene.things:
        if thing.glyph_box is None:
            continue
        left, right = ((edge - box[0]) * scale for edge in thing.glyph_box[0::2])
        top, bottom = ((edge - box[1]) * scale for edge in thing.glyph_box[1::2])
        across = np.clip(np.minimum(edges + PATCH, right) - np.maximum(edges, left), 0, None)
        down = np.clip(np.minimum(edges + PATCH, bottom) - np.maximum(edges, top), 0, None)
        overlap = down[:, None] * across
        inked |= (overlap > 0) & (overlap >= min(16, (right - left) * (bottom - top) / 4))
    return inked.reshape(PATCHES)


# Questions ----------------------------------------------------------------------------------------


def questions(rng: np.random.Generator, scene: Scene, crop: Box | None = None) -> list[Question]:
    """What is asked about a whole scene: up to five digits and some of everything else.

    With ``crop``, the second image of a prompt, at most three of the digits lie inside it and at
    most two outside.
    """
    digits = _shuffled(rng, [thing for thing in scene.things if thing.digit is not None])
    if crop is not None:
        digits = [thing for thing in digits if _within(thing, crop)][:3] + [
            thing for thing in digits if not _within(thing, crop)
        ][:2]
    asked = [scenes.digit_question(thing) for thing in digits[:5]]
    return [_instructed(rng, question) for question in asked + _others(rng, scene, 4)]


def zoomed_questions(rng: np.random.Generator, scene: Scene, box: Box) -> list[Question]:
    """What is asked about a part of a scene: the digits inside, and more where no object is cut."""
    digits = _shuffled(rng, [t for t in scene.things if t.digit is not None and _within(t, box)])
    asked = [scenes.digit_question(thing) for thing in digits[:5]]
    shares = [_visible(thing, box) for thing in scene.things]
    if not any(0 < share < 0.6 for share in shares):
        seen = tuple(t for t, share in zip(scene.things, shares, strict=True) if share)
        asked += _others(rng, replace(scene, things=seen), 2)
    return [_instructed(rng, question) for question in asked]


def _others(rng: np.random.Generator, scene: Scene, existence: int) -> list[Question]:
    found = [
        *(scenes.existence_question(rng, scene, in_image=bool(rng.random() < 0.5)) for _ in range(existence)),
        scenes.color_question(rng, scene),
        scenes.shape_question(rng, scene),
        scenes.shape_question(rng, scene),
        scenes.count_question(rng, scene) if rng.random() < 0.4 else None,
    ]
    return list(dict.fromkeys(question for question in found if question))


def descriptions(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """A caption, sometimes; its prompt with the short-answer instruction asks for one object."""
    prompt = DESCRIBE[rng.integers(len(DESCRIBE))]
    if rng.random() < 0.35:
        return [Question(prompt, scenes.caption(scene, rng))]
    if scene.things and rng.random() < 0.2:
        thing = scene.things[rng.integers(len(scene.things))]
        return [Question(f"{prompt} {SHORT}", scenes.with_article(thing.name))]
    return []


def _instructed(rng: np.random.Generator, question: Question) -> Question:
    if rng.random() < 0.25:
        return question._replace(text=f"{question.text} {SHORT}")
    return question


def _shuffled(rng: np.random.Generator, things: Sequence[Thing]) -> list[Thing]:
    return [things[k] for k in rng.permutation(len(things))]


def _within(thing: Thing, box: Box) -> bool:
    glyph = thing.glyph_box
    return glyph is not None and (
        box[0] <= glyph[0] and box[1] <= glyph[1] and glyph[2] <= box[2] and glyph[3] <= box[3]
    )


def _visible(thing: Thing, box: Box) -> float:
    """The share of an object's square that lies in a box."""
    width = min(box[2], thing.x + thing.side) - max(box[0], thing.x)
    height = min(box[3], thing.y + thing.side) - max(box[1], thing.y)
    return max(0, width) * max(0, height) / thing.side**2


# Packing ------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Questions about some images, all questions of an image in one sequence after its prefix.

    ``views`` (batch x images) are rows of the pool. ``ids``, ``positions``, ``targets``: batch x
    tokens, without the prefix of ``<s>`` and image tokens; ``mask``: batch x 1 x all x all, added
    to the attention scores. A question sees the prefix and itself, and its positions start right
    after the prefix: it cannot tell that it is not alone.
    """

    views: NDArray[np.int_]
    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor


IGNORED = -100


def pack(rows: Sequence[Sequence[int]], asked: Sequence[Sequence[Question]]) -> Batch:
    prefix = 1 + len(rows[0]) * PATCHES
    encoded = [[encode(question) for question in questions_] for questions_ in asked]
    length = max(sum(len(ids) for ids, _ in turns) for turns in encoded)
    shape = (len(rows), length)
    ids, blocks = np.zeros(shape, np.int64), np.full(shape, -1)
    positions, targets = np.full(shape, prefix), np.full(shape, IGNORED)
    for row, turns in enumerate(encoded):
        start = 0
        for number, (turn, answer) in enumerate(turns, start=1):
            end = start + len(turn)
            ids[row, start:end] = turn
            blocks[row, start:end] = number
            positions[row, start:end] = prefix + np.arange(len(turn))
            targets[row, start + answer - 1 : end - 1] = turn[answer:]
            start = end
    return Batch(
        np.array(rows),
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        _packed_mask(torch.from_numpy(blocks), prefix),
        torch.from_numpy(targets),
    )


def _packed_mask(blocks: Tensor, prefix: int) -> Tensor:
    blocks = F.pad(blocks, (prefix, 0), value=0)
    size = blocks.shape[1]
    seen = (blocks[:, :, None] == blocks[:, None, :]) | (blocks[:, None, :] == 0)
    seen &= torch.ones(size, size, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, -1e9)[:, None]


@cache
def _tokenizer() -> Any:
    return build_processor().tokenizer


@lru_cache(maxsize=200_000)
def encode(question: Question) -> tuple[NDArray[np.int64], int]:
    """The tokens of a turn after its images, and where the answer begins in them."""
    tokenizer = _tokenizer()
    prompt = tokenizer.encode(f"user : {question.text} assistant :", add_special_tokens=False)
    answer = tokenizer.encode(question.answer + EOS, add_special_tokens=False)
    return np.array(prompt + answer), len(prompt)


Kind = Sequence[int]  # the views of a prompt
KINDS: tuple[Kind, ...] = ((FULL,), (ZOOM,), (FULL, CROP))


def draw_batch(rng: np.random.Generator, pool: Pool, size: int, shares: Sequence[float]) -> Batch:
    """``size`` scenes of one kind of prompt: the whole, a part of it, or the whole and a crop."""
    kind = KINDS[rng.choice(len(KINDS), p=shares)]
    rows: list[list[int]] = []
    asked: list[list[Question]] = []
    while len(rows) < size:
        k = int(rng.integers(POOL - HELD_OUT))
        scene, boxes = pool.scenes[k], pool.boxes[k]
        if kind == (ZOOM,):
            found = zoomed_questions(rng, scene, boxes[ZOOM])
        else:
            found = questions(rng, scene, boxes[CROP] if CROP in kind else None)
            found += descriptions(rng, scene)
        if found:
            rows.append([3 * k + view for view in kind])
            asked.append(found)
    return pack(rows, asked)


# Training -----------------------------------------------------------------------------------------


class PatchHead(nn.Linear):
    """Reads colour, shape and digit off a patch's features; thrown away after training."""

    sizes = (1 + len(scenes.COLORS), 1 + len(scenes.SHAPES), 11)

    def __init__(self) -> None:
        super().__init__(WIDTH, sum(self.sizes))

    def losses(self, features: Tensor, pool: Pool, rows: NDArray[np.int_]) -> tuple[Tensor, Tensor]:
        """Loss of colour and shape together, and of the digit.

        A patch counts fully for the digit where it shows one, little where it shows its object
        only: most patches of a digit's object cannot know the digit.
        """
        color, shape, digit = self(features.float()).split(self.sizes, dim=-1)
        labels = torch.from_numpy(pool.labels[rows]).long().flatten(0, -2)
        inked = torch.from_numpy(pool.inked[rows]).flatten()
        looks = sum(
            F.cross_entropy(scores.flatten(0, -2), labels[:, k], weight=_background(0.2))
            for k, scores in ((0, color), (1, shape))
        )
        weight = torch.where(inked, 1.0, 0.15) * torch.where(labels[:, 2] > 0, 1.0, 0.2)
        each = F.cross_entropy(digit.flatten(0, -2), labels[:, 2], reduction="none")
        return torch.as_tensor(looks), (each * weight).sum() / weight.sum()


def _background(weight: float) -> Tensor:
    return torch.tensor([weight] + [1.0] * len(scenes.COLORS))


def normalise(views: NDArray[np.uint8]) -> Tensor:
    """... x 96 x 96 x 3 bytes as the image processor hands them over: N x 3 x 96 x 96."""
    pixels = torch.from_numpy(views.reshape(-1, RESOLUTION, RESOLUTION, 3)).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - 0.5) / 0.25


def see(model: LlavaForConditionalGeneration, views: NDArray[np.uint8]) -> Tensor:
    """Patch features of the last vision layer, without the class token: N x 144 x 128."""
    tower = model.model.vision_tower(normalise(views), output_hidden_states=True)
    features: Tensor = tower.hidden_states[-1][:, 1:]
    return features


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch, features: Tensor) -> Tensor:
    """Cross entropy of the answers' tokens; ``features``: batch x images x 144 x 128."""
    language = model.model.language_model
    size, count = batch.views.shape
    images = model.model.multi_modal_projector(features).reshape(size, count * PATCHES, WIDTH)
    prefix = 1 + images.shape[1]
    start = torch.full((size, 1), vocabulary_id(BOS))
    words = language.embed_tokens(torch.cat([start, batch.ids], dim=1)).to(images.dtype)
    output = language(
        inputs_embeds=torch.cat([words[:, :1], images, words[:, 1:]], dim=1),
        attention_mask=batch.mask,
        position_ids=torch.cat([torch.arange(prefix).expand(size, -1), batch.positions], dim=1),
        use_cache=False,
    )
    asked = batch.targets != IGNORED
    scores = model.lm_head(output.last_hidden_state[:, prefix:][asked])
    return F.cross_entropy(scores.float(), batch.targets[asked])


@cache
def vocabulary_id(word: str) -> int:
    return vocabulary()[word]


def whiten(model: LlavaForConditionalGeneration, views: NDArray[np.uint8]) -> None:
    """Start the patch embedding as a PCA whitening of patches.

    The fine strokes of a digit then weigh as much as the colour of the ground.
    """
    pixels = normalise(views).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    patches = pixels.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    values, vectors = values.flip(0)[:WIDTH], vectors.flip(1)[:, :WIDTH]
    kernel = (vectors / torch.sqrt(values + 1e-3)).T * 0.3
    with torch.no_grad():
        weight = model.model.vision_tower.embeddings.patch_embedding.weight
        weight.copy_(kernel.reshape(weight.shape))


class Optimiser:
    """Muon for the matrices inside layers, AdamW for the rest, at one learning rate.

    The rate warms up, holds, and falls along a cosine to ``floor`` of its peak.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        steps: int,
        rate: float,
        *,
        warm_up: int,
        hold: float,
        floor: float,
    ) -> None:
        named = [
            (name, parameter)
            for module in modules
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]
        inner = [p for name, p in named if p.ndim == 2 and "layers" in name]
        outer = [p for name, p in named if not (p.ndim == 2 and "layers" in name)]
        self.parameters = inner + outer
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inner, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, lr=rate, weight_decay=0.02, betas=(0.9, 0.98)),
        ]
        self.steps, self.rate = steps, rate
        self.warm_up, self.hold, self.floor = warm_up, hold, floor
        self.done = 0

    def step(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * self._factor()
            optimiser.step()
            optimiser.zero_grad()
        self.done += 1

    def _factor(self) -> float:
        fall = max(0.0, (self.done / self.steps - self.hold) / (1 - self.hold))
        cosine = 0.5 * (1 + math.cos(math.pi * fall))
        return min(1.0, (self.done + 1) / self.warm_up) * (self.floor + (1 - self.floor) * cosine)


def autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def train_vision(model: LlavaForConditionalGeneration, head: PatchHead, seed: int, log: Log) -> None:
    """Stage A: 2,400 steps of 16 views, four in five of them mostly crowded ones."""
    steps, size, crowd = 2400, 16, 12
    rng = generator(seed, 10)
    ordinary, dense = scene_pool(seed, 0), dense_pool(seed)
    tower = model.model.vision_tower
    whiten(model, dense.views[rng.integers(DENSE, size=400)])
    optimiser = Optimiser([tower, head], steps, 3e-3, warm_up=60, hold=0.0, floor=0.05)
    for step in range(steps):
        many = crowd if step < 0.7 * steps or step % 3 == 0 else 0
        pick = rng.integers(POOL - HELD_OUT, size=size - many)
        rows = 3 * pick + rng.choice(3, size=size - many, p=(0.25, 0.3, 0.45))
        more = rng.integers(DENSE, size=many)
        both = Pool(
            np.concatenate([dense.views[more], ordinary.views[rows]]),
            np.concatenate([dense.labels[more], ordinary.labels[rows]]),
            np.concatenate([dense.inked[more], ordinary.inked[rows]]),
        )
        with autocast():
            features = see(model, both.views)
        looks, digit = head.losses(features, both, np.arange(size))
        optimiser.step(looks + 2 * digit)
        log.step(looks=looks, digit=digit)


def train_language(model: LlavaForConditionalGeneration, head: PatchHead, seed: int, log: Log) -> None:
    """Stage B: 2,000 steps of 10 scenes on features computed once; the head rests."""
    steps, size = 2000, 10
    rng = generator(seed, 11)
    pool = scene_pool(seed, 0)
    with torch.no_grad(), autocast():
        features = torch.cat([see(model, part).bfloat16() for part in np.array_split(pool.views, 100)])
    modules = [model.model.multi_modal_projector, model.model.language_model, model.lm_head]
    optimiser = Optimiser(modules, steps, 2e-3, warm_up=80, hold=0.5, floor=0.03)
    for _ in range(steps):
        batch = draw_batch(rng, pool, size, (0.35, 0.2, 0.45))
        with autocast():
            loss = answer_loss(model, batch, features[torch.from_numpy(batch.views)].float())
        optimiser.step(loss)
        log.step(answers=loss)


def train_all(model: LlavaForConditionalGeneration, head: PatchHead, seed: int, log: Log) -> None:
    """Stage C: 1,500 steps of 10 fresh scenes, from pixels, the patch head still pulling a bit."""
    steps, size = 1500, 10
    rng = generator(seed, 12)
    pool = scene_pool(seed, 1)
    optimiser = Optimiser([model, head], steps, 1e-3, warm_up=80, hold=0.3, floor=0.03)
    for _ in range(steps):
        batch = draw_batch(rng, pool, size, (0.35, 0.15, 0.5))
        with autocast():
            features = see(model, pool.views[batch.views])
            loss = answer_loss(model, batch, features.reshape(*batch.views.shape, PATCHES, WIDTH))
        looks, digit = head.losses(features, pool, batch.views.flatten())
        optimiser.step(loss + 0.3 * (looks + 2 * digit))
        log.step(answers=loss, looks=looks, digit=digit)


class Log:
    """Mean losses of every hundred steps, and the time since it was opened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.curve: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def step(self, **losses: Tensor) -> None:
        for key, loss in losses.items():
            self._sums[key] = self._sums.get(key, 0.0) + loss.item()
        self._steps += 1
        if self._steps % 100 == 0:
            means = {key: round(total / 100, 4) for key, total in self._sums.items()}
            self.curve.append({"step": self._steps, **means})
            self._sums = {}
            print(self.name, self.curve[-1], self.seconds(), flush=True)

    def seconds(self) -> dict[str, float]:
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return {"cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1)}


Stage = Callable[[LlavaForConditionalGeneration, PatchHead, int, Log], None]
STAGES: dict[str, Stage] = {"a": train_vision, "b": train_language, "c": train_all}


def stage_file(work: Path, seed: int, stage: str) -> Path:
    return work / f"seed{seed}-stage-{stage}.pt"


def train(seed: int, work: Path) -> tuple[LlavaForConditionalGeneration, dict[str, Any]]:
    """The trained model and what its stages logged. Each stage's file is written when it ended."""
    logs: dict[str, Any] = {}
    torch.manual_seed(seed)
    model, head = build_model(), PatchHead()
    for name, stage in STAGES.items():
        path = stage_file(work, seed, name)
        if not path.exists():
            log = Log(name)
            stage(model, head, seed, log)
            state = {"model": model.state_dict(), "head": head.state_dict()}
            state["log"] = {"loss": log.curve, **log.seconds()}
            torch.save(state, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        logs[name] = state["log"]
    return model, logs


# The checkpoint -----------------------------------------------------------------------------------


def export(model: LlavaForConditionalGeneration, out: Path) -> None:
    """Weights in half precision; the configuration says float32, which is what a CPU should run."""
    model.eval()
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=half)
    build_processor().save_pretrained(out)


# Examination --------------------------------------------------------------------------------------

VALIDATION_SEED = 7  # test seeds begin at 2000
GLYPH = (16, 24)
GENERAL = "Write a general description of the image."
BOX_SIDE = 96


def examine(out: Path, count: int = 200) -> dict[str, Any]:
    """Answers of the exported checkpoint on validation scenes, as a user of transformers gets them.

    One digit is asked for per scene: on the full image; with a second image that is a crop around
    the digit (``oracle``) or around the maximum of an attention map of layer 0, 1, 2: of the
    question's (``raw_att``), or of its ratio to the general prompt's (``rel_att``). ``_inside`` is
    how often the digit lies in that crop; ``_short`` means that the prompts carry the short-answer
    instruction. Not ViCrop itself: one window size, no choice of scale.
    """
    model = AutoModelForImageTextToText.from_pretrained(out, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(out)
    hits: dict[str, list[bool]] = {}
    for index in range(count):
        scene = scenes.test_scene(VALIDATION_SEED, index, GLYPH)
        rng = np.random.default_rng([VALIDATION_SEED, index, 1])
        pixels, _ = scenes.render(scene)
        image = Image.fromarray(pixels)
        digits = [thing for thing in scene.things if thing.digit is not None]
        thing = digits[rng.integers(len(digits))]
        asked = scenes.digit_question(thing)

        def correct(text: str, answer: str, *boxes: Box, image: Image.Image = image) -> bool:
            images = [image, *(image.crop(box) for box in boxes)]
            return respond(model, processor, images, text) == answer

        def note(name: str, hit: bool) -> None:
            hits.setdefault(name, []).append(hit)

        note("full", correct(asked.text, asked.answer))
        note("oracle", correct(asked.text, asked.answer, _around(thing, 128)))
        found = scenes.existence_question(rng, scene)
        if found:
            note("existence", correct(found.text, found.answer))
        for suffix, instruction in (("", ""), ("_short", f" {SHORT}")):
            text = asked.text + instruction
            maps = attention(model, processor, image, text)
            general = attention(model, processor, image, GENERAL + instruction)
            for layer in range(len(maps)):
                for name, map_ in (("raw", maps[layer]), ("rel", maps[layer] / general[layer])):
                    box = best_window(map_)
                    key = f"{name}_att{suffix}_{layer}"
                    note(key, correct(text, asked.answer, box))
                    note(f"{key}_inside", _within(thing, box))
    scores = {name: round(float(np.mean(list_)), 4) for name, list_ in hits.items()}
    return {"seed": VALIDATION_SEED, "scenes": count, "glyph": list(GLYPH), "accuracy": scores}


def _around(thing: Thing, side: int) -> Box:
    """A square around a digit, moved inside the canvas."""
    assert thing.glyph_box is not None
    centre = np.array(thing.glyph_box).reshape(2, 2).sum(axis=0) // 2
    x, y = (int(value) for value in np.clip(centre - side // 2, 0, scenes.CANVAS - side))
    return (x, y, x + side, y + side)


def prompt(processor: Any, images: Sequence[Image.Image], text: str) -> Any:
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    message = {"role": "user", "content": content}
    chat = processor.apply_chat_template([message], add_generation_prompt=True)
    return processor(images=list(images), text=chat, return_tensors="pt")


def respond(model: Any, processor: Any, images: Sequence[Image.Image], text: str) -> str:
    inputs = prompt(processor, images, text)
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    words: str = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return words.strip()


@torch.no_grad()
def attention(model: Any, processor: Any, image: Image.Image, text: str) -> NDArray[np.float32]:
    """What the last token of the prompt attends to: layers x 12 x 12, mean over heads."""
    inputs = prompt(processor, [image], text)
    rows = model(**inputs, output_attentions=True).attentions
    here = inputs["input_ids"][0] == model.config.image_token_id
    maps = torch.stack([row[0, :, -1, here].mean(dim=0) for row in rows])
    return maps.reshape(-1, GRID, GRID).float().numpy()


def best_window(map_: NDArray[np.float32]) -> Box:
    """The square of 96 pixels, on patch borders of the full image, with the largest sum."""
    cell = scenes.CANVAS // GRID
    span = BOX_SIDE // cell
    sums = np.lib.stride_tricks.sliding_window_view(map_, (span, span)).sum(axis=(2, 3))
    y, x = (int(value) * cell for value in np.unravel_index(sums.argmax(), sums.shape))
    return (x, y, x + BOX_SIDE, y + BOX_SIDE)


# The command --------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled demo model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, required=True, help="where the stages are kept")
    parser.add_argument("--threads", type=int, default=1, help="two are hardly faster than one")
    parser.add_argument("--restart", action="store_true", help="forget this seed's stages")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.restart:
        for name in STAGES:
            stage_file(arguments.work, arguments.seed, name).unlink(missing_ok=True)
    model, stages = train(arguments.seed, arguments.work)
    export(model, arguments.out)
    log = Log("validation")
    record = {
        "seed": arguments.seed,
        "threads": arguments.threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stages": stages,
        "validation": {**examine(arguments.out), **log.seconds()},
        "packages": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy", "pillow")},
        },
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["validation"], indent=1))


if __name__ == "__main__":
    main()
