"""What can go wrong, as one tree.

    FoveaError                  refused before anything ran, or nothing could go on (exit code 2)
    ├── SpecError               an unknown name, a wrong knob, a value of the wrong type
    ├── DataError               a dataset's files: missing, malformed, of the wrong count
    ├── PictureError            one picture: missing, truncated, too large, not a picture
    ├── CapabilityError         a method needs what the model does not offer
    ├── ModelError              a model that cannot answer anything: no weights, a refused key
    └── StoreError              a run directory: locked, changed under its writer, unreadable

Each message names the value, the limit and the remedy. An error that concerns one request is not an
exception but a `Failure` in its response; the exceptions here concern the whole run. (`PictureError` is
the one that adapters turn into failures.)
"""


class FoveaError(Exception):
    """Base of all errors that a user can mend."""


class SpecError(FoveaError):
    """A spec names something that does not exist, or gives a knob a value it cannot take."""


class DataError(FoveaError):
    """A dataset's files are missing, malformed or not of the expected count."""


class PictureError(FoveaError):
    """One picture cannot be used; `kind` is the short name that its failure carries."""

    def __init__(self, message: str, kind: str = "picture") -> None:
        super().__init__(message)
        self.kind = kind


class CapabilityError(FoveaError):
    """A method needs a capability that the model does not offer."""


class ModelError(FoveaError):
    """A model cannot answer any request: weights that do not load, a key that is refused."""


class StoreError(FoveaError):
    """A run directory is locked by another writer, was changed under this one, or cannot be read."""


class BudgetSpent(FoveaError):
    """The next call could cost more than what is left of the run's budget, and so was not sent.

    later: calls on their way hold reservations; there may be room when they have ended.
    """

    def __init__(self, budget: float, spent: float, later: bool = False) -> None:
        super().__init__(f"${spent:.4f} of the budget of ${budget:.2f} is spent; the next call could pass it")
        self.budget, self.spent, self.later = budget, spent, later
