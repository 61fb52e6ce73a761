"""Draft, critique, revision, again and again: Self-Refine (Madaan et al., arXiv 2303.17651).

What is asked of the model after its answer is in the catalogue. It ends when the critic is content or a
revision is no better by the verifier's word: a worse one never takes the place of a better draft. For open
text the verifier may be a language model with a rubric.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from isoflop.v1.aggregation_pb2 import SELECTION_BEST
from isoflop.v1.common_pb2 import Message, Model, Sample
from isoflop.v1.router_pb2 import NODE_STATE_KEPT, NODE_STATE_PRUNED, Growth

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
        words, root = bench.model.revision, Sample()
        drafts = await bench.finish([root] * bench.search.width)
        best = dict(enumerate(await weighed(bench, drafts)))
        yield Growth(nodes=[node(root, draft, NODE_STATE_KEPT) for draft in best.values()])
        going = list(best)
        for _ in range(bench.search.depth):
            talks = {n: [assistant(content=best[n].sample.text), user(content=words.critique)] for n in going}
            asked = {going[one.branch]: one for one in await bench.ask(list(talks.values()))}
            nodes = [
                node(best[n].sample, Candidate(critique), NODE_STATE_KEPT) for n, critique in asked.items()
            ]
            faulty = {
                n: critique for n, critique in asked.items() if not is_content(critique.text, words.content)
            }
            going = list(faulty)
            said = [
                [*talks[n], assistant(content=critique.text), user(content=words.revise)]
                for n, critique in faulty.items()
            ]
            revisions = await weighed(bench, await bench.ask(said)) if said else []
            better = {
                going[one.sample.branch]: one
                for one in revisions
                if one.weight > best[going[one.sample.branch]].weight
            }
            nodes += [
                node(
                    faulty[going[one.sample.branch]],
                    one,
                    NODE_STATE_KEPT if going[one.sample.branch] in better else NODE_STATE_PRUNED,
                )
                for one in revisions
            ]
            yield Growth(nodes=nodes)
            best |= better
            going = list(better)
            if not going:
                break
        if best:
            yield list(best.values())


def is_content(critique: str, content: str) -> bool:
    """Whether a critique finds nothing wrong: by its last line."""
    return critique.rstrip().rpartition("\n")[2].endswith(content)
