"""`python -m benchmarks PART ...`: one part of the benchmarks, or all of them, or the page over what is there."""

import argparse
import importlib
import sys

from benchmarks import results

PARTS = {
    "race": "seconds for one exact meta-gradient, ours and other libraries' in turn",
    "memory": "peak memory against the number of inner steps",
    "long": "a thousand inner steps: exact, and in how much memory",
    "precision": "the meta-gradient's error by precision",
    "episodes": "episodes sampled a second",
    "workers": "speed against the number of workers",
    "driver": "what the driver costs beside the computation",
    "overhead": "what tiny shards cost, with partial sums and without",
    "stopped": "one of two workers stopped, and going on",
    "search": "searches on objectives whose optima are known: BOHB, ASHA, random, Ray's Optuna",
    "search_experience": "searches with the experience of earlier ones, alike and misleading",
    "found": "what a search has found against a shipped configuration, on the same tasks",
    "accelerator": "one meta-gradient on a GPU: eager, compiled, CUDA graphs, against the floor",
    "minutes": "minutes to an accuracy on Omniglot",
}
"""Each is a module of this package with `main(argv)`, imported when it is asked for: none needs another's libraries."""

GROUPS = {
    "all": ("race", "memory", "long", "precision", "episodes", "workers", "driver", "overhead", "stopped"),
    "gpu": ("accelerator", "precision", "minutes"),
}


def main(argv: list[str]) -> None:
    """Runs what is asked for; arguments after the part are the part's own."""
    told = "\n".join(f"  {name:19}{text}" for name, text in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"parts:\n{told}\n  all                the parts of a CPU, in this order, with their defaults\n"
        "  gpu                the parts of a GPU\n"
        "  report             the page over what was measured",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=[*PARTS, *GROUPS, "report"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="PART --help tells them")
    asked = parser.parse_args(argv)
    for part in GROUPS.get(asked.part, (asked.part,)):
        if part != "report":
            importlib.import_module(f"benchmarks.{part}").main(asked.arguments)
    results.render()
    print(f"report: {results.folder() / 'README.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
