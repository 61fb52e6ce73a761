"""The work of difficulty: an estimate for each query."""

from __future__ import annotations

import asyncio

from isoflop.errors import InvalidArgument
from isoflop.v1.difficulty_pb2 import EstimateRequest, EstimateResponse
from prometheus_client import CollectorRegistry, Counter

from services.difficulty.embedding import Embedding, EmbeddingError
from services.difficulty.estimator import Estimator, EstimatorError, load
from services.difficulty.settings import DifficultySettings


class Difficulty:
    """Estimates how hard queries are."""

    def __init__(
        self,
        settings: DifficultySettings,
        estimator: Estimator,
        registry: CollectorRegistry,
        embedding: Embedding | None = None,
    ) -> None:
        self._settings = settings
        self._estimator = estimator
        self._embedding = embedding
        self._queries = Counter("isoflop_difficulty_queries_total", "Queries estimated.", registry=registry)

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        """One estimate for each query; raises InvalidArgument for too many, or one without messages."""
        if len(request.queries) > self._settings.max_queries:
            raise InvalidArgument("queries", f"at most {self._settings.max_queries} in one request")
        if any(not query.messages for query in request.queries):
            raise InvalidArgument("queries", "each needs a message")
        self._queries.inc(len(request.queries))
        texts = [query.messages[-1].content for query in request.queries]
        flops = self._estimator.flops * len(texts)
        if self._embedding:
            # Milliseconds of computing, so not on the loop; a text longer than is looked at is cut before.
            most = self._settings.max_characters
            embeddings, spent = await asyncio.to_thread(self._embedding.embed, [t[:most] for t in texts])
            estimates = [self._estimator.estimate(*pair) for pair in zip(texts, embeddings, strict=True)]
            flops += spent
        else:
            estimates = [self._estimator.estimate(text) for text in texts]
        return EstimateResponse(difficulties=estimates, estimator=self._estimator.name, flops=flops)


def open_difficulty(settings: DifficultySettings, registry: CollectorRegistry) -> Difficulty:
    """The core with what its settings name; raises EstimatorError or EmbeddingError."""
    estimator = load(settings.estimator, settings.max_characters)
    embedding = None
    if settings.embedding:
        embedding = Embedding(settings.embedding, settings.embedding_max_tokens, settings.embedding_threads)
        if estimator.embedding is None:
            raise EmbeddingError(
                f"estimator {settings.estimator} was trained without an embedding: give none"
            )
        if estimator.embedding != embedding.name:
            raise EmbeddingError(
                f"estimator {settings.estimator} was trained with {estimator.embedding}, "
                f"but {settings.embedding} has {embedding.name}"
            )
    elif estimator.embedding:
        raise EstimatorError(
            f"estimator {settings.estimator} needs the embedding {estimator.embedding}: name its folder"
        )
    return Difficulty(settings, estimator, registry, embedding)
