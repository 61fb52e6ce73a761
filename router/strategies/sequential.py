"""Long chains of thought with a budget that is kept: budget forcing (s1, arXiv 2501.19393).

Where a chain ends its thinking too soon, the end is taken back, and what the catalogue has for that (`Wait`)
is put in its place; where thinking runs out, it is closed, and the model answers. Too soon is what is short
of `thinking_tokens`; where no such budget is given every end is, as often as the search is deep.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from isoflop.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, Model, Sample, Thinking
from isoflop.v1.router_pb2 import NODE_STATE_ENDED, NODE_STATE_KEPT, Growth

from router.strategies.scored import node, weighed
from router.strategies.strategy import Batch, Bench, Candidate, Search, Strategy


class Sequential(Strategy):
    """One long chain."""

    shape = Search(width=1, depth=4)
    thinks = True

    def serves(self, model: Model) -> bool:
        """It goes on with a chain, and must know how the model thinks."""
        return model.capabilities.prefix and model.HasField("thinking")

    async def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """Chains as they end, those together that end in the same turn."""
        thinking, goal = bench.model.thinking, bench.search.tokens
        chains: dict[int, Sample] = {}
        begun = {number: Sample() for number in range(bench.search.width)}
        closing: set[int] = set()
        turn = 0
        while begun:
            numbers = list(begun)
            most = [
                thinking.answer_tokens if n in closing else max(0, goal - begun[n].tokens) for n in numbers
            ]
            made = await bench.finish([begun[n] for n in numbers], most)
            # A chain to which nothing was added stays what it was, and has ended.
            grown = {numbers[c.branch]: c for c in made if c.text != begun[numbers[c.branch]].text}
            chains |= grown
            going: dict[int, Sample] = {}
            for number, chain in grown.items():
                if number in closing:
                    continue
                if chain.finish_reason == FINISH_REASON_LENGTH:
                    # It runs out in its thinking, or in the answer to that.
                    thinks = thinking.end not in chain.text.removeprefix(begun[number].text)
                    going[number] = closed(chain, thinking) if thinks else chain
                    closing.add(number)
                elif turn < bench.search.depth and ends_too_soon(chain, goal):
                    going[number] = resumed(begun[number], chain, thinking)
            yield Growth(
                nodes=[
                    node(begun[n], Candidate(chain), NODE_STATE_KEPT if n in going else NODE_STATE_ENDED)
                    for n, chain in grown.items()
                ]
            )
            if over := [chains[number] for number in begun if number not in going and number in chains]:
                yield await self.judged(bench, over)
            begun, turn = going, turn + 1

    async def judged(self, bench: Bench, chains: Sequence[Sample]) -> list[Candidate]:
        """The chains as candidates."""
        return [Candidate(chain) for chain in chains]


class BroadAndDeep(Sequential):
    """Several long chains, whose answers are weighed by a verifier."""

    shape = Search(width=4, depth=4)
    verifies = True

    async def judged(self, bench: Bench, chains: Sequence[Sample]) -> list[Candidate]:
        """The chains with their scores."""
        return await weighed(bench, chains)


def ends_too_soon(chain: Sample, goal: int) -> bool:
    """Whether it has ended by itself, before it had so many tokens; 0: at any number."""
    return chain.finish_reason == FINISH_REASON_STOP and (not goal or chain.tokens < goal)


def resumed(before: Sample, chain: Sample, thinking: Thinking) -> Sample:
    """The chain without the end of its thinking, to be gone on with; `before` is what it has continued."""
    thought, _, _ = chain.text.removeprefix(before.text).partition(thinking.end)
    return _begun(chain, before.text + thought + thinking.extend)


def closed(chain: Sample, thinking: Thinking) -> Sample:
    """The chain with its thinking closed where it was cut, to be answered."""
    return _begun(chain, chain.text.rstrip() + thinking.close)


def _begun(chain: Sample, text: str) -> Sample:
    """A chain to be gone on with at this text: with the steps before it, and all tokens that were made."""
    same = len(text)
    while not chain.text.startswith(text[:same]):
        same -= 1
    return Sample(
        id=chain.id,
        text=text,
        tokens=chain.tokens,
        steps=[step for step in chain.steps if step.end <= same],
    )
