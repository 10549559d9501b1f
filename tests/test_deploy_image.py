"""deploy/Dockerfile and .dockerignore, as far as can be told without building: nobody could build them here."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from packaging.specifiers import SpecifierSet
from setuptools import find_packages

from tests import deployments as d

TARGETS = ("cpu", "gpu", "tracking")
NODES = ("cpu", "gpu")
SYSTEM = {"apt-get", "chown", "groupadd", "mkdir", "pip", "python", "rm", "useradd"}
"""What the base image has."""
CONTEXT = sorted({source for stage in d.stages().values() for source, _ in d.copied(stage.instructions)})


def runs(target: str) -> list[str]:
    return [rest for word, rest in d.lineage(target) if word == "RUN"]


def test_has_the_targets_that_the_manifests_name() -> None:
    assert set(TARGETS) <= d.stages().keys()


@pytest.mark.parametrize("target", TARGETS)
def test_python_is_one_that_we_support_and_that_the_tests_ran_on(target: str) -> None:
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", d.root_image(target))
    assert version, f"{d.root_image(target)}: name a slim Python, such as python:3.11-slim-bookworm"
    assert version[1] in SpecifierSet(d.project()["requires-python"])
    assert version[1] == "3.11", "constraints.txt was made with Python 3.11"


@pytest.mark.parametrize("source", CONTEXT)
def test_what_is_copied_is_there_and_not_ignored(source: str) -> None:
    path = d.ROOT / source
    assert path.exists()
    inner = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    hidden = [str(p.relative_to(d.ROOT)) for p in inner if d.ignored(str(p.relative_to(d.ROOT)))]
    assert not hidden, f".dockerignore keeps out what is copied: {hidden}"


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", ".env", "runs/20261121-x/config.yaml", "mlflow.db", "tests/conftest.py",
     "metatrain/__pycache__/cli.cpython-311.pyc", "metatrain/.env", "deploy/kubernetes/secrets.yaml", "key.pem"],
)  # fmt: skip
def test_what_no_image_needs_stays_outside(path: str) -> None:
    assert d.ignored(path)


@pytest.mark.parametrize("target", NODES)
def test_all_our_packages_are_in_the_wheel(target: str) -> None:
    sources = d.stages()["sources"]
    assert any(word == "COPY" and "--from=sources" in rest for word, rest in d.lineage(target))
    copied = {source for source, _ in d.copied(sources.instructions)}
    with (d.ROOT / "pyproject.toml").open("rb") as file:
        included = tomllib.load(file)["tool"]["setuptools"]["packages"]["find"]["include"]
    listed = set(find_packages(str(d.ROOT), include=included))
    assert {package.partition(".")[0] for package in listed} | {"pyproject.toml", "README.md", "LICENSE"} <= copied
    folders = {path.parent.relative_to(d.ROOT) for source in copied for path in (d.ROOT / source).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == listed, (
        "each folder with modules is a package: add __init__.py"
    )


@pytest.mark.parametrize("target", NODES)
def test_dependencies_come_before_our_sources(target: str) -> None:
    instructions = d.lineage(target)
    installs = next(n for n, (word, rest) in enumerate(instructions) if word == "RUN" and "--requirement" in rest)
    ours = next(n for n, (word, rest) in enumerate(instructions) if word == "COPY" and "--from=sources" in rest)
    assert installs < ours
    early = {source for source, _ in d.copied(instructions[:installs])}
    assert early == {"constraints.txt"}, "a layer of dependencies is made anew when any of these changes"


def test_requirements_are_those_of_the_project_each_pinned(tmp_path: Path) -> None:
    [run] = [rest for word, rest in d.stages()["requirements"].instructions if word == "RUN"]
    words = shlex.split(run)
    assert words[0] == "python"
    (tmp_path / "pyproject.toml").write_text((d.ROOT / "pyproject.toml").read_text())
    told = subprocess.run([sys.executable, "-c", words[2]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == d.project()["dependencies"]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in told.stdout.splitlines()}  # type: ignore[index]
    assert names <= d.pinned().keys()
    assert words[-2:] == [">", "requirements.txt"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_install_is_constrained(target: str) -> None:
    installs = [run for run in runs(target) if "pip install" in run and "/wheels/" not in run]
    assert installs
    assert all(re.search(r"--constraint \S*constraints\.txt", run) for run in installs)


def test_torch_is_without_cuda_for_cpus_and_with_it_for_gpus() -> None:
    [cpu] = [run for run in runs("cpu") if "--index-url" in run]
    assert '--index-url "${TORCH_INDEX}"' in cpu
    assert "--no-deps" in cpu, "nothing but torch is to come from PyTorch's index"
    assert ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu") in d.lineage("cpu")
    assert not any("--index-url" in run for run in runs("gpu"))
    assert {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"} <= d.environment("gpu").keys()


@pytest.mark.parametrize("target", TARGETS)
def test_commands_that_are_run_exist(target: str) -> None:
    scripts = {entry.name for entry in entry_points(group="console_scripts")} | d.project()["scripts"].keys()
    for run in runs(target):
        for command in re.split(r"&&", run):
            words = shlex.split(command)
            assert words[0] in SYSTEM or words[0] in scripts, f"{words[0]}: who brings it?"
    from metatrain.cli import app

    known = set(typer.main.get_command(app).commands)
    assert {words[1] for run in runs(target) for words in commands(run, "metatrain")} <= known
    if target in NODES:
        assert ["python", "-c", "import torchvision.ops"] in commands(runs(target)[-1], "python"), (
            "a bad pair would pass"
        )


def commands(run: str, name: str) -> list[list[str]]:
    return [words for words in map(shlex.split, run.split("&&")) if words[0] == name]


@pytest.mark.parametrize("target", TARGETS)
def test_the_user_is_nobody_special(target: str) -> None:
    instructions = d.lineage(target)
    users = [n for n, (word, _) in enumerate(instructions) if word == "USER"]
    assert users, "no USER: the image would run as root"
    assert instructions[users[-1]].rest == "1000:1000"
    assert all(word not in ("RUN", "COPY", "ADD") for word, _ in instructions[users[-1] :])
    made = " ".join(runs(target))
    assert "--uid 1000" in made and "--gid 1000" in made
    assert "sudo" not in made


@pytest.mark.parametrize("target", NODES)
def test_a_node_finds_what_ray_kuberay_and_the_launcher_want(target: str) -> None:
    environment = d.environment(target)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["HOME"] == "/home/ray", "the launcher takes it from the image's environment"
    [packages] = [run for run in runs(target) if "apt-get install" in run]
    assert {"bash", "g++", "openssh-client", "rsync", "tini", "wget"} <= set(packages.split())
    [entry] = [rest for word, rest in d.lineage(target) if word == "ENTRYPOINT"]
    assert ast.literal_eval(entry)[0] == "/usr/bin/tini"
    made = next(run for run in runs(target) if "mkdir" in run)
    assert {environment["METATRAIN_CACHE"], "/home/ray/.ray"} <= set(made.split()), "ray could not write there"


@pytest.mark.parametrize("target", NODES)
def test_configurations_and_helpers_lie_where_the_manifests_say(target: str) -> None:
    there = d.in_image(target)
    assert there["/opt/metatrain/configs"] == d.ROOT / "configs"
    assert there["/opt/metatrain/resumable.py"] == d.KUBERNETES / "resumable.py"
    assert there["/opt/metatrain/spot_notice.py"] == d.AWS / "spot_notice.py"


def test_mlflow_gets_what_it_needs_for_logins_postgresql_and_s3() -> None:
    [install] = [run for run in runs("tracking") if "pip install" in run]
    assert {"mlflow[auth]", "psycopg2-binary", "boto3"} <= set(shlex.split(install))
    assert {"mlflow", "boto3"} <= d.pinned().keys()
    [command] = [rest for word, rest in d.lineage("tracking") if word == "CMD"]
    assert ast.literal_eval(command)[:2] == ["mlflow", "server"]


def test_everything_asks_for_the_images_of_this_version() -> None:
    known = {d.image(target) for target in TARGETS}
    for path in d.OURS:
        wrong = d.images_in(path.read_text()) - known
        assert not wrong, f"{path.name}: {wrong}: known are {sorted(known)}"
    asked = {image for path in d.OURS if path != d.DOCKERFILE for image in d.images_in(path.read_text())}
    assert asked == known


SECRETS = {
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a login in a URL": r"[a-z0-9+]+://[^/\s:@]+:[^/\s:@]+@(?!HOST\b)",
    "a token": r"\b(ghp_|github_pat_|hf_|glpat-|xox[bp]-)\w{10,}",
    "a value that should come from a secret": r"(?im)^\s*-?\s*[\w-]*(password|secret_?(access)?_?key|token)\s*[=:]\s*"
    r"[\"']?(?!REPLACE-ME|\{)[\w/+.-]{8,}[\"']?\s*$",
}


@pytest.mark.parametrize("path", d.OURS, ids=lambda path: path.name)
@pytest.mark.parametrize("what", SECRETS)
def test_no_file_holds_a_credential(path: Path, what: str) -> None:
    found = re.search(SECRETS[what], path.read_text())
    assert found is None, f"{what}: {found and found[0]}: take it from a secret"
