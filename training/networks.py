"""The network of a configuration: which encoder, head and stem."""

from runtime.cli import UserError
from training.attention import AttentionClassifier
from training.config import Config
from training.model import VIDEO_NETWORKS, DeepFakeClassifier
from training.residuals import add_residuals
from training.video_network import VideoClassifier


def make_classifier(config: Config, pretrained: str = "none") -> DeepFakeClassifier:
    """The network of a configuration, on the CPU.

    Args:
        pretrained: as for `DeepFakeClassifier`.
    """
    model: DeepFakeClassifier
    if config.encoder.startswith(VIDEO_NETWORKS):
        unknown = [
            name
            for name, is_set in (
                ("alternate", config.alternate),
                ("head: attention", config.head == "attention"),
                ("temporal: dense", config.temporal == "dense"),
            )
            if is_set
        ]
        if unknown:
            raise UserError(
                f"encoder {config.encoder}: does not know `{unknown[0]}`, which the "
                "config or its base sets"
            )
        model = VideoClassifier(
            config.encoder, pretrained, config.dropout, config.input.clip_frames
        )
    else:
        kind = AttentionClassifier if config.head == "attention" else DeepFakeClassifier
        model = kind(
            config.encoder,
            pretrained,
            config.dropout,
            config.drop_path_rate,
            config.input.clip_frames,
            config.temporal,
        )
    _check_size(model, config)
    if config.srm:
        add_residuals(model, config.input.std)
    return model


def _check_size(model: DeepFakeClassifier, config: Config) -> None:
    """A vision transformer takes sizes of whole patches."""
    patches = getattr(getattr(model.encoder, "patch_embed", None), "patch_size", None)
    if patches and any(config.input.size % side for side in patches):
        raise UserError(
            f"input.size {config.input.size}: {config.encoder} takes multiples of "
            f"{patches[0]}"
        )
