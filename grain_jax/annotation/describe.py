"""The stage `describe`: a caption, the primary subject and its visual features, of each image.

Two questions of one conversation, as in GRAIN's annotation: what the primary subject is, then what
can be seen of it. The second conversation begins with the first, so that a server with a prefix
cache reads each image once.
"""

import asyncio
import contextlib
import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from grain_jax.annotation.chat import Answer, ChatModel, Question, RequestFailed
from grain_jax.annotation.images import jpeg, load_image
from grain_jax.annotation.prompts import Prompts
from grain_jax.data.annotation_rows import Provenance, Row, sampling_text
from grain_jax.data.checks import SkippedSample

THREADS = 4  # that read and shrink images
REQUESTS_PER_IMAGE = 2


@dataclass(frozen=True)
class DescribeSettings:
    """What is asked of the model, and how."""

    model: str
    prompts: Prompts
    sampling: dict[str, Any] = field(default_factory=dict)  # temperature, max_tokens, ...
    max_phrases: int = 10
    max_image_side: int = 768  # pixels; larger images are shrunk
    concurrency: int = 32  # images at once

    def sampling_text(self) -> str:
        """`Provenance.sampling`: all that changes the answers besides model and prompts."""
        own = {"max_phrases": self.max_phrases, "max_image_side": self.max_image_side}
        return sampling_text(self.sampling | own)


class Describe:
    """The stage, an `Annotator`. `open_model` is called in the event loop that asks the model."""

    stage = "describe"

    def __init__(
        self, images: Path, settings: DescribeSettings, open_model: Callable[[], ChatModel]
    ) -> None:
        self._images, self._describe, self._open_model = images, settings, open_model
        self.settings = (settings.model, settings.prompts.hash, settings.sampling_text())

    def input_hash(self, image: str) -> str | None:
        """None: no stage comes before this one."""
        return None

    def rows(self, images: Iterator[str], /) -> Generator[Row, None, None]:
        """Rows in the order in which the model is done with the images."""
        asking = _Asking(self._images, self._describe, self._open_model, images)
        asking.start()
        try:
            while (row := asking.rows.get()) is not None:
                yield row
        finally:
            asking.stop()
        if asking.error is not None:
            raise asking.error


class _Asking(threading.Thread):
    """The event loop with all conversations, so that writing a row does not hold up a request."""

    def __init__(
        self,
        folder: Path,
        settings: DescribeSettings,
        open_model: Callable[[], ChatModel],
        images: Iterator[str],
    ) -> None:
        super().__init__(name="describe", daemon=True)
        self.rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()  # None: no more
        self.error: BaseException | None = None
        self._folder, self._settings, self._open_model = folder, settings, open_model
        self._images = images
        self._stop: Callable[[], object] = lambda: None
        self._started = threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._ask_all())
        except asyncio.CancelledError:  # by `stop`
            pass
        except BaseExceptionGroup as group:
            self.error = group.exceptions[0]
        except BaseException as error:
            self.error = error
        finally:
            self._started.set()
            self.rows.put(None)

    def stop(self) -> None:
        """Ends conversations that are still going on."""
        self._started.wait()
        self._stop()
        self.join()

    async def _ask_all(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(task.cancel)

        self._stop = stop
        self._started.set()
        chat = self._open_model()
        try:
            with ThreadPoolExecutor(THREADS) as threads:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._settings.concurrency):
                        group.create_task(self._ask_some(chat, threads))
        finally:
            await chat.close()

    async def _ask_some(self, chat: ChatModel, threads: ThreadPoolExecutor) -> None:
        for image in self._images:  # one iterator for all tasks
            self.rows.put(await self._row(chat, threads, image))

    async def _row(self, chat: ChatModel, threads: ThreadPoolExecutor, image: str) -> Row:
        settings, loop = self._settings, asyncio.get_running_loop()
        outputs: dict[str, Any] = {}
        image_hash = error = None
        try:
            data, image_hash = await loop.run_in_executor(threads, self._load, image)
            await _converse(chat, settings, data, outputs)
        except SkippedSample as skipped:
            error = f"{skipped.reason}: {skipped}"
        except (AnswerError, RequestFailed) as failed:
            error = str(failed)
        origin = Provenance(settings.model, settings.prompts.hash, settings.sampling_text())
        return Row(image, image_hash, origin, outputs, error)

    def _load(self, image: str) -> tuple[bytes, str]:
        loaded = load_image(image, self._folder)
        return jpeg(loaded.pixels, self._settings.max_image_side), loaded.image_hash


async def _converse(
    chat: ChatModel, settings: DescribeSettings, image: bytes, outputs: dict[str, Any]
) -> None:
    """Asks both questions; `outputs` holds what was answered, also where an error is raised."""
    prompts = settings.prompts
    messages = [{"role": "system", "content": prompts.system}] if prompts.system else []
    messages.append(Question(prompts.subject, image).message())
    answer = await chat.ask(messages, schema=SUBJECT_SCHEMA, schema_name="subject")
    _count(answer, outputs)
    subject = parse_subject(answer.text)
    outputs |= {"captions": [subject.caption], "primary_subject": subject.primary_subject}
    said = {"caption": subject.caption, "primary_subject": subject.primary_subject}
    messages.append({"role": "assistant", "content": json.dumps(said, ensure_ascii=False)})
    question = prompts.ask_features(subject.primary_subject, settings.max_phrases)
    messages.append(Question(question).message())
    answer = await chat.ask(messages, schema=FEATURES_SCHEMA, schema_name="features")
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
