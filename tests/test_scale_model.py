"""The simulation of large clusters: closed forms, every shard once, and what cost can do to a step."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale import Setup, choose
from benchmarks.scale_costs import _fit
from benchmarks.scale_model import CAUSES, Costs, Machines, Work, binds, driver_limit, log_normal
from benchmarks.scale_simulation import Simulation, simulate

MEGABYTE = 1e6
TYPICAL = Costs(
    prepare=1e-3,
    prepare_byte=1e-9,
    call=2e-4,
    call_byte=1e-9,
    turn=2e-4,
    turn_flying=1e-6,
    reply=3e-4,
    reply_byte=1e-9,
    finish=2e-3,
    finish_byte=2e-9,
    work=1e-3,
    work_byte=1e-9,
    latency=3e-4,
    pull=1e-3,
    driver_link=1.25e9,
    node_link=1.25e9,
)


def one_step(costs, machines, work, seed=0):
    return simulate(costs, machines, work, steps=1, seed=seed)[0]


@pytest.mark.parametrize("workers", [1, 3, 16, 64])
@pytest.mark.parametrize("shards_each", [1, 2, 8])
def test_equal_tasks_without_costs_lose_nothing(workers, shards_each):
    step = one_step(Costs(), Machines(workers), Work(MEGABYTE, workers * shards_each * 2, 2, [0.5]))
    assert step.seconds == pytest.approx(shards_each * 2 * 0.5)
    assert step.efficiency == pytest.approx(1)
    assert all(share == pytest.approx(0, abs=1e-9) for share in step.shares.values())


def test_one_worker_with_one_shard_pays_every_cost_once():
    c, size = TYPICAL, 8 * MEGABYTE
    driver = c.call + c.turn + c.turn_flying * 0 + c.reply + c.pull + size * (c.reply_byte + 1 / c.driver_link)
    vector = size / c.driver_link + c.latency + c.pull
    worker = c.work + size * c.work_byte + 4 * 0.5
    ends = c.prepare + size * c.prepare_byte + c.finish + size * c.finish_byte
    step = one_step(c, Machines(1), Work(size, 4, 4, [0.5]))
    # The call is still in flight when the wait for its reply begins, but not when the reply is there.
    assert step.seconds == pytest.approx(ends + driver + vector + worker + c.latency + c.turn_flying)
    assert step.messages == 1


def test_a_small_vector_travels_in_the_messages():
    c, size = TYPICAL, 1e4
    step = one_step(c, Machines(1), Work(size, 1, 1, [0.5]))
    sent = c.call + size * (c.call_byte + 1 / c.driver_link) + c.latency
    back = c.latency + c.turn + c.turn_flying + c.reply + size * c.reply_byte
    ends = c.prepare + size * c.prepare_byte + c.finish + size * c.finish_byte
    assert step.seconds == pytest.approx(ends + sent + c.work + size * c.work_byte + 0.5 + back)


@pytest.mark.parametrize("workers", [8, 64])
def test_a_slow_driver_sets_the_time_of_a_step(workers):
    step = one_step(Costs(reply=0.05), Machines(workers), Work(MEGABYTE, workers, 1, [1.0]))
    assert step.seconds == pytest.approx(1 + workers * 0.05)
    assert step.busy["messages"] == pytest.approx(workers * 0.05)
    assert step.shares["driver"] + step.shares["stragglers"] == pytest.approx(1 - 1 / step.seconds)
    assert binds(step) == "driver messages"
    step = one_step(Costs(driver_link=2e7), Machines(workers), Work(MEGABYTE, workers, 1, [1.0]))
    assert step.seconds == pytest.approx(0.05 + 1 + workers * 0.05)
    assert step.busy["bytes"] == pytest.approx(workers * 0.05)


def test_a_driver_behind_with_its_replies_does_not_take_them_for_overdue():
    # No task takes the 6.25 s until a reply is overdue, though the driver is busy with the early ones for longer.
    step = one_step(Costs(reply=0.5), Machines(64), Work(MEGABYTE, 64, 1, [1.0, 1.0, 1.0, 5.0]))
    assert step.seconds > 32
    assert step.messages == 64


def test_each_node_fetches_the_vector_once_and_one_after_another():
    costs = Costs(driver_link=1e6, pull=0.25)
    step = one_step(costs, Machines(8, per_node=2), Work(MEGABYTE, 8, 1, [100.0]))
    assert step.seconds == pytest.approx(1.25 + 100 + 8 * 1.25)
    assert step.shares["broadcast"] == pytest.approx(2 * (1.25 + 2.25 + 3.25 + 4.25) / (8 * step.seconds))


def test_a_worker_as_slow_as_two_lets_the_others_wait():
    machines = Machines(4, slow_share=0.25, slow_factor=2.0)
    step = one_step(Costs(), machines, Work(MEGABYTE, 4, 1, [1.0]))
    assert step.seconds == pytest.approx(2.0)
    assert step.efficiency == pytest.approx(4 * 1.0 / (4 * 2.0))
    assert step.shares["stragglers"] == pytest.approx(3 * 1.0 / 8)
    assert step.shares["repeated"] == pytest.approx(1.0 / 8)
    assert binds(step) == "stragglers"


def test_work_of_a_very_slow_worker_is_repeated_once_it_is_overdue():
    machines = Machines(4, slow_share=0.25, slow_factor=1000.0)
    step = one_step(Costs(), machines, Work(MEGABYTE, 4, 1, [1.0]))
    overdue = 3 * 1.0 * 2 + 0.25
    assert overdue + 1 <= step.seconds <= overdue + 1 + 0.1
    assert step.seconds < 10


def test_shards_of_a_lost_worker_are_computed_again_by_another():
    # Seed 3: the worker dies in the second step. Noticed after 1 s, replaced 30 s later.
    machines = Machines(1, lost_per_hour=60, noticed=1.0, restart=30.0)
    simulation = Simulation(Costs(), machines, Work(MEGABYTE, 1, 1, [40.0]), seed=3)
    dies = simulation._workers[0].dies
    step = simulation.step()
    while simulation.now < dies:
        step = simulation.step()
    began = simulation.now - step.seconds
    assert began < dies < simulation.now
    assert step.seconds == pytest.approx((dies - began) + 1 + 30 + 40, abs=0.11), "the driver looks every 0.1 s"
    assert step.shares["lost"] == pytest.approx(31 / step.seconds, abs=0.01)
    assert [block.leaves(1) for block in step.blocks] == [range(1)]


machines_drawn = st.builds(
    Machines,
    workers=st.integers(1, 24),
    per_node=st.integers(1, 8),
    slow_share=st.sampled_from([0.0, 0.1, 0.5]),
    slow_factor=st.sampled_from([1.0, 1.5, 9.0]),
    lost_per_hour=st.sampled_from([0.0, 0.1, 10.0]),
    restart=st.sampled_from([0.5, 30.0]),
)
works_drawn = st.builds(
    Work,
    vector_bytes=st.sampled_from([1e4, 4e5, 3.2e7]),
    tasks_per_step=st.integers(1, 60),
    shard_size=st.integers(1, 4),
    task_seconds=st.sampled_from([[0.01], [1.0], log_normal(0.3, 0.5)]),
)
costs_drawn = st.sampled_from([Costs(), TYPICAL, TYPICAL._replace(reply=0.05), TYPICAL._replace(driver_link=1e8)])


@settings(max_examples=30, deadline=None)
@given(costs_drawn, machines_drawn, works_drawn, st.integers(0, 5))
def test_every_shard_counts_once_and_every_worker_second_has_one_cause(costs, machines, work, seed):
    shards = math.ceil(work.tasks_per_step / work.shard_size)
    for step in simulate(costs, machines, work, steps=3, seed=seed):
        assert sorted(leaf for block in step.blocks for leaf in block.leaves(shards)) == list(range(shards))
        assert 0 < step.efficiency <= 1 + 1e-9
        assert set(step.shares) == set(CAUSES)
        assert all(-1e-9 <= share <= 1 for share in step.shares.values()), step.shares
        assert step.efficiency + sum(step.shares.values()) == pytest.approx(1)
        assert sum(step.busy.values()) <= step.seconds * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(costs_drawn, machines_drawn, works_drawn, st.integers(0, 5))
def test_a_seed_determines_the_steps(costs, machines, work, seed):
    assert simulate(costs, machines, work, 2, seed) == simulate(costs, machines, work, 2, seed)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(Costs._fields), st.floats(0, 3), st.integers(1, 24), st.sampled_from([1e4, 3.2e7]))
def test_more_cost_never_makes_a_step_with_a_shard_for_each_worker_faster(field, more, workers, size):
    # With more shards than workers a dearer message may change who computes what, as in any list scheduling (Graham
    # 1969), so that the step ends sooner by chance. A turn of the loop may take several replies if they wait for it.
    base = TYPICAL if workers == 1 else TYPICAL._replace(turn=0.0, turn_flying=0.0)
    link = field.endswith("_link")
    costlier = base._replace(**{field: getattr(base, field) * (1 / (1 + more) if link else 1 + more)})
    before, after = (one_step(costs, Machines(workers), Work(size, workers, 1, [1.0])) for costs in (base, costlier))
    assert after.seconds >= before.seconds * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(costs_drawn, machines_drawn, works_drawn)
def test_no_step_is_faster_than_its_parts_allow(costs, machines, work):
    step = one_step(costs, machines, work)
    nodes = math.ceil(min(machines.workers, 1) / machines.per_node)
    parts = [
        work.tasks_per_step * min(work.task_seconds) / machines.workers,
        len(step.blocks) * costs.reply,
        nodes * work.vector_bytes / costs.driver_link,
        min(work.shard_size, work.tasks_per_step) * min(work.task_seconds),
    ]
    ends = costs.prepare + costs.finish + work.vector_bytes * (costs.prepare_byte + costs.finish_byte)
    assert step.seconds >= max(parts) + ends - 1e-9


@pytest.mark.parametrize("flying", [0.0, 1e-5])
def test_at_the_drivers_limit_it_is_as_busy_as_the_workers(flying):
    costs = Costs(reply=0.01, turn_flying=flying, driver_link=1e9)
    work = Work(MEGABYTE, 1, 1, [0.5])
    limit = driver_limit(costs, work, 4)
    assert limit * (0.01 + 1e-3 + flying * 2 * limit) == pytest.approx(4 * 0.5)
    assert driver_limit(Costs(), work, 4) == math.inf


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_log_normal_sample_has_the_stated_mean_and_spread(spread):
    sample = log_normal(2.0, spread, count=20000)
    mean = sum(sample) / len(sample)
    assert mean == pytest.approx(2.0, rel=0.01)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in sample) / len(sample))
    assert deviation == pytest.approx(2.0 * spread, rel=0.05)


def test_no_more_tasks_are_recommended_than_efficiency_needs():
    free = choose(Setup("free", 1000, [1.0]), Costs(), Machines(16))
    assert (free.tasks_each, free.step.efficiency) == (1, pytest.approx(1))
    # A reply costs the driver a quarter of a task's time over all workers: 1 / (1 + 0.25 / k) > 0.9 from k = 3 on.
    dear = choose(Setup("dear", 1000, [1.0]), Costs(reply=0.25 / 16), Machines(16))
    assert dear.tasks_each == 4
    assert dear.step.efficiency > 0.9


def test_where_no_setting_is_efficient_the_best_one_is_returned():
    found = choose(Setup("hopeless", 1000, [0.01]), Costs(reply=1.0), Machines(16))
    assert found.tasks_each == 64
    assert found.step.efficiency < 0.9


def test_a_line_is_fitted_to_costs_and_never_falls():
    assert _fit([1e3, 1e6], [2e-3 + 1e-6, 2e-3 + 1e-3]) == pytest.approx((2e-3, 1e-9))
    assert _fit([1e3, 1e6], [2.0, 1.0]).slope == 0
