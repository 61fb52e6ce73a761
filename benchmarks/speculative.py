"""What a draft model brings: the same greedy texts with and without one, their FLOPs and their time.

    python -m benchmarks.speculative [--problems 20]

Held-out problems through the generation service's core, one at a time and eight at a time, for each model
and each draft that could be had. With and without a draft take turns, so that a busy machine is busy for
both; times are medians of the turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

from isoflop.v1.common_pb2 import Message, Sampling
from isoflop.v1.generation_pb2 import GenerateRequest, RoundUsage, StartRound
from prometheus_client import CollectorRegistry

from services.common.flops import of_round
from services.common.settings import MODELS
from services.common.usage import add
from services.generation.backends.llamacpp import LlamaCppBackend
from services.generation.catalog import DraftEntry, LlamaCppEntry
from services.generation.core import Generation
from services.generation.settings import GenerationSettings
from training.splits import first_of_each_group

ROOT: Final = Path(__file__).parents[1]
PAIRS: Final = (
    ("abacus-m", "abacus-s", 4),
    ("abacus-l", "abacus-m", 4),
    *(("abacus-l", "abacus-s", tokens) for tokens in (2, 4, 8)),
)
"""Model, draft, and how many tokens are drafted at a time."""
TURNS: Final = 5
MOST_TOKENS: Final = 200


@dataclass(frozen=True)
class Played:
    """All problems, once."""

    texts: list[str]
    usage: RoundUsage
    flops: float
    seconds: float


@dataclass(frozen=True)
class Compared:
    """A model with a draft beside the same without one."""

    model: str
    draft: str
    drafted_at_a_time: int
    samples_at_a_time: int
    same_texts: int
    tokens: int
    drafted: int
    rejected: int
    flops: float
    """How many times as many."""
    tokens_per_second: float
    without_draft: float
    """Tokens a second."""
    speedup: float


def backend(model: str, parallel: int, draft: DraftEntry | None = None) -> LlamaCppBackend:
    """The embedded model, with a draft or without."""
    entry = LlamaCppEntry(
        name=model, backend="llamacpp", path=Path(f"{model}.gguf"), parallel=parallel, draft=draft
    )
    return LlamaCppBackend(entry, MODELS, "USD")


async def play(engine: LlamaCppBackend, prompts: list[str], parallel: int) -> Played:
    """Greedy samples, so many at a time."""
    core = Generation(GenerationSettings(), [engine], CollectorRegistry())
    free = asyncio.Semaphore(parallel)
    usage = RoundUsage()

    async def one(prompt: str) -> str:
        async def said() -> AsyncIterator[GenerateRequest]:
            messages = [Message(role="user", content=prompt)]
            sampling = Sampling(max_tokens=MOST_TOKENS)
            yield GenerateRequest(
                start=StartRound(model=engine.model.name, messages=messages, sampling=sampling)
            )

        text = ""
        async with free:
            async for response in core.generate(said()):
                if response.HasField("sample"):
                    text = response.sample.text
                elif response.HasField("usage"):
                    add(usage, response.usage)
        return text

    began = time.perf_counter()
    texts = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return Played(texts, usage, of_round(engine.model, usage)[0], time.perf_counter() - began)


async def compare(model: str, draft: str, tokens: int, parallel: int, prompts: list[str]) -> Compared:
    """Both, in turns."""
    plain = backend(model, parallel)
    drafting = backend(model, parallel, DraftEntry(path=Path(f"{draft}.gguf"), tokens=tokens))
    without, with_draft = [], []
    try:
        for _ in range(TURNS):
            without.append(await play(plain, prompts, parallel))
            with_draft.append(await play(drafting, prompts, parallel))
    finally:
        await plain.close()
        await drafting.close()
    # Later turns find prompts in caches: FLOPs are those of the first.
    first, other = with_draft[0], without[0]
    made = first.usage.completion_tokens
    read = first.usage.prompt_tokens + made + first.usage.rejected_tokens
    rates = [median(made / turn.seconds for turn in turns) for turns in (with_draft, without)]
    return Compared(
        model=model,
        draft=draft,
        drafted_at_a_time=tokens,
        samples_at_a_time=parallel,
        same_texts=sum(a == b for a, b in zip(first.texts, other.texts, strict=True)),
        tokens=made,
        drafted=first.usage.draft_tokens - read,
        rejected=first.usage.rejected_tokens,
        flops=first.flops / other.flops,
        tokens_per_second=rates[0],
        without_draft=rates[1],
        speedup=median(b.seconds / a.seconds for a, b in zip(with_draft, without, strict=True)),
    )


def page(told: list[Compared], problems: int) -> str:
    """For people."""
    slowest, *_, fastest = sorted(told, key=lambda one: one.speedup)
    lines = [
        "# Speculative decoding",
        "",
        "Written by `make bench-speculative`; not edited by hand. Greedy samples of",
        f"{problems} held-out problems, at most {MOST_TOKENS} tokens each, on one thread for each model,",
        f"with a draft model and without one, by turns, {TURNS} of each. FLOPs: as on the bill, the draft's",
        "and those of rejected drafts included. Speeds and their ratios: medians of the turns; the",
        "cores are shared with other work, so compare a row with itself, not with others.",
        "",
        "| model | draft | at a time | samples at a time | same texts | taken, % | FLOPs, ratio | tokens/s "
        "| without | speed, ratio |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one.model} | {one.draft} | {one.drafted_at_a_time} | {one.samples_at_a_time} "
        f"| {one.same_texts} of {problems} | {100 * (1 - one.rejected / one.drafted):.0f} | {one.flops:.2f} "
        f"| {one.tokens_per_second:.0f} | {one.without_draft:.0f} | {one.speedup:.2f} |"
        for one in told
    ]
    lines += [
        "",
        *(
            f"- {name}: {one.model} with {one.draft}, {one.drafted_at_a_time} tokens drafted and "
            f"{one.samples_at_a_time} samples at a time: {one.speedup:.2f} times the speed "
            f"for {one.flops:.2f} times the FLOPs."
            for name, one in (("Best", fastest), ("Worst", slowest))
        ),
    ]
    return "\n".join(lines) + "\n"


async def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=20, help="so many of the held-out problems")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "speculative.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "speculative.md")
    arguments = parser.parse_args()
    prompts = [problem.prompt for problem in first_of_each_group("heldout.jsonl", arguments.problems)]
    told = []
    for parallel in (1, 8):
        for model, draft, tokens in PAIRS:
            told.append(await compare(model, draft, tokens, parallel, prompts))
            print(json.dumps(asdict(told[-1])))
    arguments.json.write_text(json.dumps([asdict(one) for one in told], indent=1) + "\n")
    arguments.page.write_text(page(told, len(prompts)))


if __name__ == "__main__":
    asyncio.run(main())
