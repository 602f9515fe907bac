"""A multimodal model that is asked: the protocol of the backends of `describe`."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


class RequestFailed(Exception):
    """One request failed for good; `reason` is the line of the report that counts it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class Cancelled(Exception):
    """The run ends before the answer has come."""


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    finished: bool = True  # False where the limit of tokens cut it off
    prompt_tokens: int | None = None  # None where the backend does not count them
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Question:
    """One message of a user: a text, and an image as JPEG before it."""

    text: str
    jpeg: bytes | None = None

    def message(self) -> dict[str, Any]:
        """The message as the OpenAI protocol has it, the image as a data URL."""
        if self.jpeg is None:
            return {"role": "user", "content": self.text}
        url = "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")
        image = {"type": "image_url", "image_url": {"url": url}}
        return {"role": "user", "content": [image, {"type": "text", "text": self.text}]}


@runtime_checkable
class ChatModel(Protocol):
    """A model that answers a conversation. Used by many threads at once."""

    name: str  # for the provenance of rows

    def ask(
        self, messages: Sequence[dict[str, Any]], *, schema: dict[str, Any], schema_name: str
    ) -> Answer:
        """The answer to the last of `messages` (as the OpenAI protocol has them), which should be
        JSON of the schema, and may be anything.

        Raises `RequestFailed` where this request failed, `StageStopped` where all would, and
        `Cancelled`.
        """
        ...

    def cancel(self) -> None:
        """Makes calls of `ask` that other threads wait for raise `Cancelled`, and later ones."""
        ...

    def close(self) -> None:
        """Frees what the model holds; `ask` must not follow."""
        ...
