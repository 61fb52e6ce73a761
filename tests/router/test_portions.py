"""Requests in portions that fit in a message."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from isoflop.rpc import MAX_MESSAGE_BYTES
from isoflop.v1.verification_pb2 import Chain, ScoreRequest

from router.portions import MOST_BYTES, portions

ROOM = 100

chains = st.lists(
    st.builds(lambda size: Chain(id="m/0", text="x" * size), st.integers(0, ROOM + 20)), max_size=20
)


@given(chains)
def test_each_item_is_in_one_portion_in_order_and_what_is_too_large_in_none(items: list[Chain]) -> None:
    parts, large = portions(items, ROOM)
    assert [one for part in parts for one in part] == [one for one in items if one.ByteSize() <= ROOM]
    assert large == [one for one in items if one.ByteSize() > ROOM]


@given(chains)
def test_a_portion_has_as_many_as_fit(items: list[Chain]) -> None:
    parts, _ = portions(items, ROOM)
    sizes = [[one.ByteSize() for one in part] for part in parts]
    assert all(part and sum(part) <= ROOM for part in sizes)
    assert all(sum(part) + after[0] > ROOM for part, after in pairwise(sizes))


def test_a_message_has_room_for_a_portion_and_what_frames_it() -> None:
    one = Chain(id="m/0", text="x" * 900, steps=[])
    request = ScoreRequest(chains=portions([one] * 20_000, MOST_BYTES)[0][0])
    assert sum(chain.ByteSize() for chain in request.chains) > MOST_BYTES - 1_000
    assert request.ByteSize() < MAX_MESSAGE_BYTES
