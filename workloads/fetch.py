"""Download public data sets from their homes."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from sim.types import SimulationError
from workloads.base import Config, Field, bad, unknown
from workloads.write import written_aside

LOCK = "fetch.lock"
CHUNK_BYTES = 1 << 16
TABLE = Path(__file__).parent / "data" / "datasets.yaml"

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be (None: the server does not say)."""


class FetchError(SimulationError):
    """A download failed: exit status 1. What came is kept; the next call goes on from there."""


class Dataset(Config):
    """A public data set."""

    url: str = Field(description="where it lives")
    licence: str = Field(description="of the data")
    note: str = Field("", description="what to know before using it")

    @property
    def file_name(self) -> str:
        """Name of the file, as at its home."""
        return PurePosixPath(urlsplit(self.url).path).name


@cache
def datasets() -> Mapping[str, Dataset]:
    """Return the known data sets by name."""
    import yaml

    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: Dataset.model_validate(row) for name, row in rows.items()}


def dataset_names() -> list[str]:
    """Return the names `fetch` knows."""
    return sorted(datasets())


def fetch(
    name: str,
    dest: str | Path,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
    table: Mapping[str, Dataset] | None = None,
) -> Path:
    """Download a data set into a folder, or check the copy that is there.

    The SHA-256 of the first download is kept in `fetch.lock` in that folder; whatever is found
    there or downloaded later has to have the same one.

    Args:
        name: one of `dataset_names()`.
        dest: the folder; made if needed.
        progress: called after every piece.
        timeout_s: longest silence of the server.
        table: data sets to know instead of the built-in ones.

    Returns:
        The path of the file.

    Raises:
        BadInput: an unknown name, or a file in the folder that is not what was downloaded.
        FetchError: the download failed; the next call resumes it.
    """
    known = datasets() if table is None else table
    if name not in known:
        raise unknown("fetch", "data set", name, known)
    folder = Path(dest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _fetch(name, known[name], folder, progress, timeout_s)
    except OSError as error:
        raise bad(folder, f"cannot write: {error.strerror or error}") from error


def _fetch(
    name: str, dataset: Dataset, folder: Path, progress: Progress | None, timeout_s: float
) -> Path:
    path = folder / dataset.file_name
    lock = _read_lock(folder)
    expected = lock.get(name, {}).get("sha256")
    if path.exists():
        _check_copy(path, expected)
        return path
    part = path.with_name(path.name + ".part")
    _download(dataset.url, part, progress, timeout_s)
    sha256 = _sha256(part)
    if expected not in (None, sha256):
        part.unlink()
        message = f"changed at its home: sha256 {sha256}, {folder / LOCK} has {expected}"
        raise FetchError(f"{name}: {message}; remove that entry to accept it")
    lock[name] = {"url": dataset.url, "bytes": part.stat().st_size, "sha256": sha256}
    with written_aside(folder / LOCK) as aside:
        aside.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def _read_lock(folder: Path) -> dict[str, Any]:
    path = folder / LOCK
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise bad(path, f"not a lock file of bucketsim: {error}") from error
    if not isinstance(lock, dict) or not all(isinstance(row, dict) for row in lock.values()):
        raise bad(path, "not a lock file of bucketsim")
    return lock


def _check_copy(path: Path, expected: str | None) -> None:
    if expected is None:
        raise bad(path, f"is there but not in {LOCK}; move it away to fetch the data set")
    sha256 = _sha256(path)
    if sha256 != expected:
        message = f"changed since it was fetched: sha256 {sha256}, {LOCK} has {expected}"
        raise bad(path, f"{message}; remove the file to fetch it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path, progress: Progress | None, timeout_s: float) -> None:
    """Complete the file `part` from `url`, going on where an earlier call stopped."""
    etag_file = part.with_name(part.name + ".etag")
    try:
        with urllib.request.urlopen(_request(url, part, etag_file), timeout=timeout_s) as response:
            _receive(response, part, etag_file, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
        raise FetchError(f"{url}: HTTP status {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        reason = getattr(e, "reason", e)
        silent = isinstance(reason, TimeoutError)
        what = f"no data for {timeout_s:g} s" if silent else str(reason) or type(reason).__name__
        have = part.stat().st_size if part.exists() else 0
        raise FetchError(f"{url}: {what}, after {have} bytes; call again to go on") from e
    etag_file.unlink(missing_ok=True)


def _request(url: str, part: Path, etag_file: Path) -> urllib.request.Request:
    request = urllib.request.Request(url, headers={"User-Agent": "bucketsim"})
    if part.exists() and etag_file.exists():
        # Only the rest, and only if the file is still the one the first part came from.
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", etag_file.read_text(encoding="ascii"))
    return request


def _receive(
    response: http.client.HTTPResponse, part: Path, etag_file: Path, progress: Progress | None
) -> None:
    """Append the body to `part`, or start it anew, and check its length."""
    url, resumed = response.url, response.status == http.client.PARTIAL_CONTENT
    done = part.stat().st_size if resumed else 0
    content_range = response.headers.get("Content-Range", "")
    if resumed and not content_range.startswith(f"bytes {done}-"):
        part.unlink()
        raise FetchError(f"{url}: asked for bytes from {done}, got {content_range!r}; call again")
    etag = response.headers.get("ETag", "")
    if etag.isascii() and etag.startswith('"'):  # a strong one
        etag_file.write_text(etag, encoding="ascii")
    else:
        etag_file.unlink(missing_ok=True)
    total = None
    if response.length is not None:
        total = done + response.length
        response.length += 1  # one more than announced, to notice a server that sends more
    with part.open("ab" if resumed else "wb") as file:
        while total is None or done < total:
            data = response.read1(CHUNK_BYTES)
            if not data:
                break
            done += len(data)
            file.write(data)
            if progress is not None:
                progress(done, total)
    if total is not None and done < total:
        message = f"the server announced {total} bytes and sent {done}"
        raise FetchError(f"{url}: {message}; call again to go on")
    if total is not None and done > total:
        part.unlink()
        raise FetchError(f"{url}: the server sent more than the {total} bytes it announced")
