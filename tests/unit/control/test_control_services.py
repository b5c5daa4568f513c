"""Services: creation, versions, rollback, references, what makes tasks stale."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from support.objects import make_config, make_network, make_secret, make_service, make_task

from fleet import errors
from fleet.logs import request_id
from fleet.manager.control.services import makes_tasks_stale
from fleet.model.ids import ServiceId
from fleet.model.service import (
    ConfigReference,
    ContainerSpec,
    DnsConfig,
    EndpointMode,
    EndpointSpec,
    GlobalMode,
    JobMode,
    NetworkTarget,
    Placement,
    PortConfig,
    PublishMode,
    ReplicatedMode,
    RestartPolicy,
    SecretReference,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
    UpdateStatus,
)
from fleet.model.task import TaskState
from fleet.store import Transaction

replace = msgspec.structs.replace


def spec(name: str = "web", image: str = "nginx:1", replicas: int | None = None, **fields) -> ServiceSpec:  # type: ignore[no-untyped-def]
    container = fields.pop("container", {})
    template = fields.pop("template", {})
    return ServiceSpec(
        name=name,
        task_template=TaskSpec(container_spec=ContainerSpec(image=image, **container), **template),
        mode=fields.pop("mode", None) or _mode(replicas),
        **fields,
    )


def _mode(replicas: int | None) -> ServiceMode:
    return ServiceMode(replicated=ReplicatedMode(replicas=replicas)) if replicas is not None else ServiceMode()


def ports(*published: int, mode: PublishMode = PublishMode.INGRESS) -> EndpointSpec:
    return EndpointSpec(ports=tuple(PortConfig(target_port=80, published_port=p, publish_mode=mode) for p in published))


def test_a_service_is_created_and_found_by_name_and_prefix(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec())
        assert len(service.id) == 25
        assert service.version.index > 0
        assert world.api.services.find("web") is service
        assert world.api.services.find(service.id[:24]) is service

    run(body)


def test_a_service_remembers_the_request_that_wrote_it_last(run) -> None:
    async def body(world) -> None:
        token = request_id.set("first")
        service = await world.api.services.create(spec())
        request_id.set("second")
        changed = await world.api.services.update("web", spec(image="nginx:2"), version=service.version.index)
        request_id.set("third")
        await world.api.services.remove("web")
        request_id.reset(token)
        assert (service.request, changed.request) == ("first", "second")
        assert world.store.services.get(service.id).request == "third"

    run(body)


def test_an_unnamed_service_gets_a_name(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec(name=""))
        assert service.spec.name == f"service-{service.id[:10]}"

    run(body)


def test_names_become_ids(run) -> None:
    async def body(world) -> None:
        await world.store.commit(
            Transaction().create(make_network("net")).create(make_secret("sec")).create(make_config("cfg"))
        )
        service = await world.api.services.create(
            spec(
                template={"networks": (NetworkTarget(target="net", aliases=("a",)),)},
                container={
                    "secrets": (SecretReference(secret_name="sec"),),
                    "configs": (ConfigReference(config_id="config-cfg", config_name="cfg"),),
                },
            )
        )
        assert service.spec.all_networks == (NetworkTarget(target="network-net", aliases=("a",)),)
        container = service.spec.task_template.container_spec
        assert container.secrets[0].secret_id == "secret-sec"
        assert container.configs[0].config_id == "config-cfg"

    run(body)


@pytest.mark.parametrize(
    ("wanted", "kind", "sentence"),
    [
        (
            spec(template={"networks": (NetworkTarget(target="nonet"),)}),
            errors.NotFoundError,
            "network nonet not found",
        ),
        (
            spec(template={"networks": (NetworkTarget(target="ingress"),)}),
            errors.ForbiddenError,
            "attached to the ingress",
        ),
        (spec(container={"secrets": (SecretReference(secret_name="no"),)}), errors.UserError, "secret not found: no"),
        (
            spec(container={"secrets": (SecretReference(secret_id="secret-sec", secret_name="other"),)}),
            errors.UserError,
            "secret not found: other",
        ),
        (spec(container={"configs": (ConfigReference(config_id="no"),)}), errors.UserError, "config not found: no"),
        (
            spec(template={"networks": (NetworkTarget(target="net"), NetworkTarget(target="network-net"))}),
            errors.UserError,
            "given twice",
        ),
        (
            spec(template={"networks": (NetworkTarget(target="net"), NetworkTarget(target="host"))}),
            errors.UserError,
            "cannot be combined",
        ),
    ],
)
def test_bad_references_are_refused(run, wanted: ServiceSpec, kind: type[errors.FleetError], sentence: str) -> None:
    async def body(world) -> None:
        await world.store.commit(
            Transaction()
            .create(make_network("net"))
            .create(make_network("ingress", ingress=True))
            .create(make_secret("sec"))
        )
        with pytest.raises(kind, match=sentence) as caught:
            await world.api.services.create(wanted)
        assert type(caught.value) is kind
        assert len(world.store.services) == 0

    run(body)


def test_the_hosts_own_networks_are_kept_by_name(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec(template={"networks": (NetworkTarget(target="host"),)}))
        assert service.spec.all_networks == (NetworkTarget(target="host"),)

    run(body)


def test_a_port_of_another_service_is_refused_and_free_after_its_removal(run) -> None:
    async def body(world) -> None:
        await world.api.services.create(spec("a", endpoint_spec=ports(8080)))
        with pytest.raises(
            errors.UserError, match=r"port '8080' is already in use by service 'a' .* as an ingress port"
        ):
            await world.api.services.create(spec("b", endpoint_spec=ports(8080)))
        with pytest.raises(errors.UserError, match="already in use"):
            await world.api.services.create(spec("b", endpoint_spec=ports(8080, mode=PublishMode.HOST)))
        await world.api.services.remove("a")
        await world.api.services.create(spec("b", endpoint_spec=ports(8080)))

    run(body)


def test_host_ports_may_be_shared_but_not_with_the_mesh(run) -> None:
    async def body(world) -> None:
        host = ports(8080, mode=PublishMode.HOST)
        await world.api.services.create(spec("a", endpoint_spec=host))
        await world.api.services.create(spec("b", endpoint_spec=host))
        with pytest.raises(errors.UserError, match="as a host-published port"):
            await world.api.services.create(spec("c", endpoint_spec=ports(8080)))
        udp = EndpointSpec(ports=(PortConfig(target_port=80, published_port=8080, protocol="udp"),))  # type: ignore[arg-type]
        await world.api.services.create(
            spec("d", endpoint_spec=msgspec.convert(msgspec.to_builtins(udp), EndpointSpec))
        )

    run(body)


def test_concurrent_creations_of_one_port_or_name_have_one_winner(run) -> None:
    async def body(world) -> None:
        same_port = [world.api.services.create(spec(f"p{i}", endpoint_spec=ports(80))) for i in range(5)]
        same_name = [world.api.services.create(spec("n")) for _ in range(5)]
        results = await asyncio.gather(*same_port, *same_name, return_exceptions=True)
        assert sum(isinstance(r, errors.UserError) for r in results[:5]) == 4
        assert sum(isinstance(r, errors.ConflictError) for r in results[5:]) == 4

    run(body)


def test_an_update_needs_the_version_it_read(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec())
        with pytest.raises(errors.UserError, match=r"\?version="):
            await world.api.services.update("web", spec(replicas=2), version=None)
        updated = await world.api.services.update("web", spec(replicas=2), version=service.version.index)
        assert updated.spec.replicas == 2
        with pytest.raises(
            errors.OutOfSequenceError, match=r"update out of sequence: service web changed .*version 2, now 3"
        ):
            await world.api.services.update("web", spec(replicas=3), version=service.version.index)

    run(body)


def test_what_the_loops_write_does_not_make_a_read_stale_but_another_spec_does(run) -> None:
    async def body(world) -> None:
        api = world.api.services
        read = await api.create(spec())
        for number in range(3):
            now = world.store.services.find("web")
            await world.store.commit(
                Transaction().replace(replace(now, update_status=UpdateStatus(message=str(number))))
            )
        updated = await api.update("web", spec(image="nginx:2"), version=read.version.index)
        for stale in (read, now):
            with pytest.raises(errors.OutOfSequenceError):
                await api.update("web", spec(image="nginx:3"), version=stale.version.index)
        await api.update("web", spec(image="nginx:3"), version=updated.version.index)

    run(body)


def test_of_concurrent_updates_of_one_version_one_wins(run) -> None:
    async def body(world) -> None:
        read = await world.api.services.create(spec())
        results = await asyncio.gather(
            *(
                world.api.services.update("web", spec(image=f"nginx:{i}"), version=read.version.index)
                for i in range(2, 9)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(result, errors.OutOfSequenceError) for result in results) == 6

    run(body)


def test_the_spec_before_is_kept_and_rolled_back_to(run) -> None:
    async def body(world) -> None:
        api = world.api.services
        first = await api.create(spec(image="nginx:1"))
        with pytest.raises(errors.UserError, match="does not have a previous spec"):
            await api.update("web", first.spec, version=first.version.index, rollback=True)
        second = await api.update("web", spec(image="nginx:2"), version=first.version.index)
        assert (second.previous_spec, second.spec_version, second.task_spec_version) == (first.spec, 2, 2)
        third = await api.update("web", second.spec, version=second.version.index, rollback=True)
        assert (third.spec, third.previous_spec) == (first.spec, second.spec)
        assert (third.spec_version, third.task_spec_version) == (3, 3)
        assert third.update_status is not None
        assert third.update_status.state == "rollback_started"

    run(body)


def test_a_scheduled_job_runs_when_it_is_due_and_a_new_schedule_counts_from_now(run) -> None:
    async def body(world) -> None:
        api = world.api.services
        mode = ServiceMode(replicated_job=JobMode(total_completions=1))
        plain = await api.create(spec("plain", mode=mode))
        assert plain.job_status.last_execution is not None
        job = await api.create(spec(mode=mode, labels={"fleet.schedule.cron": "0 3 * * *"}))
        assert (job.job_status.last_execution, job.job_status.scheduled) == (None, job.created_at)
        other = replace(job.spec, labels={"fleet.schedule.cron": "0 4 * * *"})
        changed = await api.update("web", other, version=job.version.index)
        assert changed.job_status.scheduled > job.created_at
        asked = replace(other, task_template=replace(other.task_template, force_update=1))
        forced = await api.update("web", asked, version=changed.version.index)
        assert forced.job_status.job_iteration.index == 1
        assert forced.job_status.scheduled == changed.job_status.scheduled
        with pytest.raises(errors.UserError, match="only jobs have runs"):
            await api.create(spec("other", labels={"fleet.schedule.cron": "0 3 * * *"}))
        with pytest.raises(errors.UserError, match="has 1 fields"):
            await api.create(spec("bad", mode=mode, labels={"fleet.schedule.cron": "daily"}))

    run(body)


def test_a_job_whose_schedule_is_taken_away_runs_and_labels_that_mean_nothing_can_be_mended(run) -> None:
    async def body(world) -> None:
        api = world.api.services
        mode = ServiceMode(replicated_job=JobMode(total_completions=1))
        job = await api.create(spec(mode=mode, labels={"fleet.schedule.cron": "0 3 * * *"}))
        plain = await api.update("web", replace(job.spec, labels={}), version=job.version.index)
        assert plain.job_status.last_execution is not None
        odd = replace(plain, spec=replace(plain.spec, labels={"fleet.schedule.cron": "daily"}))
        await world.store.commit(Transaction().replace(odd))
        odd = api.find("web")
        mended = await api.update(
            "web", replace(odd.spec, labels={"fleet.schedule.cron": "@daily"}), version=odd.version.index
        )
        assert mended.job_status.scheduled is not None

    run(body)


def test_rolling_a_job_back_leaves_no_update_that_nobody_ends(run) -> None:
    async def body(world) -> None:
        api = world.api.services
        first = await api.create(spec(mode=ServiceMode(replicated_job=JobMode(total_completions=2))))
        labelled = msgspec.structs.replace(first.spec, labels={"a": "b"})
        second = await api.update("web", labelled, version=first.version.index)
        third = await api.update("web", second.spec, version=second.version.index, rollback=True)
        assert third.spec.labels == {}
        assert third.update_status is None

    run(body)


def test_an_update_clears_the_status_of_the_one_before(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec())
        paused = replace(service, update_status=UpdateStatus(state="paused"))
        await world.store.commit(Transaction().replace(paused))
        service = world.api.services.find("web")
        updated = await world.api.services.update("web", spec(image="nginx:2"), version=service.version.index)
        assert updated.update_status is None

    run(body)


def test_an_update_that_changes_nothing_keeps_version_and_previous_spec(run) -> None:
    async def body(world) -> None:
        api = world.api.services
        first = await api.create(spec())
        second = await api.update("web", spec(image="nginx:2"), version=first.version.index)
        again = await api.update("web", spec(image="nginx:2"), version=second.version.index)
        assert again is second
        sent_back = spec(image="nginx:2", container={"isolation": "default", "dns_config": DnsConfig()})
        again = await api.update("web", sent_back, version=second.version.index)
        assert again is second

    run(body)


@pytest.mark.parametrize(
    ("change", "is_stale"),
    [
        ({"replicas": 5}, False),
        ({"labels": {"a": "b"}}, False),
        ({"update_config": UpdateConfig(parallelism=3)}, False),
        ({"template": {"restart_policy": RestartPolicy()}}, False),
        ({"template": {"restart_policy": RestartPolicy(delay_ns=5_000_000_000)}}, False),
        ({"container": {"stop_grace_period_ns": 10_000_000_000}}, False),
        ({"container": {"init": False}}, False),
        ({"endpoint_spec": EndpointSpec()}, False),
        ({"image": "nginx:2"}, True),
        ({"container": {"env": ("A=1",)}}, True),
        ({"container": {"labels": {"a": "b"}}}, True),
        ({"template": {"restart_policy": RestartPolicy(max_attempts=3)}}, True),
        ({"template": {"force_update": 1}}, True),
        ({"template": {"placement": Placement(constraints=("node.role==worker",))}}, True),
        ({"template": {"networks": (NetworkTarget(target="n"),)}}, True),
        ({"networks": (NetworkTarget(target="n"),)}, True),
        ({"endpoint_spec": ports(80)}, True),
        ({"endpoint_spec": EndpointSpec(mode=EndpointMode.DNSRR)}, True),
    ],
)
def test_what_makes_tasks_stale(change: dict, is_stale: bool) -> None:
    assert makes_tasks_stale(spec(), spec(**change)) is is_stale
    assert makes_tasks_stale(spec(**change), spec()) is is_stale


def test_name_and_mode_do_not_change(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec())
        version = service.version.index
        with pytest.raises(errors.UnsupportedError, match="renaming"):
            await world.api.services.update("web", spec("shop"), version=version)
        global_ = replace(spec(), mode=ServiceMode(global_=GlobalMode()))
        with pytest.raises(errors.UnsupportedError, match="mode change"):
            await world.api.services.update("web", global_, version=version)

    run(body)


def test_a_removed_service_is_gone_at_once_and_its_name_free(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec())
        await world.api.services.remove("web")
        assert world.api.services.list() == []
        with pytest.raises(errors.NotFoundError, match="service web not found"):
            world.api.services.find("web")
        with pytest.raises(errors.NotFoundError):
            await world.api.services.remove(service.id)
        left = world.store.services.get(service.id)
        assert left is not None
        assert left.pending_delete
        again = await world.api.services.create(spec())
        assert again.id != service.id

    run(body)


def test_removal_meets_a_concurrent_change(run) -> None:
    async def body(world) -> None:
        service = await world.api.services.create(spec())
        await asyncio.gather(
            world.store.commit(Transaction().replace(replace(service, spec_version=9))),
            world.api.services.remove("web"),
        )
        left = world.store.services.get(service.id)
        assert left is not None
        assert (left.pending_delete, left.spec_version) == (True, 9)

    run(body)


def test_a_secret_in_use_cannot_be_removed_until_the_service_is(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_secret("sec")))
        wanted = spec(container={"secrets": (SecretReference(secret_name="sec"),)})
        await world.api.services.create(wanted)
        with pytest.raises(errors.UserError, match="secret 'sec' is in use by the following service: web"):
            await world.api.secrets.remove("sec")
        await world.api.services.remove("web")
        await world.api.secrets.remove("sec")
        with pytest.raises(errors.UserError, match="secret not found: sec"):
            await world.api.services.create(wanted)

    run(body)


def test_creation_and_removal_of_what_it_needs_never_both_succeed(run) -> None:
    async def body(world) -> None:
        for number in range(10):
            name = f"s{number}"
            await world.store.commit(Transaction().create(make_secret(name)))
            wanted = spec(name, container={"secrets": (SecretReference(secret_name=name),)})
            calls = [world.api.services.create(wanted), world.api.secrets.remove(name)]
            if number % 2:
                calls.reverse()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(result, Exception) for result in results) == 1

    run(body)


def test_a_network_that_vanishes_during_creation_is_noticed(run) -> None:
    async def body(world) -> None:
        await world.store.commit(Transaction().create(make_network("net")))
        wanted = spec(template={"networks": (NetworkTarget(target="net"),)})
        removed, created = await asyncio.gather(
            world.store.commit(Transaction().delete(world.store.networks.find("net"))),
            world.api.services.create(wanted),
            return_exceptions=True,
        )
        assert isinstance(removed, int)
        assert isinstance(created, errors.NotFoundError)
        assert len(world.store.services) == 0

    run(body)


def test_counts_are_of_wanted_tasks(run) -> None:
    async def body(world) -> None:
        web = make_service("web", spec=spec(replicas=3))
        everywhere = make_service("all", spec=replace(spec("all"), mode=ServiceMode(global_=GlobalMode())))
        tx = Transaction().create(web).create(everywhere)
        tx.create(make_task("a", state=TaskState.RUNNING))
        tx.create(make_task("b", slot=2, state=TaskState.STARTING))
        tx.create(make_task("old", state=TaskState.RUNNING, desired_state=TaskState.SHUTDOWN))
        tx.create(make_task("g", service_id="service-all", slot=0, node_id="n1", state=TaskState.RUNNING))
        tx.create(make_task("h", service_id="service-all", slot=0, node_id="n2"))
        await world.store.commit(tx)
        counts = world.api.services.counts(world.api.services.find("web"))
        assert (counts.running, counts.desired) == (1, 3)
        counts = world.api.services.counts(world.api.services.find("all"))
        assert (counts.running, counts.desired) == (1, 2)

    run(body)


def test_service_filters(run) -> None:
    async def body(world) -> None:
        await world.api.services.create(spec("web", labels={"stack": "s"}))
        await world.api.services.create(replace(spec("agent"), mode=ServiceMode(global_=GlobalMode())))

        def names(**filters: str) -> list[str]:
            return [s.spec.name for s in world.api.services.list({k: (v,) for k, v in filters.items()})]

        assert names() == ["web", "agent"]
        assert names(name="we") == ["web"]
        assert names(label="stack=s") == ["web"]
        assert names(label="stack=t") == []
        assert names(label="stack") == ["web"]
        assert names(mode="global") == ["agent"]
        assert names(id=str(ServiceId(world.api.services.find("web").id))[:25]) == ["web"]

    run(body)
