"""Draft, critique, revision, again and again: Self-Refine (Madaan et al., arXiv 2303.17651).

What is asked of the model after its answer is in the catalogue. It ends when the critic is content or a
revision is no better by the verifier's word: a worse one never takes the place of a better draft. For open
text the verifier may be a language model with a rubric.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial

from isoflop.v1.aggregation_pb2 import SELECTION_BEST
from isoflop.v1.common_pb2 import Message, Model, Sample
from isoflop.v1.router_pb2 import NODE_STATE_ENDED, NODE_STATE_KEPT, NODE_STATE_PRUNED, Growth

from router.strategies.scored import node, weighed
from router.strategies.strategy import Batch, Bench, Candidate, Search, Strategy

user, assistant = partial(Message, role="user"), partial(Message, role="assistant")


class Refine(Strategy):
    """As many drafts as it is wide, revised at most as often as it is deep; the best wins."""

    selection = SELECTION_BEST
    verifies = True
    shape = Search(width=1, depth=3)

    def serves(self, model: Model) -> bool:
        """It must know how the model is asked."""
        return model.HasField("revision")

    async def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """How drafts become better; the best of each line, together."""
        words = bench.model.revision
        drafts = await bench.finish([Sample()] * bench.search.width)
        best = dict(enumerate(await weighed(bench, drafts)))
        before = dict.fromkeys(best, Sample())
        """What the best of each line was made of."""
        yield Growth(nodes=[node(before[n], draft, NODE_STATE_KEPT) for n, draft in best.items()])
        going = list(best)
        for _ in range(bench.search.depth):
            talks = {n: [assistant(content=best[n].sample.text), user(content=words.critique)] for n in going}
            tokens = {n: best[n].sample.tokens for n in going}
            critiques = await said(bench, talks, tokens)
            faulty = [n for n, one in critiques.items() if not is_content(one.text, words.content)]
            answers = {
                n: [*talks[n], assistant(content=critiques[n].text), user(content=words.revise)]
                for n in faulty
            }
            tokens = {n: tokens[n] + critiques[n].tokens for n in faulty}
            made = await said(bench, answers, tokens)
            revised = dict(zip(made, await weighed(bench, list(made.values())), strict=True)) if made else {}
            going = [n for n, one in revised.items() if one.weight > best[n].weight]
            yield Growth(
                nodes=[
                    *(
                        node(after(best[n].sample), Candidate(one), NODE_STATE_KEPT)
                        for n, one in critiques.items()
                    ),
                    *(
                        node(after(critiques[n]), one, NODE_STATE_KEPT if n in going else NODE_STATE_PRUNED)
                        for n, one in revised.items()
                    ),
                ]
            )
            best |= {n: revised[n] for n in going}
            before |= {n: critiques[n] for n in going}
            if not going:
                break
        if best:
            yield Growth(nodes=[node(after(before[n]), one, NODE_STATE_ENDED) for n, one in best.items()])
            yield list(best.values())


async def said(
    bench: Bench, talks: Mapping[int, Sequence[Message]], tokens: Mapping[int, int]
) -> dict[int, Sample]:
    """What the model says to each, of which so many tokens are its own; nothing where nothing is left."""
    numbers = list(talks)
    if not numbers:
        return {}
    made = await bench.ask([talks[n] for n in numbers], [tokens[n] for n in numbers])
    return {numbers[one.branch]: one for one in made}


def after(sample: Sample) -> Sample:
    """What answers to it and does not continue its text."""
    return Sample(id=sample.id)


def is_content(critique: str, content: str) -> bool:
    """Whether a critique finds nothing wrong: by its last line."""
    return critique.rstrip().rpartition("\n")[2].endswith(content)
