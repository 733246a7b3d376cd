"""What SPARC does to the demo model's captions, over its gain and its threshold: a picture and a table.

    python -m assets.demo.steer --out results/steer --picture docs/sparc_demo.png

Runs resume. Scenes are those of test seed 3000, which nothing was chosen on; captions are greedy, 64 tokens
at most, scored by CHAIR over the scenes' own vocabulary. Every setting is one run of the same scenes; the
dashed line is the same model without SPARC.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness import engine
from harness.cache import Answers
from harness.resolve import make_method, make_model, make_task

ALPHAS = (0.9, 1.02, 1.05, 1.1, 1.2, 1.4)
TAUS = (0.5, 1.5, 4.0)
CONTROLS = ("sparc:alpha=1.02,select=all", "sparc:alpha=1.05,select=all", "sparc:select=random")
NUMBERS = {
    "CHAIRi": "hallucinated mentions / mentions\n(CHAIRi, lower is better)",
    "Recall": "objects of the scene that are named\n(recall, higher is better)",
}
INKS = ("#0969da", "#1a7f37", "#e16f24")


def scores(method: str, size: int, out: Path) -> Any:
    """CHAIR's numbers with their intervals, of one run."""
    result = engine.run(
        make_task("small_detail:question=caption,seed=3000"),
        make_model("hf:assets/demo"),
        [make_method(method)] if method else [],
        out=out,
        limit=size,
        cache=Answers(out / "cache.sqlite"),
    )
    found = result.summary["metrics"]["chair[rules+scenes]"]["scores"]
    print(
        f"{method or 'none'}: " + ", ".join(f"{name} {_cell(found[name])}" for name in (*NUMBERS, "Len")),
        flush=True,
    )
    return found


def draw(plain: Any, steered: dict[tuple[float, float], Any], size: int, picture: Path) -> None:
    """Both numbers over alpha, one line per tau, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(NUMBERS), figsize=(11, 4.4), dpi=120)
    for axis, (name, label) in zip(axes, NUMBERS.items(), strict=True):
        axis.axhspan(plain[name]["low"], plain[name]["high"], color="#8c959f", alpha=0.18, lw=0)
        axis.axhline(plain[name]["value"], color="#57606a", ls="--", lw=1, label="without SPARC")
        for place, (tau, ink) in enumerate(zip(TAUS, INKS, strict=True)):
            points = [steered[alpha, tau][name] for alpha in ALPHAS]
            values = [point["value"] for point in points]
            spread = [
                [value - point["low"] for value, point in zip(values, points, strict=True)],
                [point["high"] - value for value, point in zip(values, points, strict=True)],
            ]
            beside = [alpha + (place - 1) * 0.006 for alpha in ALPHAS]
            axis.errorbar(
                beside, values, spread, color=ink, marker="o", ms=4, capsize=2, lw=1.4, label=f"τ = {tau}"
            )
        axis.set_xlabel("α, gain per selection")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.suptitle(f"SPARC on the demo model's captions, {size} scenes, 95 % intervals")
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Software": None})


def _cell(estimate: Any) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/steer"))
    parser.add_argument("--picture", type=Path, default=Path("docs/sparc_demo.png"))
    parser.add_argument("--size", type=int, default=300, help="scenes per setting")
    given = parser.parse_args()
    plain = scores("", given.size, given.out)
    steered = {
        (alpha, tau): scores(f"sparc:alpha={alpha},tau={tau}", given.size, given.out)
        for tau in TAUS
        for alpha in ALPHAS
    }
    for method in CONTROLS:
        scores(method, given.size, given.out)
    draw(plain, steered, given.size, given.picture)


if __name__ == "__main__":
    main()
