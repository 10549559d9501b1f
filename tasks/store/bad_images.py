"""Name images that do not decode, each with its reason, in one line."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_SHOWN = 5
"""Images that do not decode which a message names; all are listed in a file."""


class BadImage(NamedTuple):
    """An image that does not decode: its row, its file and why."""

    row: int
    name: str
    reason: str


def explain_bad_images(where: str, bad: Sequence[BadImage], kind: str, report: Path | None, skip: str = "") -> str:
    """Return one line that names the bad images, their reasons and the remedy. skip: a further remedy.

    report: a file in which all are listed if the line does not show them.
    """
    remedy = f"replace {'it by a complete copy' if len(bad) == 1 else 'them by complete copies'}{skip}"
    if len(bad) == 1:
        return f"{where}{bad[0].name} does not decode as {kind} ({bad[0].reason}): {remedy}"
    shown = ", ".join(f"{image.name} ({image.reason})" for image in bad[:_SHOWN])
    more = ""
    if len(bad) > _SHOWN:
        more = f" and {len(bad) - _SHOWN:,} more"
        if report is not None:
            with suppress(OSError):
                report.parent.mkdir(parents=True, exist_ok=True)
                report.write_text("".join(f"{image.name}\t{image.reason}\n" for image in bad), encoding="utf-8")
                more += f" (all of them in {report})"
    return f"{where}{len(bad):,} files do not decode as {kind}: {shown}{more}: {remedy}"
