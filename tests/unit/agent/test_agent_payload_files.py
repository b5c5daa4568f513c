"""Secrets and configs as a task's files, templates among them."""

from __future__ import annotations

import pytest

from fleet import errors
from fleet.agent.payload_files import payload_files
from fleet.agent.templates import expand
from fleet.api.dispatch import ConfigItem, SecretItem
from fleet.model.ids import ConfigId, SecretId
from fleet.model.service import ConfigReference, ContainerSpec, FileTarget, SecretReference

VALUES = {".Task.Slot": "3", ".Service.Labels.tier": "gold"}


class Held:
    def __init__(self, *, secret: bytes = b"hunter2", config: bytes, templated: bool = True) -> None:
        self._secret, self._config, self._templated = secret, config, templated

    def secret(self, secret_id: str) -> SecretItem:
        return SecretItem(secret_id=SecretId(secret_id), data=self._secret)

    def config(self, config_id: str) -> ConfigItem:
        return ConfigItem(config_id=ConfigId(config_id), data=self._config, templated=self._templated)


SPEC = ContainerSpec(
    env=("HOST=db{{.Task.Slot}}",),
    secrets=(SecretReference(secret_id=SecretId("s1"), secret_name="pw", file=FileTarget(name="db-password")),),
    configs=(ConfigReference(config_id=ConfigId("c1"), config_name="app", file=FileTarget(name="/etc/app.conf")),),
)


def config_of(data: bytes, *, secret: bytes = b"hunter2") -> bytes:
    files = payload_files(SPEC, Held(config=data, secret=secret), VALUES)
    assert [file.target for file in files] == ["/run/secrets/db-password", "/etc/app.conf"]
    return files[1].data


def test_a_template_takes_placeholders_environment_secrets_and_configs() -> None:
    text = b'slot {{.Task.Slot}} {{ index .Service.Labels "tier" }} {{ env "HOST" }} {{ secret "db-password" }}'
    assert config_of(text) == b"slot 3 gold db3 hunter2"


def test_what_a_placeholder_brought_in_is_not_looked_through_again() -> None:
    assert config_of(b'{{secret "db-password"}}', secret=b'{{ env "HOST" }} {{') == b'{{ env "HOST" }} {{'


def test_data_that_is_no_template_is_left_alone_and_bytes_pass_through() -> None:
    held = Held(config=b"{{.Task.Slot}}\xff", templated=False)
    assert payload_files(SPEC, held, VALUES)[1].data == b"{{.Task.Slot}}\xff"
    assert config_of(b"\xff{{.Task.Slot}}\xfe") == b"\xff3\xfe"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'top {{ secret "other" }}', "this task has no secret 'other'"),
        (b'top {{ env "NONE" }}', "this task has no env 'NONE'"),
        (b"top {{.Task.Nonsense}}", ".Task.Nonsense is not known"),
        (b"top {{ range .Tasks }}", "only plain placeholders"),
        (b"top {{.Task.Slot", "has no }}"),
    ],
)
def test_a_wrong_placeholder_is_named_with_its_file_and_nothing_around_it_is_shown(text: bytes, said: str) -> None:
    with pytest.raises(errors.RejectedFault) as caught:
        config_of(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("file /etc/app.conf: ")
    assert "top" not in str(caught.value)


def test_functions_mean_nothing_outside_of_files() -> None:
    with pytest.raises(errors.RejectedFault):
        expand('{{ env "HOST" }}', VALUES)


def test_a_template_that_grows_beyond_a_configs_bound_is_refused() -> None:
    with pytest.raises(errors.RejectedFault, match="became"):
        config_of(b'{{secret "db-password"}}' * 100, secret=b"x" * 20_000)
