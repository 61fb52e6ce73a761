"""What a query may still ask where backends of models fail: what failed is asked again, within bounds.

A model is left out while its breaker is open. One that has failed this query is asked again as long as the
budget of retries of that model has one left, and no more often than opens a breaker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from isoflop.errors import Unavailable
from isoflop.v1.verification_pb2 import Verifier

from router.breakers import Breakers


class Recourse:
    """Of one query."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers
        self._failures: Counter[str] = Counter()
        """Rounds of this query that failed, by model."""
        self._last: dict[str, Unavailable] = {}
        """What they failed with."""

    def among(self, models: Iterable[str]) -> list[str]:
        """Those that may be asked now."""
        return [model for model in models if self._refusal(model) is None]

    def refusal(self, verifier: Verifier) -> Unavailable | None:
        """Why a verifier may not be asked now; None: it may."""
        return self._breakers.verifier(verifier.name).refusal

    def begin(self, model: str) -> None:
        """A round with this model begins."""
        retries = self._breakers.model(model).retries
        retries.round()
        if self._failures[model]:
            retries.take()

    def failed(self, model: str, error: Unavailable) -> None:
        """A round with it has failed, or a part of one."""
        self._failures[model] += 1
        self._last[model] = error

    def again(self, model: str, error: Unavailable) -> bool:
        """A part of a round has failed: whether it is to be asked for again, as a retry."""
        self.failed(model, error)
        if self._refusal(model):
            return False
        self.begin(model)
        return True

    def error(self, models: Iterable[str]) -> Unavailable:
        """Why none of these may be asked; with the time until one may be."""
        refusals = [refusal for model in models if (refusal := self._refusal(model))]
        return min(refusals, key=lambda refusal: refusal.retry_after)

    def _refusal(self, model: str) -> Unavailable | None:
        """Why a model may not be asked now; None: it may."""
        breaker = self._breakers.model(model)
        tried = self._failures[model]
        if tried >= self._breakers.terms.failures or (tried and not breaker.retries.any):
            last = self._last[model]
            return Unavailable(str(last), breaker.seconds or last.retry_after)
        return breaker.refusal
