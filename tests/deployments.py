"""The files under deploy/ as data: what a Dockerfile says, what manifests and policies hold, what the code knows."""

import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
AWS = ROOT / "deploy" / "aws"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
OURS = [DOCKERFILE, ROOT / ".dockerignore", *MANIFESTS, *sorted(p for p in AWS.iterdir() if p.is_file())]
OURS += [KUBERNETES / "resumable.py"]
MONITORING = ROOT / "deploy" / "monitoring"
COMPOSED = {name: ROOT / "deploy" / name / "compose.yaml" for name in ("tracking", "monitoring")}
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
METRIC = re.compile(r"\b(?:ray_\w+|up)\b")
REGISTRY = "registry.example.com"
BUCKET = "metatrain-example"


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"])


def pinned() -> dict[str, str]:
    """Versions in constraints.txt by package, names as PyPI compares them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def image(target: str) -> str:
    """What the image of one of the Dockerfile's targets is called."""
    return f"{REGISTRY}/metatrain:{project()['version']}-ray{pinned()['ray']}-{target}"


def images_in(text: str) -> set[str]:
    return set(re.findall(rf"{re.escape(REGISTRY)}/[\w./-]+(?::[\w.-]+)?", text))


class Instruction(NamedTuple):
    word: str
    rest: str


class Stage(NamedTuple):
    base: str
    instructions: list[Instruction]


def stages() -> dict[str, Stage]:
    """The Dockerfile by target, in its order."""
    code = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest.strip()).groups()  # type: ignore[union-attr]
            found[name] = Stage(base, [])
        else:
            list(found.values())[-1].instructions.append(Instruction(word, rest))
    return found


def lineage(target: str) -> list[Instruction]:
    """All that makes a target, its bases' instructions first."""
    stage = stages()[target]
    return [*(lineage(stage.base) if stage.base in stages() else []), *stage.instructions]


def root_image(target: str) -> str:
    base = stages()[target].base
    return root_image(base) if base in stages() else base


def environment(target: str) -> dict[str, str]:
    pairs = [pair for word, rest in lineage(target) if word == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def copied(instructions: list[Instruction]) -> list[tuple[str, str]]:
    """(source in the repository, destination) of each COPY that takes from the context."""
    found = []
    for word, rest in instructions:
        if word == "COPY" and "--from" not in rest:
            *sources, destination = rest.split()
            found += [(source, destination) for source in sources]
    return found


def in_image(target: str) -> dict[str, Path]:
    """Paths in a target's image, and the files and folders of the repository that lie there."""
    workdir = [rest for word, rest in lineage(target) if word == "WORKDIR"][-1]
    found = {}
    for source, destination in copied(lineage(target)):
        place = Path(workdir, destination, Path(source).name if destination.endswith("/") else "")
        found[str(place)] = ROOT / source
    return found


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the repository out: the last line that matches it, or a parent, decides."""
    out = False
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        parts = pattern.removeprefix("**/")
        for parent in parents:
            name = parent.rpartition("/")[2] if pattern.startswith("**/") else parent
            if fnmatch.fnmatchcase(name, parts) and (pattern.startswith("**/") or "/" not in name or name == parts):
                out = not line.startswith("!")
    return out


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path) if document["kind"] == kind]


def ray_specs() -> dict[str, dict[str, Any]]:
    """The cluster of raycluster.yaml and that of rayjob.yaml, by their objects' names."""
    [cluster], [job] = of_kind("RayCluster"), of_kind("RayJob")
    return {cluster["metadata"]["name"]: cluster["spec"], job["metadata"]["name"]: job["spec"]["rayClusterSpec"]}


def groups(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The head's group and the workers', by name."""
    return {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def ray_groups() -> dict[str, dict[str, Any]]:
    return {f"{name} {group}": at for name, spec in ray_specs().items() for group, at in groups(spec).items()}


def pod_templates() -> dict[str, dict[str, Any]]:
    """All pods that anything of ours asks for, by what asks for them."""
    found = {name: group["template"] for name, group in ray_groups().items()}
    [job] = of_kind("RayJob")
    found["submitter"] = job["spec"]["submitterPodTemplate"]
    return found | {at["metadata"]["name"]: at["spec"]["template"] for at in of_kind("Deployment")}


def containers() -> dict[str, dict[str, Any]]:
    """The one container of each pod."""
    found = {}
    for name, pod in pod_templates().items():
        [found[name]] = pod["spec"]["containers"]
    return found


def panels() -> list[dict[str, Any]]:
    """The dashboard's, without the rows that part them."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, list[str]]:
    """What Prometheus is asked, by the title of a panel or the name of an alert."""
    shown = {f"{panel['id']} {panel['title']}": [target["expr"] for target in panel["targets"]] for panel in panels()}
    return shown | {rule["alert"]: [rule["expr"]] for rule in RULES}
