"""Chat templates: they come with strangers' model files, and run in a sandbox."""

from __future__ import annotations

import pytest
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import Message

from services.common.template import ChatTemplate

TALK = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="1+1"),
]


def test_a_template_turns_a_conversation_into_text() -> None:
    source = (
        "{{ bos_token }}{% for message in messages %}\n"
        "    {% if message['role'] == 'user' %}\n"
        "[{{ message.content | trim }}]\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    assert ChatTemplate(source, "<s>", "</s>").render(TALK) == "<s>[1+1]\nA:"


def test_a_prefix_is_put_behind_it() -> None:
    assert ChatTemplate("Q: {{ messages[-1].content }} A: ").render(TALK, "two") == "Q: 1+1 A: two"


def test_without_a_template_the_last_message_is_the_prompt() -> None:
    assert ChatTemplate("").render(TALK) == "1+1"


def test_what_a_template_of_another_library_asks_for_is_false() -> None:
    assert ChatTemplate("{% if tools %}T{% endif %}{{ messages | length }}").render(TALK) == "2"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages | attr('__class__') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.popen('echo x') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_nothing_but_the_conversation(source: str) -> None:
    try:
        text = ChatTemplate(source).render(TALK)
    except InvalidArgument:
        text = ""
    assert text == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ undefined_function() }}",
        "{{ messages[7].content.x }}",
        "{{ 1 + 'a' }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ messages[0]['content'].index('nowhere') }}",
        "{% include 'another' %}",
    ],
)
def test_a_template_that_fails_refuses_the_conversation(source: str) -> None:
    with pytest.raises(InvalidArgument, match="the model's chat template refuses them") as caught:
        ChatTemplate(source).render(TALK)
    assert caught.value.field == "messages"


def test_a_template_may_refuse_a_conversation_in_its_own_words() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    with pytest.raises(InvalidArgument, match="System role not supported"):
        ChatTemplate(source).render(TALK)
    assert ChatTemplate(source).render(TALK[1:]) == ""


def test_a_text_that_looks_like_a_template_is_only_text() -> None:
    message = Message(role="user", content="{{ 1 + 1 }}{% raw %}")
    assert ChatTemplate("{{ messages[0].content }}").render([message]) == message.content


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% nonsense %}", "{{ a | no_such_filter }}"])
def test_a_broken_template_is_a_value_error(source: str) -> None:
    with pytest.raises(ValueError, match="chat template: "):
        ChatTemplate(source)
