"""Cgroup v2 where containers run in a container: a group that has handed controllers down may hold no process itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_runtime_support import Node, eventually, on_node

from fleet.node_runtime.cgroup_layout import detect_layout
from fleet.node_runtime.spec import ProcessSpec

LAYOUT = detect_layout()
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not LAYOUT.is_v2, reason="not run: this host's limits are not those of cgroup v2"),
]
REPOSITORY = Path(__file__).parents[2]
DIVIDE = """
cd /sys/fs/cgroup
mkdir init inner
echo 0 > init/cgroup.procs
echo +memory > cgroup.subtree_control
(echo 0 > inner/cgroup.procs; exec sleep 1001) &
until read pid < inner/cgroup.procs; do :; done
echo divided
exec sleep 1000
"""


@on_node
async def test_a_container_that_divides_its_group_is_entered_seen_paused_and_ended(node: Node) -> None:
    spec = node.spec("sh", "-c", DIVIDE, privileged=True)
    await node.client.start(spec)

    async def divided() -> bool:
        return await node.log(spec) == "divided\n"

    await eventually(divided)
    process = ProcessSpec(args=("sh", "-c", "until grep sleep /proc/1/cmdline; do :; done; cat /proc/self/cgroup"))
    code, out = await node.client.exec_capture(spec.id, process, timeout_s=60)
    assert (code, out.decode().splitlines()[-1]) == (0, "0::/init")
    assert {p.command for p in await node.client.processes(spec.id)} >= {"sleep 1000", "sleep 1001"}
    await node.client.pause(spec.id)
    await node.client.resume(spec.id)
    await node.client.remove(spec.id)
    assert not Path(f"{LAYOUT.unified}{node.cgroup_parent}/{spec.id}").exists()


def test_a_supervisor_makes_room_at_the_root_of_its_own_container(
    cgroup_parent: str, wait_until: Callable[..., None]
) -> None:
    (Path(LAYOUT.unified) / "cgroup.subtree_control").write_text("+memory +pids")
    group = Path(f"{LAYOUT.unified}{cgroup_parent}")
    group.mkdir()
    prepare = (
        "from fleet.node_runtime.cgroup_layout import layout_for\n"
        "from fleet.node_runtime.cgroups import CgroupTree\n"
        "tree = CgroupTree(layout_for('/fleet'), '/fleet'); tree.prepare()\n"
        "tree.create('c', limits={'memory_bytes': 1 << 26}, devices=None)\n"
        "print(open('/sys/fs/cgroup/fleet/c/memory.max').read(), open('/proc/self/cgroup').read())\n"
        "tree.remove('c'); tree.remove_parent()\n"
    )
    inside = 'umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$0" -c "$1"'
    command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec unshare --cgroup --mount "$@"', str(group)]
    done = subprocess.run(
        [*command, "sh", "-c", inside, sys.executable, prepare],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(1 << 26), "0::/init"]
    wait_until(lambda: not (group / "init/cgroup.procs").read_text(), 30, what="nobody left in the group")
