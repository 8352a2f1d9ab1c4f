from pathlib import Path

import pytest

from runtime.cli import UserError
from training.config import Config, InputSettings, load_config

CONFIGS = Path(__file__).parent.parent / "configs"


def test_the_winners_numbers():
    config = load_config(CONFIGS / "b7.yaml")
    assert config == Config()  # the defaults are his, too
    assert (config.encoder, config.input.size, config.precision) == (
        "tf_efficientnet_b7.ns_jft_in1k",
        380,
        "float16",
    )
    assert (config.epochs, config.batches_per_epoch, config.batch_size) == (
        40,
        2500,
        12,
    )
    assert (
        config.learning_rate,
        config.momentum,
        config.weight_decay,
        config.nesterov,
    ) == (0.01, 0.9, 1e-4, True)
    assert (config.poly_power, config.max_iterations, config.clip_gradient_norm) == (
        0.9,
        100_500,
        1.0,
    )
    assert (
        config.label_smoothing,
        config.landmark_cutout,
        config.hull_cutout,
        config.half_cutout,
    ) == (
        0.01,
        0.7,
        0.2,
        0.1,
    )
    assert (
        InputSettings().frames_per_video == 32
        and InputSettings().detector_thresholds == (0.7, 0.8, 0.8)
    )
    assert InputSettings().mean == (0.485, 0.456, 0.406) and InputSettings().std == (
        0.229,
        0.224,
        0.225,
    )


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name
)
def test_every_config_is_valid(path):
    load_config(path)


def test_base_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 3\nbatch_size: 5\ninput: {size: 64}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nbatch_size: 7\n")
    config = load_config(tmp_path / "mine.yaml", ["input.size=96", "weight_decay=1e-5"])
    assert (
        config.epochs,
        config.batch_size,
        config.input.size,
        config.weight_decay,
    ) == (3, 7, 96, 1e-5)


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "learning_rat: 0.1",
            ["unknown key 'learning_rat'", "did you mean 'learning_rate'?"],
        ),
        ("lr: 0.1", ["unknown key 'lr'", "did you mean 'learning_rate'?"]),
        ("size: 300", ["unknown key 'size'", "did you mean 'input.size'?"]),
        ("input: {sise: 300}", ["unknown key 'input.sise'", "did you mean 'size'?"]),
        ("zzz: 1", ["unknown key 'zzz'", "known keys are encoder"]),
        ("epochs: many", ["epochs", "integer"]),
        ("epochs: 100", ["max_iterations is 100500", "at least 250000"]),
        ("precision: half", ["precision", "float16"]),
        ("a: [", ["not YAML"]),
        ("just text", ["key: value"]),
        (
            "epochs: !!python/object/apply:os.getcwd []",
            ["not YAML", "could not determine a constructor"],
        ),
        ("1: 2", ["keys must be words"]),
        ("base: mine.yaml", ["in a circle"]),
        ("base: [b7.yaml]", ["must name another file"]),
        ("input: {size: 100000}", ["input.size", "less than or equal to 2048"]),
    ],
)
def test_a_mistake_names_the_file_and_the_key(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    for word in ["mine.yaml", *words]:
        assert word in str(error.value)


def test_other_mistakes():
    with pytest.raises(UserError, match="none.yaml.*configs/"):
        load_config(Path("none.yaml"))
    with pytest.raises(UserError, match="KEY=VALUE"):
        load_config(CONFIGS / "b7.yaml", ["epochs"])
    with pytest.raises(UserError, match="--set epochs=.: not YAML"):
        load_config(CONFIGS / "b7.yaml", ["epochs=["])
    with pytest.raises(UserError, match="'epochs' is no group"):
        load_config(CONFIGS / "b7.yaml", ["epochs.more=1"])
