"""A report one can look at: `python -m inference.predict … --report DIR`.

Writes DIR/index.html        histogram and a sortable, searchable table of all videos; needs nothing beside it
       DIR/videos/ID.html    a video's page: score over time for each network and person, its most suspicious faces, where
                             the network looked (--grad-cam), what the container tells of its origin

A page is written when its video is done, so an interrupted run goes on; the index when all are. No page loads anything:
pictures are inside, and a content security policy keeps names and tags, which come from strangers, from becoming more.
Method: Grad-CAM (Selvaraju et al. 2017). A network that ends in an average pool and one linear layer needs no backward pass
       for it: the weights are the layer's own (Zhou et al. 2016).
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from inference.aggregate import NO_ANSWER, ensemble_label, top_faces
from inference.submission import video_label
from preprocessing.tracking import track_faces
from runtime.files import atomic_file

TEMPLATES = Path(__file__).parent / "templates"
FACE_SIDE = 160  # pixels of a face's picture
BINS = 20
# distinct in hue and in lightness, readable on light and dark ground (after Okabe and Ito, 2008)
COLOURS = ("#c24a00", "#0b7fc2", "#168f6d", "#b8568f", "#9c7a00", "#6f5fc9", "#7a7f86")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # persons


class Report:
    """The pages of one run, below `folder`. `rule` is the one that labels follow from."""

    def __init__(self, folder: Path, rule: str):
        self.folder, self._rule = folder, rule
        self._style = (TEMPLATES / "style.css").read_text()

    def write_video(
        self,
        entry: dict,
        images: np.ndarray,
        provenance: dict[str, str],
        heatmaps: np.ndarray | None = None,
    ) -> None:
        """Write a video's page.

        Args:
            entry: its line in the journal.
            images: (K, S, S, 3) uint8 RGB, its faces as a network saw them.
            provenance: facts of the container, in words.
            heatmaps: (N, h, w) in 0..1, where the first network looked in the N most suspicious faces.
        """
        label = video_label(entry, self._rule)
        name = escape(_printable(entry["filename"]))
        sections = (
            [self._networks(entry), _section("Score over time", _chart(entry))]
            if entry["frames"]
            else []
        )
        sections += (
            [_section("Most suspicious faces", _faces(entry, images, heatmaps))]
            if entry["frames"]
            else []
        )
        sections.append(
            _section(
                "What the container says",
                _definitions(provenance or {"container": "cannot be read"}),
            )
        )
        self._write(
            f"videos/{page_id(entry['filename'])}.html",
            "video.html",
            name=name,
            summary=_summary(entry, label),
            sections="\n".join(sections),
        )

    def write_index(self, entries: Iterable[dict]) -> None:
        """Write the table of all videos."""
        rows = []
        for entry in entries:
            page = f"videos/{page_id(entry['filename'])}.html"
            label = round(video_label(entry, self._rule), 6)
            rows.append(
                [
                    _printable(entry["filename"]),
                    label,
                    len(entry["frames"]),
                    entry["reason"],
                    page,
                    entry.get("thumbnail", ""),
                ]
            )
        labels = np.array([row[1] for row in rows if row[2]])
        unanswered = sum(not row[2] for row in rows)
        summary = f"{len(rows)} videos, {int((labels > 0.5).sum())} labelled fake (above 0.5), {unanswered} without an answer."
        self._write(
            "index.html",
            "index.html",
            count=len(rows),
            summary=summary,
            histogram=_histogram(labels),
            data=json.dumps(rows).replace("<", "\\u003c"),
        )

    def _networks(self, entry: dict) -> str:
        rows = []
        for name, scores in entry["probabilities"].items():
            label = ensemble_label([np.array(scores, np.float32)], self._rule)
            cells = f'<td class="number">{label:.4f}</td><td class="number">{min(scores):.4f} to {max(scores):.4f}</td>'
            rows.append(f'<tr><td class="name">{escape(name)}</td>{cells}</tr>')
        head = "".join(
            f'<th scope="col"{kind}>{title}</th>'
            for title, kind in (
                ("Network", ""),
                ("Label", ' class="number"'),
                ("Its faces", ' class="number"'),
            )
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        return _section(
            "Networks",
            f'<div class="scroll" role="region" aria-label="Networks" tabindex="0">{table}</div>',
        )

    def _write(self, path: str, template: str, **values: object) -> None:
        text = Template((TEMPLATES / template).read_text()).substitute(
            values, style=self._style
        )
        with atomic_file(self.folder / path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")


def page_id(filename: str) -> str:
    """A name for a video's page that any file system and any address takes."""
    return hashlib.sha256(filename.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def thumbnail(image: np.ndarray) -> str:
    """A small image (h, w, 3) uint8 RGB as a JPEG in base64."""
    return _jpeg(image, 60)


def _summary(entry: dict, label: float) -> str:
    if not entry["frames"]:
        return f"No answer ({NO_ANSWER}): {escape(_printable(entry['reason']))}"
    kind = "fake" if label > 0.5 else "real"
    frames = len(set(entry["frames"]))
    reason = f" {escape(_printable(entry['reason']))}." if entry["reason"] else ""
    return (
        f'<strong class="{kind}">{label:.4f}</strong>, labelled {kind}; {len(entry["frames"])} faces in {frames} frames.'
        f"{reason}"
    )


def _chart(entry: dict) -> str:
    """Scores over time as SVG, a line for each network and person, and its legend."""
    people = track_faces(entry["frames"], entry["boxes"])
    longest = max(max(entry["times"]), 1e-3)
    lines, legend = [], []
    for number, (name, scores) in enumerate(entry["probabilities"].items()):
        for person in range(max(people) + 1):
            hue = number if len(entry["probabilities"]) > 1 else person
            colour, dash = COLOURS[hue % len(COLOURS)], DASHES[person % len(DASHES)]
            style = f'stroke="{colour}" stroke-dasharray="{dash}" stroke-width="2" stroke-linecap="round" fill="none"'
            places = [
                f"{60 + 640 * time / longest:.1f} {200 - 180 * score:.1f}"
                for time, score, who in zip(entry["times"], scores, people)
                if who == person
            ]
            # a face that is seen once is a line from its place to its place, which its round ends make a dot
            lines.append(
                f'<path d="M{"L".join(places if len(places) > 1 else 2 * places)}" {style}/>'
            )
            sample = f'<svg viewBox="0 0 32 10" aria-hidden="true"><path d="M2 5H30" {style}/></svg>'
            who = f"person {person + 1}" if max(people) else ""
            words = filter(
                None,
                (
                    escape(name) if len(entry["probabilities"]) > 1 or not who else "",
                    who,
                ),
            )
            legend.append(f"<li>{sample}{', '.join(words)}</li>")
    axes = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = 200 - 180 * value
        axes.append(
            f'<path class="axis" d="M60 {y}H700"/><text x="52" y="{y + 4}" text-anchor="end">{value:g}</text>'
        )
    for share in (0, 0.5, 1):
        axes.append(
            f'<text x="{60 + 640 * share}" y="222" text-anchor="middle">{longest * share:.1f} s</text>'
        )
    label = f"Score of each face over {longest:.1f} seconds"
    svg = f'<svg viewBox="0 0 730 230" role="img" aria-label="{label}">{"".join(axes + lines)}</svg>'
    return f'{svg}<ul class="legend">{"".join(legend)}</ul>'


def _faces(entry: dict, images: np.ndarray, heatmaps: np.ndarray | None) -> str:
    names, items = list(entry["probabilities"]), []
    people = track_faces(entry["frames"], entry["boxes"])
    for place, face in enumerate(top_faces(entry["probabilities"])):
        small = cv2.resize(
            images[face], (FACE_SIDE, FACE_SIDE), interpolation=cv2.INTER_AREA
        )
        mean = np.mean([entry["probabilities"][name][face] for name in names])
        where = f"at {entry['times'][face]:.2f} s" + (
            f", person {people[face] + 1}" if max(people) else ""
        )
        pictures = [(small, f"Face {where}")]
        if heatmaps is not None and place < len(heatmaps):
            pictures.append(
                (
                    overlay(small, heatmaps[place]),
                    f"Where {names[0]} looked in the face {where}",
                )
            )
        shown = "".join(
            f'<img src="data:image/jpeg;base64,{_jpeg(image, 80)}" alt="{escape(text)}">'
            for image, text in pictures
        )
        items.append(
            f'<li>{shown}<span>{mean:.4f}</span><span class="soft">{where}</span></li>'
        )
    note = (
        f"Mean score over {len(names)} networks."
        if len(names) > 1
        else "Score of each face."
    )
    if heatmaps is not None:
        note += f" The second picture shows in red what raised the score of {escape(names[0])} (Grad-CAM)."
    return f'<p class="soft">{note}</p><ul class="faces">{"".join(items)}</ul>'


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """A heatmap (h, w) in 0..1 over an image (H, W, 3) uint8 RGB."""
    large = np.clip(
        cv2.resize(
            heatmap.astype(np.float32),
            image.shape[1::-1],
            interpolation=cv2.INTER_CUBIC,
        ),
        0,
        1,
    )
    colours = cv2.applyColorMap((255 * large).astype(np.uint8), cv2.COLORMAP_JET)[
        ..., ::-1
    ]
    return (
        image * (1 - 0.5 * large[..., None]) + colours * 0.5 * large[..., None]
    ).astype(np.uint8)


def _histogram(labels: np.ndarray) -> str:
    counts, _ = np.histogram(labels, BINS, (0, 1))
    most, bars = max(int(counts.max(initial=0)), 1), []
    for number, count in enumerate(counts):
        height = 120 * count / most
        bars.append(
            f'<rect class="bar" x="{41 + 33 * number}" y="{140 - height:.1f}" width="30" height="{height:.1f}"/>'
        )
        if count:
            bars.append(
                f'<text x="{56 + 33 * number}" y="{134 - height:.1f}" text-anchor="middle">{count}</text>'
            )
    bars += [
        f'<text x="{40 + 660 * value}" y="156" text-anchor="middle">{value:g}</text>'
        for value in (0, 0.25, 0.5, 0.75, 1)
    ]
    bars.append('<path class="axis" d="M40 140H700"/>')
    label = f"Histogram of {len(labels)} labels from 0, real, to 1, fake"
    return f'<svg viewBox="0 -14 720 180" role="img" aria-label="{label}">{"".join(bars)}</svg>'


def _definitions(facts: dict[str, str]) -> str:
    return (
        "<dl>"
        + "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(_printable(value))}</dd>"
            for key, value in facts.items()
        )
        + "</dl>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _printable(text: str) -> str:
    """Bytes of a file name that are no UTF-8 as the replacement character, which any program can write."""
    return "".join(
        "\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text
    )


def _jpeg(image: np.ndarray, quality: int) -> str:
    _, data = cv2.imencode(
        ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return base64.b64encode(data).decode()
