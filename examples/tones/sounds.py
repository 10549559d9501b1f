"""Define custom tasks: tell instruments apart by timbre, from a few short sounds of each.

A class is an instrument, defined by the strengths of its harmonics. Its sounds differ in pitch, loudness, the phases of
the harmonics (which are hardly audible) and noise, so that the waveforms of one instrument look nothing alike.

Everything is generated on demand, addressed by (seed, split, index); nothing is read or stored.
B tasks, N instruments in each, H harmonics, L samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.random import Reals, sample_without_replacement, stream, uniforms
from tasks.types import Episode, EpisodeShape, Examples, Progress, Split, TaskSpec

RATE = 4000
"""Samples per second."""
SAMPLES = 256
HARMONICS = 8

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Tones:
    """Settings under `tasks.` in a configuration; metatrain checks their types, this class their values.

    instruments: the number per split. contrast: range of the strengths of harmonics, in dB.
    pitch: range of the first harmonic, in Hz. noise: ratio of its amplitude to the tone's.
    """

    instruments: int = 1000
    contrast: float = 40.0
    pitch: tuple[float, float] = (100.0, 200.0)
    noise: float = 0.3

    def __post_init__(self) -> None:
        low, high = self.pitch
        most = RATE / 2 / HARMONICS
        if self.instruments < 2:
            raise ValueError(f"instruments: {self.instruments} leaves nothing to tell apart: set 2 or more")
        if not 0 < low < high <= most:
            raise ValueError(f"pitch: {low:g} to {high:g} Hz: set two frequencies, rising, of at most {most:g}")
        if not 0 < self.contrast < math.inf or not 0 <= self.noise < math.inf:
            raise ValueError("contrast, noise: are amounts: set contrast above 0, and noise to 0 or more")

    def prepare(self, progress: Progress) -> str:
        """Prepare nothing. Slow work (such as decoding) belongs here, and calls progress(done, total)."""
        return f"tones: {self.instruments:,} instruments each for train, validation and test, played as they are needed"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "Concerts":
        """Return the tasks of one split."""
        return Concerts(self, split, episode, seed)


@dataclass(frozen=True)
class Concerts:
    """The tasks of one split, whose name is part of every address, so that no two splits share an instrument."""

    source: Tones
    split: Split
    episode: EpisodeShape
    seed: int

    def __post_init__(self) -> None:
        ways, field = self.episode.ways, f"tasks.{'train' if self.split == 'train' else 'test'}.ways"
        if ways is None:
            raise ValueError(f"{field}: tones are told apart by class: set how many classes a task has")
        if ways > self.source.instruments:
            have = f"'{self.split}' has {self.source.instruments}"
            raise ValueError(f"{ways}-way needs {ways} instruments; {have}: lower {field}, or raise tasks.instruments")

    @property
    def spec(self) -> TaskSpec:
        """Describe the tasks: a waveform in, a class label out."""
        return TaskSpec("classification", self.episode.ways, (1, SAMPLES), ())

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return the tasks at `indices`: support.x [B, N·K, 1, L] float32, support.y [B, N·K]; query in the same way.

        All tasks are computed together, yet each depends on its own index only, since all randomness is addressed.
        """
        spectra = self.spectra(indices)
        support = self._sounds("support", indices, spectra, self.episode.shots)
        return Episode(support, self._sounds("query", indices, spectra, self.episode.queries))

    def spectra(self, indices: Sequence[int]) -> Reals:
        """Return the harmonics' amplitudes of each task's distinct instruments [B, N, H], of power Σ a²/2 = 1."""
        ways = self.spec.ways or 0
        drawn = uniforms(self.seed, stream("tones", self.split, "instruments"), indices, ways)
        instruments = sample_without_replacement(drawn, self.source.instruments)
        levels = uniforms(self.seed, stream("tones", self.split, "levels"), instruments.reshape(-1), HARMONICS)
        amplitudes = 10 ** (-self.source.contrast / 20 * levels)
        power = np.square(amplitudes).sum(axis=1, keepdims=True) / 2
        spectra: Reals = (amplitudes / np.sqrt(power)).reshape(*instruments.shape, HARMONICS)
        return spectra

    def _sounds(self, part: str, indices: Sequence[int], spectra: Reals, each: int) -> Examples:
        """Generate `each` sounds of every instrument, ordered by class."""
        tasks, ways, _ = spectra.shape
        count = ways * each
        address, per_sound = stream("tones", self.split, part), 2 + HARMONICS + SAMPLES
        numbers = uniforms(self.seed, address, indices, count * per_sound).reshape(tasks * count, per_sound)
        low, high = self.source.pitch
        pitch = low * (high / low) ** numbers[:, 0]
        phases = 2 * math.pi * numbers[:, 2 : 2 + HARMONICS]
        waves = synthesize(np.repeat(spectra.reshape(-1, HARMONICS), each, axis=0), pitch, phases)
        # Uniform in ±√3, which has variance 1.
        waves += (self.source.noise * math.sqrt(3) * (2 * numbers[:, 2 + HARMONICS :] - 1)).astype(np.float32)
        loudness = 2 ** (2 * numbers[:, 1:2] - 1)
        x = torch.from_numpy((loudness.astype(np.float32) * waves).reshape(tasks, count, 1, SAMPLES))
        return Examples(x, torch.arange(ways).repeat_interleave(each).expand(tasks, -1))


def synthesize(spectra: Reals, pitch: Reals, phases: Reals) -> Floats:
    """Compute y(t) = Σ_h a_h sin(2π h f t + φ_h), sampled at RATE: [R, L].

    spectra: a, [R, H]. pitch: f, [R] in Hz. phases: φ, [R, H] in radians.
    """
    cycles = (2 * math.pi * pitch[:, None] * np.arange(SAMPLES) / RATE).astype(np.float32)
    a, shift = spectra.astype(np.float32), phases.astype(np.float32)
    waves = np.zeros_like(cycles)
    for h in range(HARMONICS):
        waves += a[:, h, None] * np.sin((h + 1) * cycles + shift[:, h, None])
    return waves
