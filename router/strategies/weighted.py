"""The verifier-weighted vote: each sample has as many votes as its chain's score.

As DiVeRSe has it (Li et al., arXiv 2206.02336): equal answers add up their scores, so that neither one
lucky score decides, as in best of n, nor mere numbers, as in majority.
"""

from __future__ import annotations

from isoflop.v1.aggregation_pb2 import SELECTION_SUM

from router.strategies.best_of_n import BestOfN


class Weighted(BestOfN):
    """Samples weighed by a verifier; the answer with most weight in all wins."""

    selection = SELECTION_SUM
