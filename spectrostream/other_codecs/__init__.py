"""Other codecs behind the interface of `spectrostream.interface.AudioCodec`."""
