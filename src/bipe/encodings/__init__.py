"""Positional encodings: absolute inside a segment (`intra`), relative between segments (`inter`)."""
