"""One training step: forward, loss, backward, clipping, optimizer step.

Method: the winner's. What he used from apex is part of PyTorch now: mixed precision
(torch.amp), distributed data parallel and synchronised batch norm. apex's FusedSGD is
used if the configuration asks for it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from runtime.cli import UserError
from training.attention import AttentionClassifier
from training.checkpoint import read_start, start_from
from training.config import Config
from training.cutmix import cutmix
from training.distributed import World
from training.losses import balanced_loss
from training.model import DeepFakeClassifier, Normalize
from training.networks import make_classifier
from training.schedule import (
    cosine_learning_rate,
    exponential_learning_rate,
    poly_learning_rate,
)
from training.teachers import Teachers
from training.temporal import is_over_time

# Consecutive steps without finite gradients. The scaler halves its scale at each, from
# 65,536 to below 1.
MAX_SKIPPED_STEPS = 20
CUTMIX = 1  # seeds its draws apart from those of dropout
BatchNorm = torch.nn.modules.batchnorm._BatchNorm  # of any dimensions
FACTOR = "factor"  # of a parameter group's learning rate


class NonFiniteError(UserError):
    """The loss, or the gradients of too many steps in a row, are not finite."""


@dataclass
class Trainer:
    """The network, the optimizer and all else that a training step needs.

    Attributes:
        model: `network`, wrapped by DistributedDataParallel if there are several
            processes.
        accumulate: batches of this process in a step.
        average: of the weights, if the configuration asks for it.
        teachers: trained networks that it learns from, likewise.
        skipped: steps that the scaler skipped because gradients were not finite. A skip
            is counted at the next step.
    """

    config: Config
    world: World
    model: torch.nn.Module
    network: DeepFakeClassifier
    normalize: Normalize
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    seed: int
    accumulate: int
    skipped: int = 0
    average: "WeightAverage | None" = None
    teachers: Teachers | None = None
    _skipped_in_a_row: int = 0
    _previous_scale: float = 0.0

    @classmethod
    def build(
        cls,
        config: Config,
        world: World,
        pretrained: str,
        seed: int = 0,
        accumulate: int = 1,
    ) -> "Trainer":
        """Make the network, the optimizer and the scaler.

        Args:
            pretrained: as for `DeepFakeClassifier`; overrides the configuration's.
            seed: of dropout and stochastic depth. The network's initial weights depend
                on PyTorch's global generator.
        """
        start = read_start(Path(pretrained))
        network = make_classifier(config, pretrained if start is None else "none")
        if start is not None:
            start_from(network, start, Path(pretrained))
        if config.train == "norms":
            network.freeze_all_but_norms()
        _adjust_batchnorm_momentum(network, accumulate)
        model = world.wrap(network, config.sync_batchnorm)
        use_scaler = config.precision == "float16" and world.device.type == "cuda"
        scaler = torch.amp.GradScaler(enabled=use_scaler)
        normalize = Normalize(config.input.mean, config.input.std).to(world.device)
        teachers = None
        if config.teachers:
            teachers = Teachers(config.teachers, config.input).to(world.device).eval()
        return cls(
            config=config,
            world=world,
            model=model,
            network=network,
            normalize=normalize,
            optimizer=_make_optimizer(config, network),
            scaler=scaler,
            seed=seed,
            accumulate=accumulate,
            average=WeightAverage(network, config.ema) if config.ema else None,
            teachers=teachers,
        )

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N,) float32 of images (N, S, S, 3) uint8 RGB, or of clips
        (N, T, S, S, 3).

        On a GPU the network runs in the configured precision.
        """
        return self._run(images).float()

    def _run(self, images: torch.Tensor, *labels: torch.Tensor) -> Any:
        """What the network answers to images, and labels if it takes them."""
        images = self.normalize(images.to(self.world.device, non_blocking=True))
        # The wrapped model synchronises the processes, but their numbers of validation
        # batches may differ.
        model = self.model if self.model.training else self.network
        with self._autocast():
            return model(images, *labels)

    def _autocast(self) -> AbstractContextManager:
        """The configured precision on a GPU, float32 on a CPU."""
        device_type = self.world.device.type
        dtype = getattr(torch, self.config.precision)
        enabled = device_type == "cuda" and dtype != torch.float32
        return torch.autocast(device_type, dtype, enabled=enabled)

    def evaluated_weights(self) -> AbstractContextManager:
        """A block in which the network has the weights that are evaluated and saved."""
        if self.average is None:
            return nullcontext()
        return self.average.in_place_of(self.network)

    def step(
        self, batches: Sequence[dict], iteration: int
    ) -> tuple[float, float, float]:
        """Make one optimizer step with the mean gradient of the batches.

        Returns:
            loss, fake loss, real loss: each the mean over the batches.

        Raises:
            NonFiniteError: the loss is not finite, or the scaler has skipped more than
                `MAX_SKIPPED_STEPS` steps in a row. A loss that is not finite comes from
                activations that are in batch norm's running statistics by then, so that
                skipping the step would not help.
        """
        self._set_learning_rate(iteration)
        values = self._backward(batches, iteration)
        if self.config.sam:
            with self._at_the_worst_place():
                self._backward(batches, iteration)
        if self.config.alternate:
            self._drop_gradients_by_turns(iteration)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(
            self.network.parameters(), self.config.clip_gradient_norm
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.network)
        loss, fake_loss, real_loss = (
            sum(column) / len(column) for column in zip(*values)
        )
        return loss, fake_loss, real_loss

    def _backward(self, batches: Sequence[dict], iteration: int) -> list[list[float]]:
        """Compute the mean gradient of the batches. Returns the losses of each."""
        self.optimizer.zero_grad(set_to_none=True)
        values: list[list[float]] = []
        for number, batch in enumerate(batches):
            self._seed_dropout(iteration, number)
            with self._gradient_sync(number == len(batches) - 1):
                losses = self._losses(*self._mixed(batch, iteration, number))
                # one synchronisation with the GPU instead of three
                values.append(torch.stack(losses).tolist())
                if number == 0:
                    self._count_skips()
                self._check_finite(values[-1][0], iteration)
                self.scaler.scale(losses[0] / len(batches)).backward()
        return values

    def _losses(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, fake loss, real loss; the first with all that the network adds to it."""
        labels = labels.to(self.world.device)
        targets = self._targets(images, labels)
        if not isinstance(self.network, AttentionClassifier):
            return balanced_loss(self.logits(images), labels, targets)
        logits, extra = self._run(images, labels)
        loss, fake_loss, real_loss = balanced_loss(logits.float(), labels, targets)
        return loss + extra, fake_loss, real_loss

    def _targets(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the network learns: the labels, or mostly what the teachers answer."""
        if self.teachers is None:
            return labels
        with self._autocast():
            answers = torch.sigmoid(self.teachers(images.to(self.world.device)))
        share = self.config.soft_share
        return share * answers + (1 - share) * labels

    def _mixed(
        self, batch: dict, iteration: int, number: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of a batch, mixed with CutMix if the configuration says so."""
        if not self.config.cutmix:
            return batch["image"], batch["label"]
        rng = np.random.default_rng([*self._seeds(iteration, number), CUTMIX])
        if rng.random() >= self.config.cutmix:
            return batch["image"], batch["label"]
        return cutmix(batch["image"], batch["label"], rng)

    @contextmanager
    def _at_the_worst_place(self) -> Iterator[None]:
        """Move the weights by rho along the gradient, and back at the end of the block.

        Batch norm's running statistics do not change there.
        Method: Foret et al., "Sharpness-Aware Minimization" (2021).
        """
        moved = [each for each in self.network.parameters() if each.grad is not None]
        gradients = [each.grad for each in moved if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        steps = [each * (self.config.sam / (norm + 1e-12)) for each in gradients]
        layers = [
            layer for layer in self.network.modules() if isinstance(layer, BatchNorm)
        ]
        momenta = [layer.momentum for layer in layers]
        before = [each.detach().clone() for each in moved]
        with torch.no_grad():
            for parameter, step in zip(moved, steps):
                parameter.add_(step)
        for layer in layers:
            layer.momentum = 0.0
        yield
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
        with torch.no_grad():
            for parameter, value in zip(moved, before):
                parameter.copy_(value)

    def _drop_gradients_by_turns(self, iteration: int) -> None:
        """Leave a part of the encoder as it is in this step.

        Method: Wang et al., "AltFreezing for More General Video Face Forgery Detection"
        (2023): one step for space, twenty for time.
        """
        is_for_space = iteration % self.config.alternate == 0
        for name, parameter in self.network.encoder.named_parameters():
            if is_over_time(f".{name}") == is_for_space:
                parameter.grad = None

    def _set_learning_rate(self, iteration: int) -> None:
        config = self.config
        base, total = config.learning_rate, config.max_iterations
        if config.schedule == "cosine":
            learning_rate = cosine_learning_rate(iteration, base, config.warmup, total)
        elif config.schedule == "exponential":
            epoch = iteration // config.batches_per_epoch
            learning_rate = exponential_learning_rate(epoch, base, config.epoch_decay)
        else:
            learning_rate = poly_learning_rate(
                iteration, base, config.poly_power, total
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(FACTOR, 1.0)

    def _seed_dropout(self, iteration: int, number: int) -> None:
        """Seed dropout and stochastic depth for the process's batch `number` of a step.

        The seed depends on the training seed, the iteration and the batch's position in
        the step, not on the number of processes.
        """
        sequence = np.random.SeedSequence(self._seeds(iteration, number))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def _seeds(self, iteration: int, number: int) -> list[int]:
        position = self.world.rank + number * self.world.size
        return [self.seed, iteration, position]

    def _gradient_sync(self, enabled: bool) -> AbstractContextManager:
        """Whether `backward` averages the gradients over the processes."""
        if enabled or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _count_skips(self) -> None:
        """Count a skipped step, after which the scaler has a lower scale.

        Called one step later: reading the scale waits for the GPU, which has finished
        that step by then.
        """
        scale = self.scaler.get_scale()
        if scale < self._previous_scale:
            self.skipped += 1
            self._skipped_in_a_row += 1
        else:
            self._skipped_in_a_row = 0
        self._previous_scale = scale

    def _check_finite(self, loss: float, iteration: int) -> None:
        if not math.isfinite(loss):
            problem = f"the loss is {loss}"
        elif self._skipped_in_a_row > MAX_SKIPPED_STEPS:
            problem = "the gradients are not finite"
        else:
            return
        raise NonFiniteError(
            f"{problem} at iteration {iteration}; lower learning_rate, or set "
            "precision to bfloat16"
        )


class WeightAverage:
    """The exponential moving average of a network's weights.

    Batch norm's running statistics are averaged too; whole numbers are copied.

    Attributes:
        state: as `state_dict` of the network.
    """

    def __init__(self, network: torch.nn.Module, decay: float):
        self.decay = decay
        self.state = {
            key: value.detach().clone() for key, value in network.state_dict().items()
        }

    @torch.no_grad()
    def update(self, network: torch.nn.Module) -> None:
        """Move the average towards the network's weights after a step."""
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - self.decay)
            else:
                self.state[key].copy_(value)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint's average."""
        for key, value in state.items():
            self.state[key].copy_(value)

    @contextmanager
    def in_place_of(self, network: torch.nn.Module) -> Iterator[None]:
        """Give the network the averaged weights inside the block."""
        own = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(self.state)
        yield
        network.load_state_dict(own)


def _adjust_batchnorm_momentum(network: torch.nn.Module, accumulate: int) -> None:
    """Make the running statistics span as many steps as with one batch per step."""
    for layer in network.modules():
        if isinstance(layer, BatchNorm) and layer.momentum is not None:
            layer.momentum = 1 - (1 - layer.momentum) ** (1 / accumulate)


def _make_optimizer(config: Config, network: torch.nn.Module) -> torch.optim.Optimizer:
    make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    trained: list = [each for each in network.parameters() if each.requires_grad]
    if config.time_learning_rate != 1:
        named = [each for each in network.named_parameters() if each[1].requires_grad]
        trained = [
            {
                "params": [
                    each for name, each in named if is_over_time(name) == is_time
                ],
                FACTOR: factor,
            }
            for is_time, factor in ((False, 1.0), (True, config.time_learning_rate))
        ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            trained, lr=config.learning_rate, weight_decay=config.weight_decay
        )
    if config.optimizer == "apex_fused_sgd":
        make = _import_fused_sgd()
    return make(
        trained,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _import_fused_sgd() -> Callable[..., torch.optim.Optimizer]:
    try:
        from apex.optimizers import FusedSGD
    except ImportError as error:
        raise UserError(
            "optimizer is apex_fused_sgd, but NVIDIA's apex is not installed: build it "
            "from source (github.com/NVIDIA/apex; the package of that name in the "
            "registry is another project), or use sgd"
        ) from error
    return FusedSGD
