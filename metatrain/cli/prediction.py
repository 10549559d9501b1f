"""Implement `metatrain predict`."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metatrain.inference import AdaptedLearner, load
from metatrain.user_folders import FilePrediction, describe_predictions, read_queries, read_support
from metatrain.validation import require
from tasks.io.atomic import atomic_write
from tasks.sources.labelled_folder import FolderImages
from tasks.text import count_of


def predict_command(
    run_dir: str,
    support: str,
    query: str,
    table: Path | None,
    out: Path | None,
    normalization: str | None,
    as_json: bool,
    trust: bool,
) -> None:
    """Adapt the run at `run_dir` to the folder `support`, predict the images of the folder `query` and print them."""
    _check_file("--csv", table, ".csv")
    _check_file("--out", out, ".png")
    learner = load(run_dir, normalization, trust)  # type: ignore[arg-type]
    shown = read_support(learner.source, learner.model.spec, support)
    asked = read_queries(learner.source, learner.model.spec, query)
    adapted = learner.adapt((shown.images, shown.folders))
    labels = list(map(str, adapted.labels or ()))
    found = describe_predictions(asked.files, labels, adapted.probabilities(asked.images))
    for line in format_predictions(found):
        print(line)
    print(summary := _summarize(adapted, shown, found))
    for note in _notes(shown, asked):
        print(note, file=sys.stderr)
    if table is not None:
        _write_csv(table, labels, found)
    if out is not None:
        _draw(out, learner.source, asked, found, summary)
    if as_json:
        print(json.dumps(_as_plain(run_dir, adapted, shown, found)))


def format_predictions(predictions: Sequence[FilePrediction]) -> Iterator[str]:
    """Yield a line for each file: its name, the class, its probability, and the class of its folder where one is."""
    known = any(one.truth is not None for one in predictions)
    rows = [("file", "class", "probability", "folder" if known else "")]
    for one in predictions:
        mark = "" if one.truth is None else one.truth if one.truth == one.label else f"{one.truth} (wrong)"
        rows.append((one.file, one.label, f"{100 * one.probability:.1f} %", mark))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for file, label, probability, mark in rows:
        yield f"{file:<{widths[0]}}  {label:<{widths[1]}}  {probability:>{widths[2]}}  {mark}".rstrip()


def _summarize(adapted: AdaptedLearner, shown: FolderImages, found: Sequence[FilePrediction]) -> str:
    kind = "no batch statistics" if adapted.normalization == "none" else adapted.normalization
    labels = adapted.labels or ()
    text = f"{count_of(len(found), 'image')}, {len(labels)} classes from {count_of(len(shown.files), 'image')} ({kind})"
    known = [one for one in found if one.truth is not None]
    right = sum(one.truth == one.label for one in known)
    return f"{text}: {right} of {len(known)} right ({100 * right / len(known):.1f} %)" if known else text


def _notes(shown: FolderImages, asked: FolderImages) -> Iterator[str]:
    """Yield what was left out, and how many queries were in the support set already."""
    for name, images in (("--support", shown), ("--query", asked)):
        if images.left_out:
            yield f"{name}: left out {images.left_out}"
    seen = {image.tobytes() for image in shown.images}
    again = sum(image.tobytes() in seen for image in asked.images)
    if again:
        yield f"{count_of(again, 'image')} of --query are in --support too, so that they are no test of the learner"


def _write_csv(path: Path, labels: Sequence[str], found: Sequence[FilePrediction]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "class", "probability", "folder", *(f"p({label})" for label in labels)])
    for one in found:
        writer.writerow([one.file, one.label, one.probability, one.truth or "", *one.probabilities.values()])
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def _draw(path: Path, source: Any, asked: FolderImages, found: Sequence[FilePrediction], summary: str) -> None:
    from metatrain.report.plots import save_png
    from metatrain.report.prediction_figure import draw_predictions

    is_ink = getattr(source, "decodes_ink", False)
    save_png(draw_predictions(asked.images, found, summary, is_ink), path)


def _as_plain(
    run_dir: str, adapted: AdaptedLearner, shown: FolderImages, found: Sequence[FilePrediction]
) -> dict[str, Any]:
    known = [one for one in found if one.truth is not None]
    right = sum(one.truth == one.label for one in known)
    return {
        "run_dir": run_dir,
        "normalization": adapted.normalization,
        "classes": {label: shown.folders.count(label) for label in adapted.labels or ()},
        "predictions": [one._asdict() for one in found],
        "labelled": len(known),
        "right": right,
        "accuracy": right / len(known) if known else None,
    }


def _check_file(option: str, path: Path | None, suffix: str) -> None:
    if path is not None:
        require(path.suffix.lower() == suffix, f"{option}: '{path}': use a name that ends in {suffix}")
        require(path.parent.is_dir(), f"{option}: there is no folder '{path.parent}': make it, or write to another")
        require(not path.is_dir(), f"{option}: '{path}' is a folder: use another name")
