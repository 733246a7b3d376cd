"""Names to things: the spec grammar, and the rooms where tasks, models, methods and metrics are found.

    name                    pope
    name:key=value,...      vicrop:locate=rel_att,layer=14
    name:positional,...     hf:llava-hf/llava-1.5-7b-hf,dtype=bfloat16
    nested, in parentheses  vqa_file:data.jsonl,metric=(vqa:variant=official)

A name is a file of its room (`tasks/pope.py`, or `methods/patch_matters/main.py`), or an entry point of
another package (`fovea.tasks`, `fovea.adapters`, `fovea.methods`, `fovea.metrics`). Knobs are the typed
parameters of its factory. A value with commas, quotes or parentheses of its own goes into double quotes.
Every error here is a SpecError that lists what exists.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from harness.cache import Answers
from harness.engine import Wrap, compose
from harness.errors import SpecError
from harness.types import Json, Metric, Model, Response, Sample, Task

Kind = Literal["task", "model", "method", "metric"]
ROOMS: dict[Kind, str] = {
    "task": "tasks",
    "model": "adapters",
    "method": "methods",
    "metric": "metrics",
}


@dataclass(frozen=True)
class Spec:
    """A parsed spec: the name, positional values and knobs, all still text."""

    name: str
    positional: tuple[str, ...]
    knobs: Mapping[str, str]


def make_task(spec: str, cache: Answers | None = None) -> Task:
    """The task that `spec` names, its annotations read."""
    task = typing.cast(Task, _bound("task", spec, cache)())
    return dataclasses.replace(task, spec=spec)


def make_model(spec: str, cache: Answers | None = None) -> Model:
    """The model that `spec` names, which it carries as `spec`; its weights load when it is first asked."""
    made = typing.cast(Model, _bound("model", spec, cache)())
    with contextlib.suppress(AttributeError):  # another package's may have no room for it
        object.__setattr__(made, "spec", spec)
    return made


def make_metric(spec: str, cache: Answers | None = None) -> Metric:
    """The metric that `spec` names."""
    return typing.cast(Metric, _bound("metric", spec, cache)())


def make_method(spec: str, cache: Answers | None = None) -> Wrap:
    """What wraps a model in the method that `spec` names; its knobs are checked now, not then."""
    return _bound("method", spec, cache)


def metric_from(stored: Mapping[str, Any]) -> Metric:
    """The metric of a run's header (`harness.summary.metric_json`) again."""
    factory = load("metric", stored["name"])
    known = inspect.signature(factory).parameters
    knobs = {name: value for name, value in stored["knobs"].items() if name in known}
    return typing.cast(Metric, factory(**knobs))


def metric_again(stored: Mapping[str, Any], cache: Answers | None = None, judge: str | None = None) -> Metric:
    """As `metric_from`, and able to measure: the models among its knobs are made from their specs.

    judge: a model's spec, in the place of the stored judge of a metric that has one.
    """
    specs = dict(stored.get("specs", {}))
    if judge is not None and _takes_judge("metric", stored["name"]):
        specs["judge"] = judge
    models = {name: _named_model(spec, cache) for name, spec in specs.items()}
    return metric_from({**stored, "knobs": {**stored["knobs"], **models}})


def judged(kind: Kind, spec: str, judge: str | None) -> str:
    """`spec` with its knob `judge` set, where it has one that is not given.

    >>> judged("metric", "clair", "openai:gpt-4o")
    'clair:judge=(openai:gpt-4o)'
    """
    parsed = parse(spec)
    if judge is None or "judge" in parsed.knobs or not _takes_judge(kind, parsed.name):
        return spec
    return f"{spec}{',' if parsed.positional or parsed.knobs else ':'}judge=({judge})"


def _takes_judge(kind: Kind, name: str) -> bool:
    return "judge" in inspect.signature(load(kind, name)).parameters


def submission_of(task: str) -> Callable[[Sequence[tuple[Sample, str]]], Json]:
    """What writes the evaluation server's file for runs of a task. SpecError where there is no server."""
    writer = _of_task(task, "submission")
    if writer is None:
        raise SpecError(
            f"{task} has no evaluation server; --submission is for docvqa, textvqa and vqav2, and for the "
            "dense texts of coco_dense and flickr30k_dense"
        )
    return typing.cast(Callable[[Sequence[tuple[Sample, str]]], Json], writer)


DenseLines = Callable[[Mapping[str, Any], Sequence[tuple[Sample, Response]]], list[Json]]


def dense_lines_of(task: str) -> DenseLines | None:
    """What makes the lines of a dense-text file of a run's header and answers, one per sample in the task's
    order; None for a task whose answers are no dense texts."""
    return typing.cast(DenseLines | None, _of_task(task, "dense_lines"))


def _of_task(task: str, name: str) -> Any:
    """What a task's file exports beside the task; None where it does not."""
    where = names("task").get(task)
    module = importlib.import_module(f"tasks.{task}") if isinstance(where, Path) else None
    return getattr(module, name, None)


def verb(name: str, module: str = "leaderboard.cli") -> Callable[..., Any]:
    """A command that lives above the harness: `board` is a function of leaderboard/cli.py."""
    return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), name))


# ---------------------------------------------------------------- the grammar


def parse(text: str) -> Spec:
    """Take a spec apart.

    >>> parse("hf:a/b,dtype=bfloat16")
    Spec(name='hf', positional=('a/b',), knobs={'dtype': 'bfloat16'})
    >>> parse("m:judge=(openai:gpt-4o,temperature=0)").knobs["judge"]
    'openai:gpt-4o,temperature=0'
    """
    name, colon, rest = text.strip().partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w-]*", name):
        raise SpecError(f"{text!r} is not a spec: it begins with {name!r}. Write name:key=value,...")
    positional: list[str] = []
    knobs: dict[str, str] = {}
    for part in _parts(rest, text) if colon else ():
        key, equals, value = part.partition("=")
        if equals and key.strip().isidentifier():
            if key.strip() in knobs:
                raise SpecError(f"{text!r} gives {key.strip()!r} twice")
            knobs[key.strip()] = _unwrapped(value.strip())
        elif knobs:
            raise SpecError(
                f"{text!r}: {part!r} is not key=value. Positional values come first; a value with a comma "
                "goes into double quotes"
            )
        else:
            positional.append(_unwrapped(part.strip()))
    return Spec(name.replace("-", "_"), tuple(positional), knobs)


def _parts(rest: str, text: str) -> list[str]:
    """`rest` cut at its commas, those inside parentheses or quotes left alone."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, letter in enumerate(rest):
        if letter == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if depth < 0:
                break
        elif letter == "," and depth == 0:
            parts.append(rest[start:position])
            start = position + 1
    if depth or quoted:
        raise SpecError(f"{text!r} has {'an open quote' if quoted else 'unbalanced parentheses'}")
    parts.append(rest[start:])
    if any(not part.strip() for part in parts):
        raise SpecError(f"{text!r} has an empty part; remove the comma or colon too many")
    return parts


def _unwrapped(value: str) -> str:
    if len(value) >= 2 and (value[0], value[-1]) in (("(", ")"), ('"', '"')):
        return value[1:-1]
    return value


# ---------------------------------------------------------------- what exists


@dataclass(frozen=True)
class Named:
    """A model and the spec that made it, so that who stores one can say how to make it again."""

    model: Model
    spec: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _named_model(spec: str, cache: Answers | None) -> Model:
    return typing.cast(Model, Named(compose(make_model(spec, cache), (), cache), spec))


@functools.cache
def names(kind: Kind) -> Mapping[str, Path | EntryPoint]:
    """Every name of a kind and where it lives, sorted; nothing is imported."""
    found: dict[str, Path | EntryPoint] = {}
    room = importlib.util.find_spec(ROOMS[kind])
    for folder in (room.submodule_search_locations or ()) if room else ():
        for path in Path(folder).iterdir():
            if path.name.startswith("_"):
                continue
            main = path if path.suffix == ".py" else path / "main.py"
            if main.is_file() and _exports(main, kind):
                found[path.stem] = main
    for point in entry_points(group=f"fovea.{ROOMS[kind]}"):
        found.setdefault(point.name, point)
    return dict(sorted(found.items()))


def _exports(path: Path, kind: Kind) -> bool:
    """Whether a file makes things of this kind, or is arithmetic that others use."""
    pattern = rf"^(?:def|class) {kind}\b|^{kind} *[:=]"
    return re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def load(kind: Kind, name: str) -> Callable[..., Any]:
    """The factory behind a name. An unknown one gets the nearest."""
    where = names(kind).get(name)
    if where is None:
        raise SpecError(f"there is no {kind} {name!r}. {_nearest(name, names(kind), ROOMS[kind])}")
    try:
        if isinstance(where, EntryPoint):
            return typing.cast(Callable[..., Any], where.load())
        module = f"{ROOMS[kind]}.{name}" + (".main" if where.name == "main.py" else "")
        return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), kind))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in (*ROOMS.values(), "harness"):
            raise  # a bug of ours, not a package to install
        raise SpecError(
            f"the {kind} {name} needs the package {package}, which is not installed: pip install {package}"
        ) from None


def summary(where: Path | EntryPoint) -> str:
    """The first line of a file's docstring, without importing it."""
    if isinstance(where, EntryPoint):
        return f"from {where.value}"
    documented = ast.get_docstring(ast.parse(where.read_text(encoding="utf-8"))) or ""
    return documented.partition("\n")[0]


def documentation(kind: Kind, name: str) -> str:
    """The docstring of what a name makes, or of its file."""
    factory = load(kind, name)
    return inspect.getdoc(factory) or inspect.getdoc(importlib.import_module(factory.__module__)) or name


def knobs(kind: Kind, name: str) -> list[tuple[str, str, str]]:
    """(name, type, default) of every knob, for help texts."""
    factory = load(kind, name)
    hints = _hints(factory)
    rows = []
    for parameter in _parameters(kind, factory):
        default = "required" if parameter.default is parameter.empty else _shown(parameter.default)
        rows.append((parameter.name, _type_name(hints.get(parameter.name, str)), default))
    return rows


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str], what: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"{what}: {', '.join(known)}" if known else f"There are no {what}."


# ---------------------------------------------------------------- binding knobs to a factory


def _bound(kind: Kind, text: str, cache: Answers | None) -> Callable[..., Any]:
    """The factory with its knobs filled in and checked; a method still waits for its model."""
    spec = parse(text)
    factory = load(kind, spec.name)
    parameters = {parameter.name: parameter for parameter in _parameters(kind, factory)}
    given = _named(spec, parameters)
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in given:
            raise SpecError(f"{spec.name} needs {parameter.name}=... ({_knob_list(parameters)})")
    hints = _hints(factory)
    values = {
        name: _convert(value, hints.get(name, str), f"{spec.name}: {name}", cache)
        for name, value in given.items()
    }
    if "journal" in inspect.signature(factory).parameters:
        values["journal"] = None if cache is None else cache.journal(spec.name)

    @functools.wraps(factory, updated=())
    def make(*model: Model) -> Any:
        try:
            return factory(*model, **values)
        except (ValueError, TypeError) as error:
            raise SpecError(f"{text}: {error}") from error

    make.spec = text  # type: ignore[attr-defined]  # for the run's header
    return make


def _parameters(kind: Kind, factory: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = [p for p in inspect.signature(factory).parameters.values() if p.name != "journal"]
    return parameters[1:] if kind == "method" else parameters  # a method's first is its inner model


def _named(spec: Spec, parameters: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    open_to_position = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(spec.positional) > len(open_to_position):
        extra = spec.positional[len(open_to_position)]
        raise SpecError(f"{spec.name}: what is {extra!r}? Write key=value ({_knob_list(parameters)})")
    given = dict(zip(open_to_position, spec.positional, strict=False))
    for key, value in spec.knobs.items():
        if key not in parameters:
            near = _nearest(key, parameters, "knobs")
            others = f" ({_knob_list(parameters)})" if near.endswith("?") else ""  # or near names them all
            raise SpecError(f"{spec.name} has no knob {key!r}. {near}{others}")
        if key in given:
            raise SpecError(f"{spec.name}: {key!r} is given twice")
        given[key] = value
    return given


def _knob_list(parameters: Mapping[str, inspect.Parameter]) -> str:
    return "knobs: " + ", ".join(parameters) if parameters else "it has no knobs"


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """Types of the knobs: of a function's parameters, or of a dataclass's fields, inherited ones too."""
    return typing.get_type_hints(factory)


def _convert(text: str, hint: Any, what: str, cache: Answers | None) -> Any:
    """`text` as the annotated type. Raises SpecError saying what would do."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        for option in arguments:
            if text == str(option):
                return option
        options = [str(option) for option in arguments]
        raise SpecError(f"{what}={text!r} is not one of {', '.join(options)}")
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _convert_any(text, [a for a in arguments if a is not type(None)], what, cache)
    if origin is tuple:
        parts = text.split("+") if arguments[-1] is Ellipsis else text.split("-")
        if arguments[-1] is not Ellipsis and len(parts) != len(arguments):
            raise SpecError(f"{what}={text!r} needs {len(arguments)} values, such as 16-24")
        return tuple(_convert(part, arguments[0], what, cache) for part in parts)
    if hint is Model:
        return _named_model(text, cache)
    if hint is Metric:
        return make_metric(text, cache)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise SpecError(f"{what}={text!r} is neither true nor false")
        return text.lower() == "true"
    if hint is Path:
        return Path(text).expanduser()
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise SpecError(f"{what}={text!r} is not {kind}") from None
    return text


def _convert_any(text: str, hints: Sequence[Any], what: str, cache: Answers | None) -> Any:
    errors = []
    for hint in hints:
        try:
            return _convert(text, hint, what, cache)
        except SpecError as error:
            errors.append(str(error))
    raise SpecError("; ".join(dict.fromkeys(errors)))


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        separator = "+" if arguments[-1] is Ellipsis else "-"
        inner = [a for a in arguments if a is not Ellipsis]
        return separator.join(_type_name(a) for a in inner) + ("+..." if separator == "+" else "")
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return "+".join(str(item) for item in default)
    return "none" if default is None else str(default)
