"""Strategies: ways to spend a round. Each yields candidates; none knows of budgets.

A strategy plays one round at a time; the loop in `router.solve` decides after each. Closing a strategy's
generator aborts what it has started.
"""

from __future__ import annotations

from router.strategies.beam import Beam, Dvts
from router.strategies.best_of_n import BestOfN
from router.strategies.majority import Majority, Repeated
from router.strategies.refine import Refine
from router.strategies.sequential import BroadAndDeep, Sequential
from router.strategies.single import Single
from router.strategies.strategy import Strategy
from router.strategies.tree import Tree
from router.strategies.weighted import Weighted

STRATEGIES: dict[str, Strategy] = {
    "single": Single(),
    "repeated": Repeated(),
    "majority": Majority(),
    "best_of_n": BestOfN(),
    "weighted": Weighted(),
    "beam": Beam(),
    "dvts": Dvts(),
    "tree": Tree(),
    "sequential": Sequential(),
    "broad_and_deep": BroadAndDeep(),
    "refine": Refine(),
}
"""All strategies, by the name that callers use."""
