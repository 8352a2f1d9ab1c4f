"""On a Ray cluster of two nodes: the same bytes as on this machine, also when a node is lost; limits and errors as there."""

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
from tests.test_executor import behave
from tests.test_interruptions import Program, finish, start, write_more_videos

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
    assert executor_options(parser.parse_args(["--root-dir", "x"])) == ExecutorOptions()
    with pytest.raises(UserError, match="--gpus-per-worker go with --executor ray"):
        executor_options(
            parser.parse_args(["--root-dir", "x", "--gpus-per-worker", "0.5"])
        )
    with pytest.raises(UserError, match="--workers 0 works in this process"):
        executor_options(
            parser.parse_args(
                ["--root-dir", "x", "--executor", "ray", "--workers", "0"]
            )
        )


def test_there_is_a_worker_for_each_processor_or_share_of_a_gpu():
    assert _capacity({"CPU": 16.0}, 0) == 16
    assert _capacity({"CPU": 16.0, "GPU": 2.0}, 0.25) == 8
    assert _capacity({"CPU": 4.0, "GPU": 2.0}, 0.25) == 4
    assert (
        _capacity({}, 0) == _capacity({"CPU": 4.0}, 1) == 1
    )  # which waits for a machine that has it


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray cluster of two nodes of one processor each, and a head without any, started in another folder."""
    from ray.cluster_utils import RayCluster

    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    made = RayCluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        made.add_node(num_cpus=1)
    os.chdir(here)
    yield made
    made.shutdown()


def of(program: Program, *options: object) -> tuple[object, ...]:
    """A program's command with other options where it runs."""
    place = program.arguments.index("--workers")
    return (*program.arguments[:place], *program.arguments[place + 2 :], *options)


@pytest.fixture(scope="module")
def preprocessing(tmp_path_factory) -> Program:
    folder = tmp_path_factory.mktemp("cluster")
    write_more_videos(folder / "source")
    work = folder / "work"
    return Program(
        folder / "source",
        work,
        "preprocessing",
        "--root-dir",
        work,
        "--workers",
        2,
        "--device",
        "cpu",
        "--max-failures",
        1,
    )


@pytest.fixture(scope="module")
def here(preprocessing) -> dict[str, bytes]:
    """What a run on this machine makes."""
    preprocessing.begin_anew()
    finish(*preprocessing.arguments)
    return preprocessing.made()


@with_ray
@pytest.mark.slow
def test_steps_1_to_5_on_two_nodes_make_the_same_bytes(preprocessing, here, cluster):
    preprocessing.begin_anew()
    finish(*of(preprocessing, *RAY, cluster.address))
    assert preprocessing.made() == here
    shutil.rmtree(preprocessing.work / "crops" / "bbbbbbbbbb2")
    finish(
        "preprocessing.02_extract_crops",
        "--root-dir",
        preprocessing.work,
        *RAY,
        cluster.address,
        "--max-failures",
        1,
    )  # a step by itself, whose function is the started program's own
    assert preprocessing.made() == here


@with_ray
@pytest.mark.slow
def test_prediction_on_two_nodes_writes_the_same_tables(
    dfdc, checkpoints, tmp_path, cluster
):
    """Labels, faces, skipped and the report's pages."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in dfdc.glob("*/*.mp4"):
        shutil.copy(path, videos)
    (videos / "text.mp4").write_text("no video")
    program = Program(
        tmp_path / "none",
        tmp_path / "out",
        "inference.predict",
        "--test-dir",
        videos,
        "--output",
        tmp_path / "out/s.csv",
        "--faces-csv",
        tmp_path / "out/faces.csv",
        "--report",
        tmp_path / "out/report",
        "--grad-cam",
        2,
        "--weights-dir",
        os.path.relpath(checkpoints),
        "--models",
        "one",
        "two",
        "--device",
        "cpu",
        "--workers",
        0,
    )
    (tmp_path / "none").mkdir()
    assert predict.main([str(word) for word in program.arguments[1:]]) == 0
    expected = program.made()
    assert len(expected) == 3 + 1 + 4
    program.begin_anew()
    finish(*of(program, *RAY, cluster.address))
    assert program.made() == expected


@with_ray
@pytest.mark.slow
def test_limits_and_errors_are_those_of_one_machine(tmp_path, cluster):
    where = ExecutorOptions(2, Limits(seconds=8, memory=0.6), "ray", cluster.address)
    items = ["a", "hang", "crash", "b", "eat", "disk", "c"]
    got = {
        item: result if error is None else error
        for item, result, error in map_items(
            partial(behave, folder=tmp_path), items, where, "test"
        )
    }
    assert {item: got[item] for item in "abc"} == {item: item for item in "abc"}
    assert str(got["hang"]) == "took longer than 8 seconds (--time-limit)"
    assert str(got["crash"]) == "its worker process died (SIGSEGV), twice"
    assert (
        str(got["eat"]) == "needed more than 0.6 GiB of memory (--memory-limit), twice"
    )
    assert isinstance(got["disk"], MachineError) and isinstance(got["eat"], UserError)
    ((_, _, error),) = map_items(
        len, ["abc"], where, "test", shared_path=tmp_path / "not there"
    )
    assert isinstance(
        error, MachineError
    ) and "system that all machines of the cluster share" in str(error)


@with_ray
@pytest.mark.slow
def test_an_item_is_not_blamed_for_workers_that_were_lost_before_it_came(
    tmp_path, cluster, monkeypatch
):
    """Both die between two steps; one of them is given the next step's only item, and no third one may be."""
    import ray

    monkeypatch.setattr("runtime.ray_cluster.MAX_LOSSES", 2)
    where = ExecutorOptions(2, executor="ray", address=cluster.address)
    with persistent_workers(where):
        assert {
            result
            for _, result, _ in map_items(
                partial(behave, folder=tmp_path), ["a", "b"], where, "test"
            )
        } == {
            "a",
            "b",
        }
        actors = executor._persistent[-1]._idle
        assert len(actors) == 2
        for actor in actors:
            ray.kill(actor)
        assert list(
            map_items(partial(behave, folder=tmp_path), ["c"], where, "test")
        ) == [("c", "c", None)]


@with_ray
@pytest.mark.slow
def test_no_work_is_left_behind_by_a_program_that_is_killed(tmp_path, cluster):
    """Actors and their worker processes end with the program that started them."""
    code = (
        "import sys; from functools import partial; from pathlib import Path; from tests.test_executor import behave;"
        "from runtime.executor import ExecutorOptions, map_items\n"
        "task = partial(behave, folder=Path(sys.argv[1]))\n"
        "list(map_items(task, ['hang', 'hang'], ExecutorOptions(2, executor='ray', address=sys.argv[2]), 'test'))"
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
    """Killed with -9 while both have work: the other one does all that is left, to the same bytes. Last: it stays lost."""
    preprocessing.begin_anew()
    program = start(*of(preprocessing, *RAY, cluster.address))
    while len(list_names(preprocessing.work / "crops")) < 3:
        assert program.poll() is None, program.communicate()
        time.sleep(0.02)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    assert len(list_names(preprocessing.work / "crops")) < 12
    _, errors = program.communicate(timeout=200)
    assert program.returncode == 0, errors[-3000:]
    assert preprocessing.made() == here


@with_ray
def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(UserError, match="--ray-address 127.0.0.1:1"):
        list(
            map_items(
                len,
                ["a"],
                ExecutorOptions(executor="ray", address="127.0.0.1:1"),
                "test",
            )
        )
