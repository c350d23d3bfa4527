"""The end of a run: the hub may fail in any way, the run may not."""

import huggingface_hub
import pytest

from holdfast.train.keep.hub import login_note, push_model


@pytest.fixture
def hub(monkeypatch):
    """What the hub was asked, by a stand-in for HfApi; `hub.fails` names the call that raises."""

    class Hub:
        asked, fails = None, ()

        def _called(self, name, *args, **options):
            if name in Hub.fails:
                raise Hub.fails[1]
            Hub.asked.append((name, args, options))

        def create_repo(self, *args, **options):
            self._called("create_repo", *args, **options)
            return f"https://hub/{args[0]}"

        def upload_folder(self, **options):
            self._called("upload_folder", **options)

        def whoami(self):
            self._called("whoami")

    Hub.asked = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


@pytest.mark.parametrize("private", [True, False])
def test_creates_the_repository_and_uploads_the_folder(hub, tmp_path, private):
    said = push_model(tmp_path, "owner/name", private=private, message="done")
    assert said == "the model is on the hub: https://hub/owner/name"
    assert hub.asked == [
        ("create_repo", ("owner/name",), {"private": private, "exist_ok": True}),
        ("upload_folder", (), {"folder_path": tmp_path, "repo_id": "owner/name", "commit_message": "done"}),
    ]


@pytest.mark.parametrize("where", ["create_repo", "upload_folder"])
@pytest.mark.parametrize("error", [OSError("no\n  network"), ValueError("bad token"), RuntimeError()])
def test_a_failure_is_a_sentence_with_the_command_to_do_it_by_hand(hub, tmp_path, where, error):
    hub.fails = (where, error)
    said = push_model(tmp_path, "owner/name", private=True, message="done")
    assert said.startswith("the model could not be pushed to owner/name (") and "\n" not in said
    assert f"safe in {tmp_path}: hf upload owner/name {tmp_path}" in said
    assert (" ".join(str(error).split()) or "RuntimeError") in said


def test_a_missing_login_is_said_before_the_run(hub):
    assert login_note("owner/name") is None
    hub.fails = ("whoami", OSError("401"))
    assert "hf auth login" in login_note("owner/name") and "401" in login_note("owner/name")
