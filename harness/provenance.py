"""Where a run came from: package versions, commit, hardware and command. Written beside its identity,
never into it: the same answers from another machine are the same run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ["fovea-eval", "torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy"]
_PACKAGES += ["pillow", "nltk", "openai", "anthropic", "genai-prices"]


def provenance() -> dict[str, Any]:
    """Versions of what decides numbers, this code's commit, the machine, the command and the time."""
    return {
        "started": now(),
        "command": ["fovea", *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": _commit(),
        "hardware": _hardware(),
    }


def now() -> str:
    """The time in UTC, to the second (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any] | None:
    """The checkout's commit and whether tracked files differ from it; None outside a checkout."""
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "sha": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")  # asked only where a model loaded it
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found
