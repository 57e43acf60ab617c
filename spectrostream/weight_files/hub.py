"""Fetch weights from a hub, with the optional package huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from spectrostream.errors import WeightsError
from spectrostream.weight_files.official_files import OFFICIAL_FOLDER, OFFICIAL_NAMES

OFFICIAL_REPOSITORY = "google/magenta-realtime-2"
OWN_NAME = "codec.safetensors"
_HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<folder>\w[\w.-]*(?:/\w[\w.-]*)*))?", re.ASCII)


class HubSource:
    """A folder of weights in a hub's repository.

    Args:
        source: `owner/name` or `owner/name/folder/in/it`; `accepts` must be true for it.
        revision: A branch, tag or commit; the main branch by default.
        cache_dir: The local cache; by default that of huggingface_hub.
        local_files_only: Use the cache only.
    """

    def __init__(
        self, source: str, *, revision: str | None, cache_dir: str | Path | None, local_files_only: bool
    ) -> None:
        match = _HUB_ID.fullmatch(source)
        assert match, source
        self.source = source
        self.repository = match["repository"]
        self.folder = match["folder"] or (OFFICIAL_FOLDER if self.is_official else "")
        self.revision = revision
        self.cache_dir = cache_dir
        self.local_files_only = local_files_only
        self._unreachable: str | None = None

    @staticmethod
    def accepts(source: str) -> bool:
        """Return True if `source` has the form of a hub id and not of a file's path."""
        return _HUB_ID.fullmatch(source) is not None and not source.endswith(".safetensors")

    @property
    def is_official(self) -> bool:
        """True for the repository of the official release."""
        return self.repository == OFFICIAL_REPOSITORY

    def fetch(self) -> Path:
        """Download the weights unless they are in the cache.

        Returns:
            Our weight file, or the folder with the three official files.

        Raises:
            WeightsError: huggingface_hub is not installed, the hub cannot be reached, the repository or revision does
                not exist or needs a login, or it has no weights.
        """
        own = None if self.is_official else self._fetch(OWN_NAME)
        return own or self._fetch_official()

    def _fetch_official(self) -> Path:
        paths = [self._fetch(name) for name in OFFICIAL_NAMES]
        missing = [name for name, path in zip(OFFICIAL_NAMES, paths, strict=True) if path is None]
        if missing and self._unreachable:
            raise self._error(f"the hub cannot be reached and the files are not in its cache ({self._unreachable})")
        if missing:
            instead = "" if self.is_official else f"{OWN_NAME} and no "
            raise self._error(f"there is no {instead}{', '.join(missing)}")
        folders = {path.parent for path in paths if path}
        if len(folders) > 1:
            raise self._error("the repository changed while it was fetched; type the same again")
        return folders.pop()

    def _fetch(self, name: str) -> Path | None:
        """Download a file unless it is in the cache.

        Returns:
            The local copy. None if the repository has no such file, or if the hub cannot be reached and the file is not
            in the cache.
        """
        hub = self._client()
        try:
            return Path(
                hub.hf_hub_download(
                    self.repository,
                    name,
                    subfolder=self.folder or None,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    # The client waits half a minute for a connection. This is done once, not for each file.
                    local_files_only=self.local_files_only or self._unreachable is not None,
                )
            )
        except hub.errors.LocalEntryNotFoundError as error:
            if not self.local_files_only and self._unreachable is None:
                self._unreachable = _first_line(error.__cause__ or error)
            return None
        except hub.errors.EntryNotFoundError:
            return None
        except hub.errors.GatedRepoError as error:
            raise self._error("you must request access on its page; then type: hf auth login") from error
        except hub.errors.RepositoryNotFoundError as error:
            raise self._error("there is no such repository, or it is private; if so, type: hf auth login") from error
        except hub.errors.RevisionNotFoundError as error:
            raise self._error("the repository has no such branch, tag or commit") from error
        # The client also raises its HTTP library's errors, and different versions use different libraries.
        except Exception as error:
            raise self._error(f"{type(error).__name__}: {_first_line(error)}") from error

    def _client(self) -> ModuleType:
        try:
            import huggingface_hub
            import huggingface_hub.errors
        except ImportError as error:
            remedy = "the package huggingface_hub is needed; type: pip install 'spectrostream[hub]'"
            raise self._error(remedy) from error
        return huggingface_hub

    def _error(self, problem: str) -> WeightsError:
        where = "a repository in the local cache of the hub" if self.local_files_only else "a repository of the hub"
        revision = f", revision {self.revision!r}" if self.revision else ""
        folder = f", folder {self.folder}" if self.folder else ""
        return WeightsError(f"{self.source!r} is no file or folder here; as {where}{revision}{folder}: {problem}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
