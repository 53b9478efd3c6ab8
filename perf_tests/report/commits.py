"""Links to commits: an address with ``{commit}`` in it, asked for, or found out from the checkout's remote."""

import os
import re
import subprocess
from urllib.parse import urlsplit

from perf_tests.common.errors import BadInputError

PLACEHOLDER = "{commit}"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
# git@host:owner/name.git and ssh://git@host/owner/name.git
_SSH = re.compile(r"(?:ssh://)?git@(?P<host>[\w.-]+)[:/](?P<path>[\w./-]+)")


def check_template(template: str) -> str:
    """An address template that ``--commit-url`` may be.

    Raises:
        BadInputError: no address of the web, or without a place for the commit.
    """
    parts = urlsplit(template)
    if parts.scheme not in ("http", "https") or not parts.netloc or PLACEHOLDER not in template:
        raise BadInputError(f"--commit-url: give a web address with {PLACEHOLDER} in it, not {template!r}")
    return template


def find_template() -> str | None:
    """The address of commits on the web: of a GitHub workflow, else of this checkout's ``origin``, if it has one."""
    server, repository = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if server and repository:
        return template_of(f"{server}/{repository}")
    try:
        done = subprocess.run(
            ["git", "remote", "get-url", "origin"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return template_of(done.stdout.strip()) if done.returncode == 0 else None


def template_of(remote: str) -> str | None:
    """The template for a remote of GitHub's or GitLab's form; ``None`` for a local one."""
    ssh = _SSH.fullmatch(remote)
    if ssh:
        remote = f"https://{ssh['host']}/{ssh['path']}"
    parts = urlsplit(remote)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    path = parts.path.rstrip("/").removesuffix(".git")
    return f"{parts.scheme}://{parts.hostname}{port}{path}/commit/{PLACEHOLDER}"  # a password in it is left out


def commit_url(template: str | None, commit: str | None) -> str | None:
    """The address of a commit; ``None`` where the JSON's text is no commit."""
    if template is None or commit is None or not _COMMIT.fullmatch(commit):
        return None
    return template.replace(PLACEHOLDER, commit)
