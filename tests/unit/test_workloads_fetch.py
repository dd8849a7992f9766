"""`fetch` against a server on this machine that is slow, cuts off and lies."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workloads.base import BadInput
from workloads.fetch import LOCK, Dataset, FetchError, dataset_names, datasets, fetch

BODY = bytes(range(256)) * 1_000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.behave(handler)` says and keeps the `Range` headers it saw."""

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        self.server.behave(self)

    def log_message(self, *args):
        pass

    def answer(self, body, length=None, status=200, **headers):
        self.send_response(status)
        if length != "none":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def whole(handler):
    handler.answer(BODY, ETag='"v1"')


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    server.ranges, server.behave, server.quit = [], whole, threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.quit.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    url = f"http://127.0.0.1:{server.server_port}/d/data.csv"
    table = {"toy": Dataset(url=url, licence="none")}

    def get(**options):
        return fetch("toy", tmp_path / "in" / "here", timeout_s=0.3, table=table, **options)

    get.folder = tmp_path / "in" / "here"
    return get


def failed(get, error=FetchError):
    with pytest.raises(error) as caught:
        get()
    assert "\n" not in str(caught.value)
    assert not (get.folder / "data.csv").exists() or error is BadInput
    return str(caught.value)


def files(get):
    return sorted(file.name for file in get.folder.iterdir())


def test_download_lock_and_check(get, server):
    seen = []
    path = get(progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == BODY
    assert files(get) == ["data.csv", LOCK]
    assert json.loads((get.folder / LOCK).read_text())["toy"]["sha256"] == SHA256
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert get() == path
    assert len(server.ranges) == 1  # the copy was checked, not fetched again


def test_copy_that_changed(get):
    get().write_bytes(b"other")
    assert "data.csv: changed since it was fetched: sha256 " in failed(get, BadInput)


def test_copy_of_unknown_origin_is_not_overwritten(get):
    get.folder.mkdir(parents=True)
    (get.folder / "data.csv").write_bytes(b"mine")
    assert f"data.csv: is there but not in {LOCK}" in failed(get, BadInput)
    assert (get.folder / "data.csv").read_bytes() == b"mine"


def test_data_set_that_changed_at_its_home(get, server):
    get().unlink()
    server.behave = lambda handler: handler.answer(b"new")
    assert "toy: changed at its home: sha256 " in failed(get)
    assert files(get) == [LOCK]


def test_server_that_stalls_is_resumed(get, server):
    def stall(handler):
        handler.answer(BODY[:1_000], length=len(BODY), ETag='"v1"')
        server.quit.wait(5)

    server.behave = stall
    assert "no data for 0.3 s, after 1000 bytes; call again to go on" in failed(get)

    def rest(handler):
        assert handler.headers["If-Range"] == '"v1"'
        said = f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"
        handler.answer(BODY[1_000:], status=206, Content_Range=said)

    server.behave = rest
    seen = []
    assert get(progress=lambda *now: seen.append(now)).read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]
    assert seen[-1] == (len(BODY), len(BODY))
    assert files(get) == ["data.csv", LOCK]


def test_server_that_stalls_before_answering(get, server):
    server.behave = lambda handler: server.quit.wait(5)
    assert "no data for 0.3 s, after 0 bytes" in failed(get)


def test_server_that_cuts_off_and_then_ignores_the_range(get, server):
    server.behave = lambda handler: handler.answer(BODY[:77], length=len(BODY), ETag='"v1"')
    message = f"the server announced {len(BODY)} bytes and sent 77; call again to go on"
    assert message in failed(get)
    server.behave = whole  # the file changed there: all of it again, with status 200
    assert get().read_bytes() == BODY
    assert server.ranges == [None, "bytes=77-"]


def test_without_a_strong_etag_it_starts_anew(get, server):
    server.behave = lambda handler: handler.answer(BODY[:77], length=len(BODY), ETag='W/"v1"')
    failed(get)
    server.behave = whole
    assert get().read_bytes() == BODY
    assert server.ranges == [None, None]


def test_server_that_sends_more_than_it_announced(get, server):
    server.behave = lambda handler: handler.answer(BODY, length=1_000)
    assert "the server sent more than the 1000 bytes it announced" in failed(get)
    assert files(get) == []


def test_server_that_resumes_elsewhere(get, server):
    server.behave = lambda handler: handler.answer(BODY[:77], length=len(BODY), ETag='"v1"')
    failed(get)
    server.behave = lambda handler: handler.answer(
        BODY[50:], status=206, Content_Range=f"bytes 50-{len(BODY) - 1}/{len(BODY)}"
    )
    assert "asked for bytes from 77, got 'bytes 50-" in failed(get)
    server.behave = whole
    assert get().read_bytes() == BODY


def test_part_that_the_server_cannot_continue(get, server):
    server.behave = lambda handler: handler.answer(BODY[:77], length=len(BODY), ETag='"v1"')
    failed(get)
    server.behave = lambda handler: handler.answer(b"", status=416)
    assert "HTTP status 416" in failed(get)
    server.behave = whole
    assert get().read_bytes() == BODY


def test_no_length_and_chunks(get, server):
    server.behave = lambda handler: handler.answer(BODY, length="none")
    assert get().read_bytes() == BODY


def test_missing_and_unreachable(get, server):
    server.behave = lambda handler: handler.answer(b"", status=404)
    assert "data.csv: HTTP status 404 Not Found" in failed(get)
    table = {"toy": Dataset(url="http://127.0.0.1:1/x", licence="none")}
    with pytest.raises(FetchError, match=r"127.0.0.1:1/x: .*refused.*, after 0 bytes"):
        fetch("toy", get.folder, timeout_s=0.3, table=table)


def test_bad_lock_and_folder(get, tmp_path):
    get.folder.mkdir(parents=True)
    for content in ("{", "[]", '{"toy": 1}'):
        (get.folder / LOCK).write_text(content)
        assert "fetch.lock: not a lock file of bucketsim" in failed(get, BadInput)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file: cannot write: File exists"):
        fetch("toy", tmp_path / "file", table={"toy": Dataset(url="http://x/y", licence="")})


def test_table_of_data_sets():
    assert {"azure2023-conv", "azure2023-code", "burstgpt", "sharegpt"} <= set(dataset_names())
    for dataset in datasets().values():
        assert dataset.url.startswith("https://")
        assert dataset.licence
        assert dataset.file_name.endswith((".csv", ".json", ".jsonl", ".zip"))
    with pytest.raises(BadInput, match=r"unknown data set 'sharegtp'; did you mean 'sharegpt'\?"):
        fetch("sharegtp", "nowhere")
