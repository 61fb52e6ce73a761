"""How long what stands before generated tokens may be, at most. Pure."""

from __future__ import annotations

from isoflop.v1.common_pb2 import Model

from router.cost import TEMPLATE_TOKENS
from router.query import Query
from router.strategies import STRATEGIES
from router.strategies.strategy import Search


def prompt_bound(query: Query, model: Model, strategy: str, search: Search | None) -> int:
    """Tokens of the prompt, its template and all that a strategy puts between what is generated.

    No tokenizer makes more tokens of a text than it has bytes.
    """
    bound = query.prompt_bytes + TEMPLATE_TOKENS
    if search and STRATEGIES[strategy].thinks:
        thinking = model.thinking
        put = [thinking.system, *[thinking.extend] * search.depth, thinking.close]
        bound += sum(len(text.encode()) for text in put)
    return bound
