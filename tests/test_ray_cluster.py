"""A Ray cluster of two nodes: the same bytes, limits and errors as on one machine.

The output is the same also when a node is lost.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from inference import predict
from preprocessing.step import step_parser
from runtime import executor
from runtime.cli import MachineError, UserError
from runtime.executor import (
    ExecutorOptions,
    executor_options,
    map_items,
    persistent_workers,
)
from runtime.files import list_names
from runtime.ray_cluster import _capacity
from runtime.workers import Limits
from tests.test_executor import simulate
from tests.test_interruptions import Program, finish, preprocessing_program, start

with_ray = pytest.mark.skipif(
    not importlib.util.find_spec("ray"),
    reason="Ray is not installed: requirements-ray.txt",
)
RAY = ("--executor", "ray", "--ray-address")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install -r requirements-ray.txt"):
        list(map_items(len, ["a"], ExecutorOptions(executor="ray"), "test"))


def test_options_that_do_not_fit_are_named():
    parser = step_parser("")

    def parse(*arguments):
        return executor_options(parser.parse_args(["--root-dir", "x", *arguments]))

    assert parse() == ExecutorOptions()
    with pytest.raises(UserError, match="--gpus-per-worker go with --executor ray"):
        parse("--gpus-per-worker", "0.5")
    with pytest.raises(UserError, match="--workers 0 works in this process"):
        parse("--executor", "ray", "--workers", "0")


def test_there_is_a_worker_for_each_processor_or_share_of_a_gpu():
    assert _capacity({"CPU": 16.0}, 0) == 16
    assert _capacity({"CPU": 16.0, "GPU": 2.0}, 0.25) == 8
    assert _capacity({"CPU": 4.0, "GPU": 2.0}, 0.25) == 4
    # one worker, which waits for a machine with the resources
    assert _capacity({}, 0) == _capacity({"CPU": 4.0}, 1) == 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray cluster: two nodes with one CPU each, and a head node without a CPU.

    Its working directory is not the project's.
    """
    from ray.cluster_utils import Cluster

    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    ray_cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        ray_cluster.add_node(num_cpus=1)
    os.chdir(here)
    yield ray_cluster
    ray_cluster.shutdown()


def with_executor(program: Program, *options: object) -> tuple[object, ...]:
    """The arguments of a program, with other options in place of `--workers N`."""
    index = program.arguments.index("--workers")
    return (*program.arguments[:index], *program.arguments[index + 2 :], *options)


@pytest.fixture(scope="module")
def preprocessing(tmp_path_factory) -> Program:
    return preprocessing_program(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def here(preprocessing) -> dict[str, bytes]:
    """The outputs of a run on this machine."""
    preprocessing.reset()
    finish(*preprocessing.arguments)
    return preprocessing.outputs()


@with_ray
@pytest.mark.slow
def test_steps_1_to_5_on_two_nodes_make_the_same_bytes(preprocessing, here, cluster):
    preprocessing.reset()
    finish(*with_executor(preprocessing, *RAY, cluster.address))
    assert preprocessing.outputs() == here
    shutil.rmtree(preprocessing.work / "crops" / "bbbbbbbbbb2")
    # a single step, whose task is a function of `__main__`
    finish(
        "preprocessing.02_extract_crops",
        *("--root-dir", preprocessing.work),
        *RAY,
        cluster.address,
        *("--max-failures", 1),
    )
    assert preprocessing.outputs() == here


@with_ray
@pytest.mark.slow
def test_prediction_on_two_nodes_writes_the_same_tables(
    dfdc, checkpoints, tmp_path, cluster
):
    """Labels, faces, the report CSV and the pages of the HTML report."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in dfdc.glob("*/*.mp4"):
        shutil.copy(path, videos)
    (videos / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    program = Program(
        tmp_path / "none",
        out,
        "inference.predict",
        *("--test-dir", videos),
        *("--output", out / "s.csv"),
        *("--faces-csv", out / "faces.csv"),
        *("--report", out / "report"),
        *("--grad-cam", 2),
        *("--weights-dir", os.path.relpath(checkpoints)),
        *("--models", "one", "two"),
        *("--device", "cpu"),
        *("--workers", 0),
    )
    (tmp_path / "none").mkdir()
    assert predict.main([str(argument) for argument in program.arguments[1:]]) == 0
    expected = program.outputs()
    assert len(expected) == 3 + 1 + 4
    program.reset()
    finish(*with_executor(program, *RAY, cluster.address))
    assert program.outputs() == expected


@with_ray
@pytest.mark.slow
def test_limits_and_errors_are_those_of_one_machine(tmp_path, cluster):
    limits = Limits(seconds=15, memory=0.6)
    options = ExecutorOptions(2, limits, "ray", cluster.address)
    items = ["a", "hang", "crash", "b", "allocate", "disk", "c"]
    task = partial(simulate, folder=tmp_path)
    results, errors = {}, {}
    for item, result, error in map_items(task, items, options, "test"):
        if error is None:
            results[item] = result
        else:
            errors[item] = error
    assert results == {item: item for item in "abc"}
    assert {item: str(errors[item]) for item in ("hang", "crash", "allocate")} == {
        "hang": "took longer than 15 seconds (--time-limit)",
        "crash": "its worker process died (SIGSEGV), twice",
        "allocate": "needed more than 0.6 GiB of memory (--memory-limit), twice",
    }
    assert isinstance(errors["disk"], MachineError)
    assert isinstance(errors["allocate"], UserError)
    ((_, _, error),) = map_items(
        len, ["abc"], options, "test", shared_path=tmp_path / "not there"
    )
    assert isinstance(error, MachineError)
    assert "system that all machines of the cluster share" in str(error)


@with_ray
@pytest.mark.slow
def test_an_item_is_not_blamed_for_workers_that_were_lost_before_it_came(
    tmp_path, cluster, monkeypatch
):
    """Both actors die between two steps.

    The only item of the next step is given to one of them; a loss of two actors, the
    limit here, would make the item fail.
    """
    import ray

    monkeypatch.setattr("runtime.ray_cluster.MAX_LOSSES", 2)
    options = ExecutorOptions(2, executor="ray", address=cluster.address)
    task = partial(simulate, folder=tmp_path)
    with persistent_workers(options):
        actors: list = []
        while len(actors) < 2:  # the first may do both before the second has started
            outcomes = map_items(task, ["a", "b"], options, "test")
            assert {result for _, result, _ in outcomes} == {"a", "b"}
            actors = executor._persistent[-1]._idle
        for actor in actors:
            ray.kill(actor)
        outcomes = list(map_items(task, ["c"], options, "test"))
        assert outcomes == [("c", "c", None)]


@with_ray
@pytest.mark.slow
def test_no_work_is_left_behind_by_a_program_that_is_killed(tmp_path, cluster):
    """Actors and their worker processes end with the program that started them."""
    code = (
        "import sys\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from runtime.executor import ExecutorOptions, map_items\n"
        "from tests.test_executor import simulate\n"
        "task = partial(simulate, folder=Path(sys.argv[1]))\n"
        "options = ExecutorOptions(2, executor='ray', address=sys.argv[2])\n"
        "list(map_items(task, ['hang', 'hang'], options, 'test'))"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path, cluster.address],
        cwd=Path(__file__).parent.parent,
    )
    while len(list_names(tmp_path)) < 2:
        assert program.poll() is None
        time.sleep(0.05)
    program.kill()
    program.wait()
    end = time.monotonic() + 20
    while left := [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path) in path.read_text(errors="replace")
    ]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


@with_ray
@pytest.mark.slow
def test_a_node_is_lost_half_way(preprocessing, here, cluster):
    """A node is killed while both have work; the other one does the rest.

    This test is the last one that needs both nodes, because the node stays lost.
    """
    preprocessing.reset()
    program = start(*with_executor(preprocessing, *RAY, cluster.address))
    while len(list_names(preprocessing.work / "crops")) < 3:
        assert program.poll() is None, program.communicate()
        time.sleep(0.02)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    assert len(list_names(preprocessing.work / "crops")) < 12
    _, errors = program.communicate(timeout=200)
    assert program.returncode == 0, errors[-3000:]
    assert preprocessing.outputs() == here


@with_ray
def test_a_cluster_that_is_not_there_is_named():
    options = ExecutorOptions(executor="ray", address="127.0.0.1:1")
    with pytest.raises(UserError, match="--ray-address 127.0.0.1:1"):
        list(map_items(len, ["a"], options, "test"))
