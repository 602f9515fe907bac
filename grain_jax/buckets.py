"""Folders in buckets of Google Cloud Storage, "gs://bucket/name", and what can be wrong with them.

Checkpoints are written there by Orbax and TensorStore, which have their own drivers. Small files
are read and written whole by Google's client (`read`, `write`): a bucket appends to no object.
Both come with the extra `gcs`, and are imported where a bucket is used.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from grain_jax.extras import how_to_install

PREFIX = "gs://"
RETRY_SECONDS = 300.0  # that a request is repeated for where the network or the service fails
FIRST_SECONDS = 15.0  # likewise for the first request, which finds out whether there is a bucket


class Unreachable(OSError):
    """The network or the service fails; the same may work later."""


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether it is an address in a bucket rather than a path of this machine."""
    return os.fspath(path).startswith(PREFIX)


def folder(text: str) -> Path:
    """The folder of an address: etils's path, which has the methods of `Path` that are used here.

    Raises ValueError for an address without a folder in its bucket, and where the extra is not
    installed.
    """
    bucket, _, name = text.removeprefix(PREFIX).rstrip("/").partition("/")
    if not bucket or not name or "//" in f"/{name}":
        raise ValueError(
            f"{text!r} does not name a folder in a bucket; expected gs://BUCKET/FOLDER, as in "
            "gs://my-bucket/runs/first."
        )
    return cast(Path, _epath()(f"{PREFIX}{bucket}/{name}"))


def split(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The bucket and the name of an address: ("bucket", "runs/first")."""
    bucket, _, name = os.fspath(path).removeprefix(PREFIX).partition("/")
    return bucket, name


@functools.cache
def _epath() -> Any:
    """The constructor of etils's paths, which read buckets by gcsfs.

    By no other library, as nothing else is tested here, and without a cache of listings: another
    process may write at any time.
    """
    os.environ.setdefault("EPATH_USE_TF", "0")
    try:
        import fsspec
        import gcsfs  # noqa: F401  # without it etils fails late, and in other words
        import google.cloud.storage  # noqa: F401
        from etils import epath
    except ImportError as error:
        raise ValueError(
            f"gs://... takes gcsfs, which is not installed ({error}): {how_to_install('gcs')}"
        ) from error
    for protocol in ("gcs", "gs"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath.Path


@functools.cache
def client() -> Any:
    """Google's client, one a process; its account is the environment's. Raises ValueError."""
    _epath()
    import google.auth.exceptions
    from google.cloud import storage

    try:
        return storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT"))
    except google.auth.exceptions.GoogleAuthError as error:
        raise ValueError(_no_account(error)) from error


def retry(seconds: float) -> Any:
    """Repeats what fails by the network or the service, for at most `seconds`."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(seconds)


def blob(path: str | os.PathLike[str]) -> Any:
    """The object of an address, which need not exist."""
    bucket, name = split(path)
    return client().bucket(bucket).blob(name)


def check(path: str | os.PathLike[str]) -> None:
    """Raises ValueError where the bucket does not exist or may not be read; `Unreachable` where it
    cannot be reached. One request.
    """
    bucket, name = split(path)
    with explained(path):
        listed = client().list_blobs(
            bucket, prefix=f"{name}/", max_results=1, timeout=10, retry=retry(FIRST_SECONDS)
        )
        next(iter(listed), None)


def files(path: str | os.PathLike[str]) -> list[str]:
    """Names of the files that lie in a folder itself, not in its folders. As `check`."""
    bucket, name = split(path)
    with explained(path):
        listed = client().list_blobs(
            bucket, prefix=f"{name}/", delimiter="/", timeout=30, retry=retry(RETRY_SECONDS)
        )
        names = [one.name.removeprefix(f"{name}/") for one in listed]
    return [one for one in names if one]


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. Raises FileNotFoundError without it, else as `check`."""
    import google.api_core.exceptions

    with explained(path):
        try:
            return blob(path).download_as_bytes(timeout=60, retry=retry(RETRY_SECONDS))
        except google.api_core.exceptions.NotFound as error:
            if "bucket does not exist" in str(error):
                raise
            raise FileNotFoundError(f"There is no {os.fspath(path)}.") from error


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole: a reader sees the one before or this one. As `check`."""
    with explained(path):
        blob(path).upload_from_string(
            data, content_type=_content_type(path), timeout=60, retry=retry(RETRY_SECONDS)
        )


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file, where there is one. As `check`."""
    import google.api_core.exceptions

    with explained(path), contextlib.suppress(google.api_core.exceptions.NotFound):
        blob(path).delete(timeout=30, retry=retry(RETRY_SECONDS))


def _content_type(path: str | os.PathLike[str]) -> str:
    """So that a browser shows the file."""
    kinds = {".md": "text/markdown", ".json": "application/json", ".png": "image/png"}
    kinds |= {".jsonl": "text/plain"}
    return kinds.get(os.path.splitext(os.fspath(path))[1], "application/octet-stream")


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises what is wrong with a bucket as one sentence, where it is known.

    ValueError for what the user must change, `Unreachable` for a network or service that fails,
    OSError for what it does not do for another reason.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        if (known := trouble(error, path)) is None:
            raise
        raise known from error


def trouble(error: BaseException, path: str | os.PathLike[str]) -> ValueError | OSError | None:
    """What an error of Google's client says, for a person; None for an unknown one."""
    import google.api_core.exceptions as cloud
    import google.auth.exceptions
    import requests

    bucket, _ = split(path)
    if isinstance(error, cloud.RetryError) and error.cause is not None:
        known = trouble(error.cause, path)
        return known or Unreachable(_refusal(error.cause, path))
    if isinstance(error, cloud.NotFound):
        return ValueError(
            f"There is no bucket {bucket!r}, in {os.fspath(path)}; make it (`gcloud storage "
            f"buckets create gs://{bucket}`), or name another."
        )
    if isinstance(error, cloud.Forbidden | cloud.Unauthorized):
        return ValueError(
            f"The account of this process has no access to {os.fspath(path)} "
            f"({_reason(error)}); give it roles/storage.objectUser on the bucket {bucket!r}, or "
            "log in with another (`gcloud auth application-default login`)."
        )
    if isinstance(error, google.auth.exceptions.TransportError | requests.RequestException):
        return Unreachable(
            f"Cloud Storage cannot be reached for {os.fspath(path)} ({_reason(error)}); see to the "
            "network, and give the same command again."
        )
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return ValueError(_no_account(error))
    if isinstance(error, cloud.ServerError | cloud.TooManyRequests | cloud.RetryError):
        return Unreachable(_refusal(error, path))
    if isinstance(error, cloud.GoogleAPICallError):
        return OSError(_refusal(error, path))
    return None


def failed_for_now(error: BaseException) -> bool:
    """Whether a driver of checkpoints says that the network or the service failed.

    TensorStore begins its texts with the status of gRPC; gcsfs's clients raise these.
    """
    if isinstance(error, Unreachable | ConnectionError | TimeoutError):
        return True
    if type(error).__module__.partition(".")[0] == "aiohttp":
        return True
    return re.match(r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b", str(error)) is not None


def _refusal(error: BaseException, path: str | os.PathLike[str]) -> str:
    return f"Cloud Storage does not do what it is asked to for {os.fspath(path)} ({_reason(error)})"


def _no_account(error: Exception) -> str:
    return (
        f"Cloud Storage takes an account, and this process has none ({_reason(error)}): run "
        "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS."
    )


def _reason(error: BaseException) -> str:
    """The first line of an error, without the long addresses of requests."""
    lines = str(getattr(error, "message", "") or error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
