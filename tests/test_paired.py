"""Paired comparisons: against closed forms, a hand-worked example, and simulation with fixed seeds."""

import math

import numpy as np
import pytest

from metatrain.evaluation.intervals import student_t
from metatrain.evaluation.paired import (
    LEVEL,
    holm,
    indistinct_groups,
    max_t_critical,
    paired_differences,
    student_tail,
)


def test_tails_of_students_distribution_against_closed_forms_and_its_quantiles():
    assert student_tail(1.0, 1) == pytest.approx(0.5, rel=1e-12)  # Cauchy: 1 - 2/π atan(t)
    assert student_tail(3.0, 1) == pytest.approx(1 - 2 / math.pi * math.atan(3.0), rel=1e-12)
    assert student_tail(2.0, 2) == pytest.approx(1 - 2 / math.sqrt(6), rel=1e-12)  # 1 - t / √(2 + t²)
    assert student_tail(5.0, 10**7) == pytest.approx(math.erfc(5.0 / math.sqrt(2)), rel=1e-4)
    for degrees in (1, 2, 5, 29, 30, 31, 200, 999):
        assert student_tail(student_t(degrees), degrees) == pytest.approx(0.05, rel=1e-6)
    assert student_tail(0.0, 5) == 1.0 and student_tail(math.inf, 5) == 0.0
    assert 0 < student_tail(30.0, 999) < 1e-100, "the far tail is no difference of two numbers near one"


def test_holm_against_a_hand_worked_example():
    # Sorted: 0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1, each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_of_two_is_students_paired_t():
    scores = np.array([[3.0, 2.0], [5.0, 3.0], [4.0, 1.0], [6.0, 2.0], [9.0, 4.0]])
    (found,) = paired_differences(scores)
    # Differences 1, 2, 3, 4, 5: mean 3, variance 10/4; t = 3 / √(2.5/5) = 4.2426 with 4 degrees: p = 0.013236.
    assert found.value == 3.0
    assert found.ci95 == found.simultaneous == pytest.approx(2.7764451 * 0.5**0.5)
    assert found.p == found.p_holm == pytest.approx(0.0132356, rel=1e-4)
    assert found.ci95_classes is None and found.p_classes_holm is None


def test_equal_scores_are_no_difference_and_constant_ones_are_certain():
    same, less = paired_differences(np.array([[1.0, 1.0, 0.5], [0.0, 0.0, -0.5]]), [(0, 1), (0, 2)])
    assert same.value == 0 and same.p == 1.0 and not same.apart
    assert less.value == 0.5 and less.p == 0.0 and less.apart
    (unknown,) = paired_differences(np.array([[math.nan, 1.0], [2.0, 1.0], [3.0, 2.0]]))
    assert math.isnan(unknown.value) and not unknown.apart
    with pytest.raises(ValueError, match=r"set evaluation\.tasks to 2 or more"):
        paired_differences(np.zeros((1, 2)))


@pytest.mark.parametrize("tasks", [4, 40])
def test_the_paired_interval_covers_the_true_difference_as_often_as_it_says(tasks):
    chance = np.random.default_rng(0)
    covered, repetitions = 0, 3000
    for _ in range(repetitions):
        hard = chance.normal(0, 5, (tasks, 1))  # how hard a task is, for all alike
        (found,) = paired_differences(hard + chance.normal([0.3, 0.0], 1, (tasks, 2)))
        covered += abs(found.value - 0.3) <= found.ci95
    assert covered / repetitions == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("tasks", "learners"), [(25, 5), (150, 3)])
def test_equal_learners_are_called_different_in_one_comparison_of_twenty_at_most(tasks, learners):
    """Under the null, by either correction: the rate is at most 5 %, within the error of the simulation."""
    chance = np.random.default_rng(1)
    by_holm, by_max_t, uncorrected, repetitions = 0, 0, 0, 300
    for _ in range(repetitions):
        scores = chance.normal(0, 2, (tasks, 1)) + chance.normal(0, 1, (tasks, learners))
        found = paired_differences(scores)
        by_holm += any(one.apart for one in found)
        by_max_t += any(abs(one.value) > one.simultaneous for one in found)
        uncorrected += any(one.p <= LEVEL for one in found)
    error = 2 * math.sqrt(0.05 * 0.95 / repetitions)
    assert by_holm / repetitions <= 0.05 + error
    assert by_max_t / repetitions <= 0.05 + error
    assert uncorrected / repetitions > 0.08, "the simulation can fail"


def test_simultaneous_intervals_are_between_students_and_bonferronis():
    scores = np.random.default_rng(2).normal(0, 1, (200, 6))
    pairs = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    critical = max_t_critical(scores, pairs)
    assert student_t(199) < critical and student_tail(critical, 199) > LEVEL / len(pairs)
    assert max_t_critical(scores, pairs[:1]) == student_t(199)
    assert max_t_critical(np.ones((5, 3)), pairs[:2]) == student_t(4)
    assert max_t_critical(scores, pairs) == critical, "flips are fixed"


def test_over_classes_a_difference_of_a_few_classes_is_not_one_of_others():
    """Two learners differ on classes 0 and 1 alone: sure on tasks of these dozen classes, unsure of others."""
    chance = np.random.default_rng(3)
    classes = chance.random((400, 12)).argsort(1)[:, :3]
    gain = np.where(classes < 2, 0.3, -0.02).sum(1)
    scores = np.stack([gain + chance.normal(0, 0.1, 400), chance.normal(0, 0.1, 400)], 1)
    (found,) = paired_differences(scores, classes=classes)
    assert found.apart and found.ci95_classes > 3 * found.ci95
    assert found.p_classes == found.p_classes_holm > LEVEL


def test_groups_hold_whom_nothing_tells_apart():
    assert indistinct_groups(3, []) == [[0, 1, 2]]
    assert indistinct_groups(3, [(0, 2)]) == [[0, 1], [1, 2]]
    assert indistinct_groups(4, [(0, 2), (0, 3), (1, 3)]) == [[0, 1], [1, 2], [2, 3]]
    assert indistinct_groups(3, [(0, 1), (0, 2), (1, 2)]) == [[0], [1], [2]]
