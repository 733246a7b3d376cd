"""The model as its training begins: vocabulary, config, and towers filled with their published weights.

Knows checkpoints and the names of their weights. Must not know: data, the recipe, how training goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from adapters.seps import model as architecture
from adapters.seps._plan import Plan, measures
from adapters.seps._processes import Processes
from adapters.seps.data import Vocabulary
from adapters.seps.model import PRESETS, SEPS, Config, configure
from harness.checkpoints import SMALL_FILES, WEIGHTS, explained, fetched, located, quiet, require_whole
from harness.errors import ModelError, SpecError
from harness.types import Retrieval


def checkpoint_of(name: str) -> str:
    return PRESETS[name].checkpoint if name in PRESETS else name


def vocabulary_of(
    plan: Plan, folder: Path, train: Retrieval, processes: Processes, fresh: bool
) -> Vocabulary:
    """The text tower's, or one made from the training texts; the training's folder keeps it.
    fresh: nothing was trained there yet."""
    with processes.accelerator.main_process_first():
        if fresh and processes.first:
            if measures(plan.text):
                vocabulary = Vocabulary.trained([*train.pool.texts, *dict.fromkeys(train.pool.dense)])
            else:
                vocabulary = Vocabulary.read(located(plan.text, None)[0])
            vocabulary.save(folder)
        return Vocabulary.read(folder)


def _config(plan: Plan, vocabulary: int) -> Config:
    """The model's config; those of checkpoints are read."""
    words = measures(plan.text)
    text = _bert(*words, vocabulary) if words else None
    picture = measures(plan.backbone)
    if picture is None:
        known = (
            checkpoint_of(plan.backbone) if words else plan.text
        )  # a name that has a config; replaced below
        config = configure(plan.impl, plan.backbone, known, **plan.knobs)
        return config if text is None else dataclasses.replace(config, text=plan.text, text_config=text)
    knobs = {"image_size": 96, "embed_size": picture[0], **plan.knobs}
    side = int(knobs.pop("image_size"))
    if side % plan.patch:
        raise SpecError(f"image_size={side} is not a multiple of patch={plan.patch}")
    return Config(
        impl=plan.impl,
        backbone=plan.backbone,
        text=plan.text,
        image_size=side,
        patches=(side // plan.patch) ** 2,
        has_cls=True,
        vision_config=_vit(*picture, side, plan.patch),
        text_config=text or architecture.plain(architecture.tower_config(plan.text, vision=False)),
        **{"sparse_ratio": 0.5, "aggr_ratio": 0.4, **knobs},
    )


def _vit(width: int, layers: int, heads: int, side: int, patch: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {
        "model_type": "vit",
        **sizes,
        "intermediate_size": 4 * width,
        "image_size": side,
        "patch_size": patch,
    }


def _bert(width: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    rest = {"intermediate_size": 4 * width, "max_position_embeddings": 256, "pad_token_id": 0}
    return {"model_type": "bert", **sizes, **rest, "vocab_size": vocabulary}


def model_of(plan: Plan, vocabulary: Vocabulary, fill: bool) -> SEPS:
    """The model as training begins. fill: load its towers' published weights, where they have some."""
    config = _config(plan, vocabulary.size)
    with quiet():
        model = SEPS(config)
    pieces = config.text_config.get("vocab_size")
    if isinstance(pieces, int) and vocabulary.size > pieces:
        raise ModelError(f"the tokenizer of {plan.text} has {vocabulary.size} pieces, its tower {pieces}")
    for tower, name in ((model.towers.vision, plan.backbone), (model.towers.text, plan.text)):
        if fill and measures(name) is None:
            fill_tower(tower, checkpoint_of(name))
    return model


def fill_tower(tower: nn.Module, name: str) -> None:
    """Load a tower's weights from a checkpoint, of which it may be a part (the vision tower of CLIP or
    LLaVA). ModelError where any of them is missing: transformers goes on with random numbers."""
    folder, hub, version = located(name, None)
    if hub is not None:
        fetched(hub, version, (*SMALL_FILES, WEIGHTS))
    with quiet(), explained(name):
        kind = cast(Any, type(tower))
        found, report = kind.from_pretrained(
            folder, config=tower.config, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
        state = found.state_dict()
    own = tower.state_dict()
    missing = [key for key in report["missing_keys"] if key in own]
    if missing:
        state = _part(folder, own)
        require_whole(f"{name}, as a {type(tower).__name__},", missing if state is None else [])
    tower.load_state_dict({key: state[key] for key in own})


def _part(folder: Path, own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A tower's weights from a larger model's files, where they have its names behind one prefix."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(WEIGHTS)):
        tensors |= load_file(path)
    first = min(own)
    prefixes = sorted(key.removesuffix(first) for key in tensors if key.endswith("." + first))
    whole = [
        p
        for p in prefixes
        if all(p + key in tensors and tensors[p + key].shape == own[key].shape for key in own)
    ]
    return {key: tensors[whole[0] + key] for key in own} if len(whole) == 1 else None
