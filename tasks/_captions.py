"""What captioning tasks share: the metric that they carry. Must not know: any dataset, models."""

from __future__ import annotations

from harness.types import Metric, Model
from metrics import clair, length


def captioning_metrics(judge: Model | None, metric: Metric | None) -> tuple[tuple[Metric, ...], str]:
    """A task's metrics and the number that ranks: `metric` where one is given, else CLAIR by `judge`, else
    the lengths of the captions, until a judge reads them.

    Raises ValueError for both.

    >>> captioning_metrics(None, None)
    ((Length(),), 'words')
    """
    if judge is not None and metric is not None:
        raise ValueError("judge is for CLAIR and metric for another metric; give one of them")
    chosen = metric or (length.metric() if judge is None else clair.metric(judge))
    return (chosen,), next(iter(chosen.higher_is_better))
