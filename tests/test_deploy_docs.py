"""docs/cluster.md: its commands, against the files and the code that they name."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metatrain.config.load import load_config
from tests import deployments as d

PAGE = (d.ROOT / "docs" / "cluster.md").read_text()
SECTIONS = dict(zip(*[iter(re.split(r"^##+ (.+)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))
"""By their headings."""


def commands(section: str) -> list[str]:
    """What its blocks for the shell hold, a command each, its lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("section", ["Kubernetes", "AWS"])
def test_a_submitted_run_waits_until_a_node_has_come_with_its_image(section: str) -> None:
    [submitted] = [line for line in commands(section) if line.startswith("metatrain submit")]
    words = shlex.split(submitted, comments=True)
    settings = load_config(d.ROOT / "configs" / "omniglot-maml-5w1s.yaml", words[words.index("train") + 2 :])
    assert settings.executor.deadline >= 1800
    assert settings.executor.min_workers < settings.executor.max_workers, "a number that is not there is refused"


@pytest.mark.parametrize("section", ["Machines of your own", "Kubernetes", "AWS"])
def test_each_way_says_which_driver_gpus_need(section: str) -> None:
    assert re.search(r"driver[^.]*\b580\b", SECTIONS[section])


def test_kubernetes_needs_what_offers_its_gpus() -> None:
    asked = {key for at in d.containers().values() for key in at["resources"]["limits"] if "/" in key}
    assert asked == {"nvidia.com/gpu"}
    assert "device plugin" in SECTIONS["Kubernetes"] and f"`{asked.pop()}`" in SECTIONS["Kubernetes"]


def test_the_machines_image_is_the_one_that_the_launcher_file_describes() -> None:
    pattern = r"/aws/service/deeplearning/ami/\S+/ami-id"
    text = (d.AWS / "cluster.yaml").read_text()
    [named] = set(re.findall(pattern, PAGE)) & set(re.findall(pattern, text))
    assert "ubuntu-24.04" in named and yaml.safe_load(text)["auth"]["ssh_user"] == "ubuntu"
    [filled] = [line for line in commands("AWS") if line.startswith("sed ")]
    [pattern] = re.findall(r"s/(.+?)/", filled)
    basic = pattern.replace("\\{", "{").replace("\\}", "}")
    images = [at["node_config"]["ImageId"] for at in yaml.safe_load(text)["available_node_types"].values()]
    assert images and all(re.fullmatch(basic, image) for image in images), "none is left over"


def test_what_there_is_to_change_is_found() -> None:
    [search] = [line for line in commands("Kubernetes") if line.startswith("grep ")]
    pattern = re.compile(shlex.split(search, comments=True)[2])
    for name in (d.REGISTRY, d.BUCKET, "111122223333", "us-west-2", "ami-00000000000000000"):
        assert pattern.search(name)


def test_compose_is_asked_in_folders_and_for_services_that_are_there() -> None:
    folder = Path("deploy/tracking")
    for line in [line for section in ("A tracking server", "Monitoring") for line in commands(section)]:
        if moved := re.match(r"cd (\S+)", line):
            folder = d.ROOT / moved[1]
            assert (folder / ".env.example").is_file()
        if asked := re.match(r"docker compose (?:exec -T|run --rm) (\w+)", line):
            assert asked[1] in yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    told = "\n".join(commands("Monitoring"))
    assert "cd deploy/monitoring" in told and "docker compose up" in told and "--profile" not in told


@pytest.mark.slow
@pytest.mark.parametrize(("token", "asked"), [(True, True), (False, False)])
def test_when_ray_asks_for_a_token_is_what_the_page_says(tmp_path: Path, token: bool, asked: bool) -> None:
    text = " ".join(SECTIONS["Machines of your own"].split())
    assert "without it `ray start` of Ray 2.60 asks for a token only if it finds one" in text
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    setup = "ray._private.authentication.authentication_token_setup"
    ask = f"from {setup} import maybe_enable_token_auth_if_token_available as ask; print(ask())"  # as `ray start` does
    found = subprocess.run(
        [sys.executable, "-c", ask], env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.split() == [str(asked)]
