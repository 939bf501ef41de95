"""Rows of the sweep: the newest counts, results of tools add up, and the commit names the code that ran."""

import subprocess

import pytest

from benchmarks.coverage import journal


def test_a_row_takes_the_place_of_an_earlier_one_but_keeps_the_tools(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in (
        {"spec": "a", "error": "ValueError: no", "traceback": "..."},
        {"spec": "a", "tools": {"one": {"error": ""}}},
        {"spec": "a", "error": "", "groups": 3},
        {"spec": "a", "tools": {"two": {"error": "no"}}},
        {"spec": "b", "error": ""},
    ):
        journal.append(path, row)
    assert journal.read(path) == {
        "a": {"spec": "a", "error": "", "groups": 3, "tools": {"one": {"error": ""}, "two": {"error": "no"}}},
        "b": {"spec": "b", "error": ""},
    }


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a repository of its own, which takes the place of channelwise."""
    file = tmp_path / "package" / "__init__.py"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(journal.channelwise, "__file__", str(file))
    return file


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=b", *arguments], check=True)


def test_the_commit_is_that_of_the_package_and_marked_when_files_differ(package):
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    first = journal.commit.__wrapped__()
    (package.parents[1] / "README").write_text("outside of the package")
    assert journal.commit.__wrapped__() == first
    package.write_text("1")
    changed = journal.commit.__wrapped__()
    package.write_text("2")
    assert changed.startswith(f"{first}+")
    assert journal.commit.__wrapped__() not in (first, changed)


def test_a_package_without_a_history_has_its_version_and_a_digest(package):
    first = journal.commit.__wrapped__()
    package.write_text("1")
    assert first.startswith(f"{journal.version('channelwise')}+")
    assert journal.commit.__wrapped__() != first
