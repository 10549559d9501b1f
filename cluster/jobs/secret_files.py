"""Recognise files that hold secrets, by their usual names and by how they begin, so that no job is sent them."""

import re
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

NAMES = (
    "profiles.yaml",
    "auth_token",
    ".env*",
    "*.env",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.ppk",
    "*.ovpn",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".ssh/",
    ".gnupg/",
    ".aws/",
    ".azure/",
    "**/.config/gcloud/",
    ".docker/",
    ".dockercfg",
    ".kube/",
    "kubeconfig*",
    ".ray/",
    ".mlflow/",
    ".kaggle/",
    "kaggle.json",
    ".huggingface/",
    "**/.cache/huggingface/",
    ".netrc",
    "_netrc",
    ".pgpass",
    "pgpass.conf",
    ".my.cnf",
    ".s3cfg",
    ".boto",
    ".databrickscfg",
    ".git-credentials",
    ".npmrc",
    ".pypirc",
    ".htpasswd",
    ".vault-token",
    "*.tfstate",
    "*.tfvars",
    "credentials",
    "credentials.json",
    "credentials.csv",
    "application_default_credentials.json",
    "client_secret*.json",
    "service[-_]account*.json",
    "secrets.*",
    "!*.example",
    "!*.example.*",
)
"""Patterns as in a .gitignore, for names in lower case."""
_SPEC = GitIgnoreSpec.from_lines(NAMES)
_PRIVATE_KEY = re.compile(rb"\A\s*-----BEGIN [A-Z ]*PRIVATE KEY-----|\APuTTY-User-Key-File")
_SERVICE_ACCOUNT = re.compile(rb'"(private_key|client_secret|refresh_token)"\s*:')
_CODE = (".py", ".pyi", ".ipynb", ".md", ".rst")
_HEAD_BYTES = 8192


def is_secret_name(name: str) -> bool:
    """Return whether a file or folder ("/" at its end) of this relative path is one where secrets are kept."""
    return PurePosixPath(name).suffix not in _CODE[:2] and _SPEC.match_file(name.lower())


def begins_as_secret(path: Path) -> bool:
    """Return whether a file begins as a private key does, or as the JSON of a service account."""
    if path.suffix in _CODE:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False  # told when it is packed
    return bool(_PRIVATE_KEY.search(head)) or (head.lstrip()[:1] == b"{" and _SERVICE_ACCOUNT.search(head) is not None)
