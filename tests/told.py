"""What an error message must be like."""

import re


def told(error, words):
    """It is a line or two, without a break, and holds each of the words."""
    message = str(error)
    assert "\n" not in message and len(message) < 400
    for word in words:
        start = r"\b" if word[0].isalnum() else ""
        assert re.search(start + re.escape(word), message), f"{word!r} is not in {message!r}"
