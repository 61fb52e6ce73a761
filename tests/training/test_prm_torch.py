"""A verifier is trained, exported, served and gone on with. Only where torch is: see conftest.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain as ChainMessage
from toy_labels import write_toy

from services.verification.backends import Scored
from services.verification.backends.onnx import OnnxBackend
from services.verification.catalog import OnnxEntry
from services.verification.steps import cut
from training import prm, prm_train
from training.labels import LabelsError, read
from training.model import Decoder, Shape
from training.prm import Wanted, train
from training.prm_data import Encoded, Encoder
from training.prm_model import StepVerifier
from training.prm_train import Diverged, Training, calibrated, fit_temperature, mean_loss

TINY = {"width": 16, "layers": 1, "heads": 2, "feed_forward": 32}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(prm.SIZES, "s", TINY)
    monkeypatch.setattr(prm, "CONTEXT", 96)
    monkeypatch.setattr(prm, "MOST_TOKENS", 300)


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    """A tiny verifier of toy labels."""
    write_toy(tmp_path / "labels.jsonl", problems=40, chains=1, seed=1)
    return Wanted((tmp_path / "labels.jsonl",), tmp_path / "prm", size="s", epochs=2)


async def test_what_is_trained_is_served(wanted: Wanted) -> None:
    said = train(wanted)
    assert "epoch" in said
    manifest = json.loads((wanted.output / "verifier.json").read_text())
    assert (manifest["format"], manifest["name"], manifest["context"]) == (1, "prm", 96)
    assert {path.name for path in wanted.output.iterdir()} == {
        "model.onnx", "tokenizer.json", "verifier.json", "training.json", "README.md",
    }  # fmt: skip
    backend = OnnxBackend(OnnxEntry(name="prm", backend="onnx", path=wanted.output), Path(), "USD")
    try:
        text = "1+2=3\nanswer: 3"
        chain = ChainMessage(text=text, steps=cut(text))
        (found,) = await backend.score([Message(role="user", content="1+2")], [chain])
    finally:
        await backend.close()
    assert isinstance(found, Scored)
    assert len(found.steps) == 2
    assert all(0 < score < 1 for score in found.steps)
    # Nothing has changed, so nothing is made again.
    before = (wanted.output / "model.onnx").stat().st_mtime_ns
    assert "nothing to do" in train(wanted)
    assert (wanted.output / "model.onnx").stat().st_mtime_ns == before


def test_what_was_interrupted_ends_with_the_same_weights(
    wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prm, "CHAINS_PER_STEP", 8)
    monkeypatch.setattr(prm_train, "CHECKPOINT_STEPS", 1)
    train(wanted)
    whole = json.loads((wanted.output / "training.json").read_text())
    learn = Training._learn

    def interrupted(self: Training, chains: Any) -> None:
        if self._step == 5:
            raise KeyboardInterrupt
        learn(self, chains)

    other = replace(wanted, output=wanted.output.parent / "other")
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(other)
    assert (other.output / "checkpoint.pt").exists()
    steps: list[int] = []
    monkeypatch.setattr(
        Training, "_learn", lambda self, chains: (steps.append(self._step), learn(self, chains))[1]
    )
    train(other)
    assert steps[0] == 5
    again = json.loads((other.output / "training.json").read_text())
    assert again["epochs"] == whole["epochs"]
    assert again["temperature"] == whole["temperature"]


def test_a_language_model_is_the_beginning(wanted: Wanted) -> None:
    train(wanted)
    folder = wanted.output.parent
    tokens = json.loads((wanted.output / "training.json").read_text())["recipe"]["shape"]["vocabulary"]
    shape = Shape(**{**TINY, "width": 8, "vocabulary": tokens + 3, "context": 90})
    torch.manual_seed(0)
    state = {"recipe": {"shape": vars(shape)}, "model": Decoder(shape).state_dict()}
    torch.save(state, folder / "lm.pt")
    tokenizer = wanted.output / "tokenizer.json"
    start = replace(wanted, output=folder / "from-lm", init=folder / "lm.pt", tokenizer=tokenizer)
    train(start)
    record = json.loads((folder / "from-lm" / "training.json").read_text())
    assert record["recipe"]["shape"] == vars(shape)
    assert set(record["recipe"]["sha256"]) == {"labels", "tokenizer", "init"}
    (folder / "bad.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InvalidArgument, match="no checkpoint of a language model"):
        train(replace(start, init=folder / "bad.pt", output=folder / "x"))
    with pytest.raises(InvalidArgument, match=r"no tokenizer\.json"):
        train(replace(start, tokenizer=folder / "labels.jsonl", output=folder / "x"))
    small = {**vars(shape), "vocabulary": 10}
    torch.save({"recipe": {"shape": small}, "model": Decoder(Shape(**small)).state_dict()}, folder / "lm.pt")
    with pytest.raises(InvalidArgument, match="the model 10"):
        train(replace(start, output=folder / "x"))


def test_labels_of_no_use_are_refused(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{\n")
    with pytest.raises(LabelsError, match="no line"):
        train(replace(wanted, labels=(tmp_path / "broken.jsonl",)))
    text = wanted.labels[0].read_text().replace('"rating": -1', '"rating": 1')
    (tmp_path / "right.jsonl").write_text(text)
    with pytest.raises(LabelsError, match="no wrong step"):
        train(replace(wanted, labels=(tmp_path / "right.jsonl",)))
    with pytest.raises(InvalidArgument, match="chat_template"):
        train(replace(wanted, chat_template="{% if %}"))


def test_chains_that_are_too_long_are_dropped_and_counted(
    wanted: Wanted, capsys: pytest.CaptureFixture[str]
) -> None:
    long = wanted.labels[0].read_text().splitlines()[0].replace('"text": "', '"text": "' + "7" * 200)
    with wanted.labels[0].open("a") as file:
        file.write(f"{long}\n{{\n")
    said = train(replace(wanted, epochs=1))
    assert "1 too long, 1 broken lines" in said
    assert "not JSON" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_training(tmp_path: Path, wanted: Wanted) -> None:
    with pytest.raises(Diverged, match="--rate"):
        train(replace(wanted, rate=1e30))


def test_a_step_is_judged_by_the_likelihood_of_its_own_tokens() -> None:
    torch.manual_seed(1)
    verifier = StepVerifier(Shape(**{**TINY, "vocabulary": 8, "context": 16}), [5]).eval()
    torch.nn.init.normal_(verifier.decoder.embedding)
    tokens = torch.tensor([[1, 2, 5, 3, 3, 5, 5, 4]])
    with torch.inference_mode():
        logits, logprobs = verifier.judged(tokens)
        foretold = verifier.decoder.logits(verifier.decoder(tokens)).log_softmax(-1)
    each = [0.0, *(float(foretold[0, at, token]) for at, token in enumerate(tokens[0, 1:].tolist()))]
    assert logprobs[0].tolist() == pytest.approx(each, abs=1e-5)
    # Steps are tokens 0 to 2, 3 to 5, 6, and 7; the head knows nothing yet.
    begins = [0, 0, 0, 3, 3, 3, 6, 7]
    expected = [sum(each[begin : at + 1]) for at, begin in enumerate(begins)]
    assert logits[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_verifier_learns_what_a_token_tells(tmp_path: Path) -> None:
    """A step is right just where its token is 1: after some steps the loss is near zero."""
    draw = np.random.default_rng(1)
    chains = []
    for _ in range(160):
        tokens = draw.integers(0, 2, 6).tolist()
        chains.append(Encoded(tokens, 0, [1, 3, 5], [float(tokens[i]) for i in (1, 3, 5)], [1.0] * 3))
    shape = {**TINY, "vocabulary": 4, "context": 8}
    recipe = prm_train.Recipe(shape, 12, 16, 0.02, 0.01, 1, "", {})
    trained = Training(recipe, None, chains[:128], chains[128:], tmp_path / "c.pt", []).run(
        lambda report: None
    )
    assert mean_loss(trained.verifier, chains[128:], 16) < 0.05


def test_training_ends_where_nothing_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.4, 0.6, 0.7, 0.1])
    monkeypatch.setattr(prm_train, "mean_loss", lambda *_: next(losses))
    chains = [Encoded([1, 2], 1, [1], [float(i % 2)], [1.0]) for i in range(8)]
    recipe = prm_train.Recipe({**TINY, "vocabulary": 4, "context": 8}, 9, 8, 0.01, 0.01, 1, "", {})
    trained = Training(recipe, None, chains, chains, tmp_path / "c.pt", []).run(lambda report: None)
    assert [epoch.calibration_loss for epoch in trained.epochs] == [0.5, 0.4, 0.6, 0.7]
    assert trained.best_epoch == 2


@pytest.mark.parametrize("true", [0.5, 1.0, 4.0])
def test_the_temperature_is_the_true_one(true: float) -> None:
    logits = np.random.default_rng(0).normal(0, 3, 4000)
    targets = 1 / (1 + np.exp(-logits / true))
    assert fit_temperature(logits, targets, np.ones(4000)) == pytest.approx(true, rel=0.01)


def test_calibrated_scores_are_those_of_the_exported_form(wanted: Wanted) -> None:
    chains = read(wanted.labels).chains[:6]
    tokenizer_chains = chains
    from training.prm_data import learn_tokenizer

    encoder = Encoder(learn_tokenizer(tokenizer_chains, 300), prm.CHAT_TEMPLATE, 96)
    torch.manual_seed(1)
    verifier = StepVerifier(Shape(**{**TINY, "vocabulary": 300, "context": 96}), [5]).eval()
    torch.nn.init.normal_(verifier.head.weight)
    temperature, scored = calibrated(verifier, encoder, chains, 4)
    for one in scored:
        encoded = encoder.encode(one.chain)
        assert encoded is not None
        with torch.inference_mode():
            logits = verifier(torch.tensor([encoded.tokens]))[0, encoded.ends]
        expected = torch.sigmoid(logits / temperature).tolist()
        assert one.scores == pytest.approx(expected, abs=1e-5)
