"""Durable work: jobs and their tasks, committed before they are acknowledged, leased with a fence.

A job is what a client asked for and can ask after; its tasks are the pieces that workers claim. A claim is a
lease with a *fence*, a number that rises with each claim: whatever comes with an older fence is too late and
changes nothing, so that a worker which was thought dead cannot do harm. Completing a task, settling its usage
and adding the tasks that follow is one transaction.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from groundswell.model.errors import Conflict, NotFound, Overloaded
from groundswell.store.ledger import UsageRow, settle
from groundswell.store.schema import idempotency as idempotency_table
from groundswell.store.schema import jobs as job_table
from groundswell.store.schema import tasks as task_table
from groundswell.store.sql import Store

IDEMPOTENCY_S = 24 * 3600
CLEANED_ROWS_MAX = (
    100  # Old rows deleted with each new job: faster than they can come, and never a long pause.
)
OPEN_JOBS_MAX = 10_000
TASKS_PER_JOB_MAX = 100_000


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskState(StrEnum):
    WAITING = "waiting"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_JOB = (JobState.QUEUED, JobState.RUNNING)
OPEN_TASK = (TaskState.WAITING, TaskState.LEASED)


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to be added. ``number`` orders the tasks of a job; (kind, number) is unique in it."""

    kind: str
    number: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be created. ``request``, like every mapping here, holds what JSON can hold."""

    tenant: str
    key_id: str
    kind: str
    request: Mapping[str, Any]
    id: str = ""  # Made by ``create`` when empty.


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is in the store. Times in milliseconds since 1970, cost in nano-dollars."""

    id: str
    tenant: str
    key_id: str
    kind: str
    state: JobState
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_ms: int
    updated_ms: int
    finished_ms: int | None
    cost_nano: int


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it is in the store; ``fence`` is what a worker shows to prove that its lease still holds."""

    id: str
    job_id: str
    tenant: str
    kind: str
    number: int
    state: TaskState
    owner: str | None
    lease_until_ms: int | None
    fence: int
    attempts: int
    spec: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class Jobs:
    """All jobs in a store. Every method that changes something returns after the commit."""

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.time, open_jobs_max: int = OPEN_JOBS_MAX
    ) -> None:
        self._store = store
        self._clock = clock
        self._open_jobs_max = open_jobs_max

    async def create(
        self, job: NewJob, tasks: Sequence[NewTask], idempotency: tuple[str, str] | None = None
    ) -> tuple[Job, bool]:
        """Accept a job; returns it and whether it is new.

        ``idempotency`` is the client's key and a hash of the request body. Within 24 hours the same tenant,
        key and hash get the job that exists; another hash raises ``Conflict`` (``idempotency_conflict``).
        Raises ``Overloaded`` when too many jobs are open.
        """
        return await self._store.write(lambda c: self._create(c, job, tasks, idempotency))

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        """Raises ``NotFound`` (``job_not_found``), also for another tenant's job when one is named."""
        return await self._store.read(lambda c: _get(c, job_id, tenant))

    async def tasks(self, job_id: str) -> list[Task]:
        """All tasks of a job by kind and number."""
        query = (
            sa.select(task_table)
            .where(task_table.c.job_id == job_id)
            .order_by(task_table.c.kind, task_table.c.number)
        )
        return [_task(row) for row in await self._store.read(lambda c: c.execute(query).all())]

    async def progress(self, job_id: str) -> tuple[int, int]:
        """How many tasks are done, of how many known so far."""
        query = sa.select(
            sa.func.count(sa.case((task_table.c.state == TaskState.DONE, 1))), sa.func.count()
        ).where(task_table.c.job_id == job_id)
        done, total = await self._store.read(lambda c: c.execute(query).one())
        return done, total

    async def claim(
        self, owner: str, lease_s: float, limit: int = 1, kinds: Sequence[str] | None = None
    ) -> list[Task]:
        """Lease up to ``limit`` tasks: the tenant with the fewest leases first, then the oldest job.

        Tasks whose lease has run out are given to whoever asks.
        """
        return await self._store.write(lambda c: _claim(c, self._now_ms(), owner, lease_s, limit, kinds))

    async def renew(self, task_id: str, fence: int, lease_s: float) -> bool:
        """Prolong a lease from now. False: it is lost (taken back, or the job was cancelled); stop."""
        now_ms = self._now_ms()
        change = {"lease_until_ms": now_ms + int(lease_s * 1000), "updated_ms": now_ms}
        return await self._store.write(lambda c: _change_leased(c, task_id, fence, change))

    async def complete(
        self,
        task_id: str,
        fence: int,
        result: Mapping[str, Any],
        usage_row: UsageRow | None = None,
        new_tasks: Sequence[NewTask] = (),
        then: Sequence[NewTask] = (),
        finish_job: JobState | None = None,
        job_result: Mapping[str, Any] | None = None,
    ) -> bool:
        """The task is done: write its result, settle its usage, add what follows, in one transaction.

        ``new_tasks`` are added always, ``then`` only when no other task of the job is open any more (the
        step that needs all the others). ``finish_job`` ends the job, with ``job_result``. False when the
        lease is lost: then nothing at all was written.
        """
        now_ms = self._now_ms()

        def transaction(connection: Connection) -> bool:
            done = {"state": TaskState.DONE, "result": dict(result), "updated_ms": now_ms}
            if not _change_leased(connection, task_id, fence, done):
                return False
            job = _job_of(connection, task_id)
            change: dict[str, Any] = {"updated_ms": now_ms}
            if usage_row is not None and settle(connection, usage_row):
                change["cost_nano"] = job_table.c.cost_nano + usage_row.cost_nano
            if job_result is not None:
                change["result"] = dict(job_result)
            following = list(new_tasks)
            if then and not following and not _has_open_task(connection, job.id):
                following.extend(then)
            _insert_tasks(connection, job, following, now_ms)
            connection.execute(job_table.update().where(job_table.c.id == job.id).values(change))
            if finish_job is not None:
                _finish(connection, job.id, finish_job, now_ms)
            return True

        return await self._store.write(transaction)

    async def retry(
        self, task_id: str, fence: int, error: Mapping[str, Any], max_attempts: int
    ) -> TaskState | None:
        """An attempt failed. WAITING: it will be tried again. FAILED: that was the last attempt, and the job
        has failed with this error. None: the lease was lost, nothing was written."""
        now_ms = self._now_ms()

        def transaction(connection: Connection) -> TaskState | None:
            query = sa.select(task_table.c.attempts).where(task_table.c.id == task_id)
            attempts = connection.scalar(query)
            again = attempts is not None and attempts < max_attempts
            state = TaskState.WAITING if again else TaskState.FAILED
            change = {"state": state, "error": dict(error), "owner": None, "updated_ms": now_ms}
            if not _change_leased(connection, task_id, fence, change):
                return None
            if state is TaskState.FAILED:
                _finish(connection, _job_of(connection, task_id).id, JobState.FAILED, now_ms, error)
            return state

        return await self._store.write(transaction)

    async def cancel(self, job_id: str, tenant: str | None = None) -> Job:
        """End an open job as cancelled; a job that has ended stays as it is. Raises ``NotFound``."""

        def transaction(connection: Connection) -> Job:
            _get(connection, job_id, tenant)
            _finish(connection, job_id, JobState.CANCELLED, self._now_ms())
            return _get(connection, job_id, tenant)

        return await self._store.write(transaction)

    async def release_others(self, owner: str) -> int:
        """Take back every lease that is not ``owner``'s; returns how many.

        For the start of a gateway that owns the database (``Store.own``): the others are dead. Their
        attempts do not count, since a gateway's death is no fault of the task.
        """
        statement = (
            task_table.update()
            .where(task_table.c.state == TaskState.LEASED, task_table.c.owner != owner)
            .values(
                state=TaskState.WAITING, owner=None, lease_until_ms=None, attempts=task_table.c.attempts - 1
            )
        )
        return await self._store.write(lambda c: c.execute(statement).rowcount)

    async def forget(self, ended_before_s: float, limit: int = 100) -> list[str]:
        """Delete up to ``limit`` jobs that ended more than so many seconds ago; returns their ids.

        Usage rows stay. The caller deletes the files."""
        before_ms = self._now_ms() - int(ended_before_s * 1000)
        return await self._store.write(lambda c: _forget(c, before_ms, limit))

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _create(
        self,
        connection: Connection,
        job: NewJob,
        tasks: Sequence[NewTask],
        idempotency: tuple[str, str] | None,
    ) -> tuple[Job, bool]:
        now_ms = self._now_ms()
        if idempotency is not None:
            _clean_idempotency(connection, now_ms)
            known = _known_job(connection, job.tenant, *idempotency)
            if known is not None:
                return known, False
        query = sa.select(sa.func.count()).where(job_table.c.state.in_(OPEN_JOB))
        if (connection.scalar(query) or 0) >= self._open_jobs_max:
            raise Overloaded("Too many jobs are waiting.", code="job_queue_full", retry_after_s=30)
        job_id = job.id or f"job_{secrets.token_hex(12)}"
        connection.execute(
            job_table.insert().values(
                id=job_id, tenant=job.tenant, key_id=job.key_id, kind=job.kind, state=JobState.QUEUED,
                request=dict(job.request), created_ms=now_ms, updated_ms=now_ms, cost_nano=0,
            )
        )  # fmt: skip
        if idempotency is not None:
            key, body_hash = idempotency
            connection.execute(
                idempotency_table.insert().values(
                    tenant=job.tenant, key=key, body_hash=body_hash, job_id=job_id, created_ms=now_ms
                )
            )
        created = _get(connection, job_id, None)
        _insert_tasks(connection, created, tasks, now_ms)
        return created, True

    async def list(self, tenant: str | None = None, limit: int = 20, after: str | None = None) -> list[Job]:
        """Newest first; ``after`` is the id of the last job of the page before."""
        return await self._store.read(lambda c: _list(c, tenant, limit, after))


def _clean_idempotency(connection: Connection, now_ms: int) -> None:
    rows = idempotency_table.c
    old = (
        sa.select(rows.id)
        .where(rows.created_ms <= now_ms - IDEMPOTENCY_S * 1000)
        .order_by(rows.created_ms)
        .limit(CLEANED_ROWS_MAX)
    )
    connection.execute(idempotency_table.delete().where(rows.id.in_(old)))


def _known_job(connection: Connection, tenant: str, key: str, body_hash: str) -> Job | None:
    rows = idempotency_table.c
    known = connection.execute(
        sa.select(rows.body_hash, rows.job_id).where(rows.tenant == tenant, rows.key == key)
    ).one_or_none()
    if known is None:
        return None
    if known.body_hash != body_hash:
        raise Conflict("This Idempotency-Key was used for another request.", code="idempotency_conflict")
    return _get(connection, known.job_id, tenant)


def _insert_tasks(connection: Connection, job: Job, tasks: Sequence[NewTask], now_ms: int) -> None:
    if not tasks:
        return
    if len(tasks) > TASKS_PER_JOB_MAX:
        raise ValueError(f"a job has at most {TASKS_PER_JOB_MAX} tasks")
    rows = [
        {
            "id": f"task_{secrets.token_hex(12)}", "job_id": job.id, "kind": task.kind, "number": task.number,
            "tenant": job.tenant, "job_created_ms": job.created_ms, "state": TaskState.WAITING, "fence": 0,
            "attempts": 0, "spec": dict(task.spec), "updated_ms": now_ms,
        }
        for task in tasks
    ]  # fmt: skip
    connection.execute(task_table.insert(), rows)


def _get(connection: Connection, job_id: str, tenant: str | None) -> Job:
    row = connection.execute(sa.select(job_table).where(job_table.c.id == job_id)).one_or_none()
    if row is None or (tenant is not None and row.tenant != tenant):
        raise NotFound("No such job.", code="job_not_found")
    return _job(row)


def _list(connection: Connection, tenant: str | None, limit: int, after: str | None) -> list[Job]:
    columns = job_table.c
    query = sa.select(job_table).order_by(columns.created_ms.desc(), columns.id.desc()).limit(limit)
    if tenant is not None:
        query = query.where(columns.tenant == tenant)
    if after is not None:
        last = _get(connection, after, tenant)
        query = query.where(sa.tuple_(columns.created_ms, columns.id) < (last.created_ms, last.id))
    return [_job(row) for row in connection.execute(query)]


def _claim(
    connection: Connection, now_ms: int, owner: str, lease_s: float, limit: int, kinds: Sequence[str] | None
) -> list[Task]:
    tasks = task_table.c
    connection.execute(
        task_table.update()
        .where(tasks.state == TaskState.LEASED, tasks.lease_until_ms <= now_ms)
        .values(state=TaskState.WAITING, owner=None)
    )
    chosen: list[str] = []
    for tenant, count in _shares(connection, limit, kinds).items():
        query = sa.select(tasks.id).where(tasks.state == TaskState.WAITING, tasks.tenant == tenant)
        if kinds is not None:
            query = query.where(tasks.kind.in_(kinds))
        oldest = query.order_by(tasks.job_created_ms, tasks.job_id, tasks.number, tasks.kind).limit(count)
        chosen.extend(connection.scalars(oldest))
    if not chosen:
        return []
    lease = {
        "state": TaskState.LEASED, "owner": owner, "lease_until_ms": now_ms + int(lease_s * 1000),
        "fence": tasks.fence + 1, "attempts": tasks.attempts + 1, "updated_ms": now_ms,
    }  # fmt: skip
    connection.execute(task_table.update().where(tasks.id.in_(chosen)).values(lease))
    claimed = connection.execute(
        sa.select(task_table)
        .where(tasks.id.in_(chosen))
        .order_by(tasks.job_created_ms, tasks.job_id, tasks.number)
    ).all()
    connection.execute(
        job_table.update()
        .where(job_table.c.id.in_({row.job_id for row in claimed}), job_table.c.state == JobState.QUEUED)
        .values(state=JobState.RUNNING, updated_ms=now_ms)
    )
    return [_task(row) for row in claimed]


def _shares(connection: Connection, limit: int, kinds: Sequence[str] | None) -> dict[str, int]:
    """How many tasks each tenant gets now: one after another to the tenant with the fewest leases, the one
    whose job is oldest among equals."""
    tasks = task_table.c
    waiting = sa.select(tasks.tenant, sa.func.count(), sa.func.min(tasks.job_created_ms)).where(
        tasks.state == TaskState.WAITING
    )
    if kinds is not None:
        waiting = waiting.where(tasks.kind.in_(kinds))
    leased = sa.select(tasks.tenant, sa.func.count()).where(tasks.state == TaskState.LEASED)
    held = {row[0]: row[1] for row in connection.execute(leased.group_by(tasks.tenant))}
    queue = {
        tenant: (count, oldest_ms)
        for tenant, count, oldest_ms in connection.execute(waiting.group_by(tasks.tenant))
    }
    shares: dict[str, int] = {}
    for _ in range(limit):
        hungry = [tenant for tenant, (count, _) in queue.items() if shares.get(tenant, 0) < count]
        if not hungry:
            break
        tenant = min(hungry, key=lambda t: (held.get(t, 0) + shares.get(t, 0), queue[t][1], t))
        shares[tenant] = shares.get(tenant, 0) + 1
    return shares


def _change_leased(connection: Connection, task_id: str, fence: int, change: Mapping[str, Any]) -> bool:
    """Change a task if this fence still holds it."""
    tasks = task_table.c
    held = (tasks.id == task_id, tasks.fence == fence, tasks.state == TaskState.LEASED)
    return connection.execute(task_table.update().where(*held).values(change)).rowcount == 1


def _job_of(connection: Connection, task_id: str) -> Job:
    query = sa.select(job_table).join(task_table).where(task_table.c.id == task_id)
    return _job(connection.execute(query).one())


def _has_open_task(connection: Connection, job_id: str) -> bool:
    query = sa.select(task_table.c.id).where(task_table.c.job_id == job_id, task_table.c.state.in_(OPEN_TASK))
    return connection.execute(query.limit(1)).first() is not None


def _finish(
    connection: Connection,
    job_id: str,
    state: JobState,
    now_ms: int,
    error: Mapping[str, Any] | None = None,
) -> bool:
    """End an open job and cancel its open tasks; False when it had ended before."""
    change: dict[str, Any] = {"state": state, "updated_ms": now_ms, "finished_ms": now_ms}
    if error is not None:
        change["error"] = dict(error)
    is_open = (job_table.c.id == job_id, job_table.c.state.in_(OPEN_JOB))
    if connection.execute(job_table.update().where(*is_open).values(change)).rowcount == 0:
        return False
    connection.execute(
        task_table.update()
        .where(task_table.c.job_id == job_id, task_table.c.state.in_(OPEN_TASK))
        .values(state=TaskState.CANCELLED, owner=None, updated_ms=now_ms)
    )
    return True


def _forget(connection: Connection, before_ms: int, limit: int) -> list[str]:
    ended = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
    query = sa.select(job_table.c.id).where(
        job_table.c.state.in_(ended), job_table.c.finished_ms <= before_ms
    )
    old = list(connection.scalars(query.order_by(job_table.c.finished_ms).limit(limit)))
    connection.execute(task_table.delete().where(task_table.c.job_id.in_(old)))
    connection.execute(idempotency_table.delete().where(idempotency_table.c.job_id.in_(old)))
    connection.execute(job_table.delete().where(job_table.c.id.in_(old)))
    return old


def _job(row: sa.Row[Any]) -> Job:
    values = dict(row._mapping)
    return Job(**{**values, "state": JobState(values["state"])})


def _task(row: sa.Row[Any]) -> Task:
    values = {name: row._mapping[name] for name in Task.__slots__}
    return Task(**{**values, "state": TaskState(values["state"])})
