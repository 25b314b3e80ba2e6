# SPDX-License-Identifier: Apache-2.0
"""The agent's frames: the document's vectors, and what hostile bytes may do (raise ProtocolError, only)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.model.task import ExitStatus
from proa.runtime.vm import messages, protocol
from proa.runtime.vm.protocol import Decoder, Fields, FrameType, Key, ProtocolError, frame

NONCE = bytes(range(16))


def decoded(data: bytes) -> list[protocol.Frame]:
    return list(Decoder(NONCE).feed(NONCE + data))


def test_vectors_of_the_document() -> None:
    assert frame(FrameType.HELLO, 7, messages.hello(1)).hex() == "0a0000000107000000010004000000" + "01000000"
    assert frame(FrameType.STDIN, 1, b"hi\n").hex() == "030000004001000000" + "68690a"
    assert frame(FrameType.CREDIT, 1, protocol.credit(1, 65_536)).hex() == "050000004201000000" + "0100000100"
    (ok,) = decoded(bytes.fromhex("000000008007000000"))
    assert (ok.kind, ok.number, ok.payload) == (FrameType.OK, 7, b"")
    (exited,) = decoded(
        bytes.fromhex(
            "22000000c001000000070004000000890000000900040000000100" + "00000a00080000000100000000000000"
        )
    )
    assert exited.number == 1
    assert messages.exit_status(Fields(exited.payload)) == ExitStatus(
        code=137, finished_at_ns=1, oom_killed=True
    )


def test_what_an_earlier_connection_left_is_skipped() -> None:
    decoder = Decoder(NONCE)
    data = b"\xff" * 100 + NONCE[:7] + b"\0" + NONCE + frame(FrameType.OK, 3)
    frames = [each for byte in data for each in decoder.feed(bytes([byte]))]
    assert [each.number for each in frames] == [3]
    assert decoder.is_open


def test_silence_that_never_ends_is_not_kept() -> None:
    decoder = Decoder(NONCE)
    with pytest.raises(ProtocolError):
        for _ in range(200):
            list(decoder.feed(b"\1" * 65_536))


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameType.HELLO, 1),  # only the host sends it
        b"\0\0\0\0\x99\0\0\0\0",  # no such type
        b"\1\0\1\0\x43\1\0\0\0",  # more than a data frame holds
        b"\0\0\0\0\x43\1\0\0\0",  # an empty data frame
        b"\1\0\x10\0\x80\1\0\0\0",  # more than a control frame holds
    ],
)
def test_frames_that_break_the_rules(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decoded(data)


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=8))
def test_any_bytes_are_frames_or_a_protocol_error(data: bytes, cuts: list[int]) -> None:
    decoder = Decoder(NONCE)
    with contextlib.suppress(ProtocolError):
        list(decoder.feed(NONCE))
        for cut in cuts:
            list(decoder.feed(data[:cut]))
            data = data[cut:]
        for each in decoder.feed(data):
            assert len(each.payload) <= protocol.MAX_CONTROL_BYTES


@given(st.binary(max_size=300))
def test_any_payload_is_an_answer_or_a_protocol_error(payload: bytes) -> None:
    for read in (
        messages.exit_status,
        messages.records,
        messages.processes,
        lambda fields: messages.stats(fields, vcpus=2, now_ns=5),
    ):
        with contextlib.suppress(ProtocolError):
            read(Fields(payload))


@given(st.lists(st.tuples(st.sampled_from(list(Key)), st.binary(max_size=40)), max_size=20))
def test_fields_round_trip(pairs: list[tuple[Key, bytes]]) -> None:
    fields = Fields(b"".join(protocol.data(key, value) for key, value in pairs))
    for key in Key:
        assert fields.all_data(key) == [value for each, value in pairs if each is key]


@given(st.lists(st.sampled_from([b"a", protocol.MARKER, protocol.MARKER[:9], b"x" * 70_000]), max_size=6))
def test_input_is_split_so_that_no_frame_holds_the_marker(parts: list[bytes]) -> None:
    content = b"".join(parts)
    pieces = list(protocol.split_input(content))
    assert b"".join(pieces) == content
    for piece in pieces:
        frame(FrameType.STDIN, 1, piece)  # raises if it does


def test_a_control_payload_may_not_hold_the_marker() -> None:
    with pytest.raises(ProtocolError):
        frame(FrameType.START, 1, protocol.data(Key.ARG, protocol.MARKER))
    with pytest.raises(ProtocolError):
        protocol.text(Key.ARG, "a\0b")
    with pytest.raises(ProtocolError):
        protocol.text(Key.ARG, "\udcff")


def test_signed_numbers() -> None:
    fields = Fields(protocol.u32(Key.ROW_NICE, -5))
    assert fields.signed(Key.ROW_NICE) == -5
    assert fields.number(Key.PID) == 0
    with pytest.raises(ProtocolError):
        Fields(protocol.data(Key.PID, b"abc")).number(Key.PID)
