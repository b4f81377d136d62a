"""Copy what a dirty bitmap shows from an NBD export into a file, as backup tools do with libnbd.

`python3 bench/bitmap.py SOCKET EXPORT BASE FILE`, by a Python that has libnbd. One connection, as
many reads in flight as `DEPTH`. Prints the bytes that were copied.
"""

import os
import sys

import nbd

DEPTH = 32
PIECE_BYTES = 256 * 1024
ASK_BYTES = 1 << 31


def changed(client: "nbd.NBD") -> list[tuple[int, int]]:
    """Ask for the ranges that the bitmap shows: first byte and length."""
    found: list[tuple[int, int]] = []
    at, size = 0, client.get_size()

    def tell(_name: str, _offset: int, entries: list[int], _error: object) -> None:
        nonlocal at
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if flags & 1:
                found.append((at, length))
            at += length

    while at < size:
        client.block_status(min(size - at, ASK_BYTES), at, tell)
    return found


def main(socket: str, export: str, base: str, file: str) -> int:
    """Copy. Result: bytes that were."""
    client = nbd.NBD()
    client.add_meta_context(f"qemu:dirty-bitmap:{base}")
    client.set_export_name(export)
    client.connect_unix(socket)
    out = os.open(file, os.O_WRONLY)
    done = 0
    for first, length in changed(client):
        for at in range(first, first + length, PIECE_BYTES):
            buffer = nbd.Buffer(min(PIECE_BYTES, first + length - at))

            def write(_error: object, at: int = at, buffer: "nbd.Buffer" = buffer) -> int:
                os.pwrite(out, buffer.to_bytearray(), at)
                return 1

            client.aio_pread(buffer, at, write)
            done += buffer.size()
            while client.aio_in_flight() >= DEPTH:
                client.poll(-1)
    while client.aio_in_flight() > 0:
        client.poll(-1)
    os.fsync(out)
    os.close(out)
    client.shutdown()
    return done


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
