"""llama.cpp with real model files: ours, one of another shape, and broken ones.

Our models are trained again now and then, so no test says what an answer is.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    SEED_PROMISE_ALONE,
    Message,
    Sample,
    Sampling,
    Shape,
)
from isoflop.v1.generation_pb2 import Branch
from prometheus_client import CollectorRegistry
from random_gguf import CONTEXT, HEAD_SIZE, HEADS, LAYERS, write_random_model
from scripted_backend import Call, generate, make_core, samples, start

from router.cost import Meter
from services.common.catalog import CatalogError
from services.common.flops import attended, with_attention
from services.common.settings import MODELS
from services.generation.backends import Check, Job, Round
from services.generation.backends.llamacpp import LlamaCppBackend, as_streamed, checks
from services.generation.catalog import LlamaCppEntry
from services.generation.core import Generation
from services.generation.engines import open_backends

QUESTION = [Message(role="user", content="17*24+13")]


def begin(model: str = "abacus", count: int = 1, prefix: str = "", **sampling: Any) -> Any:
    return start(
        model,
        messages=QUESTION,
        branches=[Branch(samples=count, prefix=prefix)],
        sampling=Sampling(**sampling),
    )


async def sample(core: Generation, model: str = "abacus", prefix: str = "", **sampling: Any) -> Sample:
    """One sample that runs alone."""
    made, _ = await generate(core, begin(model, 1, prefix, **sampling))
    return made[0]


def ask_engine(backend: LlamaCppBackend, prompt: str, **request: Any) -> dict[str, Any]:
    """What llama.cpp itself answers to a prompt, greedily."""
    answers: list[dict[str, Any]] = []
    backend._server.handle_completions(
        {"prompt": prompt, "temperature": 0, "stream": False, **request},
        lambda answer: answers.append(answer),
    )
    return answers[0]


def same_but_for_rounding(one: Sample, other: Sample) -> bool:
    return (one.text, one.tokens, one.finish_reason) == (other.text, other.tokens, other.finish_reason)


async def test_greedy_is_the_same_text_each_time(core: Generation) -> None:
    first, second = await sample(core), await sample(core)
    assert first.text
    assert same_but_for_rounding(first, second)


async def test_a_seed_promises_the_same_text_to_a_sample_that_runs_alone(core: Generation) -> None:
    for seed in (0, 5, 2**40, -7):
        hot = {"temperature": 1.5, "seed": seed, "max_tokens": 60}
        assert same_but_for_rounding(await sample(core, "random", **hot), await sample(core, "random", **hot))


async def test_minus_one_is_a_seed_like_others(core: Generation) -> None:
    hot = {"temperature": 1.5, "seed": -1, "max_tokens": 60}
    assert same_but_for_rounding(await sample(core, "random", **hot), await sample(core, "random", **hot))


async def test_different_seeds_give_different_texts(core: Generation) -> None:
    made, _ = await generate(core, begin("random", 6, temperature=1.0, seed=3, max_tokens=40))
    assert len({one.text for one in made}) == 6


async def test_samples_of_later_rounds_have_seeds_of_their_own(core: Generation) -> None:
    """Sample 2 is the same sample in whichever round it comes."""
    later = begin("random", 1, temperature=1.0, seed=3, max_tokens=40)
    later.first_sample = 2
    (third,), _ = await generate(core, later)
    assert third.id == "random/2"
    assert third.text == (await sample(core, "random", temperature=1.0, seed=5, max_tokens=40)).text


async def test_a_sample_has_at_most_max_tokens(core: Generation) -> None:
    full = await sample(core)
    for tokens in (1, 5):
        short = await sample(core, max_tokens=tokens)
        assert (short.tokens, short.finish_reason) == (tokens, FINISH_REASON_LENGTH)
        assert full.text.startswith(short.text)


async def test_without_max_tokens_a_sample_may_fill_the_context(core: Generation) -> None:
    made, usage = await generate(core, begin("random", temperature=1.0, seed=1))
    assert made[0].finish_reason == FINISH_REASON_LENGTH
    assert CONTEXT - 1 <= usage.prompt_tokens + usage.cached_tokens + made[0].tokens <= CONTEXT + 1


@pytest.mark.parametrize("where", ["in a line", "with a line end", "after a line end"])
async def test_a_stop_text_ends_a_sample_and_is_not_part_of_it(core: Generation, where: str) -> None:
    full = await sample(core, "random", temperature=1.0, seed=4, max_tokens=200)
    line_end = full.text.index("\n", 20)
    first = {"in a line": 20, "with a line end": line_end, "after a line end": line_end + 1}[where]
    stop = full.text[first : first + 3]
    cut = await sample(core, "random", temperature=1.0, seed=4, max_tokens=200, stop=[stop, "~never~"])
    assert cut.finish_reason == FINISH_REASON_STOP
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.tokens == len(cut.text) + len(stop), "the tokens of the stop text were computed"
    assert cut.HasField("logprob")


async def test_a_stop_text_that_might_have_come_changes_no_step(core: Generation) -> None:
    """The engine holds a line end back while a stop text may begin with it."""
    plain = await sample(core, "random", temperature=1.0, seed=4, max_tokens=200)
    held = await sample(core, "random", temperature=1.0, seed=4, max_tokens=200, stop=["\n~never~"])
    assert held.text == plain.text
    assert len(plain.steps) > 2
    assert [step.end for step in held.steps] == [step.end for step in plain.steps]
    assert [step.tokens for step in held.steps] == [step.tokens for step in plain.steps]
    assert [step.logprob for step in held.steps] == pytest.approx(
        [step.logprob for step in plain.steps], abs=1e-2
    )


async def test_a_prefix_is_continued(core: Generation) -> None:
    full = await sample(core)
    step = full.steps[0]
    prefix = full.text[: step.end]
    rest = await sample(core, prefix=prefix)
    assert prefix + rest.text == full.text
    assert rest.tokens == full.tokens - step.tokens, "no token of our models reaches over a line end"


@pytest.mark.parametrize("stream_text", [False, True])
async def test_a_chain_made_step_by_step_is_the_one_that_is_made_at_once(
    core: Generation, stream_text: bool
) -> None:
    full = await sample(core)
    text, tokens, reasons = "", 0, []
    while not reasons or reasons[-1] == FINISH_REASON_STEP:
        start = begin(prefix=text, one_step=True)
        start.stream_text = stream_text
        (step,), usage = await generate(core, start)
        if text:
            # The prefix is in the engine's cache: no more than its last token is computed again.
            assert usage.prompt_tokens <= 2
        text, tokens = text + step.text, tokens + step.tokens
        reasons.append(step.finish_reason)
    assert text == full.text
    assert tokens == full.tokens
    assert len(reasons) == len(full.steps) > 1
    assert reasons[-1] == FINISH_REASON_STOP


async def test_a_step_that_is_cut_is_none(core: Generation) -> None:
    cut = await sample(core, one_step=True, max_tokens=2)
    assert cut.finish_reason == FINISH_REASON_LENGTH
    assert not cut.text.endswith("\n")


async def test_steps_are_lines_and_their_log_probabilities_add_up(core: Generation) -> None:
    made, _ = await generate(core, begin("random", 4, temperature=1.0, seed=1, max_tokens=150))
    for one in made:
        assert len(one.steps) > 1
        ends = [0, *(step.end for step in one.steps)]
        for step, first, last in zip(one.steps, ends, ends[1:], strict=False):
            text = one.text[first:last]
            assert text.endswith("\n") or last == len(one.text)
            assert step.tokens == len(text)
            assert step.HasField("logprob")
            assert step.logprob <= 0
        assert ends[-1] == len(one.text)
        assert one.logprob == pytest.approx(sum(step.logprob for step in one.steps))
        assert one.logprob < 0


async def test_log_probabilities_are_the_models_whatever_the_temperature(core: Generation) -> None:
    first = await sample(core, max_tokens=1)
    assert first.HasField("logprob")
    hot = [await sample(core, max_tokens=1, temperature=0.5, seed=seed) for seed in range(5)]
    same = [one.logprob for one in hot if one.text == first.text]
    assert same
    assert same == pytest.approx([first.logprob] * len(same), abs=1e-3)


async def test_text_without_told_log_probabilities_has_none() -> None:
    """Bytes that are no character yet come without a log-probability: 0 would mean certain."""
    from services.generation.backends.llamacpp import Completion

    round = Round([Job("m/0", 0, "q", QUESTION, "", Sampling())])
    completion = Completion(round, round.jobs[0], frozenset(), asyncio.get_running_loop())
    chunk = {
        "choices": [{"text": "", "logprobs": None, "finish_reason": "stop"}],
        "timings": {"predicted_n": 4, "prompt_n": 9, "cache_n": 0},
    }
    completion.run(lambda request, callback: callback(chunk), {"stream": True})
    (piece,) = [piece async for piece in round.pieces()]
    assert (piece.tokens, piece.logprob) == (4, None)


async def test_tokens_are_those_that_llama_cpp_counts_itself(
    core: Generation, abacus: LlamaCppBackend, other: LlamaCppBackend
) -> None:
    for backend, limit in ((abacus, -1), (other, 30)):
        told = await asyncio.to_thread(
            ask_engine, backend, backend._template.render(QUESTION), n_predict=limit
        )
        made, usage = await generate(core, begin(backend.model.name, max_tokens=max(0, limit)))
        assert made[0].text == told["choices"][0]["text"]
        assert made[0].tokens == usage.completion_tokens == told["usage"]["completion_tokens"]
        prompt = usage.prompt_tokens + usage.cached_tokens
        assert prompt == told["usage"]["prompt_tokens"]
        assert usage.cached_tokens > 0, "the engine had just read the same prompt"
        assert usage.context_tokens == attended(usage.cached_tokens + 1, prompt + usage.completion_tokens)


async def test_more_samples_than_slots_wait_for_their_turn(core: Generation) -> None:
    made, usage = await generate(core, begin("random", 11, temperature=1.0, seed=1, max_tokens=20))
    assert [one.id for one in made] == [f"random/{number}" for number in range(11)]
    assert (usage.samples, usage.completion_tokens) == (11, 220)


async def test_a_prompt_longer_than_the_context_is_refused_and_named(core: Generation) -> None:
    long = start("abacus", messages=[Message(role="user", content="1+" * 400)])
    with pytest.raises(InvalidArgument, match="context has 512") as caught:
        await generate(core, long)
    assert caught.value.field == "messages"
    # And the model serves on.
    assert (await sample(core)).text


async def test_a_branch_that_is_too_long_hinders_no_other(core: Generation) -> None:
    turns = [Message(role="user", content="1+" * 400)]
    branches = [Branch(samples=1), Branch(samples=1, turns=turns), Branch(samples=1)]
    made, usage = await generate(core, start("abacus", branches=branches, sampling=Sampling(max_tokens=8)))
    ended = {one.branch: one for one in made}
    assert ended[1].finish_reason == FINISH_REASON_ABORTED
    assert not ended[1].tokens
    assert ended[0].text
    assert ended[2].text
    assert usage.completion_tokens == ended[0].tokens + ended[2].tokens


async def test_rounds_that_are_refused_give_their_slots_back(
    other: LlamaCppBackend, core: Generation
) -> None:
    """Samples that wait for a slot when the round fails must not take one with them."""
    name = other.model.name
    for _ in range(6):
        message = Message(role="user", content="1+" * 4000)
        long = start(name, messages=[message], branches=[Branch(samples=40)])
        with pytest.raises(InvalidArgument, match="context"):
            await generate(core, long)
    made, _ = await generate(core, begin(name, 9, temperature=1.0, seed=1, max_tokens=4))
    assert len(made) == 9
    assert other._slots.free == 4, "every slot is free again"


async def test_an_abort_stops_the_engine_within_a_few_decode_steps(other: LlamaCppBackend) -> None:
    class Impatient(Round):
        """Says that it is aborted once that has been asked fifty times: once for each chunk."""

        asked = 0

        def aborted(self, sample_id: str) -> bool:
            self.asked += 1
            return self.asked > 50

    round = Impatient([Job("random/0", 0, "q", QUESTION, "", Sampling(temperature=1.0, seed=1))])
    await other.run(round)
    pieces = [piece async for piece in round.pieces()]
    assert pieces[-1].end is not None
    assert pieces[-1].end.reason == FINISH_REASON_ABORTED
    assert 45 <= sum(piece.tokens for piece in pieces) <= 60


async def test_an_aborted_round_is_billed_for_what_it_took(core: Generation) -> None:
    begun = begin("random", 6, temperature=1.0, seed=1)
    begun.stream_text = True
    call = Call(core, begun)
    first = await call.next()
    assert first.HasField("delta")
    call.abort()
    responses = await call.rest()
    ended, usage = samples(responses), responses[-1].usage
    assert [one.finish_reason for one in ended] == [FINISH_REASON_ABORTED] * 6
    assert usage.aborted_tokens == sum(one.tokens for one in ended)
    # Four were running, and would have filled their contexts; two were waiting, and took nothing.
    assert 0 < usage.aborted_tokens < 4 * CONTEXT / 2
    assert [one.tokens for one in ended[4:]] == [0, 0]
    assert usage.completion_tokens == 0


async def test_one_sample_is_aborted_and_the_others_run_on(core: Generation) -> None:
    begun = begin("random", 3, temperature=1.0, seed=1, max_tokens=1000)
    begun.stream_text = True
    call = Call(core, begun)
    await call.next()
    call.abort("random/1")
    ended = samples(await call.rest())
    assert [one.finish_reason for one in ended] == [
        FINISH_REASON_LENGTH,
        FINISH_REASON_ABORTED,
        FINISH_REASON_LENGTH,
    ]
    assert ended[1].tokens < 1000


async def test_a_caller_that_goes_away_stops_the_engine(core: Generation, other: LlamaCppBackend) -> None:
    begun = begin("random", 4, temperature=1.0, seed=1)
    begun.stream_text = True
    call = Call(core, begun)
    await call.next()
    await call.close()
    assert other._slots.free == 4, "every slot is free again"
    made, _ = await generate(core, begin("random", 4, max_tokens=5))
    assert len(made) == 4


async def test_a_search_computes_of_its_prefixes_only_what_no_slot_holds(core: Generation) -> None:
    """By the engine's own counters. Of 4 × 4 steps at a time one of each chain is kept, any of the four."""
    beam, steps, number = [""] * 4, list[Sample](), 0
    for level in range(8):
        begun = begin("random", temperature=1.0, seed=11, one_step=True)
        begun.first_sample = number
        del begun.branches[:]
        begun.branches.extend(Branch(prefix=prefix, samples=4) for prefix in beam)
        made, usage = await generate(core, begun)
        assert {one.finish_reason for one in made} == {FINISH_REASON_STEP}
        number += len(made)
        prompt = len("<user>17*24+13\n<assistant>")
        assert usage.prompt_tokens + usage.cached_tokens == sum(4 * (prompt + len(chain)) for chain in beam)
        if level == 0:
            assert usage.prompt_tokens <= 4 * prompt + 12, "each slot computes the question, once"
        else:
            # Of a chain its last step at most, where another step has run in its slot since; and of each
            # sample the token that its sampling begins with.
            assert usage.prompt_tokens <= sum(kept.tokens for kept in steps) + 16
        steps = [made[4 * chain + (level + chain) % 4] for chain in range(4)]
        beam = [prefix + step.text for prefix, step in zip(beam, steps, strict=True)]
    assert max(map(len, beam)) > 100


@pytest.mark.parametrize("settings", [{}, {"stop": ["="]}, {"stop": ["\n"]}, {"max_tokens": 5}], ids=str)
async def test_a_sample_that_comes_whole_is_the_one_that_comes_as_it_is_made(
    core: Generation, files: Path, settings: dict[str, Any]
) -> None:
    entry = LlamaCppEntry(name="abacus", backend="llamacpp", path=Path("abacus.gguf"), parallel=1)
    whole = make_core(LlamaCppBackend(entry, files, "USD", whole=True))
    try:
        one, other = [await sample(engine, temperature=1.0, seed=7, **settings) for engine in (core, whole)]
    finally:
        await whole.close()
    assert same_but_for_rounding(one, other)
    assert [(s.end, s.tokens) for s in one.steps] == [(s.end, s.tokens) for s in other.steps]
    assert [s.logprob for s in one.steps] == pytest.approx([s.logprob for s in other.steps], abs=1e-3)


def test_characters_of_several_tokens_come_together_in_a_stream() -> None:
    tokens = [{"bytes": [part], "logprob": -0.5} for part in "½\n".encode()]
    choice = {"text": "½\n", "logprobs": {"content": tokens}, "finish_reason": "stop"}
    chunks = list(as_streamed({"choices": [choice], "timings": {"predicted_n": 4}}))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["", "½", "\n", ""]
    assert [chunk["timings"]["predicted_n"] for chunk in chunks] == [1, 2, 3, 4]


def test_a_file_says_what_its_model_is(other: LlamaCppBackend, tmp_path: Path) -> None:
    active = write_random_model(tmp_path / "same.gguf")
    assert other.model.name == "random"
    assert other.model.context == CONTEXT
    assert other.model.shape == Shape(
        active_parameters=active, layers=LAYERS, heads=HEADS, head_size=HEAD_SIZE
    )
    assert other.model.capabilities.prefix
    assert other.model.capabilities.logprobs
    assert other.model.capabilities.seed == SEED_PROMISE_ALONE


async def test_a_files_chat_template_is_applied(core: Generation, other: LlamaCppBackend) -> None:
    rendered = "<user>1+1\n<assistant>2\n<user>3+3\n<assistant>"
    messages = [
        Message(role="user", content="1+1"),
        Message(role="assistant", content="2"),
        Message(role="user", content="3+3"),
    ]
    told = await asyncio.to_thread(ask_engine, other, rendered + "7", n_predict=20)
    made, usage = await generate(
        core,
        start(
            "random",
            messages=messages,
            branches=[Branch(prefix="7", samples=1)],
            sampling=Sampling(max_tokens=20),
        ),
    )
    assert made[0].text == told["choices"][0]["text"]
    assert usage.prompt_tokens + usage.cached_tokens == len(rendered) + 1


async def test_a_conversation_that_the_template_refuses_is_an_invalid_argument(core: Generation) -> None:
    with pytest.raises(InvalidArgument, match="no system messages") as caught:
        await generate(core, start("random", messages=[Message(role="system", content="Be brief.")]))
    assert caught.value.field == "messages"


async def test_a_catalogue_entry_overrides_what_the_file_says(files: Path) -> None:
    entry = LlamaCppEntry.model_validate(
        {
            "name": "mine",
            "backend": "llamacpp",
            "path": "random.gguf",
            "parallel": 1,
            "context": 256,
            "chat_template": "{{ messages[-1].content }}!",
            "shape": {"active_parameters": 5e3, "layers": 1, "heads": 2, "head_size": 3, "window": 4},
        }
    )
    backend = LlamaCppBackend(entry, files, "USD")
    try:
        assert backend.model.context == 256
        assert backend.model.shape == Shape(active_parameters=5000, layers=1, heads=2, head_size=3, window=4)
        assert backend._template.render(QUESTION) == "17*24+13!"
    finally:
        await backend.close()


def load(path: Path) -> None:
    LlamaCppBackend(LlamaCppEntry(name="m", backend="llamacpp", path=path), Path(), "USD")


def truncated(share: float) -> Callable[[bytes], bytes]:
    return lambda whole: whole[: int(len(whole) * share)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"GG",
        lambda whole: b"not a model\n" * 1000,
        lambda whole: b"GGUF" + bytes(200),
        lambda whole: b"GGUF" + b"\xff" * 200,
        lambda whole: whole[:24],
        *map(truncated, (0.01, 0.05, 0.2, 0.5, 0.9, 0.999)),
    ],
    ids=["empty", "two bytes", "text", "zeros", "ones", "header", "1%", "5%", "20%", "50%", "90%", "99.9%"],
)
def test_a_damaged_file_is_one_sentence(
    damage: Callable[[bytes], bytes], files: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage((files / "random.gguf").read_bytes()))
    with pytest.raises(CatalogError) as caught:
        load(path)
    assert str(caught.value).startswith("model m: ")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_a_missing_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="model m: there is no file"):
        load(tmp_path / name)


def test_an_architecture_that_llama_cpp_does_not_know_is_one_sentence(tmp_path: Path) -> None:
    write_random_model(tmp_path / "strange.gguf", architecture="mystery")
    with pytest.raises(CatalogError, match=r"model m: llama.cpp cannot load \S+strange.gguf") as caught:
        load(tmp_path / "strange.gguf")
    assert "\n" not in str(caught.value)


def test_a_broken_template_in_a_file_is_one_sentence(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "template.gguf"
    shutil.copy(files / "random.gguf", path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"{% endfor %}", b"{% endfoo %}"))
    with pytest.raises(CatalogError, match="chat template") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_one_broken_model_of_a_catalogue_is_named(catalogue: Callable[[str], Path]) -> None:
    path = catalogue("models: [{name: lost, backend: llamacpp, path: lost.gguf}]")
    with pytest.raises(CatalogError, match=r"model lost: there is no file \S+lost.gguf"):
        open_backends(path)


@pytest.fixture
async def drafting(files: Path) -> AsyncIterator[LlamaCppBackend]:
    """abacus-l, for which abacus-s drafts; one sample at a time."""
    for name in ("abacus-l.gguf", "abacus-s.gguf"):
        shutil.copy(MODELS / name, files / name)
    backend = LlamaCppBackend(drafting_entry("abacus-s.gguf"), files, "USD")
    yield backend
    await backend.close()


def drafting_entry(draft: str | None) -> LlamaCppEntry:
    entry = {"name": "abacus", "backend": "llamacpp", "path": "abacus-l.gguf", "parallel": 1, "context": 512}
    return LlamaCppEntry.model_validate(entry | ({"draft": {"path": draft, "tokens": 3}} if draft else {}))


async def test_drafts_change_no_greedy_text_and_their_flops_are_counted(
    drafting: LlamaCppBackend, files: Path
) -> None:
    plain = LlamaCppBackend(drafting_entry(None), files, "USD")
    registry = CollectorRegistry()
    begun = begin(max_tokens=100)
    try:
        (alone,), usage = await generate(make_core(plain), begun)
        (drafted,), more = await generate(make_core(drafting, registry=registry), begun)
    finally:
        await plain.close()
    assert same_but_for_rounding(alone, drafted)
    assert more.completion_tokens == usage.completion_tokens
    # By the engine's own counters: what it drafted, the large model checked and the small one read again.
    told = await asyncio.to_thread(ask_engine, drafting, drafting._template.render(QUESTION), n_predict=100)
    assert told["choices"][0]["text"] == drafted.text
    tokens, drafts = told["timings"]["predicted_n"], told["timings"]["draft_n"]
    assert drafts > 0
    assert 0 <= more.rejected_tokens - (drafts - told["timings"]["draft_n_accepted"]) <= 3, (
        "some after its end"
    )
    computed = more.prompt_tokens + tokens + more.rejected_tokens
    assert more.draft_tokens == computed + drafts
    shape, small = drafting.model.shape, drafting.model.draft.shape
    assert small.active_parameters < shape.active_parameters
    end = more.prompt_tokens + tokens
    assert more.rejected_tokens <= more.context_tokens - attended(1, end) <= more.rejected_tokens * (end + 3)
    flops = with_attention(shape, computed, more.context_tokens)
    flops += with_attention(small, more.draft_tokens, more.draft_context_tokens)
    bill = Meter("USD").generation(drafting.model, "single", more)
    assert bill.flops == flops
    assert registry.get_sample_value("isoflop_generation_flops_total", {"model": "abacus"}) == flops


async def test_a_model_that_has_drafts_gives_no_log_probabilities_and_no_single_steps(
    drafting: LlamaCppBackend,
) -> None:
    assert not drafting.model.capabilities.logprobs
    made = await sample(make_core(drafting), temperature=1.0, seed=1, max_tokens=60)
    assert not made.HasField("logprob")
    with pytest.raises(InvalidArgument, match="one_step"):
        await sample(make_core(drafting), one_step=True)


async def test_an_aborted_sample_with_drafts_is_billed(drafting: LlamaCppBackend) -> None:
    begun = begin(temperature=1.0, seed=1)
    begun.stream_text = True
    call = Call(make_core(drafting), begun)
    await call.next()
    call.abort()
    usage = (await call.rest())[-1].usage
    generated = usage.aborted_tokens + usage.completion_tokens
    assert usage.draft_tokens >= usage.prompt_tokens + generated + usage.rejected_tokens


@pytest.mark.parametrize(
    ("told", "tokens", "made"),
    [
        ([], 5, []),
        # The first of all comes from the prompt. Then two of four passed, one of two, and one came without.
        ([(2, 4, 2), (5, 6, 3)], 7, [Check(10, 4, 2), Check(13, 2, 1)]),
        # The text ended with the first of five.
        ([(2, 4, 4)], 2, [Check(10, 4, 0)]),
        ([(2, 4, 0)], 2, [Check(10, 4, 0)]),
    ],
)
def test_what_was_drafted_is_told_by_counts(
    told: list[tuple[int, int, int]], tokens: int, made: list[Check]
) -> None:
    timings = [
        {"cache_n": 2, "prompt_n": 7, "predicted_n": first, "draft_n": drafted, "draft_n_accepted": passed}
        for first, drafted, passed in told
    ]
    assert checks(timings, tokens) == made


@pytest.mark.parametrize(
    ("draft", "wrong"),
    [
        ("missing.gguf", "there is no file"),
        ("damaged.gguf", "not a usable GGUF file"),
        ("random.gguf", "another vocabulary"),
    ],
)
def test_a_draft_model_that_is_of_no_use_is_one_sentence(draft: str, wrong: str, files: Path) -> None:
    shutil.copy(MODELS / "abacus-l.gguf", files / "abacus-l.gguf")
    (files / "damaged.gguf").write_bytes(b"not a model")
    with pytest.raises(CatalogError, match=wrong) as caught:
        LlamaCppBackend(drafting_entry(draft), files, "USD")
    assert str(files / draft) in str(caught.value)
    assert "\n" not in str(caught.value)
