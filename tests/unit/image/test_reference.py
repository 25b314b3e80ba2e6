# SPDX-License-Identifier: Apache-2.0
"""The grammar of references, and the words of its refusals."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.image.reference import Reference, parse_any, parse_name, parse_reference
from proa.model.errors import InvalidParameter

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/busybox:x", "docker.io/library/busybox:x", "busybox:x"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:tag", "localhost:5000/x:tag", "localhost:5000/x:tag"),
        ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
        ("Registry/x", "Registry/x", "Registry/x"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("a__b/c-_d".replace("-_", "--"), "docker.io/a__b/c--d", "a__b/c--d"),
        (f"busybox@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}", f"busybox@sha256:{HEX}"),
        (f"busybox:1@sha256:{HEX}", f"docker.io/library/busybox:1@sha256:{HEX}", f"busybox:1@sha256:{HEX}"),
    ],
)
def test_normal_and_familiar_forms(text: str, full: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == full
    assert reference.familiar == familiar
    assert parse_reference(full) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("a//b", "invalid reference format"),
        (":tag", "invalid reference format"),
        ("foo:ba~r", "invalid reference format"),
        ("foo:" + "t" * 129, "invalid reference format"),
        ("-foo", "invalid reference format"),
        ("foo/", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("foo\n", "invalid reference format"),
        ("x" * 5000, "invalid reference format"),
        ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
        ("localhost:5000/Foo", "invalid reference format: repository name (Foo) must be lowercase"),
        (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
        ("foo@sha256:" + "a" * 40, "invalid checksum digest length"),
        ("foo@md5:" + "a" * 32, "unsupported digest algorithm"),
        ("foo@sha256:" + "A" * 64, "invalid checksum digest format"),
        ("a/" * 130 + "a", "repository name must not be more than 255 characters"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_reference(text)
    assert caught.value.message == message


def test_ids_are_told_from_names() -> None:
    assert parse_any(HEX) == f"sha256:{HEX}"
    assert parse_any(f"sha256:{HEX}") == f"sha256:{HEX}"
    assert isinstance(parse_any(HEX[:12]), Reference)


def test_names_to_give() -> None:
    assert parse_name("x").familiar == "x:latest"
    assert parse_name("x:1").familiar == "x:1"
    assert parse_name("x:1", "2").familiar == "x:2"
    for repository, tag, message in (
        ("x", "b@d", "invalid tag format"),
        (f"x@sha256:{HEX}", "", "cannot import digest reference"),
        ("sha256", "1", "refusing to create an ambiguous tag using digest algorithm as name"),
    ):
        with pytest.raises(InvalidParameter, match=message):
            parse_name(repository, tag)


_words = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
_paths = st.lists(_words, min_size=1, max_size=4).map("/".join)
_domains = st.sampled_from(["docker.io", "localhost", "localhost:5000", "ghcr.io", "r.example.org:443"])
_tags = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=20)


@given(_domains, _paths, _tags, st.booleans())
def test_every_form_of_a_reference_reads_back(domain: str, path: str, tag: str, with_digest: bool) -> None:
    digest = f"sha256:{HEX}" if with_digest else ""
    reference = parse_reference(f"{domain}/{path}:{tag}" + (f"@{digest}" if digest else ""))
    assert (reference.domain, reference.tag, reference.digest) == (domain, tag, digest)
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference


@given(st.text(max_size=80) | st.text("aA0.:/@-_[]sha256", max_size=80))
def test_any_text_is_read_or_refused_and_what_is_read_is_stable(text: str) -> None:
    with contextlib.suppress(InvalidParameter):
        reference = parse_reference(text)
        assert parse_reference(str(reference)) == reference
        assert parse_reference(reference.familiar) == reference
