"""TensorBoard's event files, read by code that has nothing in common with their writer."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def crc32c(data: bytes) -> int:
    """RFC 3720's checksum, bit by bit, masked as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records_of(path: Path, whole: bool) -> list[bytes]:
    """The entries of a TFRecord file; `whole`: no cut entry at its end is tolerated."""
    data, place, entries = path.read_bytes(), 0, []
    while place < len(data):
        length = struct.unpack_from("<Q", data.ljust(place + 8, b"\0"), place)[0] if place + 8 <= len(data) else len(data)
        end = place + 12 + length + 4
        if end > len(data):
            assert not whole, f"{path}: the last entry is cut"
            break
        body = data[place + 12 : place + 12 + length]
        assert struct.unpack_from("<I", data, place + 8)[0] == crc32c(data[place : place + 8])
        assert struct.unpack_from("<I", data, end - 4)[0] == crc32c(body)
        entries.append(body)
        place = end
    return entries


def read_points(folder: Path, whole: bool = True) -> list[tuple[str, int, object]]:
    """(tag, step, value) in the order of the run's event files; the value of an image, text or histogram is its message."""
    points = []
    for path in sorted(folder.glob("*tfevents*")):
        for entry in records_of(path, whole):
            event = Event.FromString(entry)
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                plain = value.simple_value if kind == "simple_value" else getattr(value, kind).SerializeToString()
                points.append((value.tag, event.step, plain))
    return points
