"""The catalogue: which models there are, what serves them, what their tokens cost. A YAML file.

currency: USD
models:
  - name: abacus-s
    backend: llamacpp
    path: abacus-s.gguf            # beside the catalogue; shape and template are read from it
    price: {per_million_prompt_tokens: 0.002, per_million_completion_tokens: 0.01}
  - name: abacus-l
    backend: llamacpp
    path: abacus-l.gguf
    draft: {path: abacus-s.gguf, tokens: 4}    # speculative decoding
  - name: qwen
    backend: triton
    address: triton:8001
    model: qwen_7b                 # its name on that server
    shape: {active_parameters: 7.6e9, layers: 28, heads: 28, head_size: 128}
    context: 32768
    steps: true                    # for searches over steps: vLLM can end a sample after one
    chat_template: "..."           # Jinja; Triton applies none
    price: {per_gpu_second: 0.0011, tokens_per_second: 2600}
  - name: llama
    backend: openai                # vLLM, SGLang, llama-server, Ollama, or a hosted one
    base_url: http://vllm:8000/v1
    model: meta-llama/Llama-3.1-8B-Instruct
    key_file: /run/secrets/vllm    # or key_env: VLLM_KEY
    logprobs: true
    continuous_usage: true
    continues: continue_final_message
    extra: {top_k: 40}
    thinking: {}                   # it ends its thinking with </think>; `Wait` makes it go on
    revision: {}                   # it can be asked, in plain words, to criticise and revise
    shape: {active_parameters: 8.0e9, layers: 32, heads: 32, head_size: 128}
    context: 131072
    price: {per_million_prompt_tokens: 0.05, per_million_completion_tokens: 0.08}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from isoflop.v1 import common_pb2 as pb
from pydantic import Field, JsonValue, model_validator

from services.common.catalog import LARGEST, Entry, HttpEntry, PriceEntry, ShapeEntry, read


class ThinkingEntry(Entry):
    """How a model is made to think longer, and to come to an end: budget forcing (s1, arXiv 2501.19393)."""

    system: str = ""
    """The system message that asks for it; empty: none."""
    end: str = Field(default="</think>", min_length=1)
    """Where thinking ends in a text: the answer begins there."""
    extend: str = "Wait"
    """What is put in the place of an end that came too soon."""
    close: str = "\n</think>\n\n"
    """What is put after thinking that has run out; with `end` in it."""
    answer_tokens: int = Field(default=512, ge=1, le=LARGEST)
    """Most tokens of the answer that follows it."""

    @model_validator(mode="after")
    def _ends(self) -> ThinkingEntry:
        if self.end not in self.close:
            raise ValueError(f"close has no {self.end!r} in it, with which thinking ends")
        return self

    def message(self) -> pb.Thinking:
        """As the contract has it."""
        return pb.Thinking(**self.model_dump())


class RevisionEntry(Entry):
    """What a model is told after its answer: Self-Refine (arXiv 2303.17651)."""

    critique: str = Field(
        default="Check this answer step by step for mistakes. End with a line that says either "
        "`There are mistakes.` or `No mistakes.`",
        min_length=1,
    )
    """Asks for a critique."""
    content: str = Field(default="No mistakes.", min_length=1)
    """With this the last line of a critique ends that finds nothing wrong."""
    revise: str = Field(
        default="Now write the whole answer again, without the mistakes that were found.", min_length=1
    )
    """Asks for a revision, after a critique."""

    def message(self) -> pb.Revision:
        """As the contract has it."""
        return pb.Revision(**self.model_dump())


class ModelEntry(Entry):
    """What every model has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The name by which callers ask for it."""
    price: PriceEntry = PriceEntry()
    """What its tokens cost."""
    chat_template: str = ""
    """Jinja template of the prompt; empty: the model file's own, or the bare text."""
    thinking: ThinkingEntry | None = None
    """How it is made to think longer, for strategies sequential and broad_and_deep; none: it is not."""
    revision: RevisionEntry | None = None
    """How it is asked to criticise and revise, for strategy refine; none: it is not. `{}`: in plain words."""


class DraftEntry(Entry):
    """A small model that drafts: the large one checks several tokens in the time of one.

    It takes fewer steps for more FLOPs, all of which are billed. Greedy texts stay the same. There are no
    log-probabilities then, and no single steps of a search: the engine does not tell which tokens they were.
    """

    path: Path
    """Its GGUF file, with the same vocabulary; relative to the catalogue."""
    tokens: int = Field(default=4, ge=1, le=64)
    """Most tokens that it drafts at a time."""


class LlamaCppEntry(ModelEntry):
    """A GGUF file, run in this process by llama.cpp."""

    backend: Literal["llamacpp"]
    path: Path
    """The GGUF file; relative to the catalogue."""
    parallel: int = Field(default=16, ge=1, le=256)
    """Samples that run at a time; more wait."""
    threads: int = Field(default=1, ge=1)
    """Threads; tiny models are fastest with one."""
    context: int = Field(default=0, ge=0, le=LARGEST)
    """Tokens of prompt and sample together, for each of the parallel samples; 0: what the file says. Memory
    for all of them is taken at the start: for a model with a long context, choose."""
    shape: ShapeEntry | None = None
    """What FLOPs depend on; none: read from the file."""
    draft: DraftEntry | None = None
    """A small model that drafts for it; none: it makes one token after the other."""


class StreamedEntry(ModelEntry):
    """What every model has whose server may fall silent."""

    first_token_seconds: float = Field(default=120.0, gt=0)
    """How long a sample may take to begin, the server's queue included; of a Triton, a round's first one."""
    next_token_seconds: float = Field(default=30.0, gt=0)
    """How long a sample may take from one piece to the next; of a Triton, a round's samples together."""


class TritonEntry(StreamedEntry):
    """A model on a Triton server, behind the tensors of the vLLM backend."""

    backend: Literal["triton"]
    address: str
    """host:port of Triton's gRPC."""
    model: str = ""
    """The model's name on that server; empty: the same name."""
    shape: ShapeEntry
    """What FLOPs depend on."""
    context: int = Field(default=0, ge=0, le=LARGEST)
    """Tokens of prompt and sample together."""
    steps: bool = False
    """Samples can end after one step: the model heeds `include_stop_str_in_output` beside `stop`, as vLLM
    does. Where it does not, every chain would end after its first step."""


class OpenAIEntry(StreamedEntry, HttpEntry):
    """A model behind the OpenAI API: vLLM, SGLang, llama-server, Ollama, or a hosted one.

    `base_url` ends where the API begins, as in `http://vllm:8000/v1`.
    """

    backend: Literal["openai"]
    model: str = ""
    """The model's name on that server; empty: the same name."""
    api: Literal["chat", "completions"] = "chat"
    """`chat`: the server applies its chat template. `completions`: `chat_template` is applied here, and a
    prefix can always be continued."""
    shape: ShapeEntry
    """What FLOPs depend on."""
    context: int = Field(default=0, ge=0, le=LARGEST)
    """Tokens of prompt and sample together; 0: not known."""
    parallel: int = Field(default=32, ge=1, le=4096)
    """Samples that are asked for at a time; more wait."""
    logprobs: bool = False
    """The server gives log-probabilities. (vLLM, SGLang and llama-server do.)"""
    seed: Literal["none", "alone", "always"] = "alone"
    """What a seed promises there: nothing, and none is sent; the same text where the sample runs alone; the
    same text always."""
    continues: Literal["no", "last_message", "continue_final_message"] = "no"
    """How `chat` continues a prefix: not at all; by a last message of the assistant (llama-server, Ollama);
    by one and the flag `continue_final_message` (vLLM, SGLang)."""
    continuous_usage: bool = False
    """The server can tell the usage with every piece (vLLM and SGLang can): samples that are hung up on, as
    aborted ones and single steps are, are billed exactly. (llama-server wants
    `extra: {timings_per_token: true}` for it.) Otherwise their prompts are estimated, and their tokens where
    there are no log-probabilities."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the most tokens of a sample. OpenAI's reasoning models want the longer name."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """More fields of each request's body, such as `top_k`; they overrule this backend's own."""
    retries: int = Field(default=3, ge=0, le=20)
    """How often a request is sent again that failed before the first piece came, with growing pauses."""
    max_wait_seconds: float = Field(default=60.0, ge=0)
    """How long a sample may wait in all because the server refuses more requests for now (429, or 503 with
    Retry-After). Where the server asks for more than that, the sample fails at once."""

    @model_validator(mode="after")
    def _api_fits(self) -> OpenAIEntry:
        if self.api == "chat" and self.chat_template:
            raise ValueError("chat_template goes with api completions: with chat the server applies its own")
        if self.api == "completions" and self.continues != "no":
            raise ValueError("continues goes with api chat: completions continue every prefix")
        return self


class RecordedEntry(ModelEntry):
    """Samples of a real model, played back from a recording."""

    backend: Literal["recorded"]
    path: Path
    """The recording: JSON lines, gzip where the name ends in .gz; relative to the catalogue."""
    model: str = ""
    """The model's name in the recording; empty: the same name."""
    shape: ShapeEntry
    """What FLOPs depend on."""


class Catalog(Entry):
    """All models."""

    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    """ISO 4217 code of all prices."""
    models: list[
        Annotated[LlamaCppEntry | TritonEntry | OpenAIEntry | RecordedEntry, Field(discriminator="backend")]
    ]
    """The models."""

    @model_validator(mode="after")
    def _names_differ(self) -> Catalog:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError("two models have the same name")
        if not names:
            raise ValueError("there are no models")
        return self


def load(path: Path) -> Catalog:
    """Read a catalogue; raises CatalogError."""
    return read(path, Catalog, "catalogue")
