"""Commits and versions, in checkouts made for the test."""

import os
import subprocess

import pytest

from gemma3_jax import provenance


@pytest.fixture
def package(tmp_path):
    """A package in a checkout, as it was committed."""
    path = tmp_path / "checkout" / "package"
    path.mkdir(parents=True)
    (path / "__init__.py").write_text("")
    (path.parent / "notes").write_text("")
    git(path.parent, "init", "--quiet")
    git(path.parent, "add", "package", "notes")
    git(path.parent, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first")
    return path


def git(directory, *command):
    done = subprocess.run(["git", "-C", directory, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_commit_is_named_in_full(package):
    assert provenance.commit(package) == git(package, "rev-parse", "HEAD")


@pytest.mark.parametrize("change", ["__init__.py", "new.py"])
def test_a_package_that_is_not_as_committed_is_marked(package, change):
    (package / change).write_text("1")
    assert provenance.commit(package) == git(package, "rev-parse", "HEAD") + "+changes"


def test_changes_beside_the_package_do_not_count(package):
    (package.parent / "notes").write_text("more")
    assert not provenance.commit(package).endswith("+changes")


def test_a_package_that_is_installed_inside_a_checkout_is_not_of_its_commit(package):
    installed = package.parent / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert provenance.commit(installed) is None


def test_outside_a_checkout_and_without_git_there_is_no_commit(package, tmp_path, monkeypatch):
    assert provenance.commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(package) is None


def test_git_variables_of_the_parent_process_do_not_choose_the_checkout(package, tmp_path, monkeypatch):
    expected = provenance.commit(package)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert provenance.commit(package) == expected and os.environ["GIT_DIR"]


def test_versions_are_those_that_are_installed(monkeypatch):
    import jax

    versions = provenance.versions()
    assert versions["jax"] == jax.__version__ and versions["python"].count(".") == 2
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert provenance.versions()["no-such-package"] is None
