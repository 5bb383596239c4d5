"""The one exception type that carries a sentence meant for the user."""

import numpy as np

MAX_MESSAGE = 1000


class UserError(ValueError):
    """A mistake in what the user gave: an option, a file, a genome.

    The message is one clear sentence: what was wrong, the value got, what is allowed and what
    to do. Command lines print it alone, without a traceback, and end with exit code 2.

    Args:
        message: The sentence; what a file or an option put into it may have any length and any
            characters, so that it is brought to one line of limited length.
    """

    def __init__(self, message: str) -> None:
        text = " ".join(message.splitlines())
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
        super().__init__(text)


def brief(value: object) -> str:
    """Return what a sentence shows of a value out of a file: itself if it is simple.

    Anything else may print as a text without end, since parts of it can be shared.
    """
    if isinstance(value, str | bytes):
        return repr(value[:100])
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a huge number"
    if value is None or isinstance(value, int | float | np.number):
        return str(value)
    return f"a {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """Return the message of any exception on a single line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
