"""A node that is killed: the shard that it had is done elsewhere, and nobody is blamed for it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]

SCRIPT = """
import logging, os, sys, time
from pathlib import Path
from runtime import session
session.settings()
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from ray.cluster_utils import Cluster
from preencode import dispatch

dispatch.TRIES = 1  # one death that counts would set the item aside
small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
doomed = cluster.add_node(**small)
ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

@ray.remote(max_restarts=0, num_cpus=1)
class Worker:
    def work(self, item, marker):
        if ray.get_runtime_context().get_node_id() == DOOMED and not Path(marker).exists():
            Path(marker).touch()
            time.sleep(600)  # until the node is gone
        time.sleep(0.2)
        return item

DOOMED = doomed.node_id
outcomes = dispatch.dispatch(
    range(8), Worker.remote, lambda a, i, _: a.work.remote(i, sys.argv[1]), lambda: 2
)
lost = []
for outcome in outcomes:
    if doomed is not None and Path(sys.argv[1]).exists():
        cluster.remove_node(doomed, allow_graceful=False)
        doomed = None
    assert outcome.error is None, outcome.error
    if outcome.lost is not None:
        lost.append(outcome.lost)
    else:
        print("done", outcome.value)
assert len(lost) == 1 and "node was terminated" in lost[0], lost
ray.shutdown()
cluster.shutdown()
"""


def test_a_shard_whose_node_is_killed_is_done_by_another_and_not_blamed(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "marker")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    done = [line for line in ran.stdout.splitlines() if line.startswith("done")]
    assert sorted(done) == [f"done {i}" for i in range(8)]
