"""Models as other evaluation harnesses expect them, so that our metrics can be checked."""
