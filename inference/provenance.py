"""The origin of a video as its container records it, without decoding any frame.

`container_metadata` gives the bare numbers, the only features of the metadata-only
baseline in `evaluation.robustness`. `describe_provenance` is for people: codec, encoder
tag, creation time, edit lists, and whether the file has a C2PA content credential, who
signed it and whether it verifies, without network access. None of it proves anything: a
tag is as easily written as removed.

Method: MP4 boxes (ISO/IEC 14496-12); the C2PA box (C2PA specification 2.1, "Embedding
       manifests into BMFF-based assets"); credentials are read and verified by
       c2pa-python where it is installed.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypedDict

from av.container import InputContainer

from preprocessing.video import choose_stream, open_video

CONTAINER_BOXES = (b"moov", b"trak", b"edts")  # boxes that contain other boxes
C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
UNTRUSTED = "signingCredential.untrusted"  # C2PA's status code
MAX_BOXES = 10_000  # read in one file
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


class ContainerMetadata(TypedDict):
    """What a container's header says.

    width, height: in pixels.
    frames: 0 where the header does not say.
    frames_per_second: 0 where the header does not say.
    seconds: duration, likewise.
    bytes: file size.
    codec: of the video.
    sound: the audio codec, or "none".
    """

    width: int
    height: int
    frames: int
    frames_per_second: float
    seconds: float
    bytes: int
    bits_per_second: float
    codec: str
    sound: str


def container_metadata(path: Path) -> ContainerMetadata:
    """Read a container's header.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    with open_video(path) as container:
        return _read_metadata(path, container)


def _read_metadata(path: Path, container: InputContainer) -> ContainerMetadata:
    stream, _ = choose_stream(path, container)
    audio = container.streams.audio
    seconds = (container.duration or 0) / 1e6
    size = path.stat().st_size
    return {
        "width": stream.width,
        "height": stream.height,
        "frames": stream.frames,
        "frames_per_second": float(stream.average_rate or 0),
        "seconds": seconds,
        "bytes": size,
        "bits_per_second": 8 * size / seconds if seconds else 0.0,
        "codec": stream.codec_context.name,
        "sound": audio[0].codec_context.name if audio else "none",
    }


def describe_provenance(path: Path) -> dict[str, str]:
    """The facts in words, in display order.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    with open_video(path) as container:
        facts = _read_metadata(path, container)
        stream, _ = choose_stream(path, container)
        stream_tags = {f"video: {key}": tag for key, tag in stream.metadata.items()}
        tags = {**container.metadata, **stream_tags}
        pixel_format = stream.codec_context.pix_fmt
        profile = stream.codec_context.profile
        container_name = container.format.long_name
    codec = f"{facts['codec']}, {profile}" if profile else facts["codec"]
    size = f"{facts['width']}x{facts['height']}"
    rate = f"{facts['frames_per_second']:.4g} fps"
    shown = {
        "container": container_name,
        "video": f"{codec}, {pixel_format}, {size}, {rate}",
        "sound": facts["sound"],
        "length": f"{facts['seconds']:.2f} s, {facts['bytes'] / 1e6:.2f} MB, "
        f"{facts['bits_per_second'] / 1e3:.0f} kbit/s",
    }
    for key, tag in tags.items():
        if key.split(": ")[-1].lower() in TAGS:
            shown[f"tag {key}"] = tag[:200]
    shown["edits"] = _describe_edits(path)
    shown["content credential"] = _read_credential(path)
    return shown


def _describe_edits(path: Path) -> str:
    """The file's edit lists, which say what parts of a track are shown.

    Editors and trimmers leave them, and so do plain encoders.
    """
    counts = []
    for box_type, file, size in _boxes(path):
        if box_type == b"elst" and size >= 8:
            counts.append(struct.unpack(">4xI", file.read(8))[0])
    if not counts:
        return "no edit list"
    longest = max(counts)
    hint = "" if longest > 1 else ", as a plain encoder writes it too"
    return (
        f"tracks with an edit list: {len(counts)}; cuts in the longest: {longest}{hint}"
    )


def _has_c2pa_box(path: Path) -> bool:
    return any(
        box_type == b"uuid" and file.read(16) == C2PA_BOX
        for box_type, file, _ in _boxes(path)
    )


def _read_credential(path: Path) -> str:
    if not _has_c2pa_box(path):
        return "none"
    try:
        import c2pa
    except ImportError:
        return (
            "present (C2PA); install c2pa-python to see who signed it and whether it "
            "verifies"
        )
    offline = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(offline))
        with c2pa.Reader(str(path), context=context) as reader:
            return describe_credential(json.loads(reader.json()))
    except Exception as error:  # noqa: BLE001 - the file is untrusted input
        text = " ".join(str(error).split())[:200]
        return f"present (C2PA), but cannot be read: {text}"


def describe_credential(manifests: dict) -> str:
    """The report of c2pa-python in words.

    Who signed, when, with what tool, and whether the signature verifies.
    """
    active = manifests.get("manifests", {}).get(manifests.get("active_manifest"), {})
    signature = active.get("signature_info") or {}
    names = signature.get("common_name"), signature.get("issuer")
    signer = ", ".join(filter(None, names)) or "an unnamed signer"
    date = f" on {signature['time']}" if signature.get("time") else ""
    tools = [
        f"{tool.get('name', '')} {tool.get('version', '')}".strip()
        for tool in active.get("claim_generator_info") or []
    ]
    codes = [
        status.get("code", "?") for status in manifests.get("validation_status") or []
    ]
    problems = [code for code in codes if code != UNTRUSTED]
    state = (manifests.get("validation_state") or "unknown").lower()
    parts = [f"signed by {signer}{date}"]
    if tools:
        parts.append(f"made with {', '.join(tools)}")
    parts.append(f"verification: {state}")
    if UNTRUSTED in codes:
        parts.append("the signer is not on a trust list")
    if problems:
        parts.append(f"problems: {', '.join(problems)}")
    return "; ".join(parts)


def _boxes(path: Path) -> Iterator[tuple[bytes, BinaryIO, int]]:
    """The boxes of an MP4 file: type, the file positioned at the content, content size.

    Other formats give no boxes, or meaningless ones.
    """
    with open(path, "rb") as file:
        ends = [path.stat().st_size]  # of the boxes that contain the current position
        count = 0
        while ends and count < MAX_BOXES:
            count += 1
            start = file.tell()
            if start + 8 > ends[-1]:
                file.seek(ends.pop())
                continue
            size, box_type = struct.unpack(">I4s", file.read(8))
            header = 8
            if size == 1:  # a 64-bit size follows
                extended = file.read(8)
                if len(extended) == 8:
                    size, header = struct.unpack(">Q", extended)[0], 16
                else:
                    size = 0
            end = ends[-1] if size == 0 else min(start + size, ends[-1])
            if end < start + header:
                return
            if box_type in CONTAINER_BOXES:
                ends.append(end)
                continue
            yield box_type, file, end - start - header
            file.seek(end)
