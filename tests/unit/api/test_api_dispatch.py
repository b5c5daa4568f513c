"""Frames between agents and managers."""

from __future__ import annotations

import pytest
from support.objects import make_task

from fleet import errors
from fleet.api import dispatch
from fleet.model.ids import SecretId
from fleet.model.task import TaskState


def test_messages_survive_the_wire() -> None:
    task = make_task(node_id="n1", state=TaskState.ASSIGNED)
    message = dispatch.Assign(complete=True, results_in=3, items=(dispatch.TaskItem(task=task),), removed=("task/x",))
    assert dispatch.decode_manager(dispatch.encode(message)) == message
    report = dispatch.Report(number=9, tasks=(dispatch.TaskReport(task_id=task.id, status=task.status),))
    assert dispatch.decode_agent(dispatch.encode(report)) == report


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x81", b"{}", bytes(64), b"\xdf\xff\xff\xff\xff", b"\x91" * 5000])
def test_frames_that_are_none_are_refused_in_words(frame: bytes) -> None:
    with pytest.raises(errors.UserError, match="frame from agent"):
        dispatch.decode_agent(frame)
    with pytest.raises(errors.UserError, match="frame from manager"):
        dispatch.decode_manager(frame)


def test_an_agent_can_not_send_what_only_managers_say() -> None:
    with pytest.raises(errors.UserError):
        dispatch.decode_agent(dispatch.encode(dispatch.Assign(complete=True, results_in=1)))


def test_a_secret_is_not_shown_by_repr() -> None:
    assert "hunter2" not in repr(dispatch.SecretItem(secret_id=SecretId("s"), data=b"hunter2"))
