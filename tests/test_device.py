"""`--device`, torchrun's environment variables and GPUs that are not there.

PyTorch's GPUs are simulated.
"""

import pytest
import torch

from runtime.cli import MachineError, UserError
from runtime.device import pick_device
from training import distributed
from training.distributed import init_distributed, local_world_size


@pytest.fixture
def set_gpus(monkeypatch):
    """A function that gives this machine a number of GPUs."""

    def set_count(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return set_count


@pytest.fixture
def set_ranks(monkeypatch):
    """A function that sets torchrun's environment variables and unsets the others."""

    def set_variables(text: str) -> None:
        names = (*distributed.RANKS, *distributed.ADDRESS, "LOCAL_WORLD_SIZE")
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for pair in text.split():
            monkeypatch.setenv(*pair.split("="))

    return set_variables


@pytest.mark.parametrize(
    "count, names",
    [
        (0, {"auto": "cpu", "cpu": "cpu"}),
        (1, {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "cuda:0": "cuda:0"}),
        (8, {"auto": "cuda", "cuda:7": "cuda:7"}),
    ],
)
def test_devices_that_are_there(set_gpus, count, names):
    set_gpus(count)
    assert {name: pick_device(name) for name in names} == names


@pytest.mark.parametrize(
    "name, count, message",
    [
        ("cuda:7", 2, "PyTorch finds 2 GPUs here; use cuda:0 to cuda:1, or auto"),
        ("cuda:1", 1, "PyTorch finds 1 GPU here; use cuda:0, or auto"),
        ("cuda:1", 0, "PyTorch finds no GPU here; use cpu or auto"),
        ("0", 1, "write cuda:0"),
        ("0", 0, "cuda:0 is meant, but PyTorch finds no GPU here; use cpu or auto"),
        ("3", 1, "cuda:3 is meant, but PyTorch finds 1 GPU here; use cuda:0, or auto"),
        ("gpu", 1, "write cuda"),
        ("CUDA", 1, "write cuda"),
        ("GPU:1", 2, "write cuda:1"),
        ("cuda1", 2, "write cuda:1"),
        ("cuda:01", 2, "write cuda:1"),
        ("rocm", 1, "write cuda"),
        ("Auto", 1, "write auto"),
        (" CPU", 0, "write cpu"),
        ("-1", 1, "write cpu"),
        ("mps", 0, "these devices are not supported; write cpu, or cuda .*"),
        ("xpu:0", 0, "these devices are not supported; write cpu, or cuda .*"),
        ("0,1", 2, "write CUDA_VISIBLE_DEVICES=0,1 and auto .* --nproc_per_node=2"),
        ("cuda:2,cuda:3", 4, "write CUDA_VISIBLE_DEVICES=2,3 and auto .*"),
        ("all", 4, "write auto for all GPUs, or train .*"),
        ("cuda:x", 1, "no such device; write cpu, cuda, cuda:N or auto"),
        ("", 1, "no such device; write cpu, cuda, cuda:N or auto"),
        ("a graphics card", 1, "no such device; write cpu, cuda, cuda:N or auto"),
    ],
)
def test_other_devices_are_told_what_to_write(set_gpus, name, count, message):
    set_gpus(count)
    with pytest.raises(MachineError, match=rf"^--device '?{name}'?: {message}$"):
        pick_device(name)


def test_hidden_gpus_are_named(set_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for count, name in ((2, "cuda:3"), (0, "cuda")):
        set_gpus(count)
        with pytest.raises(MachineError, match="CUDA_VISIBLE_DEVICES is '2,3'"):
            pick_device(name)


ADDRESS = "MASTER_ADDR=127.0.0.1 MASTER_PORT=29511"


@pytest.mark.parametrize(
    "variables, message",
    [
        (
            "WORLD_SIZE=4",
            "4 .* RANK, MASTER_ADDR, MASTER_PORT are not there; unset WORLD_SIZE, or",
        ),
        (
            "WORLD_SIZE=2 RANK=1 LOCAL_RANK=1 MASTER_PORT=29511",
            "but MASTER_ADDR is not there; unset WORLD_SIZE RANK LOCAL_RANK, or start by",
        ),
        (f"WORLD_SIZE=2 {ADDRESS}", "WORLD_SIZE is 2 .* but RANK is not there"),
        ("RANK=3", "RANK=3 in the environment cannot be; unset RANK"),
        ("LOCAL_RANK=1", "LOCAL_RANK=1 .* cannot be; unset LOCAL_RANK, or start by"),
        (f"WORLD_SIZE=2 RANK=2 {ADDRESS}", "WORLD_SIZE=2, RANK=2 .* cannot be; unset"),
        ("WORLD_SIZE=two", "WORLD_SIZE is 'two' .* unset WORLD_SIZE"),
        ("WORLD_SIZE=0", "WORLD_SIZE is '0' .*at least 1; unset WORLD_SIZE"),
        ("RANK=-1", "RANK is '-1' .*at least 0; unset RANK"),
        ("WORLD_SIZE=", "WORLD_SIZE is '' .*; unset WORLD_SIZE"),
    ],
)
def test_ranks_left_over_in_the_environment(set_ranks, variables, message):
    set_ranks(variables)
    with pytest.raises(UserError, match=message), init_distributed("cpu"):
        pass


@pytest.mark.parametrize(
    "variables",
    ["", "WORLD_SIZE=1", "WORLD_SIZE=1 RANK=0 LOCAL_RANK=0", ADDRESS, "RANK=0"],
)
def test_a_process_alone_needs_no_ranks(set_ranks, set_gpus, variables):
    set_ranks(variables)
    set_gpus(2)
    for name, expected in (("auto", "cuda:0"), ("cpu", "cpu"), ("cuda:1", "cuda:1")):
        with init_distributed(name) as world:
            assert (world.rank, world.size, str(world.device)) == (0, 1, expected)


def test_more_processes_than_gpus(set_ranks, set_gpus):
    set_ranks(f"WORLD_SIZE=4 RANK=3 LOCAL_RANK=3 LOCAL_WORLD_SIZE=4 {ADDRESS}")
    set_gpus(2)
    message = "4 processes on this machine, but PyTorch finds 2 GPUs; .*DATA 2, or .*=2"
    for name in ("auto", "cuda"):
        with pytest.raises(MachineError, match=message), init_distributed(name):
            pass
    message = "cuda:1: .*write --device cuda, and choose"
    with pytest.raises(UserError, match=message), init_distributed("cuda:1"):
        pass
    set_gpus(1)
    with pytest.raises(MachineError, match="finds 1 GPU; start"), init_distributed():
        pass


def test_processes_that_are_not_reached(set_ranks, monkeypatch):
    """A name that does not resolve, and a port that is none."""
    monkeypatch.setattr(distributed, "TIMEOUT", distributed.timedelta(seconds=1))
    monkeypatch.setattr(distributed, "die_with_parent", lambda: None)
    for address in ("nowhere.invalid:29512", "127.0.0.1:port"):
        host, port = address.split(":")
        set_ranks(f"WORLD_SIZE=2 RANK=1 MASTER_ADDR={host} MASTER_PORT={port}")
        message = f"process 1 of 2 does not reach the others at {address}; start"
        with pytest.raises(MachineError, match=message), init_distributed("cpu"):
            pass


def test_processes_of_this_machine(set_ranks):
    set_ranks("")
    assert local_world_size() == 1
    set_ranks("LOCAL_WORLD_SIZE=8")
    assert local_world_size() == 8
    set_ranks("LOCAL_WORLD_SIZE=0")
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE is '0'"):
        local_world_size()
