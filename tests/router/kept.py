"""Finished queries as they are kept."""

from __future__ import annotations

import math
from typing import Any

from isoflop.v1.router_pb2 import SolveRequest
from synthetic import make_catalog

from router.explore import Offer
from router.truths import Answered, Truth

CATALOG = make_catalog()
OWN = Offer("s 4 majority at 0.8", 0.8, 4e7, 0.85)
OTHER = Offer("m 1 single at 0", 0.9, 8e7, 0.15)


def kept(query_id: str = "q1", right: bool | None = None, **changes: Any) -> Answered:
    """A query that began with the planner's own of two offers."""
    fields: dict[str, Any] = {
        "query_id": query_id,
        "ended": 1000.0,
        "profile": "synthetic-1",
        "tenant": "",
        "asked": SolveRequest(),
        "prompt_bytes": 8,
        "seconds": math.inf,
        "difficulty": -0.3,
        "difficulty_sd": 0.3,
        "round_samples": 4,
        "max_samples": 1024,
        "offers": (OWN, OTHER),
        "taken": 0,
        "rounds": 2,
        "flops": 5e7,
        "answer": "421",
        "confidence": 0.75,
        "catalog": CATALOG,
        "truth": None if right is None else Truth(right, None),
    }
    return Answered(**(fields | changes))
