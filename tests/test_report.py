"""The report: its numbers by hand, its pages in a real browser."""

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
from inference.ensemble import Ensemble
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
    """A journal's line of a video with one person and two networks."""
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
    """Two people who change places in the list, one of whom is away for a frame; then a third."""
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
    assert report.track_faces([0, 0], [left, left]) == [
        0,
        1,
    ]  # two faces of one frame are two people


def test_most_suspicious_faces_first():
    assert report.top_faces({"a": [0.1, 0.9, 0.5], "b": [0.3, 0.7, 0.5]}, 2) == [1, 2]


def test_heat_maps_equal_grad_cam_by_automatic_differentiation(checkpoints, portrait):
    ensemble = Ensemble([checkpoints / "two", checkpoints / "one"], "cpu")
    images = np.stack(
        [portrait[y : y + 96, y : y + 96] for y in (0, 100, 200, 300, 400)]
    )
    found = ensemble.grad_cam(images)
    model, settings = load_classifier(checkpoints / "two")
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in (settings.mean, settings.std)
    )
    for image, heatmap in zip(images, found):
        features = (
            model.features(
                (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean)[None] / std
            )
            .detach()
            .requires_grad_()
        )
        model.fc(model.avg_pool(features).flatten(1)).sum().backward()
        weights = features.grad.mean(dim=(2, 3), keepdim=True)
        expected = torch.relu((weights * features).sum(1))[0].detach()
        np.testing.assert_allclose(
            heatmap, expected / expected.max().clamp(min=1e-12), atol=1e-3
        )
    assert (found.max((1, 2)) == 1).sum() >= 3  # the others are cold all over


def boxed(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_what_the_container_says(tmp_path):
    path = write_video(
        tmp_path / "a.mp4",
        [people(1)[:, :160]] * 10,
        container={"movflags": "use_metadata_tags"},
    )
    facts = container_metadata(path)
    assert (
        facts["width"],
        facts["height"],
        facts["frames"],
        facts["codec"],
        facts["sound"],
    ) == (
        160,
        160,
        10,
        "h264",
        "none",
    )
    assert facts["seconds"] == pytest.approx(0.4) and facts[
        "bits a second"
    ] == pytest.approx(8 * path.stat().st_size / 0.4)
    told = describe_provenance(path)
    assert (
        "h264" in told["video"]
        and "160x160, 25 frames a second" in told["video"]
        and told["tag encoder"].startswith("Lavf")
    )
    assert (
        told["edits"].startswith(
            "tracks with an edit list: 1; cuts in the longest: 1, as"
        )
        and told["content credential"] == "none"
    )
    path.write_bytes(path.read_bytes() + boxed(b"uuid", C2PA_BOX + b"nothing of use"))
    assert describe_provenance(path)["content credential"].startswith(
        "there is one (C2PA)"
    )
    edited = path.read_bytes().replace(
        b"elst" + bytes(4) + struct.pack(">I", 1),
        b"elst" + bytes(4) + struct.pack(">I", 7),
    )
    path.write_bytes(edited)
    assert (
        describe_provenance(path)["edits"]
        == "tracks with an edit list: 1; cuts in the longest: 7"
    )
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
        "signed by A. Signer, An Authority on 2026-01-02T03:04:05+00:00; made with Camera 2; verification: trusted"
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
openssl req -x509 -new -key ca.key -days 9 -subj "/O=Test/CN=Root" -addext keyUsage=critical,keyCertSign -out ca.pem
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out key.pem
openssl req -new -key key.pem -subj "/O=Test Studio/CN=Test Signer" -out request
printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=emailProtection\n' > extensions
printf 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' >> extensions
openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile extensions -out leaf.pem
cat leaf.pem ca.pem > chain.pem
"""


def test_a_real_credential_verifies_until_the_video_is_changed(tmp_path):
    c2pa = pytest.importorskip(
        "c2pa", reason="c2pa-python is not installed (it is optional)"
    )
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed; it makes the signer's certificate")
    subprocess.run(
        ["bash", "-ec", CERTIFICATE], cwd=tmp_path, check=True, capture_output=True
    )
    chain, key = (
        (tmp_path / "chain.pem").read_bytes(),
        (tmp_path / "key.pem").read_bytes(),
    )
    signer = c2pa.Signer.from_info(
        c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=key, ta_url=None)
    )
    source = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    made = {"actions": [{"action": "c2pa.created", "digitalSourceType": source}]}
    builder = c2pa.Builder(
        {
            "claim_generator_info": [{"name": "Test Camera", "version": "2"}],
            "format": "video/mp4",
            "assertions": [{"label": "c2pa.actions", "data": made}],
        }
    )
    with (
        open(good(tmp_path / "plain.mp4"), "rb") as plain,
        open(tmp_path / "signed.mp4", "w+b") as signed,
    ):
        builder.sign(signer, "video/mp4", plain, signed)
    told = describe_provenance(tmp_path / "signed.mp4")["content credential"]
    assert told == (
        "signed by Test Signer, Test Studio; made with Test Camera 2; verification: valid; "
        "the signer is on no list of trusted ones"
    )
    data = bytearray((tmp_path / "signed.mp4").read_bytes())
    data[data.rindex(b"mdat") + 100] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    told = describe_provenance(tmp_path / "changed.mp4")["content credential"]
    assert "verification: invalid" in told and told.endswith(
        "problems: assertion.bmffHash.mismatch"
    )


@pytest.fixture(scope="module")
def predicted(checkpoints, tmp_path_factory) -> Path:
    """A report of four videos: one of two people, one with a hostile name, one without a face, one that is no video."""
    folder = tmp_path_factory.mktemp("report")
    videos = folder / "videos"
    videos.mkdir()
    write_video(
        videos / "two people.mp4",
        [np.roll(people(2)[:, :320], shift, 1) for shift in range(5)],
    )
    good(videos / EVIL)
    write_video(videos / "black.mp4", [np.zeros((96, 128, 3), np.uint8)] * 3)
    (videos / "text.mp4").write_text("no video")
    assert (
        run(
            videos,
            folder / "s.csv",
            checkpoints,
            "--report",
            folder / "report",
            "--grad-cam",
            "2",
        )
        == 0
    )
    return folder / "report"


def test_pages_say_what_the_submission_says(predicted):
    labels = dict(
        line.rsplit(",", 1)
        for line in (predicted.parent / "s.csv").read_text().splitlines()[1:]
    )
    text = (predicted / "index.html").read_text()
    rows = {
        row[0]: row for row in json.loads(re.search(r"const VIDEOS = (.*);", text)[1])
    }
    assert len(rows) == 4 and rows[EVIL][1] == pytest.approx(
        float(labels['"' + EVIL.replace('"', '""') + '"']), abs=1e-6
    )
    page = (predicted / rows["two people.mp4"][4]).read_text()
    assert (
        f"{float(labels['two people.mp4']):.4f}" in page
        and "10 faces in 5 frames" in page
        and "one, person 2" in page
    )
    assert (
        page.count('src="data:image/jpeg;base64,') == 8 + 2
    )  # the most suspicious faces, and where the network looked in two
    assert "no answer" in (predicted / rows["text.mp4"][4]).read_text().lower()
    for path in predicted.rglob("*.html"):
        assert "http" not in path.read_text().replace("http-equiv", "").replace(
            "http://www.w3.org", ""
        ), "nothing is loaded"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed"
    )
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not chromium:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as start:
        started = start.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page that fails the test if it prints, raises or asks for anything from outside."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened, noise = context.new_page(), []
    opened.on("console", lambda message: noise.append(message.text))
    opened.on("pageerror", lambda error: noise.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            noise.append(request.url)
            if not request.url.startswith(("file:", "data:"))
            else None
        ),
    )
    opened.on("dialog", lambda dialog: noise.append(f"dialog {dialog.message}"))
    yield opened
    context.close()
    assert not noise


def names(page):
    return page.locator("tbody td.name a").all_inner_texts()


def test_the_table_sorts_searches_and_leads_to_a_video(page, predicted):
    page.goto(f"file://{predicted}/index.html")
    assert page.locator("tbody tr").count() == 4
    labels = [
        float(text) for text in page.locator("tbody td:nth-child(3)").all_inner_texts()
    ]
    assert labels == sorted(labels, reverse=True)
    page.get_by_role("button", name="Video").click()
    assert names(page) == sorted(names(page))
    page.get_by_role("button", name="Video").click()
    assert names(page) == sorted(names(page), reverse=True)
    page.get_by_label("Search").fill("NO FACE")
    assert (
        names(page) == ["black.mp4"]
        and page.locator("#shown").inner_text() == "1 of 4 videos"
    )
    page.get_by_label("Search").fill("img src")
    page.get_by_role("link", name="<img").click()
    assert (
        page.locator("h1").inner_text() == EVIL
        and page.get_by_role("img", name="Score of each face").is_visible()
    )
    assert (
        page.locator(".faces img").first.evaluate("image => image.naturalWidth")
        == report.FACE_SIDE
    )
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
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (
            "no scrolling sideways"
        )
    dark = (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == "rgb(20, 23, 27)"
    )
    assert dark == (scheme == "dark")


def test_four_thousand_videos_open_at_once(page, tmp_path):
    report.Report(tmp_path, "winner").write_index(
        [entry(f"{number:05}.mp4", seed=number) for number in range(4000)]
    )
    start = time.monotonic()
    page.goto(f"file://{tmp_path}/index.html")
    page.locator("tbody tr").first.wait_for()
    assert time.monotonic() - start < 10
    assert page.locator("tbody tr").count() < 1000  # the others come as one scrolls
    for _ in range(40):
        page.locator("#more").scroll_into_view_if_needed()
        page.wait_for_timeout(20)
    assert page.locator("tbody tr").count() > 1000
    page.get_by_label("Search").fill("03999")
    assert names(page) == ["03999.mp4"]
