"""Durable work is accepted once, done by whoever holds the fence, and ends once."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest
from hand_clock import HandClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from groundswell.model.errors import Conflict, NotFound, Overloaded
from groundswell.model.money import Price, Usage
from groundswell.store.jobs import IDEMPOTENCY_S, Job, Jobs, JobState, NewJob, NewTask, Task, TaskState
from groundswell.store.ledger import UsageRow, totals
from groundswell.store.sql import Store

LEASE_S = 10.0


@pytest.fixture
def jobs(store: Store, clock: HandClock) -> Jobs:
    return Jobs(store, clock)


def new_job(tenant: str = "acme") -> NewJob:
    return NewJob(tenant, "key_1", "transcode", {"source": "blob_1"})


def usage_of(task: Task) -> UsageRow:
    return UsageRow(
        f"{task.id}", task.tenant, "key_1", "transcode", "h264", 1000,
        usage=Usage(pixels=1_000_000), price=Price(pixel_nano=150),
    )  # fmt: skip


async def create(jobs: Jobs, tasks: int = 1, tenant: str = "acme") -> Job:
    job, _ = await jobs.create(new_job(tenant), [NewTask("segment", i) for i in range(tasks)])
    return job


async def test_the_same_key_and_body_is_the_same_job(jobs: Jobs) -> None:
    """A client that did not hear the answer may ask again, at once or later, and pays once."""
    asked = [jobs.create(new_job(), [NewTask("prepare")], ("k", "hash")) for _ in range(20)]
    answers = await asyncio.gather(*asked)
    assert len({job.id for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    with pytest.raises(Conflict) as caught:
        await jobs.create(new_job(), [], ("k", "other hash"))
    assert caught.value.code == "idempotency_conflict"
    other, created = await jobs.create(new_job("else"), [], ("k", "other hash"))
    assert created
    assert other.tenant == "else"


async def test_an_idempotency_key_is_forgotten_after_a_day(jobs: Jobs, clock: HandClock) -> None:
    """What is kept for clients that repeat themselves must not grow for ever."""
    first, _ = await jobs.create(new_job(), [], ("k", "hash"))
    clock.now_s += IDEMPOTENCY_S - 1
    assert (await jobs.create(new_job(), [], ("k", "hash")))[0].id == first.id
    clock.now_s += 1
    assert (await jobs.create(new_job(), [], ("k", "hash")))[1]


async def test_only_so_many_jobs_may_be_open(store: Store, clock: HandClock) -> None:
    """A refusal now is more honest than a promise for next week; what was accepted is still answered."""
    jobs = Jobs(store, clock, open_jobs_max=2)
    first, _ = await jobs.create(new_job(), [], ("k", "hash"))
    await create(jobs)
    with pytest.raises(Overloaded) as caught:
        await create(jobs)
    assert caught.value.retry_after_s
    assert await jobs.create(new_job(), [], ("k", "hash")) == (first, False)
    await jobs.cancel(first.id)
    await create(jobs)


async def test_a_job_is_its_tenants_own(jobs: Jobs) -> None:
    """Another tenant's job looks exactly like one that does not exist."""
    job = await create(jobs)
    assert await jobs.get(job.id, "acme") == job
    for wrong in ((job.id, "else"), ("job_unknown", "acme")):
        with pytest.raises(NotFound, match=r"^No such job\.$"):
            await jobs.get(*wrong)
        with pytest.raises(NotFound, match=r"^No such job\.$"):
            await jobs.cancel(*wrong)


async def test_jobs_are_listed_in_pages_newest_first(jobs: Jobs, clock: HandClock) -> None:
    """Also jobs of the same millisecond appear once each."""
    made = []
    for i in range(5):
        clock.now_s += i // 3
        made.append(await create(jobs))
    await create(jobs, tenant="else")
    seen: list[Job] = []
    while page := await jobs.list("acme", limit=2, after=seen[-1].id if seen else None):
        seen.extend(page)
    assert {job.id for job in seen} == {job.id for job in made}
    assert [job.created_ms for job in seen] == sorted((job.created_ms for job in made), reverse=True)


async def test_the_oldest_job_goes_first_in_the_order_of_its_tasks(jobs: Jobs, clock: HandClock) -> None:
    """First come, first served, within a tenant."""
    first = await create(jobs, tasks=2)
    clock.now_s += 1
    second = await create(jobs)
    claimed = await jobs.claim("me", LEASE_S, limit=10)
    assert [(task.job_id, task.number) for task in claimed] == [(first.id, 0), (first.id, 1), (second.id, 0)]
    assert (await jobs.get(second.id)).state is JobState.RUNNING
    assert await jobs.claim("me", LEASE_S, limit=10) == []


async def test_a_tenant_with_a_thousand_tasks_does_not_hold_up_another(jobs: Jobs, clock: HandClock) -> None:
    """Whoever has the fewest leases is next, however long the other's queue is."""
    await create(jobs, tasks=1000)
    clock.now_s += 1
    await create(jobs, tasks=3, tenant="small")
    first = await jobs.claim("me", LEASE_S, limit=4)
    second = await jobs.claim("me", LEASE_S, limit=4)
    assert [task.tenant for task in (*first, *second)].count("small") == 3


async def test_a_worker_claims_only_the_kinds_it_does(jobs: Jobs) -> None:
    """The gateway prepares; nodes transcode."""
    await jobs.create(new_job(), [NewTask("prepare"), NewTask("segment")])
    assert [task.kind for task in await jobs.claim("me", LEASE_S, 10, kinds=["segment"])] == ["segment"]
    assert await jobs.claim("me", LEASE_S, 10, kinds=["segment"]) == []


async def test_a_stale_fence_changes_nothing(jobs: Jobs, store: Store, clock: HandClock) -> None:
    """A worker that was thought dead may wake up: no result, no charge, no task of it may get in."""
    job = await create(jobs)
    [old] = await jobs.claim("slow", LEASE_S)
    clock.now_s += LEASE_S
    [new] = await jobs.claim("quick", LEASE_S)
    assert (new.id, new.fence, new.attempts) == (old.id, old.fence + 1, 2)
    late = jobs.complete(
        old.id, old.fence, {"by": "slow"}, usage_of(old), [NewTask("finish")], finish_job=JobState.DONE
    )
    assert not await late
    assert not await jobs.renew(old.id, old.fence, LEASE_S)
    assert await jobs.retry(old.id, old.fence, {}, max_attempts=1) is None
    assert await totals(store, "tenant") == []
    [task] = await jobs.tasks(job.id)
    assert (task.state, task.result, task.owner) == (TaskState.LEASED, None, "quick")
    assert await jobs.complete(new.id, new.fence, {"by": "quick"})
    assert not await jobs.complete(new.id, new.fence, {"by": "quick again"})


async def test_a_lease_that_is_renewed_is_not_given_away(jobs: Jobs, clock: HandClock) -> None:
    """A long segment is no dead worker."""
    await create(jobs)
    [task] = await jobs.claim("me", LEASE_S)
    clock.now_s += LEASE_S - 1
    assert await jobs.renew(task.id, task.fence, LEASE_S)
    clock.now_s += LEASE_S - 1
    assert await jobs.claim("other", LEASE_S) == []
    assert await jobs.complete(task.id, task.fence, {})


async def test_the_last_of_many_adds_the_step_that_needs_them_all(jobs: Jobs, store: Store) -> None:
    """However the segments race, the finish is added once, and the cost is their sum."""
    job, _ = await jobs.create(new_job(), [NewTask("prepare")])
    [prepare] = await jobs.claim("me", LEASE_S)
    segments = [NewTask("segment", i) for i in range(8)]
    assert await jobs.complete(prepare.id, prepare.fence, {"frames": 240}, new_tasks=segments)
    claimed = await jobs.claim("me", LEASE_S, limit=10)
    done = [
        jobs.complete(task.id, task.fence, {}, usage_of(task), then=[NewTask("finish")]) for task in claimed
    ]
    assert all(await asyncio.gather(*done))
    assert await jobs.progress(job.id) == (9, 10)
    [finish] = await jobs.claim("me", LEASE_S, limit=10)
    assert finish.kind == "finish"
    result = {"playlist": "master.m3u8"}
    assert await jobs.complete(finish.id, finish.fence, {}, finish_job=JobState.DONE, job_result=result)
    ended = await jobs.get(job.id)
    assert (ended.state, ended.result, ended.cost_nano) == (JobState.DONE, result, 8 * 150)
    assert [total.cost_nano for total in await totals(store, "tenant")] == [8 * 150]


async def test_a_task_that_fails_too_often_fails_its_job(jobs: Jobs) -> None:
    """Poison must not go round for ever."""
    job = await create(jobs, tasks=2)
    [first, _second] = await jobs.claim("me", LEASE_S, limit=2)
    error = {"code": "media_rejected"}
    assert await jobs.retry(first.id, first.fence, error, max_attempts=2) is TaskState.WAITING
    [again] = await jobs.claim("me", LEASE_S)
    assert await jobs.retry(again.id, again.fence, error, max_attempts=2) is TaskState.FAILED
    ended = await jobs.get(job.id)
    assert (ended.state, ended.error) == (JobState.FAILED, error)
    assert {task.state for task in await jobs.tasks(job.id)} == {TaskState.FAILED, TaskState.CANCELLED}
    assert await jobs.claim("me", LEASE_S) == []


async def test_a_cancelled_job_takes_no_more_results(jobs: Jobs) -> None:
    """Its workers hear of it at their next renewal; cancelling twice, or after the end, changes nothing."""
    job = await create(jobs)
    [task] = await jobs.claim("me", LEASE_S)
    cancelled = await jobs.cancel(job.id)
    assert cancelled.state is JobState.CANCELLED
    assert not await jobs.renew(task.id, task.fence, LEASE_S)
    assert not await jobs.complete(task.id, task.fence, {}, finish_job=JobState.DONE)
    assert await jobs.cancel(job.id) == cancelled


async def test_work_of_a_gateway_that_was_killed_goes_on_in_the_next(
    jobs: Jobs, store: Store, database_url: str
) -> None:
    """Its leases are free at once, and its death counts as nobody's attempt."""
    await create(jobs, tasks=3)
    [first, *_] = await jobs.claim("dead", LEASE_S, limit=3)
    store.close()
    reopened = Store.open(database_url)
    after = Jobs(reopened, HandClock())
    assert await after.release_others("alive") == 3
    claimed = await after.claim("alive", LEASE_S, limit=3)
    assert [task.attempts for task in claimed] == [1, 1, 1]
    assert not await after.complete(first.id, first.fence, {})
    assert await after.release_others("alive") == 0
    reopened.close()


async def test_jobs_that_ended_long_ago_are_forgotten_and_their_usage_is_not(
    jobs: Jobs, store: Store, clock: HandClock
) -> None:
    """The database must not grow for ever, but a bill must still add up."""
    old, _ = await jobs.create(new_job(), [NewTask("segment")], ("k", "hash"))
    [task] = await jobs.claim("me", LEASE_S)
    await jobs.complete(task.id, task.fence, {}, usage_of(task), finish_job=JobState.DONE)
    still_open = await create(jobs)
    clock.now_s += 100
    assert await jobs.forget(ended_before_s=101) == []
    assert await jobs.forget(ended_before_s=100) == [old.id]
    assert [job.id for job in await jobs.list()] == [still_open.id]
    assert len(await totals(store, "tenant")) == 1
    assert (await jobs.create(new_job(), [], ("k", "hash")))[1]


class JobsInAnyOrder(RuleBasedStateMachine):
    """Two workers, leases that run out, cancellations: whoever wins, each task counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store.open(f"sqlite:///{self.folder.name}/groundswell.db")
        self.clock = HandClock()
        self.jobs = Jobs(self.store, self.clock)
        self.runner = asyncio.Runner()
        self.job_ids: list[str] = []
        self.held: list[Task] = []
        self.won: dict[str, int] = {}

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @precondition(lambda self: len(self.job_ids) < 4)
    @rule(tasks=st.integers(1, 3), tenant=st.sampled_from(["a", "b"]))
    def create(self, tasks: int, tenant: str) -> None:
        self.job_ids.append(self.run(create(self.jobs, tasks, tenant)).id)

    @rule(owner=st.sampled_from(["one", "two"]), limit=st.integers(1, 3))
    def claim(self, owner: str, limit: int) -> None:
        self.held.extend(self.run(self.jobs.claim(owner, LEASE_S, limit)))

    @rule(seconds=st.sampled_from([1.0, LEASE_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.held))
        then = [NewTask("finish")] if task.kind == "segment" else []
        if self.run(self.jobs.complete(task.id, task.fence, {}, usage_of(task), then=then)):
            self.won[task.id] = self.won.get(task.id, 0) + 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.held))
        self.run(self.jobs.retry(task.id, task.fence, {"code": "x"}, max_attempts=3))

    @precondition(lambda self: self.job_ids)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.run(self.jobs.cancel(data.draw(st.sampled_from(self.job_ids))))

    @invariant()
    def each_task_counts_once(self) -> None:
        assert set(self.won.values()) <= {1}
        charged = sum(total.works for total in self.run(totals(self.store, "tenant")))
        assert charged == len(self.won)
        cost_nano = 0
        for job_id in self.job_ids:
            job, tasks = self.run(self.jobs.get(job_id)), self.run(self.jobs.tasks(job_id))
            assert {task.id for task in tasks if task.state is TaskState.DONE} == {
                task.id for task in tasks if task.id in self.won
            }
            is_open = any(task.state in (TaskState.WAITING, TaskState.LEASED) for task in tasks)
            assert not (is_open and job.finished_ms is not None)
            assert sum(task.kind == "finish" for task in tasks) <= 1
            cost_nano += job.cost_nano
        assert cost_nano == 150 * len(self.won)

    def teardown(self) -> None:
        self.runner.close()
        self.store.close()
        self.folder.cleanup()


TestJobsInAnyOrder = JobsInAnyOrder.TestCase
TestJobsInAnyOrder.settings = settings(max_examples=10, stateful_step_count=15, deadline=None)
