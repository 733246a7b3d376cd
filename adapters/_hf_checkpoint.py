"""An image-text-to-text checkpoint: what its config says, and loading it.

Knows configs, precisions, processors and weights. Must not know requests, prompts or token layouts.
Reading a config loads no weights; only `load` does. Code of a repository runs only if the user said so.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from harness.checkpoints import (
    SMALL_FILES,
    WEIGHTS,
    explained,
    fetched,
    located,
    quiet,
    read_config,
    require_whole,
)
from harness.errors import ModelError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Quantization = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose small files are on this machine.

    name: as records call it (a hub id, or a folder's name). folder: where the small files are. hub: the
    repository, None for a folder. revision: the hub's commit, or `sha256:` of a folder's content.
    config: transformers' config. pixels: the image processor's settings as written.
    """

    name: str
    folder: Path
    hub: str | None
    revision: str
    config: Any
    pixels: dict[str, Any]

    @property
    def family(self) -> str:
        return str(self.config.model_type)


def find(name: str, revision: str | None, *, trust_remote_code: bool) -> Checkpoint:
    """Locate a checkpoint, a folder first and then the hub, and read its config.

    Raises `ModelError` for a folder that is missing or holds no checkpoint, a repository that is gated,
    unknown or out of reach, and a config that is no image-text-to-text model's.
    """
    folder, hub, version = located(name, revision)
    config = _model_config(name, folder, trust_remote_code)
    return Checkpoint(
        name=hub or folder.resolve().name,
        folder=folder,
        hub=hub,
        revision=version,
        config=config,
        pixels=_read_pixels(folder),
    )


def pick_dtype(dtype: Dtype, device: str, config: Any) -> str:
    """`auto` is float32 on a CPU, elsewhere the checkpoint's half precision or else bfloat16."""
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32"
    stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return stored if stored in ("float16", "bfloat16") else "bfloat16"


def require_quantization(quantization: Quantization) -> None:
    """Raise `ModelError` if the package that quantises is not installed."""
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quantization={quantization} needs the package bitsandbytes: pip install bitsandbytes"
        )


def load(
    checkpoint: Checkpoint,
    *,
    device: str,
    dtype: str,
    quantization: Quantization,
    attention: str | dict[str, str],
    trust_remote_code: bool,
) -> tuple[Any, Any]:
    """The weights, in evaluation mode on their device, and the processor, padding on the left.

    attention: transformers' `attn_implementation`. Pictures are prepared with Pillow whether or not
    torchvision is installed, so that machines agree. Raises `ModelError`.
    """
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    folder = checkpoint.folder
    if checkpoint.hub is not None:
        fetched(checkpoint.hub, checkpoint.revision, (*SMALL_FILES, WEIGHTS))
    options: dict[str, Any] = {}
    if quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    if quantization != "none" or device != "cpu":
        options["device_map"] = device
    with quiet(), explained(f"{checkpoint.name} ({checkpoint.family})"):
        processor = _processor(checkpoint, trust_remote_code=trust_remote_code)
        weights, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **options,
        )
    require_whole(checkpoint.name, report["missing_keys"])
    if hasattr(processor, "tokenizer"):
        processor.tokenizer.padding_side = "left"
    return weights.eval().requires_grad_(False), processor


def load_processor(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The processor alone: what shows a prompt needs no weights. Raises `ModelError`."""
    with quiet(), explained(f"{checkpoint.name} ({checkpoint.family})"):
        return _processor(checkpoint, trust_remote_code=trust_remote_code)


def _processor(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The checkpoint's processor, its pictures prepared by Pillow.

    A processor that prepares videos too does not load this way, or not without torchvision; then it
    loads without its video part, which no request needs.
    """
    from transformers import AutoProcessor
    from transformers.processing_utils import ProcessorMixin

    options = {"backend": "pil", "trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        return AutoProcessor.from_pretrained(checkpoint.folder, **options)
    except (OSError, ValueError, ImportError) as error:
        official = _processor_class(checkpoint.family)
        if "video" not in str(error).lower() or official is None:
            raise

    class NoVideo(ProcessorMixin):  # type: ignore[misc]
        """Between a family's class, which gets None for its video part, and the base, which takes none."""

        video_processor = SimpleNamespace(num_frames=None, fps=None)  # which SmolVLM reads for any message

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

        @classmethod
        def from_args_and_dict(cls, args: Any, settings: dict[str, Any], **more: Any) -> Any:
            return super().from_args_and_dict(args, {**settings, "video_processor": None}, **more)

        def __init__(self, *args: Any, video_processor: None = None, **more: Any) -> None:
            super().__init__(*args, **more)

    class ImagesOnly(official, NoVideo):  # type: ignore[misc, valid-type]
        pass

    return ImagesOnly.from_pretrained(checkpoint.folder, backend="pil", local_files_only=True)


def _processor_class(family: str) -> Any:
    """transformers' own processor class of a family, None if it has none."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(family)
    return getattr(transformers, name, None) if name else None


# ---------------------------------------------------------------- files


def _model_config(name: str, folder: Path, trust_remote_code: bool) -> Any:
    from transformers.models.auto import modeling_auto

    own_code = "; it brings its own code, which runs only with trust_remote_code=true"
    config = read_config(name, folder, trust_remote_code=trust_remote_code, own_code=own_code)
    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if config.model_type not in known and not trust_remote_code:
        raise ModelError(
            f"{name} is a {config.model_type} model; hf: takes image-text-to-text models "
            "(`AutoModelForImageTextToText`)"
        )
    return config


def _read_pixels(folder: Path) -> dict[str, Any]:
    """The image processor's settings: part of the processor's file, or a file of its own."""
    for file, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", "")):
        try:
            written = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        settings = written.get(key) if key else written
        if isinstance(settings, dict):
            return settings
    return {}


def full_layers(decoder: Any) -> list[int]:
    """A decoder's layers (0-based) whose tokens attend to everything before them; all, where none is said to.

    decoder: transformers' config of it.
    """
    layers = range(int(decoder.num_hidden_layers))
    kinds = getattr(decoder, "layer_types", None) or ()
    full = [layer for layer, kind in zip(layers, kinds, strict=False) if kind == "full_attention"]
    return full or list(layers)
