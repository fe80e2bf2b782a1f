"""The Hugging Face hub as a place to pass models on: ``hub://OWNER/NAME``.

Login, cache and addresses are those of huggingface_hub: ``huggingface-cli login`` or ``HF_TOKEN``, ``HF_HOME``,
``HF_ENDPOINT``, and ``HF_HUB_OFFLINE=1``, with which only the cache is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import DataError, GebmKitError, RunFailed, UsageError
from gebm_kit.core.programs import quiet, reason

LARGEST_FILES = 1000
"""Most files of a repository that are fetched."""

LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."
"""Hint for whoever is not logged in."""


class HuggingFaceHub:
    """Model repositories of the Hugging Face hub."""

    def fetch(self, repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
        """Download a repository's files that match the patterns, and return their folder in the library's cache.

        Raises:
            DataError: there is no such repository or revision, it is not open to the user, or it can't be reached.
        """
        import huggingface_hub

        try:
            with quiet():
                return Path(
                    huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(patterns))
                )
        except Exception as error:  # the library raises many types
            raise _unfetched(repository, revision, error) from error

    def push(
        self, folder: Path, repository: str, files: Sequence[str], *, private: bool | None, revision: str | None
    ) -> str:
        """Upload files of a folder in one commit, and return the repository's address.

        Raises:
            UsageError: nobody is logged in, or may not write there; there is no such branch.
            RunFailed: the hub can't be reached.
        """
        import huggingface_hub

        api = huggingface_hub.HfApi()
        operations = [huggingface_hub.CommitOperationAdd(name, str(folder / name)) for name in files]
        try:
            with quiet():
                made = api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
                api.create_commit(
                    made.repo_id, operations, commit_message="Model of gebm-kit", revision=revision, repo_type="model"
                )
                return str(made)
        except Exception as error:  # the library raises many types
            raise _unpushed(repository, error) from error


def _status(error: Exception) -> int | None:
    found: Any = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _unfetched(repository: str, revision: str | None, error: Exception) -> GebmKitError:
    import huggingface_hub.errors as errors

    hint = ""
    if isinstance(error, errors.RevisionNotFoundError):
        what = f"has no revision {revision!r}"
    elif isinstance(error, errors.GatedRepoError):
        what, hint = "is open only to users whom its owner has let in", LOGIN
    elif isinstance(error, errors.RepositoryNotFoundError):
        what, hint = "does not exist, or is private", f"Check the name. {LOGIN}"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        what = "is not in the cache, and the hub can't be reached"
        hint = "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
    else:
        what, hint = f"can't be fetched: {reason(error)}", "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
    return DataError(f"hub://{repository} {what}", hint=hint)


def _unpushed(repository: str, error: Exception) -> GebmKitError:
    import huggingface_hub.errors as errors

    status = _status(error)
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return UsageError(f"hub://{repository} can't be written: nobody is logged in", hint=LOGIN)
    if status == 403:
        return UsageError(f"hub://{repository} can't be written: this user may not", hint="Use a token that may write.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return RunFailed(f"hub://{repository} can't be written: HF_HUB_OFFLINE forbids connections")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"hub://{repository} has no such branch", hint="Leave it out, or make it on the hub first.")
    return RunFailed(
        f"hub://{repository} can't be written: {reason(error)}", hint="Check the network and HF_ENDPOINT, and repeat."
    )
