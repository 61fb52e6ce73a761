"""`isoflop train-prm` without torch: what it is told, what it reads, what it refuses."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop import cli
from isoflop.errors import FailedPrecondition, InvalidArgument
from isoflop.v1.common_pb2 import Message
from toy_labels import write_toy

from services.common.template import ChatTemplate
from training import prm
from training.labels import Chain, Step, read
from training.prm import CHAT_TEMPLATE, Wanted, check, is_made, need
from training.prm_data import Encoded, Encoder, batch_of, epoch_of, in_order, learn_tokenizer


def encoder(context: int = 200) -> Encoder:
    chain = Chain("17+24", (Step("17+24=41"), Step("answer: 41")), True)
    return Encoder(learn_tokenizer([chain], 300), CHAT_TEMPLATE, context)


def test_the_command_is_loaded_without_torch() -> None:
    """What is registered in `isoflop` must come up anywhere, and fast."""
    code = (
        "import sys, argparse; import training.prm, training.rollouts; "
        "training.prm.command(argparse.ArgumentParser()); "
        "training.rollouts.command(argparse.ArgumentParser()); "
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_is_named_with_what_installs_it() -> None:
    with pytest.raises(FailedPrecondition, match=r"no_such_package.*isoflop-suite\[training\]"):
        need("json", "no_such_package")


def test_the_command_line_becomes_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Wanted] = []
    monkeypatch.setattr(prm, "train", lambda wanted: str(asked.append(wanted)))
    parser = argparse.ArgumentParser()
    run = prm.command(parser)
    arguments = parser.parse_args(["--labels", "a", "b", "--output", "o", "--epochs", "2", "--size", "s"])
    assert run(arguments) == 0
    assert asked == [Wanted((Path("a"), Path("b")), Path("o"), epochs=2, size="s")]


def test_a_missing_file_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(prm, "need", lambda *packages: None)  # It is read before anything needs them.
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train-prm", "--labels", "none.jsonl"]) == 1
    assert capsys.readouterr().err == "isoflop: none.jsonl: No such file or directory\n"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (Wanted((), Path(), epochs=0), "epochs"),
        (Wanted((), Path(), rate=0.0), "rate"),
        (Wanted((), Path(), rate=float("nan")), "rate"),
        (Wanted((), Path(), init=Path("x")), "tokenizer"),
    ],
)
def test_wrong_options_are_named(wanted: Wanted, field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check(wanted)
    assert raised.value.field == field


def test_what_is_made_is_known_again(tmp_path: Path) -> None:
    assert not is_made(tmp_path, {"seed": 1})
    (tmp_path / "training.json").write_text('{"recipe": {"seed": 1}}')
    assert not is_made(tmp_path, {"seed": 1})
    (tmp_path / "verifier.json").write_text("{}")
    assert is_made(tmp_path, {"seed": 1})
    assert not is_made(tmp_path, {"seed": 2})
    (tmp_path / "training.json").write_text("[")
    assert not is_made(tmp_path, {"seed": 1})


def test_positions_are_those_of_the_steps_last_tokens() -> None:
    chain = Chain("17+24", (Step("17+24=41", 1.0, 1.0), Step("answer: 41", 0.25, 1.0)), True)
    made = encoder()
    encoded = made.encode(chain)
    assert encoded is not None
    prompt = made._ids(ChatTemplate(CHAT_TEMPLATE).render([Message(role="user", content="17+24")]))
    first, second = made._ids("17+24=41\n"), made._ids("answer: 41\n")
    assert encoded.tokens == prompt + first + second
    assert encoded.ends == [len(prompt + first) - 1, len(prompt + first + second) - 1]
    assert (encoded.targets, encoded.weights) == ([1.0, 0.25], [1.0, 1.0])


def test_a_chain_that_is_too_long_is_none() -> None:
    chain = Chain("17+24", (Step("17+24=41"),), True)
    length = len(encoder().encode(chain).tokens)  # type: ignore[union-attr]
    assert encoder(length).encode(chain) is not None
    assert encoder(length - 1).encode(chain) is None


def test_numbers_are_their_digits() -> None:
    tokenizer = learn_tokenizer([Chain("1234 1234", (Step("1234"),) * 9, True)], 400)
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]


def test_only_labels_are_in_a_batch() -> None:
    batch = batch_of(
        [Encoded([5, 6, 7], 1, [1, 2], [1.0, 0.5], [1.0, 0.0]), Encoded([8], 0, [0], [0.0], [2.0])]
    )
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.positions.tolist() == [1, 3]
    assert batch.targets.tolist() == [1.0, 0.0]
    assert batch.weights.tolist() == [1.0, 2.0]
    # The prompt, a step without a label and a wrong step are nothing that a language model should learn.
    assert batch.likely.tolist() == [[0, 1, 0], [0, 0, 0]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 16))
def test_an_epoch_has_every_chain_once(lengths: list[int], size: int) -> None:
    chains = [Encoded([0] * length, 0, [length - 1], [1.0], [1.0]) for length in lengths]
    batches = epoch_of(chains, size, "1/0")
    assert sorted(index for batch in batches for index in batch) == list(range(len(chains)))
    assert len(batches) == -(-len(chains) // size)
    assert all(len(batch) <= size for batch in batches)
    assert epoch_of(chains, size, "1/0") == batches
    ordered = [len(chains[index].tokens) for batch in in_order(chains, size) for index in batch]
    assert ordered == sorted(lengths)


def test_toy_labels_are_what_they_say(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy.jsonl", problems=50, chains=2, seed=1)
    labels = read([tmp_path / "toy.jsonl"])
    assert (labels.rows, labels.faults) == (200, [])
    for chain in labels.chains:
        wrong = chain.first_error
        assert chain.is_judged
        assert chain.reached is (wrong is None)
        for number, step in enumerate(chain.steps[:-1]):
            left, right = step.text.split("=")
            assert (eval(left) == int(right)) is (number != wrong)
