"""Chat templates: from a conversation to the text that a model continues."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import Message
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

PLAIN = "{{ messages[-1].content }}"
"""The template of a model that has none: the last message as it is."""


class ChatTemplate:
    """A Jinja template as model files carry it; it runs in a sandbox."""

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        """Raises ValueError where `source` is no template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source or PLAIN)
        except TemplateError as error:
            raise ValueError(f"chat template: {error}") from None
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(self, messages: Sequence[Message], prefix: str = "") -> str:
        """The text to continue; raises InvalidArgument where the template refuses the conversation."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._tokens) + prefix
        except Exception as error:
            # Whatever it raises: the template is not ours.
            raise InvalidArgument("messages", f"the model's chat template refuses them: {error}") from None


def _refuse(message: str) -> None:
    raise TemplateError(message)
