"""The catalogue of verifiers: what each is, what serves it, what its tokens cost. A YAML file.

currency: USD                      # that of the models
verifiers:                         # the first is the one that is taken where none is named
  - {name: logprob, backend: logprob}
  - name: abacus-prm
    backend: onnx
    path: abacus-prm               # a folder beside the catalogue; backends/onnx.py says what is in it
    price: {per_million_prompt_tokens: 0.004}
  - name: prm-7b
    backend: triton
    address: triton:8001
    model: prm                     # its name on that server; docker/triton/README.md has the tensors
    chat_template: "..."           # Jinja; Triton applies none
    shape: {active_parameters: 7.1e9, layers: 28, heads: 28, head_size: 128}
    context: 4096
  - name: qwen-prm
    backend: pooling
    base_url: http://vllm:8000
    model: Qwen/Qwen2.5-Math-PRM-7B
    step_separator: "<extra_0>"
    chat_template: "..."
    shape: {active_parameters: 7.1e9, layers: 28, heads: 28, head_size: 128}
    context: 4096
  - name: critic
    backend: critic
    generation: generation:50052   # empty: the generation service of the same process
    model: qwen-7b                 # in generation's catalogue, which has its shape and price
    rubric: "Is it correct, complete and clear?"
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from isoflop.v1.verification_pb2 import ChainScoring
from pydantic import Field, model_validator

from services.common.catalog import LARGEST, Entry, HttpEntry, PriceEntry, ShapeEntry, read

ScoringName = Literal["min", "product", "last", "mean"]


def scoring(name: ScoringName) -> ChainScoring.ValueType:
    """As the contract has it."""
    return ChainScoring.Value(f"CHAIN_SCORING_{name.upper()}")


class VerifierEntry(Entry):
    """What every verifier has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The name by which callers ask for it."""
    scoring: ScoringName | None = None
    """From the scores of steps to the score of a chain; none: what suits the backend."""

    def scoring_or(self, default: ScoringName) -> ChainScoring.ValueType:
        """The rule, as the contract has it."""
        return scoring(self.scoring or default)


class PricedEntry(VerifierEntry):
    """What every verifier has that computes tokens itself."""

    price: PriceEntry = PriceEntry()
    """What its tokens cost."""


class LogprobEntry(VerifierEntry):
    """The mean log-probability that the sampling model itself gave to a step's tokens."""

    backend: Literal["logprob"] = "logprob"


class OnnxEntry(PricedEntry):
    """A process reward model, run in this process by onnxruntime."""

    backend: Literal["onnx"]
    path: Path
    """The folder with the model; relative to the catalogue."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of one forward pass; tiny models are fastest with one."""
    max_batch_tokens: int = Field(default=1024, ge=1)
    """Most tokens of one forward pass, padding included; a longer chain runs alone. On a processor more is
    slower once a pass has left its caches: with 0.4 M parameters 8192 did 0.7 of the chains of 1024."""
    max_wait_ms: float = Field(default=2.0, ge=0, le=1000)
    """How long a chain that came while another batch was running may wait for company once that has ended,
    counted from its arrival. A lone one never waits."""
    max_waiting: int = Field(default=4096, ge=1)
    """Chains that may wait; beyond them requests are refused with UNAVAILABLE."""


class RemoteEntry(PricedEntry):
    """What a process reward model on another server needs."""

    shape: ShapeEntry
    """What FLOPs depend on."""
    context: int = Field(default=0, ge=0, le=LARGEST)
    """Most tokens of prompt and chain together; 0: not known."""
    chat_template: str = ""
    """Jinja template of the prompt; empty: the bare text of the last message."""
    parallel: int = Field(default=64, ge=1, le=4096)
    """Chains that are asked about at a time; more wait."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """How long the server may take for one chain."""


class TritonEntry(RemoteEntry):
    """A model on a Triton server, behind the tensors that docker/triton/README.md describes."""

    backend: Literal["triton"]
    address: str
    """host:port of Triton's gRPC."""
    model: str = ""
    """The model's name on that server; empty: the same name."""


class PoolingEntry(RemoteEntry, HttpEntry):
    """A reward model behind vLLM's HTTP endpoints for pooling models, /pooling and /classify."""

    backend: Literal["pooling"]
    model: str = ""
    """The model's name on that server; empty: the same name."""
    task: Literal["steps", "sequence"] = "steps"
    """`steps`: a process reward model that pools by step (/pooling). `sequence`: a reward model that judges
    the whole text (/classify), one score for each chain."""
    step_separator: str = ""
    """The special token after each step, as `<extra_0>` of Qwen2.5-Math-PRM; with `steps`."""
    label: int = Field(default=-1, ge=-1, le=LARGEST)
    """Which of several values is the chance of being right; -1: the last."""

    @model_validator(mode="after")
    def _steps_have_a_separator(self) -> PoolingEntry:
        if (self.task == "steps") != bool(self.step_separator):
            raise ValueError("step_separator goes with task steps")
        return self


class CriticEntry(VerifierEntry):
    """A language model that judges by a rubric, for tasks that no reward model knows."""

    backend: Literal["critic"]
    generation: str = ""
    """host:port of the generation service; empty: the one of the same process."""
    model: str
    """The model's name there."""
    rubric: str = "Is it correct, complete and to the point?"
    """What to judge by."""
    prompt: str = ""
    """Jinja template of the question to the critic, with messages, question, answer, steps, rubric, scale and
    fence (a line that is not in the answer); empty: the built-in one. The critic is to end with a line
    `Verdict: N`, or with a line `Step i: N` for each step."""
    per_step: bool = False
    """Ask for a verdict on each step, not one in all."""
    scale: int = Field(default=10, ge=1, le=1000)
    """The best verdict; the worst is 0."""
    max_tokens: int = Field(default=1024, ge=1, le=LARGEST)
    """Most tokens that the critic may write about a chain."""
    parallel: int = Field(default=16, ge=1, le=4096)
    """Chains that are judged at a time; more wait."""


AnyEntry = Annotated[
    LogprobEntry | OnnxEntry | TritonEntry | PoolingEntry | CriticEntry, Field(discriminator="backend")
]


class Catalog(Entry):
    """All verifiers."""

    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    """ISO 4217 code of all prices: that of the models."""
    verifiers: list[AnyEntry]
    """The verifiers; the first one is taken where none is named."""

    @model_validator(mode="after")
    def _names_differ(self) -> Catalog:
        names = [verifier.name for verifier in self.verifiers]
        if len(set(names)) < len(names):
            raise ValueError("two verifiers have the same name")
        if not names:
            raise ValueError("there are no verifiers")
        return self


def load(path: Path) -> Catalog:
    """Read a catalogue; raises CatalogError."""
    return read(path, Catalog, "verifiers")
