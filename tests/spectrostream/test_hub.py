"""Weights from a hub: the real client against a server on this machine."""

import hashlib
import http.server
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from official_setup import SMALL, fixture_params, small_codec, write_official

import spectrostream.weight_files.official_files
from spectrostream import SpectroStream
from spectrostream.weight_files.hub import HubSource
from spectrostream.weight_files.official_files import OFFICIAL_NAMES, RELEASED, ReleasedFile
from spectrostream.weights import WeightsError, codec_fingerprint, load_pretrained, save_codec


class StandInHub:
    """The two requests by which the client fetches a file, for repositories that are folders: `root/owner/name`."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_content=False)

            def do_GET(self) -> None:
                self.answer(with_content=True)

            def answer(self, *, with_content: bool) -> None:
                path = urllib.parse.unquote(self.path).strip("/")
                if "/resolve/" in path:  # the client asks for other things too
                    hub.requests.append((self.command, path))
                status, headers, content = hub.answer(path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_content:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        repository, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository == "google/gated":
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if not (self.root / repository).is_dir() or not rest:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", self.COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        file = self.root / repository / name
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.COMMIT}, b""
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return 200, {"X-Repo-Commit": self.COMMIT, "ETag": etag}, content

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[StandInHub]:
    """A hub on this machine and an empty cache; the client is the real one."""
    stand_in = StandInHub(tmp_path / "hub")
    constants = huggingface_hub.constants
    # HF_ENDPOINT, which is read when the client is imported.
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.url + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield stand_in
    stand_in.close()


@pytest.fixture
def released(monkeypatch) -> Callable[[Path], None]:
    """Takes a folder's small files for the release."""

    def declare(folder: Path) -> None:
        files = []
        for file in RELEASED:
            content = (folder / file.name).read_bytes()
            digest = hashlib.sha256(content).hexdigest() if file.sha256 else None
            files.append(ReleasedFile(file.name, len(content), digest, file.prefixes))
        monkeypatch.setattr(spectrostream.weight_files.official_files, "RELEASED", tuple(files))

    return declare


class TestHub:
    """The real client against a server on this machine."""

    def test_the_official_release(self, hub, released, tmp_path):
        folder = write_official(fixture_params("mono"), hub.root / "google/magenta-realtime-2/resources/spectrostream")
        released(folder)
        expected = codec_fingerprint(load_pretrained(folder))
        assert codec_fingerprint(SpectroStream.from_pretrained("google/magenta-realtime-2")) == expected
        fetched = [name for method, name in hub.requests if method == "GET"]
        main = "google/magenta-realtime-2/resolve/main/resources/spectrostream"
        assert fetched == [f"{main}/{name}" for name in OFFICIAL_NAMES]
        # From the cache, without a request.
        hub.requests.clear()
        again = load_pretrained("google/magenta-realtime-2/resources/spectrostream", local_files_only=True)
        assert codec_fingerprint(again) == expected
        assert hub.requests == []

    @pytest.mark.slow
    @pytest.mark.parametrize("name", OFFICIAL_NAMES)
    def test_what_is_not_the_release_is_refused(self, name, hub, released):
        folder = write_official(fixture_params("mono"), hub.root / "google/magenta-realtime-2/resources/spectrostream")
        released(folder)
        content = bytearray((folder / name).read_bytes())
        if name == "decoder.safetensors":  # no checksum is known, its size is
            content.append(0)
            message = f"it has {len(content)} bytes, the release {len(content) - 1}"
        else:
            content[-1] ^= 1
            message = f"its SHA-256 is {hashlib.sha256(content).hexdigest()}, the release's "
        (folder / name).write_bytes(content)
        with pytest.raises(
            WeightsError, match=f"{re.escape(name)} of google/magenta-realtime-2 is not the released one: {message}"
        ):
            load_pretrained("google/magenta-realtime-2")

    def test_a_repository_of_ours(self, hub):
        (hub.root / "someone/codec").mkdir(parents=True)
        save_codec(small_codec(), hub.root / "someone/codec/codec.safetensors")
        for revision in (None, "main", hub.COMMIT):
            assert codec_fingerprint(load_pretrained("someone/codec", revision=revision)) == codec_fingerprint(
                small_codec()
            )
        assert [name for method, name in hub.requests if method == "GET"] == [
            "someone/codec/resolve/main/codec.safetensors"
        ]

    def test_folders_of_a_repository(self, hub):
        (hub.root / "someone/codecs/runs/wide").mkdir(parents=True)
        save_codec(small_codec(), hub.root / "someone/codecs/runs/wide/codec.safetensors")
        official = write_official(fixture_params("mono"), hub.root / "someone/codecs/copy")
        assert load_pretrained("someone/codecs/runs/wide").config == SMALL
        assert codec_fingerprint(load_pretrained("someone/codecs/copy")) == codec_fingerprint(load_pretrained(official))

    def test_the_cache_is_where_it_is_asked_for(self, hub, tmp_path):
        (hub.root / "someone/codec").mkdir(parents=True)
        save_codec(small_codec(), hub.root / "someone/codec/codec.safetensors")
        load_pretrained("someone/codec", cache_dir=tmp_path / "elsewhere")
        assert list((tmp_path / "elsewhere").rglob("codec.safetensors"))
        assert not (tmp_path / "cache").exists()

    def test_damage_on_the_way_of_our_own_file_is_found(self, hub):
        (hub.root / "someone/codec").mkdir(parents=True)
        file = hub.root / "someone/codec/codec.safetensors"
        save_codec(small_codec(), file)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(WeightsError, match="is damaged: the SHA-256"):
            load_pretrained("someone/codec")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            (
                "runs/never-made",
                {},
                "'runs/never-made' is no file or folder here; as a repository of the hub: there is no such repository",
            ),
            ("someone/empty", {}, r"there is no codec\.safetensors and no encoder\.safetensors, decoder"),
            ("someone/half", {}, r"there is no codec\.safetensors and no quantizer\.safetensors$"),
            ("someone/empty/sub/folder", {}, r"repository of the hub, folder sub/folder: there is no codec"),
            ("someone/empty", {"revision": "v9"}, "revision 'v9': the repository has no such branch, tag or commit"),
            (
                "someone/empty",
                {"local_files_only": True},
                "a repository in the local cache of the hub: there is no codec",
            ),
            ("google/gated", {}, "you must request access"),
            ("a/b--c", {}, "HFValidationError"),
        ],
    )
    def test_what_cannot_be_had_is_said(self, source, options, message, hub):
        (hub.root / "someone/empty").mkdir(parents=True)
        write_official(fixture_params("mono"), hub.root / "someone/half")
        (hub.root / "someone/half/quantizer.safetensors").unlink()
        with pytest.raises(WeightsError, match=message):
            load_pretrained(source, **options)

    @pytest.mark.slow
    def test_without_a_connection_the_cache_serves(self, hub, monkeypatch):
        (hub.root / "someone/codec").mkdir(parents=True)
        save_codec(small_codec(), hub.root / "someone/codec/codec.safetensors")
        load_pretrained("someone/codec")
        hub.close()
        waits: list[float] = []
        monkeypatch.setattr("time.sleep", waits.append)  # between the client's attempts
        assert load_pretrained("someone/codec").config == SMALL
        assert not waits
        with pytest.raises(WeightsError, match=r"the hub cannot be reached and the files are not in its cache \(.+\)"):
            load_pretrained("someone/other")

    @pytest.mark.slow
    def test_a_changing_repository_gives_no_mixture(self, hub, monkeypatch):
        write_official(fixture_params("mono"), hub.root / "someone/copy")
        plain = hub.answer

        def moving(path: str) -> tuple[int, dict[str, str], bytes]:
            status, headers, content = plain(path)
            if path.endswith("quantizer.safetensors"):
                headers["X-Repo-Commit"] = "f" * 40
            return status, headers, content

        monkeypatch.setattr(hub, "answer", moving)
        with pytest.raises(WeightsError, match="the repository changed while it was fetched; type the same again"):
            load_pretrained("someone/copy")

    def test_without_the_client_the_remedy_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(WeightsError, match=r"'owner/name' is no file .*type: pip install 'spectrostream\[hub\]'"):
            load_pretrained("owner/name")


@pytest.mark.parametrize(
    ("source", "accepted"),
    [
        ("google/magenta-realtime-2", True),
        ("google/magenta-realtime-2/resources/spectrostream", True),
        ("a.b/c_d-e", True),
        ("name", False),
        ("/owner/name", False),
        ("owner/name/", False),
        ("../owner/name", False),
        ("owner/../name", False),
        ("owner/name/../../secret", False),
        ("~/owner/name", False),
        ("owner/näme", False),
        ("owner/name/codec.safetensors", False),
        ("C:\\owner\\name", False),
        ("owner/name\n", False),
    ],
)
def test_the_form_of_a_hub_id(source, accepted):
    assert HubSource.accepts(source) == accepted
