"""Commands that code audio: encode, decode, repack, stream."""
