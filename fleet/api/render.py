"""The model as Docker's JSON: the stored form plus what Docker always shows, minus what is fleet's own.

Stored objects leave defaults out and so does ``to_builtins``; clients index some keys without asking (``Spec["Labels"]``,
``Mode.Replicated.Replicas``), so those are filled in here. Shapes: Engine API v1.47 and recorded answers of dockerd.
``Encoded`` keeps the bytes of hot lists' items per version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from fleet.model.cluster import DEFAULT_CERT_EXPIRY_NS, DEFAULT_HEARTBEAT_NS, Cluster
from fleet.model.defaults import DEFAULT_RESTART_DELAY_NS, DEFAULT_STOP_GRACE_NS
from fleet.model.network import Ipam, Network
from fleet.model.node import Node
from fleet.model.secret import Config, Secret
from fleet.model.service import (
    ConfigReference,
    Endpoint,
    EndpointSpec,
    FileTarget,
    PortConfig,
    RestartPolicy,
    SecretReference,
    Service,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from fleet.model.task import Attachment, Task
from fleet.model.wire import to_builtins

__all__ = [
    "VXLAN_OPTION",
    "Encoded",
    "Json",
    "config_json",
    "network_json",
    "node_json",
    "secret_json",
    "service_json",
    "service_spec_json",
    "swarm_json",
    "task_json",
    "with_status",
]

Json = dict[str, Any]

_NO_TIME: Final = "0001-01-01T00:00:00Z"
VXLAN_OPTION: Final = "com.docker.network.driver.overlay.vxlanid_list"


def service_json(
    service: Service, *, insert_defaults: bool = False, status: tuple[int, int, int] | None = None
) -> Json:
    """``status``: (running, desired, completed) tasks, for ``?status=true``. ``insert_defaults`` spells out what the user
    left to Docker's defaults.
    """
    result = _meta(service)
    result["Spec"] = service_spec_json(service.spec, insert_defaults=insert_defaults)
    if service.previous_spec is not None:
        result["PreviousSpec"] = service_spec_json(service.previous_spec, insert_defaults=insert_defaults)
    result["Endpoint"] = _endpoint(service.endpoint)
    if service.update_status is not None:
        result["UpdateStatus"] = {"State": "", "Message": "", **to_builtins(service.update_status)}
    if service.job_status is not None:
        iteration = {"Index": service.job_status.job_iteration.index}
        result["JobStatus"] = {**to_builtins(service.job_status), "JobIteration": iteration}
    if service.autoscale is not None:
        result["Autoscale"] = to_builtins(service.autoscale)
    if status is not None:
        result["ServiceStatus"] = _service_status(status)
    return result


def with_status(service: bytes, status: tuple[int, int, int]) -> bytes:
    """A rendered service without status, as ``service_json`` shows it with one."""
    return b'%b,"ServiceStatus":%b}' % (service[:-1], msgspec.json.encode(_service_status(status)))


def _service_status(status: tuple[int, int, int]) -> Json:
    running, desired, completed = status
    return {"RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed}


def service_spec_json(spec: ServiceSpec, *, insert_defaults: bool = False) -> Json:
    """Mode, names and labels are always there; a replicated service always says how many."""
    result: Json = {"Name": spec.name, "Labels": dict(spec.labels)}
    result["TaskTemplate"] = _task_spec(spec.task_template, insert_defaults=insert_defaults)
    result["TaskTemplate"].setdefault("Runtime", "container")
    result["Mode"] = _mode(spec)
    for key, config in (("UpdateConfig", spec.update_config), ("RollbackConfig", spec.rollback_config)):
        if config is not None or insert_defaults:
            result[key] = _update_config(config or UpdateConfig())
    if spec.networks:
        result["Networks"] = [{"Target": target.target, **to_builtins(target)} for target in spec.networks]
    if spec.endpoint_spec is not None or insert_defaults:
        result["EndpointSpec"] = _endpoint_spec(spec.endpoint_spec or EndpointSpec())
    return result


def _mode(spec: ServiceSpec) -> Json:
    if spec.mode.global_job is not None:
        return {"GlobalJob": {}}
    if spec.mode.replicated_job is not None:
        return {"ReplicatedJob": {"MaxConcurrent": spec.concurrency, "TotalCompletions": spec.completions}}
    return {"Global": {}} if spec.is_global else {"Replicated": {"Replicas": spec.replicas}}


def task_json(task: Task, networks: Mapping[str, Network]) -> Json:
    """``networks`` by id: Docker shows the whole network object in each attachment.

    The slots of a job are counted from 0 here, because Docker's client looks for them so to know that the job is done; names
    and templates count from 1, as for services.
    """
    result = _meta(task)
    result["Labels"] = dict(task.labels)
    result["Spec"] = _task_spec(task.spec, insert_defaults=False)
    result["ServiceID"] = task.service_id
    slot = task.slot - 1 if task.slot and task.job_iteration is not None else task.slot
    if slot:
        result["Slot"] = slot
    if task.node_id:
        result["NodeID"] = task.node_id
    status = to_builtins(task.status)
    status["State"] = task.status.state.value
    for key in ("AppliedBy", "AppliedAt", "RunningSince", "Copied"):
        status.pop(key, None)
    container = task.status.container_status
    if container is not None:
        status["ContainerStatus"] = {
            "ContainerID": container.container_id,
            "PID": container.pid,
            "ExitCode": container.exit_code,
        }
    ports = task.status.port_status.ports if task.status.port_status else ()
    status["PortStatus"] = {"Ports": [_port(port) for port in ports]} if ports else {}
    result["Status"] = status
    result["DesiredState"] = task.desired_outcome.value
    if task.job_iteration is not None:
        result["JobIteration"] = {"Index": task.job_iteration.index}
    if task.network_attachments:
        result["NetworksAttachments"] = [_attachment(each, networks) for each in task.network_attachments]
    if task.assigned_generic_resources:
        # The first is what Docker's description calls them, the second what dockerd does.
        result["AssignedGenericResources"] = to_builtins(task.assigned_generic_resources)
        result["GenericResources"] = result["AssignedGenericResources"]
    result["Volumes"] = None
    return result


def node_json(node: Node) -> Json:
    """``ManagerStatus`` only for managers, as in Docker."""
    result = _meta(node)
    spec: Json = {
        "Labels": dict(node.spec.labels),
        "Role": node.spec.role.value,
        "Availability": node.spec.availability.value,
    }
    if node.spec.name:
        spec["Name"] = node.spec.name
    result["Spec"] = spec
    description = to_builtins(node.description)
    for key in ("Platform", "Resources", "Engine", "TLSInfo"):
        description.setdefault(key, {})
    description.setdefault("Hostname", "")
    description.pop("TunnelKey", None)  # fleet's own
    description["Engine"].setdefault("EngineVersion", "")
    result["Description"] = description
    result["Status"] = {**to_builtins(node.status), "State": node.status.state.value, "Addr": node.status.addr}
    if node.manager_status is not None:
        status = node.manager_status
        manager: Json = {"Reachability": status.reachability.value, "Addr": status.addr}
        result["ManagerStatus"] = {"Leader": True, **manager} if status.leader else manager
    return result


def secret_json(secret: Secret) -> Json:
    """Without the data: it leaves the managers only to tasks."""
    result = _meta(secret)
    spec = to_builtins(secret.spec)
    spec.pop("Data", None)
    result["Spec"] = {"Name": secret.spec.name, "Labels": dict(secret.spec.labels), **_rest(spec)}
    return result


def config_json(config: Config) -> Json:
    """With the data, base64."""
    result = _meta(config)
    spec = to_builtins(config.spec)
    result["Spec"] = {"Name": config.spec.name, "Labels": dict(config.spec.labels), **_rest(spec)}
    return result


def network_json(network: Network, *, services: Mapping[str, Json] | None = None) -> Json:
    """Docker's flat network object. ``services`` is shown for ``?verbose=true``."""
    spec = network.spec
    options = dict(spec.options)
    if network.vni:
        options[VXLAN_OPTION] = str(network.vni)
    result: Json = {
        "Name": spec.name,
        "Id": network.id,
        "Created": network.created_at,
        "Scope": "swarm",
        "Driver": spec.driver or "overlay",
        "EnableIPv4": spec.enable_ipv4 is not False,
        "EnableIPv6": bool(spec.enable_ipv6),
        "IPAM": {
            "Driver": "default",
            "Options": dict(spec.ipam.options) if spec.ipam else {},
            "Config": _ipam_configs(network.ipam if network.ipam.config else spec.ipam or Ipam()),
        },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": spec.config_from.network if spec.config_from else ""},
        "ConfigOnly": spec.config_only,
        "Containers": {},
        "Options": options,
        "Labels": dict(spec.labels),
    }
    if services is not None:
        result["Services"] = dict(services)
    return result


def swarm_json(cluster: Cluster) -> Json:
    """The answer of ``GET /swarm``; key material never."""
    result = _meta(cluster)
    spec = cluster.spec
    ca = to_builtins(spec.ca_config)
    for key in ("SigningCACert", "SigningCAKey", "SigningCaCert", "SigningCaKey"):
        ca.pop(key, None)
    if spec.ca_config.external_cas:
        absent = {"Protocol": "cfssl", "URL": "", "CACert": ""}
        ca["ExternalCAs"] = [{**absent, **external} for external in ca["ExternalCAs"]]
    ca["NodeCertExpiry"] = spec.ca_config.node_cert_expiry_ns or DEFAULT_CERT_EXPIRY_NS
    result["Spec"] = {
        "Name": spec.name,
        "Labels": dict(spec.labels),
        "Orchestration": {"TaskHistoryRetentionLimit": spec.orchestration.task_history_retention_limit},
        "Raft": {
            "SnapshotInterval": spec.raft.snapshot_interval,
            "KeepOldSnapshots": spec.raft.keep_old_snapshots,
            "LogEntriesForSlowFollowers": spec.raft.log_entries_for_slow_followers,
            "ElectionTick": spec.raft.election_tick,
            "HeartbeatTick": spec.raft.heartbeat_tick,
        },
        "Dispatcher": {"HeartbeatPeriod": spec.dispatcher.heartbeat_period_ns or DEFAULT_HEARTBEAT_NS},
        "CAConfig": ca,
        "TaskDefaults": to_builtins(spec.task_defaults),
        "EncryptionConfig": {"AutoLockManagers": spec.encryption_config.auto_lock_managers},
    }
    result["SealingKey"] = {
        "Digest": cluster.sealing_key_digest,
        "RotatedAt": to_builtins(cluster.sealing_key_rotated_at) or "",
        "RotationInProgress": cluster.sealing_key_rotation_in_progress,
    }
    result["TLSInfo"] = {
        "TrustRoot": cluster.tls_info.trust_root,
        "CertIssuerSubject": cluster.tls_info.cert_issuer_subject,
        "CertIssuerPublicKey": cluster.tls_info.cert_issuer_public_key,
    }
    result["RootRotationInProgress"] = cluster.root_rotation_in_progress
    result["DataPathPort"] = cluster.data_path_port
    result["DefaultAddrPool"] = list(cluster.default_addr_pool)
    result["SubnetSize"] = cluster.subnet_size
    result["JoinTokens"] = {"Worker": cluster.join_tokens.worker, "Manager": cluster.join_tokens.manager}
    return result


# -- parts


def _meta(obj: Service | Task | Node | Secret | Config | Cluster | Network) -> Json:
    return {
        "ID": obj.id,
        "Version": {"Index": obj.version.index},
        "CreatedAt": obj.created_at,
        "UpdatedAt": obj.updated_at,
    }


def _rest(spec: Json) -> Json:
    return {key: value for key, value in spec.items() if key not in ("Name", "Labels")}


def _task_spec(spec: TaskSpec, *, insert_defaults: bool) -> Json:
    result: Json = to_builtins(spec)
    result.pop("RegistryLogin", None)
    container: Json = result.setdefault("ContainerSpec", {})
    container.setdefault("Image", spec.container_spec.image)
    container.setdefault("DNSConfig", {})
    container.setdefault("Isolation", "default")
    if "Ulimits" in container:
        container["Ulimits"] = [
            {"Name": limit.name, "Hard": limit.hard, "Soft": limit.soft} for limit in spec.container_spec.ulimits
        ]
    if "Privileges" in container:
        absent = {"CredentialSpec": None, "SELinuxContext": None, "NoNewPrivileges": False}
        container["Privileges"] = {**absent, **container["Privileges"]}
    if "Mounts" in container:
        container["Mounts"] = [
            {"Type": mount.type, **raw}
            for mount, raw in zip(spec.container_spec.mounts, container["Mounts"], strict=True)
        ]
    files: tuple[tuple[str, Sequence[SecretReference | ConfigReference]], ...] = (
        ("Secrets", spec.container_spec.secrets),
        ("Configs", spec.container_spec.configs),
    )
    for key, references in files:
        for reference, raw in zip(references, container.get(key, ()), strict=True):
            if reference.file is not None:
                raw["File"] = _file(reference.file)
    resources = result.setdefault("Resources", {})
    resources.setdefault("Limits", {})
    resources.setdefault("Reservations", {})
    result.setdefault("Placement", {})
    result.setdefault("ForceUpdate", 0)
    if spec.restart_policy is not None:
        result["RestartPolicy"] = _restart_policy(spec.restart_policy)
    if insert_defaults:
        container.setdefault("StopGracePeriod", DEFAULT_STOP_GRACE_NS)
        policy = result.setdefault("RestartPolicy", _restart_policy(RestartPolicy()))
        policy.setdefault("Delay", DEFAULT_RESTART_DELAY_NS)
    return result


def _file(target: FileTarget) -> Json:
    return {"Name": target.name, "UID": target.uid, "GID": target.gid, "Mode": target.mode}


def _restart_policy(policy: RestartPolicy) -> Json:
    return {"Condition": policy.condition.value, "MaxAttempts": policy.max_attempts, **to_builtins(policy)}


def _update_config(config: UpdateConfig) -> Json:
    result: Json = {"Parallelism": config.parallelism, "FailureAction": config.failure_action}
    if config.delay_ns:
        result["Delay"] = config.delay_ns
    result["Monitor"] = config.monitor_ns
    result["MaxFailureRatio"] = config.max_failure_ratio
    result["Order"] = config.order
    if config.progress_deadline_ns:
        result["ProgressDeadline"] = config.progress_deadline_ns
    return result


def _port(port: PortConfig) -> Json:
    result: Json = {"Name": port.name} if port.name else {}
    result |= {"Protocol": port.protocol.value, "TargetPort": port.target_port}
    if port.published_port:
        result["PublishedPort"] = port.published_port
    result["PublishMode"] = port.publish_mode.value
    return result


def _endpoint_spec(spec: EndpointSpec) -> Json:
    result: Json = {"Mode": spec.mode.value}
    if spec.ports:
        result["Ports"] = [_port(port) for port in spec.ports]
    return result


def _endpoint(endpoint: Endpoint) -> Json:
    result: Json = {"Spec": _endpoint_spec(endpoint.spec) if endpoint.spec is not None else {}}
    if endpoint.ports:
        result["Ports"] = [_port(port) for port in endpoint.ports]
    if endpoint.virtual_ips:
        result["VirtualIPs"] = [{"NetworkID": vip.network_id, "Addr": vip.addr} for vip in endpoint.virtual_ips]
    return result


def _ipam_configs(ipam: Ipam) -> list[Json]:
    return [to_builtins(config) for config in ipam.config]


def _attached_pools(ipam: Ipam) -> list[Json]:
    """As ``_ipam_configs``, in the spelling that Docker keeps for the networks of tasks."""
    pools = ({"Subnet": each.subnet, "Range": each.ip_range, "Gateway": each.gateway} for each in ipam.config)
    return [{key: value for key, value in pool.items() if value} for pool in pools]


def _attachment(attachment: Attachment, networks: Mapping[str, Network]) -> Json:
    gone: Json = {
        "ID": attachment.network_id,
        "Version": {},
        "CreatedAt": _NO_TIME,
        "UpdatedAt": _NO_TIME,
        "Spec": {"Labels": None},
        "DriverState": {},
    }
    result: Json = {"Network": gone, "Addresses": list(attachment.addresses)}
    network = networks.get(attachment.network_id)
    if network is not None:
        spec = network.spec
        result["Network"] = {
            **_meta(network),
            "Spec": {
                "Name": spec.name,
                "Labels": dict(spec.labels),
                "DriverConfiguration": {"Name": spec.driver or "overlay"},
                "IPAMOptions": {"Driver": {}},
                **({"Internal": True} if spec.internal else {}),
                **({"Attachable": True} if spec.attachable else {}),
                **({"Ingress": True} if spec.ingress else {}),
                "Scope": "swarm",
            },
            "DriverState": {
                "Name": "overlay",
                "Options": {**spec.options, VXLAN_OPTION: str(network.vni)},
            },
            "IPAMOptions": {"Driver": {"Name": "default"}, "Configs": _attached_pools(network.ipam)},
        }
    return result


# -- bytes


class Encoded:
    """JSON bytes of rendered objects, kept while their key stays the same; at most ``entries_max``, oldest dropped first.

    The key has to say everything that the bytes depend on, such as (id, version, version of the networks).
    """

    def __init__(self, *, entries_max: int = 16_384) -> None:
        self._entries_max = entries_max
        self._known: dict[str, tuple[object, bytes]] = {}

    def get(self, id_: str, key: object, render: Callable[[], Json]) -> bytes:
        """The bytes for ``id_`` at ``key``, rendered if they are not known."""
        known = self._known.get(id_)
        if known is not None and known[0] == key:
            return known[1]
        data = msgspec.json.encode(render())
        self._known.pop(id_, None)
        self._known[id_] = (key, data)
        if len(self._known) > self._entries_max:
            del self._known[next(iter(self._known))]
        return data

    @staticmethod
    def array(items: Iterable[bytes]) -> bytes:
        """A JSON array of encoded items."""
        return b"[" + b",".join(items) + b"]"
