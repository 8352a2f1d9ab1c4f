"""The HTML report: tracks, heatmaps and provenance by hand, the pages in a browser."""

import csv
import json
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import report
from inference.aggregate import Aggregation
from inference.ensemble import Ensemble
from inference.members import plain_members
from inference.provenance import (
    C2PA_BOX,
    container_metadata,
    describe_credential,
    describe_provenance,
)
from tests.corpus import good, people
from tests.media import write_video
from tests.test_predict import run
from training.checkpoint import load_classifier

EVIL = '<img src=x onerror=alert(1)> & "friends".mp4'


def entry(name, faces=3, reason="", seed=0):
    """A journal entry of a video with one person, and scores of two networks."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 1, (2, faces)).tolist()
    return {
        "filename": name,
        "reason": reason,
        "frames": list(range(faces)),
        "times": [number / 25 for number in range(faces)],
        "boxes": [[10, 10, 60, 60]] * faces,
        "probabilities": {"one": scores[0], "two": scores[1]},
        "thumbnail": report.thumbnail(np.full((90, 160, 3), 128, np.uint8)),
    }


def test_people_are_followed_from_frame_to_frame():
    """Two people whose order changes, one of them missing in a frame; then a third."""
    left, right, third = [0, 0, 50, 50], [200, 0, 250, 50], [400, 0, 450, 50]
    frames = [0, 0, 1, 1, 2, 3, 3, 3]
    boxes = [
        left,
        right,
        [203, 2, 253, 52],
        [4, 0, 54, 50],
        [206, 4, 256, 54],
        [8, 0, 58, 50],
        [209, 6, 259, 56],
        third,
    ]
    assert report.track_faces(frames, boxes) == [0, 1, 1, 0, 1, 0, 1, 2]
    # two faces of one frame are two people
    assert report.track_faces([0, 0], [left, left]) == [0, 1]


def test_most_suspicious_faces_first():
    assert report.top_faces({"a": [0.1, 0.9, 0.5], "b": [0.3, 0.7, 0.5]}, 2) == [1, 2]


def test_heat_maps_equal_grad_cam_by_automatic_differentiation(checkpoints, portrait):
    ensemble = Ensemble(
        plain_members([checkpoints / "two", checkpoints / "one"]), "cpu"
    )
    offsets = (0, 100, 200, 300, 400)
    images = np.stack([portrait[y : y + 96, y : y + 96] for y in offsets])
    heatmaps = ensemble.grad_cam(images)
    model, settings = load_classifier(checkpoints / "two")
    mean = torch.tensor(settings.mean).view(3, 1, 1)
    std = torch.tensor(settings.std).view(3, 1, 1)
    for image, heatmap in zip(images, heatmaps):
        inputs = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean)[None] / std
        features = model.features(inputs).detach().requires_grad_()
        model.fc(model.avg_pool(features).flatten(1)).sum().backward()
        weights = features.grad.mean(dim=(2, 3), keepdim=True)
        expected = torch.relu((weights * features).sum(1))[0].detach()
        expected /= expected.max().clamp(min=1e-12)
        np.testing.assert_allclose(heatmap, expected, atol=1e-3)
    assert (heatmaps.max((1, 2)) == 1).sum() >= 3  # the others are 0 everywhere


def mp4_box(kind, content):
    """A box (atom) of an MP4 file."""
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_what_the_container_says(tmp_path):
    path = write_video(
        tmp_path / "a.mp4",
        [people(1)[:, :160]] * 10,
        container={"movflags": "use_metadata_tags"},
    )
    facts = container_metadata(path)
    assert (facts["width"], facts["height"], facts["frames"]) == (160, 160, 10)
    assert (facts["codec"], facts["sound"]) == ("h264", "none")
    assert facts["seconds"] == pytest.approx(0.4)
    bit_rate = 8 * path.stat().st_size / 0.4
    assert facts["bits_per_second"] == pytest.approx(bit_rate)
    described = describe_provenance(path)
    assert "h264" in described["video"] and "160x160, 25 fps" in described["video"]
    assert described["tag encoder"].startswith("Lavf")
    edits = "tracks with an edit list: 1; cuts in the longest: "
    assert described["edits"].startswith(f"{edits}1, as")
    assert described["content credential"] == "none"
    path.write_bytes(path.read_bytes() + mp4_box(b"uuid", C2PA_BOX + b"no manifest"))
    assert describe_provenance(path)["content credential"].startswith("present (C2PA)")
    one, seven = (b"elst" + bytes(4) + struct.pack(">I", count) for count in (1, 7))
    path.write_bytes(path.read_bytes().replace(one, seven))
    assert describe_provenance(path)["edits"] == f"{edits}7"
    good(tmp_path / "b.mkv")
    assert describe_provenance(tmp_path / "b.mkv")["edits"] == "no edit list"


def test_a_credential_in_words():
    manifests = {
        "active_manifest": "m",
        "validation_state": "Trusted",
        "manifests": {
            "m": {
                "claim_generator_info": [{"name": "Camera", "version": "2"}],
                "signature_info": {
                    "common_name": "A. Signer",
                    "issuer": "An Authority",
                    "time": "2026-01-02T03:04:05+00:00",
                },
            }
        },
    }
    assert describe_credential(manifests) == (
        "signed by A. Signer, An Authority on 2026-01-02T03:04:05+00:00; "
        "made with Camera 2; verification: trusted"
    )
    broken = manifests | {
        "validation_state": "Invalid",
        "validation_status": [{"code": "assertion.dataHash.mismatch"}],
    }
    assert describe_credential(broken).endswith(
        "verification: invalid; problems: assertion.dataHash.mismatch"
    )


CERTIFICATE = """
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -days 9 -subj "/O=Test/CN=Root" \
    -addext keyUsage=critical,keyCertSign -out ca.pem
openssl ecparam -name prime256v1 -genkey -noout |
    openssl pkcs8 -topk8 -nocrypt -out key.pem
openssl req -new -key key.pem -subj "/O=Test Studio/CN=Test Signer" -out request
cat > extensions <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=emailProtection
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
END
openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 \
    -extfile extensions -out leaf.pem
cat leaf.pem ca.pem > chain.pem
"""


def test_a_real_credential_verifies_until_the_video_is_changed(tmp_path):
    c2pa = pytest.importorskip(
        "c2pa", reason="c2pa-python is not installed (it is optional)"
    )
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed; it makes the signer's certificate")
    command = ["bash", "-ec", CERTIFICATE]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    signer_info = c2pa.C2paSignerInfo(
        alg=b"es256",
        sign_cert=(tmp_path / "chain.pem").read_bytes(),
        private_key=(tmp_path / "key.pem").read_bytes(),
        ta_url=None,
    )
    signer = c2pa.Signer.from_info(signer_info)
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    created = {"actions": [{"action": "c2pa.created", "digitalSourceType": source}]}
    builder = c2pa.Builder(
        {
            "claim_generator_info": [{"name": "Test Camera", "version": "2"}],
            "format": "video/mp4",
            "assertions": [{"label": "c2pa.actions", "data": created}],
        }
    )
    with (
        open(good(tmp_path / "plain.mp4"), "rb") as plain,
        open(tmp_path / "signed.mp4", "w+b") as signed,
    ):
        builder.sign(signer, "video/mp4", plain, signed)
    credential = describe_provenance(tmp_path / "signed.mp4")["content credential"]
    assert credential == (
        "signed by Test Signer, Test Studio; made with Test Camera 2; "
        "verification: valid; the signer is not on a trust list"
    )
    data = bytearray((tmp_path / "signed.mp4").read_bytes())
    data[data.rindex(b"mdat") + 100] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    credential = describe_provenance(tmp_path / "changed.mp4")["content credential"]
    assert "verification: invalid" in credential
    assert credential.endswith("problems: assertion.bmffHash.mismatch")


@pytest.fixture(scope="module")
def predicted(checkpoints, tmp_path_factory) -> Path:
    """A report of four videos.

    One shows two people, one has a hostile name, one has no face, one is not a video.
    """
    folder = tmp_path_factory.mktemp("report")
    videos = folder / "videos"
    videos.mkdir()
    frames = [np.roll(people(2)[:, :320], shift, 1) for shift in range(5)]
    write_video(videos / "two people.mp4", frames)
    good(videos / EVIL)
    write_video(videos / "black.mp4", [np.zeros((96, 128, 3), np.uint8)] * 3)
    (videos / "text.mp4").write_text("no video")
    options = ("--report", folder / "report", "--grad-cam", 2)
    assert run(videos, folder / "s.csv", checkpoints, *options) == 0
    return folder / "report"


def test_pages_say_what_the_submission_says(predicted):
    with open(predicted.parent / "s.csv", newline="") as file:
        labels = {row["filename"]: float(row["label"]) for row in csv.DictReader(file)}
    text = (predicted / "index.html").read_text()
    videos = json.loads(re.search(r"const VIDEOS = (.*);", text)[1])
    rows = {row[0]: row for row in videos}
    assert len(rows) == 4
    assert rows[EVIL][1] == pytest.approx(labels[EVIL], abs=1e-6)
    page = (predicted / rows["two people.mp4"][4]).read_text()
    assert f"{labels['two people.mp4']:.4f}" in page
    assert "10 faces in 5 frames" in page and "one, person 2" in page
    # the eight most suspicious faces, and two Grad-CAM heatmaps
    assert page.count('src="data:image/jpeg;base64,') == 8 + 2
    assert "no answer" in (predicted / rows["text.mp4"][4]).read_text().lower()
    for path in predicted.rglob("*.html"):
        page = path.read_text()
        for allowed in ("http-equiv", "http://www.w3.org"):
            page = page.replace(allowed, "")
        assert "http" not in page, "an external resource"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if not chromium:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        chromium_browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        yield chromium_browser
        chromium_browser.close()


@pytest.fixture
def page(browser):
    """A browser page.

    The test fails if the page logs, raises an error, opens a dialog or requests an
    external resource.
    """
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    new_page, events = context.new_page(), []

    def check_request(request):
        if not request.url.startswith(("file:", "data:")):
            events.append(request.url)

    new_page.on("console", lambda message: events.append(message.text))
    new_page.on("pageerror", lambda error: events.append(str(error)))
    new_page.on("request", check_request)
    new_page.on("dialog", lambda dialog: events.append(f"dialog {dialog.message}"))
    yield new_page
    context.close()
    assert not events


def names(page):
    return page.locator("tbody td.name a").all_inner_texts()


def test_the_table_sorts_searches_and_leads_to_a_video(page, predicted):
    page.goto(f"file://{predicted}/index.html")
    assert page.locator("tbody tr").count() == 4
    cells = page.locator("tbody td:nth-child(3)").all_inner_texts()
    labels = [float(text) for text in cells]
    assert labels == sorted(labels, reverse=True)
    page.get_by_role("button", name="Video").click()
    assert names(page) == sorted(names(page))
    page.get_by_role("button", name="Video").click()
    assert names(page) == sorted(names(page), reverse=True)
    page.get_by_label("Search").fill("NO FACE")
    assert names(page) == ["black.mp4"]
    assert page.locator("#shown").inner_text() == "1 of 4 videos"
    page.get_by_label("Search").fill("img src")
    page.get_by_role("link", name="<img").click()
    assert page.locator("h1").inner_text() == EVIL
    assert page.get_by_role("img", name="Score of each face").is_visible()
    face = page.locator(".faces img").first
    assert face.evaluate("image => image.naturalWidth") == report.FACE_SIDE
    page.get_by_role("link", name="All videos").click()
    assert page.locator("tbody tr").count() == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_pages_are_accessible_on_every_screen(page, predicted, width, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is not installed",
    ).Axe()
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    for path in [predicted / "index.html", *sorted((predicted / "videos").iterdir())]:
        page.goto(f"file://{path}")
        violations = axe.run(page).response["violations"]
        assert not violations, [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in violations
        ]
        # no horizontal scrolling
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == (scheme == "dark")


@pytest.mark.slow
def test_four_thousand_videos_open_at_once(page, tmp_path):
    entries = [entry(f"{number:05}.mp4", seed=number) for number in range(4000)]
    report.Report(tmp_path, Aggregation()).write_index(entries)
    start = time.monotonic()
    page.goto(f"file://{tmp_path}/index.html")
    page.locator("tbody tr").first.wait_for()
    assert time.monotonic() - start < 10
    assert page.locator("tbody tr").count() < 1000  # scrolling adds the others
    for _ in range(40):
        page.locator("#more").scroll_into_view_if_needed()
        page.wait_for_timeout(20)
    assert page.locator("tbody tr").count() > 1000
    page.get_by_label("Search").fill("03999")
    assert names(page) == ["03999.mp4"]
