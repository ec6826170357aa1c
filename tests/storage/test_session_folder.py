"""Where Ray's sockets lie, whatever ``TMPDIR`` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_vitlora.errors import UserError
from fl_vitlora.storage.session_folder import ADDED, LONGEST_SOCKET, default_folder, session_folder


def test_an_ordinary_folder_is_left_to_ray() -> None:
    for environment in ({}, {"TMPDIR": "/tmp"}, {"TMPDIR": ""}):
        with session_folder(environment) as told:
            assert told == {}
            assert default_folder(environment) == "/tmp/ray"


@pytest.mark.parametrize(
    "place", ["/tmp/" + 120 * "x", "/dev/null/x", "/tmp/with a space", "/tmp/\u00fc", "relative"]
)
@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_where_sockets_do_not_fit_a_short_folder_is_made_and_removed(name: str, place: str) -> None:
    with session_folder({name: place}) as told:
        folder = Path(told["_temp_dir"])
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder)) + ADDED <= LONGEST_SOCKET
    assert not folder.exists()


def test_where_there_is_no_short_folder_the_advice_works() -> None:
    most = LONGEST_SOCKET - ADDED - len("/ray")
    with (
        pytest.raises(UserError, match=rf"too long .* at most {most} characters .* RAY_TMPDIR="),
        session_folder({"TMPDIR": "/tmp/" + 120 * "x"}, elsewhere=["/nowhere"]),
    ):
        pass
    with session_folder({"RAY_TMPDIR": "/" + (most - 1) * "x"}, elsewhere=[]) as told:
        assert told == {}
