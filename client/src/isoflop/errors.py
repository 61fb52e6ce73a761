"""The errors of isoflop, and the one table that maps them to gRPC statuses.

    IsoflopError
     ├─ InvalidArgument      a field of the request is wrong; `field` names it
     ├─ NotFound             an unknown model, verifier or query
     ├─ Unauthenticated      nobody knows who is calling
     ├─ PermissionDenied     the caller may not do this
     ├─ ResourceExhausted    a quota or budget is used up; `retry_after` says when there is more
     ├─ Unavailable          a part is down, or load was shed; `retry_after` says when to try again
     │   └─ Unreachable      nobody answers at the address, or the connection broke
     ├─ DeadlineExceeded     it cannot be finished in time; nothing was spent
     ├─ FailedPrecondition   not as things are: no plan fits the budget, and the message has the cheapest
     │                       that would; or feedback to a query that still runs
     └─ Internal             a bug; `error_id` finds it in the log

The cores of the services raise them, the servicers turn them into statuses with details of
google.rpc, and the client turns those back into the same errors. This module knows no grpc.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "isoflop"


class IsoflopError(Exception):
    """Base of all errors of isoflop: `str(error)` is one sentence that says what to do."""

    code: ClassVar[Code.ValueType] = Code.UNKNOWN

    def details(self) -> list[BadRequest | RetryInfo | ErrorInfo]:
        """What the status carries beside its text."""
        return []


class InvalidArgument(IsoflopError):
    """A field of the request is wrong; `field` names it, as in `budget.flops`."""

    code = Code.INVALID_ARGUMENT

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description

    def details(self) -> list[BadRequest | RetryInfo | ErrorInfo]:
        violation = BadRequest.FieldViolation(field=self.field, description=self.description)
        return [BadRequest(field_violations=[violation])]


class NotFound(IsoflopError):
    """An unknown model, verifier or query."""

    code = Code.NOT_FOUND


class Unauthenticated(IsoflopError):
    """Nobody knows who is calling."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(IsoflopError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class _Retryable(IsoflopError):
    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait before another try."""

    def details(self) -> list[BadRequest | RetryInfo | ErrorInfo]:
        delay = Duration()
        delay.FromNanoseconds(round(self.retry_after * 1e9))
        return [RetryInfo(retry_delay=delay)]


class ResourceExhausted(_Retryable):
    """A quota or budget is used up; more of it is there after `retry_after` seconds."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(_Retryable):
    """A part is down or overloaded; try again after `retry_after` seconds."""

    code = Code.UNAVAILABLE

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after)


class Unreachable(Unavailable):
    """Nobody answers at `target`, or the connection broke. The caller finds that out; no service says it."""

    def __init__(self, target: str) -> None:
        super().__init__(f"{target} does not answer: is it running?", retry_after=0.5)
        self.target = target


class DeadlineExceeded(IsoflopError):
    """It cannot be finished before the deadline."""

    code = Code.DEADLINE_EXCEEDED


class FailedPrecondition(IsoflopError):
    """It cannot be done as things are, and the message says what can: the cheapest plan where none fits."""

    code = Code.FAILED_PRECONDITION


class Internal(IsoflopError):
    """A bug. The message is fixed; `error_id` finds the traceback in the service's log."""

    code = Code.INTERNAL

    def __init__(self, error_id: str | None = None) -> None:
        self.error_id = error_id or uuid.uuid4().hex[:12]
        super().__init__(f"internal error {self.error_id}: the service's log has the details")

    def details(self) -> list[BadRequest | RetryInfo | ErrorInfo]:
        return [ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": self.error_id})]


def to_status(error: IsoflopError) -> Status:
    """The google.rpc.Status of an error, details included."""
    status = Status(code=error.code, message=str(error))
    for detail in error.details():
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_status(status: Status) -> IsoflopError:
    """The error that a google.rpc.Status tells of."""
    violation, info = BadRequest(), ErrorInfo()
    retry = RetryInfo(retry_delay=Duration(seconds=1 if status.code == Code.UNAVAILABLE else 0))
    for detail in status.details:
        for message in (violation, retry, info):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    after = retry.retry_delay.ToNanoseconds() / 1e9
    match status.code:
        case Code.INVALID_ARGUMENT if violation.field_violations:
            return InvalidArgument(
                violation.field_violations[0].field, violation.field_violations[0].description
            )
        case Code.INVALID_ARGUMENT:
            return InvalidArgument("request", status.message)
        case Code.RESOURCE_EXHAUSTED:
            return ResourceExhausted(status.message, after)
        case Code.UNAVAILABLE:
            return Unavailable(status.message, after)
        case Code.INTERNAL if info.metadata.get("error_id"):
            return Internal(info.metadata["error_id"])
    for plain in (NotFound, Unauthenticated, PermissionDenied, DeadlineExceeded, FailedPrecondition):
        if plain.code == status.code:
            return plain(status.message)
    return IsoflopError(f"{Code.Name(status.code)}: {status.message}")
