"""Read profiles: how to reach each cluster and what to set for its jobs, in a file that a team shares.

    default: lab
    profiles:
      lab:
        address: http://head.lab:8265
        token_file: /shared/lab/auth_token      # or token: ${LAB_TOKEN}
        settings: {runs.root: s3://lab/runs, tracking.uri: http://mlflow.lab:5000, executor.name: ray}
        env: {AWS_ENDPOINT_URL: http://store.lab:8333, MLFLOW_TRACKING_PASSWORD: "${MLFLOW_TRACKING_PASSWORD}"}

`settings` come before those of the command line, which win; `env` is the job's environment. ${NAME} is replaced by the
variable of whoever submits, so that the file need not contain secrets; an address holds none.

A file that a user names (--profiles, METATRAIN_PROFILES) or keeps in ~/.config/metatrain decides where tokens go. One
that merely lies in the current folder may be anybody's: its profiles are used when they are named, by --profile or by
their address.
"""

import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.jobs.dashboard import Token, normalize_address
from metatrain.config.sections import read_settings
from metatrain.redact import is_secret
from metatrain.validation import require, require_positive
from metatrain.yaml_config import dump_inline, load_yaml, parse_yaml
from tasks.io.home import PathText, home_path
from tasks.plugins import suggest_name

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
RAY_ADDRESS = "RAY_API_SERVER_ADDRESS"
FILE = "profiles.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Profile:
    """Settings of one cluster: how it is reached, and what is set for its jobs.

    python: the cluster's interpreter; None for the one that Ray runs with there. stop_wait: seconds that a stopped job
    has for its checkpoint.
    """

    address: str | None = None
    token: str | None = None
    token_file: PathText | None = None
    python: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    stop_wait: int = 120

    def __post_init__(self) -> None:
        require_positive("", stop_wait=self.stop_wait)
        require(self.token is None or self.token_file is None, "token: stands beside token_file: remove one of them")

    def expand_env(self) -> dict[str, str]:
        """Return `env` with ${NAME} replaced. ValueError: a variable is not set."""
        return {name: _expand(text, f"the profile's env.{name}") for name, text in self.env.items()}

    def secret_names(self) -> list[str]:
        """Return the names of `env` that take their values from variables whose names say that they are secret."""
        return [name for name, text in self.env.items() if any(is_secret(one, "") for one in _VARIABLE.findall(text))]

    def overrides(self) -> list[str]:
        """Return `settings` as key=value, from `runs.root: …` or `runs: {root: …}`.

        What is nested deeper is one value, such as {min: 1, max: 4}.
        """
        flat: dict[str, Any] = {}
        for key, value in self.settings.items():
            is_section = "." not in key and isinstance(value, Mapping)
            flat |= {f"{key}.{name}": one for name, one in value.items()} if is_section else {key: value}
        return [f"{key}={dump_inline(value)}" for key, value in flat.items()]


@dataclass(frozen=True)
class _ProfilesFile:
    profiles: dict[str, Profile]
    default: str | None = None


def read_profile(name: str | None, file: Path | None, address: str | None = None) -> Profile:
    """Return the profile of that name, else a default one that the user has chosen; an empty one without any.

    address: the one of the command line. A default profile is for its own address only: for another one it is skipped,
    with a line that says so, as its token must not be sent there. ValueError: no such file or profile, or a wrong one.
    """
    named = file or _named_file()
    found = [path for path in (_user_file(), Path(FILE)) if path.is_file()] if named is None else [named]
    if name is not None:
        return _find_profile(name, found)
    skipped = []
    for path in found:
        listed = _read(path)
        default = listed.default or (next(iter(listed.profiles)) if len(listed.profiles) == 1 else None)
        if default is None:
            continue
        if default not in listed.profiles:
            return _find_profile(default, [path])
        profile = listed.profiles[default]
        of_folder = named is None and path == Path(FILE)
        reason = _reason_to_skip(profile, address) or (_reason_to_ask(profile, address) if of_folder else None)
        if reason is None:
            return _expand_profile(profile, f"{path}, profile '{default}'")
        skipped.append((of_folder, f"profile '{default}' of {path} is set aside: {reason}; use --profile {default}"))
    chosen = address or os.environ.get(RAY_ADDRESS)
    for of_folder, line in skipped:
        require(not of_folder or chosen is not None, f"{line}, or --address")
        print(f"metatrain: {line} to have it all the same", file=sys.stderr)
    return Profile()


def _find_profile(name: str, files: list[Path]) -> Profile:
    """Return the profile of that name in the first file that has it. ValueError: none has."""
    require(bool(files), f"--profile: there is no file of profiles: write {FILE}, here or in {_user_file().parent}")
    listed = {path: _read(path).profiles for path in files}
    for path, profiles in listed.items():
        if name in profiles:
            return _expand_profile(profiles[name], f"{path}, profile '{name}'")
    known = [one for profiles in listed.values() for one in profiles]
    guess, names = suggest_name(name, known), ", ".join(known) or "none, so add it"
    where = " and ".join(map(str, files))
    raise ValueError(f"--profile: {where} has no profile '{name}'{guess}: use one that it has ({names})")


def resolve_address(chosen: Profile, address: str | None) -> str:
    """Return the dashboard's address: `address`, the profile's, that of Ray's variable, or this machine's."""
    return address or chosen.address or os.environ.get(RAY_ADDRESS) or DEFAULT_ADDRESS


def list_secret_files(file: Path | None) -> list[Path]:
    """Return the files of profiles and tokens that any profile may read here, and that no job is sent."""
    named = file or _named_file()
    files = [named] if named else [path for path in (Path(FILE), _user_file()) if path.is_file()]
    profiles = [profile for path in files for profile in _read(path).profiles.values()]
    tokens = [os.path.expandvars(one.token_file) for one in profiles if one.token_file is not None]
    places = [*tokens, *filter(None, map(os.environ.get, ("RAY_AUTH_TOKEN_PATH", "METATRAIN_PROFILES")))]
    return [home_path(str(one)).absolute() for one in (*files, *places, "~/.ray/auth_token")]


def find_token(chosen: Profile) -> Token | None:
    """Return the profile's token, else the one that Ray itself would use."""
    if chosen.token is not None:
        return Token(chosen.token, "the profile")
    if chosen.token_file is not None:
        return _read_token(home_path(chosen.token_file), required=True)
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return Token(text, "RAY_AUTH_TOKEN")
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(home_path(path), required=True)
    return _read_token(home_path("~/.ray/auth_token"), required=False)


def _reason_to_skip(default: Profile, address: str | None) -> str | None:
    """Say why a default profile is not for `address`; None if it may be used."""
    if default.address:
        differs = address and not _same_address(default.address, address)
        return f"it is for {default.address}, and {address} is named" if differs else None
    named = address or os.environ.get(RAY_ADDRESS)
    has_token = default.token is not None or default.token_file is not None
    return f"it has a token but no address, and {named} is named" if named and has_token else None


def _reason_to_ask(default: Profile, address: str | None) -> str | None:
    """Say why the default profile of the current folder's file is not used unasked; None if its address is named."""
    if default.address and address and _same_address(default.address, address):
        return None
    return f"it is of the current folder, whose file may be anybody's, and for {default.address or 'any address'}"


def _same_address(one: str, other: str) -> bool:
    return normalize_address(one).lower() == normalize_address(other).lower()


def _read_token(path: Path, required: bool) -> Token | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        no_token = f"{path}: no token can be read from it ({reason}): copy the auth_token of the cluster's head"
        require(not required, no_token)
        return None
    return Token(text, str(path)) if text else None


def _named_file() -> Path | None:
    path = os.environ.get("METATRAIN_PROFILES")
    return home_path(path) if path else None


def _user_file() -> Path:
    return home_path(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "metatrain" / FILE


def _read(path: Path) -> _ProfilesFile:
    plain = load_yaml(path, "a file of profiles", "profiles, as docs/cluster.md does")
    listed: _ProfilesFile = read_settings(_ProfilesFile, plain, path.name)
    secrets = [f"profiles.{name}.{key}" for name, one in listed.profiles.items() for key in _list_secrets(one)]
    require(
        not (secrets and path.stat().st_mode & stat.S_IROTH),
        f"{path}: everybody can read it, and {''.join(secrets[:1])} is a secret written out: chmod o-r {path}, or use "
        "${NAME} of a variable, or token_file for the token",
    )
    return listed


def _list_secrets(one: Profile) -> list[str]:
    """Return the keys of a profile whose values are secrets, and not ${NAME}."""
    texts = {"token": one.token} | {f"env.{name}": text for name, text in one.env.items() if is_secret(name, text)}
    return [key for key, text in texts.items() if text and not _VARIABLE.fullmatch(text)]


def _expand(text: str, where: str) -> str:
    def value(found: re.Match[str]) -> str:
        require(found[1] in os.environ, f"{where}: {found[0]} is not set here: export {found[1]}=…")
        return os.environ[found[1]]

    return _VARIABLE.sub(value, text)


def _expand_profile(chosen: Profile, where: str) -> Profile:
    """Replace ${NAME} in all values but `env`, which only a submission needs; parse changed settings as YAML.

    ValueError: the address holds one.
    """
    unsent = "holds a variable, whose value would be sent to whoever answers there: write the address out"
    require(not _VARIABLE.search(chosen.address or ""), f"{where}, address: {chosen.address}: {unsent}")

    def expand(tree: Any, parse: bool) -> Any:
        if isinstance(tree, Mapping):
            return {key: expand(one, parse) for key, one in tree.items()}
        if isinstance(tree, list):
            return [expand(one, parse) for one in tree]
        if not isinstance(tree, str) or not _VARIABLE.search(tree):
            return tree
        text = _expand(tree, where)
        return parse_yaml(text, where) if parse else text

    values = {name: one if name == "env" else expand(one, name == "settings") for name, one in vars(chosen).items()}
    return Profile(**values)
