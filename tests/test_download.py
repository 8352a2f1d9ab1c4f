"""weights/download.sh against a server on this machine."""

import hashlib
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inference.predict import published_models

ROOT = Path(__file__).parent.parent
NAMES = published_models()


@pytest.fixture
def server():
    """Serves `server.files` by name, with byte ranges; `server.cut` bytes are kept back, `server.asked` is what came."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            data = httpd.files.get(self.path.strip("/"))
            first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            if body:
                httpd.asked.append((self.path.strip("/"), first))
            if data is None:
                return self.send_error(404)
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(data) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body:
                self.wfile.write(data[first : len(data) - httpd.cut])

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files = {name: name.encode() * 100 for name in NAMES}
    httpd.cut, httpd.asked = 0, []
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


@pytest.fixture
def weights(tmp_path):
    for name in ("download.sh", "manifest.csv"):
        shutil.copy(ROOT / "weights" / name, tmp_path)
    return tmp_path


needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed; download.sh needs it")


def download(weights, server):
    environment = {
        "PATH": os.environ["PATH"],
        "RELEASE_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "NO_PROXY": "*",
    }
    return subprocess.run(["bash", weights / "download.sh"], env=environment, capture_output=True, text=True, timeout=60)


def test_the_published_seven():
    assert len(NAMES) == 7
    assert NAMES[0] == "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"
    assert [name.split("_")[1] + "_" + name.split("_")[-1] for name in NAMES] == [
        "111_36", "555_19", "777_29", "777_31", "888_37", "888_40", "999_23"]  # fmt: skip


@needs_curl
def test_downloads_all_writes_sums_and_checks_them_afterwards(weights, server):
    result = download(weights, server)
    assert result.returncode == 0, result.stderr
    assert all((weights / name).read_bytes() == data for name, data in server.files.items())
    sums = dict(reversed(line.split()) for line in (weights / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in server.files.items()}
    server.asked.clear()
    assert download(weights, server).returncode == 0 and server.asked == []
    (weights / NAMES[3]).write_bytes(b"changed")
    result = download(weights, server)
    assert result.returncode != 0 and NAMES[3] in result.stdout + result.stderr and "differs" in result.stderr


@needs_curl
def test_goes_on_where_it_broke_off(weights, server):
    server.cut = 30
    result = download(weights, server)
    assert result.returncode != 0 and "run this again" in result.stderr
    assert not any((weights / name).exists() for name in [*NAMES, "SHA256SUMS"])
    have = (weights / f"{NAMES[0]}.part").stat().st_size
    assert have > 0
    server.cut = 0
    server.asked.clear()
    assert download(weights, server).returncode == 0
    assert server.asked[0] == (NAMES[0], have)
    assert all((weights / name).read_bytes() == data for name, data in server.files.items())


@needs_curl
def test_a_missing_file_is_a_loud_failure(weights, server):
    del server.files[NAMES[2]]
    result = download(weights, server)
    assert result.returncode != 0 and NAMES[2] in result.stderr and "404" in result.stderr
    assert not (weights / "SHA256SUMS").exists() and (weights / NAMES[1]).exists()
