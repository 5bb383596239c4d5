"""The one exception type that carries a sentence meant for the user."""


class UserError(ValueError):
    """A mistake in what the user gave: an option, a file, a genome.

    The message is one clear sentence: what was wrong, the value got, what is allowed and what
    to do. Command lines print it alone, without a traceback, and end with exit code 2.
    """


def one_line(error: BaseException) -> str:
    """Return the message of any exception on a single line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
