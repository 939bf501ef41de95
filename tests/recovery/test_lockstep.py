"""Forward passes that advance together keep apart what torch keeps by thread, and end when they are told to."""

import threading

import pytest
import torch

from channelwise.recovery.lockstep import PausingPass


def product_type() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_autocast_that_one_pass_switches_off_stays_on_in_the_others_and_outside():
    seen: list[torch.dtype] = []

    def run(current: PausingPass) -> None:
        with torch.autocast("cpu", enabled=False):
            current.pause("inside")
            seen.append(product_type())
        current.pause("behind")
        seen.append(product_type())

    outside = []
    with torch.autocast("cpu", torch.bfloat16):
        passes = [PausingPass(run), PausingPass(run)]
        for _ in range(3):
            for one in passes:
                one.advance()
            outside.append(product_type())
    for one in passes:
        one.stop()

    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert outside == [torch.bfloat16] * 3


def test_an_error_in_a_pass_reaches_the_caller():
    def run(current: PausingPass) -> None:
        current.pause("first")
        raise ValueError("broken layer")

    one = PausingPass(run)
    one.advance()
    assert one.event == "first"
    with pytest.raises(ValueError, match="broken layer"):
        one.advance()
    one.stop()


@pytest.mark.parametrize("advanced", [0, 1, 2], ids=["before its start", "at a pause", "at its end"])
def test_a_stopped_pass_cleans_up_and_leaves_no_thread(advanced: int):
    running, ended = threading.active_count(), []

    def run(current: PausingPass) -> None:
        try:
            current.pause("here")
        finally:
            ended.append(True)

    one = PausingPass(run)
    for _ in range(advanced):
        one.advance()
    one.stop()

    assert ended == [True] * (advanced > 0)
    assert threading.active_count() == running
