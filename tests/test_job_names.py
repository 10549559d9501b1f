"""The id of a submitted job, from the name that is given or made."""

import pytest

from metatrain.cli.submission import _make_id, _name_job


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", f"configs/{'long' * 40}.yaml"],
        ["train", "--resume", f"runs/20261121-101112-{'n' * 100}-0a1b2c/"],
        ["train", "Übung.yaml"],
        ["evaluate", "runs/20261121-101112-mine.2-0a1b2c"],
    ],
)
def test_a_name_made_from_what_is_run_always_begins_an_id(arguments):
    assert len(_make_id(_name_job(arguments))) <= 61 + len("-20261121-101112-0a1b")


@pytest.mark.parametrize("name", ["", "-x", "x" * 62, "a b"])
def test_a_name_that_cannot_begin_an_id_is_refused(name):
    with pytest.raises(ValueError, match=r"^--name: .* cannot begin an id: use"):
        _make_id(name)
