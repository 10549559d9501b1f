"""Profiles: what one must know of a cluster in order to use it, in a file that a team shares.

    default: lab
    profiles:
      lab:
        address: http://head.lab:8265
        token_file: /shared/lab/auth_token      # or token: ${LAB_TOKEN}
        settings: {runs.root: s3://lab/runs, tracking.uri: http://mlflow.lab:5000, executor.name: ray}
        env: {AWS_ENDPOINT_URL: http://store.lab:8333, MLFLOW_TRACKING_PASSWORD: "${MLFLOW_TRACKING_PASSWORD}"}

`settings` are put before those of whoever submits, so that these win; `env` is the job's. ${NAME} is taken from the
environment of who submits, so that a secret need not stand in the file.
"""

import difflib
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.jobs.dashboard import Token, full_address
from metatrain.config.load import read_settings
from metatrain.validation import require, require_positive
from metatrain.yaml_config import in_one_line, load_yaml, parse_yaml

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
RAY_ADDRESS = "RAY_API_SERVER_ADDRESS"
FILE = "profiles.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|KEY", re.IGNORECASE)
"""How a variable's name tells that its value is one; a name that ends in FILE or PATH tells where it lies."""
_PLACE = re.compile(r"(FILE|PATH)$", re.IGNORECASE)


@dataclass(frozen=True)
class Profile:
    """How a cluster is reached, and what is set for whatever is submitted to it.

    python: the cluster's interpreter; None for the one that Ray runs with there. stop_wait: seconds that a job which
    is stopped has for its checkpoint.
    """

    address: str | None = None
    token: str | None = None
    token_file: str | None = None
    python: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    stop_wait: int = 120

    def __post_init__(self) -> None:
        require_positive("", stop_wait=self.stop_wait)
        require(self.token is None or self.token_file is None, "token: stands beside token_file: leave one of them out")

    def filled_env(self) -> dict[str, str]:
        """`env` with ${NAME} replaced. ValueError: one is not set."""
        return {name: _filled(text, f"the profile's env.{name}") for name, text in self.env.items()}

    def overrides(self) -> list[str]:
        """`settings` as key=value, written `runs.root: …` or `runs: {root: …}`; what a key below a section has is one
        value, such as {min: 1, max: 4}.
        """
        told: dict[str, Any] = {}
        for key, value in self.settings.items():
            within = "." not in key and isinstance(value, Mapping)
            told |= {f"{key}.{name}": one for name, one in value.items()} if within else {key: value}
        return [f"{key}={in_one_line(value)}" for key, value in told.items()]


@dataclass(frozen=True)
class _File:
    profiles: dict[str, Profile]
    default: str | None = None


def read_profile(name: str | None, file: Path | None, address: str | None = None) -> Profile:
    """The profile of that name, or the file's default one; an empty one where there is neither file nor name.

    address: the one that the command line names. A default profile is that of its own address alone: where another is
    named it is set aside, which is said, and its token is not for that.
    """
    path = file or _found()
    if path is None:
        require(name is None, f"--profile: there is no file of profiles: write {FILE}, here or in {_personal().parent}")
        return Profile()
    listed = _read(path)
    chosen = name or listed.default or (next(iter(listed.profiles)) if len(listed.profiles) == 1 else None)
    if chosen is None:
        return Profile()
    if chosen not in listed.profiles:
        near = difflib.get_close_matches(chosen, listed.profiles, n=1)
        guess = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(listed.profiles) or 'none'}"
        raise ValueError(f"--profile: {path} has no profile '{chosen}': {guess}")
    if name is None and (reason := _not_meant(listed.profiles[chosen], address)):
        told = f"profile '{chosen}' of {path} is set aside: {reason}; give --profile {chosen} to have it all the same"
        print(f"metatrain: {told}", file=sys.stderr)
        return Profile()
    return _filled_in(listed.profiles[chosen], f"{path}, profile '{chosen}'")


def address_of(chosen: Profile, address: str | None) -> str:
    """The dashboard's address: the one given, the profile's, that of Ray's own variable, or this machine's."""
    return address or chosen.address or os.environ.get(RAY_ADDRESS) or DEFAULT_ADDRESS


def secret_files(file: Path | None) -> list[Path]:
    """The files of profiles and tokens that are, or with another profile would be, read here: no job is sent them."""
    path = file or _found()
    listed = _read(path).profiles.values() if path is not None else ()
    tokens = [os.path.expandvars(one.token_file) for one in listed if one.token_file is not None]
    places = [*tokens, *filter(None, map(os.environ.get, ("RAY_AUTH_TOKEN_PATH", "METATRAIN_PROFILES")))]
    return [one.expanduser().absolute() for one in (*filter(None, [path]), *map(Path, places))]


def token_of(chosen: Profile) -> Token | None:
    """The cluster's token: the profile's, or where Ray itself looks for it."""
    if chosen.token is not None:
        return Token(chosen.token, "the profile")
    if chosen.token_file is not None:
        return _token_in(Path(chosen.token_file).expanduser(), must=True)
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return Token(text, "RAY_AUTH_TOKEN")
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _token_in(Path(path).expanduser(), must=True)
    return _token_in(Path("~/.ray/auth_token").expanduser(), must=False)


def _not_meant(one: Profile, address: str | None) -> str | None:
    """Why a default profile is not for the address that is named; None where it may be."""
    try:
        own = _filled(one.address or "", "address")
    except ValueError as error:
        return f"its {error}, and {address} is named" if address else None  # else there is no way around that error
    if own:
        differs = address and full_address(address).lower() != full_address(own).lower()
        return f"it is for {own}, and {address} is named" if differs else None
    named = address or os.environ.get(RAY_ADDRESS)
    has_token = one.token is not None or one.token_file is not None
    return f"it has a token but no address, and {named} is named" if named and has_token else None


def _token_in(path: Path, must: bool) -> Token | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        require(not must, f"{path}: no token can be read from it ({reason}): copy the auth_token of the cluster's head")
        return None
    return Token(text, str(path)) if text else None


def _found() -> Path | None:
    if named := os.environ.get("METATRAIN_PROFILES"):
        return Path(named)
    return next((path for path in (Path(FILE), _personal()) if path.is_file()), None)


def _personal() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "metatrain" / FILE


def _read(path: Path) -> _File:
    listed: _File = read_settings(
        _File, load_yaml(path, "a file of profiles", "profiles, as docs/cluster.md does"), path.name
    )
    secret = [f"profiles.{name}.{key}" for name, one in listed.profiles.items() for key in _written_out(one)]
    open_to_all = bool(path.stat().st_mode & stat.S_IROTH)
    require(
        not (secret and open_to_all),
        f"{path}: everybody can read it, and {''.join(secret[:1])} is a secret written out: chmod o-r {path}, or give "
        "${NAME} of a variable, or token_file for the token",
    )
    return listed


def _written_out(one: Profile) -> list[str]:
    """The keys of a profile whose values are secrets, and not ${NAME}."""
    named = [name for name in one.env if _SECRET.search(name) and not _PLACE.search(name)]
    texts = {"token": one.token, **{f"env.{name}": one.env[name] for name in named}}
    return [key for key, text in texts.items() if text and not _VARIABLE.fullmatch(text)]


def _filled(text: str, where: str) -> str:
    def value(found: re.Match[str]) -> str:
        require(found[1] in os.environ, f"{where}: {found[0]} is not set here: export {found[1]}=…")
        return os.environ[found[1]]

    return _VARIABLE.sub(value, text)


def _filled_in(chosen: Profile, where: str) -> Profile:
    """With ${NAME} replaced, wherever it stands; a setting that holds one is read as YAML afterwards."""

    def filled(tree: Any, read: bool) -> Any:
        if isinstance(tree, Mapping):
            return {key: filled(one, read) for key, one in tree.items()}
        if isinstance(tree, list):
            return [filled(one, read) for one in tree]
        if not isinstance(tree, str) or not _VARIABLE.search(tree):
            return tree
        return parse_yaml(_filled(tree, where), where) if read else _filled(tree, where)

    # What a job has in its environment only who submits one need know.
    plain = {name: one if name == "env" else filled(one, read=name == "settings") for name, one in vars(chosen).items()}
    return Profile(**plain)
