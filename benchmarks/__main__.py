"""Run one part of the benchmarks or a group of them, and write the page of results: `python -m benchmarks PART`."""

import argparse
import importlib
import sys

from benchmarks import results

PARTS = {
    "race": "seconds for one exact meta-gradient, metatrain and other libraries in turn",
    "breakdown": "where the time of a task's meta-gradient goes, and what the floor is",
    "memory": "peak memory against the number of inner steps",
    "long": "error and memory of inner loops of up to 1000 steps",
    "implicit": "peak memory of implicit meta-gradients against the number of inner steps",
    "large": "memory and time by activation checkpointing, and predicted memory against used",
    "precision": "the meta-gradient's error by floating-point precision",
    "episodes": "episodes sampled per second",
    "strokes": "drawings of strokes a second",
    "mixture_sampling": "sampling from a mixture of stores against sampling from one",
    "workers": "training speed by number of workers",
    "driver": "time of the driver's part of a step",
    "overhead": "overhead of tiny shards, with and without partial sums",
    "scale": "efficiency of up to 1,024 workers, simulated with costs measured on one to four local nodes",
    "stopped": "training speed while one of two workers is stopped",
    "search": "searches on objectives with known optima: BOHB, ASHA, random, Ray's Optuna",
    "search_experience": "searches that start from earlier ones, similar or misleading",
    "found": "the best configuration of a search against a shipped one, on the same tasks",
    "startup": "seconds from command to first step, and of metatrain --help",
    "accelerator": "one meta-gradient on a GPU: eager, compiled, CUDA graphs, against a lower bound",
    "tables": "a run that learns tables in context against scikit-learn's classifiers",
    "drawn_tables": "the same on tables drawn from the prior, by number of classes",
    "table_costs": "time and memory of learning a table in context against its rows, and the drawing of tables",
    "all_reduce": "a step through a driver and by all-reduce, by number of parameters",
    "growth": "flat time and memory: 100,000 steps, 10,000 runs, 1,000 trials, 10 million images",
    "minutes": "minutes until an accuracy is reached on Omniglot",
}
"""Modules of this package with `main(argv)`, imported when needed: none requires the libraries of another."""

GROUPS = {
    "all": ("race", "memory", "long", "implicit", "precision", "episodes", "workers", "driver", "overhead", "stopped"),
    "gpu": ("accelerator", "precision", "minutes"),
}


def main(argv: list[str]) -> None:
    """Run a part or a group; arguments after the part belong to the part."""
    listing = "\n".join(f"  {name:19}{text}" for name, text in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"parts:\n{listing}\n  all                the parts for a CPU, with their defaults\n"
        "  gpu                the parts for a GPU\n"
        "  report             only write the page of results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=[*PARTS, *GROUPS, "report"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see PART --help")
    options = parser.parse_args(argv)
    for part in GROUPS.get(options.part, (options.part,)):
        if part != "report":
            importlib.import_module(f"benchmarks.{part}").main(options.arguments)
    results.render()
    print(f"report: {results.folder() / 'README.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
