"""What tests share: one torch thread, data from the user's root alone, a Ray that each module starts once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.ray_head import RayHead

torch.set_num_threads(1)


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


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray cluster of four logical cores, for the tests of one module."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def head() -> "Iterator[RayHead]":
    """A Ray cluster that is somebody else's: with a dashboard, a token, and a PATH without our Python."""
    from tests.ray_head import ray_head

    with ray_head() as head:
        yield head
