"""Corrupted images: by name, severity and address, and in a test of a run."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metatrain.training.worker import Worker
from tasks.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupted
from tasks.sources.image_folder import ImageFolder
from tasks.sources.sinusoid import Sinusoid
from tests import pictures
from tests.command_line import metatrain
from tests.compared_runs import tiny_run
from tests.configurations import tiny

CLASSES, MEMBERS = np.array([5, 0, 5, 7]), np.array([1, 2, 3, 1])
NAMES = list(CORRUPTIONS)


def images(channels: int = 3) -> Tensor:
    """Four smooth images."""
    coarse = torch.rand(4, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    return interpolate(coarse, (32, 32), mode="bilinear")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_by_its_address_alone_and_stays_in_range(name, channels):
    x, corrupt = images(channels), Corruption(name, 2)
    found = corrupt(x, CLASSES, MEMBERS)
    assert found.shape == x.shape == (4, *corrupt.shape((channels, 32, 32))) and found.dtype == torch.float32
    assert float(found.min()) >= 0 and float(found.max()) <= 1 and found.is_contiguous()
    for row in (3, 1):
        assert torch.equal(corrupt(x[row : row + 1], CLASSES[row : row + 1], MEMBERS[row : row + 1])[0], found[row])
    assert name == "grey" or not torch.equal(found, x)
    many, zeros = torch.rand(40, channels, 28, 28, generator=torch.Generator().manual_seed(1)), np.zeros(40, np.int64)
    together = corrupt(many, np.arange(40), zeros)
    assert torch.equal(together[35], corrupt(many[35:36], np.arange(35, 36), zeros[:1])[0])
    assert corrupt(x[:0], CLASSES[:0], MEMBERS[:0]).shape == (0, channels, 32, 32)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("invert", "grey")])
def test_a_higher_severity_changes_more(name):
    x = 0.2 + 0.5 * images()
    changed = [float((Corruption(name, one)(x, CLASSES, MEMBERS) - x).abs().mean()) for one in range(1, SEVERITIES + 1)]
    assert name == "pixelate" or changed == sorted(changed)  # pixels that do not divide the side are displaced
    assert changed[-1] > 1.2 * changed[0] > 0


def test_noise_has_the_amounts_that_it_says():
    x = torch.full((40, 3, 20, 20), 0.5)
    address = np.arange(40), np.zeros(40, np.int64)
    noise = Corruption("gaussian_noise", 1)(x, *address) - x
    assert float(noise.std()) == pytest.approx(0.08, rel=0.03) and abs(float(noise.mean())) < 2e-3
    assert float(Corruption("shot_noise", 1)(x, *address).var()) == pytest.approx(0.5 / 60, rel=0.05)
    hit = Corruption("impulse_noise", 5)(x, *address)
    assert float((hit != 0.5).float().mean()) == pytest.approx(0.27, rel=0.03)
    assert float((hit == 1).float().mean()) == pytest.approx(0.135, rel=0.06)
    assert not torch.equal(noise[0], noise[1])


def test_what_is_no_noise_is_computed_as_it_says():
    x = images()
    contrast = Corruption("contrast", 1)(x, CLASSES, MEMBERS)
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(contrast, mean + 0.4 * (x - mean))
    torch.testing.assert_close(Corruption("invert")(x, CLASSES, MEMBERS), 1 - x)
    grey = Corruption("grey")(x, CLASSES, MEMBERS)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    flat = torch.full((4, 1, 12, 12), 0.3)
    torch.testing.assert_close(Corruption("gaussian_blur", 5)(flat, CLASSES, MEMBERS), flat)
    large = torch.zeros(4, 1, 128, 128)
    large[..., 64, 64] = 1.0
    spread = Corruption("gaussian_blur", 5)(large, CLASSES, MEMBERS)[0, 0, 64]
    distance = (torch.arange(128) - 64).float()
    assert float((spread * distance**2).sum() / spread.sum()) ** 0.5 == pytest.approx(4.0, rel=0.03)
    blocks = Corruption("pixelate", 5)(images(1)[..., :12, :12], CLASSES, MEMBERS)[0, 0]
    assert len(blocks.unique()) == 9


def test_images_keep_the_normalisation_of_their_source(tmp_path: Path):
    root = pictures.write(tmp_path / "raw", pictures.split_files())
    source = ImageFolder(str(root), str(tmp_path / "cache"), 12, mean=[0.5], std=[0.25])
    changed = corrupted(source, "image_folder", Corruption("invert"))
    one, two = (given.pool("test").examples(np.array([0, 1]), np.array([0, 0])) for given in (source, changed))
    torch.testing.assert_close(two, -one)
    assert changed.data() == source.data()


def test_only_test_tasks_of_a_run_are_corrupted_and_their_result_is_kept_apart(tmp_path: Path):
    plain, changed = (
        Worker(tiny(*given), torch.device("cpu")) for given in ((), ("evaluation.corruption=gaussian_noise",))
    )
    for split, same in (("train", True), ("validation", True), ("test", False)):
        one, two = (worker.distribution(split).episodes([0]).query.x for worker in (plain, changed))
        assert torch.equal(one, two) == same
    run = tiny_run(tmp_path, "one", "algorithm={name: protonet}")
    settings = ("evaluation.tasks=6", "evaluation.baselines=false", "evaluation.corruption=impulse_noise")
    metatrain(tmp_path, "evaluate", str(run), *settings)
    assert len(list((run / "evaluations").glob("test-*.json"))) == 1
    also = ("--also", "evaluation.corruption=impulse_noise evaluation.severity=5")
    done = metatrain(tmp_path, "compare", str(run), "evaluation.tasks=6", *also)
    assert "evaluation.severity=5" in done.out


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "evaluation.corruption=fog",
            "evaluation.corruption: no corruption is called 'fog': set one of gaussian_noise",
        ),
        ("evaluation.severity=6", "evaluation.severity: 6 is no severity: set 1 to 5"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        tiny(setting)


def test_tasks_without_images_are_refused():
    with pytest.raises(
        ValueError, match=re.escape("evaluation.corruption: tasks of sinusoid are no classes of images")
    ):
        corrupted(Sinusoid(), "sinusoid", Corruption("invert"))
