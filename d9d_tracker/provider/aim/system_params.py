"""What Aim stores of the system, without secrets."""

import os
import re
import sys
from typing import Any

from aim.ext.utils import get_git_info, get_installed_packages

from d9d_tracker.log import warn_once

_SECRET = re.compile(
    r"key|token|secret|passw|passphrase|pwd\b|_pass\b|credential|auth|cookie|private|cert|dsn|webhook|signature",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(r"(?<=//)[^/\s@]+@")  # of an address: user:password@
_LEFT_OUT = "(left out)"


def system_params() -> dict[str, Any]:
    """Return what Aim's ``log_system_params`` stores, without secrets, as told by their names, which are said once."""
    secret = sorted(name for name in os.environ if _is_secret(name))
    if secret:
        words = "Aim stores the environment with the run (log_system_params) without what looks like a secret: %s"
        warn_once("secrets", words, ", ".join(secret))
    git = get_git_info()
    if git.get("remote_origin_url"):
        git["remote_origin_url"] = _ACCOUNT.sub("", git["remote_origin_url"])
    return {
        "packages": get_installed_packages(),
        "env_variables": {name: _plain(value) for name, value in os.environ.items() if name not in secret},
        "git_info": git,
        "executable": sys.executable,
        "arguments": _arguments(sys.argv),
    }


def _is_secret(name: str) -> bool:
    return name not in ("PWD", "OLDPWD") and _SECRET.search(name) is not None


def _arguments(words: list[str]) -> list[str]:
    """Return a command line with the values of secret options left out: of ``--api-key X`` and ``--api-key=X``."""
    plain: list[str] = []
    before = ""
    for word in words:
        name, sign, _ = word.partition("=")
        if sign and _is_secret(name):
            plain.append(f"{name}={_LEFT_OUT}")
        elif before.startswith("-") and "=" not in before and _is_secret(before) and not word.startswith("-"):
            plain.append(_LEFT_OUT)
        else:
            plain.append(_plain(word))
        before = word
    return plain


def _plain(text: str) -> str:
    return _ACCOUNT.sub("", text).encode("utf-8", "backslashreplace").decode("utf-8")
