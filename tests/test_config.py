"""Training configurations: the winner's values, inheritance, error messages."""

from pathlib import Path

import pytest

from runtime.cli import UserError
from training.config import Config, InputSettings, load_config

CONFIGS = Path(__file__).parent.parent / "configs"


def test_the_winners_numbers():
    config = load_config(CONFIGS / "b7.yaml")
    assert config == Config()  # the defaults are the winner's values, too
    expected = {
        "encoder": "tf_efficientnet_b7.ns_jft_in1k",
        "precision": "float16",
        "epochs": 40,
        "batches_per_epoch": 2500,
        "batch_size": 12,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": True,
        "poly_power": 0.9,
        "max_iterations": 100_500,
        "clip_gradient_norm": 1.0,
        "label_smoothing": 0.01,
        "landmark_cutout": 0.7,
        "hull_cutout": 0.2,
        "half_cutout": 0.1,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.input.size == 380
    settings = InputSettings()
    assert settings.frames_per_video == 32
    assert settings.detector_thresholds == (0.7, 0.8, 0.8)
    assert settings.mean == (0.485, 0.456, 0.406)
    assert settings.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name
)
def test_every_config_is_valid(path):
    load_config(path)


def test_base_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 3\nbatch_size: 5\ninput: {size: 64}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nbatch_size: 7\n")
    config = load_config(tmp_path / "mine.yaml", ["input.size=96", "weight_decay=1e-5"])
    assert (config.epochs, config.batch_size) == (3, 7)
    assert (config.input.size, config.weight_decay) == (96, 1e-5)


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
        ("epochs: 1\nepochs: 2", ["'epochs' is given twice"]),
        ("temporal: dense", ["temporal: dense needs clips"]),
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
