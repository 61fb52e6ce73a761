"""Verification by a reward model behind vLLM's HTTP endpoints for pooling models.

A process reward model (`task: steps`, such as Qwen2.5-Math-PRM) is asked at /pooling: the text has a special
token after each step, and vLLM, which pools by step for such a model, answers with the classes' probabilities
at each of these tokens. (For others: `--pooler-config '{"pooling_type": "STEP", "step_tag_id": ...}'`.) One
that judges whole texts (`task: sequence`) is asked at /classify. The last class is the chance of being right,
where the catalogue does not say another.

One request for each chain: vLLM batches them itself, and a chain that is too long, or that the server fails
on or is too slow with, hinders no other. A server that answers for none of them (it is down, or full, or does
not know us) is unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from isoflop.errors import Unavailable
from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, Verifier

from services.common.catalog import CatalogError
from services.common.template import ChatTemplate
from services.verification.backends import NOTHING, Scored, Spent, Unscorable, score_each
from services.verification.catalog import PoolingEntry
from services.verification.steps import texts

REFUSALS = (400, 413, 422)
"""Statuses with which vLLM refuses one input: too long, or not to its liking."""


class PoolingBackend:
    """Scores chains by one model of a vLLM server."""

    def __init__(self, entry: PoolingEntry, folder: Path, currency: str) -> None:
        """Raises CatalogError where httpx or the key is missing; the server is first asked for scores."""
        try:
            import httpx

            from services.common.http import Key, KeyUnusable, make_client, retry_after
        except ImportError:
            raise CatalogError(
                f"verifier {entry.name}: httpx is not installed; pip install 'isoflop-suite[openai]'"
            ) from None
        try:
            self._key = Key(entry.key_env, folder / entry.key_file if entry.key_file else None)
            self._template = ChatTemplate(entry.chat_template)
        except (KeyUnusable, ValueError) as error:
            raise CatalogError(f"verifier {entry.name}: {error}") from None
        self.name = entry.name
        self.whole = entry.task == "sequence"
        self._entry = entry
        self._slots = asyncio.Semaphore(entry.parallel)
        self._make_client: Any = lambda: make_client(
            str(entry.base_url), self._key, entry.parallel, entry.connect_seconds
        )
        self._client: httpx.AsyncClient | None = None
        self._broken: type[Exception] = httpx.TransportError
        self._retry_after = retry_after
        self._verifier = Verifier(
            name=entry.name,
            backend="pooling",
            shape=entry.shape.message(),
            context=entry.context,
            price=entry.price.message(currency),
            scoring=entry.scoring_or("mean" if self.whole else "min"),
            extra_tokens=1,  # The separator after the last step.
            whole=self.whole,
        )

    async def describe(self) -> Verifier:
        """As its entry says."""
        return self._verifier

    async def score(
        self, messages: Sequence[Message], chains: Sequence[Chain]
    ) -> Sequence[Scored | Unscorable]:
        """A request for each chain; cancelling closes their connections, at which vLLM gives them up."""
        if self._client is None:
            # Made here because its connections belong to the event loop that they are made in.
            self._client = self._make_client()
        prompt = self._template.render(messages)
        return await score_each(partial(self._ask, prompt), chains)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, prompt: str, chain: Chain) -> Scored | Unscorable:
        """Raises Unavailable where the server gave no answer to this chain."""
        assert self._client is not None
        entry = self._entry
        try:
            text = prompt + self._marked(chain)
        except Unscorable as error:
            return error
        # The chat template has the special tokens already.
        body = {"model": entry.model or entry.name, "input": text, "add_special_tokens": False}
        try:
            async with self._slots, asyncio.timeout(entry.timeout_seconds):
                response = await self._client.post("classify" if self.whole else "pooling", json=body)
        except TimeoutError:
            raise Unavailable(
                f"{entry.base_url} did not score within {entry.timeout_seconds:g} seconds"
            ) from None
        except self._broken as error:
            raise Unavailable(
                f"{entry.base_url} does not answer ({type(error).__name__}): is it running?"
            ) from None
        if response.status_code in REFUSALS:
            return Unscorable(f"{entry.name} refuses it: {self._said(response)}")
        if response.status_code != 200:
            raise Unavailable(
                f"{entry.base_url} answers {response.status_code}: {self._said(response)}",
                self._retry_after(response) or 1.0,
            )
        return self._outcome(response, 1 if self.whole else len(chain.steps))

    def _marked(self, chain: Chain) -> str:
        """The chain with the separator after each step; raises Unscorable."""
        separator = self._entry.step_separator
        if self.whole:
            return chain.text
        if separator in chain.text:
            raise Unscorable(f"its text holds {separator}, which separates steps")
        return "".join(text.rstrip("\r\n") + separator for text in texts(chain))

    def _said(self, response: Any) -> str:
        """The server's words of an error, one line without the key."""
        try:
            body = response.json()
            said = str((body.get("error") or body)["message"])
        except (ValueError, KeyError, AttributeError, TypeError):
            said = "no reason given"
        return self._key.hide(" ".join(said.split())[:200])

    def _outcome(self, response: Any, steps: int) -> Scored | Unscorable:
        """What vLLM's PoolingResponse or ClassificationResponse says."""
        spent = NOTHING
        try:
            body = response.json()
            tokens = body["usage"]["prompt_tokens"]
            if type(tokens) is not int or tokens < 0:
                raise TypeError  # noqa: TRY301
            spent = Spent.reading(self._verifier.shape, tokens)
            (item,) = body["data"]
            rows = [item["probs"]] if self.whole else item["data"]
            if len(rows) != steps:
                return Unscorable(
                    f"{self.name} gave {len(rows)} values for {steps} steps: does vLLM pool by step?", spent
                )
            return Scored([_number(row, self._entry.label) for row in rows], spent)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            return Unscorable(f"{self.name} gave an answer that is not of vLLM's form", spent)


def _number(row: Any, label: int) -> float:
    """The value of a label; raises TypeError or IndexError where there is none."""
    value = row[label]
    if type(value) not in (int, float):
        raise TypeError
    return float(value)
