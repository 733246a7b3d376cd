"""Any module of Hugging Face `evaluate` as a metric: `--metric evaluate:PATH_OR_NAME`.

Knows `evaluate`'s modules and the two shapes of references that they take. Must not know: datasets,
models. The other door, our metrics as modules of `evaluate`, is metrics/evaluate_module.py.

    evaluate:my_metrics/overlap.py
    evaluate:exact_match,trust_remote_code=true,arguments=({"ignore_case": true})
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from harness.errors import DataError, SpecError
from harness.types import Metric, Response, Sample

References: TypeAlias = Literal["auto", "first"]


@dataclass(frozen=True)
class Evaluate:
    """A module of `evaluate` over answers and their samples' targets, computed once over all of them.

    module: a folder or a Python file, or, with `trust_remote_code`, a name on the hub, whose code is then
    downloaded and run. config: its configuration (GLUE's task, say). arguments: what its `compute` takes
    further, a JSON object. number: the result that comes first, by default the module's own name;
    lower_is_better: of that number. references: modules take a list of references per prediction or a
    single one; `auto` gives the list where it can, and else the target, if there is only one; `first`
    gives the first target.

    Every result that is a number becomes one; lists and tables among the results are left out. Samples
    without targets count for nothing. Without samples `number` is None.
    """

    module: str
    config: str | None = None
    arguments: str = "{}"
    number: str | None = None
    lower_is_better: bool = False
    references: References = "auto"
    trust_remote_code: bool = False

    name: ClassVar[str] = "evaluate"
    scope: ClassVar[Literal["corpus"]] = "corpus"
    additive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self._is_local and not self.trust_remote_code:
            raise SpecError(
                f"evaluate:{self.module}: there is no such file or folder here (seen from {Path.cwd()}). "
                "If it is a module on the hub, say trust_remote_code=true: its code is downloaded and run"
            )
        try:
            given = json.loads(self.arguments)
        except ValueError as error:
            raise SpecError(f"evaluate:{self.module}: arguments is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise SpecError(
                f'evaluate:{self.module}: arguments is no object, such as ({{"normalize": true}})'
            )

    @property
    def _is_local(self) -> bool:
        return Path(self.module).expanduser().exists()

    @property
    def variant(self) -> str:
        """The module's name, its configuration and its arguments, where it has any."""
        name = Path(self.module).stem if self._is_local else self.module
        arguments = "" if json.loads(self.arguments) == {} else self.arguments
        return "+".join(part for part in (name, self.config, arguments) if part)

    @property
    def first(self) -> str:
        """The name of the number that comes first."""
        return self.number or Path(self.module).stem

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {self.first: not self.lower_is_better}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Per sample its `prediction` and its `references`; {} for a sample without targets."""
        return [
            {"id": sample.id, "prediction": response.text, "references": list(sample.targets)}
            if sample.targets
            else {}
            for response, sample in zip(responses, samples, strict=True)
        ]

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        scored = sorted((count for count in counts if count), key=lambda count: str(count["id"]))
        if not scored:
            return {self.first: None}
        module = self._load()
        references = _shaped(module, scored, self.references, self.module)
        try:
            results = module.compute(
                predictions=[count["prediction"] for count in scored],
                references=references,
                **json.loads(self.arguments),
            )
        except (ValueError, TypeError, KeyError, IndexError, ArithmeticError) as error:
            raise DataError(f"evaluate:{self.module} failed on {len(scored)} answers: {error}") from error
        found = {name: _number(value) for name, value in results.items() if _is_number(value)}
        if self.first not in found:
            there = ", ".join(found) or "none"
            raise DataError(
                f"evaluate:{self.module} has no number {self.first!r}; say number=... (there are: {there})"
            )
        return {self.first: found[self.first], **found}

    def _load(self) -> Any:
        import evaluate

        path = str(Path(self.module).expanduser().resolve()) if self._is_local else self.module
        try:
            return evaluate.load(path, self.config, keep_in_memory=True)
        except (OSError, ImportError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"evaluate:{self.module} does not load: {error}") from error


def _shaped(module: Any, scored: Sequence[Any], references: References, name: str) -> list[Any]:
    """The references as `module` declares them: a list for each prediction, or one text."""
    import datasets

    options = module.features if isinstance(module.features, list) else [module.features]
    if any(set(option) != {"predictions", "references"} for option in options):
        wanted = ", ".join(options[0])
        raise DataError(f"evaluate:{name} takes {wanted}; only predictions and references are known here")
    single = [isinstance(option["references"], datasets.Value) for option in options]
    if references == "auto" and not all(single):
        return [count["references"] for count in scored]
    several = next((count for count in scored if len(count["references"]) > 1), None)
    if references == "auto" and several is not None:
        raise DataError(
            f"evaluate:{name} takes one reference per prediction; sample {several['id']!r} has "
            f"{len(several['references'])}. references=first takes the first"
        )
    return [count["references"][0] if any(single) else count["references"][:1] for count in scored]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def metric(
    module: str,
    *,
    config: str | None = None,
    arguments: str = "{}",
    number: str | None = None,
    lower_is_better: bool = False,
    references: References = "auto",
    trust_remote_code: bool = False,
) -> Metric:
    """A module of Hugging Face `evaluate` over answers and targets, its results as numbers: see `Evaluate`.

    module: a folder or a Python file; or, with trust_remote_code=true, a name on the hub. arguments: what its
    `compute` takes further, as in arguments=({"normalize": true}). number: the result that comes first,
    by default the module's own name.
    """
    return Evaluate(module, config, arguments, number, lower_is_better, references, trust_remote_code)
