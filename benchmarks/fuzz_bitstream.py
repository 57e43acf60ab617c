"""Coverage-guided fuzzing of the readers of coded files.

    pip install atheris
    python -m benchmarks.fuzz_bitstream -runs=1000000

It mutates a few small valid files. Every second mutation gets correct checksums, so that it tests the code after the
checks. Each file is read strictly, with concealment, by its header alone and by repacking; `examine` compares the
results. Any error but `BitstreamError`, more than 10 s for one file or more than 1 GB of memory ends the run with an
exit code above 0 and leaves the file in `runs/fuzz/`. All other options are those of libFuzzer.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("runs/fuzz")
OPTIONS = ("-max_len=1024", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", f"-artifact_prefix={FOLDER}/")
_RECORD_BYTES = 18  # from the format's documentation, not from the reader, whose mistakes this must find


def main() -> None:
    """Fuzz until libFuzzer's options say stop."""
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("atheris is not installed; type: pip install atheris")
    with atheris.instrument_imports(
        include=["spectrostream.bitstream.files", "spectrostream.bitstream.entropy_coding"]
    ):
        _forget_modules()
        import spectrostream.bitstream.files  # noqa: F401  again, instrumented
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, content in seed_files().items():
        (corpus / name).write_bytes(content)

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        mutated = atheris.Mutate(content, len(content)) if seed % 4 == 0 else atheris.Mutate(content, most)
        return with_mended_checksums(mutated) if seed % 2 else bytes(mutated)

    atheris.Setup([sys.argv[0], *OPTIONS, *sys.argv[1:], str(corpus)], examine, custom_mutator=mutate)
    atheris.Fuzz()


def _forget_modules() -> None:
    for name in list(sys.modules):
        if name.startswith(("spectrostream.bitstream.files", "spectrostream.bitstream.entropy_coding")):
            del sys.modules[name]


def examine(content: bytes) -> None:
    """Read a file in all ways and check the results.

    Raises:
        AssertionError: The readers contradict each other or the file. Other errors are the readers' own faults.
    """
    strict = _read(content, conceal=False)
    concealed = _read(content, conceal=True)
    _examine_header(content)
    if strict is not None:
        assert concealed is not None
        assert torch.equal(strict, concealed)
        assert not strict.numel() or strict.min() >= 0
        _examine_repacked(content, strict)


def _read(content: bytes, *, conceal: bool) -> Tensor | None:
    """Return the codes of all chunks; None after an error or without an end record."""
    from spectrostream.bitstream.files import BitstreamError, BitstreamReader

    try:
        reader = BitstreamReader(io.BytesIO(content), conceal=conceal)
        chunks = []
        for codes in reader:
            chunks.append(codes)
            assert codes.shape[1] <= 250
            assert reader.frames == sum(chunk.shape[1] for chunk in chunks)
        lost = sum(loss.frames for loss in reader.lost)
        assert lost == sum(int((chunk == -1).all(dim=0).sum()) for chunk in chunks)
        assert conceal or not reader.lost
        # Each frame takes at least a sixteenth of its bits in the file, also a lost one.
        assert reader.frames * reader.header.bits_per_frame <= 2 * 16 * 8 * len(content)
        if reader.end is None:
            assert conceal
            return None
        header = reader.complete_header()
    except BitstreamError as error:
        _examine_message(error)
        return None
    assert header.frames == reader.frames
    return torch.cat([torch.zeros(header.levels, 0, dtype=torch.int64), *chunks], dim=1)


def _examine_header(content: bytes) -> None:
    from spectrostream.bitstream.files import BitstreamError, read_header

    try:
        header = read_header(io.BytesIO(content))
    except BitstreamError as error:
        _examine_message(error)
    else:
        assert 0 <= header.frames < 2**32


def _examine_message(error: Exception) -> None:
    assert re.search(r"\bbyte \d+", str(error)), f"no offset in: {error}"


def _examine_repacked(content: bytes, codes: Tensor) -> None:
    """Check that half of the levels, repacked and read back, have the same codes."""
    from spectrostream.bitstream.files import read_bitstream, repack

    levels = -(-len(codes) // 2)
    target = io.BytesIO()
    repack(io.BytesIO(content), target, levels=levels)
    target.seek(0)
    header, repacked = read_bitstream(target)
    assert header.levels == levels
    assert torch.equal(repacked, codes[:levels])


def seed_files() -> dict[str, bytes]:
    """Return small valid files by name; together they use every feature of the format."""
    from spectrostream.bitstream.files import BitstreamWriter, FrequencyTables, StreamHeader

    generator = np.random.default_rng(0)
    files = {}
    for name, levels, bits, frames, chunk_frames, is_coded, is_torn in (
        ("packed", 4, 10, 12, 5, False, False),
        ("single-frames", 2, 4, 6, 1, False, False),
        ("wide-indices", 3, 13, 5, 5, False, False),
        ("empty", 1, 1, 0, 250, False, False),
        ("coded", 3, 4, 40, 15, True, False),
        ("coded-many-levels", 16, 3, 9, 3, True, False),
        ("coded-wide", 2, 7, 20, 10, True, False),
        ("lost-frames", 3, 5, 30, 6, False, True),
        ("coded-lost-frames", 3, 4, 45, 15, True, True),
    ):
        # Powers of uniform numbers favour low indices, so that entropy coding saves bits.
        codes = torch.from_numpy((generator.random((levels, frames)) ** 6 * 2**bits).astype(np.int64))
        tables = FrequencyTables.fit(codes.repeat(1, 500), bits) if is_coded else None
        if is_torn:
            codes[:, frames // 3 : frames // 2] = -1
        stream = io.BytesIO()
        header = StreamHeader(bytes(range(8)), 48000, 2, levels, bits)
        with BitstreamWriter(stream, header, chunk_frames=chunk_frames, tables=tables) as writer:
            writer.write(codes)
            writer.close(samples=frames * 1920)
        files[name] = stream.getvalue()
    return files


def with_mended_checksums(content: bytes) -> bytes:
    """Return the file with correct checksums wherever its lengths still lead."""
    mended = bytearray(content)
    if len(mended) < 30:
        return bytes(mended)
    (length,) = struct.unpack_from("<H", mended, 6)
    _mend(mended, 0, length)
    offset = length + (_mend_tables(mended, length) if mended[25] & 1 else 0)
    while offset + _RECORD_BYTES <= len(mended):
        _mend(mended, offset, offset + _RECORD_BYTES)
        if mended[offset + 1 : offset + 2] == b"E":
            break
        (size,) = struct.unpack_from("<I", mended, offset + 10)
        following = offset + _RECORD_BYTES + size + 4
        _mend(mended, offset, following)
        offset = following
    return bytes(mended)


def _mend_tables(content: bytearray, start: int) -> int:
    """Correct the checksum of the frequency tables; return their bytes, checksum included."""
    levels, bits = struct.unpack_from("<HB", content, 22)
    flag_bytes = -(-levels // 8)
    flags = int.from_bytes(content[start : start + flag_bytes], "little") & ((1 << levels) - 1)
    size = flag_bytes + flags.bit_count() * (1 << min(bits, 16)) // 2 + 4
    _mend(content, start, start + size)
    return size


def _mend(content: bytearray, start: int, end: int) -> None:
    """Write the checksum of the bytes from `start` into the last four bytes before `end`."""
    if start + 4 <= end <= len(content):
        struct.pack_into("<I", content, end - 4, zlib.crc32(content[start : end - 4]))


if __name__ == "__main__":
    main()
