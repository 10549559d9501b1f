"""Decode text files, and word lists and counts for messages."""

from collections.abc import Sequence


def decode_text(name: str, content: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark. ValueError, which names the file: it is in another encoding."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8 ({error.reason}): save it as UTF-8") from error


def enumerate_few(names: Sequence[str], most: int = 5) -> str:
    """Return "a, b, c and 12 more": at most `most` names, each cut to fit a line."""
    shown = ", ".join(name if len(name) <= 100 else f"{name[:100]}…" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def count_of(number: int, what: str, plural: str = "") -> str:
    """Return "1 class", "12 classes". plural: `what` and an s by default."""
    return f"{number:,} {what if number == 1 else plural or f'{what}s'}"


def part_of(split: str) -> str:
    """Return the section of a configuration that has the size of a split's episodes."""
    return "tasks.train" if split == "train" else "tasks.test"
