"""A grid of runs: a YAML file, its variables filled in, expanded to cells.

    name: sparc_tau
    about: what the grid is for
    vars: {data: null, judge: "openai:gpt-4o"}            # null: to be given, --set data=DIR
    limit: 100                                            # samples per cell; all of them without it
    tasks: ["iiw400:root=${data}/iiw400,judge=(${judge})"]
    models: ["hf:llava-hf/llava-1.5-7b-hf"]
    methods:                                              # `none`, the identity arm, is always there
      - sparc:select=all
      - {method: sparc, tau: {range: [0.5, 4, 0.5]}, alpha: [1.05, 1.1]}    # every combination
      - [center_crop, random_crop]                        # a chain; the first is innermost
    metrics: [length]                                     # besides the tasks' own
    exclude: [{task: iiw400, method: "sparc:select=all"}] # cells whose specs say at least this

Tasks and models may be mappings too. Knows YAML and the grammar of specs; whether the names exist, it does
not know. Every error is a SpecError that lists all faults, each with its path in the file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness import resolve
from harness.errors import SpecError

Word = Literal["task", "model", "method"]
Specs = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class Match(BaseModel):
    """What an excluded cell's specs say at least; of several specs, any. `none` is the identity arm."""

    model_config = ConfigDict(extra="forbid")
    task: Specs = []
    model: Specs = []
    method: Specs = []


class Grid(BaseModel):
    """The file, its variables filled in."""

    model_config = ConfigDict(extra="forbid")
    name: str
    about: str = ""
    vars: dict[str, Any] = {}
    limit: int | None = Field(None, ge=1)
    tasks: list[Any] = Field(min_length=1)
    models: list[Any] = Field(min_length=1)
    methods: list[Any] = []
    metrics: list[str] = []
    exclude: list[Match] = []


@dataclass(frozen=True)
class Cell:
    """One run of the grid, as specs; no methods is the identity arm."""

    task: str
    model: str
    methods: tuple[str, ...]

    @property
    def chain(self) -> str:
        return " > ".join(self.methods) or "none"

    @property
    def short(self) -> str:
        """For a line of progress."""
        return f"{self.task.partition(':')[0]} · {self.chain}"

    def __str__(self) -> str:
        return f"{self.task} · {self.model} · {self.chain}"


# ---------------------------------------------------------------- reading


def read(path: Path, given: Mapping[str, str] | None = None) -> Grid:
    """The grid in a file; `given` replaces variables. SpecError lists everything that is wrong, by path."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path} holds no grid: name, tasks, models and methods are expected")
    variables = raw.get("vars") or {}
    if not isinstance(variables, dict):
        raise SpecError(f"{path}: vars is {variables!r}; write name: value, ...")
    faults = [f"--set {name}: the grid has no such variable" for name in given or () if name not in variables]
    variables = variables | dict(given or {})
    filled = {
        key: value if key == "vars" else _filled(value, variables, key, faults) for key, value in raw.items()
    }
    try:
        grid = Grid.model_validate(filled | {"vars": variables})
    except ValidationError as error:
        faults += [f"{_path(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
    refuse(faults, f"{path}")
    return grid


class _Loader(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys, and half of an axis would be lost unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice; put its values into one list", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _filled(value: Any, variables: Mapping[str, Any], where: str, faults: list[str]) -> Any:
    """`value` with every ${name} in its texts replaced."""
    if isinstance(value, dict):
        return {key: _filled(each, variables, f"{where}.{key}", faults) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, variables, f"{where}[{n}]", faults) for n, each in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in variables:
            known = ", ".join(variables) or "none"
            faults.append(f"{where}: ${{{name}}} is unknown; variables: {known}")
        elif variables[name] is None:
            faults.append(f"${{{name}}} has no value; give one with --set {name}=...")
        return _text(variables.get(name), plain=True)

    return re.sub(r"\$\{(\w*)\}", fill, value)


def _path(location: Iterable[str | int]) -> str:
    """tasks[0].root, as a reader of the file would say it."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")


def refuse(faults: Sequence[str], what: str) -> None:
    """Raises SpecError with all of them, each once, if there are any."""
    faults = list(dict.fromkeys(faults))
    if faults:
        number = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise SpecError("\n  ".join([f"{what}: {number}", *faults]))


# ---------------------------------------------------------------- cells


def cells(grid: Grid) -> list[Cell]:
    """The grid's cells, each once, a model's together, the identity arm first. SpecError lists all faults."""
    faults: list[str] = []

    def specs(entries: Sequence[Any], word: Word, where: str) -> list[list[str]]:
        return [_specs(entry, word, f"{where}[{n}]", faults) for n, entry in enumerate(entries)]

    tasks = list(itertools.chain(*specs(grid.tasks, "task", "tasks")))
    models = list(itertools.chain(*specs(grid.models, "model", "models")))
    chains: list[tuple[str, ...]] = [()]
    for n, entry in enumerate(grid.methods):
        links = entry if isinstance(entry, list) else [entry]
        for chain in itertools.product(*specs(links, "method", f"methods[{n}]")):
            chains.append(tuple(link for link in chain if link != "none"))
    refuse(faults, grid.name)
    found: dict[Any, Cell] = {}
    for model, task, chain in itertools.product(models, tasks, chains):
        found.setdefault(tuple(map(_said, (task, model, *chain))), Cell(task, model, chain))
    dropped = [[cell for cell in found.values() if _matches(match, cell)] for match in grid.exclude]
    faults += [f"exclude[{n}] matches no cell" for n, some in enumerate(dropped) if not some]
    left = [cell for cell in found.values() if not any(cell in some for some in dropped)]
    refuse(faults if left else [*faults, "exclude leaves no cell"], grid.name)
    return left


def _specs(entry: Any, word: Word, where: str, faults: list[str]) -> list[str]:
    """The specs of an entry: itself, or every combination of the knobs that its mapping lists."""
    try:
        if isinstance(entry, str):
            found = [entry]
        elif isinstance(entry, dict) and isinstance(entry.get(word), str):
            axes = [
                [f"{knob}={_text(value)}" for value in _values(listed, f"{where}.{knob}")]
                for knob, listed in entry.items()
                if knob != word
            ]
            joint = "," if ":" in entry[word] else ":"
            found = [
                entry[word] + (joint + ",".join(knobs) if knobs else "") for knobs in itertools.product(*axes)
            ]
        else:
            raise SpecError(f"{where} is {entry!r}; write a spec, or {{{word}: NAME, knob: [value, ...]}}")
        for spec in found:
            resolve.parse(spec)
    except SpecError as error:
        message = str(error)
        faults.append(message if message.startswith(where) else f"{where}: {message}")
        return []
    return found


def _values(listed: Any, where: str) -> list[Any]:
    """A knob's values: one, a list, or `range: [start, stop, step]`, whose stop belongs to it."""
    if isinstance(listed, dict):
        bounds = listed.get("range") if set(listed) == {"range"} else None
        if not (
            isinstance(bounds, list) and len(bounds) == 3 and all(type(b) in (int, float) for b in bounds)
        ):
            raise SpecError(f"{where} is {listed!r}; write range: [start, stop, step]")
        start, stop, step = (Decimal(str(bound)) for bound in bounds)
        if not step or (stop - start) / step < 0:
            raise SpecError(
                f"{where}: range {bounds} has no values; stop lies beyond start, in steps of step"
            )
        return [start + n * step for n in range(int((stop - start) / step) + 1)]  # Decimal: 0.3 stays 0.3
    if listed == []:
        raise SpecError(f"{where} lists no value")
    return listed if isinstance(listed, list) else [listed]


def _text(value: Any, plain: bool = False) -> str:
    """A YAML value as a spec writes it; unless `plain`, its commas and quotes protected."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if plain or text[:1] in ("(", '"') or not set(text) & set(',()"') else f"({text})"


def _said(spec: str) -> tuple[str, tuple[str, ...], frozenset[tuple[str, str | float]]]:
    """What a spec says, whatever the order of its knobs; 1, 1.0 and 1.00 are the same."""

    def value(text: str) -> str | float:
        return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?", text) else text

    parsed = resolve.parse(spec)
    knobs = frozenset((knob, value(text)) for knob, text in parsed.knobs.items())
    return parsed.name, parsed.positional, knobs


def _matches(match: Match, cell: Cell) -> bool:
    """Whether each of the match's words is said by the cell."""
    said = ((match.task, [cell.task]), (match.model, [cell.model]), (match.method, cell.methods or ["none"]))
    return all(
        not wanted or any(_says(spec, least) for spec in specs for least in wanted) for wanted, specs in said
    )


def _says(spec: str, least: str) -> bool:
    """Whether `spec` has the name, and the positional values and knobs, of `least`."""
    name, positional, knobs = _said(spec)
    wanted, first, some = _said(least)
    return name == wanted and positional[: len(first)] == first and some <= knobs
