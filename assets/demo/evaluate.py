"""Fill the model card's results: every arm on fresh test scenes, per training seed and per digit height.

    python -m assets.demo.evaluate assets/demo SEED1_DIR SEED2_DIR --out results/card

Runs resume. Test scenes are drawn from seed 3000, which neither training nor choosing a layer has seen
(validation used seeds below 2000, the demo command shows seed 2000).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness import engine
from harness.cache import Answers
from harness.resolve import make_method, make_model, make_task

ARMS = {
    "full image": "",
    "full image twice": "full_twice",
    "random crop": "random_crop",
    "centre crop": "center_crop",
    "raw attention": "vicrop:locate=raw_att",
    "relative attention": "vicrop:locate=rel_att",
    "oracle crop": "vicrop:locate=oracle",
}
HEIGHTS = ("12-14", "20-24", "28-34", "40-48")
OTHERS = {
    "attribute": ("attribute", "exact[llava]", "accuracy"),
    "existence": ("existence", "yesno[official]", "f1"),
    "count": ("count", "exact[llava]", "accuracy"),
    "caption, CHAIRi": ("caption", "chair[rules+scenes]", "CHAIRi"),
    "caption, CHAIRs": ("caption", "chair[rules+scenes]", "CHAIRs"),
    "caption, recall": ("caption", "chair[rules+scenes]", "Recall"),
}
START, END = "<!-- results -->", "<!-- end of results -->"


class Evaluation:
    """Runs of several checkpoints, kept under `out`."""

    def __init__(self, checkpoints: list[Path], out: Path, size: int) -> None:
        self.checkpoints = checkpoints
        self.out = out
        self.size = size
        self.answers = Answers(out / "cache.sqlite")

    def scores(self, checkpoint: Path, task: str, arm: str, limit: int) -> Any:
        """The run's metrics."""
        result = engine.run(
            make_task(task),
            make_model(f"hf:{checkpoint}"),
            [make_method(arm)] if arm else [],
            out=self.out,
            limit=limit,
            cache=self.answers,
        )
        print(f"{checkpoint.name} {task} {arm or 'full image'}: done", flush=True)
        return result.summary["metrics"]

    def arms(self) -> list[str]:
        rows = [_row("", [f"training seed {k}" for k in range(len(self.checkpoints))])]
        rows.append(_row("---", ["---"] * len(self.checkpoints)))
        for label, arm in ARMS.items():
            task = "small_detail:seed=3000"
            found = [self.scores(path, task, arm, self.size) for path in self.checkpoints]
            rows.append(_row(label, [_cell(each["exact[llava]"]["scores"]["accuracy"]) for each in found]))
        return rows

    def heights(self) -> list[str]:
        labels = ("full image", "raw attention", "relative attention", "oracle crop")
        rows = [_row("digit height", list(labels)), _row("---", ["---"] * len(labels))]
        for glyph in HEIGHTS:
            task = f"small_detail:seed=3000,glyph={glyph}"
            cells = []
            for label in labels:
                metrics = self.scores(self.checkpoints[0], task, ARMS[label], self.size // 3)
                cells.append(_cell(metrics["exact[llava]"]["scores"]["accuracy"]))
            rows.append(_row(f"{glyph} px", cells))
        return rows

    def others(self) -> list[str]:
        rows = [_row("", [f"training seed {k}" for k in range(len(self.checkpoints))])]
        rows.append(_row("---", ["---"] * len(self.checkpoints)))
        for label, (question, key, number) in OTHERS.items():
            task = f"small_detail:question={question},seed=3000"
            found = [self.scores(path, task, "", self.size // 2) for path in self.checkpoints]
            rows.append(_row(label, [_cell(each[key]["scores"][number]) for each in found]))
        return rows


def _row(label: str, cells: list[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _cell(estimate: Any) -> str:
    if estimate["value"] is None:
        return "undefined"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/card"))
    parser.add_argument("--size", type=int, default=450, help="scenes per arm")
    parser.add_argument("--card", type=Path, default=Path(__file__).parent / "README.md")
    given = parser.parse_args()
    evaluation = Evaluation(given.checkpoints, given.out, given.size)
    sections = [
        f"Digits of 16-24 px, {given.size} scenes of test seed 3000; accuracy with 95 % intervals.",
        "\n".join(evaluation.arms()),
        f"By digit height, training seed 0, {given.size // 3} scenes each.",
        "\n".join(evaluation.heights()),
        f"Other questions about the whole image, {given.size // 2} scenes each.",
        "\n".join(evaluation.others()),
    ]
    card = given.card.read_text()
    before, after = card.split(START)[0], card.split(END)[1]
    given.card.write_text(before + START + "\n\n" + "\n\n".join(sections) + "\n\n" + END + after)


if __name__ == "__main__":
    main()
