"""Folders that tests read from."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
HELPERS = TESTS / "helpers"
GOLDEN = TESTS / "golden"
REPOSITORY = TESTS.parent
SHARED = REPOSITORY.parent / "shared"  # larger data that need not be there
