"""What tests share: one torch thread, data from the user's root alone, a Ray that each module starts once."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

from tests.command_line import CommandLine, shared_command_line

if TYPE_CHECKING:
    from tests.ray_head import RayHead

torch.set_num_threads(1)

hypothesis.settings.register_profile("shared machine", deadline=None)  # an example may wait for other processes
hypothesis.settings.load_profile("shared machine")

if "METATRAIN_STATE" not in os.environ:  # the key that runs are signed with: not the one of who runs the tests
    os.environ["METATRAIN_STATE"] = tempfile.mkdtemp(prefix="metatrain-state-")
    atexit.register(shutil.rmtree, os.environ["METATRAIN_STATE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start a cluster come first: they take longest, and two processes that share all files end together."""
    clusters = {item.path for item in items if item.get_closest_marker("ray") is not None}
    items.sort(key=lambda item: item.path not in clusters)


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    root = os.environ.get("METATRAIN_DATA")
    if root is None:
        pytest.skip("set METATRAIN_DATA to a folder that holds omniglot/ to run this on the real data set")
    return Path(root) / "omniglot"


@pytest.fixture(scope="session")
def tiny_imagenet_root() -> Path:
    root = os.environ.get("METATRAIN_DATA")
    if root is None:
        pytest.skip("set METATRAIN_DATA to a folder that holds tiny-imagenet/ to run this on real photographs")
    return Path(root) / "tiny-imagenet"


@pytest.fixture(scope="session")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        print(f"no {', '.join(names)} on the path")
        pytest.skip(f"no browser: none of {', '.join(names)} is on the path")
    return found


@pytest.fixture(scope="session")
def command() -> CommandLine:
    return shared_command_line()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray cluster of four logical cores, for the tests of one module."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def head() -> "Iterator[RayHead]":
    """A Ray cluster that is somebody else's: with a dashboard, a token, and a PATH without our Python.

    Of one module: idle, it takes a quarter of a core from all tests that come later.
    """
    from tests.ray_head import ray_head

    with ray_head() as head:
        yield head
