"""Runs and searches with one damaged or forged file: success or an error of one line, and never a traceback."""

from pathlib import Path

import pytest
import yaml

from metatrain.cli.training import train_command
from tests.fuzz_runs import SINUSOID, try_case

SEARCH = Path(__file__).parent / "fixtures" / "v0.1" / "search"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on sinusoids."""
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "c.yaml").write_text(yaml.safe_dump(SINUSOID | {"runs": {"root": str(folder / "runs")}}))
    train_command(str(folder / "c.yaml"), [], None, False, False)
    return next((folder / "runs").iterdir())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))


def try_cases(whole: Path, folder: Path, seeds: range) -> None:
    for seed in seeds:
        try:
            try_case(whole, folder, seed)
        except BaseException as error:
            error.add_note(f"seed {seed} of {whole}")
            raise


def test_damaged_runs_give_one_line(finished: Path, tmp_path: Path) -> None:
    try_cases(finished, tmp_path, range(20))


def test_damaged_searches_give_one_line(tmp_path: Path) -> None:
    try_cases(SEARCH, tmp_path, range(4))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_damaged_runs_give_one_line(finished: Path, tmp_path: Path, part: int) -> None:
    try_cases(finished, tmp_path, range(1000 + 170 * part, 1000 + 170 * (part + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_many_damaged_searches_give_one_line(tmp_path: Path, part: int) -> None:
    try_cases(SEARCH, tmp_path, range(1000 + 100 * part, 1000 + 100 * (part + 1)))
