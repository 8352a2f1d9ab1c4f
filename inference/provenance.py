"""What a video's container tells about its origin, without looking at a pixel.

`container_metadata` are the bare numbers (the metadata-only baseline of `evaluation.robustness` judges by nothing else);
`origin` is for people: codec, encoder tag, creation time, edits, and whether there is a C2PA content credential, who signed
it and whether it verifies, without asking the network. None of it proves anything: a tag is as easily written as removed.

Method: MP4's boxes (ISO/IEC 14496-12); C2PA's box (C2PA specification 2.1, "Embedding manifests into BMFF-based assets");
       credentials are read and verified by c2pa-python where it is installed.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from av.container import InputContainer

from preprocessing.video import open_video

CONTAINER_BOXES = (b"moov", b"trak", b"edts")
C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
UNTRUSTED = "signingCredential.untrusted"  # C2PA's code
MAX_BOXES = 10_000  # looked at in one file
TAGS = (
    "encoder",
    "creation_time",
    "major_brand",
    "handler_name",
    "com.apple.quicktime.software",
    "software",
    "make",
    "model",
)


def container_metadata(path: Path) -> dict[str, float | str]:
    """Width and height in pixels, frames (0 where the header is silent), frames a second, seconds, bytes, bits a second,
    codec, and whether there is sound.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    with open_video(path) as container:
        return _facts(path, container)


def _facts(path: Path, container: InputContainer) -> dict[str, float | str]:
    stream = container.streams.video[0]
    seconds = (container.duration or 0) / 1e6
    size = path.stat().st_size
    return {
        "width": stream.width,
        "height": stream.height,
        "frames": stream.frames,
        "frames a second": float(stream.average_rate or 0),
        "seconds": seconds,
        "bytes": size,
        "bits a second": 8 * size / seconds if seconds else 0.0,
        "codec": stream.codec_context.name,
        "sound": container.streams.audio[0].codec_context.name
        if container.streams.audio
        else "none",
    }


def describe_provenance(path: Path) -> dict[str, str]:
    """Facts in words, in the order in which to show them.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    with open_video(path) as container:
        facts, stream = _facts(path, container), container.streams.video[0]
        tags = {
            **container.metadata,
            **{f"video: {key}": value for key, value in stream.metadata.items()},
        }
        pixels = stream.codec_context.pix_fmt
        profile = stream.codec_context.profile
        name = container.format.long_name
    shown = {
        "container": name,
        "video": f"{facts['codec']}{f', {profile}' if profile else ''}, {pixels}, {facts['width']}x{facts['height']}, "
        f"{facts['frames a second']:.4g} frames a second",
        "sound": str(facts["sound"]),
        "length": f"{facts['seconds']:.2f} s, {facts['bytes'] / 1e6:.2f} MB, {facts['bits a second'] / 1e3:.0f} kbit/s",
    }
    shown |= {
        f"tag {key}": value[:200]
        for key, value in tags.items()
        if key.split(": ")[-1].lower() in TAGS
    }
    shown["edits"] = _edits(path)
    shown["content credential"] = _credential(path)
    return shown


def _edits(path: Path) -> str:
    """Edit lists say which parts of a track are shown; editors and trimmers leave them, and so do plain encoders."""
    entries = []
    for kind, file, size in _boxes(path):
        if kind == b"elst" and size >= 8:
            entries.append(struct.unpack(">4xI", file.read(8))[0])
    if not entries:
        return "no edit list"
    hint = "" if max(entries) > 1 else ", as a plain encoder writes it too"
    return f"tracks with an edit list: {len(entries)}; cuts in the longest: {max(entries)}{hint}"


def _credential(path: Path) -> str:
    if not any(
        kind == b"uuid" and file.read(16) == C2PA_BOX for kind, file, _ in _boxes(path)
    ):
        return "none"
    try:
        import c2pa
    except ImportError:
        return "there is one (C2PA); install c2pa-python to see who signed it and whether it verifies"
    try:
        settings = c2pa.Settings.from_dict(
            {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
        )
        with c2pa.Reader(str(path), context=c2pa.Context(settings)) as reader:
            return describe_credential(json.loads(reader.json()))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's file makes it say
        return f"there is one (C2PA), which cannot be read: {' '.join(str(error).split())[:200]}"


def describe_credential(manifests: dict) -> str:
    """c2pa-python's report in words: who signed, when, with what tool, and whether it verifies."""
    active = manifests.get("manifests", {}).get(manifests.get("active_manifest"), {})
    signature = active.get("signature_info") or {}
    signer = (
        ", ".join(filter(None, (signature.get("common_name"), signature.get("issuer"))))
        or "an unnamed signer"
    )
    problems = [
        status.get("code", "?") for status in manifests.get("validation_status") or []
    ]
    tools = [
        f"{each.get('name', '')} {each.get('version', '')}".strip()
        for each in active.get("claim_generator_info") or []
    ]
    told = [
        f"signed by {signer}"
        + (f" on {signature['time']}" if signature.get("time") else "")
    ]
    told += [f"made with {', '.join(tools)}"] if tools else []
    told.append(
        f"verification: {(manifests.get('validation_state') or 'unknown').lower()}"
    )
    told += (
        ["the signer is on no list of trusted ones"] if UNTRUSTED in problems else []
    )
    told += (
        [f"problems: {', '.join(others)}"]
        if (others := [each for each in problems if each != UNTRUSTED])
        else []
    )
    return "; ".join(told)


def _boxes(path: Path) -> Iterator[tuple[bytes, BinaryIO, int]]:
    """The boxes of an MP4: type, the file at their content, and its size. Anything else gives none, or nonsense."""
    with open(path, "rb") as file:
        ends, seen = [path.stat().st_size], 0
        while ends and seen < MAX_BOXES:
            seen, place = seen + 1, file.tell()
            if place + 8 > ends[-1]:
                file.seek(ends.pop())
                continue
            size, kind = struct.unpack(">I4s", file.read(8))
            header = 8
            if size == 1:
                long = file.read(8)
                size, header = (
                    (struct.unpack(">Q", long)[0], 16) if len(long) == 8 else (0, 8)
                )
            end = ends[-1] if size == 0 else min(place + size, ends[-1])
            if end < place + header:
                return
            if kind in CONTAINER_BOXES:
                ends.append(end)
                continue
            yield kind, file, end - place - header
            file.seek(end)
