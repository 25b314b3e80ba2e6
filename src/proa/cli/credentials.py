# SPDX-License-Identifier: Apache-2.0
"""Who the user is at each registry: ``~/.docker/config.json`` and the programs it names, shared with docker.

    auths         registry: {auth: base64 of name:password, identitytoken}; empty when a program keeps it
    credsStore    docker-credential-NAME keeps all registries' credentials
    credHelpers   registry: NAME, for one registry

What else is in the file stays as it is.

Source: docker CLI reference, "Configuration files", "Credential stores"; docker-credential-helpers, README.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from proa.client.errors import ClientError
from proa.wire.registries import AUTH_HEADER, AuthConfig, auth_key, encode_auth, registry_of, split_auth

TOKEN_USER = "<token>"  # the name under which a program keeps an identity token
HELPER_TIMEOUT_S = 60  # it may ask the user to unlock a key ring
_NOT_FOUND = "credentials not found in native keychain"

Json = dict[str, Any]  # Any: a document that others write too


def config_path() -> Path:
    """Return where the file is, DOCKER_CONFIG counting."""
    directory = os.environ.get("DOCKER_CONFIG")
    return (Path(directory) if directory else Path.home() / ".docker") / "config.json"


def headers_for(image: str) -> dict[str, str]:
    """Return the header that says who the user is at an image's registry; none when that is unknown."""
    config = find(auth_key(registry_of(image)))
    return {} if config is None else {AUTH_HEADER: encode_auth(config)}


def find(key: str) -> AuthConfig | None:
    """Return the credentials for a registry. Raises ClientError when the file or a program fails."""
    document = _read()
    helper = _helper(document, key)
    if helper:
        answer = _ask(helper, "get", key)
        if not answer:
            return None
        try:
            found = json.loads(answer)
            username, secret = str(found["Username"]), str(found["Secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise ClientError(f"docker-credential-{helper} does not answer with credentials") from error
        if username == TOKEN_USER:
            return AuthConfig(identitytoken=secret, serveraddress=key)
        return AuthConfig(username=username, password=secret, serveraddress=key)
    for name, entry in _auths(document).items():
        if auth_key(name) == key and isinstance(entry, dict):
            token = str(entry.get("identitytoken") or "")
            try:
                found_auth = split_auth(AuthConfig(auth=str(entry.get("auth") or ""), serveraddress=key))
            except ValueError as error:
                raise ClientError(f"{config_path()}: auths.{name}: {error}") from error
            if found_auth.username or token:
                return AuthConfig(
                    username=found_auth.username,
                    password="" if token else found_auth.password,
                    identitytoken=token,
                    serveraddress=key,
                )
    return None


def store(key: str, username: str, password: str, identity_token: str) -> str:
    """Keep credentials; an identity token replaces the password. Return a warning, "" when there is none."""
    document = _read()
    helper = _helper(document, key)
    auths = document.setdefault("auths", {})
    for name in [name for name in _auths(document) if auth_key(name) == key]:
        del auths[name]
    if helper:
        kept = {"ServerURL": key, "Username": username, "Secret": password}
        if identity_token:
            kept = {**kept, "Username": TOKEN_USER, "Secret": identity_token}
        _ask(helper, "store", json.dumps(kept))
        auths[key] = {}
        _write(document)
        return ""
    secret = "" if identity_token else password
    auths[key] = {"auth": base64.b64encode(f"{username}:{secret}".encode()).decode()}
    if identity_token:
        auths[key]["identitytoken"] = identity_token
    _write(document)
    return (
        f"WARNING! Your credentials are stored unencrypted in '{config_path()}'.\n"
        "Configure a credential helper to remove this warning. See\n"
        "https://docs.docker.com/go/credential-store/\n"
    )


def erase(key: str) -> bool:
    """Forget credentials; False when there were none."""
    document = _read()
    helper = _helper(document, key)
    names = [name for name in _auths(document) if auth_key(name) == key]
    for name in names:
        del document["auths"][name]
    if helper:
        _ask(helper, "erase", key)
    if names:
        _write(document)
    return bool(names)


def _helper(document: Json, key: str) -> str:
    helpers = document.get("credHelpers")
    own = {auth_key(name): value for name, value in helpers.items()} if isinstance(helpers, dict) else {}
    helper = own.get(key) or document.get("credsStore") or ""
    if not isinstance(helper, str) or "/" in helper:
        raise ClientError(f"{config_path()}: the name of a credential helper is wrong: {helper!r}")
    return helper


def _auths(document: Json) -> Json:
    auths = document.get("auths")
    return auths if isinstance(auths, dict) else {}


def _ask(helper: str, action: str, text: str) -> str:
    """Run a helper; "" when it has no such credentials."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, action],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HELPER_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClientError(f"error getting credentials: {program} is not installed") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClientError(f"error getting credentials: {program}: {error}") from error
    if done.returncode == 0:
        return done.stdout
    if action != "store" and _NOT_FOUND in done.stdout:
        return ""
    said = (done.stdout.strip() or done.stderr.strip())[:500]
    raise ClientError(f"error getting credentials: {program} {action}: {said}")


def _read() -> Json:
    path = config_path()
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ClientError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict):
        raise ClientError(f"cannot read {path}: it is not a JSON object")
    return document


def _write(document: Json) -> None:
    """Replace the file at once; it is the user's alone."""
    path = config_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()  # a link stays one
        descriptor, name = tempfile.mkstemp(prefix=".config.json", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(document, file, indent="\t")
                file.flush()
                os.fsync(descriptor)
            Path(name).rename(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise ClientError(f"cannot write {path}: {error}") from error
