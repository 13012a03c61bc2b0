"""Upload of an export to the hub, where asked for."""

from __future__ import annotations

from pathlib import Path

from direct_anneal.errors import InputError


def push_to_hub(directory: Path, repository: str) -> str:
    """Upload a directory to a dataset repository, which is made private if it does not exist yet.

    The token is that of `hf auth login` or HF_TOKEN. A repository that exists keeps its visibility.

    Returns:
        the commit's address.

    Raises:
        InputError: the hub refuses, or cannot be reached; the export itself is untouched.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(directory),
            repo_type="dataset",
            commit_message="Export of direct-anneal",
        )
    except (OSError, ValueError) as error:  # the hub's errors are kinds of these two
        raise InputError(
            field="push_to_hub",
            must="name a dataset repository that you can write to",
            got=f"but {repository}: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            do=f"check the name, hf auth login and the network; {directory} is finished and can be uploaded by hand",
        ) from error
    return str(commit.commit_url)
