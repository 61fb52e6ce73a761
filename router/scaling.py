"""Scaling laws: how accuracy grows with the number of samples, as calibration fitted it. Pure; no I/O.

Three forms of the accuracy of n samples, by increasing belief in a limit:

- `logarithm`: a + c log n. It has no limit: beyond what was measured it is cut at 0 and 1.
- `power`: 1 - e - b n^-k, the power law of the error, e + b n^-k (as for pass@n: Brown et al. 2407.21787).
- `saturating`: ceiling - b exp(-n / n0).

The last two come to a limit. Where calibration could tell it, it is the record's `ceiling`.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Form = Literal["logarithm", "power", "saturating"]
Strategy = Literal["majority", "weighted", "best_of_n", "pass_at_n"]

FORMS: tuple[Form, ...] = get_args(Form)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
PARAMETERS: dict[Form, tuple[str, ...]] = {
    "logarithm": ("a", "c"),
    "power": ("e", "b", "k"),
    "saturating": ("ceiling", "b", "n0"),
}
"""Of each form, as the formulas above name them."""


def accuracy(form: Form, parameters: dict[str, float], n: ArrayLike) -> NDArray[np.float64]:
    """Accuracy of n samples by a form, in [0, 1], of the shape of `n`; raises ValueError where n < 1."""
    at = np.asarray(n, np.float64)
    if not (at >= 1).all():
        raise ValueError("accuracy is that of one sample at least")
    match form:
        case "logarithm":
            values = parameters["a"] + parameters["c"] * np.log(at)
        case "power":
            values = 1 - parameters["e"] - parameters["b"] * at ** -parameters["k"]
        case "saturating":
            values = parameters["ceiling"] - parameters["b"] * np.exp(-at / parameters["n0"])
    return np.clip(values, 0.0, 1.0)


class ScalingRecord(BaseModel):
    """The scaling law of one model and strategy on the queries of one bin of difficulty."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str
    """The model's name."""
    temperature: float | None = Field(default=None, ge=0)
    """Of its samples; none: not known."""
    strategy: Strategy
    """How an answer is had from n samples; `pass_at_n`: one at least of them is right."""
    verifier: str = ""
    """Whose scores `weighted` and `best_of_n` go by."""
    difficulty: tuple[float, float] | None = None
    """The bin: lowest and highest latent difficulty of its queries, as other samples told it; none: all."""
    queries: int = Field(gt=0)
    """Calibration queries in the bin, by either half of their samples."""
    samples: tuple[int, int]
    """Least and most samples that were measured."""
    form: Form
    """The one that predicted best what it had not seen."""
    parameters: dict[str, float]
    """Of that form, fitted to all that was measured: see `PARAMETERS`."""
    interval: tuple[float, float] | None = None
    """95 % interval of the accuracy that the law has at the most samples, from resampled queries."""
    ceiling: float | None = Field(default=None, ge=0, le=1)
    """The accuracy that no number of samples exceeds; none: none was found within `samples`."""
    ceiling_interval: tuple[float, float] | None = None
    """Its 95 % interval, from resampled queries, for this form."""
    errors: dict[Form, float]
    """Held-out error of each form that could be fitted: root mean square, in accuracy."""
    held_out: Literal["more samples", "other queries"]
    """What the errors are of: fitted up to a quarter of the most samples and asked for more; or fitted on
    some queries and compared with others, where too few numbers of samples were measured for that."""
    best_n: int = Field(ge=1)
    """The number of samples with the best measured accuracy."""
    falls: bool
    """Whether accuracy surely falls beyond `best_n`: every form is monotone, and cannot say so."""

    @model_validator(mode="after")
    def _consistent(self) -> ScalingRecord:
        if set(self.parameters) != set(PARAMETERS[self.form]):
            raise ValueError(f"{self.form} has the parameters {', '.join(PARAMETERS[self.form])}")
        if self.form not in self.errors or min(self.errors.values()) < 0:
            raise ValueError("the held-out error of the chosen form is missing, or one is negative")
        least, most = self.samples
        if not 1 <= least <= self.best_n <= most:
            raise ValueError("the samples fall, or the best number is not among them")
        if (self.ceiling is None) != (self.ceiling_interval is None):
            raise ValueError("a ceiling and its interval come together")
        for low, high in filter(None, (self.difficulty, self.interval, self.ceiling_interval)):
            if low > high:
                raise ValueError("an interval falls")
        return self

    def at(self, n: float) -> float:
        """Accuracy of n samples by the chosen form; raises ValueError where n < 1."""
        return float(accuracy(self.form, self.parameters, n))
