"""What can be bought: the models and verifiers that the services describe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isoflop.errors import FailedPrecondition, NotFound, Unavailable
from isoflop.v1.common_pb2 import Model
from isoflop.v1.generation_pb2 import DescribeModelsRequest
from isoflop.v1.verification_pb2 import DescribeVerifiersRequest, Verifier

from router.stages import Stages


@dataclass(frozen=True)
class Catalog:
    """Models, smallest first, and verifiers, by name."""

    models: dict[str, Model]
    verifiers: dict[str, Verifier]
    unverified: str = ""
    """Why nobody knows which verifiers there are; empty: they are known."""

    @classmethod
    def of(cls, models: Iterable[Model], verifiers: Iterable[Verifier], unverified: str = "") -> Catalog:
        """Put in order; raises FailedPrecondition where they are priced in several currencies."""
        ordered = sorted(models, key=lambda model: model.shape.active_parameters)
        catalog = cls({model.name: model for model in ordered}, {v.name: v for v in verifiers}, unverified)
        for verifier in catalog.verifiers.values():
            if verifier.price.currency not in ("", catalog.currency):
                raise FailedPrecondition(
                    f"verifier {verifier.name} is priced in {verifier.price.currency}, models in "
                    f"{catalog.currency}: a bill has one currency"
                )
        return catalog

    @property
    def currency(self) -> str:
        """ISO 4217 code of all prices."""
        return next((model.price.currency for model in self.models.values()), "")

    def model(self, name: str) -> Model:
        """Raises NotFound."""
        if name not in self.models:
            raise NotFound(f"there is no model {name!r}; there are: {', '.join(self.models)}")
        return self.models[name]

    def verifier(self, name: str) -> Verifier:
        """The verifier of that name, the first where it is empty; raises NotFound, and Unavailable where
        nobody knows which there are."""
        chosen = self.verifiers.get(name or next(iter(self.verifiers), ""))
        if chosen is None and self.unverified:
            raise Unavailable(self.unverified)
        if chosen is None:
            raise NotFound(f"there is no verifier {name!r}; there are: {', '.join(self.verifiers)}")
        return chosen


async def describe(stages: Stages) -> Catalog:
    """Ask the services. Without verification there are no verifiers."""
    models = await stages.generation.describe(DescribeModelsRequest())
    try:
        verifiers = await stages.verification.describe(DescribeVerifiersRequest())
    except Unavailable as error:
        return Catalog.of(models.models, (), str(error))
    return Catalog.of(models.models, verifiers.verifiers)
