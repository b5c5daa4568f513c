"""Carrying out what deploying a stack changes: one call for each step of the plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.cli.app import App, retry_conflicts
from fleet.cli.render import echo, print_warnings
from fleet.cli.service_rows import autoscale_bounds

if TYPE_CHECKING:
    from fleet.cli.stack_plan import Change
    from fleet.compose.convert import Stack
    from fleet.compose.order import Dependency

__all__ = ["Deployment", "named"]

Json = dict[str, Any]

_POLL_S: Final = 0.1


def named(client: EngineClient, noun: str, names: Iterable[str]) -> tuple[Json, ...]:
    """Secrets or configs that are called exactly so (the API's filter matches beginnings too)."""
    wanted = list(names)
    if not wanted:
        return ()
    found = client.get(f"/{noun}s", filters={"name": wanted}) or []
    return tuple(item for item in found if item["Spec"]["Name"] in wanted)


class Deployment:
    """Carries the changes out, one call each, and remembers what must be waited for."""

    def __init__(
        self,
        app: App,
        wanted: Stack,
        *,
        networks: dict[str, str],
        with_auth: bool,
        waits: bool = True,
        quiet: bool = False,
        timeout_ns: int | None = None,
    ) -> None:
        self.app = app
        self.client = app.client
        self.wanted = wanted
        self.networks = networks
        self.with_auth = with_auth
        self.changed: list[tuple[str, str, Json | None]] = []
        """Id, name and, for an update, the service as it was."""
        self.made: list[tuple[str, str, str]] = []
        """Kind, name and id of networks, secrets and configs that are new."""
        self._ids: dict[str, dict[str, str]] = {}
        self._waits, self._quiet, self._timeout_ns = waits, quiet, timeout_ns
        self._met: set[Dependency] = set()

    def do(self, change: Change) -> None:
        """One step, with one line about it."""
        from fleet.model import wire

        if change.kind == "service":
            self._service(change)
            return
        if change.action == "keep":
            return
        body = wire.to_builtins(change.spec)
        if change.action == "create":
            echo(f"Creating {change.kind} {change.name}")
            answer = self.client.post(f"/{change.kind}s/create", body)
            new_id = str(answer["Id"] if change.kind == "network" else answer["ID"])
            self.made.append((change.kind, change.name, new_id))
            if change.kind == "network":
                self.networks[change.name] = new_id
            return
        assert change.current is not None, "an update has an object it updates"
        self._update_object(change, body, change.current)

    def _update_object(self, change: Change, body: Json, current: Json) -> None:
        try:
            self.client.post(f"/{change.kind}s/{current['ID']}/update", body, version=current["Version"]["Index"])
        except EngineError as cause:
            if cause.status != 400:
                raise
            raise errors.UserError(
                f"{change.kind} {change.name} exists with other content, and {change.kind}s cannot be changed; "
                f"give the new content a new name (name: {change.name}_2) so that services move to it ({cause})"
            ) from cause

    def _names(self, noun: str) -> dict[str, str]:
        """Name -> id of the stack's secrets or configs, external ones too; asked for once."""
        if noun not in self._ids:
            container_specs = [spec.task_template.container_spec for spec in self.wanted.services]
            names = {
                *(ref.secret_name for spec in container_specs for ref in spec.secrets if noun == "secret"),
                *(ref.config_name for spec in container_specs for ref in spec.configs if noun == "config"),
            }
            found = named(self.client, noun, sorted(names))
            self._ids[noun] = {item["Spec"]["Name"]: item["ID"] for item in found}
        return self._ids[noun]

    def _service(self, change: Change) -> None:
        from fleet.cli.stack_plan import resolve_names
        from fleet.model import wire
        from fleet.model.service import ServiceSpec

        if change.action == "remove":
            assert change.current is not None, "a removal has an object it removes"
            echo(f"Removing service {change.name}")
            self.client.delete(f"/services/{change.current['ID']}")
            return
        if change.action == "keep":
            echo(f"Keeping service {change.name} (unchanged)")
            return
        assert isinstance(change.spec, ServiceSpec), "a service is made from a service spec"
        self._wait_for_needs(change.name)
        spec = resolve_names(
            change.spec, networks=self.networks, secrets=self._names("secret"), configs=self._names("config")
        )
        headers: dict[str, str] = {}
        if self.with_auth:
            from fleet.cli.registry_auth import auth_headers

            headers = auth_headers(spec.task_template.container_spec.image, self.app.environment)
        body = wire.to_builtins(spec)
        if change.action == "create":
            echo(f"Creating service {change.name}")
            answer = retry_conflicts(
                lambda: self.client.request("POST", "/services/create", json_body=body, headers=headers)
            )
            self.changed.append((answer["ID"], change.name, None))
        else:
            assert change.current is not None, "an update has an object it updates"
            echo(f"Updating service {change.name} (id: {change.current['ID']})")
            answer = self._update_service(change.current, body, headers)
            self.changed.append((change.current["ID"], change.name, change.current))
        print_warnings(answer)

    def _wait_for_needs(self, name: str) -> None:
        """What the service depends on is as it says. Raises ``ConflictError`` when that cannot come."""
        from fleet.compose.order import Condition

        for needed in self.wanted.depends_on.get(name, ()) if self._waits else ():
            if needed in self._met:
                continue
            echo(f"Waiting for {needed.service} ({needed.condition.removeprefix('service_')}), which {name} depends on")
            changed = next((each for each in self.changed if each[1] == needed.service), None)
            if changed is None:  # it is as it was
                service_id, before = str(self.client.get(f"/services/{needed.service}")["ID"]), None
            else:
                service_id, before = changed[0], changed[2]
            try:
                if needed.condition is Condition.STARTED:
                    self._wait_until_started(service_id)
                else:
                    self._wait_until_converged(service_id, needed, before)
            except errors.ConflictError as cause:
                raise errors.ConflictError(
                    f"{name} was not deployed, since it depends on {needed.service}: {cause}"
                ) from cause
            self._met.add(needed)

    def _wait_until_started(self, service_id: str) -> None:
        from fleet.cli import clock

        deadline = None if self._timeout_ns is None else clock.monotonic() + self._timeout_ns / 1e9
        while True:
            tasks = self.client.get("/tasks", filters={"service": [service_id]}) or []
            if any((task.get("Status") or {}).get("State") in ("starting", "running", "complete") for task in tasks):
                return
            if deadline is not None and clock.monotonic() > deadline:
                raise errors.ConflictError("none of its tasks has started in time")
            clock.sleep(_POLL_S)

    def _wait_until_converged(self, service_id: str, needed: Dependency, before: Json | None) -> None:
        from fleet.cli.converge import Watch, wait
        from fleet.compose.order import Condition

        spec = next(each for each in self.wanted.services if each.name == needed.service)
        policy = spec.task_template.restart_policy
        ends = spec.is_job or (policy is not None and policy.condition in ("none", "on-failure"))
        if needed.condition is Condition.COMPLETED and not ends:
            raise errors.ConflictError(
                "it never completes; give it deploy.mode replicated-job, or a restart_policy with condition on-failure or none"
            )
        watch = Watch(service_id, needed.service, before=before)
        if wait(self.client, [watch], quiet=self._quiet, timeout_ns=self._timeout_ns):
            raise KeyboardInterrupt

    def _update_service(self, current: Json, body: Json, headers: dict[str, str]) -> Any:
        """The version is read again on a conflict, and used if the spec is still the one the plan was made from, but for the
        number of tasks that the cluster chose meanwhile."""
        version = current["Version"]["Index"]

        def attempt() -> Any:
            nonlocal version
            try:
                return self.client.request(
                    "POST",
                    f"/services/{current['ID']}/update",
                    query={"version": version},
                    json_body=body,
                    headers=headers,
                )
            except EngineError:
                found = self.client.get(f"/services/{current['ID']}", insertDefaults=False)
                if autoscale_bounds(body) and autoscale_bounds(current["Spec"]):
                    body["Mode"] = current["Spec"]["Mode"] = found["Spec"]["Mode"]
                if found["Spec"] == current["Spec"]:
                    version = found["Version"]["Index"]
                raise

        return retry_conflicts(attempt)
