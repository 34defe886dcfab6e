"""What the classes of this package add to the `push_to_hub` that transformers and diffusers give them.

Both libraries upload what `save_pretrained` wrote and write a card that takes every model for one of theirs. The card
has to come from `hf_vq.hub`, which stands above the models and is not imported by them: `hf_vq/__init__.py` hands over
the function that completes an upload.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

# diffusers refuses a pipeline whose model_index.json names a component of a library that it does not know, with the
# name in its message. So this entry, which no pipeline reads, is what somebody without the package is told; importing
# the package makes it known. It is data, not code, and must stay the same for ever: older repositories hold it.
REQUIREMENT_KEY, REQUIREMENT = "_requires", "pip install hf-vq (then: import hf_vq)"

Completion = Callable[[Path, str, str, str | None, Any], None]
_completions: list[Completion] = []


def set_completion(completion: Completion) -> None:
    """Names the function that is called with every folder before it is uploaded.

    Args:
        completion: called with the folder, the name of the class that wrote it, the id of the repository, the branch
            (None for the main one) and the token as the caller of `push_to_hub` gave it.
    """
    _completions[:] = [completion]


class PushedWithCard:
    """Base, before those of transformers and diffusers, of classes whose `push_to_hub` writes a card of this package.

    Both libraries call one of these two methods with the folder that they are about to upload, in `push_to_hub` and in
    `save_pretrained(push_to_hub=True)`.
    """

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *arguments: Any, **options: Any) -> Any:
        _complete(working_dir, type(self).__name__, repo_id, options)
        return super()._upload_modified_files(working_dir, repo_id, *arguments, **options)  # type: ignore[misc]

    def _upload_folder(self, working_dir: Any, repo_id: str, *arguments: Any, **options: Any) -> Any:
        if not options.get("subfolder"):  # a part of something bigger, whose card stands above
            _complete(working_dir, type(self).__name__, repo_id, options)
        return super()._upload_folder(working_dir, repo_id, *arguments, **options)  # type: ignore[misc]


def _complete(folder: Any, class_name: str, repo_id: str, options: dict[str, Any]) -> None:
    for completion in _completions:
        completion(Path(folder), class_name, repo_id, options.get("revision"), options.get("token"))
