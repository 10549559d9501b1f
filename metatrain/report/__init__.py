"""One page about one or several runs, for a person: `collect` reads a run folder, `figures` draws, `page` writes.

Self-contained HTML: no script, no font and no request; pictures are data: URIs and charts inline SVG.
"""

from metatrain.report.page import record, write

__all__ = ["record", "write"]
