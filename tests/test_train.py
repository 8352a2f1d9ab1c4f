"""Training on a small data set: output files, bitwise resume, errors that end a run.

test_nodes.py tests several processes.
"""

import csv
import os
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from timm.layers import convert_sync_batchnorm

from preprocessing.crop_table import read_crop_table
from runtime.cli import MachineError, UserError
from tests.media import REAL
from training import loaders, loop, train
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import InputSettings, load_config
from training.curves import _points
from training.dataset import BalancedSampler, train_val_split
from training.distributed import World
from training.losses import balanced_loss
from training.model import DeepFakeClassifier
from training.trainer import MAX_SKIPPED_STEPS, NonFiniteError, Trainer

ROOT = Path(__file__).parent.parent
SMALL = [
    "input.size=32",
    "epochs=3",
    "batches_per_epoch=4",
    "batch_size=4",
    "max_iterations=12",
    "validation_frame_step=10",
    "drop_path_rate=0.2",
    "dropout=0.1",
]
NAME = "5_DeepFakeClassifier_tf_efficientnet_b0_ns_0"


def arguments(data, out, *options):
    """The arguments of a small training run."""
    return [
        f"--config={ROOT / 'tests/scratch.yaml'}",
        f"--data-dir={data}",
        f"--output-dir={out / 'weights'}",
        f"--logdir={out / 'logs'}",
        "--seed=5",
        "--workers=0",
        "--device=cpu",
        *options,
    ]


def run(data, out, *settings, options=()):
    return train.main(arguments(data, out, *options, "--set", *SMALL, *settings))


@pytest.fixture(scope="module")
def trained(train_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert run(train_data, out) == 0
    return out


def assert_equal_weights(one, two):
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=0)


def metrics(out, name=NAME):
    with open(out / "logs" / name / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_training_writes(trained):
    names = sorted(path.name for path in (trained / "weights").iterdir())
    assert names == [f"{NAME}_{end}" for end in ("0", "1", "2", "last")]
    rows = metrics(trained)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    # the schedule at the last step of each epoch: 0.05 * (1 - n / 12) ** 0.9
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([0.05 * (1 - n / 12) ** 0.9 for n in (3, 7, 11)])
    for row in rows:
        mean = (float(row["val_fake_loss"]) + float(row["val_real_loss"])) / 2
        assert float(row["val_loss"]) == pytest.approx(mean)
    saved = yaml.safe_load((trained / "logs" / NAME / "args.yaml").read_text())
    assert saved["config"]["epochs"] == 3 and saved["options"]["seed"] == 5
    assert list((trained / "logs" / NAME).glob("events.out.tfevents*"))
    assert cv2.imread(str(trained / "logs" / NAME / "curves.png")).std() > 10
    checkpoint = load_checkpoint(trained / "weights" / f"{NAME}_1")
    assert checkpoint["epoch"] == 2 and checkpoint.keys() == {
        "epoch",
        "state_dict",
        "bce_best",
        "config",
        "seed",
        "parts",
    }
    last = load_checkpoint(trained / "weights" / f"{NAME}_last")
    assert checkpoint["parts"] == last["parts"] == 1
    best = min(float(row["val_loss"]) for row in rows[:2])
    assert checkpoint["bce_best"] == pytest.approx(best)


def test_curves_are_the_columns_of_metrics_csv(trained):
    rows = metrics(trained)
    epochs, losses = _points(rows, "val_fake_loss")
    assert epochs == [0, 1, 2]
    assert losses == [float(row["val_fake_loss"]) for row in rows]
    rows = [{"epoch": "0", "a": ""}, {"epoch": "1", "a": "2.5"}, {"epoch": 2}]
    assert _points(rows, "a") == ([1], [2.5])


def test_an_interrupted_training_ends_with_the_same_weights(
    trained, train_data, tmp_path, monkeypatch, capsys
):
    """Interrupted in the second epoch; the final weights are bitwise the same."""
    real, steps = Trainer.step, []

    def stop(self, batch, iteration):
        steps.append(iteration)
        if iteration == 6:
            raise KeyboardInterrupt
        return real(self, batch, iteration)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stop)
        run(train_data, tmp_path)
    names = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert names == [f"{NAME}_0", f"{NAME}_last"]
    assert run(train_data, tmp_path) == 0
    assert "going on after epoch 0" in capsys.readouterr().out
    for end in ("1", "2", "last"):
        one, two = (
            load_checkpoint(out / "weights" / f"{NAME}_{end}")
            for out in (trained, tmp_path)
        )
        assert_equal_weights(one["state_dict"], two["state_dict"])
    ours, theirs = metrics(tmp_path), metrics(trained)
    for row in (*ours, *theirs):
        del row["images_per_second"]
    assert ours == theirs
    assert run(train_data, tmp_path) == 0
    assert "all 3 epochs are done" in capsys.readouterr().out


@pytest.mark.slow
def test_loader_processes_change_nothing(trained, train_data, tmp_path):
    assert run(train_data, tmp_path, options=("--workers", "1")) == 0
    one, two = (
        load_checkpoint(out / "weights" / f"{NAME}_2") for out in (trained, tmp_path)
    )
    assert_equal_weights(one["state_dict"], two["state_dict"])


def test_other_settings_do_not_go_on(trained, train_data, tmp_path):
    with pytest.raises(
        UserError, match="another learning_rate .0.05, now 0.1.*--prefix.*--resume none"
    ):
        run(train_data, trained, "learning_rate=0.1")
    resume = ("--resume", str(trained / "weights" / f"{NAME}_0"))
    with pytest.raises(UserError, match="holds no optimizer.*_last"):
        run(train_data, tmp_path, options=resume)


def test_a_run_of_an_earlier_version_goes_on(train_data, trained, tmp_path, capsys):
    """Its checkpoint lacks settings that have come since."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "weights" / f"{NAME}_last"
    entries = load_checkpoint(path)
    for key in ("temporal", "part_blended", "alternate"):
        del entries["config"][key]
    for key in ("clip_frames", "clip_spacing", "clips_per_video", "mirrored"):
        del entries["config"]["input"][key]
    save_checkpoint(path, **entries)
    assert run(train_data, tmp_path) == 0
    assert "all 3 epochs are done" in capsys.readouterr().out


def test_a_step_is_shared_by_fewer_processes_or_not_at_all():
    steps = [loop._accumulation_steps(8, 12, processes) for processes in (8, 4, 2, 1)]
    assert steps == [1, 2, 4, 8]
    message = "8 batches of 12 images, which 3 processes cannot share evenly"
    with pytest.raises(UserError, match=f"{message}; start 1, 2, 4 or 8"):
        loop._accumulation_steps(8, 12, 3)


def test_gradients_added_up_are_those_of_one_batch_where_there_is_no_batch_norm():
    """One batch of four, and two batches of two with gradient accumulation.

    Each half has as many fakes and as many reals as the other, so the losses of the
    batch are the means of those of the halves.
    """
    weights = []
    for parts in (1, 2):
        trainer = build_trainer(accumulate=parts)
        momentum = 0.1 if parts == 1 else 1 - 0.9**0.5
        for layer in trainer.network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.momentum == pytest.approx(momentum)
                layer.eval()
        halves = [
            {key: value[part::parts] for key, value in BALANCED_BATCH.items()}
            for part in range(parts)
        ]
        trainer.step(halves, 0)
        weights.append(trainer.network.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-5, atol=1e-7)


def random_images(generator=None):
    return torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator)


BALANCED_BATCH = {
    "image": random_images(torch.Generator().manual_seed(1)),
    "label": torch.tensor([0.99, 0.99, 0.01, 0.01]),
}


def build_trainer(*settings, accumulate=1):
    """A trainer on the CPU, in training mode, without dropout and stochastic depth."""
    settings = [*SMALL, "dropout=0", "drop_path_rate=0", *settings]
    config = load_config(ROOT / "tests/scratch.yaml", settings)
    world = World(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    trainer = Trainer.build(config, world, "none", accumulate=accumulate)
    trainer.model.train()
    return trainer


def test_a_step_is_sgd_with_clipped_gradients_by_hand(train_data, tmp_path):
    """One step, computed from the formulas on a copy of the weights.

    Balanced loss, gradient norm clipped to 1, Nesterov momentum, weight decay.
    """
    trainer = build_trainer()
    trainer.network.fc.weight.data *= 100  # a gradient that has to be clipped
    batch = {
        "image": random_images(),
        "label": torch.tensor([0.99, 0.01, 0.99, 0.99]),
    }
    parameters = dict(trainer.network.named_parameters())
    before = {name: value.clone() for name, value in parameters.items()}
    loss = balanced_loss(trainer.logits(batch["image"]), batch["label"])[0]
    names = [name for name, value in parameters.items() if value.requires_grad]
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    norm = torch.sqrt(sum((gradient.double() ** 2).sum() for gradient in gradients))
    assert norm > 1
    rate = 0.05 * (1 - 4 / 12) ** 0.9
    trainer.step([batch], 4)
    after = dict(trainer.network.named_parameters())
    for name, gradient in zip(names, gradients):
        direction = gradient / norm + 1e-4 * before[name]
        # the first Nesterov step: gradient plus momentum x gradient
        expected = before[name] - rate * (1 + 0.9) * direction
        torch.testing.assert_close(after[name], expected.float(), rtol=1e-3, atol=1e-5)
    unused = "encoder.classifier.weight"
    torch.testing.assert_close(after[unused], before[unused], rtol=0, atol=0)


def test_broken_crops_are_counted_and_too_many_stop_the_run(train_data, tmp_path):
    root = shutil.copytree(train_data, tmp_path / "data")
    broken = sorted((root / "crops").glob("*/0_0.png"))
    for path in broken:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="more than max_broken_crops allows"):
        run(root, tmp_path / "a")
    with pytest.raises(UserError, match="not an image"):  # of the validation fold
        run(root, tmp_path / "b", "max_broken_crops=1")
    for path in broken:
        shutil.copy(train_data / path.relative_to(root), path)
    # now only a crop of fold 1, a training fold
    next((root / "crops").glob("cccccccccc/10_1.png")).write_bytes(b"")
    settings = ("max_broken_crops=1", "epochs=1", "batches_per_epoch=10")
    assert run(root, tmp_path / "c", *settings) == 0
    assert int(metrics(tmp_path / "c")[0]["broken_crops"]) > 0


@pytest.mark.slow
def test_an_unreadable_validation_crop_is_one_line_also_from_a_loader_process(
    train_data, tmp_path
):
    root = shutil.copytree(train_data, tmp_path / "data")
    (root / "crops" / REAL / "0_0.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        run(root, tmp_path / "out", "max_broken_crops=1", options=("--workers", "1"))
    expected = rf"{root}/crops/{REAL}/0_0.png: not an image; delete the folder .*"
    assert re.fullmatch(expected, str(error.value))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_crops(
    train_data, tmp_path
):
    expected = "the loss is (nan|inf) at iteration .* lower learning_rate"
    with pytest.raises(UserError, match=f"{expected}.*bad_batch_0.csv"):
        run(train_data, tmp_path, "learning_rate=1e30", "clip_gradient_norm=1e30")
    with open(tmp_path / "logs" / NAME / "bad_batch_0.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    training, _ = train_val_split(read_crop_table(train_data), 0, 10)
    sampler = BalancedSampler(training["label"], 16, 5)
    batches = [list(sampler)[start : start + 4] for start in range(0, 16, 4)]
    assert [(int(row["row"]), int(row["seed"])) for row in listed] in batches
    for row in listed:
        for column in ("video", "file"):
            assert row[column] == training.name(column, int(row["row"]))


def scaling_trainer(**scaler):
    """A trainer with a gradient scaler whose initial scale makes gradients overflow."""
    trainer = build_trainer("max_iterations=1000")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, **scaler)
    return trainer


BATCH = {
    "image": torch.arange(4 * 32 * 32 * 3).view(4, 32, 32, 3).to(torch.uint8),
    "label": torch.tensor([0.99, 0.01, 0.99, 0.01]),
}


def test_steps_that_the_scaler_skips_are_counted_and_change_nothing():
    """The scaler lowers its scale until the gradients are finite, as it should."""
    trainer = scaling_trainer(backoff_factor=2.0**-10)
    weight, unchanged = trainer.network.fc.weight, []
    for iteration in range(14):
        before = weight.detach().clone()
        trainer.step([BATCH], iteration)
        unchanged.append(torch.equal(weight, before))
    assert unchanged[0] and not unchanged[-1] and trainer.skipped == sum(unchanged)


def test_gradients_that_stay_infinite_stop_the_run():
    trainer = scaling_trainer(backoff_factor=0.9999)
    message = f"the gradients are not finite at iteration {MAX_SKIPPED_STEPS + 1}"
    with pytest.raises(NonFiniteError, match=message):
        for iteration in range(2 * MAX_SKIPPED_STEPS):
            trainer.step([BATCH], iteration)


def _average_of_halves(rank, folder):
    os.environ.update(
        WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29555",
    )
    torch.set_num_threads(1)
    from training.distributed import init_distributed

    with init_distributed("cpu") as world:
        torch.manual_seed(0)
        model = world.wrap(torch.nn.Linear(3, 1), sync_batchnorm=True)
        inputs = torch.arange(12.0).view(4, 3)
        model(inputs[rank * 2 : rank * 2 + 2]).mean().backward()
        gathered = world.gather([rank, rank * 10])
        result = {"gradient": model.module.weight.grad, "gathered": gathered}
        torch.save(result, f"{folder}/{rank}")


@pytest.mark.slow
def test_gradients_are_averaged_and_results_gathered(tmp_path):
    torch.multiprocessing.spawn(_average_of_halves, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1)]
    expected = torch.arange(12.0).view(4, 3).mean(dim=0)
    for result in results:
        np.testing.assert_allclose(result["gradient"][0], expected, rtol=1e-6)
        assert result["gathered"] == [0, 0, 1, 10]


@pytest.mark.slow
def test_shared_batch_norm_keeps_every_layer_and_its_activation():
    """timm's conversion keeps the activation that its batch norm layers contain."""
    name = "tf_efficientnet_b0.ns_jft_in1k"
    torch.manual_seed(0)
    model = DeepFakeClassifier(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        shared = convert_sync_batchnorm(model)
        torch.testing.assert_close(shared(images), expected, rtol=0, atol=0)
        # PyTorch's own conversion loses the activations
        convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
        plain = convert(DeepFakeClassifier(name).eval())
        plain.load_state_dict(model.state_dict())
        assert (plain(images) - expected).abs().max() > 1e-3
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    layers = [layer for layer in shared.modules() if isinstance(layer, batch_norm)]
    assert len(layers) == 49
    assert all(isinstance(layer, torch.nn.SyncBatchNorm) for layer in layers)
    assert shared.state_dict().keys() == DeepFakeClassifier(name).state_dict().keys()


def _shared_batch_norm(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    world = World(rank, 2, torch.device("cuda", 0))
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    model = world.wrap(network, sync_batchnorm=True)
    inputs = torch.tensor([[0.0, 2.0], [4.0, 6.0]][rank], device="cuda")
    outputs = model(inputs.view(2, 1, 1, 1)).flatten()
    norm = model.module[0]
    result = {"out": outputs, "mean": norm.running_mean, "var": norm.running_var}
    result = {key: value.detach().cpu() for key, value in result.items()}
    torch.save(result, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch's SyncBatchNorm needs a GPU"
)
def test_shared_batch_norm_by_hand(tmp_path):
    """One process has 0 and 2, the other 4 and 6: mean 3, variance 5.

    The running variance uses the sample variance 20 / 3.
    """
    torch.multiprocessing.spawn(_shared_batch_norm, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1)]
    for result, values in zip(results, ([0, 2], [4, 6])):
        normalized = (np.array(values) - 3) / np.sqrt(5 + 1e-5)
        np.testing.assert_allclose(result["out"], normalized, rtol=1e-5)
        statistics = [result["mean"], result["var"]]
        np.testing.assert_allclose(statistics, [[0.3], [0.9 + 2 / 3]], rtol=1e-5)


class Blank(torch.utils.data.Dataset):
    """Ten black images of 32 x 32 pixels."""

    def __len__(self):
        return 10

    def __getitem__(self, _):
        return {"image": np.zeros((32, 32, 3), np.uint8), "label": 0.5}


def test_images_that_do_not_fit_in_shared_memory_stop_the_run(
    train_data, tmp_path, monkeypatch
):
    free = 3 * 10**4  # bytes; less than three batches of 4 images of 32 x 32 pixels
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: free)
    message = "/dev/shm has 0 MB free, .*--ipc=host .*--shm-size .*--workers 0"
    with pytest.raises(MachineError, match=message) as error:
        run(train_data, tmp_path, options=("--workers", "2"))
    assert "\n" not in str(error.value) and not list(tmp_path.glob("weights/*"))


@pytest.mark.parametrize(
    "workers, batches, processes", [(0, 0, 1), (1, 2, 1), (2, 4, 2), (3, 5, 1)]
)
def test_the_need_of_shared_memory_by_hand(monkeypatch, workers, batches, processes):
    """Each loader process prefetches two batches, but a loader of 10 has only five."""
    loader = loaders.make_loader(Blank(), workers, 2)
    needed = processes * batches * 2 * 32 * 32 * 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: 2 * needed)
    loaders.check_shared_memory([loader, loader], InputSettings(size=32))
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: 2 * needed - 1)
    if workers:
        with pytest.raises(MachineError, match=f"or fewer than {workers}$"):
            loaders.check_shared_memory([loader, loader], InputSettings(size=32))
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: None)
    loaders.check_shared_memory([loader, loader], InputSettings(size=32))


def test_the_free_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(loaders, "SHARED_MEMORY", tmp_path)
    assert loaders.free_shared_memory() > 0
    monkeypatch.setattr(loaders, "SHARED_MEMORY", tmp_path / "none")
    assert loaders.free_shared_memory() is None


# As PyTorch 2.14 words them; the second was recorded with a /dev/shm of 1 MB.
LOADER_ERRORS = [
    (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible "
        + "that dataloader's workers are out of shared memory. Please try to raise "
        + "your shared memory limit.",
        "/dev/shm is full .DataLoader worker .pid 7.*--ipc=host .*--workers 0",
    ),
    (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most "
        + 'recent call last):\n  File "x", line 1\nRuntimeError: unable to allocate '
        + "shared memory(shm) for file </torch_1_2_0>: No space left on device (28)\n",
        "/dev/shm is full .unable to allocate .*No space left.*--shm-size",
    ),
    (
        "DataLoader timed out after 480.0 seconds",
        "no batch came .* for 8 minutes; .*--ipc=host .*--shm-size .*--workers 0",
    ),
    (
        "DataLoader worker (pid 7) is killed by signal: Killed. ",
        "Killed. A data loader process ended; .*fewer --workers",
    ),
    (
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
        "A data loader process ended; .*fewer --workers",
    ),
    ("Pin memory thread exited unexpectedly", "A data loader process ended"),
]


@pytest.mark.parametrize("text, message", LOADER_ERRORS)
def test_what_ends_the_loader_processes_is_one_line(
    train_data, tmp_path, monkeypatch, text, message
):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(loop, "train", fail)
    with pytest.raises(MachineError, match=f"{message}.*resumes") as error:
        run(train_data, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["a defect", "Caught RuntimeError in DataLoader worker process 0.\nshape"]
)
def test_a_defect_in_a_loader_process_keeps_its_traceback(
    train_data, tmp_path, monkeypatch, text
):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(loop, "train", fail)
    with pytest.raises(RuntimeError, match=text.partition(".")[0]):
        run(train_data, tmp_path)


class Slow(Blank):
    def __getitem__(self, _):
        time.sleep(60)


def test_the_wait_for_a_batch_ends(monkeypatch):
    assert loaders.make_loader(Blank(), 0, 2).timeout == 0
    monkeypatch.setattr(loaders, "LOADER_TIMEOUT", 1)
    loader = loaders.make_loader(Slow(), 1, 2)
    with pytest.raises(RuntimeError) as error:
        next(loaders.iterate_batches(loader))
    assert "no batch came" in loaders.describe_loader_error(error.value)


class Killed(Blank):
    def __getitem__(self, _):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_death_of_a_loader_process_does_not_wait_for_the_timeout():
    with pytest.raises(RuntimeError) as error:
        next(loaders.iterate_batches(loaders.make_loader(Killed(), 1, 2)))
    message = loaders.describe_loader_error(error.value)
    assert "A data loader process ended" in message


@pytest.mark.slow
def test_images_of_a_loader_process_are_in_shared_memory():
    (batch, *_) = loaders.iterate_batches(loaders.make_loader(Blank(), 1, 2))
    assert batch["image"].shape == (2, 32, 32, 3) and batch["image"].is_shared()


def test_the_device_is_checked(train_data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="--device gpu: cuda is meant, but"):
        run(train_data, tmp_path, options=("--device", "gpu"))
