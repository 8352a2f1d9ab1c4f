"""The HTML report: `python -m inference.predict … --report DIR`.

Writes DIR/index.html        histogram of the labels and a sortable, searchable table of
                             all videos; self-contained
       DIR/videos/ID.html    one video: score over time for each network and person, the
                             faces with the highest scores, their Grad-CAM heatmaps
                             (--grad-cam), the container's metadata

A video's page is written when the video is done, so an interrupted run can be resumed;
the index is written at the end. Pages load no other file: images are inlined. File
names and tags are untrusted input: they are escaped, and a content security policy is
the second line of defence.
Method: Grad-CAM (Selvaraju et al. 2017). A network that ends in an average pool and one
       linear layer needs no backward pass for it: the weights are the layer's own (Zhou
       et al. 2016).
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from inference.aggregate import NO_ANSWER, Aggregation, top_faces
from inference.ensemble import ClipView
from inference.submission import is_answered, network_scores, video_label
from preprocessing.tracking import track_faces
from runtime.files import atomic_file

TEMPLATES = Path(__file__).parent / "templates"
FACE_SIDE = 160  # pixels of a face's image
BINS = 20
# Distinct in hue and in lightness, readable on a light and on a dark background (after
# Okabe and Ito, 2008).
COLOURS = ("#c24a00", "#0b7fc2", "#168f6d", "#b8568f", "#9c7a00", "#6f5fc9", "#7a7f86")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # one for each person
TICKS = (0, 0.25, 0.5, 0.75, 1)


class Report:
    """The pages of one run.

    Args:
        folder: where the pages are written.
        aggregation: which gives the labels.
    """

    def __init__(self, folder: Path, aggregation: Aggregation):
        self.folder = folder
        self._aggregation = aggregation
        self._style = (TEMPLATES / "style.css").read_text()

    def write_video(
        self,
        entry: dict,
        images: np.ndarray | None,
        provenance: dict[str, str],
        heatmaps: np.ndarray | None = None,
        clips: ClipView | None = None,
        residuals: np.ndarray | None = None,
    ) -> None:
        """Write a video's page.

        Args:
            entry: its line in the journal.
            images: (K, S, S, 3) uint8 RGB, its faces as network inputs; None for a
                video without a face.
            provenance: facts of the container, in words.
            heatmaps: (N, h, w) in 0..1, Grad-CAM of the first network for the N faces
                with the highest scores.
            clips: a frame of each of its clips with the highest scores.
            residuals: (N, S, S, 3) uint8 RGB, the noise residuals of the same N faces.
        """
        label = video_label(entry, self._aggregation)
        sections = []
        if is_answered(entry):
            sections += [
                self._networks(entry),
                _section("Score over time", _chart(entry)),
            ]
        if images is not None:
            top = images[top_faces(entry["probabilities"])]
            faces = _faces(entry, top, heatmaps, residuals=residuals)
            sections.append(_section("Faces with the highest scores", faces))
        if clips is not None:
            text = _faces(entry["clips"], clips.images, clips.heatmaps, "clip")
            sections.append(_section("Clips with the highest scores", text))
        facts = provenance or {"container": "cannot be read"}
        sections.append(_section("Container metadata", _definitions(facts)))
        self._write(
            f"videos/{page_id(entry['filename'])}.html",
            "video.html",
            name=escape(_printable(entry["filename"])),
            summary=_summary(entry, label),
            sections="\n".join(sections),
        )

    def write_index(self, entries: Iterable[dict], notes: Sequence[str] = ()) -> None:
        """Write the table of all videos. `notes` stand below its summary."""
        rows = []
        labels = []  # of the videos with faces
        for entry in entries:
            label = round(video_label(entry, self._aggregation), 6)
            if is_answered(entry):
                labels.append(label)
            rows.append(
                [
                    _printable(entry["filename"]),
                    label,
                    len(entry["frames"]),
                    entry["reason"],
                    f"videos/{page_id(entry['filename'])}.html",
                    entry.get("thumbnail", ""),
                ]
            )
        fakes = sum(label > 0.5 for label in labels)
        unanswered = len(rows) - len(labels)
        self._write(
            "index.html",
            "index.html",
            count=len(rows),
            summary=f"{len(rows)} videos, {fakes} labelled fake (above 0.5), "
            f"{unanswered} without an answer."
            + "".join(f"<br>{escape(_printable(note))}." for note in notes),
            histogram=_histogram(np.array(labels)),
            data=json.dumps(rows).replace("<", "\\u003c"),
        )

    def _networks(self, entry: dict) -> str:
        """The table of the networks: label and range of scores."""
        rows = []
        clips = entry.get("clips", {}).get("probabilities", {})
        alone = self._aggregation._replace(weights={}, shrink=1.0)
        for name, scores in network_scores(entry):
            label = f"{video_label(_only(entry, name), alone):.4f}" if scores else "–"
            spread = f"{min(scores):.4f} to {max(scores):.4f}" if scores else "none"
            spread += " (clips)" if name in clips and scores else ""
            cells = (
                f'<td class="name">{escape(name)}</td>'
                f'<td class="number">{label}</td>'
                f'<td class="number">{spread}</td>'
            )
            rows.append(f"<tr>{cells}</tr>")
        head = (
            '<th scope="col">Network</th>'
            '<th scope="col" class="number">Label</th>'
            '<th scope="col" class="number">Scores of its faces</th>'
        )
        body = "".join(rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return _section(
            "Networks",
            '<div class="scroll" role="region" aria-label="Networks" tabindex="0">'
            f"{table}</div>",
        )

    def _write(self, path: str, template: str, **values: object) -> None:
        text = Template((TEMPLATES / template).read_text()).substitute(
            values, style=self._style
        )
        with atomic_file(self.folder / path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")


def _only(entry: dict, name: str) -> dict:
    """An entry with the scores of one network."""

    def only(part: dict) -> dict:
        own = {key: each for key, each in part["probabilities"].items() if key == name}
        return part | {"probabilities": own}

    return only(entry) | ({"clips": only(entry["clips"])} if "clips" in entry else {})


def page_id(filename: str) -> str:
    """The name of a video's page, safe in any file system and any URL."""
    return hashlib.sha256(filename.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def thumbnail(image: np.ndarray) -> str:
    """A small image (h, w, 3) uint8 RGB as a base64 JPEG."""
    return _jpeg(image, 60)


def _summary(entry: dict, label: float) -> str:
    reason = escape(_printable(entry["reason"]))
    if not is_answered(entry):
        return f"No answer ({NO_ANSWER}): {reason}"
    verdict = "fake" if label > 0.5 else "real"
    frames = len(set(entry["frames"]))
    return (
        f'<strong class="{verdict}">{label:.4f}</strong>, labelled {verdict}; '
        f"{len(entry['frames'])} faces in {frames} frames."
        f"{f' {reason}.' if reason else ''}"
    )


def _chart(entry: dict) -> str:
    """Scores over time as SVG, a line for each network and person, a band for each clip,
    and its legend.
    """
    probabilities = entry["probabilities"]
    tracks = track_faces(entry["frames"], entry["boxes"])
    persons = max(tracks) + 1
    ends = [end for _, end in entry.get("clips", {}).get("seconds", [])]
    seconds = max(*entry["times"], *ends, 1e-3)
    lines, legend = [], []
    for number, (name, scores) in enumerate(probabilities.items()):
        for person in range(persons):
            style = _line_style(number if len(probabilities) > 1 else person, person)
            points = [
                f"{60 + 640 * time / seconds:.1f} {200 - 180 * score:.1f}"
                for time, score, track in zip(entry["times"], scores, tracks)
                if track == person and not math.isnan(score)
            ]
            if not points:
                continue
            # a single point is drawn twice: a line of length 0 with round ends is a dot
            points = points if len(points) > 1 else 2 * points
            lines.append(f'<path d="M{"L".join(points)}" {style}/>')
            words = [escape(name)] if len(probabilities) > 1 or persons == 1 else []
            words += [f"person {person + 1}"] if persons > 1 else []
            legend.append(_legend_item(style, ", ".join(words)))
    lines += _clip_bands(entry, seconds, legend)
    label = f"Score of each face over {seconds:.1f} seconds"
    return (
        f'<svg viewBox="0 0 730 230" role="img" aria-label="{label}">'
        f'{_chart_axes(seconds)}{"".join(lines)}</svg><ul class="legend">'
        f"{''.join(legend)}</ul>"
    )


def _clip_bands(entry: dict, seconds: float, legend: list[str]) -> list[str]:
    """A band for each clip, as wide as its time, at its score; extends the legend."""
    clips = entry.get("clips", {"probabilities": {}})
    bands = []
    for number, (name, scores) in enumerate(clips["probabilities"].items()):
        hue = COLOURS[(len(entry["probabilities"]) + number) % len(COLOURS)]
        fill = f'fill="{hue}" fill-opacity="0.45"'
        for (start, end), score in zip(clips["seconds"], scores):
            if math.isnan(score):
                continue
            width = max(640 * (end - start) / seconds, 3)
            bands.append(
                f'<rect x="{60 + 640 * start / seconds:.1f}" '
                f'y="{196 - 180 * score:.1f}" width="{width:.1f}" height="8" {fill}/>'
            )
        legend.append(
            '<li><svg viewBox="0 0 32 10" aria-hidden="true">'
            f'<rect x="2" y="1" width="28" height="8" {fill}/></svg>'
            f"{escape(name)} (clips)</li>"
        )
    return bands


def _line_style(hue: int, person: int) -> str:
    return (
        f'stroke="{COLOURS[hue % len(COLOURS)]}" '
        f'stroke-dasharray="{DASHES[person % len(DASHES)]}" '
        'stroke-width="2" stroke-linecap="round" fill="none"'
    )


def _legend_item(style: str, text: str) -> str:
    return (
        '<li><svg viewBox="0 0 32 10" aria-hidden="true">'
        f'<path d="M2 5H30" {style}/></svg>{text}</li>'
    )


def _chart_axes(seconds: float) -> str:
    axes = []
    for score in TICKS:
        y = 200 - 180 * score
        axes.append(
            f'<path class="axis" d="M60 {y}H700"/>'
            f'<text x="52" y="{y + 4}" text-anchor="end">{score:g}</text>'
        )
    for share in (0, 0.5, 1):
        axes.append(
            f'<text x="{60 + 640 * share}" y="222" text-anchor="middle">'
            f"{seconds * share:.1f} s</text>"
        )
    return "".join(axes)


def _faces(
    scored: dict,
    images: np.ndarray,
    heatmaps: np.ndarray | None,
    unit: str = "face",
    residuals: np.ndarray | None = None,
) -> str:
    """The faces or clips with the highest scores, with heatmaps for the first of them.

    Args:
        scored: frames, times, boxes and probabilities.
        images: (N, S, S, 3), of the first of them.
    """
    names = list(scored["probabilities"])
    tracks = track_faces(scored["frames"], scored["boxes"])
    items = []
    for rank, (face, full) in enumerate(
        zip(top_faces(scored["probabilities"]), images)
    ):
        image = cv2.resize(full, (FACE_SIDE, FACE_SIDE), interpolation=cv2.INTER_AREA)
        scores = [scored["probabilities"][name][face] for name in names]
        known = [score for score in scores if not math.isnan(score)]
        mean = f"{np.mean(known):.4f}" if known else "not scored"
        where = f"at {scored['times'][face]:.2f} s"
        if max(tracks):
            where += f", person {tracks[face] + 1}"
        tags = _img(image, f"{unit.capitalize()} {where}")
        if heatmaps is not None and rank < len(heatmaps):
            text = f"Grad-CAM heatmap of {names[0]}, {unit} {where}"
            tags += _img(overlay(image, heatmaps[rank]), text)
        if residuals is not None and rank < len(residuals):
            small = cv2.resize(residuals[rank], (FACE_SIDE, FACE_SIDE))
            tags += _img(small, f"Noise residuals that {names[0]} sees, {unit} {where}")
        items.append(
            f'<li>{tags}<span>{mean}</span><span class="soft">{where}</span></li>'
        )
    note = f"Score of each {unit}."
    if len(names) > 1:
        note = f"Mean score over {len(names)} networks."
    if heatmaps is not None:
        note += (
            f" The second image is the Grad-CAM heatmap of {escape(names[0])}: red "
            "regions raised its score."
        )
    if residuals is not None:
        note += (
            " The third shows the noise residuals that it sees: grey where neighbouring "
            "pixels predict a pixel, coloured where they do not."
        )
    if unit == "clip" and heatmaps is not None:
        note += " The frame of the clip that it finds most suspicious."
    return f'<p class="soft">{note}</p><ul class="faces">{"".join(items)}</ul>'


def _img(image: np.ndarray, alt: str) -> str:
    return f'<img src="data:image/jpeg;base64,{_jpeg(image, 80)}" alt="{escape(alt)}">'


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """A heatmap (h, w) in 0..1 blended over an image (H, W, 3) uint8 RGB."""
    size = image.shape[1::-1]
    resized = cv2.resize(
        heatmap.astype(np.float32), size, interpolation=cv2.INTER_CUBIC
    )
    large = np.clip(resized, 0, 1)
    colours = cv2.applyColorMap((255 * large).astype(np.uint8), cv2.COLORMAP_JET)
    weight = large[..., None]
    blended = image * (1 - 0.5 * weight) + colours[..., ::-1] * 0.5 * weight
    return blended.astype(np.uint8)


def _histogram(labels: np.ndarray) -> str:
    """The histogram of the labels as SVG."""
    counts, _ = np.histogram(labels, BINS, (0, 1))
    highest = max(int(counts.max(initial=0)), 1)
    parts = []
    for number, count in enumerate(counts):
        height = 120 * count / highest
        parts.append(
            f'<rect class="bar" x="{41 + 33 * number}" y="{140 - height:.1f}" '
            f'width="30" height="{height:.1f}"/>'
        )
        if count:
            parts.append(
                f'<text x="{56 + 33 * number}" y="{134 - height:.1f}" '
                f'text-anchor="middle">{count}</text>'
            )
    for label in TICKS:
        parts.append(
            f'<text x="{40 + 660 * label}" y="156" '
            f'text-anchor="middle">{label:g}</text>'
        )
    parts.append('<path class="axis" d="M40 140H700"/>')
    title = f"Histogram of {len(labels)} labels from 0, real, to 1, fake"
    return (
        f'<svg viewBox="0 -14 720 180" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def _definitions(facts: dict[str, str]) -> str:
    items = [
        f"<dt>{escape(key)}</dt><dd>{escape(_printable(value))}</dd>"
        for key, value in facts.items()
    ]
    return f"<dl>{''.join(items)}</dl>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _printable(text: str) -> str:
    """Replace surrogate escapes (bytes of a file name that are not UTF-8) by U+FFFD."""
    return "".join(
        "\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text
    )


def _jpeg(image: np.ndarray, quality: int) -> str:
    """An image (h, w, 3) uint8 RGB as a base64 JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], options)
    return base64.b64encode(encoded.tobytes()).decode()
