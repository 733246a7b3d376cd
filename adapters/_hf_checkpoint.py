"""A checkpoint: where it is, what its config says, which version it is, and loading it.

Knows folders, the Hugging Face hub, configs, fingerprints and the errors of all four. Must not know
requests, prompts or token layouts. Reading a config loads no weights; only `load` does.

Weights come from safetensors alone; code of a repository runs only if the user said so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from harness.errors import ModelError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Quantization = Literal["none", "8bit", "4bit"]

_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
_WEIGHTS = "*.safetensors"
_HASHED_WHOLE = 64 << 20
"""Bytes of a folder up to which its fingerprint reads all of them."""
_ENDS = 1 << 20
"""Bytes read at either end of each file of a larger folder."""


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
    folder = Path(name).expanduser()
    hub = None
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"revision={revision} is for hub repositories; {folder} is a folder")
        _require_files(folder)
    elif name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name} (seen from {Path.cwd()})")
    else:
        hub, folder = name, _from_hub(name, revision, _SMALL_FILES)
    config = _read_config(name, folder, trust_remote_code)
    return Checkpoint(
        name=hub or folder.resolve().name,
        folder=folder,
        hub=hub,
        revision=folder.name if hub else f"sha256:{fingerprint(folder)}",
        config=config,
        pixels=_read_pixels(folder),
    )


def fingerprint(folder: Path) -> str:
    """sha256 (hex) of what decides a folder's answers: configs, tokenizer, template, weights.

    Up to 64 MiB every byte counts; a larger folder's files count with their size and their first and
    last MiB. A card, a licence or a picture beside them does not count.
    """
    patterns = (*_SMALL_FILES, _WEIGHTS)
    folders = (folder, folder / "qformer_tokenizer")  # InstructBLIP's second tokenizer
    files = sorted({path for place in folders for pattern in patterns for path in place.glob(pattern)})
    whole = sum(path.stat().st_size for path in files) <= _HASHED_WHOLE
    seen = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        seen.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if whole or size <= 2 * _ENDS:
                seen.update(file.read())
            else:
                seen.update(file.read(_ENDS))
                file.seek(-_ENDS, 2)
                seen.update(file.read())
    return seen.hexdigest()


def pick_device(device: str) -> str:
    """`auto` is CUDA where torch sees it, otherwise the CPU. Raises `ModelError` if it is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ModelError(f"device={device} is unknown; use auto, cpu, cuda or cuda:1") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device={device}, but torch sees no CUDA device (torch {torch.__version__}); "
            "use device=cpu or install a CUDA build of torch"
        )
    return device


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
        _from_hub(checkpoint.hub, checkpoint.revision, (*_SMALL_FILES, _WEIGHTS))
    _require_files(folder)
    options: dict[str, Any] = {}
    if quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    if quantization != "none" or device != "cpu":
        options["device_map"] = device
    with _quiet(), _explained(checkpoint):
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
    absent = sorted(report["missing_keys"])
    if absent:  # transformers would go on with random numbers in their place
        raise ModelError(f"{checkpoint.name} lacks {len(absent)} of its weights, {absent[0]} among them")
    if hasattr(processor, "tokenizer"):
        processor.tokenizer.padding_side = "left"
    return weights.eval().requires_grad_(False), processor


def load_processor(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The processor alone: what shows a prompt needs no weights. Raises `ModelError`."""
    with _quiet(), _explained(checkpoint):
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


def _require_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a checkpoint: it has no config.json. A checkpoint folder is what "
            "`save_pretrained` writes (config.json, *.safetensors, tokenizer and processor files)"
        )
    if not any(folder.glob(_WEIGHTS)):
        raise ModelError(
            f"{folder} holds no *.safetensors. Other formats are pickles, which can run code when "
            "read; convert once with `from_pretrained(...).save_pretrained(...)`"
        )


def _from_hub(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its terms on https://huggingface.co/{repository}, then "
            "log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no folder {repository} here (seen from {Path.cwd()}) and no such repository "
            "on the hub; a private one needs `hf auth login` or HF_TOKEN"
        ) from None
    except errors.HFValidationError:
        raise ModelError(
            f"{repository!r} is neither a folder here nor a name that a hub repository can have"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ModelError(
            f"there is no folder {repository} here (seen from {Path.cwd()}), and {repository}{at} is "
            "neither in the hub's cache nor can the hub be reached (offline, or HF_HUB_OFFLINE is "
            f"set). Download it once with a network: hf download {repository}"
        ) from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"the hub refused {repository}{at}: {error}") from None


def _read_config(name: str, folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except (OSError, ValueError) as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = "; it brings its own code, which runs only with trust_remote_code=true"
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name}: config.json cannot be used{hint} ({reason})") from None
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


# ---------------------------------------------------------------- transformers' manners


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No notes and no bars from transformers while it loads; its settings are put back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what goes wrong while loading into a `ModelError` that names the checkpoint."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(f"{checkpoint.name} ({checkpoint.family}) does not load: {reason}") from error
