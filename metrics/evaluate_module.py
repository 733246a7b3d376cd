"""Any of our metrics as a module of Hugging Face `evaluate`.

    import evaluate

    chair = evaluate.load("metrics/evaluate_module.py", "chair")
    chair.compute(predictions=captions, references=objects, front_end="wordnet")

The second argument is the metric's name, as in `fovea list metrics`; further arguments of `compute` are
its knobs. predictions: texts. references: for each a list of texts (or one text): what a sample's targets
are in a task, such as the node words of an image's objects for CHAIR. What needs more than that (a picture,
the options of a question) is no such metric.

`evaluate` reads this file's imports line by line, copies it elsewhere and runs the copy: one import per
line, and none relative.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate

from harness.errors import SpecError
from harness.types import Metric, Response, Sample


class FoveaMetric(evaluate.Metric):  # type: ignore[misc]
    """The metric called `config_name`."""

    def _info(self) -> Any:
        factory = _factory(self.config_name)
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=factory.__doc__ or self.config_name,
            citation="",
            inputs_description="\npredictions: texts. references: a list of texts for each, or one.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def compute(
        self, *, predictions: Any = None, references: Any = None, **knobs: Any
    ) -> dict[str, float | None] | None:
        """The metric's numbers; each is None over no predictions at all."""
        if predictions is not None and len(predictions) == 0:
            return _factory(self.config_name)(**knobs).reduce([])
        found: dict[str, float | None] | None = evaluate.Metric.compute(
            self, predictions=predictions, references=references, **knobs
        )
        return found

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Any], **knobs: Any
    ) -> dict[str, float | None]:
        metric = _factory(self.config_name)(**knobs)
        samples = [
            Sample(str(number), targets=(targets,) if isinstance(targets, str) else tuple(targets))
            for number, targets in enumerate(references)
        ]
        return metric.reduce(metric.measure([Response(text) for text in predictions], samples))


def _factory(name: str) -> Callable[..., Metric]:
    """`metrics/NAME.py`'s factory. Raises SpecError for a name that is none."""
    try:
        if re.fullmatch(r"[a-z]\w*", name):
            factory: Callable[..., Metric] = importlib.import_module(f"metrics.{name}").metric
            return factory
    except (ModuleNotFoundError, AttributeError):
        pass
    raise SpecError(
        f"there is no metric {name!r}: give evaluate.load its name as second argument, as in "
        'evaluate.load(".../evaluate_module.py", "chair"). `fovea list metrics` shows them'
    )
