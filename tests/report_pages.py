"""What the tests of reports share: a page taken apart, and a run that means harm."""

import json
from html.parser import HTMLParser
from pathlib import Path

import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from metatrain import runs
from metatrain.report.collect import collect
from metatrain.report.page import render

SECTIONS = [
    *("summary", "results", "training", "adaptation", "calibration", "task"),
    *("configuration", "environment", "timing", "use"),
]
EVIL = "<script>document.title='pwned'</script>\"'&amp;<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """What of a page the tests ask for: its tags with their attributes, and its text without the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._text: list[str] = []
        self._inside: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self._text).replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        self._inside.pop()

    def handle_data(self, data):
        if "style" not in self._inside[-1:]:
            self._text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*paths: Path) -> Page:
    return Page(render([collect(runs.open_run(path)) for path in paths]))


def edit(path: Path, change) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def evil(path: Path) -> Path:
    """A run that would like to run a script wherever it may write a word."""
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["runs"]["name"] = config["algorithm"]["name"] = config["tasks"]["name"] = EVIL
    config[EVIL] = EVIL
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    edit(path / "run.json", lambda found: found.update(run_id=EVIL, created=EVIL))
    edit(path / "environment.json", lambda found: found.update(command=[EVIL], platform=EVIL))
    edit(path / "evaluations" / "test.json", lambda found: found["test"].update(learner=EVIL))
    (path / "evaluations" / "test.json").rename(path / "evaluations" / "test-<script>.json")
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "time": 0.0, "event": EVIL, "text": EVIL}) + "\n")
    said = PngInfo()
    said.add_itxt("Description", EVIL)
    Image.new("RGB", (9, 9)).save(path / "plots" / "test-<script>-episode.png", pnginfo=said)
    return path
