"""Strict test environment: 8 fake CPU devices, strict promotion, shapes checked at run time."""

import gc
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the time of these tests: without optimisations it takes a tenth.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # jaxlib 0.11 and later do not know the first, and end the process over it. The second: a
    # program compiled in one piece instead of 32 takes a sixth less.
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")),
)
# For the session, its workers and the processes that they start: compiled programs and shared runs.
# A folder that is given outlives the session: for others with the same libraries (`.ci/run`).
own_folder = None
if "GRAIN_JAX_TESTS" not in os.environ:
    os.environ["GRAIN_JAX_TESTS"] = own_folder = tempfile.mkdtemp(prefix="grain_jax_tests_")
os.makedirs(os.environ["GRAIN_JAX_TESTS"], exist_ok=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["GRAIN_JAX_TESTS"], "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# A command that starts itself again for huge pages imports everything twice.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")


def pytest_configure(config: pytest.Config) -> None:
    """JAX and shape checks where tests run: the process that only deals them out needs neither."""
    if config.getoption("numprocesses", 0) and not hasattr(config, "workerinput"):
        return
    import jax
    from hypothesis import HealthCheck, settings
    from jaxtyping import install_import_hook

    # On a machine that others use too, an example may take a second; that is not a failure.
    settings.register_profile(
        "any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("any_speed")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Modules that say shapes; the types of the others are for mypy, and to check them all would
    # take each process ten seconds. Not the settings: values there are the user's, and `validate`
    # is what refuses them.
    root = Path(__file__).parents[1]
    checked = [
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((root / "grain_jax").rglob("*.py"))
        if "jaxtyping" in path.read_text(encoding="utf-8")
    ]
    install_import_hook(checked, "beartype.beartype")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    note_skipped(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    note_skipped(report)


def note_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Adds what was skipped, a test or a module, and why to the file $GRAIN_JAX_SKIPPED.

    `.ci/run` runs these again where more is installed, so that nothing is skipped everywhere.
    """
    file = os.environ.get("GRAIN_JAX_SKIPPED")
    if file and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        with open(file, "a", encoding="utf-8") as noted:
            noted.write(f"{report.nodeid}\t{' '.join(reason.split())}\n")


@pytest.fixture(autouse=True)
def own_user_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another has left in the user's cache, or leaves anything there."""
    name = f"user_cache-{uuid.uuid4().hex}"
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join(os.environ["GRAIN_JAX_TESTS"], name))


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `StorageServer` with an empty bucket called "bucket", for this process and those it starts.

    Skips where the extra `gcs` is not installed.
    """
    from storage_server import Bucket, forget_client, shared_server

    server = shared_server()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)  # before gcsfs is imported, which looks then
    for module in ("gcsfs", "google.cloud.storage"):
        pytest.importorskip(module, reason="the extra gcs is not installed")
    server.buckets.clear()
    server.sent.clear()
    server.buckets["bucket"] = Bucket()
    yield server
    server.refuse = lambda method, path: None
    forget_client()


# Where a file is done by one process, those that take longest come first: one of them at the end
# would leave the other processes without work. Any other order gives the same results.
LONGEST_FIRST = (
    "test_train.py",
    "training/test_checkpoint.py",
    "formats/test_pretrained.py",
    "formats/test_pretrained_images.py",
    "formats/test_huggingface.py",
    "formats/test_exported_model.py",
    "models/test_models.py",
    "parallel/test_sharding.py",
    "parallel/test_partition.py",
    "training/test_step.py",
    "evaluate/test_evaluate.py",
    "data/importers/test_every_importer.py",
    "trainer/test_resume.py",  # after what it waits for: the run that test_train makes
    "loading/test_initialize.py",
    "data/test_loader_processes.py",
    "training/test_trainable.py",
    "training/test_objective.py",
    "training/test_optimizer.py",
    "test_older_files.py",
    "test_export.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    ranks = {tests / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it again and again takes long while JAX traces."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    if own_folder is not None:
        shutil.rmtree(own_folder, ignore_errors=True)
