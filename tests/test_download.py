"""weights/download.sh against a local HTTP server."""

import csv
import hashlib
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inference.members import published_models

ROOT = Path(__file__).parent.parent
NAMES = published_models()


@pytest.fixture
def server():
    """An HTTP server with range requests.

    Attributes:
        files: name → content.
        truncated: bytes that are missing at the end of each response.
        requests: list of (name, first byte).
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            data = httpd.files.get(name)
            requested = self.headers.get("Range", "bytes=0-")
            first = int(requested.removeprefix("bytes=").split("-")[0])
            httpd.requests.append((name, first))
            if data is None:
                return self.send_error(404)
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(data) - first))
            if first:
                content_range = f"bytes {first}-{len(data) - 1}/{len(data)}"
                self.send_header("Content-Range", content_range)
            self.end_headers()
            self.wfile.write(data[first : len(data) - httpd.truncated])

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files = {name: name.encode() * 100 for name in NAMES}
    httpd.truncated, httpd.requests = 0, []
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


@pytest.fixture
def weights(tmp_path, server):
    """A folder with the script, and a manifest of the server's files."""
    shutil.copy(ROOT / "weights" / "download.sh", tmp_path)
    lines = [
        f"{name},0,0,{len(data)},{hashlib.sha256(data).hexdigest()}"
        for name, data in server.files.items()
    ]
    lines = ["name,seed,epoch,bytes,sha256", *lines, ""]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return tmp_path


needs_curl = pytest.mark.skipif(
    not shutil.which("curl"), reason="curl is not installed; download.sh needs it"
)


def download(weights, server):
    environment = {
        "PATH": os.environ["PATH"],
        "RELEASE_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "NO_PROXY": "*",
    }
    return subprocess.run(
        ["bash", weights / "download.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_published_seven():
    assert len(NAMES) == 7
    assert NAMES[0] == "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"
    seeds_and_epochs = [(name.split("_")[1], name.split("_")[-1]) for name in NAMES]
    assert seeds_and_epochs == [
        ("111", "36"),
        ("555", "19"),
        ("777", "29"),
        ("777", "31"),
        ("888", "37"),
        ("888", "40"),
        ("999", "23"),
    ]


def test_the_manifest_is_whole():
    with open(ROOT / "weights" / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert 266_910_613 <= int(row["bytes"]) <= 266_910_618
        assert len(bytes.fromhex(row["sha256"])) == 32
        assert row["name"].split("_")[1::8] == [row["seed"]]
        assert row["name"].endswith(f"_{row['epoch']}")
    assert len({row["sha256"] for row in rows}) == 7


@needs_curl
def test_downloads_all_and_checks_them_afterwards(weights, server):
    result = download(weights, server)
    assert result.returncode == 0, result.stderr
    assert all(
        (weights / name).read_bytes() == data for name, data in server.files.items()
    )
    server.requests.clear()
    assert download(weights, server).returncode == 0 and server.requests == []
    (weights / NAMES[3]).write_bytes(b"changed")
    result = download(weights, server)
    assert result.returncode != 0
    assert f"{NAMES[3]}: is not the published file" in result.stderr


@needs_curl
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda data: data.replace(b"3", b"4"), "sum is not that of manifest.csv"),
        (lambda data: data + b"more", "delete .*.part"),
        (lambda data: data[:-1], "bytes came"),
    ],
)
def test_another_file_in_its_place_is_not_kept(weights, server, change, words):
    server.files[NAMES[6]] = change(server.files[NAMES[6]])
    result = download(weights, server)
    assert result.returncode != 0 and re.search(f"{NAMES[6]}: .*{words}", result.stderr)
    assert not (weights / NAMES[6]).exists() and (weights / NAMES[5]).exists()


@needs_curl
def test_goes_on_where_it_broke_off(weights, server):
    server.truncated = 30
    result = download(weights, server)
    assert result.returncode != 0 and "run this again" in result.stderr
    assert not any((weights / name).exists() for name in NAMES)
    size = (weights / f"{NAMES[0]}.part").stat().st_size
    assert size > 0
    server.truncated = 0
    server.requests.clear()
    assert download(weights, server).returncode == 0
    assert server.requests[0] == (NAMES[0], size)
    assert all(
        (weights / name).read_bytes() == data for name, data in server.files.items()
    )


@needs_curl
def test_a_missing_file_is_a_loud_failure(weights, server):
    del server.files[NAMES[2]]
    result = download(weights, server)
    assert result.returncode != 0
    assert NAMES[2] in result.stderr and "404" in result.stderr
    assert not (weights / NAMES[2]).exists() and (weights / NAMES[1]).exists()
