"""The stage `describe`: a caption, the primary subject and its visual features, of each image.

Two questions of one conversation, as in GRAIN's annotation: what the primary subject is, then what
can be seen of it. The second conversation begins with the first, so that a server with a prefix
cache reads each image once.
"""

import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grain_jax.annotation.answers import (
    FEATURES_SCHEMA,
    SUBJECT_SCHEMA,
    AnswerError,
    parse_features,
    parse_subject,
)
from grain_jax.annotation.chat import Answer, Cancelled, ChatModel, Question, RequestFailed
from grain_jax.annotation.connection import CONNECT_SECONDS
from grain_jax.annotation.images import as_jpeg, load_image
from grain_jax.annotation.prompts import Prompts
from grain_jax.data.annotation_rows import Provenance, Row, sampling_text
from grain_jax.data.image_files import SkippedSample

REQUESTS_PER_IMAGE = 2


@dataclass(frozen=True)
class DescribeSettings:
    """What is asked of the model, and how."""

    model: str
    prompts: Prompts
    sampling: dict[str, Any] = field(default_factory=dict)  # temperature, max_tokens, ...
    max_phrases: int = 10
    max_image_side: int = 768  # pixels; larger images are shrunk
    concurrency: int = 32  # images at once, of all endpoints

    def sampling_text(self) -> str:
        """`Provenance.sampling`: all that changes the answers besides model and prompts."""
        own = {"max_phrases": self.max_phrases, "max_image_side": self.max_image_side}
        return sampling_text(self.sampling | own)


class Describe:
    """The stage, an `Annotator`. `open_model` is called once there are images to describe."""

    stage = "describe"

    def __init__(
        self, images: Path, settings: DescribeSettings, open_model: Callable[[], ChatModel]
    ) -> None:
        self._images, self._describe, self._open_model = images, settings, open_model
        self.settings = (settings.model, settings.prompts.hash, settings.sampling_text())

    @property
    def images_ahead(self) -> int:
        """See `Annotator.images_ahead`: a second one for each that is asked about."""
        return 2 * self._describe.concurrency

    def input_hash(self, image: str) -> str | None:
        """None: no stage comes before this one."""
        return None

    def rows(self, images: Iterator[str], /) -> Generator[Row, None, None]:
        """Rows in the order in which the model is done with the images."""
        asking = _Asking(self._images, self._describe, self._open_model(), images)
        try:
            yield from asking.rows()
        finally:
            asking.stop()

    def measured(self) -> dict[str, float]:
        """See `Annotator.measured`: none, as tokens are counted by image."""
        return {}


class _Asking:
    """The threads that hold the conversations, so that writing a row holds up no request."""

    def __init__(
        self, folder: Path, settings: DescribeSettings, chat: ChatModel, images: Iterator[str]
    ) -> None:
        self._folder, self._settings, self._chat, self._images = folder, settings, chat, images
        self._next = threading.Lock()  # of the images
        self._preparing = threading.Semaphore(os.cpu_count() or 1)  # threads that decode images
        self._found: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._ask_some, name=f"describe-{number}", daemon=True)
            for number in range(settings.concurrency)
        ]

    def rows(self) -> Iterator[Row]:
        """Raises what ended a thread, after the rows that were ready before."""
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        while running:
            found = self._found.get()
            if isinstance(found, Row):
                yield found
            elif found is None:
                running -= 1
            else:
                raise found

    def stop(self) -> None:
        """Ends the conversations that are still going on."""
        self._stopped = True
        self._chat.cancel()
        deadline = time.monotonic() + CONNECT_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
        self._chat.close()

    def _ask_some(self) -> None:
        try:
            while not self._stopped:
                with self._next:
                    image = next(self._images, None)
                if image is None:
                    break
                self._found.put(self._row(image))
        except Cancelled:
            pass
        except BaseException as error:
            self._found.put(error)
        self._found.put(None)

    def _row(self, image: str) -> Row:
        settings, outputs = self._settings, dict[str, Any]()
        image_hash = error = None
        try:
            with self._preparing:
                data, image_hash = self._load(image)
            _converse(self._chat, settings, data, outputs)
        except SkippedSample as skipped:
            error = f"{skipped.reason}: {skipped}"
        except (AnswerError, RequestFailed) as failed:
            error = str(failed)
        origin = Provenance(settings.model, settings.prompts.hash, settings.sampling_text())
        return Row(image, image_hash, origin, outputs, error)

    def _load(self, image: str) -> tuple[bytes, str]:
        loaded = load_image(image, self._folder)
        return as_jpeg(loaded, self._settings.max_image_side), loaded.image_hash


def _converse(
    chat: ChatModel, settings: DescribeSettings, image: bytes, outputs: dict[str, Any]
) -> None:
    """Asks both questions; `outputs` holds what was answered, also where an error is raised."""
    prompts = settings.prompts
    messages = [{"role": "system", "content": prompts.system}] if prompts.system else []
    messages.append(Question(prompts.subject, image).message())
    answer = chat.ask(messages, schema=SUBJECT_SCHEMA, schema_name="subject")
    _count(answer, outputs)
    subject = parse_subject(answer.text)
    outputs |= {"captions": [subject.caption], "primary_subject": subject.primary_subject}
    said = {"caption": subject.caption, "primary_subject": subject.primary_subject}
    messages.append({"role": "assistant", "content": json.dumps(said, ensure_ascii=False)})
    question = prompts.ask_features(subject.primary_subject, settings.max_phrases)
    messages.append(Question(question).message())
    answer = chat.ask(messages, schema=FEATURES_SCHEMA, schema_name="features")
    _count(answer, outputs)
    phrases = parse_features(
        answer.text, max_phrases=settings.max_phrases, finished=answer.finished
    )
    outputs["descriptions"] = list(phrases)


def _count(answer: Answer, outputs: dict[str, Any]) -> None:
    counts = Counter[str](
        prompt_tokens=answer.prompt_tokens or 0, completion_tokens=answer.completion_tokens or 0
    )
    if answer.prompt_tokens is not None or answer.completion_tokens is not None:
        for name, count in counts.items():
            outputs[name] = outputs.get(name, 0) + count
