"""Progress is drawn on terminals only."""

from __future__ import annotations

import pytest

from channelwise.progress import progress


def test_silent_when_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
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
