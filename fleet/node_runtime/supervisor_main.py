"""What the system's interpreter is given to run: finds the package this file belongs to and becomes the supervisor.

Run as ``python3 -I -S supervisor_main.py STATE_DIR RUN_DIR CGROUP_PARENT``: isolated from the environment and without
site-packages, so the supervisor holds nothing but the standard library and the modules it uses. The project's
directory comes last on the path, and is taken off again once all is loaded.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.dont_write_bytecode = False
    sys.path.append(_PROJECT)
    from fleet.node_runtime.supervisor import main

    sys.path.remove(_PROJECT)
    sys.exit(main(sys.argv[1:]))
