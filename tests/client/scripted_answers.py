"""What the scripted router answers."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from isoflop.v1.aggregation_pb2 import Cluster
from isoflop.v1.common_pb2 import (
    Bill,
    Capabilities,
    Model,
    Price,
    Sample,
    SeedPromise,
    Shape,
    Stage,
    TextDelta,
    Usage,
)
from isoflop.v1.difficulty_pb2 import Difficulty
from isoflop.v1.router_pb2 import (
    Action,
    Amount,
    BillRow,
    BudgetStanding,
    Charge,
    FrontierPoint,
    GetBillResponse,
    GetBudgetResponse,
    GetFrontierResponse,
    GetQueryResponse,
    Growth,
    ListModelsResponse,
    Node,
    NodeState,
    PlanResponse,
    QueryStarted,
    Rejected,
    Round,
    Savings,
    SolveResponse,
    Status,
    Stopped,
    StreamSolveResponse,
    SubmitFeedbackResponse,
    Tally,
)
from isoflop.v1.verification_pb2 import ChainScore, Verifier

DIFFICULTY = Difficulty(mean=-0.4, sd=0.8)
ACTION = Action(
    model="abacus-s",
    strategy="majority",
    samples=4,
    temperature=0.7,
    expected_accuracy=0.93,
    expected_flops=2.5e8,
    expected_money=1e-6,
)
ROUND = Round(
    action=ACTION,
    reason="most worth its price",
    completed=3,
    aborted=1,
    confidence_before=0.4,
    confidence_after=0.97,
    flops=2.1e8,
)
CLUSTER = Cluster(answer="421", members=["abacus-s/0", "abacus-s/1", "abacus-s/2"], weight=3)
SOLVED = SolveResponse(
    query_id="q1",
    status=Status.STATUS_ANSWERED,
    reason="3 of 3 agree",
    answer="421",
    text="17*24=408\n408+13=421\n421",
    confidence=0.97,
    difficulty=DIFFICULTY,
    rounds=[ROUND],
    clusters=[CLUSTER],
    bill=Bill(
        lines=[
            Usage(
                stage=Stage.STAGE_GENERATION,
                model="abacus-s",
                strategy="majority",
                calls=4,
                prompt_tokens=9,
                cached_tokens=27,
                completion_tokens=60,
                aborted_tokens=5,
                flops=2.1e8,
                flops_without_attention=2e8,
                money=1.5e-6,
                aborted_flops=1.6e7,
            ),
            Usage(stage=Stage.STAGE_DIFFICULTY, model="features-1", calls=1, flops=1200.0),
        ],
        flops=210001200.0,
        flops_without_attention=200001200.0,
        tokens=74,
        money=1.5e-6,
        currency="USD",
    ),
    savings=Savings(samples=1, flops=5e7),
    seed=9007199254740993,
    profile="p1",
)
ABANDONED = SolveResponse(query_id="q2", status=Status.STATUS_ABANDONED, reason="not worth more", answer="7")
CANDIDATES = [Sample(id="abacus-s/0", text="408+13\n421", tokens=9)]
PLANNED = PlanResponse(
    difficulty=DIFFICULTY,
    action=ACTION,
    reason="most worth its price",
    rejected=[Rejected(action=Action(model="abacus-l", strategy="single", samples=1), reason="dearer")],
    outlook=Action(samples=5, expected_accuracy=0.95, expected_flops=3e8),
    profile="p1",
)
MODELS = ListModelsResponse(
    models=[
        Model(
            name="abacus-s",
            backend="llamacpp",
            shape=Shape(active_parameters=60_000),
            context=512,
            price=Price(currency="USD", per_million_prompt_tokens=0.01, per_million_completion_tokens=0.02),
            capabilities=Capabilities(prefix=True, seed=SeedPromise.SEED_PROMISE_ALONE, logprobs=True),
        )
    ],
    verifiers=[Verifier(name="logprob")],
    strategies=["single", "majority"],
    profile="p1",
)
FRONTIER = GetFrontierResponse(points=[FrontierPoint(difficulty=-1, action=ACTION)], profile="p1")
RUNNING = GetQueryResponse(running=True, rounds=[ROUND])
MONTH = {
    "starts": Timestamp(seconds=1793491200),  # 2026-11-01
    "ends": Timestamp(seconds=1796083200),  # 2026-12-01
}
STANDING = GetBudgetResponse(
    budgets=[
        BudgetStanding(
            name="acme/month",
            tenant="acme",
            period="month",
            limit=Amount(flops=5e15, money=2000),
            spent=Amount(flops=1.25e15, money=412.5, tokens=123_456_789),
            reserved=Amount(flops=2e13, money=0.5, tokens=8192),
            shadow_price=1.8e-10,
            **MONTH,
        ),
        BudgetStanding(
            name="all",
            period="month",
            limit=Amount(tokens=150_000_000),
            spent=Amount(tokens=150_000_000),
            **MONTH,
        ),
    ],
    currency="USD",
)
BILL = GetBillResponse(
    rows=[
        BillRow(
            keys=["acme", "abacus-l", "2026-11-02"],
            queries=1200,
            usage=Usage(
                calls=2400,
                prompt_tokens=120_000,
                cached_tokens=80_000,
                completion_tokens=1_234_567,
                aborted_tokens=3_210,
                flops=4.2e12,
                flops_without_attention=4e12,
                money=12.25,
                aborted_flops=1.5e10,
                aborted_money=0.04,
            ),
            unreconciled_flops=2.5e9,
        ),
        BillRow(
            keys=["globex, inc", "abacus-s", "2026-11-01"],
            queries=30,
            usage=Usage(calls=30, prompt_tokens=300, completion_tokens=4_000, flops=0.1 + 0.2, money=1e-5),
        ),
    ],
    currency="USD",
)
ALL_TOGETHER = GetBillResponse(rows=[BillRow(queries=1215, usage=BILL.rows[0].usage)], currency="USD")
LOST_ROUND = Round(
    index=1,
    action=Action(model="abacus-l", strategy="single", samples=1, expected_accuracy=0.98, expected_flops=8e8),
    reason="it is worth more",
    explored=True,
)
KEPT = GetQueryResponse(
    rounds=[ROUND, LOST_ROUND],
    result=SOLVED,
    request_id="r1",
    tenant="acme",
    tier="gold",
    began=Timestamp(seconds=1793628294),  # 2026-11-02 14:04:54
    ended=Timestamp(seconds=1793628295, nanos=320_000_000),
    outcome="answered",
    charges=[
        Charge(usage=SOLVED.bill.lines[1]),
        Charge(
            round=0,
            usage=Usage(
                stage=Stage.STAGE_GENERATION,
                model="abacus-s",
                strategy="majority",
                calls=4,
                prompt_tokens=9,
                cached_tokens=27,
                completion_tokens=60,
                aborted_tokens=5,
                flops=5.5e8,
                flops_without_attention=5.4e8,
                money=1.5e-6,
                aborted_flops=2e7,
                aborted_money=1e-7,
            ),
        ),
        Charge(
            round=1,
            usage=Usage(
                stage=Stage.STAGE_GENERATION,
                model="abacus-l",
                strategy="single",
                calls=1,
                aborted_tokens=512,
                flops=2.4e9,
                flops_without_attention=2.2e9,
                money=1.3e-5,
                aborted_flops=2.4e9,
                aborted_money=1.3e-5,
            ),
            unreconciled=True,
        ),
    ],
)
JUDGED = SubmitFeedbackResponse(right=True, returned="421")
EVENTS = [
    StreamSolveResponse(started=QueryStarted(query_id="q1", difficulty=DIFFICULTY)),
    StreamSolveResponse(round=Round(action=ACTION, reason="most worth its price")),
    StreamSolveResponse(sample=Sample(id="abacus-s/0", text="421", tokens=20)),
    StreamSolveResponse(scores=ChainScore(id="abacus-s/0", steps=[0.9, 0.8])),
    StreamSolveResponse(tally=Tally(clusters=[CLUSTER], confidence=0.97, stability=0.99)),
    StreamSolveResponse(stopped=Stopped(reason="3 of 3 agree")),
    StreamSolveResponse(final=SOLVED),
]
GROWTH = StreamSolveResponse(
    growth=Growth(
        nodes=[
            Node(id="abacus-s/0", text="17*24=408\n", score=0.91, state=NodeState.NODE_STATE_KEPT),
            Node(id="abacus-s/1", parent="abacus-s/0", text="421", state=NodeState.NODE_STATE_ENDED),
        ]
    )
)
TEXT_EVENTS = [
    StreamSolveResponse(text=TextDelta(sample_id="abacus-s/0", text=part))
    for part in ("408+13\n", "42", "1\x1b[2J")
]
