"""What a command printed, without the frame that tyro puts around a mistake."""


def plain(printed: str) -> str:
    """In one line, where the frame broke it into several."""
    return " ".join(printed.replace("│", " ").split())
