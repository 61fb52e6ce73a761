"""Errors become statuses and come back the same."""

from __future__ import annotations

import subprocess
import sys

from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
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
    from_status,
    to_status,
)

words = st.text(st.characters(exclude_categories=["Cs"]))
pauses = st.integers(0, 10**15).map(lambda nanoseconds: nanoseconds / 1e9)
errors = st.one_of(
    st.builds(InvalidArgument, words, words),
    *(
        st.builds(kind, words)
        for kind in (NotFound, Unauthenticated, PermissionDenied, DeadlineExceeded, FailedPrecondition)
    ),
    st.builds(ResourceExhausted, words, pauses),
    st.builds(Unavailable, words, pauses),
    st.builds(Internal, words.filter(bool)),
)


@given(errors)
def test_an_error_survives_the_wire(error: IsoflopError) -> None:
    wire = to_status(error).SerializeToString()
    found = from_status(Status.FromString(wire))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.__dict__.keys() == error.__dict__.keys()
    for name, value in vars(error).items():
        got = getattr(found, name)
        assert got == value or abs(got - value) < 1e-8


def test_a_status_without_details_is_still_an_error() -> None:
    assert isinstance(from_status(Status(code=Code.INVALID_ARGUMENT, message="no")), InvalidArgument)
    unavailable = from_status(Status(code=Code.UNAVAILABLE, message="no"))
    assert isinstance(unavailable, Unavailable)
    assert unavailable.retry_after == 1.0
    assert str(from_status(Status(code=Code.UNIMPLEMENTED, message="no"))) == "UNIMPLEMENTED: no"


def test_errors_and_messages_need_no_grpc() -> None:
    code = "import sys, isoflop, isoflop.errors; isoflop.Budget(); sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
