"""Progress is drawn on terminals; elsewhere there is a line now and then."""

from __future__ import annotations

import pytest

from channelwise import progress as module
from channelwise.progress import progress


def test_silent_for_short_work_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("Working", 2) as advance:
        advance("one")
    assert capfd.readouterr() == ("", "")


def test_drawn_on_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("Working", 2) as advance:
        advance("one")
    out, err = capfd.readouterr()
    assert out == ""
    assert "Working" in err
    assert "1/2" in err


def test_silent_when_asked(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("Working", 2, quiet=True) as advance:
        advance("one")
    assert capfd.readouterr() == ("", "")


def test_a_line_now_and_then_where_there_is_no_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("Searching Net", 100, done=40) as advance:
        for _ in range(10):
            now += 11.0
            advance("best 0.5 [candidate 7]")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Searching Net: 43 of 100, best 0.5 [candidate 7], about 0:10:27 left",
        "Searching Net: 46 of 100, best 0.5 [candidate 7], about 0:09:54 left",
        "Searching Net: 49 of 100, best 0.5 [candidate 7], about 0:09:21 left",
    ]


def test_no_line_when_asked(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    with progress("Working", 2, quiet=True) as advance:
        advance("one")
    assert capfd.readouterr() == ("", "")
