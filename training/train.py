"""Train one network of the ensemble on one fold.

    torchrun --nproc_per_node=4 -m training.train --config configs/b7.yaml \\
        --data-dir DATA --seed 111 --fold 0
    python -m training.train …        in one process, on the GPU if there is one

Reads  DATA/folds.csv, DATA/crops, DATA/landmarks, DATA/diffs; with --format wds
       DATA/shards instead
Writes weights/{prefix}DeepFakeClassifier_{encoder}_{fold}_{epoch} after each epoch, and
       …_last, from which an interrupted run resumes automatically;
       logs/{run}/metrics.csv, curves.png, args.yaml and TensorBoard events
Method: the winner's (configs/b7.yaml). What he used from apex is part of PyTorch now:
       mixed precision (torch.amp), distributed data parallel and synchronised batch
       norm. apex's FusedSGD is used if it is installed and the configuration asks for
       it.
"""

import os
from pathlib import Path

from preprocessing.crop_table import FORMATS
from runtime.cli import MachineError, make_parser, non_negative_int, run_main
from runtime.device import add_device_option
from training.config import add_set_option, load_config


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="such as configs/b7.yaml, the winner's",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="the data folder of preprocess_data.sh",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="files",
        help="of the crops: files, or the WebDataset shards of preprocessing step 6",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("weights"), help="for checkpoints"
    )
    parser.add_argument(
        "--logdir",
        type=Path,
        default=Path("logs"),
        help="for metrics.csv, args.yaml and TensorBoard",
    )
    parser.add_argument(
        "--fold",
        type=int,
        default=0,
        choices=range(16),
        metavar="0..15",
        help="the validation fold",
    )
    parser.add_argument(
        "--leave-out",
        nargs="+",
        action="extend",
        default=[],
        metavar="TECHNIQUE",
        help="train and validate without the fakes of these techniques of folds.csv",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=111,
        help="of initial weights, sampling and augmentation",
    )
    parser.add_argument(
        "--prefix", default="", help="of the checkpoints' names; if not given, SEED_"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: from …_last if it exists; none: start anew; or a checkpoint file",
    )
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        help="loader processes for each training process; if not given, its share of "
        "this machine's processors, at most 6",
    )
    add_device_option(parser)
    add_set_option(parser)
    options = parser.parse_args(argv)
    config = load_config(options.config, options.set)
    # not at the top: each loader process imports this module
    from training.distributed import init_distributed, local_world_size
    from training.loaders import describe_loader_error
    from training.loop import train

    # also without need, since it checks torchrun's variable before anything is loaded
    share = (os.cpu_count() or 1) // local_world_size()
    if options.workers is None:
        options.workers = min(6, max(1, share))
    try:
        with init_distributed(options.device) as world:
            train(options, config, world)
    except RuntimeError as error:
        reason = describe_loader_error(error)
        if reason is None:
            raise
        raise MachineError(
            f"{reason}. The same command resumes after the last epoch"
        ) from error
    return 0


if __name__ == "__main__":
    run_main(main)
