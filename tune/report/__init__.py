"""One page about one search, for a person: `collect` reads its folder, `analysis` and `importance` conclude,
`figures` draws, `page` writes.

Of the family of `metatrain.report`, whose axes, styles and promises it shares: no script, no font and no request.
"""

from tune.report.page import write

__all__ = ["write"]
