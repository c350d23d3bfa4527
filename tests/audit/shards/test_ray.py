"""Shards on a Ray cluster, where ray is installed (`make test-verl`): the audit of one process."""

import pytest

from audit.shards.conftest import differences, report_of
from holdfast.audit.judge.auditor import Auditor
from holdfast.audit.read.reading import Reading
from holdfast.audit.read.source import find_files, read_files
from holdfast.audit.shards.cluster import audit_on_cluster, connect, processors
from holdfast.audit.shards.shard import cut
from holdfast.audit.simulate import clean_run
from holdfast.errors import DataError
from holdfast.rollout.store import write_rollouts

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")
"""The test session turns warnings into errors; ray's own are not ours to fix."""


@pytest.fixture(scope="module")
def local():
    """A cluster of two CPUs on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield connect()
    ray.shutdown()


def test_tasks_say_what_one_process_says(local, tmp_path):
    for step in range(3):
        rollouts = clean_run(step, steps=2, prompts=4, group_size=4, mean_length=30)
        write_rollouts(tmp_path / f"step_{step}.parquet", rollouts)
    files, told = find_files(tmp_path), []
    one, made = Auditor(Reading()), Auditor(Reading())
    for file, chunk in read_files(files, one.reading):
        one.feed(chunk, str(file.path), files.index(file))
    shards = cut(str(tmp_path), files, processors(local), made.reading)
    assert len(shards) == 2
    made.log = shards[0].log
    audit_on_cluster(local, shards, made, lambda done, tokens: told.append(tokens))
    assert differences(report_of(made), report_of(one)) == []
    assert told[-1] == one.facts.tokens

    (tmp_path / "step_1.parquet").unlink()
    with pytest.raises(DataError, match=r"step_1\.parquet is not there for this worker"):
        audit_on_cluster(local, shards, Auditor(Reading(), log=shards[0].log), lambda done, tokens: None)
