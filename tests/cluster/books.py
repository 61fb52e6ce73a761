"""What was spent, by everybody who counts: services, routers, their ledger, and the bills of answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from isoflop import AsyncClient
from isoflop.v1.common_pb2 import STAGE_GENERATION, STAGE_VERIFICATION, Stage, Usage

from tests.cluster.load import Asked
from tests.cluster.parts import FaultSuite

KINDS: Final = ("prompt", "cached", "completion", "aborted")
STAGES: Final = {"generation": STAGE_GENERATION, "verification": STAGE_VERIFICATION}
"""That count tokens."""
ROUNDING: Final = 1e-9
"""As a share: sums of FLOPs are of floating-point numbers."""


@dataclass(frozen=True)
class Counts:
    """What was spent in the stages that count tokens."""

    tokens: Mapping[str, float]
    """By stage and kind, as in `generation aborted`."""
    flops: float

    @staticmethod
    def of(tokens: Callable[[str, str], float], flops: Callable[[str], float]) -> Counts:
        """Asks for the tokens of each stage and kind, and the FLOPs of each stage."""
        counts = {f"{stage} {kind}": tokens(stage, kind) for stage in STAGES for kind in KINDS}
        return Counts(counts, sum(map(flops, STAGES)))

    @staticmethod
    def added(lines: Iterable[Usage]) -> Counts:
        """The sum of lines of bills."""
        known = list(lines)

        def total(name: str, stage: str) -> float:
            return math.fsum(getattr(line, name) for line in known if line.stage == STAGES[stage])

        return Counts.of(lambda stage, kind: total(f"{kind}_tokens", stage), partial(total, "flops"))

    def __sub__(self, before: Counts) -> Counts:
        """What has been added."""
        tokens = {kind: count - before.tokens[kind] for kind, count in self.tokens.items()}
        return Counts(tokens, self.flops - before.flops)

    def off(self, other: Counts) -> dict[str, float]:
        """How much more there is here of each kind of tokens, and of FLOPs: nothing where that is none."""
        more = {kind: count for kind, count in (self - other).tokens.items() if count}
        if not math.isclose(self.flops, other.flops, rel_tol=ROUNDING):
            more["flops"] = self.flops - other.flops
        return more


@dataclass(frozen=True)
class Books:
    """All that was spent so far."""

    counted: Counts
    """By the services that run, since they were started."""
    billed: Counts
    """By the routers that run, since they were started: what their metrics say."""
    charged: Counts
    """By the ledger."""
    unreconciled: float
    """FLOPs of it that were charged because a router died."""

    @property
    def billed_off(self) -> dict[str, float]:
        """By what routers have billed more than services have counted."""
        return self.billed.off(self.counted)

    @property
    def charged_off(self) -> dict[str, float]:
        """By what the ledger has charged more than routers have billed, apart from what is unreconciled."""
        off = self.charged.off(self.billed)
        if self.unreconciled and math.isclose(off.get("flops", 0.0), self.unreconciled, rel_tol=ROUNDING):
            # A round that is lost is charged as aborted tokens.
            off = {kind: more for kind, more in off.items() if kind not in ("flops", "generation aborted")}
        return off

    def __sub__(self, before: Books) -> Books:
        """What has been added."""
        return Books(
            self.counted - before.counted,
            self.billed - before.billed,
            self.charged - before.charged,
            self.unreconciled - before.unreconciled,
        )


async def books(suite: FaultSuite, client: AsyncClient) -> Books:
    """As they are now."""
    bill = await client.bill(by=("stage",))
    lines = []
    for row in bill.rows:
        line = Usage()
        line.CopyFrom(row.usage)
        line.stage = Stage.Value(f"STAGE_{row.keys[0].upper()}")
        lines.append(line)
    return Books(
        await asyncio.to_thread(_counted, suite),
        await asyncio.to_thread(_billed, suite),
        Counts.added(lines),
        math.fsum(row.unreconciled_flops for row in bill.rows),
    )


def told(asked: Sequence[Asked]) -> Counts:
    """What the bills of answers say."""
    return Counts.added(line for one in asked if one.response is not None for line in one.response.bill.lines)


async def misbilled(client: AsyncClient, asked: Sequence[Asked]) -> list[str]:
    """Answers whose bill is not what the ledger has charged for the query, and how they differ."""
    wrong = []
    for one in asked:
        if one.response is None:
            continue
        kept = await client.query(one.response.query_id)
        more = Counts.added(charge.usage for charge in kept.charges).off(
            Counts.added(one.response.bill.lines)
        )
        # An answer does not wait for what a round has cost that broke off, or that ran until its deadline.
        later = one.response.bill.incomplete and all(count > 0 for count in more.values())
        if more and not later:
            wrong.append(f"{one}: charged more than was told by {more}")
    return wrong


def _counted(suite: FaultSuite) -> Counts:
    def total(stage: str, name: str, **labels: str) -> float:
        return math.fsum(
            one.metrics(f"isoflop_{stage}_{name}_total", **labels) for one in suite.counting.values()
        )

    return Counts.of(
        lambda stage, kind: total(stage, "tokens", kind=kind), lambda stage: total(stage, "flops")
    )


def _billed(suite: FaultSuite) -> Counts:
    def total(name: str, **labels: str) -> float:
        return math.fsum(
            one.metrics(f"isoflop_router_{name}_total", **labels) for one in suite.routers.values()
        )

    # What aborted samples took is a stage of its own there.
    stages = {"generation": ("generation", "aborted")}
    return Counts.of(
        lambda stage, kind: math.fsum(
            total("tokens", kind=kind, stage=one) for one in stages.get(stage, (stage,))
        ),
        lambda stage: math.fsum(total("flops", stage=one) for one in stages.get(stage, (stage,))),
    )
