"""OBELICS: interleaved documents in the order of the web page."""
