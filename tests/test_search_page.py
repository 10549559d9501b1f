"""The page about a search: what it says, that it says it safely, and what a browser makes of it."""

import functools
import json
import math
import re
import shlex
from collections.abc import Callable
from html import escape

import pytest

from metatrain import runs
from tests.browsing import PROBE, browse
from tests.report_pages import EVIL, Page
from tests.search_folders import (
    empty_search,
    finished_search,
    hostile_search,
    multi_objective_search,
    population_search,
    run_study,
    spec,
)
from tune.report import write
from tune.report.collect import collect
from tune.report.page import render
from tune.report.tables import MAX_TRIALS
from tune.study import Study

SECTIONS = ["summary", "best", "progress", "rungs", "parallel", "importance", "trials", "configuration", "use"]
NAMES = ("whole", "one", "none", "weighing", "population", "evil")


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> dict[str, runs.Run]:
    """A search of each kind."""
    root = tmp_path_factory.mktemp("searches")
    return {
        "whole": finished_search(root / "whole"),
        "one": finished_search(root / "one", 1),
        "none": empty_search(root / "none"),
        "weighing": multi_objective_search(root / "weighing"),
        "population": population_search(root / "population"),
        "evil": hostile_search(root / "evil"),
    }


@pytest.fixture(scope="module")
def html(homes) -> Callable[[str], str]:
    """Render the page of a search by name, once."""
    return functools.cache(lambda name: render(collect(homes[name])))


def page_of(home: runs.Run) -> Page:
    return Page(render(collect(home)))


def sections(page: Page) -> list[str]:
    return [section["id"] for section in page.all("section")]


def test_the_page_is_written_into_the_folder_or_where_it_is_asked_for(homes, tmp_path):
    out = write(homes["whole"])
    assert out == homes["whole"].path / "report.html"
    assert not list(homes["whole"].path.glob(".report*")), "written aside, then renamed"
    there = write(homes["whole"], tmp_path / "there.html")
    assert there.read_text() == out.read_text(), "the same of the same"
    assert there.stat().st_size < 400_000


@pytest.mark.parametrize("name", NAMES)
def test_every_page_has_its_sections_with_headings_captions_and_words_for_pictures(homes, html, name):
    page = Page(html(name))
    more = {"pareto": ("weighing", "evil"), "population": ("population",), "experience": ("evil",)}
    extra = [section for section, names in more.items() if name in names]
    assert [section for section in sections(page) if section not in extra] == SECTIONS
    assert {section for section in sections(page) if section in more} == set(extra)
    assert {link["href"][1:] for link in page.all("a")} == set(sections(page)) - {"summary"}
    assert len(page.all("h1")) == 1 and len(page.all("h2")) == len(sections(page)) - 1
    for svg in page.all("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden") == "true"
    assert page.all("html") == [{"lang": "en"}]
    assert not page.all("script") and not page.all("link")
    assert not re.search(r'(src|href)="(?!#|data:)', html(name).replace(escape(EVIL), ""))


def test_the_best_configuration_is_there_to_be_copied(homes, html):
    home = homes["whole"]
    page = Page(html("whole"))
    best = collect(home).history.best()
    assert (home.path / "best.yaml").read_text().split() == part_of(html("whole"), "copied").split(), "word by word"
    assert f"metatrain train {home.path}/best.yaml" in page.text
    assert "model.width logint(16, 128)" not in page.text
    width = best.configuration.get("model.width", "absent")
    assert f"model. width {width} logint(16, 128), where model is conv4" in page.text


def part_of(html: str, kind: str) -> str:
    found = re.search(f'<pre class="{kind}">(.*?)</pre>', html, re.S)[1]
    return found.replace("&#39;", "'").replace("&#34;", '"').replace("&amp;", "&")


def test_what_is_to_be_typed_is_exact_for_folders_of_any_name(tmp_path):
    home = finished_search(tmp_path / "a search's", 4)
    typed = [shlex.split(text.replace("&#39;", "'").replace("&#34;", '"')) for text in commands(home)]
    best = collect(home).history.best().number
    assert typed == [
        ["metatrain", "train", f"{home.path}/best.yaml"],
        ["metatrain", "search", "--resume", str(home.path)],
        ["metatrain", "train", f"{home.path}/best.yaml"],
        ["metatrain", "evaluate", f"{home.path}/trials/{best:04}"],
        ["metatrain", "report", str(home.path)],
    ]


def commands(home: runs.Run) -> list[str]:
    return re.findall('<pre class="command">(.*?)</pre>', render(collect(home)), re.S)


def test_a_search_that_runs_is_not_to_be_resumed(tmp_path):
    home = finished_search(tmp_path / "search", 4)
    with runs.lock_run(home), Study(spec(trials=9), home.path / "journal.jsonl") as search:
        search.next_trial()
        page = page_of(home)
        assert "running (pid" in page.text and "1 is running" in page.text
        assert "--resume" not in page.text
    page = page_of(home)
    assert "1 is unfinished" in page.text and "--resume" in page.text


def test_the_table_has_every_trial_and_the_best_first(homes, html):
    for name in ("whole", "weighing", "population"):
        story = collect(homes[name])
        page = html(name)
        table = page[page.index('<table class="trials">') :]
        table = table[: table.index("</table>")]
        numbers = [int(number) for number in re.findall(r'<th scope="row" class="number">(\d+)</th>', table)]
        assert sorted(numbers) == list(range(len(story.history.trials)))
        assert numbers[0] == story.history.best().number
        assert '<tr class="trained"><th scope="row" class="number">' in table
    assert "failed: CUDA out of memory: 3 GiB were asked for" in Page(html("whole")).text
    assert "not finite: nan at step 300" in Page(html("whole")).text


@pytest.mark.slow
def test_of_very_many_trials_the_best_are_shown(tmp_path):
    home = empty_search(tmp_path / "search")
    run_study(home, spec(trials=MAX_TRIALS + 30), lambda trial, budget: trial.number / 1000)
    page = page_of(home)
    assert "The best first; 30 of the last are left out" in page.text
    assert render(collect(home)).count('<td class="status">') == MAX_TRIALS


@pytest.mark.parametrize("value", ["no GPU", math.nan])
def test_a_search_in_which_everything_fails_says_why(tmp_path, value):
    home = empty_search(tmp_path / "search")
    run_study(home, spec(trials=20), lambda trial, budget: value)
    page = page_of(home)
    assert "No trial has a result yet" in page.text
    assert (
        f"5 trials failed, trial 4 last: {'no GPU' if value == 'no GPU' else 'the value became nan at step 100'}"
        in page.text
    )
    assert not page.all("figure")


def test_one_parameter_and_equal_values_are_drawn_too(tmp_path):
    space = {"outer.lr": "loguniform(1e-4, 1e-1)"}
    home = empty_search(tmp_path / "search", space, metric="validation/loss")
    run_study(home, spec(space, 12, metric="validation/loss", mode="min"), lambda trial, budget: 0.25)
    page = page_of(home)
    assert "for the lowest validation loss" in page.text
    assert "Too few trials to say" in page.text, "all values are equal"
    assert len(page.all("figure")) == 6


def test_a_search_with_objectives_shows_its_front(homes, html):
    story = collect(homes["weighing"])
    page = Page(html("weighing"))
    for trial in story.history.front():
        assert f"metatrain train {homes['weighing'].path}/trials/{trial.number:04}/config.yaml" in page.text


def test_a_population_shows_who_copied_whom(homes, html):
    story = collect(homes["population"])
    page = Page(html("population"))
    copies = [trial for trial in story.history.trials if trial.parent is not None]
    assert len(copies) > 1
    assert f"{len(copies)} trials began as copies of others." in page.text
    for trial in copies:
        assert f"begun from trial {trial.parent} at {trial.start} steps" in page.text
    assert f"the best, trial {story.history.best().number}" in page.text


def test_hostile_words_stay_words(html):
    page = html("evil")
    assert "<script" not in page and "<img" not in page and "<b>" not in page and page.count("</style>") == 1
    assert page.count("&lt;script&gt;") > 20


def test_a_journal_with_values_outside_the_space_is_refused(tmp_path):
    home = finished_search(tmp_path / "search", 4)
    journal = home.path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    event = json.loads(lines[1])
    event["configuration"] |= {"model": {"name": "vgg"}, "outer.lr": "fast", "algorithm.inner_lr": -1}
    journal.write_text("\n".join([lines[0], json.dumps(event), *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="trial 0 has values outside its space: restore that file"):
        page_of(home)


@pytest.mark.parametrize(
    "name", [name if name in ("whole", "evil") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_browser_shows_the_page_whole_at_every_width(html, browser, tmp_path, name):
    out = tmp_path / "page.html"
    out.write_text(html(name))
    done = browse(browser, out, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr, "an error, or something that the page's policy refused"
    assert "pwned" not in re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1].split("metatrain search")[1]
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html(name))
    for width in (1280, 400):
        probe = PROBE
        (tmp_path / "probed.html").write_text(probe.format(width=width, page=escape(page)))
        done = browse(browser, tmp_path / "probed.html", tmp_path / "profile", "--dump-dom")
        seen = json.loads(Page(done.stdout).all("html")[0]["data-found"])
        assert seen["asked_for"] == []
        assert seen["wide"] <= seen["window"] == width, "what is wide scrolls by itself"
        assert len(seen["charts"]) == len(Page(page).all("figure"))
        assert not seen["charts"] or min(seen["charts"]) > 300


def test_the_page_prints_and_runs_nothing_without_its_policy(html, browser, tmp_path):
    out, whole = tmp_path / "page.html", tmp_path / "whole.html"
    out.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html("evil")))
    whole.write_text(html("whole"))
    done = browse(browser, out, tmp_path / "profile", "--dump-dom")
    assert "metatrain search" in re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]
    assert "CONSOLE" not in done.stderr
    browse(browser, whole, tmp_path / "profile", f"--print-to-pdf={tmp_path}/a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
