"""Client of isoflop: each query answered by the cheapest plan that is good enough, and its bill.

from isoflop import Budget, Client

with Client("localhost:50051") as client:
    response = client.solve("17+24*3", budget=Budget(flops=2e9))
    print(response.answer, response.confidence, response.bill.flops)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    IsoflopError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from isoflop.request import Options, solve_request
from isoflop.v1.common_pb2 import Bill, Message, Model, Sample, Usage
from isoflop.v1.router_pb2 import (
    Action,
    BillRow,
    Budget,
    BudgetStanding,
    GetBillResponse,
    GetBudgetResponse,
    GetFrontierResponse,
    GetQueryResponse,
    ListModelsResponse,
    PlanResponse,
    Round,
    Search,
    SolveRequest,
    SolveResponse,
    Status,
    StreamSolveResponse,
    SubmitFeedbackResponse,
)

if TYPE_CHECKING:
    from isoflop.client import AsyncClient, Client
else:

    def __getattr__(name: str) -> object:
        # Only the clients need grpc: who imports isoflop.errors or the messages does without.
        if name in ("AsyncClient", "Client"):
            from isoflop import client

            return getattr(client, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Action",
    "AsyncClient",
    "Bill",
    "BillRow",
    "Budget",
    "BudgetStanding",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "GetBillResponse",
    "GetBudgetResponse",
    "GetFrontierResponse",
    "GetQueryResponse",
    "Internal",
    "InvalidArgument",
    "IsoflopError",
    "ListModelsResponse",
    "Message",
    "Model",
    "NotFound",
    "Options",
    "PermissionDenied",
    "PlanResponse",
    "ResourceExhausted",
    "Round",
    "Sample",
    "Search",
    "SolveRequest",
    "SolveResponse",
    "Status",
    "StreamSolveResponse",
    "SubmitFeedbackResponse",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Usage",
    "solve_request",
]
